#include "picture.hpp"

#include <algorithm>

namespace fourd {

PictureReader::PictureReader(const Format& format, const Kernels& kernels) : format_(format), kernels_(kernels) {
    for (int i = 0; i < 2; ++i) {
        blended_[i].resize(longest + 4);
        chroma_[i].resize(longest + 2);
    }
}

void PictureReader::read(const Frame& frame, int y, int x, int count, std::uint8_t* r, std::uint8_t* g,
                         std::uint8_t* b) {
    y += format_.top;
    x += format_.left;
    const std::uint8_t* row = frame.planes[0].data + y * frame.planes[0].stride;
    if (format_.planes == Planes::rgb) {
        kernels_.split_rgb(row + static_cast<std::ptrdiff_t>(x) * 3, count, r, g, b);
        return;
    }
    int skipped = 0;
    if (format_.planes != Planes::gray) {
        skipped = format_.across == Siting::full ? 0 : x & 1;
        blend(frame, y, x - skipped, count + skipped);
        for (int i = 0; i < 2; ++i)
            kernels_.spread(blended_[i].data() + 1, format_.across, format_.depth, count + skipped, chroma_[i].data());
    }
    const std::int16_t *u = chroma_[0].data() + skipped, *v = chroma_[1].data() + skipped;
    if (format_.bytes() == 1) {
        kernels_.colour8(row + x, u, v, format_.matrix, count, r, g, b);
    } else {
        kernels_.colour16(reinterpret_cast<const std::uint16_t*>(row) + x, u, v, format_.matrix, format_.shift,
                          format_.depth, count, r, g, b);
    }
}

void PictureReader::blend(const Frame& frame, int y, int start, int count) {
    const ChromaTap tap = chroma_tap(y, format_.down);
    const int bottom = format_.chroma_height() - 1, width = format_.chroma_width();
    const int upper = std::clamp(tap.first, 0, bottom), lower = std::clamp(tap.first + 1, 0, bottom);
    const bool full = format_.across == Siting::full;
    // The samples from one before the first needed to one after the last, as far as the plane has them.
    const int origin = (full ? start : start / 2) - 1;
    const int end = full ? start + count : (start + count + 1) / 2 + 1;
    const int first = std::max(origin, 0), last = std::min(end, width);
    std::uint16_t* to[2] = {blended_[0].data() + (first - origin), blended_[1].data() + (first - origin)};

    const bool pairs = format_.planes == Planes::interleaved;
    for (int i = 0; i < (pairs ? 1 : 2); ++i) {
        const Plane& plane = frame.planes[1 + i];
        const std::ptrdiff_t offset = static_cast<std::ptrdiff_t>(first) * (pairs ? 2 : 1) * format_.bytes();
        const std::uint8_t* a = plane.data + upper * plane.stride + offset;
        const std::uint8_t* b = plane.data + lower * plane.stride + offset;
        const auto *wide_a = reinterpret_cast<const std::uint16_t*>(a),
                   *wide_b = reinterpret_cast<const std::uint16_t*>(b);
        const int samples = last - first;
        if (format_.bytes() == 1) {
            if (pairs) kernels_.blend8_pairs(a, b, tap.weight, samples, to[0], to[1]);
            else kernels_.blend8(a, b, tap.weight, samples, to[i]);
        } else {
            if (pairs)
                kernels_.blend16_pairs(wide_a, wide_b, tap.weight, format_.shift, format_.depth, samples, to[0], to[1]);
            else kernels_.blend16(wide_a, wide_b, tap.weight, format_.shift, format_.depth, samples, to[i]);
        }
    }
    for (auto& samples : blended_) {
        if (first > origin) samples[0] = samples[1];
        for (int k = last; k < end; ++k) samples[k - origin] = samples[last - 1 - origin];
    }
}

}  // namespace fourd
