#include "convert.hpp"

#include <algorithm>

#include "parallel.hpp"
#include "passes.hpp"

namespace fourd {
namespace {

// Rows [begin, end) of a frame that keeps its size and its orientation.
void copy_rows(const Frame& frame, PictureReader& reader, int columns, int begin, int end, int number, Sink& sink) {
    std::uint8_t levels[3][PictureReader::longest];
    const std::uint8_t* planes[3] = {levels[0], levels[1], levels[2]};
    for (int y = begin; y < end; ++y)
        for (int x = 0; x < columns; x += PictureReader::longest) {
            const int count = std::min(PictureReader::longest, columns - x);
            reader.read(frame, y, x, count, levels[0], levels[1], levels[2]);
            sink.row(number, y, x, count, planes);
        }
}

}  // namespace

Normal make_normal(const std::array<double, 3>& mean, const std::array<double, 3>& deviation) {
    Normal normal;
    for (int c = 0; c < 3; ++c) {
        normal.scale[c] = static_cast<float>(1.0 / (255.0 * deviation[c]));
        normal.shift[c] = static_cast<float>(-mean[c] / deviation[c]);
    }
    return normal;
}

void convert(const Format& format, std::span<const Frame> frames, const Output& output, int threads, void* out) {
    const Kernels& chosen = kernels();
    const Plan plan(format, output, chosen);
    const auto count = static_cast<int>(frames.size());
    const bool as_it_is = format.upright() && format.rows == output.height && format.columns == output.width;
    const int unit = Sink::together(output);
    const int units = (as_it_is ? output.height : plan.second_outputs) / unit;
    if (threads == 0) threads = available_cores();
    // Whole frames when there are enough of them; else bands, whose input rows overlap a little.
    const int wanted = count >= 2 * threads ? 1 : (2 * threads + count - 1) / count;
    const bool whole = threads == 1 || (plan.vertical_first && !as_it_is);
    const int bands = whole ? 1 : std::clamp(wanted, 1, std::clamp(units * unit / lanes, 1, units));
    parallel(count * bands, threads, [&](const std::function<int()>& next) {
        Sink sink(output, count, chosen, out);
        PictureReader reader(format, chosen);
        Resampler resampler(format, plan, chosen);
        for (int task = next(); task >= 0; task = next()) {
            const int frame = task / bands;
            const long band = task % bands;
            const int begin = static_cast<int>(band * units / bands) * unit;
            const int end = static_cast<int>((band + 1) * units / bands) * unit;
            if (as_it_is) copy_rows(frames[frame], reader, output.width, begin, end, frame, sink);
            else resampler.run(frames[frame], begin, end, frame, sink);
        }
    });
}

}  // namespace fourd
