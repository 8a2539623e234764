#include "cuda/bindings.hpp"

#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "cuda/plan.hpp"
#ifdef FOURD_CUDA
#include "cuda/gpu.hpp"
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace fourd {
namespace {

nb::dict build_info() {
    nb::dict info;
#ifdef FOURD_CUDA
    nb::list architectures;
    std::string rest = FOURD_ARCHITECTURES;
    while (!rest.empty()) {
        const std::size_t end = rest.find(' ');
        architectures.append(rest.substr(0, end).c_str());
        rest = end == std::string::npos ? "" : rest.substr(end + 1);
    }
    info["cuda"] = true;
    info["why_no_cuda"] = nb::none();
    info["archs"] = architectures;
#else
    info["cuda"] = false;
    info["why_no_cuda"] = FOURD_CUDA_WHY;
    info["archs"] = nb::list();
#endif
#ifdef FOURD_NVDEC
    info["nvdec_headers"] = true;
#else
    info["nvdec_headers"] = false;
#endif
    return info;
}

template <typename T>
void take(nb::dict& options, const char* name, T& to) {
    if (!options.contains(name)) return;
    if (!nb::try_cast(options[name], to))
        throw std::invalid_argument(std::string(name) + " is " + nb::repr(options[name]).c_str() +
                                    ", which is not what _video.convert takes");
    nb::del(options[name]);
}

// The keyword arguments of _video.convert. Those that are left in `options` are errors.
Arguments arguments_of(nb::dict options) {
    Arguments a;
    take(options, "height", a.height);
    take(options, "width", a.width);
    take(options, "chroma", a.chroma);
    take(options, "depth", a.depth);
    take(options, "shift", a.shift);
    take(options, "interleaved", a.interleaved);
    take(options, "matrix", a.matrix);
    take(options, "full_range", a.full_range);
    take(options, "siting", a.siting);
    take(options, "resample", a.resample);
    take(options, "rotation", a.rotation);
    take(options, "out", a.out);
    take(options, "patch", a.patch);
    take(options, "merge", a.merge);
    take(options, "temporal", a.temporal);
    take(options, "mean", a.mean);
    take(options, "std", a.std);
    take(options, "dtype", a.dtype);
    if (options.contains("crop")) {
        std::array<std::int64_t, 4> window{};
        if (!options["crop"].is_none()) {
            take(options, "crop", window);
            a.crop = window;
        } else {
            nb::del(options["crop"]);
        }
    }
    for (const auto& [name, value] : options)
        throw std::invalid_argument(std::string("unknown argument ") + nb::repr(name).c_str());
    return a;
}

// An address and the bytes from row to row.
using Address = std::pair<std::uintptr_t, std::int64_t>;

void cuda_convert(const std::vector<std::vector<Address>>& frames, std::uintptr_t to,
                  const std::vector<int>& place, int total, std::array<std::int64_t, 2> size, int device,
                  std::uintptr_t stream, const nb::kwargs& options) {
    const Arguments arguments = arguments_of(nb::borrow<nb::dict>(options));
    const Job job = checked(arguments, size[0], size[1], total);
    if (place.size() != frames.size())
        throw std::invalid_argument("there are " + std::to_string(frames.size()) + " frames and " +
                                    std::to_string(place.size()) + " places: one for each is needed");
    const auto planes = static_cast<std::size_t>(plane_count(job.format));
    std::vector<Frame> list(frames.size());
    for (std::size_t t = 0; t < frames.size(); ++t) {
        if (place[t] < 0 || place[t] >= total)
            throw std::invalid_argument("place " + std::to_string(place[t]) + " of frame " + std::to_string(t) +
                                        " is not in 0.." + std::to_string(total - 1));
        if (frames[t].size() != planes)
            throw std::invalid_argument("frame " + std::to_string(t) + " has " + std::to_string(frames[t].size()) +
                                        " planes: " + std::to_string(planes) + " are needed");
        for (std::size_t i = 0; i < planes; ++i)
            list[t].planes[i] = {reinterpret_cast<const std::uint8_t*>(frames[t][i].first), frames[t][i].second};
    }
    nb::gil_scoped_release unlocked;
    if (device < 0) {
        cuda::emulate(job.format, list, place, total, job.output, reinterpret_cast<void*>(to));
        return;
    }
#ifdef FOURD_CUDA
    cuda::convert(*cuda::gpu(device, reinterpret_cast<void*>(stream)), job.format, list, place, total, job.output,
                  reinterpret_cast<void*>(to));
#else
    (void)stream;
    throw std::runtime_error("this build of fourdthinker._video has no CUDA: " FOURD_CUDA_WHY);
#endif
}

}  // namespace

void bind_cuda(nb::module_& m) {
    m.def("cuda_convert", &cuda_convert, "frames"_a, "to"_a, "place"_a, "total"_a, "size"_a, "device"_a, "stream"_a,
          "options"_a,
          "convert on a GPU, of addresses that the caller vouches for. frames: for each frame its planes as (address, "
          "bytes from row to row). to: address of the whole result, `total` frames, of which frame i becomes "
          "place[i]. size: (height, width) of the luma plane. stream: the CUDA stream to work on, not waited for. "
          "device: its number, or -1 to run the kernels' threads one by one on the host, with host addresses. "
          "options: as convert takes them, threads apart.");
    m.def("build_info", &build_info,
          "How this module was built: cuda (bool), why_no_cuda (text or None), archs (CMake's list of CUDA "
          "architectures), nvdec_headers (bool).");
}

}  // namespace fourd
