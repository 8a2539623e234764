"""Whole runs on scenes and on small files: resuming, settings, what becomes of bad files."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fourdthinker.errors import CheckpointError, ConfigError
from fourdthinker.records import read_records
from fourdthinker.synth import clips as clips_module
from fourdthinker.synth import functions, narration, run, stages
from fourdthinker.synth.clips import Clip, windows
from fourdthinker.synth.folder import check_folder
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.journal import Entry, Journal
from fourdthinker.synth.narrate import BudgetError, EndpointError, RejectedError, narrate
from fourdthinker.synth.payload import dumps
from fourdthinker.synth.plan import plan
from fourdthinker.synth.pool import Begin, Lost
from fourdthinker.synth.processes import LocalProcesses
from fourdthinker.synth.run import Options, _useful, synthesise
from fourdthinker.synth.settings import STAGES, SynthSettings, read_settings
from fourdthinker.synth.stages import Job, work
from tests.clips import make_clip

QUIET = Options(workers=1, progress=False)


def files(folder: Path) -> dict[str, bytes]:
    """What a run has made, but for its own books."""
    own = {"summary.json", "settings.json"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in own and not path.name.startswith("journal")
    }


def one_process(jobs: Any, processes: Any, *, handle: Any, more: Any, **options: Any) -> None:
    """In place of `run_jobs`: everything in this process."""
    while (job := more() or next(jobs, None)) is not None:
        messages: list[Any] = []
        work(job, messages.append)
        for message in messages:
            if not isinstance(message, Begin):
                handle(job, message)


@pytest.fixture
def no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are worked on in this process: starting one takes longer than most jobs."""
    monkeypatch.setattr(run, "run_jobs", one_process)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("synth") / "out"
    return out, synthesise(["scenes:6"], out, options=QUIET)


def test_scenes_become_records_that_the_trainers_take(made: tuple[Path, dict[str, Any]]) -> None:
    out, summary = made
    assert summary["failed"] == summary["quarantined"] == []
    assert summary["stages"]["imagery"]["done"] == 6
    records = [record for path in out.glob("dift-*.jsonl") for record in read_records(path, kind="dift")]
    assert len(records) == sum(row["dift"] for row in summary["records"].values()) > 6
    choices = [record for record in records if record.options]
    reinforced = [record for path in out.glob("rl-*.jsonl") for record in read_records(path, kind="rl")]
    assert [record.id for record in reinforced] == [record.id for record in choices]
    assert len({record.type for record in records}) > 5
    assert not any("-0.0" in record.question for record in records)
    for record in records:
        assert record.answer in (record.options or {None: ""})
        assert record.images
        assert record.frames is not None
        assert record.seconds == sorted(record.seconds or ())


def test_a_finished_run_does_nothing_and_changes_nothing(made: tuple[Path, dict[str, Any]]) -> None:
    out, _ = made
    before = files(out)
    times = {path: path.stat().st_mtime_ns for path in (out / "media").rglob("*.jpg")}
    synthesise(["scenes:6"], out, options=QUIET)
    assert files(out) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with Journal(out) as journal:
        found = [e for k in range(6) for e in journal.of_source(_scene_name(out, k))]
        found += journal.of_source("corpus")
        assert len(found) > 40
        assert {"options", "narrate"} < {entry.stage for entry in found}
        assert {entry.computed for entry in found} == {1}


def _scene_name(out: Path, number: int) -> str:
    return next((out / "scenes").glob(f"scene-{number:06d}-*.mp4")).stem


def test_files_that_were_removed_are_made_once_more(
    no_pool: None, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made[0], out)
    name = _scene_name(out, 2)
    lost = sorted(path for path in (out / "media").rglob("*.jpg") if name in str(path))
    assert len(lost) > 8
    for path in lost[::3]:  # frames of the clip and pictures of imagery
        path.unlink()
    synthesise(["scenes:6"], out, options=QUIET)
    assert files(out) == files(made[0])


