"""The scenes of the ablation: the demo's, its base model, and every kind of imagery of the synthesis."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.backbones import load_checkpoint
from fourdthinker.demo.data import ask_split, caption_text, demo_world, question_id
from fourdthinker.demo.pipeline import render_scenes
from fourdthinker.demo.questions import SUBJECTS, label, narrate, subject
from fourdthinker.demo.settings import DemoSettings
from fourdthinker.demo.work import Work, is_done, mark_done
from fourdthinker.files import atomic_writer, make_folder, write_json
from fourdthinker.records import Record
from fourdthinker.sampler import encode_imagery
from fourdthinker.synth import imagery
from fourdthinker.synth.geometry import scene_camera
from fourdthinker.worlds import scenes

log = logging.getLogger("bench.ablation")

OVERLAY = "overlay"  # the demo's own imagery
KINDS = ("silhouette", "depth", "trail", "map", "next")  # the others of `fourdthinker synth --imagery`
_CHUNK = 64  # clips whose pictures are encoded together


def picture(clip: scenes.RenderedWorld, kind: str, solid: int, number: int) -> NDArray[np.uint8]:
    """What one block stands for.

    Args:
        clip: the rendered scene.
        kind: OVERLAY, or one of KINDS, which are drawn as the synthesis draws them.
        solid: the one that the question is about.
        number: of the key frame.

    Returns:
        uint8 [H, W, 3].
    """
    world = clip.world
    frame = range(len(world.seconds))[scenes.KEY_FRAMES[number]]
    pixels, mask = clip.pixels[frame], clip.mask(solid)[frame]
    if kind == OVERLAY:
        return imagery.overlay(pixels, mask)
    if kind == "silhouette":
        return imagery.silhouette(mask)
    if kind == "depth":
        return imagery.depth_picture(clip.depth[frame])
    centres = world.solids[solid].centre
    if kind == "trail":
        return imagery.trail(pixels, world.project(centres)[: frame + 1, :2].astype(np.float64))
    if kind == "next":
        following = min(number + 1, len(scenes.KEY_FRAMES) - 1)
        return clip.pixels[scenes.KEY_FRAMES[following]]
    if kind == "map":
        camera = scene_camera(world)
        paths = [camera.centres, centres.astype(np.float64)]
        above, there = imagery.from_above(camera.poses, paths)
        forward = (camera.rotations[:, :, 2] @ camera.rotations[0])[:, [0, 2]]
        return imagery.top_down((world.size, world.size), above, forward, there, frame)
    raise ValueError(f"imagery {kind!r}: it is {OVERLAY} or one of {', '.join(KINDS)}")


def sample_texts(settings: DemoSettings) -> list[str]:
    """Captions, questions and reasoning of a few scenes: what the demo's code makes of its settings."""
    numbers = [*range(0, 24, 7), *range(24, 48, 7)]  # motions that differ, captions of either order
    worlds = [demo_world(settings.render, settings.seed, "train", index) for index in numbers]
    labelled = [(world, label(world)) for world in worlds]
    texts = [caption_text(index, world) for index, world in zip(numbers, worlds, strict=True)]
    for world, asked in zip(worlds, ask_split(labelled, "train", settings.seed), strict=True):
        texts += [text for question in asked for text in (question.text, narrate(world, question))]
    return texts


def prepare(folder: Path, settings: DemoSettings) -> Work:
    """The demo's phases before DIFT, as far as they are not done, in this process alone.

    Args:
        folder: of the demo's files.
        settings: of the demo.

    Returns:
        What the later phases need, with scenes, base model and features.
    """
    make_folder(folder)
    write_json(folder / "settings.json", settings.to_dict())
    if not is_done(folder, "render", settings):
        render_scenes(folder, settings, processes=1)
    work = Work(folder, settings, rank=0, world=1)
    if not is_done(folder, "base", settings):
        started = time.perf_counter()
        final = work.final("base")
        if final.exists():
            shutil.rmtree(
                final
            )  # whether its features are scaled yet is not known; the last steps are made again
        work.base(**resumable(final.parent, settings.base.steps))
        mark_done(folder, "base", settings, time.perf_counter() - started)
    return work


