#include "passes.hpp"

#include <algorithm>

namespace fourd {
namespace {

// Frames are read along columns in blocks of this many: each row is visited once for each block.
constexpr int columns_at_once = 256;
static_assert(columns_at_once <= PictureReader::longest && columns_at_once % lanes == 0);
// Rows of a piece do not lie a power of two apart, so that they do not fight for the same cache sets.
constexpr std::size_t piece_stride = PictureReader::longest + 64;

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

Plan::Plan(const Format& format, const Output& output, const Kernels& kernels)
    : vertical_first(
          fourd::vertical_first(format.picture_height(), format.picture_width(), output.height, output.width)),
      tap_length(vertical_first ? format.picture_height() : format.picture_width()),
      lane_length(vertical_first ? format.picture_width() : format.picture_height()),
      first_outputs(vertical_first ? output.height : output.width),
      second_outputs(vertical_first ? output.width : output.height),
      along_rows(format.turned() == vertical_first),
      first(spans_for(tap_length, first_outputs, output.filter, kernels)),
      second(spans_for(lane_length, second_outputs, output.filter, kernels)) {
    // x and y of the picture run against those of the frame after 180 degrees, y after 90 and x after 270.
    const bool x_reversed = (format.rotation == 180 || format.rotation == 270) != format.mirrored;
    const bool y_reversed = format.rotation == 180 || format.rotation == 90;
    tap_reversed = vertical_first ? y_reversed : x_reversed;
    lane_reversed = vertical_first ? x_reversed : y_reversed;
}

Resampler::Resampler(const Format& format, const Plan& plan, const Kernels& kernels)
    : plan_(plan),
      kernels_(kernels),
      reader_(format, kernels),
      block_(plan.along_rows ? lanes : columns_at_once),
      strip_bytes_((static_cast<std::size_t>(plan.tap_length) + 15) / 16 * 4 * step_bytes),
      plane_stride_(round_up(plan.first_outputs, lanes)),
      ring_stride_(3 * plane_stride_),
      ring_groups_(static_cast<int>(round_up(plan.second->longest() + lanes / 4, lanes / 4))),
      piece_(3 * lanes * piece_stride),
      strips_(strip_bytes_ * (block_ / lanes)),
      ring_(ring_stride_ * ring_groups_),
      rows_(plan.second->longest()),
      line_(ring_stride_) {
    if (plan.vertical_first) turned_.resize(static_cast<std::size_t>(3) * plan.first_outputs * plan.second_outputs);
}

void Resampler::run(const Frame& frame, int begin, int end, int number, Sink& sink) {
    // Lanes are counted from the first word that this band needs.
    const int origin = (*plan_.second)[begin].first * 4;
    int filled = origin, ready = origin;  // lanes in strips, and in the ring
    for (int o = begin; o < end; ++o) {
        const Span& span = (*plan_.second)[o];
        while (ready < std::min((span.first + span.count) * 4, plan_.lane_length)) {
            if (ready == filled) {
                const int count = std::min(block_, plan_.lane_length - filled);
                fill(frame, filled, count);
                filled += static_cast<int>(round_up(count, lanes));
            }
            std::uint32_t* out[lanes / 4];
            for (int g = 0; g < lanes / 4; ++g) out[g] = ring_row(ready / 4 + g);
            const int strip = (ready - origin) % block_ / lanes;
            kernels_.first_pass(strips_.data() + strip * strip_bytes_, plan_.first->data(), plan_.first->padded(), out,
                                plane_stride_);
            ready += lanes;
        }
        for (int k = 0; k < span.count; ++k) rows_[k] = ring_row(span.first + k);
        kernels_.second_pass(rows_.data(), span, static_cast<int>(ring_stride_), line_.data());
        if (plan_.vertical_first) {
            for (int c = 0; c < 3; ++c)
                for (int i = 0; i < plan_.first_outputs; ++i)
                    turned_[(static_cast<std::size_t>(c) * plan_.first_outputs + i) * plan_.second_outputs + o] =
                        line_[c * plane_stride_ + i];
        } else {
            const std::uint8_t* planes[3] = {line_.data(), line_.data() + plane_stride_,
                                             line_.data() + 2 * plane_stride_};
            sink.row(number, o, 0, plan_.first_outputs, planes);
        }
    }
    if (!plan_.vertical_first) return;
    const std::size_t plane = static_cast<std::size_t>(plan_.first_outputs) * plan_.second_outputs;
    for (int y = 0; y < plan_.first_outputs; ++y) {
        const std::uint8_t* row = turned_.data() + static_cast<std::size_t>(y) * plan_.second_outputs;
        const std::uint8_t* planes[3] = {row, row + plane, row + 2 * plane};
        sink.row(number, y, 0, plan_.second_outputs, planes);
    }
}

void Resampler::fill(const Frame& frame, int lane, int count) {
    if (plan_.along_rows) fill_along_rows(frame, lane, count);
    else fill_along_columns(frame, lane, count);
}

// One plane follows the other, `plane` bytes later.
void Resampler::read(const Frame& frame, int y, int x, int count, bool reversed, std::uint8_t* to, std::size_t plane) {
    if (!reversed) {
        reader_.read(frame, y, x, count, to, to + plane, to + 2 * plane);
        return;
    }
    std::uint8_t levels[3][PictureReader::longest];
    reader_.read(frame, y, x, count, levels[0], levels[1], levels[2]);
    for (int c = 0; c < 3; ++c) kernels_.reverse(levels[c], count, to + c * plane);
}

// Lanes are rows of the frame. Past the last one its neighbours repeat it: they weigh nothing.
void Resampler::fill_along_rows(const Frame& frame, int lane, int count) {
    constexpr std::size_t plane = piece_stride * lanes;
    for (int x = 0; x < plan_.tap_length; x += PictureReader::longest) {
        const int columns = std::min(PictureReader::longest, plan_.tap_length - x);
        for (int r = 0; r < count; ++r) {
            const int y = plan_.lane_reversed ? plan_.lane_length - 1 - lane - r : lane + r;
            const int from = plan_.tap_reversed ? plan_.tap_length - x - columns : x;
            read(frame, y, from, columns, plan_.tap_reversed, piece_.data() + r * piece_stride, plane);
        }
        for (int c = 0; c < 3; ++c)
            kernels_.words_along(piece_.data() + c * plane, piece_stride, (columns + 3) / 4,
                                 strips_.data() + static_cast<std::size_t>(x / 4) * step_bytes + c * line_bytes);
    }
}

// Lanes are columns of the frame.
void Resampler::fill_along_columns(const Frame& frame, int lane, int count) {
    constexpr std::size_t plane = piece_stride * 4;
    const int x = plan_.lane_reversed ? plan_.lane_length - lane - count : lane;
    for (int t = 0; t < plan_.tap_length; t += 4) {
        for (int i = 0; i < std::min(4, plan_.tap_length - t); ++i) {
            const int y = plan_.tap_reversed ? plan_.tap_length - 1 - t - i : t + i;
            read(frame, y, x, count, plan_.lane_reversed, piece_.data() + i * piece_stride, plane);
        }
        for (int c = 0; c < 3; ++c)
            kernels_.words_across(piece_.data() + c * plane, piece_stride, static_cast<int>(round_up(count, lanes)),
                                  strips_.data() + static_cast<std::size_t>(t / 4) * step_bytes + c * line_bytes,
                                  strip_bytes_);
    }
}

}  // namespace fourd
