#include "resize.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "parallel.hpp"

// One wheel for every x86-64: the hot loops exist twice, the loader picks by the machine.
#if defined(__x86_64__) && defined(__GLIBC__)
#define FOURD_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define FOURD_CLONES
#endif

#ifndef __has_builtin
#define __has_builtin(x) 0
#endif

namespace fourd {
namespace {

using std::int32_t;
using std::uint8_t;

// Rows that go through the horizontal pass together: one vector lane each.
constexpr int lanes = 16;
// Bytes that are summed at once when rows are weighed.
constexpr int block = 64;

typedef uint8_t Bytes __attribute__((vector_size(16)));

// dst[j] = clamp(sum_k weights[k] * src[k * stride + j]) for j < size. Both passes are this loop; size
// is a constant, so that the compiler keeps the sums in vector registers.
template <int size>
[[gnu::always_inline]] inline void weigh(const uint8_t* __restrict src, std::size_t stride,
                                         const int32_t* __restrict weights, int count, uint8_t* __restrict dst) {
    int32_t sums[size];
    for (int j = 0; j < size; ++j) sums[j] = 1 << (weight_bits - 1);
    for (int k = 0; k < count; ++k, src += stride) {
        const int32_t weight = weights[k];
        for (int j = 0; j < size; ++j) sums[j] += weight * src[j];
    }
    for (int j = 0; j < size; ++j) dst[j] = static_cast<uint8_t>(std::clamp(sums[j] >> weight_bits, 0, 255));
}

}  // namespace

// Not in the anonymous namespace: clones need external linkage.

// src: [in, 3, lanes]; dst: [out, 3, lanes].
FOURD_CLONES void weigh_columns(const uint8_t* src, const Taps& taps, int out, uint8_t* dst) {
    constexpr std::size_t line = 3 * lanes;
    for (int x = 0; x < out; ++x) {
        weigh<line>(src + taps.first[x] * line, line, taps.of(x), taps.count[x], dst + x * line);
    }
}

// src: count rows, `stride` bytes apart; dst: one row of `bytes` bytes.
FOURD_CLONES void weigh_rows(const uint8_t* src, std::size_t stride, std::size_t bytes, const int32_t* weights,
                             int count, uint8_t* dst) {
    std::size_t j = 0;
    for (; j + block <= bytes; j += block) weigh<block>(src + j, stride, weights, count, dst + j);
    for (; j + 8 <= bytes; j += 8) weigh<8>(src + j, stride, weights, count, dst + j);
    for (; j < bytes; ++j) weigh<1>(src + j, stride, weights, count, dst + j);
}

namespace {

// 16 x 16 bytes: `to[i]` gets byte i of every `from[j]`.
#if __has_builtin(__builtin_shufflevector)
inline void transpose16(const Bytes* from, Bytes* to) {
    Bytes a[16], b[16];
    std::copy(from, from + 16, a);
    // Interleaving row j with row j + 8 four times moves bit 3 of the row number below the column
    // number each time, so after four rounds rows and columns have changed places.
    for (int round = 0; round < 4; ++round) {
        for (int j = 0; j < 8; ++j) {
            b[2 * j] = __builtin_shufflevector(a[j], a[j + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                               22, 7, 23);
            b[2 * j + 1] = __builtin_shufflevector(a[j], a[j + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                                   29, 14, 30, 15, 31);
        }
        std::copy(b, b + 16, a);
    }
    std::copy(a, a + 16, to);
}
#else
inline void transpose16(const Bytes* from, Bytes* to) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) to[i][j] = from[j][i];
}
#endif

// rows: `lanes` pointers to `bytes` bytes each; lines: [bytes, lanes].
void rows_to_lines(const uint8_t* const* rows, std::size_t bytes, uint8_t* lines) {
    Bytes in[lanes], out[lanes];
    std::size_t x = 0;
    for (; x + lanes <= bytes; x += lanes) {
        for (int r = 0; r < lanes; ++r) std::memcpy(&in[r], rows[r] + x, lanes);
        transpose16(in, out);
        std::memcpy(lines + x * lanes, out, sizeof(out));
    }
    for (; x < bytes; ++x)
        for (int r = 0; r < lanes; ++r) lines[x * lanes + r] = rows[r][x];
}

// The way back: the first `count` rows of `stride` bytes. lines has a multiple of `lanes` lines.
void lines_to_rows(const uint8_t* lines, std::size_t bytes, uint8_t* rows, std::size_t stride, int count) {
    Bytes in[lanes], out[lanes];
    for (std::size_t x = 0; x < bytes; x += lanes) {
        std::memcpy(in, lines + x * lanes, sizeof(in));
        transpose16(in, out);
        for (int r = 0; r < count; ++r) std::memcpy(rows + r * stride + x, &out[r], lanes);
    }
}

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

// Pillow (from 13 on) resizes vertically first when the height loses more than twice the pixels that
// the width loses. As each pass rounds to uint8, the order shows in the result.
bool vertical_first(const Clip& clip, int height, int width) {
    return clip.height - height > 2 * std::max(clip.width - width, 0);
}

// Resizes output rows [begin, end) of one frame and gives each finished row to `emit(y, bytes)`.
// Buffers are kept between calls.
class FrameResizer {
public:
    FrameResizer(const Clip& clip, int height, int width, const Taps& columns, const Taps& rows)
        : clip_(clip), width_(width), columns_(columns), rows_(rows),
          vertical_first_(vertical_first(clip, height, width)), wide_row_(static_cast<std::size_t>(clip.width) * 3),
          narrow_row_(static_cast<std::size_t>(width) * 3), stride_(round_up(narrow_row_, lanes)) {
        wide_.resize(wide_row_ * lanes);
        narrow_.resize(stride_ * lanes);
    }

