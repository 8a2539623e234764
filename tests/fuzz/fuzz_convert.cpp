// Feeds the converter of csrc/ with arguments and pictures drawn from bytes. Built with AddressSanitizer and
// UndefinedBehaviorSanitizer, so that any read or write past a plane, a row or the result ends the run; beside
// that, every set of inner loops, any number of threads and the CUDA passes run on the host must give the same
// bytes.
//
//   fuzz_convert SECONDS [SEED]     random bytes, the same for the same seed
//   fuzz_convert --one FILE         one input, as written by a failing run
//
// Or as a libFuzzer target:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -DFOURD_LIBFUZZER -Icsrc
//       tests/fuzz/fuzz_convert.cpp and the sources that tests/fuzz/native.py names
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "cuda/plan.hpp"
#include "kernels.hpp"

namespace {

using namespace fourd;

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "convert fuzzer: %s\n", what.c_str());
    std::abort();
}

// Values drawn from the input; zeros once it is used up.
class Draw {
public:
    Draw(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    std::uint32_t byte() { return at_ < size_ ? data_[at_++] : 0; }
    std::uint32_t below(std::uint32_t n) { return (byte() << 8 | byte()) % n; }
    int side() {  // mostly small, some around the widths that the loops work in, a few large
        switch (byte() % 8) {
            case 0: return 1 + static_cast<int>(below(4));
            case 1: return 16 * (1 + static_cast<int>(below(5))) + static_cast<int>(below(3)) - 1;
            case 2: return 1 + static_cast<int>(below(700));
            default: return 1 + static_cast<int>(below(90));
        }
    }
    template <typename T, std::size_t n>
    T of(const T (&values)[n]) {
        return values[below(n)];
    }

private:
    const std::uint8_t* data_;
    std::size_t size_, at_ = 0;
};

struct Case {
    Arguments arguments;
    int height, width, frames, padding;
    std::uint32_t fill, seed;
};

Case draw_case(Draw draw) {
    static const char* const chromas[] = {"420", "420", "422", "444", "gray", "rgb"};
    static const char* const matrices[] = {"bt601", "bt709", "bt2020"};
    static const char* const sitings[] = {"left", "center", "topleft"};
    static const char* const dtypes[] = {"float32", "float16", "bfloat16"};
    Case c;
    Arguments& a = c.arguments;
    c.height = draw.side(), c.width = draw.side();
    c.frames = 1 + static_cast<int>(draw.below(4));
    a.height = draw.side(), a.width = draw.side();
    a.chroma = draw.of(chromas);
    a.depth = draw.of({8, 8, 10, 12});
    if (a.chroma == "rgb") a.depth = 8;
    a.shift = a.depth == 8 ? 0 : draw.below(static_cast<std::uint32_t>(17 - a.depth));
    a.interleaved = draw.byte() % 2 && a.chroma[0] == '4';
    a.matrix = draw.of(matrices);
    a.full_range = draw.byte() % 2;
    a.siting = draw.of(sitings);
    a.resample = draw.byte() % 2 ? "lanczos" : "bicubic";
    a.rotation = draw.of({0, 0, 90, 180, 270});
    a.mirrored = draw.byte() % 2;
    if (draw.byte() % 3 == 0) {
        const auto top = draw.below(c.height), left = draw.below(c.width);
        a.crop = {top, left, 1 + draw.below(c.height - top), 1 + draw.below(c.width - left)};
    }
    if (draw.byte() % 2) {
        a.out = "patches";
        a.patch = draw.of({1, 2, 7, 14, 16}), a.merge = draw.of({1, 2, 3}), a.temporal = draw.of({1, 2, 3});
        const std::int64_t factor = a.patch * a.merge;
        a.height = (a.height + factor - 1) / factor * factor, a.width = (a.width + factor - 1) / factor * factor;
        a.dtype = draw.of(dtypes);
    } else if (draw.byte() % 4 == 0) {  // the picture's own size: no resampling
        const bool turned = a.rotation == 90 || a.rotation == 270;
        const std::int64_t rows = a.crop ? (*a.crop)[2] : c.height, columns = a.crop ? (*a.crop)[3] : c.width;
        a.height = turned ? columns : rows, a.width = turned ? rows : columns;
    }
    a.threads = 1 + draw.below(4);
    c.padding = draw.byte() % 2 ? static_cast<int>(draw.below(40)) : 0;
    c.fill = draw.byte() % 4;
    c.seed = draw.below(65536);
    // One argument in a few is spoilt: `checked` must refuse it or make sense of it.
    switch (draw.byte() % 32) {
        case 0: a.height = draw.of({-1, 0, 1 << 16, (1 << 16) + 1}); break;
        case 1: a.crop = {draw.below(3) - 1, 0, draw.below(800), draw.below(800)}; break;
        case 2: a.shift = static_cast<std::int64_t>(draw.below(20)) - 2; break;
        case 3: a.rotation = draw.below(400); break;
        case 4: a.patch = draw.below(300), a.merge = draw.below(300), a.temporal = draw.below(300); break;
        case 5: a.threads = static_cast<std::int64_t>(draw.below(1200)) - 2; break;
        case 6: a.std[draw.below(3)] = draw.of({0.0, -1.0, 1e-9, 1e9}); break;
        default: break;
    }
    return c;
}

std::string text(const Case& c) {
    const Arguments& a = c.arguments;
    const auto number = [](std::int64_t value) { return std::to_string(value) + " "; };
    std::string crop;
    if (a.crop)
        for (const std::int64_t value : *a.crop) crop += number(value);
    return number(c.frames) + "frames " + number(c.height) + "x " + number(c.width) + "to " + number(a.height) + "x " +
           number(a.width) + a.chroma + (a.interleaved ? " interleaved" : "") + " depth " + number(a.depth) + "shift " +
           number(a.shift) + a.matrix + (a.full_range ? " full " : " ") + a.siting + " " + a.resample + " rotation " +
           number(a.rotation) + (a.mirrored ? "mirrored " : "") + "crop " + crop + a.out + " patch " + number(a.patch) +
           "merge " + number(a.merge) + "temporal " + number(a.temporal) + a.dtype + " threads " + number(a.threads) +
           "padding " + number(c.padding) + "fill " + std::to_string(c.fill);
}

// Planes on the heap, each exactly as large as promised: the last row has no padding.
class Picture {
public:
    Picture(const Case& c, const Format& format, std::minstd_rand& random) {
        const int bytes = format.bytes();
        for (int i = 0; i < plane_count(format); ++i) {
            std::int64_t height = format.height, width = format.width;
            if (i > 0) height = format.chroma_height(), width = format.chroma_width();
            if (format.planes == Planes::rgb) width *= 3;
            if (i > 0 && format.planes == Planes::interleaved) width *= 2;
            const std::int64_t stride = width + c.padding;
            check_plane(format, 0, i, {height, width, stride, 1, bytes});
            const auto size = static_cast<std::size_t>(((height - 1) * stride + width) * bytes);
            auto& plane = planes_.emplace_back(new std::uint8_t[size]);
            for (std::size_t k = 0; k < size; ++k) plane[k] = level(c.fill, random);
            frame.planes[i] = {plane.get(), static_cast<std::ptrdiff_t>(stride * bytes)};
        }
    }

