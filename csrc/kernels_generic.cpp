// The inner loops in plain C++, for any machine.
#include <algorithm>

#include "kernels.hpp"

namespace fourd {
namespace {

#include "loops.inl"

inline void batch32(const uint8_t* levels, float scale, float shift, float* out) {
    for (int i = 0; i < 16; ++i) out[i] = static_cast<float>(levels[i]) * scale + shift;
}

inline void batch16(const uint8_t* levels, float scale, float shift, uint16_t* out) {
    for (int i = 0; i < 16; ++i)
        out[i] = float16_bits(__builtin_bit_cast(uint32_t, static_cast<float>(levels[i]) * scale + shift));
}

inline void batch_b16(const uint8_t* levels, float scale, float shift, uint16_t* out) {
    for (int i = 0; i < 16; ++i)
        out[i] = bfloat16_bits(__builtin_bit_cast(uint32_t, static_cast<float>(levels[i]) * scale + shift));
}

void pack_weights(const int32_t* four, uint32_t* packed) {
    for (int i = 0; i < 4; ++i) packed[i] = static_cast<uint32_t>(four[i]);
}

// Sums wrap like the vector instructions do; a finished sum fits.
inline void add_words(const uint32_t* words, const uint32_t* weights, uint32_t* sums) {
    for (int j = 0; j < lanes; ++j) {
        const uint32_t word = words[j];
        sums[j] += weights[0] * (word & 255) + weights[1] * (word >> 8 & 255) + weights[2] * (word >> 16 & 255) +
                   weights[3] * (word >> 24);
    }
}

void first_pass(const uint8_t* strip, const Span* spans, int count, uint32_t* const* out, size_t stride) {
    for (int o = 0; o < count; ++o)
        for (int c = 0; c < 3; ++c) {
            uint32_t sums[lanes] = {}, words[lanes];
            const uint8_t* from = strip + static_cast<size_t>(spans[o].first) * step_bytes + c * line_bytes;
            for (int k = 0; k < spans[o].count; ++k, from += step_bytes) {
                __builtin_memcpy(words, from, line_bytes);
                add_words(words, spans[o].weights + k * word_weights, sums);
            }
            uint8_t levels[lanes];
            for (int j = 0; j < lanes; ++j) levels[j] = weighed_level(static_cast<int32_t>(sums[j]));
            for (int g = 0; g < lanes / 4; ++g) __builtin_memcpy(out[g] + c * stride + o, levels + 4 * g, 4);
        }
}

void second_pass(const uint32_t* const* rows, const Span& span, int size, uint8_t* out) {
    for (int j = 0; j < size; j += lanes) {
        uint32_t sums[lanes] = {};
        for (int k = 0; k < span.count; ++k) add_words(rows[k] + j, span.weights + k * word_weights, sums);
        for (int i = 0; i < lanes; ++i) out[j + i] = weighed_level(static_cast<int32_t>(sums[i]));
    }
}

constexpr Kernels all() {
    Kernels k = plain_loops("generic");
    k.pack_weights = pack_weights;
    k.first_pass = first_pass;
    k.second_pass = second_pass;
    return k;
}

}  // namespace

extern const Kernels generic_kernels = all();

}  // namespace fourd
