"""Streams whose stamps do not say in which order pictures are shown: the right picture all the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import pytest

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames import FramePolicy, Frames, FrameSource, codecs, iterate_frames, read_frames, reading
from fourdthinker.frames import sink as sink_module
from fourdthinker.frames.attempts import Attempt, Untold, final_error, next_attempt
from fourdthinker.frames.bitstream.pictures import KEYFRAME
from fourdthinker.frames.codecs import CODECS, codec_of
from fourdthinker.frames.display_times import times_of
from fourdthinker.frames.sink import Damaged, Disordered, Missing, Sink
from fourdthinker.frames.timeline import Timeline
from fourdthinker.frames.timeline_from_packets import Packets, _order_of_stamps
from tests.clips import make_clip, numbers, picture

COUNT, RATE = 50, 25
STEP = 40  # milliseconds
X264 = {"bf": "2", "g": "25", "x264-params": "b-adapt=0:scenecut=0"}
CODEC_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": X264,
    "libx265": {"x265-params": "bframes=3:keyint=25:b-adapt=0:log-level=none:frame-threads=1:pools=1"},
    "mpeg4": {"bf": "2", "g": "25"},
    "mpeg2video": {"bf": "2", "g": "12"},
    "libsvtav1": {"preset": "10", "g": "25", "svtav1-params": "lp=1"},
}
Stamp = Callable[[int, int], int]  # (place in decoding order, place in display order) -> milliseconds


def storage(place: int, shown: int) -> int:
    return STEP * place


def true(place: int, shown: int) -> int:
    return STEP * (shown + 3)


def pairs(place: int, shown: int) -> int:
    """Two pictures share a stamp."""
    return true(place, shown // 2 * 2)


def jittered(place: int, shown: int) -> int:
    return true(place, shown) + random.Random(shown).randint(-70, 70)


def late(place: int, shown: int) -> int:
    return storage(place, shown) + 5000


def backwards(place: int, shown: int) -> int:
    return true(place, COUNT - 1 - shown)


def exchanged(place: int, shown: int) -> int:
    """Two pictures have each other's stamp."""
    return true(place, {20: 21, 21: 20}.get(shown, shown))


def mux(path: Path, codec: str = "libx264", stamp: Stamp | None = storage, fmt: str | None = None) -> Path:
    """COUNT numbered pictures with B-pictures between them, stamped anew; None: as the encoder does."""
    with av.open(str(path), "w", format=fmt) as container:
        stream = container.add_stream(codec, rate=RATE, options=CODEC_OPTIONS[codec])
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(picture(k), format="rgb24") for k in range(COUNT)]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        order = sorted(range(COUNT), key=lambda place: packets[place].pts)
        for place, packet in enumerate(packets):
            if stamp is not None:
                packet.pts = stamp(place, order.index(place))
                packet.dts, packet.time_base = min(packet.pts, STEP * place), Fraction(1, 1000)
                if stamp in (storage, late):
                    packet.dts = packet.pts
                elif stamp in (pairs, jittered, backwards, exchanged):
                    packet.dts = place - 200
            container.mux(packet)
    return path


def shown_at(time: float, stamps: list[float]) -> int:
    return max(k for k, stamp in enumerate(stamps) if stamp <= time + 1e-6)


def check(source: Path | FrameSource, stamps: list[float], times_from: str) -> Frames:
    """Read one by one, all together, by a policy, and in batches; the first is shown at stamps[0] seconds."""
    times = sorted(set(stamps))
    expected = [shown_at(time, stamps) for time in times]
    whole = read_frames(source, times=times)
    assert whole.times_from == times_from
    assert whole.shown == pytest.approx(times)
    assert numbers(whole.pixels) == expected
    for k in [*range(0, len(times), 7), *range(len(times) - 1, 0, -5)]:
        assert numbers(read_frames(source, times=[times[k]]).pixels) == [expected[k]]
    policy = FramePolicy(fps=9)
    sampled = read_frames(source, policy)
    assert numbers(sampled.pixels) == [shown_at(time, stamps) for time in sampled.seconds]
    assert sampled.seconds[0] == pytest.approx(stamps[0])
    parts = list(iterate_frames(source, policy, batch=4))
    assert [n for part in parts for n in numbers(part.pixels)] == numbers(sampled.pixels)
    return whole


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts", "flv"])
def test_stamps_in_the_order_of_storage(tmp_path: Path, suffix: str) -> None:
    check(mux(tmp_path / f"c.{suffix}"), [STEP / 1000 * k for k in range(COUNT)], "sorted")


