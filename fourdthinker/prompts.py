"""Records to token ids, position ids and labels: prompts and training samples.

Plain data: no model, no CUDA, picklable.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.frames import FramePolicy, Frames, read_images
from fourdthinker.latents import IMAGERY, LatentSpec
from fourdthinker.positions import mrope_positions, per_frame
from fourdthinker.prompt_style import CHAT_TEMPLATE, PromptStyle, question_text
from fourdthinker.records import Record, read_media
from fourdthinker.samples import IGNORE, Prompt, Sample, Vision
from fourdthinker.vision import VisionSpec

_ASSISTANT = "<|im_start|>assistant"
_SLOT = "ANSWER-GOES-HERE"
_CONTROL = re.compile(r"<\|.*\|>", re.DOTALL)
# Control tokens of some tokenizers (Qwen3-VL's) that an answer is made of, and so the answers to learn.
_ANSWER_TAGS = ("<think>", "</think>")


class Encoder:
    """Makes prompts and training samples of records.

    It reads media, needs no model, and can be sent to worker processes.

    Text of records is data: one that would become a control token, which is any token added to the
    tokenizer's words (`<|im_end|>`, `<|video_pad|>`, and where the tokenizer has them `<tool_call>`,
    `<think>`, ...), is refused. The reasoning to learn may hold `<think>` and `</think>`, and so may the
    instruction. The prompt of a sample is, token for token, the prompt that generation starts from.
    """

    def __init__(
        self, tokenizer: Any, vision: VisionSpec, latents: LatentSpec, policy: FramePolicy, style: PromptStyle
    ) -> None:
        """Raise ConfigError for a policy of another family, or an instruction with control tokens.

        The policy's factor must be the patch size times the merge size of the model.
        """
        if policy.factor != vision.factor:
            raise ConfigError(
                f"frame policy: factor is {policy.factor}{_made_for(policy.factor)}, and this model needs "
                f"{vision.factor}, as a {vision.family}; set factor={vision.factor}, and max_pixels and "
                "min_pixels with it"
            )
        self.tokenizer, self.spec, self.latents, self.policy, self.style = (
            tokenizer,
            vision,
            latents,
            policy,
            style,
        )
        self.template: str = tokenizer.chat_template or CHAT_TEMPLATE
        added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        self._control = {i for text, i in tokenizer.get_vocab().items() if _CONTROL.fullmatch(text)}
        self._control |= {*added, *latents.ids, vision.image_token_id, vision.video_token_id}
        self._answer_tags = {i for i, text in added.items() if text in _ANSWER_TAGS}
        for token in self._tokens(style.instruction):
            if token in self._control - self._answer_tags:
                raise ConfigError(
                    f"prompt style: the instruction holds the control token {self._name(token)}; remove it"
                )
        # The slot that a template writes for a clip or picture; in Qwen3-VL each temporal patch gets one.
        start, end = (self._name(i) for i in (vision.vision_start_id, vision.vision_end_id))
        self._clip_slot = f"{start}{self._name(vision.video_token_id)}{end}"

    def prompt(self, record: Record, frames: Frames | Vision | None = None) -> Prompt:
        """The prompt of a record.

        Args:
            record: the question.
            frames: its pictures; None: they are read by the frame policy.

        Returns:
            What the sampler starts from.

        Raises:
            RecordError: text that holds control tokens.
            VideoError: media that cannot be read.
        """
        vision = self._vision(record, frames)
        head, newline, prefix = self._head(record, vision)
        ids = head + newline if self.style.newline_after_assistant or prefix else head
        tokens = torch.tensor(ids + self._tokens(prefix))
        positions, following = self._positions(tokens, vision)
        return Prompt(tokens, positions, following, vision, record, self.spec.family, prefix)

    def sample(
        self,
        record: Record,
        frames: Frames | Vision | None = None,
        imagery: Frames | Vision | Tensor | None = None,
    ) -> Sample:
        """The training sequence of a record with text_output.

        Everything through `<|im_start|>assistant` (and through the beginning of the answer that the chat
        template gives), and latent pads, are labelled -100; the rest, START and END included, is supervised.

        Args:
            record: the question and the answer to learn.
            frames: the pictures of the question; None: they are read by the frame policy.
            imagery: what the blocks stand for, as pictures or as cached targets [N, H]; None: the overlays of
                the record are read.

        Returns:
            The sequence.

        Raises:
            RecordError: text that holds control tokens, or an answer that does not fit the chat template.
            VideoError: media that cannot be read.
        """
        if record.text_output is None:
            raise RecordError(f"{record.where}: text_output is missing; a record to fine-tune on needs it")
        vision = self._vision(record, frames)
        head, newline, prefix = self._head(record, vision)
        text = record.text_output
        if prefix:
            head, newline = head + newline + self._tokens(prefix), []
            if not text.lstrip().startswith(prefix.strip()):
                raise RecordError(
                    f"{record.where}: text_output does not begin with {prefix.strip()}, which the chat "
                    "template of this model begins every answer with; add the reasoning, or use a model "
                    "whose template leaves the answer open"
                )
            text = text.lstrip().removeprefix(prefix.strip()).lstrip()
        pieces = text.split(IMAGERY)
        pictures, targets = self._imagery(record, imagery, len(pieces) - 1)
        block = [
            self.latents.start_id,
            *[self.latents.pad_id] * self.latents.latent_size,
            self.latents.end_id,
        ]
        body = newline + self._data(pieces[0], record, "text_output")
        for piece in pieces[1:]:
            body += block + self._data(piece, record, "text_output")
        tokens = torch.tensor(head + body + self._turn_end)
        labels = tokens.clone()
        labels[: len(head)] = IGNORE
        labels[tokens == self.latents.pad_id] = IGNORE
        is_vision = (tokens == self.spec.video_token_id) | (tokens == self.spec.image_token_id)
        return Sample(
            tokens,
            self._positions(tokens, vision)[0],
            labels,
            vision,
            pictures,
            targets,
            record,
            vision_index=is_vision.nonzero().flatten(),
            latent_index=(tokens == self.latents.pad_id).nonzero().flatten(),
            family=self.spec.family,
        )

    def read(self, record: Record) -> Vision | None:
        """The pictures that a record asks about, as the model takes them; None for text alone.

        Raises:
            VideoError: what cannot be read.
        """
        frames = read_media(record, self.policy, mean=self.spec.mean, std=self.spec.std)
        return None if frames is None else Vision.from_frames(frames, self.spec)

    def overlays(self, record: Record) -> Vision:
        """The pictures that the blocks of a record stand for.

        Args:
            record: names them.

        Returns:
            Their patches.

        Raises:
            VideoError: one that cannot be read.
            RecordError: one that is too small to make a block of.
        """
        form: dict[str, Any] = {"out": "patches", "mean": self.spec.mean, "std": self.spec.std}
        vision = Vision.from_frames(read_images(record.images, self.policy, separate=True, **form), self.spec)
        self._check_size(vision, record)
        return vision

    def check_text(self, record: Record) -> None:
        """Raise RecordError where a text of the record would become a control token of this tokenizer."""
        texts = [("the question", question_text(record)), ("the system text", record.system or "")]
        # What stands for a block is no text of its own: a tokenizer of words has no id for it.
        texts += [("text_output", piece) for piece in (record.text_output or "").split(IMAGERY)]
        for key, text in texts:
            self._data(text, record, key)

    # -- text
    def _name(self, token: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(token)

    def _tokens(self, text: str) -> list[int]:
        return (
            list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []
        )

    def _data(self, text: str, record: Record, key: str) -> list[int]:
        """Ids of text that somebody else wrote. RecordError when one of them would be a control token."""
        ids = self._tokens(text)
        refused = self._control - self._answer_tags if key == "text_output" else self._control
        for token in ids:
            if token in refused:
                raise RecordError(
                    f"{record.where}: {key} holds the control token {self._name(token)}, which text must "
                    "not; remove it or write it differently (with a space after the first character, say)"
                )
        return ids

    def _render(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=prompt
        )

    def _messages(self, record: Record, kind: str, number: int) -> list[dict[str, Any]]:
        self.check_text(record)
        text = question_text(record, self.style.instruction)
        parts: list[dict[str, Any]] = [{"type": kind} for _ in range(number)]
        if self.style.preamble:
            parts.insert(0, {"type": "text", "text": self.style.preamble})
        user = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        if record.system is None:
            return [user]
        return [{"role": "system", "content": record.system}, user]

    def _head(self, record: Record, vision: Vision | None) -> tuple[list[int], list[int], str]:
        """A prompt's ids up to the answer, in parts.

        Ids up to and including `<|im_start|>assistant`, those of the newline after it (if the template has
        it), and the text that the template goes on with.
        """
        kind = "video" if vision is None else vision.kind
        counts: list[int] = []
        if vision is not None:
            counts = (vision.grid_thw.prod(-1) // self.spec.merge_size**2).tolist()
        text = self._render(self._messages(record, kind, len(counts)), True)
        cut = text.rfind(_ASSISTANT) + len(_ASSISTANT) if _ASSISTANT in text else len(text.rstrip("\n"))
        newline = self._tokens("\n") if text[cut : cut + 1] == "\n" else []
        prefix = text[cut:].removeprefix("\n") if _ASSISTANT in text else ""
        text = text[:cut]
        if vision is not None and kind == "video" and self.spec.tokens_per_second is None:
            text, counts = self._with_times(text, vision)
        pad = self.spec.image_token_id if kind == "image" else self.spec.video_token_id
        ids: list[int] = []
        slots = iter(counts)
        found = 0
        for token in self._tokens(text):
            if token != pad:
                ids.append(token)
                continue
            found += 1
            ids += [pad] * next(slots, 0)
        if found != len(counts):
            raise ConfigError(
                f"the chat template of the tokenizer made {found} {kind} slots for {len(counts)} {kind}s; "
                f"it must write {self._name(pad)} once for each part of type {kind}"
            )
        return ids, newline, prefix

    def _with_times(self, text: str, vision: Vision) -> tuple[str, list[int]]:
        """Text with a slot for every temporal patch of every clip, after its seconds, and the tokens of each.

        As the makers' own processor wrote it: the slot of the template is replaced whole. (That of
        transformers 5.17 leaves the template's start and end tokens around all of it.)
        """
        grids = vision.grid_thw.tolist()
        pieces = text.split(self._clip_slot)
        if len(pieces) != len(grids) + 1:
            raise ConfigError(
                f"the chat template of the tokenizer made {len(pieces) - 1} video slots for {len(grids)} "
                f"videos; it must write {self._clip_slot} once for each part of type video"
            )
        text, counts = pieces[0], []
        for clip, (grid, after) in enumerate(zip(grids, pieces[1:], strict=True)):
            times = self._times(vision, clip, grid[0])
            text += "".join(f"<{time:.1f} seconds>{self._clip_slot}" for time in times) + after
            counts += [grid[1] * grid[2] // self.spec.merge_size**2] * grid[0]
        return text, counts

    def _times(self, vision: Vision, clip: int, count: int) -> list[float]:
        """Seconds from the beginning of a clip to the middle of each of its `count` temporal patches."""
        if self.style.seconds_per_grid is None and vision.times is not None:
            times = vision.times[clip]
            if len(times) != count:
                raise ConfigError(f"clip {clip} has {count} temporal patches and {len(times)} times of them")
            return times
        step = self.style.seconds_per_grid
        if step is None:
            step = 1.0 if vision.seconds_per_grid is None else vision.seconds_per_grid[clip]
        frames = self.spec.temporal_patch_size
        return [(patch + (frames - 1) / (2 * frames)) * step for patch in range(count)]

    @cached_property
    def _turn_end(self) -> list[int]:
        """Ids that end the assistant's turn: what the template writes after its content."""
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "text", "text": "?"}]},
            {"role": "assistant", "content": _SLOT},
        ]
        text = self._render(turns, False)
        ids = self._tokens(text.partition(_SLOT)[2])
        if not ids:
            raise ConfigError(
                "the chat template of the tokenizer writes nothing after an assistant's turn; training "
                "needs an end of turn such as <|im_end|> there"
            )
        return ids

    # -- pictures
    def _vision(self, record: Record, frames: Frames | Vision | None) -> Vision | None:
        if frames is None:
            vision = self.read(record)
        else:
            vision = frames if isinstance(frames, Vision) else Vision.from_frames(frames, self.spec)
        if vision is None:
            return None
        if vision.kind not in ("video", "image"):
            raise ConfigError(
                f"{record.where}: kind of pictures is {vision.kind!r}; it is 'video' or 'image'"
            )
        return vision

    def _imagery(
        self, record: Record, imagery: Frames | Vision | Tensor | None, blocks: int
    ) -> tuple[Vision | None, Tensor | None]:
        if imagery is None and len(record.images) == blocks and blocks:
            imagery = self.overlays(record)
        if isinstance(imagery, Tensor):
            have, per_block, what = imagery.shape[0], self.latents.latent_size, "cached latents"
        else:
            imagery = Vision.from_frames(imagery, self.spec) if isinstance(imagery, Frames) else imagery
            have = len(record.images) if imagery is None else imagery.grid_thw.shape[0]
            per_block, what = 1, "images"
        if have != blocks * per_block:
            raise RecordError(
                f"{record.where}: text_output has {blocks} {IMAGERY} and there are {have} {what} for them "
                f"({blocks * per_block} needed); give one overlay for each placeholder, in the same order"
            )
        if isinstance(imagery, Tensor):
            return None, imagery
        if imagery is not None:
            self._check_size(imagery, record)
        return imagery, None

    def _check_size(self, imagery: Vision, record: Record) -> None:
        features = (imagery.grid_thw.prod(-1) // self.spec.merge_size**2).tolist()
        if features and min(features) < self.latents.latent_size:
            raise RecordError(
                f"{record.where}: overlay {features.index(min(features))} has {min(features)} features, "
                f"and a block needs {self.latents.latent_size}; use larger overlays, or a larger min_pixels"
            )

    def _positions(self, ids: Tensor, vision: Vision | None) -> tuple[Tensor, int]:
        seconds, grids = None, None if vision is None else vision.grid_thw
        if self.spec.tokens_per_second is None:
            grids = None if grids is None else per_frame(grids)
        elif vision is not None and vision.kind == "video":
            seconds, number = vision.seconds_per_grid, vision.grid_thw.shape[0]
            if self.style.seconds_per_grid is not None:
                seconds = [self.style.seconds_per_grid] * number
        return mrope_positions(
            ids,
            grid_thw=grids,
            seconds_per_grid=seconds,
            image_token_id=self.spec.image_token_id,
            video_token_id=self.spec.video_token_id,
            merge_size=self.spec.merge_size,
            tokens_per_second=self.spec.tokens_per_second or 0.0,
        )


def _made_for(factor: int) -> str:
    families = {28: " (as for a qwen2_5_vl)", 32: " (as for a qwen3_vl)"}
    return families.get(factor, "")
