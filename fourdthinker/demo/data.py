"""The demo's data: clips as mp4 files, overlays as pictures, records as JSONL, and frames as they decode."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourdthinker.demo.questions import SUBJECTS, Labels, ask_all, caption, label, narrate, subject
from fourdthinker.demo.settings import POLICY, DemoSettings, RenderSettings
from fourdthinker.files import create_array
from fourdthinker.frames import read_frames, read_images
from fourdthinker.records import Record, write_records
from fourdthinker.synth.imagery import overlay
from fourdthinker.synth.questions import Question
from fourdthinker.worlds.scenes import (
    CAMERA_MOTIONS,
    DIRECTIONS,
    KEY_FRAMES,
    World,
    make_world,
    render,
    write_image,
    write_video,
)

logger = logging.getLogger(__name__)

SPLITS = ("train", "rl", "test")
WAY = (1.5, 2.2)  # metres that the moving solid goes; shorter: read badly, longer: camera moves suffer
_CHUNK = 20
Labelled = tuple[World, Labels]


@dataclass(frozen=True)
class Job:
    """One stretch of clips of one split, rendered in one process."""

    folder: str
    split: str
    start: int
    stop: int
    seed: int
    settings: RenderSettings


def video_path(folder: str | Path, split: str, index: int) -> Path:
    """Where the clip of world `index` of a split is rendered to."""
    return Path(folder) / split / f"{index:05d}.mp4"


def overlay_path(folder: str | Path, split: str, index: int, solid: int, number: int) -> Path:
    """Where overlay `number` of a solid is rendered to."""
    return Path(folder) / split / f"{index:05d}.solid{solid}.{number}.png"


def render_jobs(settings: DemoSettings, folder: Path) -> list[Job]:
    """All worlds of all splits, in jobs of a few each, so that processes share them evenly."""
    counts = {"train": settings.render.train, "rl": settings.render.rl, "test": settings.render.test}
    return [
        Job(str(folder), split, start, min(count, start + _CHUNK), settings.seed, settings.render)
        for split, count in counts.items()
        for start in range(0, count, _CHUNK)
    ]


def render_clips(
    settings: DemoSettings, folder: Path, processes: int
) -> Iterator[tuple[Job, list[Labelled]]]:
    """Render every split into `folder`, in order, on `processes` of them; 1: in this one.

    Also writes <split>.frames.npy (uint8 [n, T, h, w, 3], the videos as the frame policy reads them back)
    and, but for the test split, <split>.overlays.npy ([n, 2 solids, key frames, h, w, 3]).
    """
    height, width = POLICY.size(settings.render.size, settings.render.size)
    frames = len(POLICY.times(settings.render.frames / POLICY.fps))
    for split in SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
        count = getattr(settings.render, split)
        shapes: dict[str, tuple[int, ...]] = {"frames": (count, frames, height, width, 3)}
        if split != "test":
            shapes["overlays"] = (count, len(SUBJECTS), len(KEY_FRAMES), height, width, 3)
        for name, shape in shapes.items():
            create_array(folder / f"{split}.{name}.npy", np.uint8, shape)
    jobs = render_jobs(settings, folder)
    if processes == 1:
        yield from ((job, render_job(job)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
        yield from zip(jobs, pool.map(render_job, jobs), strict=True)


def _one_thread() -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def demo_world(settings: RenderSettings, seed: int, split: str, index: int) -> World:
    """World `index` of a split. Every pair of camera motion and object direction comes equally often.

    So neither tells of the other.
    """
    return make_world(
        (seed, SPLITS.index(split), index),
        CAMERA_MOTIONS[index % len(CAMERA_MOTIONS)],
        DIRECTIONS[index // len(CAMERA_MOTIONS) % len(DIRECTIONS)],
        frames=settings.frames,
        fps=POLICY.fps,
        size=settings.size,
        way=WAY,
    )


def render_job(job: Job) -> list[Labelled]:
    """Render, encode, read back and label the clips of one job; their worlds."""
    stored = np.load(f"{job.folder}/{job.split}.frames.npy", mmap_mode="r+")
    worlds = []
    for index in range(job.start, job.stop):
        world = demo_world(job.settings, job.seed, job.split, index)
        clip = render(world)
        path = video_path(job.folder, job.split, index)
        write_video(path, clip.pixels, world.fps)
        stored[index] = read_frames(path, POLICY).pixels
        if job.split != "test":
            _overlays(job, index, clip.pixels, [clip.mask(k) for k in SUBJECTS])
        worlds.append((world, label(world)))
    return worlds


def _overlays(job: Job, index: int, pixels: NDArray[np.uint8], masks: list[NDArray[np.bool_]]) -> None:
    stored = np.load(f"{job.folder}/{job.split}.overlays.npy", mmap_mode="r+")
    for solid, mask in zip(SUBJECTS, masks, strict=True):
        paths = []
        for number, frame in enumerate(KEY_FRAMES):
            paths.append(overlay_path(job.folder, job.split, index, solid, number))
            write_image(paths[-1], overlay(pixels[frame], mask[frame]))
        stored[index, solid] = read_images(paths, POLICY, separate=True).pixels


def ask_split(worlds: list[Labelled], split: str, seed: int) -> list[list[Question]]:
    """The questions about each world of a split, for the seed of the demo."""
    return ask_all(worlds, seed * len(SPLITS) + SPLITS.index(split))


def write_all_records(worlds: dict[str, list[Labelled]], folder: Path, seed: int) -> dict[str, int]:
    """Write captions.jsonl, dift.jsonl, rl.jsonl, control.jsonl and test.jsonl.

    Returns how many records each holds.
    """
    questions = {split: ask_split(worlds[split], split, seed) for split in SPLITS}
    files: dict[str, list[Record]] = {
        "captions": [_caption(folder, index, world) for index, (world, _) in enumerate(worlds["train"])]
    }
    for name, split, reasoning in (
        ("dift", "train", True),
        ("rl", "rl", False),
        ("control", "rl", True),
        ("test", "test", False),
    ):
        files[name] = [
            _question(folder, split, index, world, question, reasoning)
            for index, (world, _) in enumerate(worlds[split])
            for question in questions[split][index]
        ]
    for name, records in files.items():
        write_records(folder / f"{name}.jsonl", records)
    return {name: len(records) for name, records in files.items()}


def caption_text(index: int, world: World) -> str:
    """The caption of world `index`: in both orders equally often for every pair of motions."""
    scan_first = index // (len(CAMERA_MOTIONS) * len(DIRECTIONS)) % 2 == 0
    return caption(world, KEY_FRAMES, scan_first=scan_first)


def _caption(folder: Path, index: int, world: World) -> Record:
    return Record(
        "dift",
        f"train-{index:05d}-caption",
        "describe",
        text_output=caption_text(index, world),
        video=str(video_path(folder, "train", index)),
        type="caption",
    )


def question_id(split: str, question: Question) -> str:
    """The id of the record that asks `question` of a split."""
    return f"{split}-{question.id}"


def _question(
    folder: Path, split: str, index: int, world: World, question: Question, reasoning: bool
) -> Record:
    record = Record(
        "dift" if reasoning else "rl",
        question_id(split, question),
        question.text,
        options=question.options,
        answer=question.letter,
        video=str(video_path(folder, split, index)),
        type=question.type,
    )
    if reasoning:
        record.text_output = narrate(world, question)
        record.images = [
            str(overlay_path(folder, split, index, subject(world, question), number))
            for number in range(len(KEY_FRAMES))
        ]
    return record
