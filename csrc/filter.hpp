// Filter taps of an antialiased resize along one axis.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "arith.hpp"

namespace fourd {

enum class Filter { bicubic, lanczos };

// Throws std::invalid_argument (ValueError in Python) for any name but "bicubic" and "lanczos".
Filter filter_by_name(std::string_view name);

struct Taps {
    int capacity = 0;                   // weights kept per output
    std::vector<int> first;             // [out] first input sample
    std::vector<int> count;             // [out] number of input samples
    std::vector<std::int32_t> weights;  // [out, capacity]; they sum to 1 << weight_bits up to rounding

    const std::int32_t* of(int output) const { return weights.data() + static_cast<std::size_t>(output) * capacity; }
};

// in, out >= 1. The support widens with in/out when shrinking (antialiasing) and stays the filter's
// own when enlarging. Taps that fall outside the image are dropped and the rest renormalised.
Taps make_taps(int in, int out, Filter filter);

}  // namespace fourd
