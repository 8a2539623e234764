// fourdthinker._video: the Python face of csrc/. Bad input is a ValueError that names the value and
// the remedy; the interpreter lock is released while pixels are worked on.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/bindings.hpp"
#include "resize.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Pixels = nb::ndarray<nb::ro, nb::device::cpu>;

// Bounds every size, so that products of sizes stay far inside 64 bits.
constexpr std::int64_t largest_side = 1 << 16;
constexpr std::int64_t most_frames = 1 << 20;

std::string shape_of(const Pixels& pixels) {
    std::string text = "[";
    for (std::size_t i = 0; i < pixels.ndim(); ++i) {
        if (i) text += ", ";
        text += std::to_string(pixels.shape(i));
    }
    return text + "]";
}

fourd::Clip clip_of(const Pixels& pixels) {
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
    if (static_cast<std::int64_t>(pixels.shape(0)) > most_frames ||
        static_cast<std::int64_t>(pixels.shape(1)) > largest_side ||
        static_cast<std::int64_t>(pixels.shape(2)) > largest_side)
        throw std::invalid_argument("pixels of shape " + shape_of(pixels) + " are too large: at most " +
                                    std::to_string(most_frames) + " frames of " + std::to_string(largest_side) +
                                    " pixels a side; split the clip");
    std::int64_t expected = 1;
    for (int i = 3; i >= 0; --i) {
        if (pixels.shape(i) != 1 && pixels.stride(i) != expected)
            throw std::invalid_argument("pixels of shape " + shape_of(pixels) +
                                        " are not C-contiguous: pass numpy.ascontiguousarray(pixels)");
        expected *= static_cast<std::int64_t>(pixels.shape(i));
    }
    return {static_cast<const std::uint8_t*>(pixels.data()), static_cast<int>(pixels.shape(0)),
            static_cast<int>(pixels.shape(1)), static_cast<int>(pixels.shape(2))};
}

void check_side(const char* name, std::int64_t value) {
    if (value < 1 || value > largest_side)
        throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) +
                                    ": expected 1.." + std::to_string(largest_side));
}

int checked_threads(std::int64_t threads) {
    if (threads < 0 || threads > 1024)
        throw std::invalid_argument("threads is " + std::to_string(threads) +
                                    ": expected 1..1024, or 0 for every core of this process");
    return static_cast<int>(threads);
}

template <typename T>
nb::ndarray<nb::numpy, T> adopt(std::unique_ptr<T[]> data, std::initializer_list<std::size_t> shape) {
    nb::capsule owner(data.get(), [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T>(data.release(), shape, owner);
}

nb::ndarray<nb::numpy, std::uint8_t> resize(const Pixels& pixels, std::int64_t height, std::int64_t width,
                                            const std::string& resample, std::int64_t threads) {
    const fourd::Clip clip = clip_of(pixels);
    const fourd::Filter filter = fourd::filter_by_name(resample);
    check_side("height", height);
    check_side("width", width);
    const int workers = checked_threads(threads);
    const auto frames = static_cast<std::size_t>(clip.frames);
    std::unique_ptr<std::uint8_t[]> out(new std::uint8_t[frames * height * width * 3]);
    {
        nb::gil_scoped_release unlocked;
        fourd::resize(clip, static_cast<int>(height), static_cast<int>(width), filter, workers, out.get());
    }
    return adopt(std::move(out), {frames, static_cast<std::size_t>(height), static_cast<std::size_t>(width), 3});
}

nb::ndarray<nb::numpy, float> resize_patches(const Pixels& pixels, std::int64_t height, std::int64_t width,
                                             const std::string& resample, std::int64_t patch, std::int64_t merge,
                                             std::int64_t temporal, std::int64_t threads) {
    const fourd::Clip clip = clip_of(pixels);
    const fourd::Filter filter = fourd::filter_by_name(resample);
    check_side("height", height);
    check_side("width", width);
    for (const auto& [name, value] : {std::pair{"patch", patch}, {"merge", merge}, {"temporal", temporal}})
        if (value < 1 || value > 256)
            throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ": expected 1..256");
    const std::int64_t factor = patch * merge;
    if (height % factor != 0 || width % factor != 0)
        throw std::invalid_argument("size " + std::to_string(height) + "x" + std::to_string(width) +
                                    " (height x width) is not a multiple of patch * merge = " +
                                    std::to_string(factor) + " on both sides: round it with FramePolicy.size");
    const int workers = checked_threads(threads);
    const std::size_t grids = (clip.frames + temporal - 1) / temporal;
    const std::size_t patches = grids * (height / patch) * (width / patch);
    const std::size_t features = 3 * temporal * patch * patch;
    std::unique_ptr<float[]> out(new float[patches * features]);
    {
        nb::gil_scoped_release unlocked;
        fourd::resize_patches(clip, static_cast<int>(height), static_cast<int>(width), filter,
                              {static_cast<int>(patch), static_cast<int>(merge), static_cast<int>(temporal)},
                              workers, out.get());
    }
    return adopt(std::move(out), {patches, features});
}

}  // namespace

NB_MODULE(_video, m) {
    m.doc() = "Antialiased resize of video frames, on the CPU.";
    m.def("resize", &resize, "pixels"_a, "height"_a, "width"_a, "resample"_a = "lanczos", "threads"_a = 0,
          "uint8 [T, H, W, 3] -> uint8 [T, height, width, 3], equal to Pillow's resize level for level.");
    m.def("resize_patches", &resize_patches, "pixels"_a, "height"_a, "width"_a, "resample"_a = "lanczos",
          "patch"_a = 14, "merge"_a = 2, "temporal"_a = 2, "threads"_a = 0,
          "uint8 [T, H, W, 3] -> float32 [patches, 3 * temporal * patch * patch], resized, normalised with "
          "CLIP's mean and deviation, in Qwen's patch order; an odd T repeats the last frame.");
    fourd::bind_cuda(m);
}
