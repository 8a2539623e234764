// The inner loops for x86-64 with AVX-512 and its byte dot products.
#include "kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC 12's own header
#pragma GCC push_options
#pragma GCC target("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#endif

namespace fourd {
namespace {

#include "loops.inl"

inline __m512 normal16(const uint8_t* levels, float scale, float shift) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
    return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(wide), _mm512_set1_ps(scale)), _mm512_set1_ps(shift));
}

inline void batch32(const uint8_t* levels, float scale, float shift, float* out) {
    _mm512_storeu_ps(out, normal16(levels, scale, shift));
}

inline void batch16(const uint8_t* levels, float scale, float shift, uint16_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtps_ph(normal16(levels, scale, shift), _MM_FROUND_TO_NEAREST_INT));
}

inline void batch_b16(const uint8_t* levels, float scale, float shift, uint16_t* out) {  // bfloat16_bits of 16
    const __m512i bits = _mm512_castps_si512(normal16(levels, scale, shift));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16)));
}

// A weight is a signed number of three digits to the base 256; packed[d] holds digit d of four weights.
void pack_weights(const int32_t* four, uint32_t* packed) {
    for (int d = 0; d < word_weights; ++d) packed[d] = 0;
    for (int i = 0; i < 4; ++i) {
        int32_t rest = four[i];
        for (int d = 0; d < 3; ++d) {
            const int32_t digit = ((rest + 128) & 255) - 128;
            packed[d] |= static_cast<uint32_t>(digit & 255) << (8 * i);
            rest = (rest - digit) >> 8;
        }
    }
}

struct Weights {
    __m512i digits[3];
};

inline Weights spread_weights(const uint32_t* packed) {
    return {{_mm512_set1_epi32(static_cast<int>(packed[0])), _mm512_set1_epi32(static_cast<int>(packed[1])),
             _mm512_set1_epi32(static_cast<int>(packed[2]))}};
}

struct Sums {
    __m512i digits[3];
};

inline Sums no_sums() {
    const __m512i zero = _mm512_setzero_si512();
    return {{zero, zero, zero}};
}

inline void add_words(__m512i words, const Weights& w, Sums& sums) {
    for (int d = 0; d < 3; ++d) sums.digits[d] = _mm512_dpbusd_epi32(sums.digits[d], words, w.digits[d]);
}

// 16 finished sums to 16 levels.
inline __m128i levels16(const Sums& sums) {
    __m512i sum = _mm512_add_epi32(sums.digits[0], _mm512_slli_epi32(sums.digits[1], 8));
    sum = _mm512_add_epi32(sum, _mm512_slli_epi32(sums.digits[2], 16));
    sum = _mm512_srai_epi32(_mm512_add_epi32(sum, _mm512_set1_epi32(1 << (weight_bits - 1))), weight_bits);
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(sum, _mm512_setzero_si512()));
}

inline __m512i load(const void* from) { return _mm512_loadu_si512(from); }

// As the plain loop does, 16 words at once.
void words_along_16(const uint8_t* rows, size_t stride, int words, uint8_t* strip) {
    int w = 0;
    for (; w + 16 <= words; w += 16, rows += 64, strip += 16 * step_bytes) {
        // Words are turned over in blocks of 4x4, then the blocks.
        __m512i turned[16];
        for (int r = 0; r < 16; r += 4) {
            const __m512i a = load(rows + r * stride), b = load(rows + (r + 1) * stride);
            const __m512i c = load(rows + (r + 2) * stride), d = load(rows + (r + 3) * stride);
            const __m512i ab = _mm512_unpacklo_epi32(a, b), AB = _mm512_unpackhi_epi32(a, b);
            const __m512i cd = _mm512_unpacklo_epi32(c, d), CD = _mm512_unpackhi_epi32(c, d);
            turned[r] = _mm512_unpacklo_epi64(ab, cd);
            turned[r + 1] = _mm512_unpackhi_epi64(ab, cd);
            turned[r + 2] = _mm512_unpacklo_epi64(AB, CD);
            turned[r + 3] = _mm512_unpackhi_epi64(AB, CD);
        }
        for (int i = 0; i < 4; ++i) {
            const __m512i a = turned[i], b = turned[i + 4], c = turned[i + 8], d = turned[i + 12];
            const __m512i ab = _mm512_shuffle_i32x4(a, b, 0x44), AB = _mm512_shuffle_i32x4(a, b, 0xee);
            const __m512i cd = _mm512_shuffle_i32x4(c, d, 0x44), CD = _mm512_shuffle_i32x4(c, d, 0xee);
            uint8_t* const to = strip + i * step_bytes;
            _mm512_storeu_si512(to, _mm512_shuffle_i32x4(ab, cd, 0x88));
            _mm512_storeu_si512(to + 4 * step_bytes, _mm512_shuffle_i32x4(ab, cd, 0xdd));
            _mm512_storeu_si512(to + 8 * step_bytes, _mm512_shuffle_i32x4(AB, CD, 0x88));
            _mm512_storeu_si512(to + 12 * step_bytes, _mm512_shuffle_i32x4(AB, CD, 0xdd));
        }
    }
    words_along(rows, stride, words - w, strip);
}

void first_pass(const uint8_t* strip, const Span* spans, int count, uint32_t* const* out, size_t stride) {
    for (int o = 0; o < count; o += 4) {
        Words words[3][4];
        for (int i = 0; i < 4; ++i) {
            const Span& span = spans[o + i];
            const uint8_t* from = strip + static_cast<size_t>(span.first) * step_bytes;
            Sums r = no_sums(), g = no_sums(), b = no_sums();
            for (int k = 0; k < span.count; ++k, from += step_bytes) {
                const Weights w = spread_weights(span.weights + k * word_weights);
                add_words(load(from), w, r);
                add_words(load(from + line_bytes), w, g);
                add_words(load(from + 2 * line_bytes), w, b);
            }
            const __m128i levels[3] = {levels16(r), levels16(g), levels16(b)};
            for (int c = 0; c < 3; ++c) words[c][i] = load_words(&levels[c]);
        }
        for (int c = 0; c < 3; ++c) {
            turn4(words[c][0], words[c][1], words[c][2], words[c][3]);
            for (int g = 0; g < 4; ++g) store_words(out[g] + c * stride + o, words[c][g]);
        }
    }
}

void second_pass(const uint32_t* const* rows, const Span& span, int size, uint8_t* out) {
    int j = 0;
    for (; j + 4 * lanes <= size; j += 4 * lanes) {
        Sums sums[4] = {no_sums(), no_sums(), no_sums(), no_sums()};
        for (int k = 0; k < span.count; ++k) {
            const Weights w = spread_weights(span.weights + k * word_weights);
            for (int i = 0; i < 4; ++i) add_words(load(rows[k] + j + i * lanes), w, sums[i]);
        }
        for (int i = 0; i < 4; ++i)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j + i * lanes), levels16(sums[i]));
    }
    for (; j < size; j += lanes) {
        Sums sums = no_sums();
        for (int k = 0; k < span.count; ++k)
            add_words(load(rows[k] + j), spread_weights(span.weights + k * word_weights), sums);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j), levels16(sums));
    }
}

constexpr Kernels all() {
    Kernels k = plain_loops("avx512");
    k.pack_weights = pack_weights;
    k.first_pass = first_pass;
    k.second_pass = second_pass;
    k.words_along = words_along_16;
    return k;
}

}  // namespace

extern const Kernels avx512_kernels = all();

}  // namespace fourd

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
