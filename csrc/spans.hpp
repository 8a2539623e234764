// Filter taps in the form in which the kernels read them.
#pragma once

#include <memory>
#include <vector>

#include "filter.hpp"
#include "kernels.hpp"

namespace fourd {

class Spans {
public:
    Spans(const Taps& taps, const Kernels& kernels);

    const Span& operator[](int output) const { return spans_[output]; }
    const Span* data() const { return spans_.data(); }  // padded with empty ones to a multiple of 4
    int padded() const { return static_cast<int>(spans_.size()); }
    int longest() const { return longest_; }
    std::size_t bytes() const { return weights_.size() * sizeof(weights_[0]); }

private:
    std::vector<Span> spans_;
    std::vector<std::uint32_t> weights_;
    int longest_ = 0;
};

// The spans for one axis, kept for the next call of this thread: frames that come one by one would otherwise
// pay more for the sines than for their pixels. Not shared among threads, as a lock would be held for ever in
// a process that forks at the wrong moment.
std::shared_ptr<const Spans> spans_for(int in, int out, Filter filter, const Kernels& kernels);

}  // namespace fourd
