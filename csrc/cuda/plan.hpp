// Which passes make an output, and where they run.
#pragma once

#include <span>

#include "cuda/passes.hpp"
#include "filter.hpp"

namespace fourd::cuda {

// A GPU, or the host that emulates one.
class Machine {
public:
    virtual ~Machine() = default;
    // Filter taps, kept for the next call. `identity` (in == out): every output is its input.
    virtual TapsView taps(int in, int out, Filter filter, bool identity) = 0;
    // Room for that many pixels of 4 bytes, valid until the next call.
    virtual std::uint32_t* scratch(std::size_t pixels) = 0;
    virtual void run(const Horizontal<Surfaces>& pass, Block blocks) = 0;
    virtual void run(const Horizontal<Packed>& pass, Block blocks) = 0;
    virtual void run(const Vertical<Surfaces>& pass, Block blocks) = 0;
    virtual void run(const Vertical<Packed>& pass, Block blocks) = 0;
};

// Converts frames[i] into frame place[i] of an output of `total` frames. What fourd::convert makes of the
// same frames, bit for bit. Planes, strides and `out` are addresses of the machine; both planes of an
// interleaved format and 16-bit planes are aligned to one read of a chroma pair or a sample.
void convert(Machine& machine, const Format& format, std::span<const Frame> frames, std::span<const int> place,
             int total, const Output& output, void* out);

// The host as a machine that runs every thread of every block in turn. For tests.
void emulate(const Format& format, std::span<const Frame> frames, std::span<const int> place, int total,
             const Output& output, void* out);

}  // namespace fourd::cuda
