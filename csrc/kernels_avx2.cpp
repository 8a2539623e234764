// The inner loops for x86-64 with AVX2.
#include "kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif

namespace fourd {
namespace {

#include "loops.inl"

// Two 16-bit coefficients for each pair of samples.
inline __m256i pairs(int32_t low, int32_t high) {
    return _mm256_set1_epi32(
        static_cast<int32_t>((static_cast<uint32_t>(low) & 0xffff) | static_cast<uint32_t>(high) << 16));
}

inline __m256i levels_of(__m256i low, __m256i high, __m256i bias, __m128i bits) {
    return _mm256_packs_epi32(_mm256_sra_epi32(_mm256_add_epi32(low, bias), bits),
                              _mm256_sra_epi32(_mm256_add_epi32(high, bias), bits));
}

inline void store_levels(uint8_t* to, __m256i levels) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_packus_epi16(_mm256_castsi256_si128(levels), _mm256_extracti128_si256(levels, 1)));
}

// The plain loop multiplies in 32 bits, which is slow here; this sums luma and chroma with one instruction. The
// sums are the same.
void colour8_pairs(const uint8_t* y, const int16_t* u, const int16_t* v, const Matrix& m, int count, uint8_t* r,
                   uint8_t* g, uint8_t* b) {
    const __m256i to_r = pairs(m.y, m.vr), to_b = pairs(m.y, m.ub), to_g = pairs(m.y, m.vg), u_to_g = pairs(0, m.ug);
    const __m256i bias = _mm256_set1_epi32(m.bias);
    const __m128i bits = _mm_cvtsi32_si128(m.bits);
    int i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(y + i)));
        const __m256i luma = _mm256_sub_epi16(_mm256_slli_epi16(bytes, 4), _mm256_set1_epi16(8 << 8));
        const __m256i us = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(u + i));
        const __m256i vs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + i));
        const __m256i v_low = _mm256_unpacklo_epi16(luma, vs), v_high = _mm256_unpackhi_epi16(luma, vs);
        const __m256i u_low = _mm256_unpacklo_epi16(luma, us), u_high = _mm256_unpackhi_epi16(luma, us);
        store_levels(r + i, levels_of(_mm256_madd_epi16(v_low, to_r), _mm256_madd_epi16(v_high, to_r), bias, bits));
        store_levels(b + i, levels_of(_mm256_madd_epi16(u_low, to_b), _mm256_madd_epi16(u_high, to_b), bias, bits));
        const __m256i g_low = _mm256_add_epi32(_mm256_madd_epi16(v_low, to_g), _mm256_madd_epi16(u_low, u_to_g));
        const __m256i g_high = _mm256_add_epi32(_mm256_madd_epi16(v_high, to_g), _mm256_madd_epi16(u_high, u_to_g));
        store_levels(g + i, levels_of(g_low, g_high, bias, bits));
    }
    colour8(y + i, u + i, v + i, m, count - i, r + i, g + i, b + i);
}

inline __m256 normal8(const uint8_t* levels, float scale, float shift) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(levels)));
    return _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(scale)), _mm256_set1_ps(shift));
}

inline void batch32(const uint8_t* levels, float scale, float shift, float* out) {
    _mm256_storeu_ps(out, normal8(levels, scale, shift));
    _mm256_storeu_ps(out + 8, normal8(levels + 8, scale, shift));
}

inline void batch16(const uint8_t* levels, float scale, float shift, uint16_t* out) {
    for (int i = 0; i < 16; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                         _mm256_cvtps_ph(normal8(levels + i, scale, shift), _MM_FROUND_TO_NEAREST_INT));
}

// bfloat16_bits of eight values, each in 32 bits.
inline __m256i brain8(const uint8_t* levels, float scale, float shift) {
    const __m256i bits = _mm256_castps_si256(normal8(levels, scale, shift));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
}