@pytest.mark.parametrize("codec", ["libx265", "mpeg4", "mpeg2video"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_stamps_in_the_order_of_storage_of_other_codecs(tmp_path: Path, suffix: str, codec: str) -> None:
    check(mux(tmp_path / f"c.{suffix}", codec), [STEP / 1000 * k for k in range(COUNT)], "sorted")


@pytest.mark.parametrize(("suffix", "fmt"), [("asf", None), ("mxf", None), ("avi", None)])
def test_containers_with_one_stamp_a_packet(tmp_path: Path, suffix: str, fmt: str | None) -> None:
    path = mux(tmp_path / f"c.{suffix}", stamp=None, fmt=fmt)
    check(path, [STEP / 1000 * k for k in range(COUNT)], "sorted")


def test_mpeg4_with_b_pictures_in_avi_begins_at_zero(tmp_path: Path) -> None:
    path = mux(tmp_path / "c.avi", "mpeg4", stamp=None)
    check(path, [STEP / 1000 * k for k in range(COUNT)], "sorted")


@pytest.mark.parametrize("fmt", ["vob", "dvd"])
def test_missing_stamps_follow_at_the_rate(tmp_path: Path, fmt: str) -> None:
    """A program stream has one stamp for all pictures that begin in a packet of its own."""
    path = mux(tmp_path / "c.mpg", stamp=None, fmt=fmt)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert sum(packet.pts is None for packet in packets) > 30
    first = float(packets[0].pts * packets[0].time_base)
    check(path, [first + STEP / 1000 * k for k in range(COUNT)], "rate")


@pytest.mark.parametrize("stamp", [pairs, jittered, late, backwards], ids=lambda stamp: stamp.__name__)
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_wrong_stamps_are_sorted(tmp_path: Path, codec: str, stamp: Stamp) -> None:
    path = mux(tmp_path / "c.mkv", codec, stamp)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    check(path, sorted(float(packet.pts * packet.time_base) for packet in packets), "sorted")


def test_right_stamps_are_believed(tmp_path: Path) -> None:
    check(mux(tmp_path / "c.mkv", stamp=true), [STEP / 1000 * (k + 3) for k in range(COUNT)], "container")


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("libx264", "h264"), ("libx265", "h265"), ("mpeg2video", "m2v")],
)
def test_raw_streams_at_their_own_rate_or_the_one_given(tmp_path: Path, codec: str, suffix: str) -> None:
    path = mux(tmp_path / f"c.{suffix}", codec, None)
    check(path, [k / 25 for k in range(COUNT)], "rate")
    check(FrameSource(path, fps=10), [k / 10 for k in range(COUNT)], "rate")
    check(path, [k / 25 for k in range(COUNT)], "rate")  # not what is kept of the other rate
    ends = read_frames(FrameSource(path, fps=10), FramePolicy(fps=10))
    assert len(ends.seconds) == COUNT


def test_raw_streams_that_name_no_rate(tmp_path: Path) -> None:
    path = mux(tmp_path / "c.obu", "libsvtav1", None)
    with pytest.raises(
        VideoError, match=r"50 of 50 pictures have no time, and the stream names no rate; give"
    ):
        read_frames(path)
    check(FrameSource(path, fps=10), [k / 10 for k in range(COUNT)], "rate")


