"""Frames decoded by the GPU's video engine (NVDEC) and converted on the GPU, without a copy through the host.

How a reader uses it, for `device` a CUDA device:

    reason = available(codec, chroma, depth, width, height, device)
    if reason is None:
        try:
            result = decode(packets, video, wanted, device=device, **conversion)
        except NvdecError as error: ...   # decode in software, which names the fault and its time
    else: ...   # log `reason` once; decode in software, convert with fourdthinker._frames.cuda.convert

packets: an iterator of PyAV packets of one stream in decoding order, beginning at a keyframe, with None where
decoding goes on at another keyframe (after a seek). Packets of frames that are neither wanted nor referred
to by others need not be left out: they are recognised and not decoded. video: the PyAV stream.
wanted: time stamps (in units of the stream's time base) of the frames to return, in any order, also more
than once. conversion: the keyword arguments of `_video.convert` from `matrix` on that describe colour and
output (height, width, matrix, full_range, siting, resample, rotation, out, patch, merge, temporal, mean,
std, dtype); what describes the surfaces (chroma, depth, shift, interleaved, crop) comes from the decoder.
The result is a tensor on `device`: uint8 [len(wanted), height, width, 3], or patches in `dtype`.
"""
