"""What is tried, and in which order, until a video is read: the ladder of attempts.

An attempt is a value; an error in it leads to the next one, which differs in one thing. The first line that
applies decides:

| what happened                               | tried next            | for |
| ---                                         | ---                   | --- |
| pictures change their size or layout        | not straight          | patches are made for one size |
| NVDEC refuses the stream, or finds damage   | software              | it names the fault and its time |
| any other error, timeline from the cache    | the index anew        | the file may not be the one indexed |
| a seek led past its goal                    | no seeks              | the container's own index is wrong |
| damaged data, several threads               | one thread            | threads tell late or of good frames |
| the same, one thread, where the container   | careful               | that may be wrong |
| alone says which pictures are keyframes     |                       |  |
| the same, careful, or other damaged data    | (it is the error)     |  |
| any other error, opened quickly             | opened with a look at | FFmpeg then knows the format, how |
|                                             | the first pictures    | far pictures are reordered |
| the order of display was learnt by decoding | careful; then it is   | what is shown may depend on where |
| (an error too if headers give another one)  | the error             | decoding began |
| packets do not tell the order of display,   | the order learnt by   | only the decoder knows it |
| or the decoder gives another one            | decoding              |  |
| a picture is missing                        | careful               | it may need what was left out |
| the same, careful, several threads          | one thread            | threads may lose the error |
| the same, careful, one thread               | the order learnt by   | some packets show nothing |
|                                             | decoding              |  |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fourdthinker.errors import VideoError
from fourdthinker.frames.decode import SeekFailed
from fourdthinker.frames.gpu.nvdec import NvdecError
from fourdthinker.frames.sink import Damaged, Disordered, Missing


class LayoutChanged(Exception):
    """The pictures change their size or layout within a clip, which the way of reading does not allow."""


class Untold(Exception):
    """Packets do not tell which pictures are shown, or when."""


Failure = LayoutChanged | NvdecError | Damaged | Missing | Disordered | Untold
FAILURES = (LayoutChanged, NvdecError, Damaged, Missing, Disordered, Untold)


@dataclass(frozen=True)
class Attempt:
    """One way of reading a video.

    threads: of the decoder. on_gpu: decoded by NVDEC. cached: the timeline is taken from the index cache,
    where it is there. quick: opened without decoding the first pictures. straight: the picture size stays:
    patches at once, several decoders. seek: in the file, over what need not be read. careful: every packet is
    decoded, in order, from the first keyframe on. order: what tells the order in which pictures are shown.
    """

    threads: int
    on_gpu: bool = False
    cached: bool = True
    quick: bool = True
    straight: bool = True
    seek: bool = True
    careful: bool = False
    order: Literal["packets", "decoder"] = "packets"


def next_attempt(attempt: Attempt, error: Failure, *, from_cache: bool) -> Attempt | None:
    """What to try after an error, by the table above; None when everything was tried.

    from_cache: the timeline of the attempt came from the index cache.
    """
    several = attempt.threads > 1
    if isinstance(error, LayoutChanged):
        return replace(attempt, straight=False)
    if isinstance(error, NvdecError):
        return replace(attempt, on_gpu=False)
    if from_cache:
        return replace(attempt, cached=False)
    if isinstance(error, SeekFailed) and attempt.seek:
        return replace(attempt, seek=False)
    if isinstance(error, Damaged):
        if several:
            return replace(attempt, threads=1)
        return replace(attempt, careful=True) if error.doubted and not attempt.careful else None
    if attempt.quick:
        return replace(attempt, quick=False)
    if attempt.order == "decoder":
        return None if attempt.careful else replace(attempt, careful=True)
    if isinstance(error, (Untold, Disordered)):
        return replace(attempt, order="decoder")
    if not attempt.careful:
        return replace(attempt, careful=True)
    return replace(attempt, threads=1) if several else replace(attempt, order="decoder")


def final_error(name: str, error: Failure) -> VideoError:
    """What is said of a file when everything was tried."""
    if isinstance(error, Damaged):
        return VideoError(
            f"{name}: the data at {error.seconds:.3f} s cannot be decoded ({error}); the file is damaged. "
            "Replace it, or ask for times before that"
        )
    if isinstance(error, Missing):
        return VideoError(
            f"{name}: the frame at {error.seconds:.3f} s cannot be decoded; the file is damaged"
        )
    if isinstance(error, Disordered):
        return VideoError(
            f"{name}: at {error.seconds:.3f} s pictures leave the decoder in another order than when it was "
            "read through, so that it is not known which is shown when; encode it anew"
        )
    raise error
