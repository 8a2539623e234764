#include "sink.hpp"

#include <cstring>

namespace fourd {

Sink::Sink(const Output& output, int frames, const Kernels& kernels, void* out)
    : output_(output), frames_(frames), kernels_(kernels), out_(out) {
    if (output.kind == Kind::float32) line32_.resize(output.width);
    else if (output.kind != Kind::pixels) line16_.resize(output.width);
}

void Sink::row(int frame, int y, int x, int count, const std::uint8_t* const* planes) {
    switch (output_.kind) {
        case Kind::pixels: {
            const std::size_t line = static_cast<std::size_t>(frame) * output_.height + y;
            kernels_.join_rgb(planes[0], planes[1], planes[2], count,
                              static_cast<std::uint8_t*>(out_) + (line * output_.width + x) * 3);
            break;
        }
        case Kind::float32: patches(frame, y, x, count, planes, kernels_.normalise32, line32_); break;
        case Kind::float16: patches(frame, y, x, count, planes, kernels_.normalise16, line16_); break;
        case Kind::bfloat16: patches(frame, y, x, count, planes, kernels_.normalise_b16, line16_); break;
    }
}

template <typename T>
void Sink::patches(int frame, int y, int x, int count, const std::uint8_t* const* planes,
                   void (*normalise)(const std::uint8_t*, int, float, float, T*), std::vector<T>& line) {
    const PatchShape& shape = output_.shape;
    const int down = output_.height / shape.patch, across = output_.width / shape.patch;
    const int slot = frame % shape.temporal;
    const int slots = frame == frames_ - 1 ? shape.temporal - slot : 1;  // the last frame fills its group
    const std::size_t slot_values = static_cast<std::size_t>(shape.patch) * shape.patch;
    for (int c = 0; c < 3; ++c) {
        normalise(planes[c], count, output_.normal.scale[c], output_.normal.shift[c], line.data());
        const int value = shape.value(c, slot, y % shape.patch, 0);
        for (int i = 0; i < count; i += shape.patch) {
            const std::int64_t number = shape.number(frame / shape.temporal, down, across, y / shape.patch, (x + i) / shape.patch);
            T* const to = static_cast<T*>(out_) + number * shape.values() + value;
            for (int s = 0; s < slots; ++s)
                std::memcpy(to + s * slot_values, line.data() + i, shape.patch * sizeof(T));
        }
    }
}

}  // namespace fourd
