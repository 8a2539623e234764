// Runs csrc/cuda/{decoders,nvdec}.cpp against a driver made up here, which keeps the rules of the real one and
// stops the program where they are broken. Usage: nvdec_fake SCENARIO, or nvdec_fake painted CHROMA DEPTH.
//
// A made-up packet is a Coded: a picture with its size and what is wrong with it. The made-up parser shows
// pictures in the order of their stamps, some packets late, as with B-frames. Its engine works off a queue of four.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cuda/nvdec.hpp"

using namespace fourd::cuda;

#define REQUIRE(condition)                                                             \
    do {                                                                               \
        if (!(condition)) {                                                            \
            std::fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #condition); \
            std::abort();                                                              \
        }                                                                              \
    } while (0)

namespace {

struct Coded {
    int width = 1920, height = 1080, depth = 8, number = 0;
    bool damaged = false, undecodable = false;
    bool lost = false;    // the parser makes nothing of it
    bool hidden = false;  // decoded and not shown
    bool fields = false;  // two fields, of which the first is damaged or not
    bool intra = false;
    int order = -1;        // picture order count; -1: as the stamp says
    bool painted = false;  // its surface holds the samples of `sample`, else nothing but its number
    cudaVideoChromaFormat chroma = cudaVideoChromaFormat_420;
};

// What picture `number` holds in plane 0, 1 or 2. tests/compile/test_video_cuda.py has the same formula.
unsigned sample(const Coded& coded, int plane, int y, int x) {
    return static_cast<unsigned>(coded.number * 31 + plane * 57 + y * 13 + x * 7) % (1u << coded.depth);
}

// Luma, then on an even row interleaved chroma.
std::unique_ptr<std::vector<std::uint8_t>> surface(const Coded& coded, unsigned pitch) {
    const int bytes = coded.depth > 8 ? 2 : 1, across = (coded.width + 1) & ~1, down = (coded.height + 1) & ~1;
    const int rows = coded.chroma == cudaVideoChromaFormat_420 ? down / 2 : down;
    REQUIRE(across * bytes <= static_cast<int>(pitch));
    auto memory = std::make_unique<std::vector<std::uint8_t>>(static_cast<std::size_t>(pitch) * (down + rows), 0xa5);
    const auto put = [&](int row, int column, unsigned value) {
        value <<= coded.depth > 8 ? 16 - coded.depth : 0;
        std::memcpy(memory->data() + static_cast<std::size_t>(pitch) * row + column * bytes, &value, bytes);
    };
    for (int y = 0; y < down; ++y)
        for (int x = 0; x < across; ++x) put(y, x, sample(coded, 0, y, x));
    for (int y = 0; y < rows; ++y)
        for (int x = 0; x < across; ++x) put(down + y, x, sample(coded, 1 + x % 2, y, x / 2));
    return memory;
}

struct FakeDecoder {
    int width, height, widest, highest;
    std::size_t surfaces, outputs;
    std::map<int, Coded> pictures;
    std::deque<int> queue;  // being decoded
    std::map<unsigned long long, std::unique_ptr<std::vector<std::uint8_t>>> mapped;
    std::mutex mutex;
};

struct FakeParser {
    CUVIDPARSERPARAMS params;
    int width = 0, height = 0, depth = 0, surfaces = 0, next = 0;
    cudaVideoChromaFormat chroma = cudaVideoChromaFormat_420;
    std::map<CUvideotimestamp, int> waiting;  // to be shown, by stamp
    bool broken = false;
};

struct World {
    std::mutex mutex;
    int created = 0, destroyed = 0, reconfigured = 0, unmapped = 0, mapped = 0, parsers = 0, events = 0, fed = 0;
    bool out_of_memory_while_idle = false, caps_8_bit_only = false, refuse_reconfigure = false;
    CUresult status_fails = CUDA_SUCCESS;
    cuvidDecodeStatus status_of_damage = cuvidDecodeStatus_Error_Concealed;
    std::atomic<int> in_progress = 0;                  // answers
    bool decodes_422 = false, outputs_422 = false;     // as chips since Blackwell do
    std::set<CUevent> recorded;                        // and not waited for
    std::map<unsigned long long, CUevent> read_until;  // mapped addresses, and what says that their reading is done
} world;

thread_local int pushed = 0;
thread_local std::vector<unsigned long long> unread;  // mapped since the last event

CUresult failed() { return CUDA_ERROR_UNKNOWN; }

CUresult error_name(CUresult, const char** name) { return *name = "CUDA_ERROR_MADE_UP", CUDA_SUCCESS; }
CUresult device_get(CUdevice* device, int number) { return *device = number, number < 2 ? CUDA_SUCCESS : failed(); }
CUresult retain(CUcontext* context, CUdevice device) {
    *context = reinterpret_cast<CUcontext>(static_cast<std::uintptr_t>(0x1000 + device));
    return CUDA_SUCCESS;
}
CUresult push(CUcontext) { return ++pushed, CUDA_SUCCESS; }
CUresult pop(CUcontext*) { return --pushed, CUDA_SUCCESS; }

CUresult create_event(CUevent* event, unsigned) {
    const std::lock_guard lock(world.mutex);
    *event = reinterpret_cast<CUevent>(new int(++world.events));
    return CUDA_SUCCESS;
}
CUresult destroy_event(CUevent event) {
    const std::lock_guard lock(world.mutex);
    --world.events;
    world.recorded.erase(event);
    delete reinterpret_cast<int*>(event);
    return CUDA_SUCCESS;
}
CUresult record_event(CUevent event, CUstream) {
    const std::lock_guard lock(world.mutex);
    world.recorded.insert(event);
    for (const auto address : unread) world.read_until[address] = event;
    unread.clear();
    return CUDA_SUCCESS;
}
CUresult wait_for_event(CUevent event) {
    const std::lock_guard lock(world.mutex);
    REQUIRE(world.recorded.erase(event));
    return CUDA_SUCCESS;
}

CUresult capabilities(CUVIDDECODECAPS* caps) {
    REQUIRE(pushed > 0);
    const bool is_422 = caps->eChromaFormat == cudaVideoChromaFormat_422;
    caps->bIsSupported = caps->eChromaFormat != cudaVideoChromaFormat_444 && (!is_422 || world.decodes_422) &&
                         !(world.caps_8_bit_only && caps->nBitDepthMinus8);
    caps->nOutputFormatMask = is_422 && world.outputs_422 ? 1 << (caps->nBitDepthMinus8 ? 5 : 4) : 3;
    caps->nMaxWidth = caps->nMaxHeight = 4096;
    caps->nMinWidth = 48, caps->nMinHeight = 16;
    caps->nMaxMBCount = 65536;
    return CUDA_SUCCESS;
}

CUresult create_decoder(CUvideodecoder* handle, CUVIDDECODECREATEINFO* info) {
    REQUIRE(pushed > 0);
    REQUIRE(info->ulTargetWidth % 2 == 0 && info->ulTargetHeight % 2 == 0);
    // No scaling: the display area has the size of the target.
    REQUIRE(info->display_area.right == static_cast<int>(info->ulTargetWidth));
    REQUIRE(info->display_area.bottom == static_cast<int>(info->ulTargetHeight));
    unsigned format;
    std::memcpy(&format, &info->OutputFormat, sizeof format);
    // NV12, P016, NV16, P216
    REQUIRE(format == (info->ChromaFormat == cudaVideoChromaFormat_422 ? 4u : 0u) + (info->bitDepthMinus8 > 0));
    const std::lock_guard lock(world.mutex);
    if (world.out_of_memory_while_idle && world.created > world.destroyed) return failed();
    ++world.created;
    auto* d = new FakeDecoder;
    d->width = d->widest = static_cast<int>(info->ulWidth), d->height = d->highest = static_cast<int>(info->ulHeight);
    d->surfaces = info->ulNumDecodeSurfaces, d->outputs = info->ulNumOutputSurfaces;
    *handle = d;
    return CUDA_SUCCESS;
}
CUresult destroy_decoder(CUvideodecoder handle) {
    REQUIRE(pushed > 0);
    auto* d = static_cast<FakeDecoder*>(handle);
    REQUIRE(d->mapped.empty());
    const std::lock_guard lock(world.mutex);
    ++world.destroyed;
    delete d;
    return CUDA_SUCCESS;
}
CUresult reconfigure(CUvideodecoder handle, CUVIDRECONFIGUREDECODERINFO* info) {
    auto* d = static_cast<FakeDecoder*>(handle);
    REQUIRE(static_cast<int>(info->ulWidth) <= d->widest && static_cast<int>(info->ulHeight) <= d->highest);
    REQUIRE(d->mapped.empty());
    if (world.refuse_reconfigure) return failed();
    d->width = static_cast<int>(info->ulWidth), d->height = static_cast<int>(info->ulHeight);
    d->surfaces = info->ulNumDecodeSurfaces;
    d->pictures.clear(), d->queue.clear();
    const std::lock_guard lock(world.mutex);
    ++world.reconfigured;
    return CUDA_SUCCESS;
}

thread_local Coded current;

CUresult decode_picture(CUvideodecoder handle, CUVIDPICPARAMS* picture) {
    auto* d = static_cast<FakeDecoder*>(handle);
    REQUIRE(picture->CurrPicIdx < static_cast<int>(d->surfaces));
    REQUIRE(current.width == d->width && current.height == d->height);
    if (current.undecodable) return failed();
    d->pictures[picture->CurrPicIdx] = current;
    d->queue.push_back(picture->CurrPicIdx);
    if (d->queue.size() > 4) d->queue.pop_front();
    return CUDA_SUCCESS;
}
CUresult decode_status(CUvideodecoder handle, int index, CUVIDGETDECODESTATUS* status) {
    if (world.status_fails != CUDA_SUCCESS) return world.status_fails;
    auto* d = static_cast<FakeDecoder*>(handle);
    const bool damaged = d->pictures.at(index).damaged;
    status->decodeStatus = damaged ? world.status_of_damage : cuvidDecodeStatus_Success;
    if (std::find(d->queue.begin(), d->queue.end(), index) != d->queue.end()) {
        status->decodeStatus = cuvidDecodeStatus_InProgress;
        d->queue.pop_front();
        ++world.in_progress;
    }
    return CUDA_SUCCESS;
}
CUresult map_frame(CUvideodecoder handle, int index, unsigned long long* address, unsigned* pitch,
                   CUVIDPROCPARAMS* how) {
    REQUIRE(pushed > 0);
    REQUIRE(how->output_stream == reinterpret_cast<CUstream>(0x77));
    auto* d = static_cast<FakeDecoder*>(handle);
    REQUIRE(d->mapped.size() < d->outputs);
    const Coded& coded = d->pictures.at(index);
    while (std::find(d->queue.begin(), d->queue.end(), index) != d->queue.end()) d->queue.pop_front();
    *pitch = coded.painted ? 256 : 4096;
    auto memory = coded.painted ? surface(coded, *pitch) : std::make_unique<std::vector<std::uint8_t>>(64);
    if (!coded.painted) std::memcpy(memory->data(), &coded.number, sizeof(int));
    *address = reinterpret_cast<unsigned long long>(memory->data());
    d->mapped[*address] = std::move(memory);
    unread.push_back(*address);
    const std::lock_guard lock(world.mutex);
    ++world.mapped;
    return CUDA_SUCCESS;
}
CUresult unmap_frame(CUvideodecoder handle, unsigned long long address) {
    auto* d = static_cast<FakeDecoder*>(handle);
    REQUIRE(d->mapped.erase(address));
    const std::lock_guard lock(world.mutex);
    REQUIRE(world.read_until.contains(address));
    REQUIRE(!world.recorded.contains(world.read_until[address]));
    world.read_until.erase(address);
    ++world.unmapped;
    return CUDA_SUCCESS;
}

CUresult create_parser(CUvideoparser* handle, CUVIDPARSERPARAMS* params) {
    const std::lock_guard lock(world.mutex);
    ++world.parsers;
    *handle = new FakeParser{*params};
    return CUDA_SUCCESS;
}
CUresult destroy_parser(CUvideoparser handle) {
    const std::lock_guard lock(world.mutex);
    --world.parsers;
    delete static_cast<FakeParser*>(handle);
    return CUDA_SUCCESS;
}

bool show_first(FakeParser& p) {
    const auto first = p.waiting.begin();
    CUVIDPARSERDISPINFO shown{};
    shown.picture_index = first->second, shown.progressive_frame = 1, shown.timestamp = first->first;
    p.waiting.erase(first);
    return p.params.pfnDisplayPicture(p.params.pUserData, &shown) > 0;
}

CUresult parse(CUvideoparser handle, CUVIDSOURCEDATAPACKET* packet) {
    REQUIRE(pushed > 0);
    auto& p = *static_cast<FakeParser*>(handle);
    if (packet->flags & CUVID_PKT_ENDOFSTREAM) {
        while (!p.waiting.empty())
            if (!show_first(p)) return failed();
        p.params.pfnDisplayPicture(p.params.pUserData, nullptr);
        return CUDA_SUCCESS;
    }
    REQUIRE(packet->flags & CUVID_PKT_TIMESTAMP);
    REQUIRE(packet->timestamp > 0);
    if (packet->payload_size != sizeof(Coded)) return failed();
    {
        const std::lock_guard lock(world.mutex);
        ++world.fed;
    }
    std::memcpy(&current, packet->payload, sizeof(Coded));
    const Coded coded = current;
    if (coded.lost) return CUDA_SUCCESS;
    if (coded.width != p.width || coded.height != p.height || coded.depth != p.depth || coded.chroma != p.chroma) {
        while (!p.waiting.empty())
            if (!show_first(p)) return failed();
        p.width = coded.width, p.height = coded.height, p.depth = coded.depth, p.chroma = coded.chroma;
        CUVIDEOFORMAT format{};
        format.codec = cudaVideoCodec_H264;
        format.chroma_format = coded.chroma;
        format.bit_depth_luma_minus8 = static_cast<unsigned char>(coded.depth - 8);
        format.min_num_decode_surfaces = 5;
        format.coded_width = static_cast<unsigned>(coded.width),
        format.coded_height = static_cast<unsigned>(coded.height);
        format.display_area = {0, 0, coded.width - 2, coded.height - 8};
        p.surfaces = p.params.pfnSequenceCallback(p.params.pUserData, &format);
        if (p.surfaces <= 0) return failed();
    }
    CUVIDPICPARAMS picture{};
    std::set<int> busy;
    for (const auto& [stamp, index] : p.waiting) busy.insert(index);
    while (busy.contains(p.next % p.surfaces)) ++p.next;
    picture.CurrPicIdx = p.next++ % p.surfaces;
    picture.intra_pic_flag = coded.intra;
    const auto order = static_cast<int>(packet->timestamp - (std::int64_t{1} << 40));
    for (int& count : picture.CodecSpecific.h264.CurrFieldOrderCnt) count = coded.order < 0 ? order : coded.order;
    current = coded;
    if (p.params.pfnDecodePicture(p.params.pUserData, &picture) <= 0) return failed();
    if (coded.fields) {
        current.damaged = false;
        picture.second_field = 1;
        if (p.params.pfnDecodePicture(p.params.pUserData, &picture) <= 0) return failed();
    }
    if (coded.hidden) return CUDA_SUCCESS;
    p.waiting[packet->timestamp] = picture.CurrPicIdx;
    const auto delay = 3 + p.params.ulMaxDisplayDelay;
    while (p.waiting.size() > delay)
        if (!show_first(p)) return failed();
    return CUDA_SUCCESS;
}

Driver made_up() {
    return {[](unsigned) { return CUDA_SUCCESS; },
            error_name,
            device_get,
            retain,
            push,
            pop,
            create_event,
            destroy_event,
            record_event,
            wait_for_event,
            capabilities,
            create_decoder,
            destroy_decoder,
            reconfigure,
            decode_picture,
            decode_status,
            map_frame,
            unmap_frame,
            create_parser,
            parse,
            destroy_parser};
}

const Driver fake = made_up();
const auto stream = reinterpret_cast<CUstream>(0x77);

struct Packet {
    Coded coded;
    std::int64_t pts;
};

// `count` frames 10 stamps apart from `first` on, in the decoding order of I B B P: 0 3 1 2 6 4 5 ...
std::vector<Packet> clip(int count, std::int64_t first = 0, Coded like = {}) {
    std::vector<Packet> packets;
    const auto add = [&](int n) {
        if (n >= count) return;
        like.number = n;
        packets.push_back({like, first + 10 * n});
    };
    add(0);
    for (int n = 3; n < count + 3; n += 3) add(n), add(n - 2), add(n - 1);
    return packets;
}

struct Got {
    std::map<std::int64_t, int> numbers;  // by stamp
    std::vector<std::size_t> groups;
    int height = 0, rows = 0, depth = 0, shift = 0;
};

Video::Sink into(Got& got) {
    return [&got](const Mapped& mapped) {
        got.groups.push_back(mapped.frames.size());
        got.height = mapped.height, got.rows = mapped.rows, got.depth = mapped.depth, got.shift = mapped.shift;
        REQUIRE(mapped.interleaved && std::string(mapped.chroma) == "420");
        for (std::size_t i = 0; i < mapped.frames.size(); ++i) {
            int number;
            std::memcpy(&number, mapped.frames[i].planes[0].data, sizeof number);
            REQUIRE(mapped.frames[i].planes[1].data - mapped.frames[i].planes[0].data == 4096L * mapped.height);
            REQUIRE(got.numbers.emplace(mapped.pts[i], number).second);
        }
    };
}

std::size_t feed(Video& video, const std::vector<Packet>& packets, std::optional<std::int64_t> landed = {},
                 std::size_t batch = 7) {
    std::size_t left = 1;
    for (std::size_t begin = 0; begin < packets.size() && left; begin += batch) {
        std::vector<std::uint8_t> data;
        std::vector<std::int64_t> offsets{0}, pts;
        for (std::size_t i = begin; i < std::min(begin + batch, packets.size()); ++i) {
            const auto* bytes = reinterpret_cast<const std::uint8_t*>(&packets[i].coded);
            data.insert(data.end(), bytes, bytes + sizeof(Coded));
            offsets.push_back(static_cast<std::int64_t>(data.size()));
            pts.push_back(packets[i].pts);
        }
        left = video.feed(data, offsets, pts, landed);
        landed.reset();
    }
    return left;
}

std::string message(const auto& body) {
    try {
        body();
    } catch (const std::exception& error) {
        return error.what();
    }
    return "nothing was thrown";
}

void read(Decoders& decoders, const std::vector<Packet>& packets, const std::vector<std::int64_t>& wanted) {
    Got got;
    Video video(decoders, 0, stream, cudaVideoCodec_H264, "", wanted, into(got));
    feed(video, packets);
    REQUIRE(video.finish().empty());
    REQUIRE(got.numbers.size() == wanted.size());
}

void all_given_back() {
    REQUIRE(world.mapped == world.unmapped);
    REQUIRE(world.parsers == 0 && world.events == 0 && pushed == 0);
}

// ------------------------------------------------------------------------------------------ scenarios

void chosen_frames() {
    {
        Decoders decoders(fake);
        Got got;
        // Not sorted, one twice, negative stamps.
        Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {220, -50, 100, 100, 230, 240, 90}, into(got));
        feed(video, clip(40, -50));
        REQUIRE(world.fed < 40);  // the rest is not read
        REQUIRE(video.finish().empty());
        const std::map<std::int64_t, int> expected{{-50, 0}, {90, 14}, {100, 15}, {220, 27}, {230, 28}, {240, 29}};
        REQUIRE(got.numbers == expected);
        REQUIRE(world.mapped == 6);  // and no other
        REQUIRE((got.groups == std::vector<std::size_t>{4, 2}));
        REQUIRE(got.height == 1080 && got.rows == 1072 && got.depth == 8 && got.shift == 0);
    }
    all_given_back();
    REQUIRE(world.created == 1 && world.destroyed == 1);
}

