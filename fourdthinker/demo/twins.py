"""Held-out scenes with their twins: one question of all four, whose answers each one's own geometry gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fourdthinker.demo.data import demo_world, video_path
from fourdthinker.demo.questions import FAMILIES, SUBJECTS, ask, label
from fourdthinker.demo.settings import DemoSettings
from fourdthinker.files import LETTERS
from fourdthinker.records import Record, write_records
from fourdthinker.synth.questions import Question
from fourdthinker.worlds.scenes import World, render, write_video
from fourdthinker.worlds.twins import twins

SCENES = 24  # one for each pair of camera motion and object direction
_NAMES = ("scene", "mirrored", "reversed", "both")
_OPPOSITES = tuple(zip(FAMILIES["camera"][::2], FAMILIES["camera"][1::2], strict=True))


def write_twins(settings: DemoSettings, folder: Path) -> int:
    """Write twins.jsonl, and into the folder `twins` the videos that are not of the test split already.

    Args:
        settings: of the demo; the first scenes of its test split are taken.
        folder: where its scenes are rendered.

    Returns:
        How many records there are: four of each question.
    """
    (folder / "twins").mkdir()
    records = []
    for index in range(min(SCENES, settings.render.test)):
        worlds = twins(demo_world(settings.render, settings.seed, "test", index))
        videos = [video_path(folder, "test", index)]
        for name, world in zip(_NAMES[1:], worlds[1:], strict=True):
            videos.append(folder / "twins" / f"{index:05d}.{name}.mp4")
            write_video(videos[-1], render(world).pixels, world.fps)
        rng = np.random.default_rng([settings.seed, 11, index])
        for questions in _asked(worlds, f"{index:05d}"):
            options = _options(questions, rng)
            records += [
                _record(question, name, video, options)
                for question, name, video in zip(questions, _NAMES, videos, strict=True)
            ]
    write_records(folder / "twins.jsonl", records)
    return len(records)


def _asked(worlds: tuple[World, ...], clip: str) -> list[list[Question]]:
    """Each question that has a clear answer in all the worlds, once for each of them."""
    labels = [label(world) for world in worlds]
    asked = []
    if all(one.camera for one in labels):
        asked.append([ask(*both, "camera", 1, clip) for both in zip(worlds, labels, strict=True)])
    if all(one.direction for one in labels):
        asked.append([ask(*both, "direction", 0, clip) for both in zip(worlds, labels, strict=True)])
    for solid in SUBJECTS:  # the first whose distance changes: one answer is not right for all four then
        if all(one.distance[solid] in ("closer", "farther") for one in labels):
            asked.append([ask(*both, "distance", solid, clip) for both in zip(worlds, labels, strict=True)])
            break
    return asked


def _options(questions: list[Question], rng: np.random.Generator) -> dict[str, str]:
    """Letters and texts, the same for all twins.

    Of the camera's motions, that of the scene and its opposite, and another such pair.
    """
    texts = FAMILIES[questions[0].type]
    if questions[0].type == "camera":
        own = next(pair for pair in _OPPOSITES if questions[0].answer in pair)
        others = [pair for pair in _OPPOSITES if pair != own]
        texts = own + others[rng.integers(len(others))]
    return {LETTERS[k]: texts[i] for k, i in enumerate(rng.permutation(len(texts)))}


def _record(question: Question, name: str, video: Path, options: dict[str, str]) -> Record:
    letter = next(letter for letter, text in options.items() if text == question.answer)
    return Record(
        "rl",
        f"twins-{question.id}-{name}",
        question.text,
        options,
        letter,
        video=str(video),
        type=question.type,
        extra={"source": f"test/{question.clip}", "twins": question.id},
    )
