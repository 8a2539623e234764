// What one thread of the CUDA kernels does, as functions of block and thread that run on the host too, so
// that a machine without a GPU tests the kernels' index arithmetic. Levels come from arith.hpp alone: the
// CPU path, the kernels and their emulation give the same bits.
//
// A picture goes through one pass or two. The first reads decoded surfaces and converts on the way, so no
// full-size RGB exists; between two passes stands an 8-bit RGB picture that is resized along one axis,
// stored as 4 bytes a pixel, so that a pixel is one aligned load.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "convert.hpp"

#ifdef __CUDA_ARCH__
#define FOURD_UNROLL _Pragma("unroll")
#else
#define FOURD_UNROLL
#endif

namespace fourd::cuda {

inline constexpr int batch = 16;  // frames in one launch

// A smaller, plain copy of Taps: weights are [capacity, out], so that neighbouring outputs lie together.
struct TapsView {
    const int* first = nullptr;
    const int* count = nullptr;
    const std::int32_t* weights = nullptr;
    int in = 0, out = 0;
};

struct Block {
    int x, y, z;
};

FOURD_HD inline std::uint32_t pack(Rgb p) { return p.r | p.g << 8 | static_cast<std::uint32_t>(p.b) << 16; }

template <typename T>
FOURD_HD inline T read(const std::uint8_t* at) {
#ifdef __CUDACC__
    return *reinterpret_cast<const T*>(at);  // plan.cpp checks the alignment
#else
    T value;
    __builtin_memcpy(&value, at, sizeof(T));
    return value;
#endif
}

FOURD_HD inline std::uint32_t float_bits(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    return bits;
#endif
}

FOURD_HD inline int clamped(int value, int last) { return value < 0 ? 0 : value > last ? last : value; }

// Which sample of the planes lies at (x, y) of the upright picture, a linear map. Computed once on the host: the
// cases of orientation, taken in the kernels, cost registers.
struct Upright {
    int row, row_x, row_y, column, column_x, column_y;

    explicit Upright(const Format& f) {
        const auto [r0, c0] = at(f, 0, 0);
        const auto [rx, cx] = at(f, 1, 0);
        const auto [ry, cy] = at(f, 0, 1);
        row = r0, row_x = rx - r0, row_y = ry - r0;
        column = c0, column_x = cx - c0, column_y = cy - c0;
    }

private:
    static std::pair<int, int> at(const Format& f, int x, int y) {
        if (f.mirrored) x = f.picture_width() - 1 - x;
        int row = y, column = x;
        if (f.rotation == 90) {
            row = x, column = f.columns - 1 - y;
        } else if (f.rotation == 180) {
            row = f.rows - 1 - y, column = f.columns - 1 - x;
        } else if (f.rotation == 270) {
            row = f.rows - 1 - x, column = y;
        }
        return {row + f.top, column + f.left};
    }
};

// Decoded frames, turned upright and converted where they are read.
struct Surfaces {
    Format format;
    Upright upright;
    Frame frames[batch];

    explicit Surfaces(const Format& f) : format(f), upright(f) {}

    // Rows first when staging: the bytes that lie together in memory are then read together.
    FOURD_HD bool rows_first() const { return upright.row_x != 0; }

    FOURD_HD std::uint32_t load(int frame, int y, int x) const {
        const Format& f = format;
        const int row = upright.row + upright.row_x * x + upright.row_y * y;
        const int column = upright.column + upright.column_x * x + upright.column_y * y;
        const Frame& from = frames[frame];
        if (f.planes == Planes::rgb) {
            const std::uint8_t* p = from.planes[0].data + row * from.planes[0].stride + 3 * column;
            return p[0] | p[1] << 8 | static_cast<std::uint32_t>(p[2]) << 16;
        }
        const int luma = centred16(16 * sample(from.planes[0], row, column), f.depth);
        if (f.planes == Planes::gray) return pack(to_rgb(luma, 0, 0, f.matrix));

        const ChromaTap tx = chroma_tap(column, f.across), ty = chroma_tap(row, f.down);
        const int right = f.chroma_width() - 1, bottom = f.chroma_height() - 1;
        const int x0 = clamped(tx.first, right), x1 = clamped(tx.first + 1, right);
        const int y0 = clamped(ty.first, bottom), y1 = clamped(ty.first + 1, bottom);
        const bool alone = f.across == Siting::full || f.across == Siting::repeated;  // weight 4 everywhere
        const Pair a = chroma(from, y0, x0);
        const Pair b = alone ? a : chroma(from, y0, x1);
        Pair c = a, d = b;
        if (ty.weight != 4) {  // the same for a whole row
            c = chroma(from, y1, x0);
            d = alone ? c : chroma(from, y1, x1);
        }
        const int u = centred16(blend16(a.u, b.u, c.u, d.u, tx.weight, ty.weight), f.depth);
        const int v = centred16(blend16(a.v, b.v, c.v, d.v, tx.weight, ty.weight), f.depth);
        return pack(to_rgb(luma, u, v, f.matrix));
    }

private:
    struct Pair {
        int u, v;
    };