void every_frame() {
    Decoders decoders(fake);
    std::vector<std::int64_t> wanted;
    for (int i = 0; i < 100; ++i) wanted.push_back(10 * i);
    read(decoders, clip(100), wanted);
    REQUIRE(world.mapped == 100);
    all_given_back();
}

void missing_frames() {
    Decoders decoders(fake);
    Got got;
    Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {10, 15, 20, 900}, into(got));
    REQUIRE(feed(video, clip(20)) == 2);
    REQUIRE((video.finish() == std::vector<std::int64_t>{15, 900}));
    REQUIRE(got.numbers.size() == 2);
}

void seek() {
    Decoders decoders(fake);
    Got got;
    Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {20, 980, 1020}, into(got));
    feed(video, clip(5), 0);
    // Frame 980 comes before the keyframe at 1000 that was sought: it is not the one wanted.
    std::vector<Packet> after = clip(30, 1000);
    after.insert(after.begin() + 1, Packet{{.number = 77}, 980});
    feed(video, after, 1000);
    REQUIRE((video.finish() == std::vector<std::int64_t>{980}));
    REQUIRE((got.numbers == std::map<std::int64_t, int>{{20, 2}, {1020, 2}}));
    REQUIRE(world.created == 1);
}

void shown_twice() {
    Decoders decoders(fake);
    Got got;  // refuses what it has
    Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {1020, 9999}, into(got));
    feed(video, clip(10, 1000));
    feed(video, clip(10, 1000), 1000);
    REQUIRE((video.finish() == std::vector<std::int64_t>{9999}));
    REQUIRE(world.mapped == 1);
}

