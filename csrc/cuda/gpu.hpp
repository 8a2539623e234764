// The GPU as a Machine.
#pragma once

#include <memory>

#include "cuda/plan.hpp"

namespace fourd::cuda {

// Work goes to `stream` (a cudaStream_t of `device`, null for the default one) and is not waited for.
// Throws std::runtime_error, here and from every use, with what CUDA says.
std::unique_ptr<Machine> gpu(int device, void* stream);

}  // namespace fourd::cuda
