#include "cuda/driver.hpp"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace fourd::cuda {
namespace {

class Library {
public:
    explicit Library(const char* name) : name_(name), handle_(dlopen(name, RTLD_LAZY | RTLD_LOCAL)) {
        if (!handle_)
            throw std::runtime_error(std::string(name) + " cannot be opened (" + dlerror() +
                                     "): NVIDIA's driver is not installed, or in a container its video part is not "
                                     "(NVIDIA_DRIVER_CAPABILITIES must hold 'video')");
    }
    // Never closed: decoders live until the process ends.

    template <typename Function>
    void find(Function*& function, const char* name) const {
        function = reinterpret_cast<Function*>(dlsym(handle_, name));
        if (!function) throw std::runtime_error(std::string(name_) + " has no " + name + ": the driver is too old");
    }

private:
    const char* name_;
    void* handle_;
};

Driver open() {
    Driver d;
    const Library cuda("libcuda.so.1");
    cuda.find(d.init, "cuInit");
    cuda.find(d.error_name, "cuGetErrorName");
    cuda.find(d.device, "cuDeviceGet");
    cuda.find(d.retain_context, "cuDevicePrimaryCtxRetain");
    cuda.find(d.push_context, "cuCtxPushCurrent_v2");
    cuda.find(d.pop_context, "cuCtxPopCurrent_v2");
    cuda.find(d.create_event, "cuEventCreate");
    cuda.find(d.destroy_event, "cuEventDestroy_v2");
    cuda.find(d.record_event, "cuEventRecord");
    cuda.find(d.wait_for_event, "cuEventSynchronize");
    const Library cuvid("libnvcuvid.so.1");
    cuvid.find(d.capabilities, "cuvidGetDecoderCaps");
    cuvid.find(d.create_decoder, "cuvidCreateDecoder");
    cuvid.find(d.destroy_decoder, "cuvidDestroyDecoder");
    cuvid.find(d.reconfigure_decoder, "cuvidReconfigureDecoder");
    cuvid.find(d.decode_picture, "cuvidDecodePicture");
    cuvid.find(d.decode_status, "cuvidGetDecodeStatus");
    cuvid.find(d.map_frame, "cuvidMapVideoFrame64");
    cuvid.find(d.unmap_frame, "cuvidUnmapVideoFrame64");
    cuvid.find(d.create_parser, "cuvidCreateVideoParser");
    cuvid.find(d.parse, "cuvidParseVideoData");
    cuvid.find(d.destroy_parser, "cuvidDestroyVideoParser");
    const CUresult status = d.init(0);
    if (status != CUDA_SUCCESS) {
        const char* name = nullptr;
        d.error_name(status, &name);
        throw std::runtime_error(std::string("cuInit failed: ") + (name ? name : std::to_string(status).c_str()));
    }
    return d;
}

}  // namespace

const Driver& driver() {
    static const Driver opened = open();  // a failed attempt is made again the next time
    return opened;
}

}  // namespace fourd::cuda