    FOURD_HD int value(int stored) const { return stored >> format.shift & ((1 << format.depth) - 1); }

    FOURD_HD int sample(const Plane& plane, int row, int column) const {
        const std::uint8_t* line = plane.data + row * plane.stride;
        return format.depth == 8 ? line[column] : value(read<std::uint16_t>(line + 2 * column));
    }

    FOURD_HD Pair chroma(const Frame& from, int row, int column) const {
        if (format.planes == Planes::yuv)
            return {sample(from.planes[1], row, column), sample(from.planes[2], row, column)};
        const std::uint8_t* line = from.planes[1].data + row * from.planes[1].stride;
        if (format.depth == 8) {
            const auto both = read<std::uint16_t>(line + 2 * column);
            return {both & 255, both >> 8};
        }
        const auto both = read<std::uint32_t>(line + 4 * column);
        return {value(static_cast<int>(both & 0xffff)), value(static_cast<int>(both >> 16))};
    }
};

// The picture between two passes: [frames, height, width] of 4 bytes.
struct Packed {
    const std::uint32_t* data;
    int height, width;

    FOURD_HD bool rows_first() const { return false; }
    FOURD_HD std::uint32_t load(int frame, int y, int x) const {
        return data[(static_cast<std::int64_t>(frame) * height + y) * width + x];
    }
};

// Where a pass writes.
struct Sink {
    void* out = nullptr;
    bool packed = false;  // the picture between two passes
    int height = 0, width = 0;
    Kind kind = Kind::pixels;
    PatchShape shape{};
    Normal normal{};
    int frames = 0;         // of the whole output
    int place[batch] = {};  // which of them each frame of the launch is

    FOURD_HD void store(int frame, int y, int x, const std::uint8_t (&level)[3]) const {
        if (packed) {
            static_cast<std::uint32_t*>(out)[(static_cast<std::int64_t>(frame) * height + y) * width + x] =
                pack({level[0], level[1], level[2]});
            return;
        }
        const int at = place[frame];
        if (kind == Kind::pixels) {
            std::uint8_t* to =
                static_cast<std::uint8_t*>(out) + ((static_cast<std::int64_t>(at) * height + y) * width + x) * 3;
            for (int c = 0; c < 3; ++c) to[c] = level[c];
            return;
        }
        const PatchShape& s = shape;
        const int row = y / s.patch, column = x / s.patch, group = at / s.temporal, slot = at % s.temporal;
        const int slots = at == frames - 1 ? s.temporal : slot + 1;  // the last frame fills its group
        const std::int64_t base = s.number(group, height / s.patch, width / s.patch, row, column) * s.values();
        for (int c = 0; c < 3; ++c) {
            const float value = level[c] * normal.scale[c] + normal.shift[c];
            for (int k = slot; k < slots; ++k) {
                const std::int64_t to = base + s.value(c, k, y - row * s.patch, x - column * s.patch);
                if (kind == Kind::float32) static_cast<float*>(out)[to] = value;
                else if (kind == Kind::float16) static_cast<std::uint16_t*>(out)[to] = float16_bits(float_bits(value));
                else static_cast<std::uint16_t*>(out)[to] = bfloat16_bits(float_bits(value));
            }
        }
    }
};

FOURD_HD inline void add(std::int32_t (&sums)[3], std::int32_t weight, std::uint32_t pixel) {
    sums[0] += weight * static_cast<int>(pixel & 255);
    sums[1] += weight * static_cast<int>(pixel >> 8 & 255);
    sums[2] += weight * static_cast<int>(pixel >> 16);
}

FOURD_HD inline void finish(const Sink& sink, int frame, int y, int x, const std::int32_t (&sums)[3]) {
    const std::uint8_t level[3] = {weighed_level(sums[0]), weighed_level(sums[1]), weighed_level(sums[2])};
    sink.store(frame, y, x, level);
}

// Along rows. A block makes `across` x `lines` pixels. It converts the span of the input that they need
// once, piece by piece, into shared memory.
template <typename Source>
struct Horizontal {
    static constexpr int across = 64, lines = 8, threads = 256;
    static constexpr int each = across * lines / threads;  // lines of one thread
    static constexpr int piece = 256, stride = piece + 4;  // the padding spreads a column over the banks
    static constexpr int tile = lines * stride;

