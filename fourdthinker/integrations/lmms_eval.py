"""The model of `lmms_eval --model fourdthinker`, found by the entry point group `lmms_eval.models`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages

from fourdthinker.errors import ConfigError
from fourdthinker.integrations.replies import Parts, Reply, replies, sampling
from fourdthinker.records import Record
from fourdthinker.sampler import SamplingConfig
from fourdthinker.thinker import Thinker

log = logging.getLogger(__name__)

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")  # modes of Pillow

MANIFEST = ModelManifest(
    model_id="fourdthinker", chat_class_path="fourdthinker.integrations.lmms_eval.FourDThinker"
)


class FourDThinker(lmms):  # type: ignore[misc]  # untyped base
    """A checkpoint with latent tokens, or a plain Qwen2.5-VL or Qwen3-VL, under lmms-eval (0.7).

    Videos are read by the checkpoint's frame policy, at presentation times, and not by lmms-eval's reader.
    Questions about one video share its decoding and its vision features. lmms-eval's scorers look at the
    beginning of a text, so what they get is the content of `<answer>`, and the whole text where it has none.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        subfolder: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 16,
        max_new_tokens: int | None = None,
        max_blocks: int | None = None,
        whole_text: bool = False,
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        """Load the checkpoint; the arguments are those of `--model_args`.

        Args:
            pretrained: a folder, or a model id `owner/name`.
            subfolder: folder of the checkpoint within it.
            device: where the model runs; None: the first GPU, or the CPU without one.
            dtype: float32, bfloat16 or float16; auto: as the weights were saved.
            batch_size: questions in one call of the sampler.
            max_new_tokens: instead of the task's own bound, which is made for answers without reasoning.
            max_blocks: of latents in an answer; 0: text only.
            whole_text: whether scorers get the reasoning too.
            seed: of sampling, where a task asks for a temperature.
            unknown: refused by name.

        Raises:
            ConfigError: an argument that is unknown or out of range.
            CheckpointError: as for `load_checkpoint`.
        """
        super().__init__()
        if unknown := {key: value for key, value in unknown.items() if value is not None}:
            raise ConfigError(
                f"model_args: {', '.join(unknown)} unknown; give pretrained, subfolder, device, dtype, "
                "batch_size, max_new_tokens, max_blocks, whole_text or seed"
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"batch_size is {batch_size}; give a number of at least 1")
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype is {dtype}; give {', '.join(_DTYPES)}")
        weights = None if dtype == "auto" else getattr(torch, dtype)
        self.thinker = Thinker.from_pretrained(pretrained, subfolder, dtype=weights, device=device)
        self.batch_prompts = int(batch_size)
        self.max_new_tokens, self.max_blocks = max_new_tokens, max_blocks
        self.whole_text, self.seed = whole_text, seed

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer requests.

        Args:
            requests: of chat tasks.

        Returns:
            A text for each, in their order; "" where media cannot be read, or are several videos, with a
            warning.

        Raises:
            ConfigError: a request that the model cannot be asked: audio, several turns.
        """
        found: dict[int, Reply] = {}
        asked: Counter[str] = Counter()  # one that is repeated has a seed of its own each time
        with TemporaryDirectory(prefix="fourdthinker-") as folder:
            alike: dict[SamplingConfig, list[int]] = {}
            records: dict[int, Record] = {}
            for row, request in enumerate(requests):
                _, messages, settings, doc, task, split = request.args
                chat = ChatMessages(messages=messages(self.task_dict[task][split][doc]))
                name = f"{task}/{split}/{doc}/{request.idx}"
                parts = _parts(chat, Path(folder, str(row)), name)
                try:
                    records[row] = parts.record(f"{name}/{asked[name]}")
                except ConfigError as error:  # such as a file that is not there
                    log.warning("%s has no answer: %s", name, error)
                    found[row] = Reply("", failed=str(error))
                    continue
                asked[name] += 1
                alike.setdefault(self._config(settings), []).append(row)
            for config, rows in alike.items():
                some = replies(self.thinker, [records[row] for row in rows], config, self.batch_prompts)
                found |= dict(zip(rows, some, strict=True))
        return [
            GenerationResult(
                found[row].text if self.whole_text else found[row].answer,
                TokenCounts(output_tokens=found[row].tokens),
            )
            for row in range(len(requests))
        ]

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval asks when there are several processes."""
        return self.thinker.checkpoint.backbone.device

    def clean(self) -> None:
        """Let go of the model: lmms-eval may load a judge."""
        del self.thinker
        super().clean()

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse: a model that reasons first has no likelihood of an answer without its reasoning."""
        raise ConfigError(
            f"{requests[0].task_name}: scored by likelihood, and fourdthinker generates; choose a task of "
            "output_type generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse: one question has one answer here."""
        raise ConfigError(
            f"{requests[0].task_name}: several rounds, and the model answers one question; choose another"
        )

    def _config(self, settings: Mapping[str, Any]) -> SamplingConfig:
        # `until` is not asked: its default, an empty line, stands between the paragraphs of reasoning.
        config = sampling(
            self.max_new_tokens or settings.get("max_new_tokens"),
            settings.get("temperature") if settings.get("do_sample", True) else None,
            settings.get("top_p"),
            settings.get("top_k"),
            seed=self.seed,
        )
        return config if self.max_blocks is None else replace(config, max_blocks=self.max_blocks)


def _parts(chat: ChatMessages, folder: Path, name: str) -> Parts:
    """The parts of a chat of one question; pictures that lie in memory are written into `folder`."""
    turns = [message for message in chat.messages if message.role != "system"]
    if [turn.role for turn in turns] != ["user"]:
        raise ConfigError(
            f"{name}: turns of {', '.join(turn.role for turn in turns) or 'nobody'}; the model answers one "
            "turn of a user"
        )
    system = "\n".join(
        part.text
        for turn in chat.messages
        if turn.role == "system"
        for part in turn.content
        if part.type == "text"
    )
    parts = Parts([], [], [], system=system or None)
    for part in turns[0].content:
        if part.type == "text":
            parts.texts.append(part.text)
        elif part.type == "video":
            parts.videos.append(part.url)
            parts.start, parts.end = part.start_time, part.end_time
        elif part.type == "image":
            parts.images.append(_saved(part.url, folder, len(parts.images)))
        else:
            raise ConfigError(f"{name}: {part.type} in a question; the model takes text, video and pictures")
    return parts


def _saved(image: Any, folder: Path, number: int) -> str | Path:
    """The path of a picture; one in memory gets one, as a PNG."""
    if isinstance(image, (str, Path)):
        return image
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}.png"
    (image if image.mode in _OF_PNG else image.convert("RGB")).save(path)
    return path
