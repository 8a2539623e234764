#include "cuda/decoders.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/context.hpp"

namespace fourd::cuda {
namespace {

const char* codec_name(cudaVideoCodec codec) {
    switch (codec) {
        case cudaVideoCodec_H264: return "H.264";
        case cudaVideoCodec_HEVC: return "HEVC";
        case cudaVideoCodec_VP8: return "VP8";
        case cudaVideoCodec_VP9: return "VP9";
        default: return "AV1";
    }
}

// Semi-planar 4:2:2 of 8 and of 16 bits. Numbers, for cudaVideoSurfaceFormat_NV16 and _P216 came with Video Codec
// SDK 13, and the headers that this is compiled against may be older. Drivers know them by number.
constexpr unsigned nv16 = 4, p216 = 5;

unsigned surface_format(const SurfaceKind& kind) {
    if (kind.chroma == cudaVideoChromaFormat_422) return kind.depth > 8 ? p216 : nv16;
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
    throw std::invalid_argument("codec '" + std::string(name) +
                                "' is not decoded by NVDEC here: h264, hevc, vp8, vp9, av1 are");
}

const char* chroma_name(cudaVideoChromaFormat chroma) {
    switch (chroma) {
        case cudaVideoChromaFormat_Monochrome: return "gray";
        case cudaVideoChromaFormat_420: return "420";
        case cudaVideoChromaFormat_422: return "422";
        default: return "444";
    }
}

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
        throw std::runtime_error("device " + std::to_string(device) +
                                 " cannot be used: " + error_text(driver_, status));
    contexts_.emplace_back(device, context);
    return context;
}

std::string Decoders::refusal(int device, const SurfaceKind& kind) {
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
        if ((decoder.kind == kind && decoder.surfaces == surfaces) || reconfigure(decoder, kind, surfaces))
            return decoder;
        destroy(decoder);
    }
    const std::string why = refusal(device, kind);
    if (!why.empty()) throw std::runtime_error(why);

    CUVIDDECODECREATEINFO info{};
    info.CodecType = kind.codec;
    info.ChromaFormat = kind.chroma;
    // Copied: to cast a number that an older header's enumeration does not hold would be undefined.
    const unsigned format = surface_format(kind);
    static_assert(sizeof format == sizeof info.OutputFormat);
    std::memcpy(&info.OutputFormat, &format, sizeof format);
    info.bitDepthMinus8 = static_cast<unsigned long>(kind.depth - 8);
    info.DeinterlaceMode = cudaVideoDeinterlaceMode_Weave;
    info.ulCreationFlags = cudaVideoCreate_PreferCUVID;
    info.ulNumDecodeSurfaces = static_cast<unsigned long>(surfaces);
    info.ulNumOutputSurfaces = mappable;
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

}  // namespace fourd::cuda
