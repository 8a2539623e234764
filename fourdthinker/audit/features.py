"""Numbers about each option that need no picture, for a classifier: of itself, and beside its rivals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fourdthinker.audit.question_files import ChoiceQuestion
from fourdthinker.audit.texts import likeness, shape

Array = NDArray[np.float64]

# Of an option; each is also given as the difference from the mean of the question's options, and as a rank.
OF_AN_OPTION = (
    "position",
    "characters",
    "words",
    "steps",
    "reversals",
    "roughness",
    "roughness_per_step",
    "words_of_the_question",
    "mean_likeness",
    "nearest_likeness",
    "number",
    "distance_from_the_mean_number",
    "places_of_the_number",
    "across",
    "along_the_height",
    "into_the_depth",
    "across_from_the_box",
    "along_the_height_from_the_box",
    "into_the_depth_from_the_size",
    "number_by_the_time",
)
# Numbers of the question's text: the middle and the side of a box, the first time, how long the times last.
TOLD = ("box_x", "box_y", "box_side", "first_number", "length_of_numbers")
OF_THE_QUESTION = ("type", "options", "length", "likeness_of_options", *TOLD)
NAMES = (
    *OF_AN_OPTION,
    *(f"{name}_beside" for name in OF_AN_OPTION),
    *(f"{name}_rank" for name in OF_AN_OPTION),
    *OF_THE_QUESTION,
)


def option_features(items: Sequence[ChoiceQuestion]) -> Array:
    """Features of every option of every item, one after the other.

    Args:
        items: the questions.

    Returns:
        float64 [options of all items, len(NAMES)]; what an option has not, such as a number, is 0.
    """
    types = {name: index for index, name in enumerate(sorted({item.type for item in items}))}
    told = _told(items)
    return np.concatenate(
        [_of_item(item, types[item.type], row) for item, row in zip(items, told, strict=True)]
    )


def _told(items: Sequence[ChoiceQuestion]) -> Array:
    """[items, len(TOLD)], less the mean of the file, by its spread; 0 where the text has no such number."""
    nan = float("nan")
    shapes = [shape(item.question) for item in items]
    values = np.array([[*(s.box or (nan,) * 3), *(s.times or (nan,) * 2)] for s in shapes], dtype=np.float64)
    for column in values.T:
        known = column[np.isfinite(column)]
        if len(known):
            column -= known.mean()
            column /= known.std() + 1e-9
    return np.nan_to_num(values)


def _of_item(item: ChoiceQuestion, kind: int, told: Array) -> Array:
    shapes = [shape(text) for text in item.options]
    asked = shape(item.question).words
    likenesses = np.array([[likeness(a.words, b.words) for b in shapes] for a in shapes])
    np.fill_diagonal(likenesses, np.nan)
    numbers = np.array([np.nan if s.number is None else s.number for s in shapes])
    centre = np.nan if np.isnan(numbers).any() else numbers.mean()
    spread = np.nan if np.isnan(numbers).any() else numbers.std() + 1e-9
    own = np.array(
        [
            [
                position,
                s.characters,
                len(s.words),
                s.steps,
                s.reversals,
                s.roughness,
                s.roughness / max(1, s.steps),
                len(s.words & asked) / max(1, len(s.words)),
                np.nanmean(likenesses[position]),
                np.nanmax(likenesses[position]),
                (numbers[position] - centre) / spread,
                abs(numbers[position] - centre) / spread,
                len(text.partition(".")[2].rstrip()) if s.number is not None else 0,
                *s.sides,
                *(np.array(s.sides) * told[:3]),
                (numbers[position] - centre) / spread * told[4],
            ]
            for position, (s, text) in enumerate(zip(shapes, item.options, strict=True))
        ],
        dtype=np.float64,
    )
    of_question = [kind, len(shapes), len(item.question), float(np.nanmean(likenesses)), *told]
    common = np.broadcast_to(np.array(of_question, dtype=np.float64), (len(shapes), len(of_question)))
    own = np.nan_to_num(own)
    return np.concatenate([own, own - own.mean(axis=0), _ranks(own), common], axis=1)


def _ranks(values: Array) -> Array:
    """Of each value of a column, the share of the others that are below it; equal ones count half."""
    below = (values[None] < values[:, None]).sum(axis=1) + 0.5 * (values[None] == values[:, None]).sum(axis=1)
    return (below - 0.5) / max(1, len(values) - 1)