def test_another_order_of_work_gives_the_same_bytes(
    no_pool: None, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = made
    other = tmp_path / "other"
    for stage in ("ingest", "segment", "motion"):
        wanted = STAGES[: STAGES.index(stage) + 1]
        synthesise(["scenes:6"], other, options=Options(stages=wanted, workers=1, progress=False))
        assert not list(other.glob("*.jsonl"))
    synthesise(["scenes:6"], other, options=QUIET)
    assert files(other) == files(out)


def test_other_settings_are_refused_and_taken_on_request(
    no_pool: None, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made[0], out)
    settings = SynthSettings(imagery=("silhouette",))
    with pytest.raises(ConfigError, match=r"made with other settings: imagery was \['overlay'\]"):
        synthesise(["scenes:6"], out, settings, QUIET)
    assert files(out) == files(made[0])
    update = Options(workers=1, progress=False, update=True)
    synthesise(["scenes:6"], out, settings, update)
    with Journal(out) as journal:
        found = journal.of_source(_scene_name(out, 0))
    assert {entry.computed for entry in found if entry.stage == "segment"} == {1}
    records = [record for path in out.glob("dift-*.jsonl") for record in read_records(path, kind="dift")]
    kinds = {Path(path).name.split("-")[0] for record in records for path in record.images}
    assert "silhouette" in kinds
    assert kinds <= {"silhouette", "map"}  # a map where nothing at rest is named


def test_a_model_narrates_and_what_it_fails_at_is_left_for_later(
    no_pool: None, made: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made[0], out)
    settings, update = SynthSettings(narrator_model="m"), Options(workers=1, progress=False, update=True)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        synthesise(["scenes:6"], out, settings, update)
    assert files(out) == files(made[0])

    def by_model(job: Any, endpoint: Any) -> str:
        if job.question.type == "camera_displacement":
            raise EndpointError("no reply")
        if job.question.type == "object_displacement":
            raise RejectedError("the model disagrees")
        assert len(job.overlays) == len(job.question.support.instants)
        return narrate(job.question, job.facts, [picture.instant for picture in job.overlays], 5)

    def refused(job: Any, endpoint: Any) -> str:
        raise ConfigError("the endpoint answers 401")

    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setattr(narration, "narrate_by_model", refused)
    with pytest.raises(ConfigError, match="401"):
        synthesise(["scenes:6"], out, settings, update)
    assert files(out) == files(made[0])
    monkeypatch.setattr(narration, "narrate_by_model", by_model)
    summary = synthesise(["scenes:6"], out, settings, update)
    row = summary["stages"]["narrate"]
    assert row["rejected"].keys() == {"the model disagrees"}
    assert row["failed"].keys() == {"no reply"}
    assert len(summary["failed"]) == row["failed"]["no reply"]
    assert row["done"] == sum(counts["dift"] for counts in summary["records"].values()) > 5
    records, asked = files(out), []

    def fails(job: Any, endpoint: Any) -> str:
        asked.append(job.question.id)
        raise EndpointError("no reply")

    monkeypatch.setattr(narration, "narrate_by_model", fails)
    for _ in range(4):  # the second, the third and no further attempt
        last = synthesise(["scenes:6"], out, settings, update)
    assert sorted(asked) == sorted(2 * summary["failed"])
    assert (last["failed"], last["quarantined"]) == ([], summary["failed"])
    assert last["stages"]["narrate"]["quarantined"] == row["failed"]
    assert last["stages"]["narrate"]["done"] == row["done"]
    assert files(out) == records


def test_limits_of_the_endpoint_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="the openai client is missing: pip install fourdthinker[synth]")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    prices = {"narrator_price_in": 2.0, "narrator_price_out": 8.0}
    settings = SynthSettings(narrator_model="m", narrator_max_calls=7, narrator_budget=1.5, **prices)
    found = narration.narrator(settings, tmp_path).settings
    assert (found.max_calls, found.budget, found.price_in, found.price_out) == (7, 1.5, 2.0, 8.0)
    with pytest.raises(ConfigError, match=r"narrator_budget is 1.5 and the prices are 0"):
        read_settings(None, narrator_budget=1.5)


def test_records_that_other_inputs_replace_are_warned_of(
    no_pool: None, made: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made[0], out)
    synthesise(["scenes:6"], out, options=QUIET)
    assert "not among these inputs" not in caplog.text
    names = [_scene_name(out, number) for number in range(6)]
    kept = tuple(f"{name}-" for name in names[:2])
    before = [r.id for path in out.glob("dift-*.jsonl") for r in read_records(path, kind="dift")]
    gone = [record for record in before if not record.startswith(kept)]
    videos = {record.split(".")[0] for record in gone}
    synthesise(["scenes:6"], out, options=Options(workers=1, progress=False, limit=2))
    assert f"{len(gone)} records of {len(videos)} videos that are not among these inputs" in caplog.text
    assert len(gone) > len(videos) > 1


