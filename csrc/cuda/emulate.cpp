#include <algorithm>
#include <memory>
#include <vector>

#include "cuda/device_taps.hpp"
#include "cuda/plan.hpp"

namespace fourd::cuda {
namespace {

// A pixel that no pass left there. Its channels are levels, so that sums of threads outside the picture, which
// nobody uses, do not overflow.
constexpr std::uint32_t poison = 0x00adbeef;

template <typename Body>
void every_block(Block blocks, const Body& body) {
    for (int z = 0; z < blocks.z; ++z)
        for (int y = 0; y < blocks.y; ++y)
            for (int x = 0; x < blocks.x; ++x) body(Block{x, y, z});
}

class Emulator final : public Machine {
public:
    TapsView taps(int in, int out, Filter filter, bool identity) override {
        const auto& kept =
            taps_.emplace_back(std::make_unique<DeviceTaps>(make_device_taps(in, out, filter, identity)));
        return {kept->first.data(), kept->count.data(), kept->weights.data(), in, out};
    }
    std::uint32_t* scratch(std::size_t pixels) override {
        scratch_.assign(pixels, poison);
        return scratch_.data();
    }
    void run(const Horizontal<Surfaces>& pass, Block blocks) override { horizontal(pass, blocks); }
    void run(const Horizontal<Packed>& pass, Block blocks) override { horizontal(pass, blocks); }
    void run(const Vertical<Surfaces>& pass, Block blocks) override { vertical(pass, blocks); }
    void run(const Vertical<Packed>& pass, Block blocks) override { vertical(pass, blocks); }

private:
    // Between two barriers all threads of a block run, one after the other.
    template <typename Pass>
    void horizontal(const Pass& pass, Block blocks) {
        std::vector<std::uint32_t> shared(Pass::tile);
        every_block(blocks, [&](Block block) {
            std::vector<typename Pass::Sums> sums(Pass::threads);
            const int end = pass.end(block);
            for (int at = pass.begin(block); at < end; at += Pass::piece) {
                std::fill(shared.begin(), shared.end(), poison);  // what is used must have been staged
                for (int thread = 0; thread < Pass::threads; ++thread)
                    pass.stage(block, thread, at, end, shared.data());
                for (int thread = 0; thread < Pass::threads; ++thread)
                    pass.accumulate(block, thread, at, shared.data(), sums[thread]);
            }
            for (int thread = 0; thread < Pass::threads; ++thread) pass.store(block, thread, sums[thread]);
        });
    }

    template <typename Pass>
    void vertical(const Pass& pass, Block blocks) {
        every_block(blocks, [&](Block block) {
            for (int thread = 0; thread < Pass::threads; ++thread) pass.run(block, thread);
        });
    }

    std::vector<std::unique_ptr<DeviceTaps>> taps_;
    std::vector<std::uint32_t> scratch_;
};

}  // namespace

void emulate(const Format& format, std::span<const Frame> frames, std::span<const int> place, int total,
             const Output& output, void* out) {
    Emulator host;
    convert(host, format, frames, place, total, output, out);
}

}  // namespace fourd::cuda
