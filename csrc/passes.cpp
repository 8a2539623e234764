#include "passes.hpp"

#include <algorithm>

namespace fourd {
namespace {

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

Spans::Spans(const Taps& taps, const Kernels& kernels) {
    const int outputs = static_cast<int>(taps.first.size());
    spans_.assign(round_up(taps.first.size(), 4), Span{0, 0, nullptr});
    std::vector<std::size_t> offsets(outputs);
    for (int o = 0; o < outputs; ++o) {
        const std::int32_t* weights = taps.of(o);
        int first = 0, count = taps.count[o];
        while (count > 1 && weights[count - 1] == 0) --count;
        while (first + 1 < count && weights[first] == 0) ++first;
        const int at = taps.first[o] + first, lead = at % 4;
        spans_[o].first = at / 4;
        spans_[o].count = (lead + count - first + 3) / 4;
        longest_ = std::max(longest_, spans_[o].count);
        offsets[o] = weights_.size();
        for (int word = 0; word < spans_[o].count; ++word) {
            std::int32_t four[4];
            for (int i = 0; i < 4; ++i) {
                const int k = first + word * 4 + i - lead;
                four[i] = k >= first && k < count ? weights[k] : 0;
            }
            weights_.resize(weights_.size() + word_weights);
            kernels.pack_weights(four, weights_.data() + weights_.size() - word_weights);
        }
    }
    for (int o = 0; o < outputs; ++o) spans_[o].weights = weights_.data() + offsets[o];
}

Plan::Plan(const Format& format, const Output& output, const Kernels& kernels)
    : vertical_first(fourd::vertical_first(format.picture_height(), format.picture_width(), output.height, output.width)),
      tap_length(vertical_first ? format.picture_height() : format.picture_width()),
      lane_length(vertical_first ? format.picture_width() : format.picture_height()),
      first_outputs(vertical_first ? output.height : output.width),
      second_outputs(vertical_first ? output.width : output.height),
      along_rows(format.turned() == vertical_first),
      first(make_taps(tap_length, first_outputs, output.filter), kernels),
      second(make_taps(lane_length, second_outputs, output.filter), kernels) {
    // x and y of the picture run against those of the frame after 180 degrees, y after 90 and x after 270.
    const bool x_reversed = format.rotation == 180 || format.rotation == 270;
    const bool y_reversed = format.rotation == 180 || format.rotation == 90;
    tap_reversed = vertical_first ? y_reversed : x_reversed;
    lane_reversed = vertical_first ? x_reversed : y_reversed;
}

Resampler::Resampler(const Format& format, const Plan& plan, const Kernels& kernels)
    : format_(format), plan_(plan), kernels_(kernels), reader_(format, kernels),
      // Along columns every row is visited once for each block, so blocks are wide.
      block_(plan.along_rows ? lanes : PictureReader::longest),
      strip_bytes_((static_cast<std::size_t>(plan.tap_length) + 15) / 16 * 4 * step_bytes),
      plane_stride_(round_up(plan.first_outputs, lanes)), ring_stride_(3 * plane_stride_),
      ring_groups_(static_cast<int>(round_up(plan.second.longest() + lanes / 4, lanes / 4))),
      piece_(static_cast<std::size_t>(3) * lanes * PictureReader::longest),
      strips_(strip_bytes_ * (block_ / lanes)), ring_(ring_stride_ * ring_groups_), rows_(plan.second.longest()),
      line_(ring_stride_) {
    if (plan.vertical_first) turned_.resize(static_cast<std::size_t>(3) * plan.first_outputs * plan.second_outputs);
}

void Resampler::run(const Frame& frame, int begin, int end, int number, Sink& sink) {
    // Lanes are counted from the first word that this band needs.
    const int origin = plan_.second[begin].first * 4;
    int filled = origin, ready = origin;  // lanes in strips, and in the ring
    for (int o = begin; o < end; ++o) {
        const Span& span = plan_.second[o];
        while (ready < std::min((span.first + span.count) * 4, plan_.lane_length)) {
            if (ready == filled) {
                const int count = std::min(block_, plan_.lane_length - filled);
                fill(frame, filled, count);
                filled += static_cast<int>(round_up(count, lanes));
            }
            std::uint32_t* out[lanes / 4];
            for (int g = 0; g < lanes / 4; ++g) out[g] = ring_row(ready / 4 + g);
            const int strip = (ready - origin) % block_ / lanes;
            kernels_.first_pass(strips_.data() + strip * strip_bytes_, plan_.first.data(), plan_.first.padded(), out,
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
            const std::uint8_t* planes[3] = {line_.data(), line_.data() + plane_stride_, line_.data() + 2 * plane_stride_};
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

// Lanes are rows of the frame. Past the last one its neighbours repeat it: they weigh nothing.
void Resampler::fill_along_rows(const Frame& frame, int lane, int count) {
    constexpr std::size_t stride = PictureReader::longest, plane = stride * lanes;
    for (int x = 0; x < plan_.tap_length; x += PictureReader::longest) {
        const int columns = std::min(PictureReader::longest, plan_.tap_length - x);
        for (int r = 0; r < count; ++r) {
            const int y = plan_.lane_reversed ? plan_.lane_length - 1 - lane - r : lane + r;
            std::uint8_t* to = piece_.data() + r * stride;
            const int from = plan_.tap_reversed ? plan_.tap_length - x - columns : x;
            reader_.read(frame, y, from, columns, to, to + plane, to + 2 * plane);
            if (plan_.tap_reversed)
                for (int c = 0; c < 3; ++c) kernels_.reverse(to + c * plane, columns);
        }
        for (int c = 0; c < 3; ++c)
            kernels_.words_along(piece_.data() + c * plane, stride, (columns + 3) / 4,
                                 strips_.data() + static_cast<std::size_t>(x / 4) * step_bytes + c * line_bytes);
    }
}

// Lanes are columns of the frame.
void Resampler::fill_along_columns(const Frame& frame, int lane, int count) {
    constexpr std::size_t stride = PictureReader::longest, plane = stride * 4;
    const int x = plan_.lane_reversed ? plan_.lane_length - lane - count : lane;
    for (int t = 0; t < plan_.tap_length; t += 4) {
        for (int i = 0; i < std::min(4, plan_.tap_length - t); ++i) {
            const int y = plan_.tap_reversed ? plan_.tap_length - 1 - t - i : t + i;
            std::uint8_t* to = piece_.data() + i * stride;
            reader_.read(frame, y, x, count, to, to + plane, to + 2 * plane);
            if (plan_.lane_reversed)
                for (int c = 0; c < 3; ++c) kernels_.reverse(to + c * plane, count);
        }
        for (int c = 0; c < 3; ++c)
            kernels_.words_across(piece_.data() + c * plane, stride, static_cast<int>(round_up(count, lanes)),
                                  strips_.data() + static_cast<std::size_t>(t / 4) * step_bytes + c * line_bytes,
                                  strip_bytes_);
    }
}

}  // namespace fourd
