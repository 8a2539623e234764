// Reads pieces of rows of a decoded frame as planes of RGB levels.
#pragma once

#include <vector>

#include "frame.hpp"
#include "kernels.hpp"

namespace fourd {

class PictureReader {
public:
    static constexpr int longest = 512;  // columns of a piece

    PictureReader(const Format& format, const Kernels& kernels);

    // Row y, columns [x, x + count) of the shown window, before rotation, count <= longest: levels to r, g, b.
    void read(const Frame& frame, int y, int x, int count, std::uint8_t* r, std::uint8_t* g, std::uint8_t* b);

private:
    // Vertically blended chroma for luma columns from `start` (even where chroma is halved) on: index 1 is the
    // sample of `start`, with one more on each side.
    void blend(const Frame& frame, int y, int start, int count);

    const Format& format_;
    const Kernels& kernels_;
    std::vector<std::uint16_t> blended_[2];
    std::vector<std::int16_t> chroma_[2];  // centred, for each luma column; zeros for gray
};

}  // namespace fourd