void size_changes() {
    Decoders decoders(fake);
    for (const bool refuse : {false, true}) {
        world.refuse_reconfigure = refuse;
        const int created = world.created, reconfigured = world.reconfigured;
        Got got;
        Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {0, 90, 1000, 1090, 2000, 2090}, into(got));
        feed(video, clip(10));
        feed(video, clip(10, 1000, {.width = 640, .height = 480}));    // smaller: the same decoder
        feed(video, clip(10, 2000, {.width = 3840, .height = 2160}));  // larger: another one
        REQUIRE(video.finish().empty());
        REQUIRE(got.height == 2160 && got.numbers.size() == 6);
        REQUIRE(world.reconfigured - reconfigured == (refuse ? 0 : 1));
        REQUIRE(world.created - created == 2);
    }
}

void decoders_are_kept() {
    {
        Decoders decoders(fake, 2);
        for (int i = 0; i < 5; ++i) read(decoders, clip(10), {30, 50});
        REQUIRE(world.created == 1);
        read(decoders, clip(10, 0, {.width = 640, .height = 480}), {30});  // fits into the one that is there
        REQUIRE(world.created == 1 && world.reconfigured == 1);
        read(decoders, clip(10, 0, {.depth = 10}), {30});  // another depth: a second one
        read(decoders, clip(10, 0, {.width = 2000, .height = 1100}), {30});
        REQUIRE(world.created == 3 && world.destroyed == 1);  // two are kept
        read(decoders, clip(10, 0, {.depth = 10}), {30});
        REQUIRE(world.created == 3);
        world.out_of_memory_while_idle = true;  // those kept give way
        read(decoders, clip(10, 0, {.width = 4000, .height = 2000}), {30});
        REQUIRE(world.created == 4 && world.destroyed == 3);
    }
    REQUIRE(world.destroyed == 4);
    all_given_back();
}

