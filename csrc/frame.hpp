// Decoded frames as they come from a decoder, and what a caller wants of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "arith.hpp"

namespace fourd {

struct Plane {
    const std::uint8_t* data = nullptr;
    std::ptrdiff_t stride = 0;  // bytes from row to row
};

// Y, U, V; or Y and interleaved UV; or Y; or packed RGB.
struct Frame {
    Plane planes[3];
};

enum class Planes { rgb, gray, yuv, interleaved };

// What all frames of one call have in common.
struct Format {
    Planes planes = Planes::rgb;
    int height = 0, width = 0;  // of the luma plane
    int depth = 8, shift = 0;   // valid bits, and how far they are shifted up
    Siting across = Siting::full, down = Siting::full;
    Matrix matrix;
    int top = 0, left = 0, rows = 0, columns = 0;  // the window that is shown
    int rotation = 0;                              // degrees counter-clockwise, after conversion
    bool mirrored = false;                         // left and right exchanged, after rotation

    FOURD_HD constexpr int bytes() const { return depth > 8 ? 2 : 1; }  // of a sample
    FOURD_HD constexpr int chroma_height() const { return down == Siting::full ? height : (height + 1) / 2; }
    FOURD_HD constexpr int chroma_width() const { return across == Siting::full ? width : (width + 1) / 2; }
    FOURD_HD constexpr bool turned() const { return rotation == 90 || rotation == 270; }
    FOURD_HD constexpr bool upright() const { return rotation == 0 && !mirrored; }
    // The size of the picture: the window after rotation.
    FOURD_HD constexpr int picture_height() const { return turned() ? columns : rows; }
    FOURD_HD constexpr int picture_width() const { return turned() ? rows : columns; }
};

// matrix: "bt601", "bt709" or "bt2020" (non-constant luminance). gray leaves the chroma terms at zero.
// Throws std::invalid_argument for another name.
Matrix make_matrix(std::string_view name, bool full_range, int depth, bool gray);

}  // namespace fourd
