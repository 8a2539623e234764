#include <cmath>
#include <stdexcept>
#include <string>

#include "frame.hpp"

namespace fourd {

// Source: ITU-T H.273, 8.3: R = Y + 2(1-Kr)Cr, B = Y + 2(1-Kb)Cb, G from Y = Kr R + Kg G + Kb B.
Matrix make_matrix(std::string_view name, bool full_range, int depth, bool gray) {
    double red, blue;
    if (name == "bt601") {
        red = 0.299, blue = 0.114;
    } else if (name == "bt709") {
        red = 0.2126, blue = 0.0722;
    } else if (name == "bt2020") {
        red = 0.2627, blue = 0.0593;
    } else {
        throw std::invalid_argument("unknown matrix '" + std::string(name) + "': use 'bt601', 'bt709' or 'bt2020'");
    }
    const double green = 1.0 - red - blue;
    const double unit = 1 << (depth - 8);  // limited range scales with the depth, full range does not quite
    const double luma = full_range ? 255.0 / ((1 << depth) - 1) : 255.0 / (219.0 * unit);
    const double chroma = full_range ? luma : 255.0 / (224.0 * unit);
    const double black = full_range ? 0.0 : 16.0 * unit;

    Matrix m;
    m.bits = 9 + depth;
    const double one = static_cast<double>(1 << m.bits);
    const auto fixed = [](double x) { return static_cast<std::int32_t>(std::lround(x)); };
    m.y = fixed(luma / 16 * one);
    m.bias = fixed((luma * ((1 << (depth - 1)) - black) + 0.5) * one);
    if (gray) return m;
    const double step = chroma / 16 * one;
    m.vr = fixed(2 * (1 - red) * step);
    m.ub = fixed(2 * (1 - blue) * step);
    m.vg = fixed(-2 * (1 - red) * red / green * step);
    m.ug = fixed(-2 * (1 - blue) * blue / green * step);
    return m;
}

}  // namespace fourd
