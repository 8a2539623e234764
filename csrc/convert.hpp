// From decoded frames to resized RGB, or straight to normalised patches, on the CPU.
#pragma once

#include <array>
#include <span>

#include "filter.hpp"
#include "frame.hpp"

namespace fourd {

enum class Kind { pixels, float32, float16, bfloat16 };  // the last three are patches

struct Output {
    int height = 0, width = 0;
    Filter filter = Filter::lanczos;
    Kind kind = Kind::pixels;
    PatchShape shape{};  // of patches: height and width are multiples of patch * merge
    Normal normal{};
};

// The scale and shift that make (level / 255 - mean) / deviation.
Normal make_normal(const std::array<double, 3>& mean, const std::array<double, 3>& deviation);

// out: uint8 [frames, height, width, 3], or patches [groups * height/patch * width/patch, values] with
// groups = ceil(frames / temporal), where an incomplete last group repeats the last frame.
// threads = 0 takes the cores this process may run on. The planes are as large as `format` says; nothing is
// checked here.
void convert(const Format& format, std::span<const Frame> frames, const Output& output, int threads, void* out);

}  // namespace fourd
