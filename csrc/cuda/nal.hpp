// Whether a packet of Annex B data holds a picture that no other refers to.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fourd::cuda {

class References {
public:
    enum class Syntax { other, h264, hevc };
    explicit References(Syntax syntax) : syntax_(syntax) {}

    // True when nothing that follows needs this packet. Packets are to be shown in decoding order.
    // Other syntaxes: always false.
    bool droppable(const std::uint8_t* data, std::size_t size) {
        if (syntax_ == Syntax::other) return false;
        bool pictures = false, referred = false;
        for (std::size_t i = 0; i + 3 < size; ++i) {
            if (data[i] || data[i + 1] || data[i + 2] != 1) continue;
            i += 3;
            if (syntax_ == Syntax::h264) {
                const int type = data[i] & 31;  // ITU-T H.264, table 7-1
                if (type >= 1 && type <= 5) pictures = true, referred |= (data[i] >> 5 & 3) != 0;
                else referred |= type == 7 || type == 8;  // parameter sets are for all that follows
            } else if (i + 2 < size) {
                const int type = data[i] >> 1 & 63;  // ITU-T H.265, table 7-1
                const int temporal = (data[i + 1] & 7) - 1;
                if (type < 32) {
                    // Even types up to 14 are not referred to within their own temporal sub-layer; the highest
                    // one has nothing above it.
                    pictures = true;
                    referred |= type > 14 || type % 2 || temporal != highest_;
                } else if (type == 33) {
                    highest_ = data[i + 2] >> 1 & 7;  // sps_max_sub_layers_minus1
                    referred = true;
                } else {
                    referred |= type == 32 || type == 34;
                }
            }
        }
        return pictures && !referred;
    }

private:
    Syntax syntax_;
    int highest_ = -1;
};

}  // namespace fourd::cuda
