"""``trl.GRPOTrainer`` itself, fed with pictures that are patches already.

Its trainer reads pictures only, so a clip of t frame pairs becomes t pictures of as many vision tokens. What
stands between it and the pictures is a processor of our own, since that of transformers needs torchvision: it
gives the patches that both sides begin with, so that nobody's resizing is timed.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from bench._sampler_cases import IDS
from bench._training_cases import Case, Task, Timed, reward_of
from fourdthinker.backbones.common import Backbone

NEEDS = ("trl", "datasets")
LOSS_PARTS = ("forward", "backward")


def absent() -> str | None:
    """Why TRL cannot be raced here, with the remedy; None where it can."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install 'fourdthinker[bench]'" if missing else None


class _Patches(ProcessorMixin):  # type: ignore[misc]  # untyped
    """What ``GRPOTrainer`` asks of a processor, for prompts that are ids and patches already.

    The content of a message is the number of its prompt.
    """

    def __init__(self, task: Task) -> None:
        vocabulary = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "<unk>": 2}, unk_token="<unk>"))
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=vocabulary, eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
        )
        self.prompts = [as_pictures(task, number) for number in range(len(task.prompts))]

    def apply_chat_template(self, conversation: Any, tokenize: bool = True, **options: Any) -> Any:
        if not tokenize:
            return conversation[-1]["content"][-1]["text"]
        found: dict[str, Any] = dict(
            self(text=[messages[-1]["content"][-1]["text"] for messages in conversation])
        )
        return found | {key: found[key].tolist() for key in ("input_ids", "mm_token_type_ids")}

    def __call__(self, *, text: Sequence[str], **options: Any) -> dict[str, Tensor]:
        chosen = [self.prompts[int(number)] for number in text]
        pictures = {key: torch.cat([p[key] for p in chosen]) for key in ("pixel_values", "image_grid_thw")}
        return pictures | {
            key: torch.stack([p[key] for p in chosen]) for key in ("input_ids", "mm_token_type_ids")
        }

    def batch_decode(self, ids: Sequence[Sequence[int]], **options: Any) -> list[str]:
        return ["" for _ in ids]


def as_pictures(task: Task, number: int) -> dict[str, Tensor]:
    """Prompt ``number``, as long as that of the clip: marks of pictures take the place of words."""
    prompt, (pairs, height, width) = task.prompts[number], task.grid
    picture = torch.full((height * width // 4 + 2,), IDS["image"])
    picture[0], picture[-1] = IDS["vision_start"], IDS["vision_end"]
    words = prompt.input_ids[prompt.input_ids < min(IDS.values())]
    words = words[: prompt.input_ids.numel() - pairs * picture.numel()]
    ids = torch.cat([words[:8], picture.repeat(pairs), words[8:]])
    assert prompt.vision is not None
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IDS["image"]).long(),
        "pixel_values": prompt.vision.patches,
        "image_grid_thw": torch.tensor([[1, height, width]]).repeat(pairs, 1),
    }


def as_shipped(backbone: Backbone) -> Any:
    """The transformers model of a backbone with the attention that it is given where nobody chooses."""
    backbone.hf.set_attn_implementation("sdpa")
    return backbone.hf


class TrlStep(Timed):
    """A step of ``GRPOTrainer``.

    Args:
        backbone: of the model, changed in place.
        task: what is trained on.
        case: how many rows and tokens.
        folder: for the files of Trainer.
        fair: whether the head leaves out rows without a loss, which TRL does on a GPU only, and the tower is
            frozen, as ours is.
        checkpointing: whether layers are recomputed in the backward pass (``gradient_checkpointing``, which
            TRL has on by default).
    """

    def __init__(
        self, backbone: Backbone, task: Task, case: Case, folder: Path, *, fair: bool, checkpointing: bool
    ) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        self.fair = fair
        backbone.freeze_vision(fair)
        rows = [
            {"prompt": [{"role": "user", "content": str(number)}], "images": list(range(task.grid[0]))}
            for number in range(len(task.prompts))
        ]
        config = GRPOConfig(
            str(folder), use_cpu=backbone.device.type == "cpu", report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, max_steps=1, shuffle_dataset=False, bf16=False,
            per_device_train_batch_size=case.prompts * case.completions, num_generations=case.completions,
            max_completion_length=case.new_tokens, beta=0.0, temperature=1.0, top_k=0, learning_rate=1e-6,
            lr_scheduler_type="constant", gradient_checkpointing=checkpointing, log_level="error",
            dataloader_pin_memory=False, generation_kwargs={"min_new_tokens": case.new_tokens},
        )  # fmt: skip
        trainer = GRPOTrainer(
            as_shipped(backbone), _reward, config, Dataset.from_list(rows), processing_class=_Patches(task)
        )
        super().__init__(trainer)
        self.time(trainer, "_generate", "generation")
        self.time(trainer, "compute_loss", "forward")
        self.time(trainer.accelerator, "backward", "backward")

    def __call__(self) -> None:
        with _compacted() if self.fair else contextlib.nullcontext():
            super().__call__()
        self.seconds["loss"] = sum(self.seconds.pop(name) for name in LOSS_PARTS)


def _reward(prompts: Any, completions: Any, completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [reward_of(ids) for ids in completion_ids]


@contextlib.contextmanager
def _compacted() -> Iterator[None]:
    """Let TRL's fused head score only the positions that have a label, on a CPU too."""
    with mock.patch("trl.trainer.utils._use_triton", return_value=True):
        yield
