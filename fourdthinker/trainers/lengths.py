"""How long a record may be: its prompt by the settings, prompt and answer together by the model's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.samples import IGNORE, Prompt, Sample
from fourdthinker.trainers.settings import GrpoConfig, TrainConfig


@dataclass(frozen=True)
class Lengths:
    """The limits of a run.

    Attributes:
        prompt: tokens before the answer at most; None: as `context` leaves.
        answer: tokens that a rollout may come to have; None: the answer is in the sample.
        context: tokens that the model was made for.
    """

    prompt: int | None
    answer: int | None
    context: int

    @classmethod
    def of(cls, config: TrainConfig, context: int) -> Lengths:
        """The limits that the settings and a model's context make."""
        answer = config.max_completion_length if isinstance(config, GrpoConfig) else None
        return cls(config.max_prompt_tokens, answer, context)

    def problem(self, item: Prompt | Sample) -> str | None:
        """What is too long about an encoded record, with the remedy; or None."""
        if isinstance(item, Sample):
            total = item.input_ids.numel()
            supervised = (item.labels != IGNORE).nonzero()
            prompt = int(supervised[0]) if len(supervised) else total
            answer = total - prompt
        else:
            prompt, answer = item.input_ids.numel(), self.answer or 0
        remedy = "take fewer or smaller frames (`frames`), or leave it out with on_bad_record=skip"
        if self.prompt is not None and prompt > self.prompt:
            return (
                f"the prompt has {prompt} tokens and max_prompt_tokens is {self.prompt}; raise it, {remedy}"
            )
        if prompt + answer > self.context:
            what = "max_completion_length" if isinstance(item, Prompt) else "its answer"
            return (
                f"the prompt has {prompt} tokens, with {answer} of {what} that is {prompt + answer}, and the "
                f"model was made for {self.context}; {remedy}"
            )
        return None

    def check(self, items: Sequence[Prompt | Sample]) -> None:
        """ConfigError for the first of some encoded items that is too long."""
        for index, item in enumerate(items):
            if problem := self.problem(item):
                record: Any = item.record
                raise ConfigError(f"{f'item {index}' if record is None else record.where}: {problem}")
