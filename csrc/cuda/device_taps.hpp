// Filter taps in the order that the kernels read them.
#pragma once

#include <vector>

#include "filter.hpp"

namespace fourd::cuda {

struct DeviceTaps {
    std::vector<int> first, count;      // [out]
    std::vector<std::int32_t> weights;  // [capacity, out]
};

inline DeviceTaps make_device_taps(int in, int out, Filter filter, bool identity) {
    DeviceTaps to;
    if (identity) {
        to.first.resize(out);
        for (int o = 0; o < out; ++o) to.first[o] = o;
        to.count.assign(out, 1);
        to.weights.assign(out, 1 << weight_bits);
        return to;
    }
    Taps taps = make_taps(in, out, filter);
    to.weights.resize(static_cast<std::size_t>(taps.capacity) * out);
    for (int o = 0; o < out; ++o)
        for (int k = 0; k < taps.capacity; ++k) to.weights[static_cast<std::size_t>(k) * out + o] = taps.of(o)[k];
    to.first = std::move(taps.first);
    to.count = std::move(taps.count);
    return to;
}

}  // namespace fourd::cuda