def test_a_rate_given_passes_over_the_times_of_the_file(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "c.mp4", [0, 40, 100, 350, 360, 900], options=X264)
    check(FrameSource(path, fps=5), [k / 5 for k in range(6)], "rate")
    with pytest.raises(ConfigError, match=r"fps is 0; give pictures a second above 0"):
        FrameSource(path, fps=0)


def test_a_second_visit_reads_the_order_from_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOURDTHINKER_INDEX_CACHE", str(tmp_path / "index"))
    path = mux(tmp_path / "c.mp4")
    first = read_frames(path, times=[0.4, 1.2])
    for name in ("build_timeline", "decoded_timeline"):
        monkeypatch.setattr(reading, name, None)
    again = read_frames(path, times=[0.4, 1.2])
    assert numbers(again.pixels) == numbers(first.pixels) == [10, 30]
    assert again.times_from == "sorted"


@pytest.fixture
def no_headers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """H.264 as a codec whose order only the decoder knows; names of files read through for it."""
    monkeypatch.setitem(codecs._BY_DECODER, "h264", replace(CODECS["h264"], display_order=None))
    names: list[str] = []
    original = reading.decoded_timeline

    def spying(container, video, name, *rest):
        names.append(name)
        return original(container, video, name, *rest)

    monkeypatch.setattr(reading, "decoded_timeline", spying)
    return names


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mpg", "h264"])
@pytest.mark.parametrize("room", [reading.ROOM, 0])
def test_an_order_that_only_the_decoder_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_headers: list[str], suffix: str, room: int
) -> None:
    monkeypatch.setenv("FOURDTHINKER_INDEX_CACHE", str(tmp_path / "index"))
    monkeypatch.setattr(reading, "ROOM", room)
    bare = suffix in ("mpg", "h264")
    path = mux(
        tmp_path / f"c.{suffix}", stamp=None if bare else storage, fmt="vob" if suffix == "mpg" else None
    )
    begin = read_frames(path).shown[0]
    check(path, [begin + STEP / 1000 * k for k in range(COUNT)], "rate" if bare else "sorted")
    assert len(no_headers) == 1  # once; then the index knows it


@pytest.mark.parametrize("stamp", [exchanged, true], ids=lambda stamp: stamp.__name__)
def test_each_picture_alone_where_only_the_decoder_knows_the_order(
    tmp_path: Path, no_headers: list[str], stamp: Stamp
) -> None:
    """One reading for one picture decodes too little to find out that stamps are wrong."""
    path = mux(tmp_path / "c.mkv", stamp=stamp)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    stamps = sorted(float(packet.pts * packet.time_base) for packet in packets)
    for time in sorted(set(stamps))[2::6]:
        assert numbers(read_frames(path, times=[time]).pixels) == [shown_at(time, stamps)]
    assert no_headers


@pytest.mark.parametrize("stamp", [jittered, backwards], ids=lambda stamp: stamp.__name__)
def test_stamps_that_the_decoder_contradicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_headers: list[str], stamp: Stamp
) -> None:
    """Not in the order of storage, so that nothing is suspected before pictures leave the decoder."""
    monkeypatch.setenv("FOURDTHINKER_INDEX_CACHE", str(tmp_path / "index"))
    path = mux(tmp_path / "c.mkv", stamp=stamp)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    stamps = sorted(float(packet.pts * packet.time_base) for packet in packets)
    times = sorted(set(stamps))
    expected = [shown_at(time, stamps) for time in times]
    assert numbers(read_frames(path, times=times).pixels) == expected
    assert no_headers
    check(path, stamps, "sorted")


def test_an_order_that_changes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mux(tmp_path / "c.mp4")
    take = Sink.take

    def swapped(self: Sink, frames: list[av.VideoFrame], limit: int | None = None) -> Iterator[av.VideoFrame]:
        for frame in frames:
            frame.pts ^= 1
        return take(self, frames, limit)

    monkeypatch.setattr(Sink, "take", swapped)
    with pytest.raises(VideoError, match=r"c\.mp4: at \d\.\d+ s pictures leave the decoder in another order"):
        read_frames(path, times=[0.4, 1.96])


