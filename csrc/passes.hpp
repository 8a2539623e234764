// The two passes of an antialiased resize, strip by strip: no picture of the source's size is ever made.
#pragma once

#include <memory>
#include <vector>

#include "picture.hpp"
#include "sink.hpp"
#include "spans.hpp"

namespace fourd {

// What is the same for every frame and thread of a call. The first pass runs along x, or along y where
// Pillow resizes vertically first, of the picture after rotation; its other axis is that of the lanes.
struct Plan {
    Plan(const Format& format, const Output& output, const Kernels& kernels);

    bool vertical_first;
    int tap_length, lane_length;  // of the picture
    int first_outputs, second_outputs;
    bool along_rows;  // the taps of the first pass lie along the rows of the decoded frame
    bool tap_reversed, lane_reversed;
    std::shared_ptr<const Spans> first, second;
};

// Resizes frames into a sink; one for each thread.
class Resampler {
public:
    Resampler(const Format& format, const Plan& plan, const Kernels& kernels);

    // Outputs [begin, end) of the second pass: rows of the result, all of its columns when vertical_first.
    void run(const Frame& frame, int begin, int end, int number, Sink& sink);

private:
    void fill(const Frame& frame, int lane, int count);
    void fill_along_rows(const Frame& frame, int lane, int count);
    void fill_along_columns(const Frame& frame, int lane, int count);
    void read(const Frame& frame, int y, int x, int count, bool reversed, std::uint8_t* to, std::size_t plane);
    std::uint32_t* ring_row(int group) {
        return ring_.data() + static_cast<std::size_t>(group % ring_groups_) * ring_stride_;
    }

    const Plan& plan_;
    const Kernels& kernels_;
    PictureReader reader_;
    int block_;  // lanes that are filled at once
    std::size_t strip_bytes_, plane_stride_, ring_stride_;
    int ring_groups_;
    std::vector<std::uint8_t> piece_;   // rows of planes on their way into strips
    std::vector<std::uint8_t> strips_;  // [block / lanes, words of the tap axis, 3, lanes] words
    std::vector<std::uint32_t> ring_;   // [groups of 4 lanes, 3, plane_stride] words, the newest ones
    std::vector<const std::uint32_t*> rows_;
    std::vector<std::uint8_t> line_, turned_;
};

}  // namespace fourd
