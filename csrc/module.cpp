// fourdthinker._video: the Python face of csrc/. Bad input is a ValueError that names the value and
// the remedy; the interpreter lock is released while pixels are worked on.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "cuda/bindings.hpp"
#include "kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using Triple = std::array<double, 3>;
using Window = std::array<std::int64_t, 4>;

std::string shape_of(const Array& array) {
    std::string text = "[";
    for (std::size_t i = 0; i < array.ndim(); ++i) {
        if (i) text += ", ";
        text += std::to_string(array.shape(i));
    }
    return text + "]";
}

// uint8 [frames, height, width, 3] as frames of one packed plane each.
std::vector<fourd::Frame> frames_of(const Array& pixels) {
    if (pixels.ndim() != 4)
        throw std::invalid_argument("pixels have " + std::to_string(pixels.ndim()) + " dimensions, shape " +
                                    shape_of(pixels) +
                                    ": expected [frames, height, width, 3]; index a single frame as x[None]");
    if (pixels.dtype() != nb::dtype<std::uint8_t>())
        throw std::invalid_argument("pixels are not uint8 (shape " + shape_of(pixels) +
                                    "): convert them to levels 0..255 with .astype('uint8')");
    if (pixels.shape(3) != 3)
        throw std::invalid_argument("pixels have " + std::to_string(pixels.shape(3)) +
                                    " channels in the last dimension, shape " + shape_of(pixels) +
                                    ": expected RGB as [frames, height, width, 3]");
    if (pixels.size() == 0)
        throw std::invalid_argument("pixels are empty, shape " + shape_of(pixels) +
                                    ": at least one frame of one pixel is needed");
    std::int64_t expected = 1;
    for (int i = 3; i >= 0; --i) {
        if (pixels.shape(i) != 1 && pixels.stride(i) != expected)
            throw std::invalid_argument("pixels of shape " + shape_of(pixels) +
                                        " are not C-contiguous: pass numpy.ascontiguousarray(pixels)");
        expected *= static_cast<std::int64_t>(pixels.shape(i));
    }
    const auto row = static_cast<std::ptrdiff_t>(pixels.shape(2)) * 3;
    const auto frame = static_cast<std::ptrdiff_t>(pixels.shape(1)) * row;
    std::vector<fourd::Frame> frames(pixels.shape(0));
    for (std::size_t t = 0; t < frames.size(); ++t)
        frames[t].planes[0] = {static_cast<const std::uint8_t*>(pixels.data()) + t * frame, row};
    return frames;
}

Array plane_of(const nb::handle& object, std::size_t frame, std::size_t index) {
    const std::string name = "plane " + std::to_string(index) + " of frame " + std::to_string(frame);
    Array plane;
    if (!nb::try_cast(object, plane)) throw std::invalid_argument(name + " is no array in host memory");
    if (plane.dtype() != nb::dtype<std::uint8_t>() && plane.dtype() != nb::dtype<std::uint16_t>())
        throw std::invalid_argument(name + " is neither uint8 nor uint16");
    if (plane.ndim() != 2)
        throw std::invalid_argument(name + " has shape " + shape_of(plane) + ": expected [height, width]");
    return plane;
}

