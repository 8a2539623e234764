// The inner loops, once for each instruction set. All of them give the same bits.
//
// Both passes of a resize sum weight * level over taps. Levels are kept in words of four bytes, four
// neighbours along the axis of the taps, so that one instruction (vpdpbusd) sums four taps for a whole
// vector of words: a line is 16 words, one for each of 16 rows, and the first pass writes words of four
// neighbouring rows, as the second pass wants them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "arith.hpp"

namespace fourd {

inline constexpr int lanes = 16;                   // rows that the first pass works on at once
inline constexpr int line_bytes = lanes * 4;       // words of one channel
inline constexpr int step_bytes = 3 * line_bytes;  // from one word of the taps' axis to the next
inline constexpr int word_weights = 4;             // 32-bit values that hold the weights of a word

// Taps of one output, in whole words.
struct Span {
    int first, count;              // words
    const std::uint32_t* weights;  // [count, word_weights]
};

struct Kernels {
    const char* name;

    // Four weights of weight_bits to the form in which the passes below read them.
    void (*pack_weights)(const std::int32_t* four, std::uint32_t* packed);

    // strip: [words, 3, lanes] words. Output o of channel c goes, for the group g of four lanes, to the
    // word out[g][c * stride + o]. count is a multiple of 4.
    void (*first_pass)(const std::uint8_t* strip, const Span* spans, int count, std::uint32_t* const* out,
                       std::size_t stride);
    // rows[k]: `size` words each; out: `size` levels. size is a multiple of 16.
    void (*second_pass)(const std::uint32_t* const* rows, const Span& span, int size, std::uint8_t* out);

    // 16 rows, `stride` bytes apart, to lines: words of four neighbours in a row.
    void (*words_along)(const std::uint8_t* rows, std::size_t stride, int words, std::uint8_t* strip);
    // 4 rows, `stride` bytes apart, to one line for every 16 columns: words of four neighbours in a column.
    // columns is a multiple of 16, the lines are `apart` bytes apart.
    void (*words_across)(const std::uint8_t* rows, std::size_t stride, int columns, std::uint8_t* strip,
                         std::size_t apart);

    // out[i] = weight * a[i] + (4 - weight) * b[i]. The wide forms take what the depth leaves of the shifted
    // value, the paired ones samples that lie in turns.
    void (*blend8)(const std::uint8_t* a, const std::uint8_t* b, int weight, int count, std::uint16_t* out);
    void (*blend16)(const std::uint16_t* a, const std::uint16_t* b, int weight, int shift, int depth, int count,
                    std::uint16_t* out);
    void (*blend8_pairs)(const std::uint8_t* a, const std::uint8_t* b, int weight, int count, std::uint16_t* u,
                         std::uint16_t* v);
    void (*blend16_pairs)(const std::uint16_t* a, const std::uint16_t* b, int weight, int shift, int depth, int count,
                          std::uint16_t* u, std::uint16_t* v);
    // Chroma for `count` luma positions from an even one on, centred. chroma[-1] and the one past the end
    // are read.
    void (*spread)(const std::uint16_t* chroma, Siting siting, int depth, int count, std::int16_t* out);
    void (*colour8)(const std::uint8_t* y, const std::int16_t* u, const std::int16_t* v, const Matrix& matrix,
                    int count, std::uint8_t* r, std::uint8_t* g, std::uint8_t* b);
    void (*colour16)(const std::uint16_t* y, const std::int16_t* u, const std::int16_t* v, const Matrix& matrix,
                     int shift, int depth, int count, std::uint8_t* r, std::uint8_t* g, std::uint8_t* b);
    void (*split_rgb)(const std::uint8_t* rgb, int count, std::uint8_t* r, std::uint8_t* g, std::uint8_t* b);
    void (*join_rgb)(const std::uint8_t* r, const std::uint8_t* g, const std::uint8_t* b, int count, std::uint8_t* rgb);
    void (*reverse)(const std::uint8_t* values, int count, std::uint8_t* out);

    // patch x patch levels in rows `stride` bytes apart to as many values without gaps: level * scale + shift.
    // Up to 15 levels past the end of a row are read.
    void (*normalise32)(const std::uint8_t* levels, std::size_t stride, int patch, float scale, float shift,
                        float* out);
    void (*normalise16)(const std::uint8_t* levels, std::size_t stride, int patch, float scale, float shift,
                        std::uint16_t* out);
    void (*normalise_b16)(const std::uint8_t* levels, std::size_t stride, int patch, float scale, float shift,
                          std::uint16_t* out);
};

// The fastest that this machine runs, unless use_kernels chose another.
const Kernels& kernels();

// "generic", "avx2", "avx512" or "best"; returns the name of what is used from now on. Throws
// std::invalid_argument for a name that is unknown or that this machine cannot run. For tests and benchmarks:
// not to be called while another thread converts.
const char* use_kernels(std::string_view name);

}  // namespace fourd
