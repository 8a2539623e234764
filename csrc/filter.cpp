#include "filter.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <string>

namespace fourd {
namespace {

double radius(Filter filter) { return filter == Filter::bicubic ? 2.0 : 3.0; }

// Keys' cubic convolution with a = -1/2.
double cubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= std::numbers::pi;
    return std::sin(x) / x;
}

double lanczos3(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

double response(Filter filter, double x) { return filter == Filter::bicubic ? cubic(x) : lanczos3(x); }

}  // namespace

Filter filter_by_name(std::string_view name) {
    if (name == "bicubic") return Filter::bicubic;
    if (name == "lanczos") return Filter::lanczos;
    throw std::invalid_argument("unknown resample '" + std::string(name) + "': use 'lanczos' or 'bicubic'");
}

Taps make_taps(int in, int out, Filter filter) {
    const double scale = static_cast<double>(in) / out;
    const double stretch = std::max(scale, 1.0);
    const double support = radius(filter) * stretch;

    Taps taps;
    taps.capacity = static_cast<int>(std::ceil(support)) * 2 + 1;
    taps.first.resize(out);
    taps.count.resize(out);
    taps.weights.assign(static_cast<std::size_t>(out) * taps.capacity, 0);
    std::vector<double> exact(taps.capacity);

    for (int o = 0; o < out; ++o) {
        const double center = (o + 0.5) * scale;
        // The conversion truncates, so the borders are clamped after it and not before.
        const int first = std::max(static_cast<int>(center - support + 0.5), 0);
        const int last = std::min(static_cast<int>(center + support + 0.5), in);
        double sum = 0.0;
        for (int i = first; i < last; ++i) {
            exact[i - first] = response(filter, (i - center + 0.5) / stretch);
            sum += exact[i - first];
        }
        std::int32_t* row = taps.weights.data() + static_cast<std::size_t>(o) * taps.capacity;
        for (int i = 0; i < last - first; ++i) {
            const double weight = sum != 0.0 ? exact[i] / sum : exact[i];
            row[i] = static_cast<std::int32_t>(std::lround(weight * (1 << weight_bits)));
        }
        taps.first[o] = first;
        taps.count[o] = last - first;
    }
    return taps;
}

}  // namespace fourd