    struct Sums {
        std::int32_t of[each][3] = {};
    };

    Source source;
    Sink sink;
    TapsView taps;

    FOURD_HD Block blocks(int frames) const {
        return {(taps.out + across - 1) / across, (sink.height + lines - 1) / lines, frames};
    }
    FOURD_HD int begin(Block block) const { return taps.first[block.x * across]; }
    FOURD_HD int end(Block block) const {
        const int last = clamped(block.x * across + across - 1, taps.out - 1);
        return taps.first[last] + taps.count[last];
    }

    // Pixels [at, at + piece) of the block's lines, up to `end`.
    FOURD_HD void stage(Block block, int thread, int at, int end, std::uint32_t* shared) const {
        const bool rows_first = source.rows_first();
        for (int i = thread; i < lines * piece; i += threads) {
            const int line = rows_first ? i % lines : i / piece;
            const int column = rows_first ? i / lines : i % piece;
            const int y = block.y * lines + line, x = at + column;
            if (y < sink.height && x < end) shared[line * stride + column] = source.load(block.z, y, x);
        }
    }

    FOURD_HD void accumulate(Block block, int thread, int at, const std::uint32_t* shared, Sums& sums) const {
        const int x = block.x * across + thread % across;
        if (x >= taps.out) return;
        const int first = taps.first[x];
        const int low = first > at ? first : at;
        const int last = first + taps.count[x];
        const int high = last < at + piece ? last : at + piece;
        for (int i = low; i < high; ++i) {
            const std::int32_t weight = taps.weights[static_cast<std::int64_t>(i - first) * taps.out + x];
            FOURD_UNROLL
            for (int r = 0; r < each; ++r)
                add(sums.of[r], weight, shared[(thread / across * each + r) * stride + i - at]);
        }
    }

    FOURD_HD void store(Block block, int thread, const Sums& sums) const {
        const int x = block.x * across + thread % across;
        if (x >= taps.out) return;
        FOURD_UNROLL
        for (int r = 0; r < each; ++r) {
            const int y = block.y * lines + thread / across * each + r;
            if (y < sink.height) finish(sink, block.z, y, x, sums.of[r]);
        }
    }
};

// Along columns, a pixel a thread; neighbouring threads read neighbouring pixels. With taps of one weight
// each it only converts.
template <typename Source>
struct Vertical {
    static constexpr int across = 32, lines = 8, threads = across * lines;

    Source source;
    Sink sink;
    TapsView taps;

    FOURD_HD Block blocks(int frames) const {
        return {(sink.width + across - 1) / across, (taps.out + lines - 1) / lines, frames};
    }

    FOURD_HD void run(Block block, int thread) const {
        const int x = block.x * across + thread % across, y = block.y * lines + thread / across;
        if (x >= sink.width || y >= taps.out) return;
        const int first = taps.first[y], count = taps.count[y];
        std::int32_t sums[3] = {};
        for (int k = 0; k < count; ++k)
            add(sums, taps.weights[static_cast<std::int64_t>(k) * taps.out + y], source.load(block.z, first + k, x));
        finish(sink, block.z, y, x, sums);
    }
};

}  // namespace fourd::cuda
