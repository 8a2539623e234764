"""Records to token ids, positions and labels, and samples to batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fourdthinker.records import Record

INSTRUCTION = (
    "Work it out step by step and picture the scene in your mind where that helps. Put the reasoning between <think> and "
    "</think>, then give the letter and the text of the option you choose between <answer> and </answer>."
)


@dataclass(frozen=True)
class PromptStyle:
    """How a question becomes a prompt; saved with the checkpoint.

    instruction: appended to every question, after an empty line; "" for none.
    newline_after_assistant: whether a prompt to generate from ends with the newline after `<|im_start|>assistant`, or
        leaves that newline to the model. Training supervises it in both cases.
    seconds_per_grid: None: the true seconds between the temporal patches of the clip go to the position ids.
        A number: that number, whatever the clip.
    """

    instruction: str = INSTRUCTION
    newline_after_assistant: bool = True
    seconds_per_grid: float | None = None


# The released 4DThinker checkpoints were trained with positions as at 2 fps on frames taken at 1 fps.
RELEASED = PromptStyle(newline_after_assistant=False, seconds_per_grid=1.0)


@dataclass
class Vision:
    """Pictures of one sample. Rows of `features` are merged features in raster order, clip or image after image.

    grid_thw: [n, 3] long, patches in time, height and width. patches: [sum t*h*w, 1176] float32, or None when
    `features` [sum t*h*w/4, H] is given. kind: "video" or "image": which pad token stands for the features.
    """

    grid_thw: Tensor
    patches: Tensor | None = None
    features: Tensor | None = None
    kind: str = "video"


@dataclass
class Prompt:
    """What the sampler starts from: input_ids [P] long, position_ids [3, P] long, the next text position, pictures."""

    input_ids: Tensor
    position_ids: Tensor
    next_position: int
    vision: Vision | None = None
    record: Record | None = None


@dataclass
class Sample:
    """One training sequence: input_ids [S] long, position_ids [3, S] long, labels [S] long (-100: not supervised).

    imagery: the pictures that the blocks stand for, in order; or latents [N, H]: their cached targets, K per block.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    vision: Vision | None = None
    imagery: Vision | None = None
    latents: Tensor | None = None
    record: Record | None = None
