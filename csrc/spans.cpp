#include "spans.hpp"

#include <algorithm>

namespace fourd {

Spans::Spans(const Taps& taps, const Kernels& kernels) {
    const std::size_t outputs = taps.first.size();
    spans_.assign((outputs + 3) / 4 * 4, Span{0, 0, nullptr});
    // Without the weights of zero at both ends, in words. Where the filter falls on whole samples, a span shrinks
    // more than its neighbours; it still begins no later than those that follow, as readers keep only what lies
    // ahead.
    for (std::size_t o = outputs; o-- > 0;) {
        const std::int32_t* weights = taps.of(static_cast<int>(o));
        int first = 0, last = taps.count[o];
        while (last > 1 && weights[last - 1] == 0) --last;
        while (first + 1 < last && weights[first] == 0) ++first;
        const int end = (taps.first[o] + last + 3) / 4;
        spans_[o].first = (taps.first[o] + first) / 4;
        if (o + 1 < outputs) spans_[o].first = std::min(spans_[o].first, spans_[o + 1].first);
        spans_[o].count = end - spans_[o].first;
        longest_ = std::max(longest_, spans_[o].count);
    }
    std::vector<std::size_t> offsets(outputs);
    for (std::size_t o = 0; o < outputs; ++o) {
        const std::int32_t* weights = taps.of(static_cast<int>(o));
        offsets[o] = weights_.size();
        for (int word = 0; word < spans_[o].count; ++word) {
            std::int32_t four[4];
            for (int i = 0; i < 4; ++i) {
                const int k = (spans_[o].first + word) * 4 + i - taps.first[o];
                four[i] = k >= 0 && k < taps.count[o] ? weights[k] : 0;
            }
            weights_.resize(weights_.size() + word_weights);
            kernels.pack_weights(four, weights_.data() + weights_.size() - word_weights);
        }
    }
    for (std::size_t o = 0; o < outputs; ++o) spans_[o].weights = weights_.data() + offsets[o];
}

std::shared_ptr<const Spans> spans_for(int in, int out, Filter filter, const Kernels& kernels) {
    constexpr std::size_t most_entries = 8, most_bytes = 1 << 20;
    struct Entry {
        int in, out;
        Filter filter;
        const Kernels* kernels;
        std::shared_ptr<const Spans> spans;
    };
    thread_local std::vector<Entry> kept;  // newest last
    const auto found = std::find_if(kept.begin(), kept.end(), [&](const Entry& e) {
        return e.in == in && e.out == out && e.filter == filter && e.kernels == &kernels;
    });
    if (found != kept.end()) {
        std::rotate(found, found + 1, kept.end());
        return kept.back().spans;
    }
    auto spans = std::make_shared<const Spans>(make_taps(in, out, filter), kernels);
    if (spans->bytes() > most_bytes) return spans;
    if (kept.size() == most_entries) kept.erase(kept.begin());
    kept.push_back({in, out, filter, &kernels, spans});
    return spans;
}

}  // namespace fourd