    Frame frame;

private:
    static std::uint8_t level(std::uint32_t fill, std::minstd_rand& random) {
        const auto value = static_cast<std::uint8_t>(random() >> 11);
        if (fill == 0) return value;
        if (fill == 1) return value & 1 ? 255 : 0;  // overshoots of the filters are largest
        return fill == 2 ? 255 : value >> 3;
    }

    std::vector<std::unique_ptr<std::uint8_t[]>> planes_;
};

constexpr std::int64_t most_bytes = 1 << 23;

// False when the arguments were refused, or the result is too large to be worth it.
bool run_case(const Case& c) {
    Job job;
    try {
        job = checked(c.arguments, c.height, c.width, c.frames);
    } catch (const std::invalid_argument&) {
        return false;
    }
    std::size_t bytes = job.item_bytes();
    for (const std::size_t side : job.shape(static_cast<std::size_t>(c.frames))) bytes *= side;
    if (bytes > most_bytes) return false;
    std::minstd_rand random(c.seed + 1);
    std::vector<Picture> pictures;
    std::vector<Frame> frames;
    std::vector<int> place;
    for (int t = 0; t < c.frames; ++t) {
        frames.push_back(pictures.emplace_back(c, job.format, random).frame);
        place.push_back(t);
    }
    const auto result = [&](const char* instructions, int threads, int poison) {
        use_kernels(instructions);
        std::unique_ptr<std::uint8_t[]> out(new std::uint8_t[bytes]);
        std::memset(out.get(), poison, bytes);
        convert(job.format, frames, job.output, threads, out.get());
        return out;
    };
    const auto expected = result("generic", 1, 0x5a);
    const auto compare = [&](const std::uint8_t* out, const std::string& name) {
        for (std::size_t i = 0; i < bytes; ++i)
            if (out[i] != expected[i])
                fail(name + " differs at byte " + std::to_string(i) + " of " + std::to_string(bytes) + " (" +
                     std::to_string(out[i]) + ", not " + std::to_string(expected[i]) + "): " + text(c));
    };
    for (const char* instructions : {"generic", "avx2", "avx512"}) {
        try {
            use_kernels(instructions);
        } catch (const std::invalid_argument&) {
            continue;  // not on this machine
        }
        for (const int threads : {1, job.threads})
            compare(result(instructions, threads, 0xa5).get(),
                    std::string(instructions) + " on " + std::to_string(threads) + " threads, against generic on one,");
    }
    // The GPU reads a chroma pair at once; decoders align their rows.
    if (job.format.planes == Planes::interleaved && c.padding % 2) return true;
    std::unique_ptr<std::uint8_t[]> out(new std::uint8_t[bytes]);
    std::memset(out.get(), 0xa5, bytes);
    cuda::emulate(job.format, frames, place, c.frames, job.output, out.get());
    compare(out.get(), "a CUDA pass");
    return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    run_case(draw_case(Draw(data, size)));
    return 0;
}

#ifndef FOURD_LIBFUZZER
namespace {

constexpr int input_bytes = 80;
constexpr const char* last_input = "convert-input.bin";  // what was being run when a run ended

void write_input(const std::vector<std::uint8_t>& input) {
    if (std::FILE* file = std::fopen(last_input, "wb")) {
        std::fwrite(input.data(), 1, input.size(), file);
        std::fclose(file);
    }
}

std::vector<std::uint8_t> read_input(const char* path) {
    std::FILE* file = std::fopen(path, "rb");
    if (!file) fail(std::string(path) + ": no such file");
    std::vector<std::uint8_t> input(4096);
    input.resize(std::fread(input.data(), 1, input.size(), file));
    std::fclose(file);
    return input;
}

}  // namespace

int main(int count, char** words) {
    if (count == 3 && std::string(words[1]) == "--one") {
        const auto input = read_input(words[2]);
        std::printf("%s\n", run_case(draw_case(Draw(input.data(), input.size()))) ? "same everywhere" : "refused");
        return 0;
    }
    if (count < 2) fail("usage: fuzz_convert SECONDS [SEED], or fuzz_convert --one FILE");
    const double seconds = std::atof(words[1]);
    std::mt19937 random(count > 2 ? static_cast<unsigned>(std::atoi(words[2])) : 0);
    const auto start = std::chrono::steady_clock::now();
    long cases = 0, converted = 0;
    while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds) {
        std::vector<std::uint8_t> input(input_bytes);
        for (auto& value : input) value = static_cast<std::uint8_t>(random());
        write_input(input);
        converted += run_case(draw_case(Draw(input.data(), input.size())));
        ++cases;
    }
    std::remove(last_input);
    std::printf("%ld cases, %ld converted, %ld refused\n", cases, converted, cases - converted);
    return 0;
}
#endif