// The work itself, without the interpreter lock.
nb::object run(const fourd::Job& job, const std::vector<fourd::Frame>& frames) {
    const std::vector<std::size_t> shape = job.shape(frames.size());
    std::size_t bytes = job.item_bytes();
    for (const std::size_t side : shape) bytes *= side;
    std::unique_ptr<std::uint8_t[]> out(new std::uint8_t[bytes]);
    {
        nb::gil_scoped_release unlocked;
        fourd::convert(job.format, frames, job.output, job.threads, out.get());
    }
    nb::dlpack::dtype type = nb::dtype<std::uint8_t>();
    if (job.output.kind == fourd::Kind::float32) type = nb::dtype<float>();
    if (job.output.kind == fourd::Kind::float16)
        type = {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
    if (job.output.kind == fourd::Kind::bfloat16) type = nb::dtype<std::uint16_t>();
    nb::capsule owner(out.get(), [](void* p) noexcept { delete[] static_cast<std::uint8_t*>(p); });
    return nb::cast(nb::ndarray<nb::numpy>(out.release(), shape.size(), shape.data(), owner, nullptr, type));
}

nb::object run_pixels(const Array& pixels, const fourd::Arguments& arguments) {
    const std::vector<fourd::Frame> frames = frames_of(pixels);
    return run(fourd::checked(arguments, static_cast<std::int64_t>(pixels.shape(1)),
                              static_cast<std::int64_t>(pixels.shape(2)), static_cast<std::int64_t>(pixels.shape(0))),
               frames);
}

nb::object resize(const Array& pixels, std::int64_t height, std::int64_t width, const std::string& resample,
                  std::int64_t threads) {
    fourd::Arguments a;
    a.height = height, a.width = width, a.resample = resample, a.threads = threads;
    return run_pixels(pixels, a);
}

nb::object resize_patches(const Array& pixels, std::int64_t height, std::int64_t width, const std::string& resample,
                          std::int64_t patch, std::int64_t merge, std::int64_t temporal, std::int64_t threads,
                          const Triple& mean, const Triple& std, const std::string& dtype) {
    fourd::Arguments a;
    a.height = height, a.width = width, a.resample = resample, a.threads = threads;
    a.out = "patches", a.patch = patch, a.merge = merge, a.temporal = temporal;
    a.mean = mean, a.std = std, a.dtype = dtype;
    return run_pixels(pixels, a);
}

nb::object convert(const nb::sequence& frames, std::int64_t height, std::int64_t width, const std::string& chroma,
                   std::int64_t depth, std::int64_t shift, bool interleaved, const std::string& matrix, bool full_range,
                   const std::string& siting, const std::optional<Window>& crop, const std::string& resample,
                   std::int64_t rotation, bool mirrored, const std::string& out, std::int64_t patch, std::int64_t merge,
                   std::int64_t temporal, const Triple& mean, const Triple& std, const std::string& dtype,
                   std::int64_t threads) {
    const fourd::Arguments a{height,     width,  chroma,   depth,    shift,    interleaved, matrix,
                             full_range, siting, crop,     resample, rotation, mirrored,    out,
                             patch,      merge,  temporal, mean,     std,      dtype,       threads};
    std::vector<std::vector<Array>> planes;
    for (const nb::handle frame : frames) {
        nb::sequence parts;
        if (!nb::try_cast(frame, parts))
            throw std::invalid_argument("frame " + std::to_string(planes.size()) + " is no tuple of planes");
        std::vector<Array> found;
        for (const nb::handle part : parts) found.push_back(plane_of(part, planes.size(), found.size()));
        planes.push_back(std::move(found));
    }
    std::int64_t luma_height = 0, luma_width = 0;
    if (!planes.empty() && !planes[0].empty()) {
        luma_height = static_cast<std::int64_t>(planes[0][0].shape(0));
        luma_width = static_cast<std::int64_t>(planes[0][0].shape(1));
        if (chroma == "rgb" && luma_width % 3 != 0)
            throw std::invalid_argument("plane 0 of frame 0 has rows of " + std::to_string(luma_width) +
                                        " bytes: packed rgb needs 3 for each pixel");
        if (chroma == "rgb") luma_width /= 3;
    }
    const fourd::Job job = fourd::checked(a, luma_height, luma_width, static_cast<std::int64_t>(planes.size()));
    const auto expected = static_cast<std::size_t>(fourd::plane_count(job.format));
    std::vector<fourd::Frame> list(planes.size());
    for (std::size_t t = 0; t < planes.size(); ++t) {
        if (planes[t].size() != expected)
            throw std::invalid_argument(
                "frame " + std::to_string(t) + " has " + std::to_string(planes[t].size()) + " planes: chroma '" +
                chroma + "'" + (interleaved ? " with interleaved planes" : "") + " has " + std::to_string(expected));
        for (std::size_t i = 0; i < expected; ++i) {
            const Array& plane = planes[t][i];
            const int bytes = static_cast<int>(plane.itemsize());
            fourd::check_plane(job.format, t, static_cast<int>(i),
                               {static_cast<std::int64_t>(plane.shape(0)), static_cast<std::int64_t>(plane.shape(1)),
                                plane.stride(0), plane.stride(1), bytes});
            list[t].planes[i] = {static_cast<const std::uint8_t*>(plane.data()), plane.stride(0) * bytes};
        }
    }
    return run(job, list);
}

}  // namespace

