#include "arguments.hpp"

#include <cmath>
#include <stdexcept>

namespace fourd {
namespace {

// Bounds every size, so that products of sizes stay far inside 64 bits.
constexpr std::int64_t largest_side = 1 << 16;
constexpr std::int64_t most_frames = 1 << 20;
constexpr std::int64_t most_values = std::int64_t{1} << 40;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string size_text(std::int64_t height, std::int64_t width) {
    return std::to_string(height) + "x" + std::to_string(width) + " (height x width)";
}

int in_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value < low || value > high)
        refuse(std::string(name) + " is " + std::to_string(value) + ": expected " + std::to_string(low) + ".." +
               std::to_string(high));
    return static_cast<int>(value);
}

void set_chroma(const Arguments& a, Format& format) {
    if (a.siting != "left" && a.siting != "center" && a.siting != "topleft" && a.siting != "repeat")
        refuse("unknown siting '" + a.siting +
               "': use 'left' (MPEG-2), 'center' (JPEG), 'topleft' (BT.2020) or 'repeat' (nothing interpolated)");
    const bool repeat = a.siting == "repeat";
    const Siting across = repeat ? Siting::repeated : a.siting == "center" ? Siting::between : Siting::cosited;
    const Siting down = repeat ? Siting::repeated : a.siting == "topleft" ? Siting::cosited : Siting::between;
    const bool yuv = a.chroma == "420" || a.chroma == "422" || a.chroma == "444";
    if (a.chroma == "420") format.across = across, format.down = down;
    if (a.chroma == "422") format.across = across;
    if (a.chroma == "rgb") {
        format.planes = Planes::rgb;
        if (a.depth != 8) refuse("depth is " + std::to_string(a.depth) + ": packed rgb has 8 bits; reduce it first");
    } else if (a.chroma == "gray") {
        format.planes = Planes::gray;
    } else if (yuv) {
        format.planes = a.interleaved ? Planes::interleaved : Planes::yuv;
    } else {
        refuse("unknown chroma '" + a.chroma + "': use '420', '422', '444', 'gray' or 'rgb'");
    }
    if (a.interleaved && !yuv)
        refuse("interleaved chroma with chroma='" + a.chroma + "': only '420', '422' and '444' have chroma planes");
}

void set_depth(const Arguments& a, Format& format) {
    if (a.depth != 8 && a.depth != 10 && a.depth != 12)
        refuse("depth is " + std::to_string(a.depth) + ": 8, 10 and 12 bits are supported; let the decoder reduce it");
    format.depth = static_cast<int>(a.depth);
    format.shift = in_range("shift", a.shift, 0, a.depth == 8 ? 0 : 16 - a.depth);
    format.matrix = make_matrix(a.matrix, a.full_range, format.depth, a.chroma == "gray");
}

void set_window(const Arguments& a, Format& format) {
    format.rows = format.height;
    format.columns = format.width;
    if (a.crop) {
        const auto [top, left, rows, columns] = *a.crop;
        if (top < 0 || left < 0 || rows < 1 || columns < 1 || top > format.height || left > format.width ||
            rows > format.height - top || columns > format.width - left)
            refuse("crop (top " + std::to_string(top) + ", left " + std::to_string(left) + ", height " +
                   std::to_string(rows) + ", width " + std::to_string(columns) + ") is not inside the frame of " +
                   size_text(format.height, format.width));
        format.top = static_cast<int>(top), format.left = static_cast<int>(left);
        format.rows = static_cast<int>(rows), format.columns = static_cast<int>(columns);
    }
    if (a.rotation != 0 && a.rotation != 90 && a.rotation != 180 && a.rotation != 270)
        refuse("rotation is " + std::to_string(a.rotation) + ": expected 0, 90, 180 or 270 degrees counter-clockwise");
    format.rotation = static_cast<int>(a.rotation);
    format.mirrored = a.mirrored;
}

