// Whether what a frame may refer to was decoded without an error.
//
// A frame may refer to one that is shown after it. So it is judged, when it is shown, by every picture that the engine
// was given before its own since decoding began at a keyframe. Complaining too much is no harm: then the frames are
// decoded in software, which decides.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/driver.hpp"

namespace fourd::cuda {

class Watch {
public:
    // Waits until the picture in a surface is decoded. Returns whether that went without an error.
    using Sound = std::function<bool(int surface)>;

    explicit Watch(Sound sound) : sound_(std::move(sound)) {}

    // Decoding begins at a keyframe, and nothing refers to what was before.
    void begin() {
        for (Picture& picture : pictures_) picture.open = false;
        count_ = 0;
        damaged_ = never;
        may_lead_ = true;
        first_order_.reset();
    }

    // To be called before the engine is given a picture: the surface may hold one that has not been asked about, or
    // the first field of the same, whose status the second field's may replace.
    void submit(const CUVIDPICPARAMS& picture, cudaVideoCodec codec) {
        const auto surface = static_cast<std::size_t>(picture.CurrPicIdx);
        if (surface >= pictures_.size()) pictures_.resize(surface + 1);
        ask(surface);
        Picture& entry = pictures_[surface];
        if (picture.second_field) {
            entry.open = entry.watched;
            return;
        }
        entry.watched = entry.open = !leads(picture, codec);
        count_ += entry.watched;
        entry.place = count_;
    }

    // To be called before the decoder goes: later its surfaces can no longer be asked about.
    void close() {
        for (std::size_t i = 0; i < pictures_.size(); ++i) ask(i);
    }

    // How many pictures the engine has been given when the one in this surface was the last; leading ones left out.
    std::int64_t place(int surface) const {
        const auto at = static_cast<std::size_t>(surface);
        return at < pictures_.size() ? pictures_[at].place : 0;
    }

    bool sound_up_to(std::int64_t place) {
        for (std::size_t i = 0; i < pictures_.size(); ++i)
            if (pictures_[i].place <= place) ask(i);
        return damaged_ > place;
    }

private:
    static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();

    struct Picture {
        std::int64_t place = 0;
        bool watched = false;  // not a leading one
        bool open = false;     // to be asked about
    };

    void ask(std::size_t surface) {
        Picture& picture = pictures_[surface];
        if (std::exchange(picture.open, false) && !sound_(static_cast<int>(surface)))
            damaged_ = std::min(damaged_, picture.place);
    }

    // Pictures that follow the keyframe in the data and precede it in presentation refer to what was before it. That
    // they cannot be decoded is no damage. They follow it directly, and the parser may never show them, so that only
    // their order tells.
    bool leads(const CUVIDPICPARAMS& picture, cudaVideoCodec codec) {
        if (!may_lead_) return false;
        int order;
        if (codec == cudaVideoCodec_HEVC) order = picture.CodecSpecific.hevc.CurrPicOrderCntVal;
        else if (codec == cudaVideoCodec_H264)
            order = picture.CodecSpecific.h264.CurrFieldOrderCnt[picture.field_pic_flag && picture.bottom_field_flag];
        else return false;
        if (!first_order_) {
            first_order_ = order;
            return false;
        }
        // The next keyframe may count from 0 again.
        may_lead_ = order < *first_order_ && !picture.intra_pic_flag;
        return may_lead_;
    }

    Sound sound_;
    std::vector<Picture> pictures_;  // by surface
    std::int64_t count_ = 0;
    std::int64_t damaged_ = never;  // the place of the first one
    bool may_lead_ = false;
    std::optional<int> first_order_;
};

}  // namespace fourd::cuda