def test_leading_pictures_that_can_be_decoded(tmp_path: Path) -> None:
    """A stream cut before a keyframe: pictures shown before it that need nothing else stay, others do not."""
    for name, options, kept in (
        ("radl", "radl=2:open-gop=0", [8, 9]),
        ("rasl", "open-gop=1", []),
    ):
        whole = make_clip(
            tmp_path / f"{name}.mp4",
            [40 * k for k in range(40)],
            codec="libx265",
            options={
                "x265-params": f"{options}:bframes=2:b-adapt=0:keyint=10:min-keyint=10:scenecut=0:"
                "log-level=none:frame-threads=1:pools=1"
            },
        )
        path = tmp_path / f"{name}.mkv"
        with av.open(str(whole)) as old, av.open(str(path), "w") as new:
            video, keys = old.streams.video[0], 0
            stream = new.add_stream_from_template(video)
            for packet in old.demux(video):
                keys += packet.is_keyframe
                if packet.size and keys > 1:
                    packet.stream = stream
                    new.mux(packet)
        frames = read_frames(path, FramePolicy(fps=25))
        seen = numbers(frames.pixels)
        first = min(seen)
        assert seen == list(range(first, 40)), name
        assert first in (8, 9) if kept else first >= 10, (name, first)


# --- parts -------------------------------------------------------------------------------------------------


def test_times() -> None:
    step = Fraction(40)
    display = [0, 2, 3, 1]
    for stored, times, told in (
        ([0, 120, 40, 80], [0, 40, 80, 120], "container"),
        ([0, 40, 80, 120], [0, 40, 80, 120], "sorted"),
        ([0, 40, 40, 120], [0, 40, 40, 120], "sorted"),
        ([None, None, None, None], [0, 40, 80, 120], "rate"),
        ([100, None, None, None], [100, 140, 180, 220], "rate"),
        ([None, 220, None, None], [100, 140, 180, 220], "rate"),
        ([100, 130, None, None], [100, 110, 120, 130], "rate"),  # no room at the rate
        ([100, 1000, None, None], [100, 140, 180, 1000], "rate"),
        ([300, 100, None, None], [100, 140, 180, 300], "rate"),  # neither order nor all stamps
        ([None, 100, 100, None], [60, 100, 140, 180], "rate"),  # the last of two that share one keeps it
    ):
        found, how = times_of(stored, display, step)
        assert (list(found), how) == (times, told), stored


def test_stamps_where_some_headers_cannot_be_read() -> None:
    """They are believed if they agree with the headers of most pictures."""
    keys: list[int | None] = [0, 4, 2, None, 8, 6]  # in decoding order
    places = range(6)
    for stamps, display in (
        ([0, 40, 20, 30, 80, 60], [0, 2, 3, 1, 5, 4]),
        ([0, 40, 20, 30, 60, 80], None),  # two exchanged
        ([0, 10, 20, 30, 40, 50], None),  # in the order of storage
        ([0, 40, 20, 20, 80, 60], None),  # one repeated
        ([0, 40, 20, None, 80, 60], None),
    ):
        packets = Packets(stamps=list(stamps), keys=keys)
        known = {place: key for place, key in enumerate(keys) if key is not None}
        assert _order_of_stamps(packets, known, places) == display, stamps
    right = Packets(stamps=[0, 40, 20, 30, 80, 60], keys=keys)
    assert _order_of_stamps(right, {0: 0, 1: 4, 2: 2}, places) is None  # of half of them is too few
    assert _order_of_stamps(replace(right, own=False), {0: 0, 1: 4, 2: 2, 4: 8, 5: 6}, places) is None


