"""The decode loop: prompts shared by their rows, grammar and draws on the device, nothing that depends on
chance.

Every row depends on its prompt, its seed and the settings alone: not on the other rows, on its place among
them, or on how often the host looks which rows have ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError
from fourdthinker.sampler.config import SamplingConfig, row_seed
from fourdthinker.sampler.output import Output, StopScanner
from fourdthinker.sampler.prefill import check_prompts, encode_prompts, prefill
from fourdthinker.sampler.rollout import Rollout
from fourdthinker.sampler.rows import Processor, Processors, Rows

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.prompts import Prompt

_COMPACT_BELOW = 0.75  # ended rows leave the batch when no more than this share of it is alive


class LatentSampler:
    """Samples rollouts from a backbone.

    Args:
        backbone: the model; it is in eval mode while it samples, and as it was afterwards.
        tokenizer: needed for stop strings only.
        check_every: steps between looks at which rows have ended; no result depends on it. None: 1 on the
            CPU, where looking is free, and 16 elsewhere.
    """

    def __init__(
        self, backbone: Backbone, tokenizer: Any = None, *, check_every: int | None = None
    ) -> None:
        if check_every is not None and check_every < 1:
            raise ConfigError(f"check_every is {check_every}; it must be at least 1, or None")
        self.backbone, self.tokenizer, self.check_every = backbone, tokenizer, check_every

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        config: SamplingConfig | None = None,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        logits_processor: Sequence[Processor] | None = None,
        features: Sequence[Tensor | None] | None = None,
    ) -> Rollout:
        """Sample `n` rows of every prompt; row `p * n + s` is sample s of prompt p.

        Args:
            prompts: at least one. Equal prompts are prefilled once, equal clips encoded once.
            config: the settings; None: `SamplingConfig()`.
            seeds: one integer in [-2^63, 2^63) a row; None: `row_seed(config.seed, p, s)`.
            logits_processor: a `LogitsProcessorList` or any sequence of such callables, applied to the raw
                logits before grammar, penalties and temperature. Called once for all rows whose prompts have
                the same length, on prompt and emitted ids without padding; the place of a row within a call
                means nothing. What is returned for rows that have ended is ignored.
            features: of every prompt, as `encode_prompts` returns; None: it is called.

        Raises:
            ConfigError: no prompts, n < 1, seeds or features that do not fit, EOS ids the model does not
                have, prompts whose vision pads and features differ in number, stop strings without a
                tokenizer.
            ValueError: a row whose logits leave nothing to sample from.
        """
        config = config if config is not None else SamplingConfig()
        if not prompts:
            raise ConfigError("there are no prompts to sample from; give at least one")
        if n < 1:
            raise ConfigError(f"n is {n}; at least one sample of every prompt is needed")
        if features is not None and len(features) != len(prompts):
            raise ConfigError(
                f"{len(features)} features for {len(prompts)} prompts; give one (or None) for each"
            )
        backbone, spec = self.backbone, self.backbone.vision
        eos_ids = _eos_ids(backbone, config)
        stops = self._stops(config, len(prompts) * n, eos_ids)
        row_seeds = _seeds(seeds, len(prompts), n, config.seed)
        vision_ids = (spec.image_token_id, spec.video_token_id)
        clock = _Clock(backbone.device)
        with _evaluating(backbone):
            features = encode_prompts(backbone, prompts) if features is None else features
            check_prompts(prompts, features, vision_ids)
            clock.lap("vision")
            unique, slots = _unique(prompts, features)
            prefilled = prefill(backbone, [prompts[u] for u in unique], [features[u] for u in unique])
            clock.lap("prefill")
            group = torch.arange(len(prompts)).repeat_interleave(n)
            row_prompts = [prompts[p] for p in group.tolist()]
            rows = Rows.begin(backbone, config, row_prompts, torch.tensor(slots)[group], row_seeds, prefilled)
            processors = None
            if logits_processor:
                processors = Processors(logits_processor, row_prompts, config.max_new_tokens, backbone.device)
            output = Output(len(row_prompts), backbone.device, stops)
            self._decode(rows, output, config, eos_ids.to(backbone.device), processors)
            clock.lap("decode")
        timing = clock.laps | {"steps": float(output.steps)}
        return output.rollout(group.to(backbone.device), spec.pad_id, timing, vision_ids)

    def _decode(
        self,
        rows: Rows,
        output: Output,
        config: SamplingConfig,
        eos_ids: Tensor,
        processors: Processors | None,
    ) -> None:
        backbone = self.backbone
        every = self.check_every or (1 if backbone.device.type == "cpu" else 16)
        for step in range(config.max_new_tokens):
            output.add(*rows.emit(backbone, config, eos_ids, processors))
            last = step + 1 == config.max_new_tokens
            if last or (step + 1) % every == 0:
                output.look(rows.index, rows.state)
                finished = rows.state["finished"]
                alive = (~finished).nonzero()[:, 0]
                if last or not alive.numel():
                    break
                # Processors may keep something for each row of a call, so the rows of a call stay what they
                # are.
                if processors is None and alive.numel() <= _COMPACT_BELOW * finished.numel():
                    output.flush(rows.index, rows.state, finished)
                    rows.keep(alive)
            rows.advance(backbone, step)
        output.flush(rows.index, rows.state, torch.ones_like(rows.state["finished"]))

    def _stops(self, config: SamplingConfig, rows: int, eos_ids: Tensor) -> StopScanner | None:
        if not config.stop_strings:
            return None
        if self.tokenizer is None:
            raise ConfigError(
                f"stop_strings {config.stop_strings} need text; use LatentSampler(backbone, tokenizer)"
            )
        return StopScanner(self.tokenizer, config.stop_strings, rows, eos_ids.tolist())


@contextmanager
def _evaluating(backbone: Backbone) -> Iterator[None]:
    """Eval mode: dropout would change the policy, and gradient checkpointing switches the cache off."""
    training = [module for module in backbone.modules() if module.training]
    backbone.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Clock:
    """Seconds between laps; waits for the device, so laps are few."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.laps = device, dict[str, float]()
        self.last = self._now()

    def lap(self, name: str) -> None:
        now = self._now()
        self.laps[name] = now - self.last
        self.last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _eos_ids(backbone: Backbone, config: SamplingConfig) -> Tensor:
    ids, latents = config.eos_ids or backbone.vision.eos_ids, backbone.latents
    rows = backbone.head_weight.shape[0]
    for eos in ids:
        if eos >= rows:
            raise ConfigError(
                f"sampling: eos id {eos} is not in the vocabulary of {rows} ids; take one that is"
            )
        if eos in latents.ids:
            raise ConfigError(
                f"sampling: eos id {eos} is one of the latent tokens {latents.ids}; take another"
            )
    return torch.tensor(ids, dtype=torch.int64)