def test_a_later_run_may_spend_more(tmp_path: Path) -> None:
    few = SynthSettings(narrator_max_calls=1)
    (tmp_path / "settings.json").write_text(json.dumps(few.plain()))
    check_folder(tmp_path, SynthSettings(narrator_max_calls=2), update=False)
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        check_folder(tmp_path, SynthSettings(narrator_max_calls=2, seed=1), update=False)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty, and no synthesis was made there"):
        synthesise(["scenes:1"], tmp_path, options=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_depth_that_no_video_has_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"never read")
    settings = SynthSettings(imagery=("overlay", "depth"))
    with pytest.raises(ConfigError, match="imagery=depth, and nothing has depth; give depth_weights"):
        synthesise([str(tmp_path / "a.mp4")], tmp_path / "out", settings, QUIET)


def test_unknown_stages_and_settings() -> None:
    with pytest.raises(ConfigError, match="no stage dream; choose among ingest, objects"):
        Options(stages=("ingest", "dream"))
    with pytest.raises(ConfigError, match="no stage is named; choose among ingest, objects"):
        Options(stages=())
    with pytest.raises(ConfigError, match="workers is 0; give a whole number"):
        Options(workers=0)
    with pytest.raises(ConfigError, match=r"unknown key 'speed', the nearest are se"):
        read_settings(None, speed=3)
    with pytest.raises(ConfigError, match="min_seconds <= max_seconds / 2 must hold"):
        read_settings(None, min_seconds=10.0, max_seconds=15.0)
    with pytest.raises(ConfigError, match=r"splits names '\.\./x', a part of file names; use letters"):
        read_settings(None, splits={"../x": 1.0})
    with pytest.raises(ConfigError, match="frame policy: fps is -1"):
        read_settings(None, frames={"fps": -1})


def noise(seed: int) -> Any:
    """Pictures of a textured wall that drifts by, for `make_clip`."""
    wide = np.repeat(np.repeat(np.random.default_rng(seed).integers(0, 255, (12, 80, 3)), 8, 0), 8, 1)
    return lambda k: np.ascontiguousarray(wide[:64, k : k + 96]).astype(np.uint8)


def video(path: Path, seconds: float, draw: Any, fps: int = 10) -> Path:
    stamps = [round(k * 1000 / fps) for k in range(round(seconds * fps))]
    return make_clip(path, stamps, size=(64, 96), draw=draw)


