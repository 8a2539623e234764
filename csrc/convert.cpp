#include "convert.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "parallel.hpp"
#include "resize.hpp"

namespace fourd {
namespace {

int sample(const Format& f, const Plane& plane, int y, int x, int step, int part) {
    const std::uint8_t* row = plane.data + y * plane.stride;
    if (f.depth == 8) return row[x * step + part];
    std::uint16_t value;
    std::memcpy(&value, row + (static_cast<std::ptrdiff_t>(x) * step + part) * 2, 2);
    return (value >> f.shift) & ((1 << f.depth) - 1);
}

int chroma(const Format& f, const Plane& plane, int y, int x, int step, int part) {
    const ChromaTap tx = chroma_tap(x, f.across), ty = chroma_tap(y, f.down);
    const int right = f.chroma_width() - 1, bottom = f.chroma_height() - 1;
    const int x0 = std::clamp(tx.first, 0, right), x1 = std::clamp(tx.first + 1, 0, right);
    const int y0 = std::clamp(ty.first, 0, bottom), y1 = std::clamp(ty.first + 1, 0, bottom);
    return centred16(blend16(sample(f, plane, y0, x0, step, part), sample(f, plane, y0, x1, step, part),
                             sample(f, plane, y1, x0, step, part), sample(f, plane, y1, x1, step, part),
                             tx.weight, ty.weight), f.depth);
}

Rgb pixel(const Format& f, const Frame& frame, int y, int x) {
    y += f.top, x += f.left;
    if (f.planes == Planes::rgb) {
        const std::uint8_t* p = frame.planes[0].data + y * frame.planes[0].stride + 3 * x;
        return {p[0], p[1], p[2]};
    }
    const int luma = centred16(16 * sample(f, frame.planes[0], y, x, 1, 0), f.depth);
    if (f.planes == Planes::gray) return to_rgb(luma, 0, 0, f.matrix);
    if (f.planes == Planes::interleaved)
        return to_rgb(luma, chroma(f, frame.planes[1], y, x, 2, 0), chroma(f, frame.planes[1], y, x, 2, 1), f.matrix);
    return to_rgb(luma, chroma(f, frame.planes[1], y, x, 1, 0), chroma(f, frame.planes[2], y, x, 1, 0), f.matrix);
}

}  // namespace

Normal make_normal(const std::array<double, 3>& mean, const std::array<double, 3>& deviation) {
    Normal normal;
    for (int c = 0; c < 3; ++c) {
        normal.scale[c] = static_cast<float>(1.0 / (255.0 * deviation[c]));
        normal.shift[c] = static_cast<float>(-mean[c] / deviation[c]);
    }
    return normal;
}

void convert(const Format& format, std::span<const Frame> frames, const Output& output, int threads, void* out) {
    const int height = format.picture_height(), width = format.picture_width();
    const auto count = static_cast<int>(frames.size());
    std::vector<std::uint8_t> picture(static_cast<std::size_t>(height) * width * 3);
    std::vector<std::uint8_t> small(static_cast<std::size_t>(output.height) * output.width * 3);
    for (int t = 0; t < count; ++t) {
        for (int y = 0; y < height; ++y)
            for (int x = 0; x < width; ++x) {
                int sy = y, sx = x;
                if (format.rotation == 90) sy = x, sx = format.columns - 1 - y;
                if (format.rotation == 180) sy = height - 1 - y, sx = width - 1 - x;
                if (format.rotation == 270) sy = format.rows - 1 - x, sx = y;
                const Rgb p = pixel(format, frames[t], sy, sx);
                std::uint8_t* to = picture.data() + (static_cast<std::size_t>(y) * width + x) * 3;
                to[0] = p.r, to[1] = p.g, to[2] = p.b;
            }
        const Clip clip{picture.data(), 1, height, width};
        resize(clip, output.height, output.width, output.filter, threads, small.data());
        if (output.kind == Kind::pixels) {
            std::memcpy(static_cast<std::uint8_t*>(out) + t * small.size(), small.data(), small.size());
            continue;
        }
        const PatchShape& s = output.shape;
        const int down = output.height / s.patch, across = output.width / s.patch;
        for (int y = 0; y < output.height; ++y)
            for (int x = 0; x < output.width; ++x)
                for (int c = 0; c < 3; ++c) {
                    const float value = small[(static_cast<std::size_t>(y) * output.width + x) * 3 + c] *
                                            output.normal.scale[c] + output.normal.shift[c];
                    const int slots = t == count - 1 ? s.temporal : t % s.temporal + 1;
                    for (int slot = t % s.temporal; slot < slots; ++slot) {
                        const std::size_t at = s.number(t / s.temporal, down, across, y / s.patch, x / s.patch) *
                                                   s.values() + s.value(c, slot, y % s.patch, x % s.patch);
                        const auto bits = std::bit_cast<std::uint32_t>(value);
                        if (output.kind == Kind::float32) static_cast<float*>(out)[at] = value;
                        else if (output.kind == Kind::bfloat16) static_cast<std::uint16_t*>(out)[at] = bfloat16_bits(bits);
                        else static_cast<_Float16*>(out)[at] = static_cast<_Float16>(value);
                    }
                }
    }
}

}  // namespace fourd