def _seeds(seeds: Sequence[int] | Tensor | None, prompts: int, n: int, seed: int) -> Tensor:
    if seeds is None:
        seeds = [row_seed(seed, p, s) for p in range(prompts) for s in range(n)]
    values = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
    if len(values) != prompts * n:
        raise ConfigError(
            f"{len(values)} seeds for {prompts} prompts of {n} samples; give {prompts * n}, or None"
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
            raise ConfigError(f"seed {value!r} is no integer of 64 bits")
    return torch.tensor(values, dtype=torch.int64)


def _unique(prompts: Sequence[Prompt], features: Sequence[Tensor | None]) -> tuple[list[int], list[int]]:
    """Indices of the distinct prompts, and for every prompt which of them it equals."""
    unique: list[int] = []
    slots: list[int] = []
    known: dict[tuple[Any, ...], int] = {}
    for index, (prompt, feature) in enumerate(zip(prompts, features, strict=True)):
        clip = None if feature is None else (feature.data_ptr(), tuple(feature.shape))
        text = (*prompt.input_ids.tolist(), *prompt.position_ids.flatten().tolist(), prompt.next_position)
        slot = known.setdefault((clip, text), len(unique))
        if slot == len(unique):
            unique.append(index)
        slots.append(slot)
    return unique, slots