NB_MODULE(_video, m) {
    m.doc() = "Decoded video frames to resized RGB or to the patches of a vision tower.";
    const fourd::Arguments d;
    m.def("resize", &resize, "pixels"_a, "height"_a, "width"_a, "resample"_a = d.resample, "threads"_a = 0,
          "uint8 [T, H, W, 3] -> uint8 [T, height, width, 3], equal to Pillow's resize level for level.");
    m.def("resize_patches", &resize_patches, "pixels"_a, "height"_a, "width"_a, "resample"_a = d.resample,
          "patch"_a = d.patch, "merge"_a = d.merge, "temporal"_a = d.temporal, "threads"_a = 0, "mean"_a = d.mean,
          "std"_a = d.std, "dtype"_a = d.dtype,
          "uint8 [T, H, W, 3] -> [patches, 3 * temporal * patch * patch] of dtype (float32, float16, or bfloat16 "
          "as uint16 bits): resized, (level / 255 - mean) / std, in Qwen's patch order; an incomplete last group "
          "repeats the last frame.");
    m.def(
        "convert", &convert, "frames"_a, nb::kw_only(), "height"_a, "width"_a, "chroma"_a, "depth"_a = d.depth,
        "shift"_a = d.shift, "interleaved"_a = d.interleaved, "matrix"_a = d.matrix, "full_range"_a = d.full_range,
        "siting"_a = d.siting, "crop"_a = nb::none(), "resample"_a = d.resample, "rotation"_a = d.rotation,
        "mirrored"_a = d.mirrored, "out"_a = d.out, "patch"_a = d.patch, "merge"_a = d.merge, "temporal"_a = d.temporal,
        "mean"_a = d.mean, "std"_a = d.std, "dtype"_a = d.dtype, "threads"_a = 0,
        "Frames as a decoder gives them to uint8 [T, height, width, 3] or to patches as resize_patches makes them.\n\n"
        "frames: a tuple of planes for each frame, each uint8 or uint16 [rows, samples], rows at any distance: "
        "(Y, U, V), (Y, UV) with interleaved=True, (Y,) for gray, ([H, 3*W],) for rgb. chroma: 420, 422, 444, "
        "gray or rgb. depth: 8, 10 or 12 valid bits, shifted up by `shift` (6 for P010). matrix: bt601, bt709 "
        "or bt2020. siting of chroma: left, center, topleft, or repeat to interpolate nothing. crop: (top, left, "
        "height, width) of the window that is shown, in luma samples. rotation: 0, 90, 180 or 270 degrees "
        "counter-clockwise, after the conversion; mirrored: left and right exchanged after that; height and width are "
        "of the result. Chroma is bilinear, RGB is rounded to levels, resizing "
        "is Pillow's; at the picture's own size nothing is resampled. threads=0 takes every core.");
    m.def(
        "use_instructions", [](const std::string& name) { return std::string(fourd::use_kernels(name)); }, "name"_a,
        "Which inner loops run from now on: generic, avx2, avx512, or best (the default); returns the name. All "
        "give the same result. For tests and benchmarks.");
    fourd::bind_cuda(m);
}