def test_the_order_of_storage_with_one_header_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Increasing stamps are no proof that pictures are stored as they are shown."""
    path = mux(tmp_path / "c.mp4")
    read = CODECS["h264"].display_order
    assert read is not None

    class Unreadable:
        def __init__(self, extradata: bytes) -> None:
            self.order, self.calls = read(extradata), iter(range(1000))

        def __call__(self, data: bytes) -> int | None:
            return (self.order(data), None)[next(self.calls) == 20]

        def lost(self) -> tuple[int, ...]:
            return ()

    monkeypatch.setitem(codecs._BY_DECODER, "h264", replace(CODECS["h264"], display_order=Unreadable))
    for number in (8, 13, 26, 31, 32, 33):
        frames = read_frames(path, times=[(number + 0.5) / RATE])
        assert numbers(frames.pixels) == [number]
        assert frames.times_from == "sorted"


def test_the_ladder() -> None:
    first = Attempt(threads=2)
    untold, disordered = Untold("c"), Disordered(1.0)
    probed = next_attempt(first, untold, from_cache=False)
    assert (probed.quick, probed.order) == (False, "packets")
    decoded = next_attempt(probed, disordered, from_cache=False)
    assert (decoded.order, decoded.careful) == ("decoder", False)
    careful = next_attempt(decoded, disordered, from_cache=False)
    assert careful.careful
    assert next_attempt(careful, disordered, from_cache=False) is None
    assert next_attempt(careful, disordered, from_cache=True).cached is False
    broken = Damaged("c", Timeline(Fraction(1), [0], 1.0), 0)
    assert next_attempt(first, broken, from_cache=False) == Attempt(threads=1)
    assert next_attempt(Attempt(threads=1), broken, from_cache=False) is None
    broken.doubted = True
    assert next_attempt(Attempt(threads=1), broken, from_cache=False) == Attempt(threads=1, careful=True)
    assert next_attempt(Attempt(threads=1, careful=True), broken, from_cache=False) is None
    assert "not known which is shown when" in str(final_error("c", disordered))
    assert first == Attempt(threads=2)


def test_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "matrix_of", lambda _: None)
    timeline = Timeline(Fraction(1, 25), range(4), 4 / 25, range(4), bytes([1, 0, 0, 0]))

    class Frame:
        is_corrupt = key_frame = False

        def __init__(self, pts: int) -> None:
            self.pts = pts
            self.planes = [SimpleNamespace(buffer_ptr=id(self))]

    for stamps in ([0, 2, 1], [0, 1, 1]):
        with pytest.raises(Disordered):
            list(Sink(timeline, [3], several=False).take([Frame(pts) for pts in stamps]))
    sink = Sink(timeline, [3], several=False)
    list(sink.take([Frame(0), Frame(2)]))
    sink.land(1)  # decoding begins anew
    list(sink.take([Frame(1)]))
    twice = Frame(0)
    assert list(Sink(timeline, [0], several=False).take([twice, twice])) == [twice]  # one picture


@pytest.mark.parametrize(("coded", "landed", "refused"), [([0, 1, 2, 3], 2, True), ([2, 0, 1, 3], 0, False)])
def test_a_keyframe_that_is_none(
    monkeypatch: pytest.MonkeyPatch, coded: list[int], landed: int, refused: bool
) -> None:
    """The first picture shown need not be the first one decoded, which alone is a keyframe then."""
    monkeypatch.setattr(sink_module, "matrix_of", lambda _: None)
    flags = bytes([KEYFRAME, 0, KEYFRAME if refused else 0, 0])
    timeline = Timeline(Fraction(1, 25), range(4), 4 / 25, coded, flags)
    sink = Sink(timeline, [3], several=False, doubted=True)
    sink.land(landed)
    frames = [
        SimpleNamespace(pts=pts, is_corrupt=False, key_frame=pts == coded[0], planes=[])
        for pts in range(landed, 4)
    ]
    if refused:
        with pytest.raises(Missing):
            list(sink.take(frames))
    else:
        assert [frame.pts for frame in sink.take(frames)] == [3]


def test_unknown_codecs_may_reorder() -> None:
    assert codec_of("no such decoder").reorders
    assert not codec_of("flv").reorders