def test_few_frames_a_second_are_no_still_pictures(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", 4, noise(1), fps=5)
    (clip,) = clips_module.read_clips(Source("v", str(path), "d", "d", "v"), (0.0, 4.0), SynthSettings())
    assert isinstance(clip, Clip)
    assert len(clip.times) == 40


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    good = video(folder / "good 'quoted' \n ünï.mp4", 4, noise(1))
    (folder / "cut off.mp4").write_bytes(good.read_bytes()[:900])
    (folder / "text.mp4").write_text("not a video at all")
    shutil.copy(good, folder / "copy.mp4")
    video(folder / "black.mp4", 4, lambda k: np.zeros((64, 96, 3), np.uint8))
    video(folder / "still.mp4", 4, lambda k: noise(2)(0))
    video(folder / "short.mp4", 1, noise(3))
    video(folder / "one.mp4", 0.1, noise(4))
    (folder / "list.txt").write_text("x")
    return folder


def test_every_bad_file_is_accounted_for(no_pool: None, poisoned: Path, tmp_path: Path) -> None:
    stages_wanted = ("ingest", "objects")
    options = Options(stages=stages_wanted, workers=1, progress=False)
    summary = synthesise([str(poisoned)], tmp_path / "out", options=options)
    row = summary["stages"]["ingest"]
    assert row["done"] == 1
    reasons = row["rejected"]
    assert reasons["black"] == reasons["one picture"] == reasons["shorter than 3 s"] == 1
    assert reasons["still: the pictures do not change"] == 1
    assert reasons["not a video, by its suffix"] == 1
    assert sum(reasons[r] for r in reasons if r.startswith("unreadable: ")) == 2
    assert sum(reasons[r] for r in reasons if r.startswith("the same content as ")) == 1
    assert sum(reasons.values()) == 8
    assert summary["videos"]["given"] == 9
    assert summary["failed"] == []


def test_clips_without_times_of_their_own_are_counted(no_pool: None, tmp_path: Path) -> None:
    """A raw stream has no stamps: its times are from its rate, and the summary says so."""
    folder = tmp_path / "videos"
    folder.mkdir()
    video(folder / "a.mp4", 4, noise(6))
    with av.open(str(folder / "b.h264"), "w") as raw:
        stream = raw.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for number in range(40):
            raw.mux(stream.encode(av.VideoFrame.from_ndarray(noise(7)(number))))
        raw.mux(stream.encode())
    options = Options(stages=("ingest",), workers=1, progress=False)
    summary = synthesise([str(folder / "a.mp4"), str(folder / "b.h264")], tmp_path / "out", options=options)
    assert summary["videos"]["times_from"] == {"container": 1, "rate": 1}


def entries(job: Job) -> list[Entry]:
    messages: list[Any] = []
    work(job, messages.append)
    return [message for message in messages if isinstance(message, Entry)]


def test_a_clip_is_read_once_for_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(tmp_path / "v.mp4", 8, noise(5))
    read: list[float] = []
    original = clips_module.iterate_frames

    def counted(*args: Any, **options: Any) -> Any:
        for batch in original(*args, **options):
            read.extend(batch.seconds)
            yield batch

    monkeypatch.setattr(clips_module, "iterate_frames", counted)
    source = Source("v", str(path), "d", "d", "v.mp4")
    found = entries(Job(source, SynthSettings(), tmp_path, ("ingest", "objects")))
    assert [entry.stage for entry in found if entry.state == "done"] == [
        "ingest",
        "ingest",
        "objects",
        "ingest",
    ]
    assert len(read) == len(set(read)) == 80


def test_an_exception_in_a_stage_costs_only_its_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(tmp_path / "v.mp4", 20, noise(6))

    def fails(context: Any) -> Any:
        if context.clip.start == 0:
            raise MemoryError("too much")
        return {"names": []}

    monkeypatch.setitem(functions.FUNCTIONS, "objects", fails)
    source = Source("v", str(path), "d", "d", "v.mp4")
    found = entries(Job(source, SynthSettings(), tmp_path, ("ingest", "objects")))
    outcomes = [(entry.state, entry.reason) for entry in found if entry.stage == "objects"]
    assert outcomes == [("failed", "MemoryError: too much"), ("done", "")]


def test_failures_are_tried_in_later_runs_up_to_a_bound(
    no_pool: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video(tmp_path / "v.mp4", 4, noise(7))
    tried = []

    def fails(context: Any) -> Any:
        tried.append(context.clip.item)
        raise OSError("no space")

    monkeypatch.setitem(functions.FUNCTIONS, "objects", fails)
    options = Options(stages=("ingest", "objects"), attempts=2, progress=False)
    first = synthesise([str(path)], tmp_path / "out", options=options)
    second = synthesise([str(path)], tmp_path / "out", options=options)
    third = synthesise([str(path)], tmp_path / "out", options=options)
    assert len(tried) == 2
    assert len(first["failed"]) == 1
    assert second["failed"] == third["failed"] == []
    assert third["quarantined"] == first["failed"]
    assert third["stages"]["objects"]["quarantined"] == {"OSError: no space": 1}


def test_what_says_nothing_about_a_clip_is_no_attempt(
    no_pool: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spent budget leaves the clip for a later run, however often; wrong weights or keys end the run."""
    path, out = video(tmp_path / "v.mp4", 4, noise(7)), tmp_path / "out"
    raised: list[Exception] = [BudgetError("0 calls are made")]

    def stage(context: Any) -> Any:
        if raised:
            raise raised[0]
        return {"names": []}

    monkeypatch.setitem(functions.FUNCTIONS, "objects", stage)
    options = Options(stages=("ingest", "objects"), attempts=2, progress=False)
    for _ in range(3):
        found = synthesise([str(path)], out, options=options)
        assert (len(found["failed"]), found["quarantined"]) == (1, [])
        assert found["stages"]["objects"]["failed"] == {"0 calls are made": 1}
    for error in (ConfigError("the endpoint answers 401"), CheckpointError("no weights")):
        raised[0] = error
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"v-.*: objects: {error}"):
                synthesise([str(path)], out, options=options)
    raised.clear()
    found = synthesise([str(path)], out, options=options)
    assert (found["failed"], found["quarantined"]) == ([], [])
    assert found["stages"]["objects"]["done"] == 1


@pytest.mark.parametrize(
    ("calls", "videos", "processes"), [(3, 9, 3), (0, 9, 1), (100, 2, 2), (100, 9, 4), (None, 1, 4)]
)
def test_each_process_has_a_share_of_the_calls(calls: int | None, videos: int, processes: int) -> None:
    settings = SynthSettings(namer_model="m", namer_max_calls=calls)
    assert _useful(4, settings, Options(), videos) == processes


@pytest.mark.parametrize("name", ["namer_weights", "segment_weights", "depth_weights"])
def test_weights_that_are_not_there_are_named_before_anything_begins(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"{name} is .*empty, which holds no config.json"):
        synthesise(["scenes:1"], tmp_path / "out", SynthSettings(**{name: tmp_path / "empty"}), QUIET)
    assert not (tmp_path / "out").exists()


def test_other_weights_in_the_same_folder_are_noticed(
    no_pool: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were told by their path: new weights left the old names in the records."""
    path, weights = video(tmp_path / "v.mp4", 4, noise(7)), tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(b"old")
    named: list[str] = []
    monkeypatch.setitem(
        functions.FUNCTIONS, "objects", lambda context: named.append(context.clip.item) or {"names": []}
    )
    options = Options(stages=("ingest", "objects"), progress=False)

    def made() -> int:
        synthesise([str(path)], tmp_path / "out", SynthSettings(namer_weights=weights), options)
        return len(named)

    assert (made(), made()) == (1, 1)
    (weights / "model.safetensors").write_bytes(b"new")
    assert (made(), made()) == (2, 2)
    (weights / "README.md").write_text("nothing of the model")
    weights.rename(tmp_path / "moved")
    weights.symlink_to(tmp_path / "moved")
    assert made() == 2


def test_clips_of_a_long_video_do_not_overlap_and_leave_nothing_out(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", 40, noise(8))
    source = Source("v", str(path), "d", "d", "v.mp4")
    found = list(clips_module.read_clips(source, (0.0, 40.0), SynthSettings()))
    spans = [(clip.start, clip.end) for clip in found if isinstance(clip, Clip)]
    assert spans[0][0] == 0
    assert spans[-1][1] == pytest.approx(40, abs=0.11)
    assert all(a[1] == pytest.approx(b[0]) for a, b in pairwise(spans))
    assert all(3 <= end - start <= 15 for start, end in spans)


def test_a_clip_that_is_read_by_itself_is_the_same(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", 20, noise(9))
    source, settings = Source("v", str(path), "d", "d", "v.mp4"), SynthSettings()
    for clip in clips_module.read_clips(source, (0.0, 20.0), settings):
        assert isinstance(clip, Clip)
        alone = clips_module.read_clip(source, clip.item, clip.start, clip.end, settings)
        assert (alone.pixels == clip.pixels).all()
        assert alone.times.tolist() == clip.times.tolist()
        assert (alone.start, alone.end, alone.chosen) == (clip.start, clip.end, clip.chosen)


def test_windows_share_a_long_video() -> None:
    from types import SimpleNamespace

    found: Any = SimpleNamespace(frames=9000, size=(48, 64), begin=1.0, end=301.0)
    parts = windows(found, Source("v", "", "d", "d", "v"), SynthSettings())
    assert parts == [(1.0, 151.0), (151.0, 301.0)]


def test_what_is_known_of_a_video_is_read_once_for_all_its_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read for each window, and each job took what is known of all of them along."""
    source, settings = Source("v", "v.mp4", "d", "g", "v"), SynthSettings()
    own = stages.keys(source, settings)
    clips = [[(f"v-{w}{k}-9", k, k + 1.0) for k in range(3)] for w in range(4)]
    parts = {"windows": [(10.0 * w, 10.0 * w + 10) for w in range(4)]}
    results = {"v": parts, **{f"v.w{w}": {"clips": found} for w, found in enumerate(clips)}}
    results |= {name: {"frames": []} for found in clips for name, *_ in found}
    read = []
    monkeypatch.setattr(
        Journal,
        "of_source",
        lambda self, name, usual=Journal.of_source: read.append(name) or usual(self, name),
    )
    with Journal(tmp_path) as journal:
        for item, payload in results.items():
            journal.record(Entry(item, "ingest", own["ingest"], "v", "done", payload=dumps(payload)))
        going = run._Run(tmp_path, settings, Options(), journal, LocalProcesses(work), 1)
        jobs = list(going._of_source(source))
    assert read == ["v"]
    assert [job.clips for job in jobs] == [tuple(found) for found in clips]
    assert [set(job.known) for job in jobs] == [{name for name, *_ in found} for found in clips]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", 20, noise(10))
    (tmp_path / "bad.mp4").write_text("x")
    found = plan([str(path), str(tmp_path / "bad.mp4")], SynthSettings(), Options())
    assert found["videos"] == "2, 1 unreadable"
    assert found["clips"].startswith("about 2")
    assert not any("calls" in name for name in found)
    parts = [{"video": "v.mp4", "start": k, "end": k + 4} for k in (0, 5, 18)]
    (tmp_path / "parts.jsonl").write_text("".join(json.dumps(part) + "\n" for part in parts))
    of_parts = plan([str(tmp_path / "parts.jsonl")], SynthSettings(), Options())
    assert (of_parts["seconds"], of_parts["clips"][:7]) == ("10.0", "about 2")  # the last has 2 s, too few
    assert of_parts["bytes"] == f"{path.stat().st_size / 1e6:.1f} MB"
    (tmp_path / "parts.jsonl").unlink()
    prices = {"narrator_price_in": 1.0, "narrator_price_out": 10.0}
    settings = SynthSettings(namer_model="m", narrator_model="m", narrator_max_calls=4, **prices)
    costs = plan([str(path)], settings, Options())
    assert costs["calls to name things"] == "about 2"
    assert costs["calls to narrate"].startswith("about 4, of ")
    assert 0.01 < float(costs["money"].removeprefix("about ")) < 0.1
    assert "budget" not in costs
    bounded = plan([str(path)], settings.model_copy(update={"narrator_budget": 2.0}), Options())
    assert bounded["budget"].startswith("2 at most, beside what the first call costs where a picture is")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.mp4", "v.mp4"]


def test_keys_change_with_what_matters_and_with_nothing_else() -> None:
    source = Source("v", "", "d", "d", "v")
    base = stages.keys(source, SynthSettings())
    assert stages.keys(source, SynthSettings(shard_records=5, splits={"all": 1.0})) == base
    moved = stages.keys(source, SynthSettings(imagery=("trail",)))
    assert {stage for stage in base if base[stage] != moved[stage]} == {"imagery"}
    other = stages.keys(source, SynthSettings(analysis_fps=5.0))
    assert all(base[stage] != other[stage] for stage in base)
    json.dumps(SynthSettings().plain())


def test_a_process_that_dies_before_it_begins_costs_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four scenes the first two meet it; then a working process, and one that dies within its item."""
    lost = [Lost("", "", "no memory"), Lost("", "", "no memory"), None, "within"]

    def dying(jobs: Any, processes: Any, *, handle: Any, more: Any, **options: Any) -> None:
        for job, how in zip(jobs, lost, strict=True):
            messages: list[Any] = []
            work(job, messages.append)
            within = Lost(f"{job.source.name}.w0", "ingest", "killed")
            for message in [within] if how == "within" else messages if how is None else [how]:
                if not isinstance(message, Begin):
                    handle(job, message)

    monkeypatch.setattr(run, "run_jobs", dying)
    options = Options(stages=("objects",), workers=2, progress=False)
    summary = synthesise(["scenes:4"], tmp_path, SynthSettings(analysis_fps=4), options)
    assert len(summary["failed"]) == 3
    with Journal(tmp_path) as journal:
        names = [item.partition(".")[0] for item in summary["failed"]]
        entries = [entry for name in names for entry in journal.of_source(name)]
    assert sorted((e.reason, e.attempts) for e in entries if e.state == "failed") == [
        ("killed", 1),
        ("no memory", 0),
        ("no memory", 0),
    ]
    lost[:] = [Lost("", "", "no memory")] * 3
    with pytest.raises(ConfigError, match="3 processes in a row ended before they began: no memory"):
        synthesise(["scenes:4"], tmp_path, SynthSettings(analysis_fps=4), options)
