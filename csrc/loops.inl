// Plain loops that the compiler vectorises, compiled once for each instruction set: the including file
// chooses it before and wraps this in an unnamed namespace.

using std::int16_t;
using std::int32_t;
using std::size_t;
using std::uint16_t;
using std::uint32_t;
using std::uint8_t;

void blend8(const uint8_t* __restrict a, const uint8_t* __restrict b, int weight, int count, uint16_t* __restrict out) {
    const auto wa = static_cast<uint16_t>(weight), wb = static_cast<uint16_t>(4 - weight);
    for (int i = 0; i < count; ++i) out[i] = static_cast<uint16_t>(wa * a[i] + wb * b[i]);
}

void blend16(const uint16_t* __restrict a, const uint16_t* __restrict b, int weight, int shift, int depth, int count,
             uint16_t* __restrict out) {
    const auto wa = static_cast<uint16_t>(weight), wb = static_cast<uint16_t>(4 - weight);
    const auto mask = static_cast<uint16_t>((1 << depth) - 1);
    for (int i = 0; i < count; ++i)
        out[i] = static_cast<uint16_t>(wa * (a[i] >> shift & mask) + wb * (b[i] >> shift & mask));
}

void blend8_pairs(const uint8_t* __restrict a, const uint8_t* __restrict b, int weight, int count,
                  uint16_t* __restrict u, uint16_t* __restrict v) {
    const auto wa = static_cast<uint16_t>(weight), wb = static_cast<uint16_t>(4 - weight);
    for (int i = 0; i < count; ++i) {
        u[i] = static_cast<uint16_t>(wa * a[2 * i] + wb * b[2 * i]);
        v[i] = static_cast<uint16_t>(wa * a[2 * i + 1] + wb * b[2 * i + 1]);
    }
}

void blend16_pairs(const uint16_t* __restrict a, const uint16_t* __restrict b, int weight, int shift, int depth,
                   int count, uint16_t* __restrict u, uint16_t* __restrict v) {
    const auto wa = static_cast<uint16_t>(weight), wb = static_cast<uint16_t>(4 - weight);
    const auto mask = static_cast<uint16_t>((1 << depth) - 1);
    for (int i = 0; i < count; ++i) {
        u[i] = static_cast<uint16_t>(wa * (a[2 * i] >> shift & mask) + wb * (b[2 * i] >> shift & mask));
        v[i] = static_cast<uint16_t>(wa * (a[2 * i + 1] >> shift & mask) + wb * (b[2 * i + 1] >> shift & mask));
    }
}

// In 16 bits throughout: sums of 12-bit samples wrap and come back when the middle is taken away.
void spread(const uint16_t* __restrict chroma, Siting siting, int depth, int count, int16_t* __restrict out) {
    const auto middle = static_cast<uint16_t>(8 << depth);
    if (siting == Siting::full) {
        for (int i = 0; i < count; ++i) out[i] = static_cast<int16_t>(static_cast<uint16_t>(4 * chroma[i] - middle));
        return;
    }
    const int pairs = count / 2;
    if (siting == Siting::repeated) {
        for (int i = 0; i < pairs; ++i)
            out[2 * i] = out[2 * i + 1] = static_cast<int16_t>(static_cast<uint16_t>(4 * chroma[i] - middle));
        if (count % 2) out[count - 1] = static_cast<int16_t>(static_cast<uint16_t>(4 * chroma[pairs] - middle));
        return;
    }
    if (siting == Siting::cosited) {
        for (int i = 0; i < pairs; ++i) {
            out[2 * i] = static_cast<int16_t>(static_cast<uint16_t>(4 * chroma[i] - middle));
            out[2 * i + 1] = static_cast<int16_t>(static_cast<uint16_t>(2 * chroma[i] + 2 * chroma[i + 1] - middle));
        }
        if (count % 2) out[count - 1] = static_cast<int16_t>(static_cast<uint16_t>(4 * chroma[pairs] - middle));
        return;
    }
    for (int i = 0; i < pairs; ++i) {
        out[2 * i] = static_cast<int16_t>(static_cast<uint16_t>(chroma[i - 1] + 3 * chroma[i] - middle));
        out[2 * i + 1] = static_cast<int16_t>(static_cast<uint16_t>(3 * chroma[i] + chroma[i + 1] - middle));
    }
    if (count % 2)
        out[count - 1] = static_cast<int16_t>(static_cast<uint16_t>(chroma[pairs - 1] + 3 * chroma[pairs] - middle));
}

void colour8(const uint8_t* __restrict y, const int16_t* __restrict u, const int16_t* __restrict v,
             const Matrix& matrix, int count, uint8_t* __restrict r, uint8_t* __restrict g, uint8_t* __restrict b) {
    const Matrix m = matrix;
    for (int i = 0; i < count; ++i) {
        const Rgb p = to_rgb(centred16(16 * y[i], 8), u[i], v[i], m);
        r[i] = p.r, g[i] = p.g, b[i] = p.b;
    }
}

void colour16(const uint16_t* __restrict y, const int16_t* __restrict u, const int16_t* __restrict v,
              const Matrix& matrix, int shift, int depth, int count, uint8_t* __restrict r, uint8_t* __restrict g,
              uint8_t* __restrict b) {
    const Matrix m = matrix;
    const int mask = (1 << depth) - 1;
    for (int i = 0; i < count; ++i) {
        const Rgb p = to_rgb(centred16(16 * (y[i] >> shift & mask), depth), u[i], v[i], m);
        r[i] = p.r, g[i] = p.g, b[i] = p.b;
    }
}