def resumable(folder: Path, steps: int) -> dict[str, Any]:
    """Settings of a training that goes on after a kill.

    Args:
        folder: of the run.
        steps: that it makes.
    """
    return {
        "output_dir": str(folder),
        "overwrite_output_dir": False,
        "resume_from_checkpoint": "auto",
        "save_steps": max(1, steps // 16),
        "save_total_limit": 1,
    }


def drawn_path(work: Work, split: str, index: int, kind: str, solid: int, number: int) -> Path:
    """Where a picture is drawn to. Its name says the solid where the demo's overlays say it."""
    return work.run / "imagery" / split / f"{index:05d}.solid{solid}.{kind}.{number}.png"


def targets_path(work: Work, kind: str) -> Path:
    """Where the targets of the blocks of all training clips are kept: float32 [n, solids, blocks * K, H]."""
    return work.run / "imagery" / f"train.{kind}.npy"


def _draw(work: Work, split: str, index: int, kinds: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """Draw the pictures of a clip, of each kind all solids' at all key frames; their paths."""
    world = demo_world(work.settings.render, work.settings.seed, split, index)
    clip = scenes.render(world)
    found: dict[str, list[str]] = {}
    for kind in kinds:
        for solid in SUBJECTS:
            for number in range(len(scenes.KEY_FRAMES)):
                path = folder / drawn_path(work, split, index, kind, solid, number).name
                scenes.write_image(path, picture(clip, kind, solid, number))
                found.setdefault(kind, []).append(str(path))
    return found


def draw_held_out(work: Work, kinds: Sequence[str]) -> None:
    """The pictures of the held-out questions: what the oracle is shown.

    Args:
        work: the demo's files.
        kinds: of imagery.
    """
    folder = work.run / "imagery" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(work.counts["test"]):
        _draw(work, "test", index, kinds, folder)


def make_targets(work: Work, kinds: Sequence[str]) -> None:
    """The targets of the training clips, as the tower of the base model sees their pictures.

    Args:
        work: the demo's files.
        kinds: of imagery.
    """
    checkpoint = load_checkpoint(work.final("base"))
    encoder, backbone = checkpoint.encoder(), checkpoint.backbone.eval()
    count, folder = work.counts["train"], make_folder(work.run / "imagery" / "parts")
    parts = {k: [folder / f"{k}.{start:06d}.npy" for start in range(0, count, _CHUNK)] for k in kinds}
    for number, start in enumerate(range(0, count, _CHUNK)):
        if all(parts[kind][number].exists() for kind in kinds):
            continue  # before a kill
        with TemporaryDirectory() as name:
            drawn = [
                _draw(work, "train", index, kinds, Path(name))
                for index in range(start, min(count, start + _CHUNK))
            ]
            for kind in kinds:
                visions = [encoder.overlays(Record("dift", kind, "", images=d[kind])) for d in drawn]
                shape = (len(SUBJECTS), -1, backbone.hidden_size)
                rows = [targets.numpy().reshape(shape) for targets in encode_imagery(backbone, visions)]
                _save(parts[kind][number], np.stack(rows))
        if start // _CHUNK % 8 == 0:
            log.info("imagery of %d of %d clips", start, count)
    for kind, paths in parts.items():
        _save(targets_path(work, kind), np.concatenate([np.load(path) for path in paths]))
    shutil.rmtree(folder)


def _save(path: Path, array: NDArray[np.float32]) -> None:
    with atomic_writer(path) as file:
        np.save(file, array)


def held_out_records(work: Work, kind: str | None) -> list[Record]:
    """The held-out questions, with the pictures that their blocks would stand for.

    Args:
        work: the demo's files.
        kind: of imagery, drawn by `draw_held_out`; None: without pictures.

    Returns:
        The records, in the order of the file.
    """
    records = work.records("test", "rl")
    if kind is None:
        return records
    settings = work.settings
    worlds = [demo_world(settings.render, settings.seed, "test", i) for i in range(work.counts["test"])]
    asked = ask_split([(world, label(world)) for world in worlds], "test", settings.seed)
    paths: dict[str, Any] = {
        question_id("test", question): [
            str(drawn_path(work, "test", index, kind, subject(worlds[index], question), number))
            for number in range(len(scenes.KEY_FRAMES))
        ]
        for index, questions in enumerate(asked)
        for question in questions
    }
    return [replace(record, images=paths[record.id]) for record in records]