void ten_bits() {
    Decoders decoders(fake);
    Got got;
    {
        Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {30}, into(got));
        feed(video, clip(10, 0, {.depth = 10}));
        video.finish();
        REQUIRE(got.depth == 10 && got.shift == 6);
    }
    Decoders others(fake);
    world.caps_8_bit_only = true;
    Video video(others, 0, stream, cudaVideoCodec_H264, "", {30}, into(got));
    const std::string said = message([&] { feed(video, clip(10, 0, {.depth = 10})); });
    REQUIRE(said == "this GPU's NVDEC does not decode H.264 420 with 10 bits");
    REQUIRE(message([&] { video.finish(); }).starts_with("this video has failed"));
}

// Frame 5 of a painted clip, for Python to convert: a line that describes the surfaces, then luma and chroma as they
// are read there, rows without padding.
void painted(cudaVideoChromaFormat chroma, int depth) {
    world.decodes_422 = world.outputs_422 = true;
    {
        Decoders decoders(fake);
        Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {50}, [&](const Mapped& m) {
            std::printf("%s %d %d %d %d %d %d %d %d %d\n", m.chroma, m.interleaved, m.depth, m.shift, m.height, m.width,
                        m.top, m.left, m.rows, m.columns);
            const int bytes = m.depth > 8 ? 2 : 1;
            const int rows[] = {m.height, std::string(m.chroma) == "420" ? m.height / 2 : m.height};
            for (int plane = 0; plane < 2; ++plane)
                for (int y = 0; y < rows[plane]; ++y) {
                    const auto& from = m.frames[0].planes[plane];
                    std::fwrite(from.data + from.stride * y, 1, static_cast<std::size_t>(m.width * bytes), stdout);
                }
        });
        const Coded like{.width = 70, .height = 37, .depth = depth, .painted = true, .chroma = chroma};
        feed(video, clip(10, 0, like));
        REQUIRE(video.finish().empty());
    }
    all_given_back();
}