void set_patches(const Arguments& a, Output& output) {
    if (a.dtype == "float32") output.kind = Kind::float32;
    else if (a.dtype == "float16") output.kind = Kind::float16;
    else if (a.dtype == "bfloat16") output.kind = Kind::bfloat16;
    else refuse("unknown dtype '" + a.dtype + "' of patches: use 'float32', 'float16' or 'bfloat16'");
    output.shape = {in_range("patch", a.patch, 1, 256), in_range("merge", a.merge, 1, 256),
                    in_range("temporal", a.temporal, 1, 256)};
    const std::int64_t factor = a.patch * a.merge;
    if (a.height % factor != 0 || a.width % factor != 0)
        refuse("size " + size_text(a.height, a.width) + " is not a multiple of patch * merge = " +
               std::to_string(factor) + " on both sides: round it with FramePolicy.size");
    for (int c = 0; c < 3; ++c) {
        if (!std::isfinite(a.mean[c]) || std::fabs(a.mean[c]) > 1e3)
            refuse("mean[" + std::to_string(c) + "] is " + std::to_string(a.mean[c]) +
                   ": expected a fraction of full brightness, as 0.5");
        if (!(a.std[c] >= 1e-3 && a.std[c] <= 1e3))
            refuse("std[" + std::to_string(c) + "] is " + std::to_string(a.std[c]) +
                   ": expected a fraction of full brightness above 0, as 0.5");
    }
    output.normal = make_normal(a.mean, a.std);
}

}  // namespace

std::vector<std::size_t> Job::shape(std::size_t frames) const {
    const auto height = static_cast<std::size_t>(output.height), width = static_cast<std::size_t>(output.width);
    if (output.kind == Kind::pixels) return {frames, height, width, 3};
    const auto& s = output.shape;
    const std::size_t groups = (frames + s.temporal - 1) / s.temporal;
    return {groups * (height / s.patch) * (width / s.patch), static_cast<std::size_t>(s.values())};
}

std::size_t Job::item_bytes() const { return output.kind == Kind::pixels ? 1 : output.kind == Kind::float32 ? 4 : 2; }

Job checked(const Arguments& a, std::int64_t luma_height, std::int64_t luma_width, std::int64_t frames) {
    if (frames < 1 || frames > most_frames)
        refuse("there are " + std::to_string(frames) + " frames: expected 1.." + std::to_string(most_frames));
    if (luma_height < 1 || luma_width < 1 || luma_height > largest_side || luma_width > largest_side)
        refuse("frames of " + size_text(luma_height, luma_width) + " pixels: expected 1.." +
               std::to_string(largest_side) + " a side");
    Job job;
    job.format.height = static_cast<int>(luma_height), job.format.width = static_cast<int>(luma_width);
    set_chroma(a, job.format);
    set_depth(a, job.format);
    set_window(a, job.format);
    job.output.height = in_range("height", a.height, 1, largest_side);
    job.output.width = in_range("width", a.width, 1, largest_side);
    job.output.filter = filter_by_name(a.resample);
    if (a.out == "patches") set_patches(a, job.output);
    else if (a.out != "uint8") refuse("unknown out '" + a.out + "': use 'uint8' or 'patches'");
    job.threads = in_range("threads", a.threads, 0, 1024);
    std::int64_t values = 1;
    for (const std::size_t side : job.shape(static_cast<std::size_t>(frames)))
        values *= static_cast<std::int64_t>(side);
    if (values > most_values)
        refuse(std::to_string(frames) + " frames of " + size_text(a.height, a.width) +
               " are too many values for one call: split the clip");
    return job;
}

int plane_count(const Format& format) {
    switch (format.planes) {
        case Planes::yuv: return 3;
        case Planes::interleaved: return 2;
        default: return 1;
    }
}

void check_plane(const Format& format, std::size_t frame, int index, const PlaneShape& plane) {
    const std::string name = "plane " + std::to_string(index) + " of frame " + std::to_string(frame);
    std::int64_t height = format.height, width = format.width;
    if (index > 0) {
        height = format.chroma_height();
        width = format.chroma_width() * (format.planes == Planes::interleaved ? 2 : 1);
    } else if (format.planes == Planes::rgb) {
        width *= 3;
    }
    if (plane.bytes != format.bytes())
        refuse(name + " has samples of " + std::to_string(plane.bytes) + " byte(s): depth " +
               std::to_string(format.depth) + " needs " + (format.bytes() == 1 ? "uint8" : "uint16"));
    if (plane.height != height || plane.width != width)
        refuse(name + " is " + size_text(plane.height, plane.width) + ": expected " + size_text(height, width) +
               " for frames of " + size_text(format.height, format.width) +
               "; all frames of a call have one size, and chroma rounds up");
    if (plane.width > 1 && plane.column_stride != 1)
        refuse(name + " has samples " + std::to_string(plane.column_stride) +
               " apart in a row: they must be adjacent, pass numpy.ascontiguousarray(plane)");
    if (plane.height > 1 && (plane.row_stride < plane.width || plane.row_stride > (std::int64_t{1} << 24)))
        refuse(name + " has rows " + std::to_string(plane.row_stride) + " samples apart, " +
               std::to_string(plane.width) + " samples wide: pass numpy.ascontiguousarray(plane)");
}

}  // namespace fourd
