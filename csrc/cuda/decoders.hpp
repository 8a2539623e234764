// The GPU's video engine: what it decodes, and its decoders, which outlive the videos they were made for.
#pragma once

#include <cstddef>
#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cuda/driver.hpp"

namespace fourd::cuda {

// "h264", "hevc", "vp8", "vp9" or "av1"; throws std::invalid_argument for another.
cudaVideoCodec codec_by_name(std::string_view name);

// What the surfaces of a decoder hold.
struct SurfaceKind {
    cudaVideoCodec codec;
    cudaVideoChromaFormat chroma;
    int depth = 8, width = 0, height = 0;  // as coded
    bool operator==(const SurfaceKind&) const = default;
};

// "420", "422", "444" or "gray".
const char* chroma_name(cudaVideoChromaFormat chroma);

// The sides of a surface are even.
inline int even(int value) { return (value + 1) & ~1; }

// Decoders by kind. Making one takes tens of milliseconds, so those of finished videos are kept for the next,
// the ones used last; they must be destroyed before the driver goes, or never.
class Decoders {
public:
    explicit Decoders(const Driver& driver, std::size_t kept = 4) : driver_(driver), kept_(kept) {}
    ~Decoders();
    Decoders(const Decoders&) = delete;
    Decoders& operator=(const Decoders&) = delete;

    static constexpr int mappable = 8;  // surfaces of a decoder that can be mapped at a time

    struct Decoder {
        CUvideodecoder handle = nullptr;
        int device = 0, surfaces = 0;
        SurfaceKind kind{};
        int widest = 0, highest = 0;  // up to which it can be reconfigured
    };

    const Driver& driver() const { return driver_; }
    // The primary context of a device, which torch uses too.
    CUcontext context(int device);
    // Why this device cannot decode that, or "".
    std::string refusal(int device, const SurfaceKind& kind);
    // To be called in the parser's sequence callback, in the device's context.
    Decoder take(int device, const SurfaceKind& kind, int surfaces);
    void give(const Decoder& decoder);
    // Another size without a new decoder, where it allows that.
    bool reconfigure(Decoder& decoder, const SurfaceKind& kind, int surfaces);
    void destroy(const Decoder& decoder);

private:
    const Driver& driver_;
    const std::size_t kept_;
    std::mutex mutex_;
    std::list<Decoder> idle_;  // the one used last is first
    std::vector<std::pair<int, CUcontext>> contexts_;
};

}  // namespace fourd::cuda