void refusals() {
    Decoders decoders(fake);
    const auto refusal = [&](int width, int height, cudaVideoChromaFormat chroma = cudaVideoChromaFormat_420) {
        return decoders.refusal(0, {cudaVideoCodec_HEVC, chroma, 8, width, height});
    };
    REQUIRE(refusal(1920, 1080).empty());
    REQUIRE(refusal(32, 32).find("smaller than NVDEC decodes (48x16)") != std::string::npos);
    REQUIRE(refusal(8000, 64).find("larger than this GPU's NVDEC decodes (4096x4096)") != std::string::npos);
    REQUIRE(refusal(64, 64, cudaVideoChromaFormat_444).find("does not decode HEVC 444") != std::string::npos);
    REQUIRE(refusal(64, 64, cudaVideoChromaFormat_422) == "this GPU's NVDEC does not decode HEVC 422 with 8 bits");
    world.decodes_422 = true;
    REQUIRE(refusal(64, 64, cudaVideoChromaFormat_422) ==
            "this GPU's NVDEC has no output format for HEVC 422 with 8 bits");
    world.outputs_422 = true;
    REQUIRE(refusal(64, 64, cudaVideoChromaFormat_422).empty());
    REQUIRE(message([&] { decoders.refusal(7, {cudaVideoCodec_HEVC, cudaVideoChromaFormat_420, 8, 64, 64}); }) ==
            "device 7 cannot be used: CUDA_ERROR_MADE_UP");
    REQUIRE(pushed == 0);
}