    template <typename Emit>
    void run(int frame, int begin, int end, Emit&& emit) {
        const uint8_t* source = clip_.data + static_cast<std::size_t>(frame) * clip_.height * wide_row_;
        if (vertical_first_) {
            group_.resize(wide_row_ * lanes);
            middle_.resize(stride_ * lanes);
            for (int y = begin; y < end; y += lanes) {
                const int count = std::min(lanes, end - y);
                for (int r = 0; r < count; ++r)
                    vertical(source + rows_.first[y + r] * wide_row_, wide_row_, wide_row_, y + r,
                             group_.data() + r * wide_row_);
                horizontal(group_.data(), count, middle_.data());
                for (int r = 0; r < count; ++r) emit(y + r, middle_.data() + r * stride_);
            }
            return;
        }
        const int first = rows_.first[begin];
        const int last = rows_.first[end - 1] + rows_.count[end - 1];
        middle_.resize(stride_ * (last - first));
        line_.resize(stride_);
        for (int y = first; y < last; y += lanes)
            horizontal(source + y * wide_row_, std::min(lanes, last - y), middle_.data() + (y - first) * stride_);
        for (int y = begin; y < end; ++y) {
            vertical(middle_.data() + (rows_.first[y] - first) * stride_, stride_, narrow_row_, y, line_.data());
            emit(y, line_.data());
        }
    }

private:
    // Output row y from the input rows at `top`, `stride` apart.
    void vertical(const uint8_t* top, std::size_t stride, std::size_t bytes, int y, uint8_t* out) const {
        weigh_rows(top, stride, bytes, rows_.of(y), rows_.count[y], out);
    }

    // Up to `lanes` rows, wide_row_ apart, to rows of the new width, stride_ apart.
    void horizontal(const uint8_t* source, int count, uint8_t* out) {
        if (wide_row_ == narrow_row_) {
            for (int r = 0; r < count; ++r) std::memcpy(out + r * stride_, source + r * wide_row_, wide_row_);
            return;
        }
        const uint8_t* group[lanes];
        for (int r = 0; r < lanes; ++r) group[r] = source + std::min(r, count - 1) * wide_row_;
        rows_to_lines(group, wide_row_, wide_.data());
        weigh_columns(wide_.data(), columns_, width_, narrow_.data());
        lines_to_rows(narrow_.data(), stride_, out, stride_, count);
    }

    const Clip& clip_;
    int width_;
    const Taps& columns_;
    const Taps& rows_;
    bool vertical_first_;
    std::size_t wide_row_, narrow_row_, stride_;  // bytes; stride_ is narrow_row_ padded to whole lanes
    std::vector<uint8_t> wide_, narrow_;          // the group of rows that the horizontal pass works on, as lines
    std::vector<uint8_t> group_, middle_, line_;
};

// emit(frame, y, bytes) for every output row, from several threads.
template <typename Emit>
void resize_rows(const Clip& clip, int height, int width, Filter filter, int threads, const Emit& emit) {
    const Taps columns = make_taps(clip.width, width, filter);
    const Taps rows = make_taps(clip.height, height, filter);
    if (threads == 0) threads = available_cores();
    // Whole frames when there are enough of them; else bands, whose input rows overlap a little.
    const int wanted = clip.frames >= 2 * threads ? 1 : (2 * threads + clip.frames - 1) / clip.frames;
    const int bands = threads == 1 ? 1 : std::clamp(wanted, 1, std::max(height / lanes, 1));
    parallel(clip.frames * bands, threads, [&](const std::function<int()>& next) {
        FrameResizer resizer(clip, height, width, columns, rows);
        for (int task = next(); task >= 0; task = next()) {
            const int frame = task / bands;
            const long band = task % bands;
            const int begin = static_cast<int>(band * height / bands);
            const int end = static_cast<int>((band + 1) * height / bands);
            resizer.run(frame, begin, end, [&](int y, const uint8_t* bytes) { emit(frame, y, bytes); });
        }
    });
}

}  // namespace

void resize(const Clip& clip, int height, int width, Filter filter, int threads, uint8_t* out) {
    const std::size_t row = static_cast<std::size_t>(width) * 3;
    resize_rows(clip, height, width, filter, threads, [=](int frame, int y, const uint8_t* bytes) {
        std::memcpy(out + (static_cast<std::size_t>(frame) * height + y) * row, bytes, row);
    });
}

}  // namespace fourd
