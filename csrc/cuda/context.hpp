// What the driver's functions need around them: a current context, and the names of their errors.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/driver.hpp"

namespace fourd::cuda {

inline std::string error_text(const Driver& driver, CUresult status) {
    const char* name = nullptr;
    driver.error_name(status, &name);
    return name ? name : "CUDA error " + std::to_string(static_cast<int>(status));
}

// Makes a context current for a while.
class Current {
public:
    Current(const Driver& driver, CUcontext context) : driver_(driver) {
        const CUresult status = driver_.push_context(context);
        if (status != CUDA_SUCCESS) throw std::runtime_error("cuCtxPushCurrent failed: " + error_text(driver_, status));
    }
    ~Current() {
        CUcontext popped;
        driver_.pop_context(&popped);
    }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

private:
    const Driver& driver_;
};

}  // namespace fourd::cuda