// What is said of the frames wanted, and whether it took until the end of the data.
std::string judged(Decoders& decoders,
                   const std::vector<std::pair<std::vector<Packet>, std::optional<std::int64_t>>>& runs,
                   const std::vector<std::int64_t>& wanted) {
    Got got;
    Video video(decoders, 0, stream, cudaVideoCodec_H264, "", wanted, into(got));
    std::string when;
    try {
        for (const auto& [packets, landed] : runs) feed(video, packets, landed);
        when = " at the end";
        REQUIRE(video.finish().empty());
    } catch (const Damaged& error) {
        return std::to_string(error.pts) + ": " + error.what() + when;
    }
    REQUIRE(got.numbers.size() == wanted.size());
    return "sound";
}

std::string judged(Decoders& decoders, const std::vector<Packet>& packets, const std::vector<std::int64_t>& wanted) {
    return judged(decoders, {{packets, std::nullopt}}, wanted);
}

std::vector<Packet> with_damage(int number, std::vector<Packet> packets) {
    for (Packet& p : packets) p.coded.damaged |= p.coded.number == number;
    return packets;
}

const std::string reported = "NVDEC reports an error in the frame or in one that it may refer to";

void damage() {
    Decoders decoders(fake);
    // The status is not known: the driver does not say that the data are damaged.
    world.status_of_damage = cuvidDecodeStatus_Invalid;
    for (const int where : {0, 7, 20}) REQUIRE(judged(decoders, with_damage(where, clip(30)), {10 * where}) == "sound");
    for (const auto status : {cuvidDecodeStatus_Error, cuvidDecodeStatus_Error_Concealed}) {
        world.status_of_damage = status;
        for (const int where : {0, 7, 20}) {
            const auto packets = with_damage(where, clip(30));
            REQUIRE(judged(decoders, packets, {10 * where}) == std::to_string(10 * where) + ": " + reported);
            if (where) REQUIRE(judged(decoders, packets, {0, 10, 20, 30, 40, 50}) == "sound");
        }
    }
    REQUIRE(judged(decoders, with_damage(7, clip(10)), {70}) == "70: " + reported + " at the end");
    all_given_back();
    auto packets = clip(30);
    packets[9].coded.undecodable = true;
    Got got;
    {
        Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {200}, into(got));
        REQUIRE(message([&] { feed(video, packets); }) == "cuvidDecodePicture failed: CUDA_ERROR_MADE_UP");
    }
    {
        Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {200}, into(got));
        const std::vector<std::uint8_t> junk(5);
        const std::vector<std::int64_t> offsets{0, 5}, pts{70};
        try {
            video.feed(junk, offsets, pts, {});
            REQUIRE(!"reached");
        } catch (const Damaged& error) {
            REQUIRE(error.pts == 70);
        }
    }
    all_given_back();
}

