// Where finished rows go: the pixels or the patches of the result.
#pragma once

#include <vector>

#include "convert.hpp"
#include "kernels.hpp"

namespace fourd {

class Sink {
public:
    Sink(const Output& output, int frames, const Kernels& kernels, void* out);

    // Rows that belong together: a Sink that gets one of them gets all, from the first to the last.
    static int together(const Output& output) { return output.kind == Kind::pixels ? 1 : output.shape.patch; }

    // Part of one finished row, from left to right: levels of r, g and b, `count` columns from x on. Several
    // threads, each with its own Sink, may give rows of one frame.
    void row(int frame, int y, int x, int count, const std::uint8_t* const* planes);

private:
    // Writes the rows of patches that are kept, of which y is the last.
    template <typename T>
    void patches(int frame, int y, void (*normalise)(const std::uint8_t*, std::size_t, int, float, float, T*));

    const Output& output_;
    int frames_;
    const Kernels& kernels_;
    void* out_;
    std::size_t stride_ = 0;
    std::vector<std::uint8_t> kept_;  // [3, patch, stride]
};

}  // namespace fourd
