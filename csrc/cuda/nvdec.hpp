// Chosen frames of a video, decoded by the GPU's video engine and handed on while they lie in its memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/decoders.hpp"
#include "cuda/watch.hpp"
#include "frame.hpp"

namespace fourd::cuda {

// The data of a frame cannot be decoded; holds its time stamp.
struct Damaged : std::runtime_error {
    Damaged(const std::string& cause, std::int64_t when) : std::runtime_error(cause), pts(when) {}
    std::int64_t pts;
};

// Frames that lie mapped in the memory of the device: chroma, depth, size and window of the surfaces.
struct Mapped {
    const char* chroma;  // "420", "422", "444" or "gray"
    bool interleaved;
    int depth, shift, height, width;
    int top, left, rows, columns;  // the window that is shown
    std::span<const Frame> frames;
    std::span<const std::int64_t> pts;
};

// One stream. Not for use by two threads at once; several of them share Decoders.
class Video {
public:
    // Enqueues its reading of the frames on the stream; they are given back when the stream has come past it.
    using Sink = std::function<void(const Mapped&)>;

    // extradata: of AV1, its sequence header as in the container, or empty. wanted: stamps of the frames that
    // the sink is given, each once.
    Video(Decoders& decoders, int device, CUstream stream, cudaVideoCodec codec, std::string_view extradata,
          std::vector<std::int64_t> wanted, Sink sink);
    ~Video();
    Video(const Video&) = delete;
    Video& operator=(const Video&) = delete;

    // Packets i at [offsets[i], offsets[i + 1]) of data, with their stamps, in decoding order. landed: they do
    // not follow those before, but begin at a keyframe of that stamp. Returns how many wanted frames are still
    // to come.
    std::size_t feed(std::span<const std::uint8_t> data, std::span<const std::int64_t> offsets,
                     std::span<const std::int64_t> pts, std::optional<std::int64_t> landed);
    // No more packets. Returns the wanted stamps that were not shown.
    std::vector<std::int64_t> finish();

    static constexpr int group = Decoders::mappable / 2;  // frames handed on together

private:
    struct Held {
        std::vector<unsigned long long> addresses;
        CUevent passed = nullptr;
    };

    static int CUDAAPI on_sequence(void* self, CUVIDEOFORMAT* format);
    static int CUDAAPI on_decode(void* self, CUVIDPICPARAMS* picture);
    static int CUDAAPI on_display(void* self, CUVIDPARSERDISPINFO* shown);
    template <typename Body>
    int guarded(const Body& body);

    int start_sequence(const CUVIDEOFORMAT& format);
    void show(const CUVIDPARSERDISPINFO& shown);
    bool sound(int surface) const;
    bool tells() const;
    void hand_on();
    void release(Held& held);
    void give_decoder_back();
    void parse(const std::uint8_t* data, std::size_t size, unsigned long flags, std::int64_t stamp);
    void end_of_stream();
    void check(CUresult status, const char* doing) const;
    std::int64_t pts_of(CUvideotimestamp stamp) const;
    std::optional<std::size_t> index_of(std::int64_t pts) const;

    Decoders& decoders_;
    const Driver& driver_;
    int device_;
    CUcontext context_;
    CUstream stream_;
    cudaVideoCodec codec_;
    std::vector<std::int64_t> wanted_;  // increasing
    std::vector<bool> shown_;
    std::size_t remaining_;
    std::int64_t packets_ = 0;         // since decoding began at a keyframe, leading pictures left out
    std::vector<std::int64_t> up_to_;  // for each wanted frame: of them, those up to its own
    Watch watch_;
    Sink sink_;
    CUvideoparser parser_ = nullptr;
    Decoders::Decoder decoder_;
    CUVIDEOFORMAT format_{};
    CUVIDEOFORMATEX header_{};
    std::int64_t origin_ = 0, landed_;
    bool started_ = false, failed_ = false;
    std::vector<Frame> frames_;
    std::vector<std::int64_t> stamps_;
    std::vector<unsigned long long> mapped_;
    Held held_[2];  // while the conversion of one group runs, the next is decoded
    int turn_ = 0;
    std::exception_ptr error_;
};

}  // namespace fourd::cuda
