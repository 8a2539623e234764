// The arithmetic of one sample, pixel or sum, in integers, so that every path gives the same bits: C++ on
// any instruction set and CUDA alike. Nothing here allocates, throws or needs the standard library at run
// time.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FOURD_HD __host__ __device__
#else
#define FOURD_HD
#endif

namespace fourd {

// ---------------------------------------------------------------------------------------------- colour

// Samples come in as 16ths of a code value around the middle of the range, which fits an int16 up to 12
// bits and holds every bilinear chroma sample exactly (quarters across times quarters down).
FOURD_HD inline constexpr int centred16(int sixteenths, int depth) { return sixteenths - (8 << depth); }

// YUV to RGB: level = (luma * y16 + chroma terms + bias) >> bits. The coefficients fit int16, the sums
// int32 (below 1.2e9 for any sample of any depth).
struct Matrix {
    std::int32_t y = 0, vr = 0, ug = 0, vg = 0, ub = 0;
    std::int32_t bias = 0;  // black level and half a unit for rounding
    std::int32_t bits = 0;  // fractional bits of the sums
};

// How chroma samples lie under luma samples along one axis.
enum class Siting : std::int32_t {
    full,      // one chroma sample for every luma sample
    cosited,   // one for two, on the first of the two
    between,   // one for two, half way between the two
    repeated,  // one for two, taken for both as it is
};

// The two chroma samples around luma position `at`: `weight` quarters of `first` and 4 - weight quarters of
// first + 1. Both are to be clamped to the plane by the caller.
struct ChromaTap {
    int first, weight;
};

FOURD_HD inline constexpr ChromaTap chroma_tap(int at, Siting siting) {
    if (siting == Siting::full) return {at, 4};
    if (siting == Siting::repeated) return {at >> 1, 4};
    if (siting == Siting::cosited) return {at >> 1, at & 1 ? 2 : 4};
    return at & 1 ? ChromaTap{at >> 1, 3} : ChromaTap{(at >> 1) - 1, 1};
}

// Sixteenths of the chroma value between four samples: a b in the upper row, c d in the lower one.
FOURD_HD inline constexpr int blend16(int a, int b, int c, int d, int weight_x, int weight_y) {
    return weight_y * (weight_x * a + (4 - weight_x) * b) + (4 - weight_y) * (weight_x * c + (4 - weight_x) * d);
}

FOURD_HD inline constexpr std::uint8_t to_level(int value) {
    return static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

struct Rgb {
    std::uint8_t r, g, b;
};

// y16, u16, v16 as centred16 gives them.
FOURD_HD inline constexpr Rgb to_rgb(int y16, int u16, int v16, const Matrix& m) {
    const int luma = m.y * y16 + m.bias;
    return {to_level((luma + m.vr * v16) >> m.bits), to_level((luma + m.ug * u16 + m.vg * v16) >> m.bits),
            to_level((luma + m.ub * u16) >> m.bits)};
}

// -------------------------------------------------------------------------------------------- resizing

// Filter weights are fixed point with this many fractional bits: 8 bits of pixel, 22 of weight and 2 of
// headroom for the negative lobes fill an int32, which is also what Pillow does.
inline constexpr int weight_bits = 22;

// The level for a sum of weight * level. Each of the two passes ends with it.
FOURD_HD inline constexpr std::uint8_t weighed_level(std::int32_t sum) {
    return to_level((sum + (1 << (weight_bits - 1))) >> weight_bits);
}

// Pillow (from 13 on) resizes vertically first when the height loses more than twice the pixels that the
// width loses. As each pass rounds to levels, the order shows in the result.
FOURD_HD inline constexpr bool vertical_first(int height, int width, int new_height, int new_width) {
    const int lost = width - new_width;
    return height - new_height > 2 * (lost > 0 ? lost : 0);
}

// --------------------------------------------------------------------------------------------- patches

// Normalised value of a level: level * scale + shift, two roundings and no fused multiply-add.
struct Normal {
    float scale[3], shift[3];
};

// Where a pixel of the resized clip goes: the index of its patch and of its value inside the patch.
// Patches run in blocks of merge x merge in raster order, in raster order inside each block; values run
// over channel, frame of the group, row, column.
struct PatchShape {
    int patch, merge, temporal;

    FOURD_HD constexpr int values() const { return 3 * temporal * patch * patch; }
    // group: frame / temporal; down, across: patches on each side; row, column: of the patch.
    FOURD_HD constexpr std::int64_t number(std::int64_t group, int down, int across, int row, int column) const {
        return group * down * across + static_cast<std::int64_t>(row / merge) * merge * across +
               static_cast<std::int64_t>(column / merge) * merge * merge + row % merge * merge + column % merge;
    }
    FOURD_HD constexpr int value(int channel, int slot, int row, int column) const {
        return ((channel * temporal + slot) * patch + row) * patch + column;
    }
};

// Bits of a finite float to bits of a shorter one, rounded to nearest even.
FOURD_HD inline constexpr std::uint16_t bfloat16_bits(std::uint32_t bits) {
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

FOURD_HD inline constexpr std::uint16_t float16_bits(std::uint32_t bits) {
    const std::uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    // Below 2^-14 the result has no exponent: the significand, shifted down with its implied bit.
    const std::uint32_t drop = size < 0x38800000 ? 126 - (size >> 23) : 13;
    const std::uint32_t kept = size < 0x38800000 ? (size & 0x7fffff) | 0x800000 : size - 0x38000000;
    const std::uint32_t safe = drop > 25 ? 25 : drop;
    const std::uint32_t half = (kept + (1u << (safe - 1)) - 1 + (kept >> safe & 1)) >> safe;
    return static_cast<std::uint16_t>(sign | (size >= 0x47800000 ? 0x7c00 : drop > 25 ? 0 : half));
}

}  // namespace fourd
