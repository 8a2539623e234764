// What callers ask for, by name, and what it means once every value is checked. No Python in here.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "convert.hpp"

namespace fourd {

struct Arguments {
    std::int64_t height = 0, width = 0;  // of the output, after rotation
    std::string chroma = "rgb";
    std::int64_t depth = 8, shift = 0;
    bool interleaved = false;
    std::string matrix = "bt601";
    bool full_range = false;
    std::string siting = "left";
    std::optional<std::array<std::int64_t, 4>> crop;  // top, left, height, width
    std::string resample = "lanczos";
    std::int64_t rotation = 0;
    bool mirrored = false;
    std::string out = "uint8";
    std::int64_t patch = 14, merge = 2, temporal = 2;
    std::array<double, 3> mean{0.48145466, 0.4578275, 0.40821073};  // CLIP's
    std::array<double, 3> std{0.26862954, 0.26130258, 0.27577711};
    std::string dtype = "float32";
    std::int64_t threads = 0;
};

struct Job {
    Format format;
    Output output;
    int threads = 0;

    // Values of the result and bytes of each.
    std::vector<std::size_t> shape(std::size_t frames) const;
    std::size_t item_bytes() const;
};

// luma_height, luma_width: of the first plane, in samples (pixels for rgb). Throws std::invalid_argument
// (ValueError in Python) that names the value and the remedy.
Job checked(const Arguments& arguments, std::int64_t luma_height, std::int64_t luma_width, std::int64_t frames);

// A plane as it was handed over, in samples.
struct PlaneShape {
    std::int64_t height, width, row_stride, column_stride;
    int bytes;  // of a sample
};

// How many planes a frame of this format has, and whether plane `index` of frame `frame` is what it must be.
int plane_count(const Format& format);
void check_plane(const Format& format, std::size_t frame, int index, const PlaneShape& plane);

}  // namespace fourd