void split_rgb(const uint8_t* __restrict rgb, int count, uint8_t* __restrict r, uint8_t* __restrict g,
               uint8_t* __restrict b) {
    for (int i = 0; i < count; ++i) r[i] = rgb[3 * i], g[i] = rgb[3 * i + 1], b[i] = rgb[3 * i + 2];
}

void join_rgb(const uint8_t* __restrict r, const uint8_t* __restrict g, const uint8_t* __restrict b, int count,
              uint8_t* __restrict rgb) {
    for (int i = 0; i < count; ++i) rgb[3 * i] = r[i], rgb[3 * i + 1] = g[i], rgb[3 * i + 2] = b[i];
}

void reverse(const uint8_t* __restrict values, int count, uint8_t* __restrict out) {
    for (int i = 0; i < count; ++i) out[i] = values[count - 1 - i];
}

// 16 levels to level * scale + shift; each instruction set has its own.
inline void batch32(const uint8_t* levels, float scale, float shift, float* out);
inline void batch16(const uint8_t* levels, float scale, float shift, uint16_t* out);
inline void batch_b16(const uint8_t* levels, float scale, float shift, uint16_t* out);

// Whole batches as long as the block has room for them: what is written past the end of a row is overwritten by
// the next one.
template <typename T, void (*batch)(const uint8_t*, float, float, T*)>
inline void normalise(const uint8_t* levels, size_t stride, int patch, float scale, float shift, T* out) {
    int room = patch * patch;
    for (int row = 0; row < patch; ++row, levels += stride, out += patch, room -= patch)
        for (int i = 0; i < patch; i += 16) {
            if (room - i >= 16) {
                batch(levels + i, scale, shift, out + i);
            } else {
                T last[16];
                batch(levels + i, scale, shift, last);
                for (int j = i; j < patch && j < i + 16; ++j) out[j] = last[j - i];
            }
        }
}

void normalise32(const uint8_t* levels, size_t stride, int patch, float scale, float shift, float* out) {
    normalise<float, batch32>(levels, stride, patch, scale, shift, out);
}

void normalise16(const uint8_t* levels, size_t stride, int patch, float scale, float shift, uint16_t* out) {
    normalise<uint16_t, batch16>(levels, stride, patch, scale, shift, out);
}

void normalise_b16(const uint8_t* levels, size_t stride, int patch, float scale, float shift, uint16_t* out) {
    normalise<uint16_t, batch_b16>(levels, stride, patch, scale, shift, out);
}

// Four rows of 16 bytes as a 4x4 matrix of words, turned over.
typedef uint32_t Words __attribute__((vector_size(16)));

inline Words load_words(const void* from) {
    Words words;
    __builtin_memcpy(&words, from, 16);
    return words;
}

inline void store_words(void* to, Words words) { __builtin_memcpy(to, &words, 16); }

inline void turn4(Words& a, Words& b, Words& c, Words& d) {
    const Words ab = {a[0], b[0], a[1], b[1]}, AB = {a[2], b[2], a[3], b[3]};
    const Words cd = {c[0], d[0], c[1], d[1]}, CD = {c[2], d[2], c[3], d[3]};
    a = Words{ab[0], ab[1], cd[0], cd[1]};
    b = Words{ab[2], ab[3], cd[2], cd[3]};
    c = Words{AB[0], AB[1], CD[0], CD[1]};
    d = Words{AB[2], AB[3], CD[2], CD[3]};
}

void words_along(const uint8_t* rows, size_t stride, int words, uint8_t* strip) {
    for (int w = 0; w < words; w += 4, strip += 4 * step_bytes)
        for (int r = 0; r < lanes; r += 4) {
            const uint8_t* from = rows + r * stride + 4 * w;
            Words a = load_words(from), b = load_words(from + stride), c = load_words(from + 2 * stride),
                  d = load_words(from + 3 * stride);
            turn4(a, b, c, d);
            uint8_t* to = strip + 4 * r;
            store_words(to, a);
            store_words(to + step_bytes, b);
            store_words(to + 2 * step_bytes, c);
            store_words(to + 3 * step_bytes, d);
        }
}

void words_across(const uint8_t* rows, size_t stride, int columns, uint8_t* strip, size_t apart) {
    const uint8_t *a = rows, *b = rows + stride, *c = rows + 2 * stride, *d = rows + 3 * stride;
    for (int x = 0; x < columns; x += lanes, strip += apart) {
        uint32_t line[lanes];
        for (int i = 0; i < lanes; ++i)
            line[i] = a[x + i] | static_cast<uint32_t>(b[x + i]) << 8 | static_cast<uint32_t>(c[x + i]) << 16 |
                      static_cast<uint32_t>(d[x + i]) << 24;
        __builtin_memcpy(strip, line, line_bytes);
    }
}

// Everything that is a plain loop; the including file adds the rest.
constexpr Kernels plain_loops(const char* name) {
    Kernels k{};
    k.name = name;
    k.words_along = words_along;
    k.words_across = words_across;
    k.blend8 = blend8;
    k.blend16 = blend16;
    k.blend8_pairs = blend8_pairs;
    k.blend16_pairs = blend16_pairs;
    k.spread = spread;
    k.colour8 = colour8;
    k.colour16 = colour16;
    k.split_rgb = split_rgb;
    k.join_rgb = join_rgb;
    k.reverse = reverse;
    k.normalise32 = normalise32;
    k.normalise16 = normalise16;
    k.normalise_b16 = normalise_b16;
    return k;
}
