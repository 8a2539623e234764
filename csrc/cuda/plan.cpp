#include "cuda/plan.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fourd::cuda {
namespace {

std::size_t unit(const Format& format, int plane) {
    return format.planes == Planes::interleaved && plane == 1 ? 2u * format.bytes() : format.bytes();
}

void check_alignment(const Format& format, std::span<const Frame> frames) {
    const int planes = format.planes == Planes::yuv ? 3 : format.planes == Planes::interleaved ? 2 : 1;
    for (const Frame& frame : frames)
        for (int i = 0; i < planes; ++i) {
            const std::size_t size = unit(format, i);
            const Plane& plane = frame.planes[i];
            if (reinterpret_cast<std::uintptr_t>(plane.data) % size || plane.stride % static_cast<std::ptrdiff_t>(size))
                throw std::invalid_argument("plane " + std::to_string(i) + " at " +
                                            std::to_string(reinterpret_cast<std::uintptr_t>(plane.data)) +
                                            " with rows " + std::to_string(plane.stride) +
                                            " bytes apart is not aligned to " + std::to_string(size) + " bytes");
        }
}

template <typename Pass>
void launch(Machine& machine, const Pass& pass, int frames) {
    machine.run(pass, pass.blocks(frames));
}

}  // namespace

void convert(Machine& machine, const Format& format, std::span<const Frame> frames, std::span<const int> place,
             int total, const Output& output, void* out) {
    check_alignment(format, frames);
    const int height = format.picture_height(), width = format.picture_width();
    const bool tall = output.height == height, wide = output.width == width;  // nothing to resize along it
    const TapsView rows = machine.taps(height, output.height, output.filter, tall);
    const TapsView columns = machine.taps(width, output.width, output.filter, wide);

    Surfaces surfaces(format);
    Sink sink;
    sink.out = out;
    sink.height = output.height, sink.width = output.width;
    sink.kind = output.kind;
    sink.shape = output.shape;
    sink.normal = output.normal;
    sink.frames = total;

    for (std::size_t begin = 0; begin < frames.size(); begin += batch) {
        const int count = static_cast<int>(std::min<std::size_t>(batch, frames.size() - begin));
        for (int i = 0; i < count; ++i) {
            surfaces.frames[i] = frames[begin + i];
            sink.place[i] = place[begin + i];
        }
        if (wide) {
            launch(machine, Vertical<Surfaces>{surfaces, sink, rows}, count);
        } else if (tall) {
            launch(machine, Horizontal<Surfaces>{surfaces, sink, columns}, count);
        } else {
            Sink between;
            between.packed = true;
            const bool down_first = vertical_first(height, width, output.height, output.width);
            between.height = down_first ? output.height : height;
            between.width = down_first ? width : output.width;
            std::uint32_t* room = machine.scratch(static_cast<std::size_t>(count) * between.height * between.width);
            between.out = room;
            const Packed packed{room, between.height, between.width};
            if (down_first) {
                launch(machine, Vertical<Surfaces>{surfaces, between, rows}, count);
                launch(machine, Horizontal<Packed>{packed, sink, columns}, count);
            } else {
                launch(machine, Horizontal<Surfaces>{surfaces, between, columns}, count);
                launch(machine, Vertical<Packed>{packed, sink, rows}, count);
            }
        }
    }
}

}  // namespace fourd::cuda