inline void batch_b16(const uint8_t* levels, float scale, float shift, uint16_t* out) {
    const __m256i both = _mm256_packus_epi32(brain8(levels, scale, shift), brain8(levels + 8, scale, shift));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute4x64_epi64(both, 0xd8));
}

// A weight is high * 2^12 + low, so that both halves fit the 16 bits of vpmaddwd. The pairs are those of the
// even and of the odd bytes of a word: {high of 0 and 2, high of 1 and 3, low of 0 and 2, low of 1 and 3}.
constexpr int low_bits = 12;

void pack_weights(const int32_t* four, uint32_t* packed) {
    for (int i = 0; i < 2; ++i) {
        const int32_t a = four[i], b = four[i + 2];
        packed[i] = (static_cast<uint32_t>(a >> low_bits) & 0xffff) | static_cast<uint32_t>(b >> low_bits) << 16;
        constexpr uint32_t mask = (1 << low_bits) - 1;
        packed[i + 2] = (static_cast<uint32_t>(a) & mask) | (static_cast<uint32_t>(b) & mask) << 16;
    }
}

struct Weights {
    __m256i high_even, high_odd, low_even, low_odd;
};

inline __m256i everywhere(uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }

inline Weights spread_weights(const uint32_t* packed) {
    return {everywhere(packed[0]), everywhere(packed[1]), everywhere(packed[2]), everywhere(packed[3])};
}

struct Sums {
    __m256i high, low;
};

inline void add_words(__m256i words, const Weights& w, Sums& sums) {
    const __m256i even = _mm256_and_si256(words, _mm256_set1_epi32(0x00ff00ff)), odd = _mm256_srli_epi16(words, 8);
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(even, w.high_even));
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(even, w.low_even));
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(odd, w.high_odd));
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(odd, w.low_odd));
}

inline __m256i levels32(const Sums& sums) {
    const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(sums.high, low_bits), sums.low);
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << (weight_bits - 1))), weight_bits);
}

// 16 finished sums to 16 levels in order. The packing instructions clamp.
inline __m128i levels16(const Sums& a, const Sums& b) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(levels32(a), levels32(b)), 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

void first_pass(const uint8_t* strip, const Span* spans, int count, uint32_t* const* out, size_t stride) {
    const Sums zero{_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int o = 0; o < count; o += 4)
        for (int c = 0; c < 3; ++c) {
            Words words[4];
            for (int i = 0; i < 4; ++i) {
                const Span& span = spans[o + i];
                const uint8_t* from = strip + static_cast<size_t>(span.first) * step_bytes + c * line_bytes;
                Sums a = zero, b = zero;
                for (int k = 0; k < span.count; ++k, from += step_bytes) {
                    const Weights w = spread_weights(span.weights + k * word_weights);
                    add_words(load(from), w, a);
                    add_words(load(from + 32), w, b);
                }
                const __m128i levels = levels16(a, b);
                words[i] = load_words(&levels);
            }
            turn4(words[0], words[1], words[2], words[3]);
            for (int g = 0; g < 4; ++g) store_words(out[g] + c * stride + o, words[g]);
        }
}

void second_pass(const uint32_t* const* rows, const Span& span, int size, uint8_t* out) {
    const Sums zero{_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int j = 0; j < size; j += lanes) {
        Sums a = zero, b = zero;
        for (int k = 0; k < span.count; ++k) {
            const Weights w = spread_weights(span.weights + k * word_weights);
            add_words(load(rows[k] + j), w, a);
            add_words(load(rows[k] + j + 8), w, b);
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j), levels16(a, b));
    }
}

constexpr Kernels all() {
    Kernels k = plain_loops("avx2");
    k.pack_weights = pack_weights;
    k.first_pass = first_pass;
    k.second_pass = second_pass;
    k.colour8 = colour8_pairs;
    return k;
}

}  // namespace

extern const Kernels avx2_kernels = all();

}  // namespace fourd

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
