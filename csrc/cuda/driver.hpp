// The functions of libcuda and libnvcuvid that decoding uses, found at run time.
#pragma once

#include <ffnvcodec/dynlink_cuda.h>
// after the types of CUDA
#include <ffnvcodec/dynlink_cuviddec.h>
#include <ffnvcodec/dynlink_nvcuvid.h>

namespace fourd::cuda {

struct Driver {
    tcuInit* init;
    tcuGetErrorName* error_name;
    tcuDeviceGet* device;
    tcuDevicePrimaryCtxRetain* retain_context;
    tcuCtxPushCurrent_v2* push_context;
    tcuCtxPopCurrent_v2* pop_context;
    tcuEventCreate* create_event;
    tcuEventDestroy_v2* destroy_event;
    tcuEventRecord* record_event;
    tcuEventSynchronize* wait_for_event;
    tcuvidGetDecoderCaps* capabilities;
    tcuvidCreateDecoder* create_decoder;
    tcuvidDestroyDecoder* destroy_decoder;
    tcuvidReconfigureDecoder* reconfigure_decoder;
    tcuvidDecodePicture* decode_picture;
    tcuvidGetDecodeStatus* decode_status;
    tcuvidMapVideoFrame64* map_frame;
    tcuvidUnmapVideoFrame64* unmap_frame;
    tcuvidCreateVideoParser* create_parser;
    tcuvidParseVideoData* parse;
    tcuvidDestroyVideoParser* destroy_parser;
};

// Opened once a process. Throws std::runtime_error that says which library or function is missing.
const Driver& driver();

}  // namespace fourd::cuda
