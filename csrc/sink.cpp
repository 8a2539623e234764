#include "sink.hpp"

#include <cstring>

namespace fourd {

Sink::Sink(const Output& output, int frames, const Kernels& kernels, void* out)
    : output_(output), frames_(frames), kernels_(kernels), out_(out) {
    if (output.kind == Kind::pixels) return;
    stride_ = static_cast<std::size_t>(output.width) + 15;  // of which the kernels read some
    kept_.resize(3 * output.shape.patch * stride_);
}

void Sink::row(int frame, int y, int x, int count, const std::uint8_t* const* planes) {
    if (output_.kind == Kind::pixels) {
        const std::size_t line = static_cast<std::size_t>(frame) * output_.height + y;
        kernels_.join_rgb(planes[0], planes[1], planes[2], count,
                          static_cast<std::uint8_t*>(out_) + (line * output_.width + x) * 3);
        return;
    }
    // Whole patches are written at once: memory likes few long runs better than many short ones.
    const int patch = output_.shape.patch;
    for (int c = 0; c < 3; ++c)
        std::memcpy(kept_.data() + (static_cast<std::size_t>(c) * patch + y % patch) * stride_ + x, planes[c], count);
    if (y % patch + 1 < patch || x + count < output_.width) return;
    if (output_.kind == Kind::float32) patches<float>(frame, y, kernels_.normalise32);
    else if (output_.kind == Kind::float16) patches<std::uint16_t>(frame, y, kernels_.normalise16);
    else patches<std::uint16_t>(frame, y, kernels_.normalise_b16);
}

template <typename T>
void Sink::patches(int frame, int y, void (*normalise)(const std::uint8_t*, std::size_t, int, float, float, T*)) {
    const PatchShape& shape = output_.shape;
    const int down = output_.height / shape.patch, across = output_.width / shape.patch;
    const int slot = frame % shape.temporal;
    const int slots = frame == frames_ - 1 ? shape.temporal - slot : 1;  // the last frame fills its group
    const std::size_t area = static_cast<std::size_t>(shape.patch) * shape.patch;
    for (int column = 0; column < across; ++column) {
        const std::int64_t number = shape.number(frame / shape.temporal, down, across, y / shape.patch, column);
        for (int c = 0; c < 3; ++c) {
            const std::uint8_t* const levels = kept_.data() + c * shape.patch * stride_ + column * shape.patch;
            T* const to = static_cast<T*>(out_) + number * shape.values() + shape.value(c, slot, 0, 0);
            normalise(levels, stride_, shape.patch, output_.normal.scale[c], output_.normal.shift[c], to);
            for (int s = 1; s < slots; ++s) std::memcpy(to + s * area, to, area * sizeof(T));
        }
    }
}

}  // namespace fourd
