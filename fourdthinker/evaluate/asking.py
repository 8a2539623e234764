"""Prompts to answered questions: n samples and one answer at temperature 0 of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.errors import SamplingError
from fourdthinker.evaluate.latent_modes import Key, LatentFeeds
from fourdthinker.evaluate.letters import letter_probabilities, letter_steps
from fourdthinker.evaluate.prompt_batches import Prepared, make_question
from fourdthinker.evaluate.results import AnsweredQuestion, read_answer
from fourdthinker.sampler import LatentSampler, Rollout, SamplingConfig, encode_prompts, seed_of

if TYPE_CHECKING:
    from fourdthinker.prompts import Encoder
    from fourdthinker.records import Record
    from fourdthinker.samples import Prompt, Vision


def sample_seed(seed: int, record_id: str, number: int) -> int:
    """The seed of one sample, whatever else is asked in the same evaluation.

    Args:
        seed: that of the evaluation.
        record_id: of the question.
        number: of the sample, from 0; -1 at temperature 0.

    Returns:
        A hash of the three, in [0, 2^63).
    """
    return seed_of(f"{seed}\n{number}\n{record_id}")


@dataclass
class Asked:
    """A batch of prompts as sampled once.

    Attributes:
        rollout: n rows a prompt.
        keys: of each row.
        prompts: what it was sampled from.
        features: their vision features.
        records: what the prompts ask.
    """

    rollout: Rollout
    keys: list[Key]
    prompts: Sequence[Prompt]
    features: Sequence[Tensor | None]
    records: Sequence[Record]

    def latents(self) -> dict[Key, Tensor]:
        """Of each row what it was fed, [N, H] float32 on the CPU."""
        vectors, rows = self.rollout.latents.float().cpu(), self.rollout.latent_rows.cpu()
        return {key: vectors[rows == row] for row, key in enumerate(self.keys)}


@dataclass
class Asking:
    """How the prompts of an evaluation are asked.

    Attributes:
        sampler: of the model.
        encoder: of the same checkpoint.
        records: all of them; prompts come with their index.
        n: samples of each.
        greedy: whether they are answered at temperature 0 too.
        config: sampling settings.
        feeds: what the model is fed inside blocks.
        letters: whether the probabilities of the letters at temperature 0 are wanted.
        last: by their identity, the pictures of the last batch and their features: many questions about one
            clip are many batches.
    """

    sampler: LatentSampler
    encoder: Encoder
    records: Sequence[Record]
    n: int
    greedy: bool
    config: SamplingConfig
    feeds: LatentFeeds
    letters: bool = False
    last: dict[int, tuple[Vision, Tensor]] = field(default_factory=dict)

    def answer(self, todo: Sequence[tuple[int, Prompt]]) -> list[AnsweredQuestion]:
        """Answers to all of `todo`; those that the model has no answer to fail, and the others go on."""
        failed: list[AnsweredQuestion] = []
        while todo:
            try:
                return failed + self._answered(todo)
            except SamplingError as error:
                failed += [
                    make_question(self.records[todo[k][0]], failed=reason)
                    for k, reason in error.prompts.items()
                ]
                todo = [item for k, item in enumerate(todo) if k not in error.prompts]
        return failed

    def own(self, batches: Iterable[Sequence[Prepared]]) -> dict[Key, Tensor]:
        """The latents that the model thinks itself in all these rows; what fails has none."""
        found: dict[Key, Tensor] = {}
        asking = replace(self, feeds=replace(self.feeds, mode="own"))
        for batch in batches:
            for asked in asking.sampled_rows(batch):
                found |= asked.latents()
        return found

    def sampled_rows(self, batch: Sequence[Prepared]) -> list[Asked]:
        """As `sampled`, without the items that fail."""
        todo = [item for item in batch if not isinstance(item, AnsweredQuestion)]
        while todo:
            try:
                return self.sampled(todo)
            except SamplingError as error:
                todo = [item for k, item in enumerate(todo) if k not in error.prompts]
        return []

    def sampled(self, todo: Sequence[tuple[int, Prompt]]) -> list[Asked]:
        """The n samples, then the row at temperature 0, as far as they are wanted."""
        records, prompts = [self.records[i] for i, _ in todo], [prompt for _, prompt in todo]
        features = self._features(prompts)
        out = []
        for numbers, wanted in ((range(self.n), self.n > 0), (range(-1, 0), self.greedy)):
            if not wanted:
                continue
            keys = [(record.id, k) for record in records for k in numbers]
            config = self.config if numbers[0] >= 0 else replace(self.config, temperature=0.0)
            rollout = self.sampler.sample(
                prompts, len(numbers), config, features=features, feed=self.feeds.feed(keys),
                seeds=[sample_seed(config.seed, id, k) for id, k in keys],
            )  # fmt: skip
            out.append(Asked(rollout, keys, prompts, features, records))
        return out

    def _features(self, prompts: Sequence[Prompt]) -> list[Tensor | None]:
        """Vision features, each distinct clip encoded once, and not again when the last batch showed it.

        Together with others a clip's features would be rounded as these have it, and an evaluation that goes
        on may have others.
        """
        known = [
            replace(prompt, vision=replace(prompt.vision, features=self.last[id(prompt.vision)][1]))
            if prompt.vision is not None and id(prompt.vision) in self.last
            else prompt
            for prompt in prompts
        ]
        with torch.no_grad():
            features = encode_prompts(self.sampler.backbone, known, apart=True)
        self.last.clear()
        for prompt, feature in zip(prompts, features, strict=True):
            if prompt.vision is not None and feature is not None:
                self.last[id(prompt.vision)] = prompt.vision, feature
        return features

    def _answered(self, todo: Sequence[tuple[int, Prompt]]) -> list[AnsweredQuestion]:
        found: list[dict[str, Any]] = [{} for _ in todo]
        for asked in self.sampled(todo):
            drawn = asked.keys[0][1] >= 0
            for values, more in zip(found, self._drawn(asked) if drawn else self._best(asked), strict=True):
                values |= more
        out = []
        for (i, prompt), values in zip(todo, found, strict=True):
            times = prompt.vision.times_from if prompt.vision is not None else "container"
            out.append(make_question(self.records[i], times_from=times, **values))
        return out

    def _drawn(self, asked: Asked) -> list[dict[str, Any]]:
        """Of each record what its samples say."""
        texts, lengths = asked.rollout.texts(self.encoder.tokenizer), asked.rollout.lengths.tolist()
        cut = [reason == "length" for reason in asked.rollout.finish_reason]
        out = []
        for number, record in enumerate(asked.records):
            rows = slice(number * self.n, (number + 1) * self.n)
            out.append(
                {
                    "answers": tuple(read_answer(text, record.options) for text in texts[rows]),
                    "texts": tuple(texts[rows]),
                    "lengths": tuple(lengths[rows]),
                    "truncated": sum(cut[rows]),
                }
            )
        return out

    def _best(self, asked: Asked) -> list[dict[str, Any]]:
        """Of each record its answer at temperature 0."""
        texts = asked.rollout.texts(self.encoder.tokenizer)
        letters: dict[int, dict[str, float]] = {}
        if self.letters:
            options = [record.options for record in asked.records]
            steps = letter_steps(self.encoder.tokenizer, asked.rollout, options)
            letters = letter_probabilities(
                self.sampler.backbone, asked.rollout, asked.prompts, asked.features, steps
            )
        return [
            {"greedy": read_answer(text, record.options), "greedy_text": text, "letters": letters.get(row)}
            for row, (text, record) in enumerate(zip(texts, asked.records, strict=True))
        ]
