#include "cuda/nvdec.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <thread>
#include <utility>

#include "cuda/context.hpp"

namespace fourd::cuda {
namespace {

constexpr int group = Video::group;
// Pictures that the parser may hold back, so that the engine works on some while others are converted.
constexpr int display_delay = 4;
// Stamps are handed to the parser moved to here: negative ones are not spoken of in its documentation.
constexpr std::int64_t stamp_origin = std::int64_t{1} << 40;
// A picture that the engine has not decoded by then hangs, or others keep the engine busy.
constexpr auto patience = std::chrono::seconds(10);
// CUDA_ERROR_NOT_SUPPORTED, which ffnvcodec's headers lack.
constexpr auto not_supported = static_cast<CUresult>(801);

}  // namespace

Video::Video(Decoders& decoders, int device, CUstream stream, cudaVideoCodec codec, std::string_view extradata,
             std::vector<std::int64_t> wanted, Sink sink)
    : decoders_(decoders),
      driver_(decoders.driver()),
      device_(device),
      context_(decoders.context(device)),
      stream_(stream),
      codec_(codec),
      wanted_(std::move(wanted)),
      watch_([this](int surface) { return sound(surface); }),
      sink_(std::move(sink)),
      landed_(std::numeric_limits<std::int64_t>::min()) {
    std::sort(wanted_.begin(), wanted_.end());
    wanted_.erase(std::unique(wanted_.begin(), wanted_.end()), wanted_.end());
    shown_.assign(wanted_.size(), false);
    up_to_.assign(wanted_.size(), 0);
    remaining_ = wanted_.size();

    CUVIDPARSERPARAMS params{};
    params.CodecType = codec;
    params.ulMaxNumDecodeSurfaces = 1;  // on_sequence says how many
    params.ulMaxDisplayDelay = display_delay;
    params.ulErrorThreshold = 100;  // damage is judged by the picture's own status
    params.pUserData = this;
    params.pfnSequenceCallback = on_sequence;
    params.pfnDecodePicture = on_decode;
    params.pfnDisplayPicture = on_display;
    if (!extradata.empty()) {
        header_.format.seqhdr_data_length =
            static_cast<unsigned>(std::min(extradata.size(), sizeof(header_.raw_seqhdr_data)));
        std::memcpy(header_.raw_seqhdr_data, extradata.data(), header_.format.seqhdr_data_length);
        params.pExtVideoInfo = &header_;
    }
    const Current current(driver_, context_);
    for (Held& held : held_)
        check(driver_.create_event(&held.passed, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC), "cuEventCreate");
    check(driver_.create_parser(&parser_, &params), "cuvidCreateVideoParser");
}

Video::~Video() {
    try {
        const Current current(driver_, context_);
        if (parser_) driver_.destroy_parser(parser_);
        if (!mapped_.empty()) {  // the sink may have failed after it began to read
            release(held_[turn_]);
            held_[turn_].addresses = std::move(mapped_);
            driver_.record_event(held_[turn_].passed, stream_);
        }
        for (Held& held : held_) {
            release(held);
            if (held.passed) driver_.destroy_event(held.passed);
        }
        // One that has been interrupted is in an unknown state.
        if (decoder_.handle) decoders_.destroy(decoder_);
    } catch (const std::runtime_error&) {  // the context is gone, and everything in it
    }
}

void Video::check(CUresult status, const char* doing) const {
    if (status != CUDA_SUCCESS)
        throw std::runtime_error(std::string(doing) + " failed: " + error_text(driver_, status));
}

std::int64_t Video::pts_of(CUvideotimestamp stamp) const { return stamp - stamp_origin + origin_; }

std::optional<std::size_t> Video::index_of(std::int64_t pts) const {
    const auto at = std::lower_bound(wanted_.begin(), wanted_.end(), pts);
    if (at == wanted_.end() || *at != pts) return {};
    return static_cast<std::size_t>(at - wanted_.begin());
}

std::size_t Video::feed(std::span<const std::uint8_t> data, std::span<const std::int64_t> offsets,
                        std::span<const std::int64_t> pts, std::optional<std::int64_t> landed) {
    if (failed_) throw std::logic_error("this video has failed before; begin it anew");
    if (offsets.size() != pts.size() + 1 ||
        (!offsets.empty() && (offsets.front() != 0 || offsets.back() != static_cast<std::int64_t>(data.size()))))
        throw std::invalid_argument("offsets must hold one more than the " + std::to_string(pts.size()) +
                                    " time stamps, from 0 to the size of the data");
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
        if (offsets[i] > offsets[i + 1]) throw std::invalid_argument("offsets must not decrease");
    const Current current(driver_, context_);
    failed_ = true;  // unless this call comes to its end
    if (landed) {
        if (started_) end_of_stream();
        landed_ = *landed;
        watch_.begin();
        packets_ = 0;
    }
    if (!started_ && !pts.empty()) {
        origin_ = pts[0];
        started_ = true;
    }
    for (std::size_t i = 0; i < pts.size() && remaining_; ++i) {
        packets_ += pts[i] >= landed_;
        if (const auto index = index_of(pts[i])) up_to_[*index] = packets_;
        parse(data.data() + offsets[i], static_cast<std::size_t>(offsets[i + 1] - offsets[i]), CUVID_PKT_TIMESTAMP,
              pts[i] - origin_ + stamp_origin);
    }
    if (!remaining_) hand_on();
    failed_ = false;
    return remaining_;
}

void Video::end_of_stream() {
    parse(nullptr, 0, CUVID_PKT_ENDOFSTREAM, 0);
    hand_on();
}

std::vector<std::int64_t> Video::finish() {
    if (failed_) throw std::logic_error("this video has failed before; begin it anew");
    const Current current(driver_, context_);
    failed_ = true;
    if (started_ && remaining_) end_of_stream();
    hand_on();
    // Nothing is left to ask about: each frame was judged when it was shown, by all that was decoded before it.
    give_decoder_back();
    std::vector<std::int64_t> missing;
    for (std::size_t i = 0; i < wanted_.size(); ++i)
        if (!shown_[i]) missing.push_back(wanted_[i]);
    return missing;
}

void Video::parse(const std::uint8_t* data, std::size_t size, unsigned long flags, std::int64_t stamp) {
    CUVIDSOURCEDATAPACKET packet{};
    packet.payload = data;
    packet.payload_size = static_cast<unsigned long>(size);
    packet.flags = flags;
    packet.timestamp = stamp;
    error_ = nullptr;
    const CUresult status = driver_.parse(parser_, &packet);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    if (status != CUDA_SUCCESS)
        throw Damaged("cuvidParseVideoData failed: " + error_text(driver_, status), pts_of(stamp));
}

// Exceptions do not pass through the driver: they wait until it has returned. After one, nothing more is done.
template <typename Body>
int Video::guarded(const Body& body) {
    if (error_) return 0;
    try {
        return body();
    } catch (...) {
        error_ = std::current_exception();
        return 0;
    }
}

int CUDAAPI Video::on_sequence(void* self, CUVIDEOFORMAT* format) {
    auto& video = *static_cast<Video*>(self);
    return video.guarded([&] { return video.start_sequence(*format); });
}

int CUDAAPI Video::on_decode(void* self, CUVIDPICPARAMS* picture) {
    auto& video = *static_cast<Video*>(self);
    return video.guarded([&] {
        if (!video.decoder_.handle) throw std::runtime_error("a picture came before its sequence header");
        video.watch_.submit(*picture, video.codec_);
        video.check(video.driver_.decode_picture(video.decoder_.handle, picture), "cuvidDecodePicture");
        return 1;
    });
}

int CUDAAPI Video::on_display(void* self, CUVIDPARSERDISPINFO* shown) {
    auto& video = *static_cast<Video*>(self);
    return video.guarded([&] {
        if (shown) video.show(*shown);  // null: the end of the stream
        return 1;
    });
}

int Video::start_sequence(const CUVIDEOFORMAT& format) {
    hand_on();  // what is mapped has the format that ends here
    const SurfaceKind kind{format.codec, format.chroma_format, format.bit_depth_luma_minus8 + 8,
                           static_cast<int>(format.coded_width), static_cast<int>(format.coded_height)};
    const auto& area = format.display_area;
    if (area.left < 0 || area.top < 0 || area.right > kind.width || area.bottom > kind.height ||
        area.left >= area.right || area.top >= area.bottom)
        throw std::runtime_error("the stream's display area lies outside its frames");
    constexpr int most = 32;  // that NVDEC takes
    const int surfaces = std::max<int>(format.min_num_decode_surfaces,
                                       std::min(format.min_num_decode_surfaces + display_delay + group, most));
    const bool same = decoder_.handle && decoder_.kind == kind && decoder_.surfaces == surfaces;
    if (!same) {
        watch_.close();
        for (Held& held : held_) release(held);
        if (decoder_.handle && !decoders_.reconfigure(decoder_, kind, surfaces)) give_decoder_back();
        if (!decoder_.handle) decoder_ = decoders_.take(device_, kind, surfaces);
    }
    format_ = format;
    return surfaces;
}

void Video::show(const CUVIDPARSERDISPINFO& shown) {
    const std::int64_t pts = pts_of(shown.timestamp);
    const auto found = index_of(pts);
    // Before the keyframe that decoding began at: it may lack what it refers to.
    if (!found || pts < landed_) return;
    const std::size_t index = *found;
    if (shown_[index]) return;

    CUVIDPROCPARAMS params{};
    params.progressive_frame = shown.progressive_frame;
    params.second_field = shown.repeat_first_field + 1;
    params.top_field_first = shown.top_field_first;
    params.unpaired_field = shown.repeat_first_field < 0;
    params.output_stream = stream_;
    unsigned long long address = 0;
    unsigned pitch = 0;
    check(driver_.map_frame(decoder_.handle, shown.picture_index, &address, &pitch, &params), "cuvidMapVideoFrame");
    mapped_.push_back(address);
    // Mapped, it is decoded, and so is all that the engine was given before, for it keeps the order.
    const std::int64_t place = watch_.place(shown.picture_index);
    if (!watch_.sound_up_to(place))
        throw Damaged("NVDEC reports an error in the frame or in one that it may refer to", pts);
    // Data that it can make nothing of the parser leaves out, and says nothing.
    if (tells() && place < up_to_[index])
        throw Damaged("NVDEC found " + std::to_string(place) + " pictures in " + std::to_string(up_to_[index]) +
                          " packets up to the frame",
                      pts);

    const auto* base = reinterpret_cast<const std::uint8_t*>(address);
    const std::ptrdiff_t stride = pitch, plane = stride * even(decoder_.kind.height);
    Frame frame;
    frame.planes[0] = {base, stride};
    frame.planes[1] = {base + plane, stride};
    if (decoder_.kind.chroma == cudaVideoChromaFormat_444) frame.planes[2] = {base + 2 * plane, stride};
    frames_.push_back(frame);
    stamps_.push_back(pts);
    shown_[index] = true;
    --remaining_;
    if (static_cast<int>(frames_.size()) == group) hand_on();
}

// Whether the driver tells of damage (it is documented for these two alone), and each packet holds one picture.
bool Video::tells() const { return codec_ == cudaVideoCodec_H264 || codec_ == cudaVideoCodec_HEVC; }

// Asks again and again until the picture is decoded. There is next to nothing to wait for: the driver queues four
// pictures, and what is asked about is older, or came before one that is mapped. (Only the first of two fields is
// waited for.) To map the picture would wait too, but takes one of the few places for mapped ones, and copies it.
bool Video::sound(int surface) const {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (true) {
        CUVIDGETDECODESTATUS status{};
        const CUresult asked = driver_.decode_status(decoder_.handle, surface, &status);
        if (asked != CUDA_SUCCESS) {  // not every GPU tells: then damage shows only in the parser
            if (tells() && asked != not_supported) check(asked, "cuvidGetDecodeStatus");
            return true;
        }
        const auto found = status.decodeStatus;
        if (found == cuvidDecodeStatus_Error || found == cuvidDecodeStatus_Error_Concealed) return false;
        // "Invalid" says that the status is not known, and nothing of the data.
        if (found != cuvidDecodeStatus_InProgress || !tells()) return true;
        if (std::chrono::steady_clock::now() > end)
            throw std::runtime_error("NVDEC has not decoded a picture within " + std::to_string(patience.count()) +
                                     " s");
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
}

void Video::hand_on() {
    if (frames_.empty()) return;
    const SurfaceKind& kind = decoder_.kind;
    const auto& area = format_.display_area;
    const bool gray = kind.chroma == cudaVideoChromaFormat_Monochrome;
    const Mapped mapped{chroma_name(kind.chroma),
                        !gray && kind.chroma != cudaVideoChromaFormat_444,
                        kind.depth,
                        kind.depth > 8 ? 16 - kind.depth : 0,
                        even(kind.height),
                        even(kind.width),
                        area.top,
                        area.left,
                        area.bottom - area.top,
                        area.right - area.left,
                        frames_,
                        stamps_};
    sink_(mapped);
    Held& held = held_[turn_];
    held.addresses = std::exchange(mapped_, {});
    frames_.clear();
    stamps_.clear();
    check(driver_.record_event(held.passed, stream_), "cuEventRecord");
    turn_ = 1 - turn_;
    release(held_[turn_]);  // the group before: its places are needed for the next
}

void Video::release(Held& held) {
    if (held.addresses.empty()) return;
    driver_.wait_for_event(held.passed);  // an error of the device shows at its next use
    for (const auto address : held.addresses) driver_.unmap_frame(decoder_.handle, address);
    held.addresses.clear();
}

void Video::give_decoder_back() {
    for (Held& held : held_) release(held);
    if (decoder_.handle) decoders_.give(std::exchange(decoder_, {}));
}

}  // namespace fourd::cuda
