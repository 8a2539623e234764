#include "cuda/nvdec.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

namespace fourd::cuda {
namespace {

constexpr int group = Video::group;
// Pictures that the parser may hold back, so that the engine works on some while others are converted.
constexpr int display_delay = 4;
// Stamps are handed to the parser moved to here: negative ones are not spoken of in its documentation.
constexpr std::int64_t stamp_origin = std::int64_t{1} << 40;

std::string error_text(const Driver& driver, CUresult status) {
    const char* name = nullptr;
    driver.error_name(status, &name);
    return name ? name : "CUDA error " + std::to_string(static_cast<int>(status));
}

// Makes a context current for a while.
class Current {
public:
    Current(const Driver& driver, CUcontext context) : driver_(driver) {
        const CUresult status = driver_.push_context(context);
        if (status != CUDA_SUCCESS)
            throw std::runtime_error("cuCtxPushCurrent failed: " + error_text(driver_, status));
    }
    ~Current() {
        CUcontext popped;
        driver_.pop_context(&popped);
    }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

private:
    const Driver& driver_;
};

int even(int value) { return (value + 1) & ~1; }

const char* chroma_name(cudaVideoChromaFormat chroma) {
    switch (chroma) {
        case cudaVideoChromaFormat_Monochrome: return "gray";
        case cudaVideoChromaFormat_420: return "420";
        case cudaVideoChromaFormat_422: return "422";
        default: return "444";
    }
}

const char* codec_name(cudaVideoCodec codec) {
    switch (codec) {
        case cudaVideoCodec_H264: return "H.264";
        case cudaVideoCodec_HEVC: return "HEVC";
        case cudaVideoCodec_VP8: return "VP8";
        case cudaVideoCodec_VP9: return "VP9";
        default: return "AV1";
    }
}

cudaVideoSurfaceFormat surface_format(const SurfaceKind& kind) {
    if (kind.chroma == cudaVideoChromaFormat_444)
        return kind.depth > 8 ? cudaVideoSurfaceFormat_YUV444_16Bit : cudaVideoSurfaceFormat_YUV444;
    return kind.depth > 8 ? cudaVideoSurfaceFormat_P016 : cudaVideoSurfaceFormat_NV12;
}

}  // namespace

cudaVideoCodec codec_by_name(std::string_view name) {
    if (name == "h264") return cudaVideoCodec_H264;
    if (name == "hevc") return cudaVideoCodec_HEVC;
    if (name == "vp8") return cudaVideoCodec_VP8;
    if (name == "vp9") return cudaVideoCodec_VP9;
    if (name == "av1") return cudaVideoCodec_AV1;
    throw std::invalid_argument("codec '" + std::string(name) + "' is not decoded by NVDEC here: h264, hevc, vp8, vp9, av1 are");
}

// ------------------------------------------------------------------------------------------- decoders

Decoders::~Decoders() {
    for (const Decoder& decoder : idle_) {
        try {
            const Current current(driver_, context(decoder.device));
            destroy(decoder);
        } catch (const std::runtime_error&) {  // the context is gone, and the decoder with it
        }
    }
}

CUcontext Decoders::context(int device) {
    const std::lock_guard lock(mutex_);
    for (const auto& [known, context] : contexts_)
        if (known == device) return context;
    CUdevice handle;
    CUcontext context;
    CUresult status = driver_.device(&handle, device);
    if (status == CUDA_SUCCESS) status = driver_.retain_context(&context, handle);
    if (status != CUDA_SUCCESS)
        throw std::runtime_error("device " + std::to_string(device) + " cannot be used: " + error_text(driver_, status));
    contexts_.emplace_back(device, context);
    return context;
}

std::string Decoders::refusal(int device, const SurfaceKind& kind) {
    if (kind.chroma == cudaVideoChromaFormat_422) return "4:2:2 is not decoded by NVDEC here";  // its surfaces are newer than these headers
    const Current current(driver_, context(device));
    CUVIDDECODECAPS caps{};
    caps.eCodecType = kind.codec;
    caps.eChromaFormat = kind.chroma;
    caps.nBitDepthMinus8 = static_cast<unsigned>(kind.depth - 8);
    const CUresult status = driver_.capabilities(&caps);
    if (status != CUDA_SUCCESS) return "cuvidGetDecoderCaps failed: " + error_text(driver_, status);
    const std::string what = std::string(codec_name(kind.codec)) + " " + chroma_name(kind.chroma) + " with " +
                             std::to_string(kind.depth) + " bits";
    const std::string size = std::to_string(kind.width) + "x" + std::to_string(kind.height);
    if (!caps.bIsSupported) return "this GPU's NVDEC does not decode " + what;
    if (!(caps.nOutputFormatMask >> surface_format(kind) & 1))
        return "this GPU's NVDEC has no output format for " + what;
    const auto width = static_cast<unsigned>(kind.width), height = static_cast<unsigned>(kind.height);
    if (width < caps.nMinWidth || height < caps.nMinHeight)
        return "frames of " + size + " are smaller than NVDEC decodes (" + std::to_string(caps.nMinWidth) + "x" +
               std::to_string(caps.nMinHeight) + ") for " + what;
    if (width > caps.nMaxWidth || height > caps.nMaxHeight ||
        static_cast<std::uint64_t>(width) * height / 256 > caps.nMaxMBCount)
        return "frames of " + size + " are larger than this GPU's NVDEC decodes (" + std::to_string(caps.nMaxWidth) +
               "x" + std::to_string(caps.nMaxHeight) + ") for " + what;
    return "";
}

Decoders::Decoder Decoders::take(int device, const SurfaceKind& kind, int surfaces) {
    std::list<Decoder> found;
    {
        const std::lock_guard lock(mutex_);
        const auto same = [&](const Decoder& d) {
            return d.device == device && d.kind == kind && d.surfaces == surfaces;
        };
        const auto fits = [&](const Decoder& d) {
            return d.device == device && d.kind.codec == kind.codec && d.kind.chroma == kind.chroma &&
                   d.kind.depth == kind.depth && d.widest >= kind.width && d.highest >= kind.height;
        };
        auto it = std::find_if(idle_.begin(), idle_.end(), same);
        if (it == idle_.end()) it = std::find_if(idle_.begin(), idle_.end(), fits);
        if (it != idle_.end()) found.splice(found.begin(), idle_, it);
    }
    if (!found.empty()) {
        Decoder decoder = found.front();
        if ((decoder.kind == kind && decoder.surfaces == surfaces) || reconfigure(decoder, kind, surfaces)) return decoder;
        destroy(decoder);
    }
    const std::string why = refusal(device, kind);
    if (!why.empty()) throw std::runtime_error(why);

    CUVIDDECODECREATEINFO info{};
    info.CodecType = kind.codec;
    info.ChromaFormat = kind.chroma;
    info.OutputFormat = surface_format(kind);
    info.bitDepthMinus8 = static_cast<unsigned long>(kind.depth - 8);
    info.DeinterlaceMode = cudaVideoDeinterlaceMode_Weave;
    info.ulCreationFlags = cudaVideoCreate_PreferCUVID;
    info.ulNumDecodeSurfaces = static_cast<unsigned long>(surfaces);
    info.ulNumOutputSurfaces = 2 * group;
    info.ulWidth = info.ulMaxWidth = static_cast<unsigned long>(kind.width);
    info.ulHeight = info.ulMaxHeight = static_cast<unsigned long>(kind.height);
    // The whole coded picture at its own size: cropping and scaling are the converter's.
    info.ulTargetWidth = static_cast<unsigned long>(even(kind.width));
    info.ulTargetHeight = static_cast<unsigned long>(even(kind.height));
    info.display_area.right = static_cast<short>(even(kind.width));
    info.display_area.bottom = static_cast<short>(even(kind.height));
    Decoder decoder{nullptr, device, surfaces, kind, kind.width, kind.height};
    CUresult status = driver_.create_decoder(&decoder.handle, &info);
    if (status != CUDA_SUCCESS) {
        // Idle decoders may hold the memory that is missing.
        std::list<Decoder> dropped;
        {
            const std::lock_guard lock(mutex_);
            idle_.remove_if([&](const Decoder& d) {
                if (d.device == device) dropped.push_back(d);
                return d.device == device;
            });
        }
        for (const Decoder& d : dropped) destroy(d);
        if (!dropped.empty()) status = driver_.create_decoder(&decoder.handle, &info);
    }
    if (status != CUDA_SUCCESS)
        throw std::runtime_error("cuvidCreateDecoder failed for " + std::to_string(kind.width) + "x" +
                                 std::to_string(kind.height) + ": " + error_text(driver_, status));
    return decoder;
}

bool Decoders::reconfigure(Decoder& decoder, const SurfaceKind& kind, int surfaces) {
    if (decoder.kind.codec != kind.codec || decoder.kind.chroma != kind.chroma || decoder.kind.depth != kind.depth ||
        decoder.widest < kind.width || decoder.highest < kind.height)
        return false;
    CUVIDRECONFIGUREDECODERINFO info{};
    info.ulWidth = static_cast<unsigned>(kind.width);
    info.ulHeight = static_cast<unsigned>(kind.height);
    info.ulTargetWidth = static_cast<unsigned>(even(kind.width));
    info.ulTargetHeight = static_cast<unsigned>(even(kind.height));
    info.ulNumDecodeSurfaces = static_cast<unsigned>(surfaces);
    info.display_area.right = static_cast<short>(even(kind.width));
    info.display_area.bottom = static_cast<short>(even(kind.height));
    if (driver_.reconfigure_decoder(decoder.handle, &info) != CUDA_SUCCESS) return false;  // the caller makes a new one
    decoder.kind = kind;
    decoder.surfaces = surfaces;
    return true;
}

void Decoders::give(const Decoder& decoder) {
    std::list<Decoder> dropped;
    {
        const std::lock_guard lock(mutex_);
        idle_.push_front(decoder);
        while (idle_.size() > kept_) dropped.splice(dropped.begin(), idle_, std::prev(idle_.end()));
    }
    for (const Decoder& d : dropped) {
        const Current current(driver_, context(d.device));
        destroy(d);
    }
}

void Decoders::destroy(const Decoder& decoder) { driver_.destroy_decoder(decoder.handle); }

// ---------------------------------------------------------------------------------------------- video

Video::Video(Decoders& decoders, int device, CUstream stream, cudaVideoCodec codec, std::string_view extradata,
             std::vector<std::int64_t> wanted, Sink sink)
    : decoders_(decoders), driver_(decoders.driver()), device_(device), context_(decoders.context(device)),
      stream_(stream), wanted_(std::move(wanted)), sink_(std::move(sink)),
      landed_(std::numeric_limits<std::int64_t>::min()) {
    std::sort(wanted_.begin(), wanted_.end());
    wanted_.erase(std::unique(wanted_.begin(), wanted_.end()), wanted_.end());
    shown_.assign(wanted_.size(), false);
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
    for (Held& held : held_) check(driver_.create_event(&held.passed, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC), "cuEventCreate");
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
    if (status != CUDA_SUCCESS) throw std::runtime_error(std::string(doing) + " failed: " + error_text(driver_, status));
}

std::int64_t Video::pts_of(CUvideotimestamp stamp) const { return stamp - stamp_origin + origin_; }

std::size_t Video::feed(std::span<const std::uint8_t> data, std::span<const std::int64_t> offsets,
                        std::span<const std::int64_t> pts, std::optional<std::int64_t> landed) {
    if (failed_) throw std::logic_error("this video has failed before; begin it anew");
    if (offsets.size() != pts.size() + 1 || (!offsets.empty() && (offsets.front() != 0 || offsets.back() != static_cast<std::int64_t>(data.size()))))
        throw std::invalid_argument("offsets must hold one more than the " + std::to_string(pts.size()) +
                                    " time stamps, from 0 to the size of the data");
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
        if (offsets[i] > offsets[i + 1]) throw std::invalid_argument("offsets must not decrease");
    const Current current(driver_, context_);
    failed_ = true;  // unless this call comes to its end
    if (landed) {
        if (started_) end_of_stream();
        landed_ = *landed;
    }
    if (!started_ && !pts.empty()) {
        origin_ = pts[0];
        started_ = true;
    }
    for (std::size_t i = 0; i < pts.size() && remaining_; ++i)
        parse(data.data() + offsets[i], static_cast<std::size_t>(offsets[i + 1] - offsets[i]), CUVID_PKT_TIMESTAMP,
              pts[i] - origin_ + stamp_origin);
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
    const int surfaces =
        std::max<int>(format.min_num_decode_surfaces, std::min(format.min_num_decode_surfaces + display_delay + group, most));
    const bool same = decoder_.handle && decoder_.kind == kind && decoder_.surfaces == surfaces;
    if (!same) {
        for (Held& held : held_) release(held);
        if (decoder_.handle && !decoders_.reconfigure(decoder_, kind, surfaces)) give_decoder_back();
        if (!decoder_.handle) decoder_ = decoders_.take(device_, kind, surfaces);
    }
    format_ = format;
    return surfaces;
}

void Video::show(const CUVIDPARSERDISPINFO& shown) {
    const std::int64_t pts = pts_of(shown.timestamp);
    const auto at = std::lower_bound(wanted_.begin(), wanted_.end(), pts);
    // Before the keyframe that decoding began at: it may lack what it refers to.
    if (at == wanted_.end() || *at != pts || pts < landed_) return;
    const auto index = static_cast<std::size_t>(at - wanted_.begin());
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
    CUVIDGETDECODESTATUS status{};
    // Not every codec has it: then damage shows only in the parser.
    if (driver_.decode_status(decoder_.handle, shown.picture_index, &status) == CUDA_SUCCESS &&
        (status.decodeStatus == cuvidDecodeStatus_Error || status.decodeStatus == cuvidDecodeStatus_Error_Concealed))
        throw Damaged("NVDEC reports an error in the frame", pts);

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
