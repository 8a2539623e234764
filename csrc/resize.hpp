// Antialiased resize of RGB frames on the CPU, to pixels or straight to Qwen's patch layout.
#pragma once

#include <cstdint>

#include "filter.hpp"

namespace fourd {

// uint8 [frames, height, width, 3], C-contiguous.
struct Clip {
    const std::uint8_t* data;
    int frames, height, width;
};

// out: uint8 [frames, height, width, 3]. threads = 0 takes the cores this process may run on.
void resize(const Clip& clip, int height, int width, Filter filter, int threads, std::uint8_t* out);



}  // namespace fourd