// Frames are wanted that may refer to a damaged one, which is shown after them or never, or long before.
void damaged_references() {
    Decoders decoders(fake);
    const auto around = with_damage(6, clip(40));  // decoded: 0 3 1 2 6 4 5 9
    REQUIRE(judged(decoders, around, {30}) == "sound");
    REQUIRE(judged(decoders, around, {0, 20}) == "sound");
    REQUIRE(judged(decoders, around, {40}) == "40: " + reported);
    REQUIRE(judged(decoders, around, {10, 50}) == "50: " + reported);
    // The wanted ones were shown before the damaged one: the end of the data comes between.
    REQUIRE(judged(decoders, with_damage(6, clip(7)), {40, 50}) == "40: " + reported + " at the end");
    REQUIRE(judged(decoders, around, {380}) == "380: " + reported + " at the end");  // its surface was used again
    REQUIRE(world.in_progress == 0);  // what is mapped is decoded, and what was before it
    auto hidden = around;
    hidden[4].coded.hidden = true;
    REQUIRE(judged(decoders, hidden, {40}) == "40: " + reported);
    REQUIRE(judged(decoders, hidden, {380}) == "380: " + reported + " at the end");

    auto fields = around;
    for (Packet& p : fields) p.coded.fields = true;
    REQUIRE(judged(decoders, fields, {40}) == "40: " + reported);
    REQUIRE(judged(decoders, fields, {30}) == "sound");
    REQUIRE(world.in_progress > 0);  // the second replaces what is known of the first
    all_given_back();
}

void damage_that_matters_not() {
    Decoders decoders(fake);
    // In another run, after its last wanted frame.
    REQUIRE(judged(decoders, {{with_damage(6, clip(9)), 0}, {clip(40, 1000), 1000}}, {20, 1380}) == "sound");
    REQUIRE(judged(decoders, {{clip(9), 0}, {with_damage(6, clip(40, 1000)), 1000}}, {20, 1380}) ==
            "1380: " + reported + " at the end");
    // Before the keyframe that was sought; shown, or not.
    for (const bool hidden : {false, true}) {
        std::vector<Packet> after = clip(40, 1000);
        const Coded leading{.number = 77, .damaged = true, .hidden = hidden};
        after.insert(after.begin() + 1, {Packet{leading, 980}, Packet{leading, 970}, Packet{leading, 990}});
        REQUIRE(judged(decoders, {{clip(9), 0}, {after, 1000}}, {20, 1000, 1010, 1380}) == "sound");
        // Without the seek they are as good as any.
        REQUIRE(judged(decoders, after, {1380}) == "1380: " + reported + " at the end");
    }
    // A keyframe that the count begins anew at, right after the one sought.
    std::vector<Packet> again = with_damage(6, clip(20, 1010));
    again.insert(again.begin(), Packet{{.number = 88, .intra = true, .order = 5000}, 1000});
    for (std::size_t i = 1; i < again.size(); ++i) again[i].coded.order = 10 * again[i].coded.number;
    again[1].coded.intra = true;
    REQUIRE(judged(decoders, {{again, 1000}}, {1000}) == "sound");
    REQUIRE(judged(decoders, {{again, 1000}}, {1050}) == "1050: " + reported);
    all_given_back();
}

