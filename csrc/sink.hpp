// Where finished rows go: the pixels or the patches of the result.
#pragma once

#include <vector>

#include "convert.hpp"
#include "kernels.hpp"

namespace fourd {

class Sink {
public:
    Sink(const Output& output, int frames, const Kernels& kernels, void* out);

    // Part of one finished row: levels of r, g and b, `count` columns from x on. count and x are multiples
    // of patch when patches are written. Rows may come in any order and from several threads, each with its
    // own Sink.
    void row(int frame, int y, int x, int count, const std::uint8_t* const* planes);

private:
    template <typename T>
    void patches(int frame, int y, int x, int count, const std::uint8_t* const* planes,
                 void (*normalise)(const std::uint8_t*, int, float, float, T*), std::vector<T>& line);

    const Output& output_;
    int frames_;
    const Kernels& kernels_;
    void* out_;
    std::vector<float> line32_;
    std::vector<std::uint16_t> line16_;
};

}  // namespace fourd
