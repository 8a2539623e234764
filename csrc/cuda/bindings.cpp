#include "cuda/bindings.hpp"

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "arguments.hpp"
#include "cuda/plan.hpp"
#ifdef FOURD_CUDA
#include "cuda/gpu.hpp"
#endif
#ifdef FOURD_NVDEC
#include "cuda/nvdec.hpp"
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
    take(options, "mirrored", a.mirrored);
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

void cuda_convert(const std::vector<std::vector<Address>>& frames, std::uintptr_t to, const std::vector<int>& place,
                  int total, std::array<std::int64_t, 2> size, int device, std::uintptr_t stream,
                  const nb::kwargs& options) {
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

#ifdef FOURD_NVDEC

// Never destroyed: at exit the driver may be gone before it.
cuda::Decoders& decoders() {
    static auto& shared = *new cuda::Decoders(cuda::driver());
    return shared;
}

std::optional<std::string> nvdec_missing() {
    nb::gil_scoped_release unlocked;
    try {
        cuda::driver();
        return {};
    } catch (const std::exception& error) {
        return error.what();
    }
}

std::optional<std::string> nvdec_refusal(const std::string& codec, const std::string& chroma, int depth, int width,
                                         int height, int device) {
    nb::gil_scoped_release unlocked;
    try {
        cudaVideoChromaFormat format = cudaVideoChromaFormat_420;
        if (chroma == "gray") format = cudaVideoChromaFormat_Monochrome;
        else if (chroma == "422") format = cudaVideoChromaFormat_422;
        else if (chroma == "444") format = cudaVideoChromaFormat_444;
        else if (chroma != "420") return "chroma '" + chroma + "' is not decoded by NVDEC";
        const std::string why = decoders().refusal(device, {cuda::codec_by_name(codec), format, depth, width, height});
        return why.empty() ? std::nullopt : std::optional(why);
    } catch (const std::exception& error) {  // no driver, no such device, a codec that it does not know
        return error.what();
    }
}

// One stream's frames into one output.
class Nvdec {
public:
    Nvdec(const std::string& codec, const nb::bytes& extradata, const std::vector<std::int64_t>& wanted,
          std::uintptr_t to, int device, std::uintptr_t stream, const nb::kwargs& options)
        : arguments_(arguments_of(nb::borrow<nb::dict>(options))), total_(static_cast<int>(wanted.size())), to_(to) {
        checked(arguments_, 2, 2, total_);  // before anything is decoded
        for (int i = 0; i < total_; ++i) place_[wanted[i]].push_back(i);
        machine_ = cuda::gpu(device, reinterpret_cast<void*>(stream));
        video_ = std::make_unique<cuda::Video>(decoders(), device, reinterpret_cast<CUstream>(stream),
                                               cuda::codec_by_name(codec),
                                               std::string_view(extradata.c_str(), extradata.size()), wanted,
                                               [this](const cuda::Mapped& mapped) { take(mapped); });
    }

    std::size_t feed(const nb::bytes& data, const std::vector<std::int64_t>& offsets,
                     const std::vector<std::int64_t>& pts, std::optional<std::int64_t> landed) {
        const std::span bytes(static_cast<const std::uint8_t*>(data.data()), data.size());
        nb::gil_scoped_release unlocked;
        return video_->feed(bytes, offsets, pts, landed);
    }

    std::vector<std::int64_t> finish() {
        nb::gil_scoped_release unlocked;
        return video_->finish();
    }

private:
    void take(const cuda::Mapped& mapped) {
        Arguments a = arguments_;
        a.chroma = mapped.chroma;
        a.interleaved = mapped.interleaved;
        a.depth = mapped.depth;
        a.shift = mapped.shift;
        a.crop = {mapped.top, mapped.left, mapped.rows, mapped.columns};
        const Job job = checked(a, mapped.height, mapped.width, total_);
        std::vector<Frame> frames;
        std::vector<int> place;
        for (std::size_t i = 0; i < mapped.frames.size(); ++i)
            for (const int at : place_.at(mapped.pts[i])) {
                frames.push_back(mapped.frames[i]);
                place.push_back(at);
            }
        cuda::convert(*machine_, job.format, frames, place, total_, job.output, reinterpret_cast<void*>(to_));
    }

    Arguments arguments_;
    int total_;
    std::uintptr_t to_;
    std::unordered_map<std::int64_t, std::vector<int>> place_;
    std::unique_ptr<cuda::Machine> machine_;
    std::unique_ptr<cuda::Video> video_;
};

void bind_nvdec(nb::module_& m) {
    // NvdecDamaged(cause, pts)
    static PyObject* damaged = PyErr_NewException("fourdthinker._video.NvdecDamaged", PyExc_RuntimeError, nullptr);
    m.attr("NvdecDamaged") = nb::borrow(damaged);
    nb::register_exception_translator([](const std::exception_ptr& error, void*) {
        try {
            std::rethrow_exception(error);
        } catch (const cuda::Damaged& found) {
            const nb::tuple values = nb::make_tuple(found.what(), found.pts);
            PyErr_SetObject(damaged, values.ptr());
        }
    });
    m.def("nvdec_missing", &nvdec_missing,
          "Why the driver's video library (libnvcuvid) cannot be used, or None when it can. No GPU is asked.");
    m.def("nvdec_refusal", &nvdec_refusal, "codec"_a, "chroma"_a, "depth"_a, "width"_a, "height"_a, "device"_a,
          "Why the GPU `device` cannot decode such a stream, or None when it can.");
    nb::class_<Nvdec>(m, "Nvdec",
                      "Decodes and converts chosen frames of one stream; see fourdthinker.frames.gpu.nvdec.")
        .def(nb::init<const std::string&, const nb::bytes&, const std::vector<std::int64_t>&, std::uintptr_t, int,
                      std::uintptr_t, const nb::kwargs&>(),
             "codec"_a, "extradata"_a, "wanted"_a, "to"_a, "device"_a, "stream"_a, "options"_a,
             "wanted: stamps; frame wanted[i] becomes frame i of the output at the address `to`. options: as convert "
             "takes them, without those that describe the surfaces.")
        .def("feed", &Nvdec::feed, "data"_a, "offsets"_a, "pts"_a, "landed"_a = nb::none(),
             "Packets i at data[offsets[i]:offsets[i + 1]]; landed: they do not follow those before, but begin at a "
             "keyframe of that stamp. Returns how many different frames are still to come.")
        .def("finish", &Nvdec::finish, "No more packets. Returns the stamps that were not shown.");
}

#endif

}  // namespace

void bind_cuda(nb::module_& m) {
#ifdef FOURD_NVDEC
    bind_nvdec(m);
#endif
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