void lost_pictures() {
    Decoders decoders(fake);
    auto packets = clip(40);
    packets[4].coded.lost = true;  // number 6
    REQUIRE(judged(decoders, packets, {0, 20, 30}) == "sound");
    REQUIRE(judged(decoders, packets, {40}) == "40: NVDEC found 5 pictures in 6 packets up to the frame");
    REQUIRE(judged(decoders, packets, {380}) ==
            "380: NVDEC found 39 pictures in 40 packets up to the frame at the end");
    std::vector<Packet> after = clip(40, 1000);
    after.insert(after.begin() + 1, Packet{{.number = 77, .lost = true}, 980});
    REQUIRE(judged(decoders, {{packets, 0}, {after, 1000}}, {20, 1380}) == "sound");
    all_given_back();
}

void status_is_not_told() {
    Decoders decoders(fake);
    world.status_fails = static_cast<CUresult>(801);  // not supported
    REQUIRE(judged(decoders, with_damage(6, clip(40)), {50}) == "sound");
    world.status_fails = failed();
    Got got;
    Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {50}, into(got));
    REQUIRE(message([&] { feed(video, clip(40)); }) == "cuvidGetDecodeStatus failed: CUDA_ERROR_MADE_UP");
    Video other(decoders, 0, stream, cudaVideoCodec_VP9, "", {50}, into(got));
    feed(other, clip(40));
    REQUIRE(other.finish().empty());
}

void sink_fails() {
    Decoders decoders(fake);
    {
        Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {0, 10, 20, 30, 40},
                    [](const Mapped&) { throw std::runtime_error("no memory"); });
        REQUIRE(message([&] { feed(video, clip(30)); }) == "no memory");
    }
    all_given_back();
    REQUIRE(world.created == world.destroyed);  // an interrupted decoder is not kept
}

void wrong_batches() {
    Decoders decoders(fake);
    Got got;
    Video video(decoders, 0, stream, cudaVideoCodec_H264, "", {0}, into(got));
    const std::vector<std::uint8_t> data(10);
    for (const std::vector<std::int64_t>& offsets :
         {std::vector<std::int64_t>{0, 10}, {0, 5, 11}, {0, 12, 10}, {1, 5, 10}, {}}) {
        const std::vector<std::int64_t> pts{1, 2};
        REQUIRE(message([&] { video.feed(data, offsets, pts, {}); }).starts_with("offsets must"));
    }
    REQUIRE(world.fed == 0);
}

void several_at_once() {
    {
        Decoders decoders(fake);
        std::vector<std::thread> threads;
        for (int t = 0; t < 4; ++t)
            threads.emplace_back([&decoders, t] {
                for (int i = 0; i < 25; ++i) {
                    const Coded like{.width = 640 + 64 * ((t + i) % 3)};
                    read(decoders, clip(20, t, like), {t, 50 + t, 60 + t, 190 + t});
                }
                REQUIRE(pushed == 0);
            });
        for (std::thread& thread : threads) thread.join();
        REQUIRE(world.created < 50);
    }
    all_given_back();
    REQUIRE(world.created == world.destroyed);
}

}  // namespace

int main(int, char** arguments) {
    const std::map<std::string, void (*)()> scenarios{{"chosen_frames", chosen_frames},
                                                      {"every_frame", every_frame},
                                                      {"missing_frames", missing_frames},
                                                      {"seek", seek},
                                                      {"shown_twice", shown_twice},
                                                      {"size_changes", size_changes},
                                                      {"decoders_are_kept", decoders_are_kept},
                                                      {"ten_bits", ten_bits},
                                                      {"refusals", refusals},
                                                      {"damage", damage},
                                                      {"damaged_references", damaged_references},
                                                      {"damage_that_matters_not", damage_that_matters_not},
                                                      {"lost_pictures", lost_pictures},
                                                      {"status_is_not_told", status_is_not_told},
                                                      {"sink_fails", sink_fails},
                                                      {"wrong_batches", wrong_batches},
                                                      {"several_at_once", several_at_once}};
    if (arguments[1] && arguments[2] && arguments[3] && std::string(arguments[1]) == "painted") {
        painted(arguments[2] == std::string("422") ? cudaVideoChromaFormat_422 : cudaVideoChromaFormat_420,
                std::atoi(arguments[3]));
        return 0;
    }
    if (!arguments[1]) {
        for (const auto& [name, run] : scenarios) std::puts(name.c_str());
        return 0;
    }
    scenarios.at(arguments[1])();
}
