"""A checkpoint that answers questions: the few lines most people need.

thinker = Thinker.from_pretrained("runs/grpo/final")
answer = thinker.generate("kitchen.mp4", "Which way does the camera move?").text
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourdthinker.answers import normalised, parse_answer
from fourdthinker.backbones import Checkpoint, load_checkpoint
from fourdthinker.errors import ConfigError
from fourdthinker.files import LETTERS, PICTURE_SUFFIXES, PathLike
from fourdthinker.frames import FramePolicy, Frames
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.records import Record
from fourdthinker.sampler import LatentSampler, Rollout, SamplingConfig
from fourdthinker.samples import Prompt
from fourdthinker.transcript import TextStream, text_plain

GREEDY = SamplingConfig(temperature=0.0)


@dataclass(frozen=True)
class Answer:
    """One sampled row, ready to be read.

    text: what was written, a latent block shown as "[imagery × 4]"; it begins with what the chat template
    opened the answer with (Qwen3-VL's Thinking models: "<think>"). choice: the letter of the option chosen;
    None without options, or when no option was named. tokens [T] long: the ids, EOS included. latents [N, H]:
    the latent vectors, in order; latent_steps [N]: latent i was fed at the pad tokens[latent_steps[i]].
    finish_reason: "eos", "stop" or "length". Tensors are on the CPU.
    """

    text: str
    choice: str | None
    tokens: Tensor
    latents: Tensor
    latent_steps: Tensor
    finish_reason: str


def _usable(name: str | torch.device | None) -> torch.device:
    """The device of that name, or ConfigError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # no such device; meta tensors have no values
        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise ConfigError(
            f"device {str(name)!r}: torch cannot use it; give {' or '.join(['cpu', *gpus])}"
        ) from error
    return device


class Thinker:
    """A model with its tokenizer, frame policy and sampler.

    sampler, encoder and checkpoint are there for everything beyond `generate` and `sample`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        backbone = checkpoint.backbone
        self.encoder = checkpoint.encoder()
        self.sampler = LatentSampler(backbone, checkpoint.tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: PathLike,
        subfolder: str | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        policy: FramePolicy | None = None,
        override_policy: bool = False,
        plain: bool = False,
        style: PromptStyle | None = None,
    ) -> Thinker:
        """Load a checkpoint from a folder or the Hugging Face hub, ready to sample.

        Args:
            path_or_id: a folder, or a model id `owner/name`.
            subfolder: folder of the checkpoint within it.
            dtype: of the weights; None: the dtype that they were saved in.
            device: where the model runs; None: the first GPU, or the CPU without one.
            policy: as for `load_checkpoint`.
            override_policy: as for `load_checkpoint`.
            plain: as for `load_checkpoint`.
            style: the prompt style; None: the checkpoint's.

        Returns:
            The model with everything around it, in eval mode.

        Raises:
            CheckpointError: as for `load_checkpoint`.
            ConfigError: a device that torch does not have.
        """
        target = _usable(device)
        checkpoint = load_checkpoint(
            path_or_id, subfolder, dtype=dtype, policy=policy, override_policy=override_policy, plain=plain
        )
        checkpoint.backbone.to(target).eval()
        return cls(checkpoint if style is None else replace(checkpoint, style=style))

    def prompt(
        self,
        video: PathLike | Frames | None,
        question: str,
        *,
        images: PathLike | Sequence[PathLike] | None = None,
        options: Sequence[str] = (),
        start: float | None = None,
        end: float | None = None,
        system: str | None = None,
    ) -> Prompt:
        """A question as the sampler takes it; without a video and without images it is text alone.

        Args:
            video: a video file, a folder of frames (a clip, in the order of their names), frames that have
                been read, or None.
            question: what is asked.
            images: one or several separate pictures instead of a video.
            options: texts of 2 to 26 answers to choose from; none: an open question.
            start: second of a video file's presentation time from which it is read; None: from its beginning.
            end: second up to which it is read; None: to its end.
            system: text of a system turn; None: that of the chat template, if it has one.

        Returns:
            The prompt, for `sample` and `answer`.

        Raises:
            ConfigError: arguments that do not fit, or a path that does not exist.
            RecordError: control tokens in a text.
            VideoError: media that cannot be read.
        """
        frames = video if isinstance(video, Frames) else None
        path = None if isinstance(video, Frames) else video
        if images is not None and video is not None:
            raise ConfigError(f"a video ({video}) and images ({images}) are given; ask about one of them")
        record = question_record(
            path, question, images=images, options=options, start=start, end=end, system=system
        )
        return self.encoder.prompt(record, frames=frames)

    def generate(
        self,
        video: PathLike | Frames | None,
        question: str,
        *,
        config: SamplingConfig = GREEDY,
        on_text: Callable[[str], None] | None = None,
        **asked: Any,
    ) -> Answer:
        """Answer one question: `prompt`, then `answer`; errors of both.

        Args:
            video: as for `prompt`.
            question: as for `prompt`.
            config: as for `answer`.
            on_text: as for `answer`.
            asked: further arguments of `prompt`: images, options, start, end, system.

        Returns:
            The answer.
        """
        return self.answer(self.prompt(video, question, **asked), config, on_text=on_text)

    def answer(
        self, prompt: Prompt, config: SamplingConfig = GREEDY, *, on_text: Callable[[str], None] | None = None
    ) -> Answer:
        """Sample one row of a prompt.

        Args:
            prompt: as `prompt` returns.
            config: sampling settings; greedy unless they are given.
            on_text: called with each new piece of the text as it comes; the pieces joined are the answer's
                text.

        Returns:
            The row, to be read.

        Raises:
            ConfigError: as for `LatentSampler.sample`.
            SamplingError: as for `LatentSampler.sample`.
        """
        if on_text is None:
            return self.answers(self.sampler.sample([prompt], config=config), [prompt])[0]
        backbone = self.checkpoint.backbone
        stream = TextStream(
            self.encoder.tokenizer, backbone.latents, config.eos_ids or backbone.vision.eos_ids
        )
        on_text(prompt.assistant_prefix)
        rollout = self.sampler.sample(
            [prompt], config=config, on_tokens=lambda row, ids, ended: on_text(stream.feed(ids))
        )
        on_text(stream.close())
        return self.answers(rollout, [prompt])[0]

    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int = 8,
        config: SamplingConfig | None = None,
        **options: Any,
    ) -> Rollout:
        """Sample several rows of every prompt; see `LatentSampler.sample`.

        Args:
            prompts: as `prompt` returns.
            n: rows of each prompt.
            config: sampling settings; None: temperature 1.
            options: further arguments of `LatentSampler.sample`.

        Returns:
            The rows, as tensors; `answers` makes them readable.
        """
        return self.sampler.sample(prompts, n, config, **options)

    def answers(self, rollout: Rollout, prompts: Sequence[Prompt]) -> list[Answer]:
        """The rows of a rollout, to be read.

        Args:
            rollout: as `sample` returns.
            prompts: what it was sampled from.

        Returns:
            An answer for each row; row p * n + s is sample s of prompt p.
        """
        texts = rollout.texts(self.encoder.tokenizer)
        tokens, latents = rollout.tokens.cpu(), rollout.latents.cpu()
        owners, steps = rollout.latent_rows.cpu(), rollout.latent_steps.cpu()
        answers = []
        for row, (text, length, group) in enumerate(
            zip(texts, rollout.lengths.tolist(), rollout.group.tolist(), strict=True)
        ):
            prompt, mine = prompts[group], owners == row
            text = prompt.assistant_prefix + text
            answers.append(
                Answer(
                    text=text_plain(text),
                    choice=parse_answer(text, prompt.record.options if prompt.record is not None else {}),
                    tokens=tokens[row, :length].clone(),
                    latents=latents[mine],
                    latent_steps=steps[mine],
                    finish_reason=rollout.finish_reason[row],
                )
            )
        return answers


def question_record(
    video: PathLike | None,
    question: str,
    *,
    images: PathLike | Sequence[PathLike] | None = None,
    options: Sequence[str] = (),
    start: float | None = None,
    end: float | None = None,
    system: str | None = None,
    id: str = "question",
) -> Record:
    """A record that only wants an answer.

    Args:
        video: a video file, a folder of frames, or None.
        question: what is asked.
        images: one or several separate pictures instead of a video.
        options: texts of 2 to 26 answers to choose from; none: an open question.
        start: second of the video's presentation time from which it is read.
        end: second up to which it is read.
        system: text of a system turn.
        id: of the record.

    Returns:
        The record. Its paths exist; whether they can be read is not known yet.

    Raises:
        ConfigError: names the value and the remedy.
    """
    if not question.strip():
        raise ConfigError("the question is blank; ask something")
    if options and not 2 <= len(options) <= len(LETTERS):
        raise ConfigError(
            f"{len(options)} options; give 2 to {len(LETTERS)} texts, or none for an open question"
        )
    if any(not text.strip() for text in options):
        raise ConfigError(f"options are {list(options)} and one is blank; give each a text")
    if len({normalised(text) for text in options}) < len(options):
        raise ConfigError(f"two of the options {list(options)} have the same text; give each its own")
    record = Record("ask", id, question, options=dict(zip(LETTERS, options, strict=False)), where=id)
    record.system, record.start, record.end = system, start, end
    if video is not None:
        path = _existing(video)
        if os.path.isdir(path):
            record.frames = _pictures(path)
        else:
            record.video = path
    elif images is not None:
        some = [images] if isinstance(images, (str, os.PathLike)) else list(images)
        if not some:
            raise ConfigError("the list of images is empty; name at least one, or ask without images")
        record.frames, record.separate = [_existing(image) for image in some], True
    for text in (question, *options, system or "", id, record.video or "", *(record.frames or ())):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(
                f"{text!a} holds half of a surrogate pair or bytes that are not UTF-8; no tokenizer and "
                "no file takes them, so write the text as UTF-8, or rename the file"
            )
    for label, second in (("start", start), ("end", end)):
        if second is not None and not 0 <= second < math.inf:
            raise ConfigError(f"{label} is {second}; give seconds of the video, from 0 on")
    if end is not None and end <= (start or 0):
        raise ConfigError(f"end is {end} and start {start or 0}; end must be later than start")
    if record.video is None and (start is not None or end is not None):
        raise ConfigError(f"start {start} and end {end} cut a video file, and none is given; leave them out")
    return record


def _existing(path: PathLike) -> str:
    full = os.path.abspath(os.fspath(path))
    if not os.path.exists(full):
        raise ConfigError(f"{os.fspath(path)}: no such file; check the path")
    return full


def _pictures(folder: str) -> list[str]:
    files = sorted(str(file) for file in Path(folder).iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        raise ConfigError(f"{folder}: the folder holds no pictures ({' '.join(PICTURE_SUFFIXES)})")
    return files
