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

struct PatchShape {
    int patch, merge, temporal;
};

// out: float32 [grids * height/patch * width/patch, 3 * temporal * patch * patch] with
// grids = ceil(frames / temporal); a last incomplete grid repeats the last frame. Patches run in
// blocks of merge x merge. Values are normalised with CLIP's mean and deviation.
// height and width must be multiples of patch * merge.
void resize_patches(const Clip& clip, int height, int width, Filter filter, PatchShape shape, int threads,
                    float* out);

}  // namespace fourd
