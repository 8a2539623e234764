"""Records to token ids, position ids and labels: prompts and training samples.

Plain data: no model, no CUDA, picklable.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.frames import FramePolicy, Frames, read_images
from fourdthinker.latents import IMAGERY, LatentSpec, cell_grid
from fourdthinker.positions import mrope_positions, per_frame
from fourdthinker.prompt_style import CHAT_TEMPLATE, PromptStyle, question_text
from fourdthinker.prompts.slots import PICTURE, content, slot_counts, with_times
from fourdthinker.records import Record, read_media
from fourdthinker.samples import IGNORE, Prompt, Sample, Vision
from fourdthinker.vision import VisionSpec

_ASSISTANT = "<|im_start|>assistant"
_SLOT = "ANSWER-GOES-HERE"
_CONTROL = re.compile(r"<\|.*\|>", re.DOTALL)
# Control tokens of some tokenizers (Qwen3-VL's) that an answer is made of, and so the answers to learn.
_ANSWER_TAGS = ("<think>", "</think>")


class _Head(NamedTuple):
    """What stands before an answer, after the end of the answer before."""

    ids: list[int]  # up to and including `<|im_start|>assistant`
    newline: list[int]  # of the newline after it, if the template has one
    prefix: str  # text that the template begins the answer with


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
        (ids, newline, prefix), *more = self._heads(record, vision)
        if more:
            raise RecordError(
                f"{record.where}: a conversation of several turns is no prompt; it can be learnt"
            )
        if self.style.newline_after_assistant or prefix:
            ids = ids + newline
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
        Of a conversation every answer is, with `<|im_end|>` and the token after it, as MLLM-4D does; the
        newline before an answer only where the prompt style leaves it to the model.

        Args:
            record: the question and the answer to learn, or a conversation.
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
        answers = [text for role, text in record.turns if role == "assistant"] or [record.text_output]
        pictures, targets = self._imagery(record, imagery, sum(text.count(IMAGERY) for text in answers))
        newline_learnt = not (record.turns and self.style.newline_after_assistant)
        ids: list[int] = []
        learnt: list[bool] = []
        for (head, newline, prefix), text in zip(self._heads(record, vision), answers, strict=True):
            if prefix:
                head, newline = head + newline + self._tokens(prefix), []
                text = self._after_prefix(text, prefix, record)
            body = self._answer(text, record)
            ids += head + newline + body
            learnt += [False] * len(head) + [newline_learnt] * len(newline) + [True] * len(body)
        tokens = torch.tensor(ids)
        labels = tokens.masked_fill(~torch.tensor(learnt), IGNORE)
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
        parts = [record]
        if record.media:
            parts = [
                replace(record, media=[], video=path)
                if kind == "video"
                else replace(record, media=[], frames=[path], separate=True)
                for kind, path in record.media
            ]
        read = [read_media(part, self.policy, mean=self.spec.mean, std=self.spec.std) for part in parts]
        visions = [Vision.from_frames(frames, self.spec) for frames in read if frames is not None]
        return Vision.joined(visions) if visions else None

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
        texts = [
            ("the question", question_text(record), False),
            ("the system text", record.system or "", False),
        ]
        # What stands for a block is no text of its own: a tokenizer of words has no id for it.
        texts += [("text_output", piece, True) for piece in (record.text_output or "").split(IMAGERY)]
        for role, text in record.turns:
            learnt = role == "assistant"
            pieces = text.split(IMAGERY) if learnt else PICTURE.split(text)[::2]
            texts += [("conversations", piece, learnt) for piece in pieces]
        for key, text, learnt in texts:
            self._data(text, record, key, learnt=learnt)

    # -- text
    def _name(self, token: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(token)

    def _tokens(self, text: str) -> list[int]:
        return (
            list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []
        )

    def _data(self, text: str, record: Record, key: str, *, learnt: bool = False) -> list[int]:
        """Ids of text that somebody else wrote. RecordError when one of them would be a control token."""
        ids = self._tokens(text)
        refused = self._control - self._answer_tags if learnt else self._control
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

    def _answer(self, text: str, record: Record) -> list[int]:
        """Ids of an answer to learn, with a block for each piece of imagery, and of the end of its turn."""
        key, latents = "conversations" if record.turns else "text_output", self.latents
        if IMAGERY in text and latents.absent:
            raise RecordError(
                f"{record.where}: {key} holds {IMAGERY}, and this model has no latent tokens; remove it, or "
                "give the model some (latent_size in DIFT, or `fourdthinker init`)"
            )
        first, *rest = (self._data(piece, record, key, learnt=True) for piece in text.split(IMAGERY))
        block = [latents.start_id, *[latents.pad_id] * latents.latent_size, latents.end_id]
        return [*first, *(i for piece in rest for i in block + piece), *self._turn_end]

    def _after_prefix(self, text: str, prefix: str, record: Record) -> str:
        """The answer without what the prompt holds of it."""
        if not text.lstrip().startswith(prefix.strip()):
            raise RecordError(
                f"{record.where}: {'an answer' if record.turns else 'text_output'} does not begin with "
                f"{prefix.strip()}, which the chat template of this model begins every answer with; add the "
                "reasoning, or use a model whose template leaves the answer open"
            )
        return text.lstrip().removeprefix(prefix.strip()).lstrip()

    def _messages(self, record: Record, kinds: list[str]) -> list[dict[str, Any]]:
        """The turns up to the last of the user, with a slot for every answer before it."""
        self.check_text(record)
        added = question_text(record, self.style.instruction).removeprefix(record.question)
        if record.turns:
            asked = [content(text, added) for role, text in record.turns if role == "user"]
        else:
            asked = [[*({"type": kind} for kind in kinds), {"type": "text", "text": record.question + added}]]
        if self.style.preamble:
            asked[0].insert(0, {"type": "text", "text": self.style.preamble})
        messages: list[dict[str, Any]] = []
        system = self.style.system or None if record.system is None else record.system
        if system is not None:
            messages.append({"role": "system", "content": system})
        for parts in asked:
            messages += [{"role": "user", "content": parts}, {"role": "assistant", "content": _SLOT}]
        return messages[:-1]

    def _heads(self, record: Record, vision: Vision | None) -> list[_Head]:
        """What stands before each answer of a record, the last of which may not be there yet."""
        kinds = [] if vision is None else vision.kind_of_each
        text = self._render(self._messages(record, kinds), True)
        if vision is not None and "video" in kinds and self.spec.tokens_per_second is None:
            step, temporal = self.style.seconds_per_grid, self.spec.temporal_patch_size
            text = with_times(text, vision, self._clip_slot, step, temporal)
        counts = slot_counts(vision, self.spec)
        pieces = text.split(_SLOT) if record.turns else [text]
        if len(pieces) != max(1, sum(role == "user" for role, _ in record.turns)):
            raise RecordError(f"{record.where}: a turn holds {_SLOT}, which stands for answers; change it")
        slots, found, heads = iter(counts), [], []
        for number, piece in enumerate(pieces):
            cut = (
                piece.rfind(_ASSISTANT) + len(_ASSISTANT) if _ASSISTANT in piece else len(piece.rstrip("\n"))
            )
            newline = self._tokens("\n") if piece[cut : cut + 1] == "\n" else []
            prefix = piece[cut:].removeprefix("\n") if _ASSISTANT in piece else ""
            ids: list[int] = []
            for token in self._tokens(piece[:cut]):
                if token in (self.spec.image_token_id, self.spec.video_token_id):
                    found.append(token)
                    ids += [token] * next(slots, (token, 0))[1]
                else:
                    ids.append(token)
            heads.append(_Head(self._after_end(ids) if number else ids, newline, prefix))
        self._check_slots(found, counts, kinds)
        return [head._replace(prefix=heads[-1].prefix) for head in heads]

    def _check_slots(self, found: list[int], counts: list[tuple[int, int]], kinds: list[str]) -> None:
        if found != [pad for pad, _ in counts]:
            kind = kinds[0] if len(set(kinds)) == 1 else "picture"
            pads = " or ".join(sorted({self._name(pad) for pad, _ in counts}))
            raise ConfigError(
                f"the chat template of the tokenizer made {len(found)} {kind} slots for {len(counts)} "
                f"{kind}s; it must write {pads} once for each part of type {kind}, in their order"
            )

    def _after_end(self, ids: list[int]) -> list[int]:
        """What follows the end of an answer."""
        end = self._turn_end
        if ids[: len(end)] != end:
            raise ConfigError(
                "the chat template of the tokenizer ends answers within a conversation otherwise than the "
                "last; training on conversations needs one end of turn"
            )
        return ids[len(end) :]

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
        if unknown := set(vision.kind_of_each) - {"video", "image"}:
            raise ConfigError(
                f"{record.where}: kind of pictures is {unknown.pop()!r}; it is 'video' or 'image'"
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
        if self.latents.compress_strategy != "grid":
            return
        for number, (_, height, width) in enumerate((imagery.grid_thw // self.spec.merge_size).tolist()):
            if cell_grid(height, width, self.latents.latent_size) is None:
                raise RecordError(
                    f"{record.where}: overlay {number} has {height} x {width} features, of which no grid has "
                    f"{self.latents.latent_size} cells; use larger overlays, or latent_pooling=average"
                )

    def _positions(self, ids: Tensor, vision: Vision | None) -> tuple[Tensor, int]:
        seconds, grids = None, None if vision is None else vision.grid_thw
        if self.spec.tokens_per_second is None:
            grids = None if grids is None else per_frame(grids)
        elif vision is not None and "video" in vision.kind_of_each:
            seconds, number = vision.seconds_per_grid, vision.kind_of_each.count("video")
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
