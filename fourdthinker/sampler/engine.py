"""The face of the sampler: what is asked for is checked, and the work planned and run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.backbones.decoding import Decoder, require_full_attention
from fourdthinker.backbones.fused import fused_projections
from fourdthinker.backbones.gathering import require_whole
from fourdthinker.errors import ConfigError
from fourdthinker.sampler.config import SamplingConfig, check_count, row_seed
from fourdthinker.sampler.feed import Feed
from fourdthinker.sampler.logits_processors import Processor, Processors
from fourdthinker.sampler.non_finite import refuse_broken
from fourdthinker.sampler.output import StopScanner
from fourdthinker.sampler.prefill import check_prompts
from fourdthinker.sampler.rollout import Rollout
from fourdthinker.sampler.run import OnTokens, Run, Work
from fourdthinker.sampler.schedule import Plan, make_plan
from fourdthinker.sampler.sizes import MAX_ROWS
from fourdthinker.sampler.step import Stepper
from fourdthinker.sampler.store import token_bytes
from fourdthinker.sampler.vision import describe, encode_prompts

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Prompt


class LatentSampler:
    """Samples rollouts from a backbone.

    Args:
        backbone: the model; it is in eval mode while it samples, and as it was afterwards.
        tokenizer: needed for stop strings only.
        check_every: steps after which the host asks which rows have ended; no result depends on it. None: 1
            on the CPU, where asking is free, and 16 elsewhere.
        kv_budget: bytes that keys and values may take; what does not fit together waits. None: 0.8 of the
            GPU memory that is free or only cached by torch, or a quarter of the machine's on the CPU.
        max_rows: rows in the batch at most; others wait for a free slot.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Any = None,
        *,
        check_every: int | None = None,
        kv_budget: int | None = None,
        max_rows: int = MAX_ROWS,
    ) -> None:
        for name, value in (("check_every", check_every), ("kv_budget", kv_budget), ("max_rows", max_rows)):
            if value is None and name != "max_rows":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                unit = " of bytes" if name == "kv_budget" else ""
                none = "" if name == "max_rows" else ", or None"
                raise ConfigError(f"{name} is {value!r}; it must be an integer{unit}, at least 1{none}")
        self.backbone, self.tokenizer, self.check_every = backbone, tokenizer, check_every
        self.kv_budget, self.max_rows = kv_budget, max_rows

    @property
    def budget(self) -> int:
        """Bytes that keys and values may take in a call that begins now."""
        return self.kv_budget or _budget(self.backbone.device)

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
        on_tokens: OnTokens | None = None,
        feed: Feed | None = None,
    ) -> Rollout:
        """Sample `n` rows of every prompt; row `p * n + s` is sample s of prompt p.

        Args:
            prompts: at least one. Equal prompts are prefilled once, equal clips encoded once.
            n: rows a prompt, at least 1.
            config: the settings; None: `SamplingConfig()`.
            seeds: one integer in [-2^63, 2^63) a row; None: `row_seed(config.seed, p, s)`.
            logits_processor: a `LogitsProcessorList` or any sequence of such callables, applied to the raw
                logits before grammar, penalties and temperature. Called once for all rows in the batch whose
                prompts have the same length, on prompt and emitted ids without padding; the slot of a row
                within a call means nothing. What is returned for rows that have ended is ignored. Rows enter
                only when all others have ended, and on CUDA no graph is used.
            features: of every prompt, as `encode_prompts` returns; None: it is called.
            on_tokens: called with a row's index, its new ids and whether it has ended, every `check_every`
                steps when there are new ones; together they are the ids of the rollout.
            feed: of the rows, what they are fed instead of their own latents (`make_feed`); None: nothing.

        Returns:
            The rows: ids, latents, log-probabilities and why each ended, on the device of the model.

        Raises:
            ConfigError: weights that are sliced over ranks (see `gathered`), no prompts, n < 1, seeds,
                features or a feed that do not fit, EOS ids the model does not have, prompts that are longer
                than the model's context, of another family, or whose vision pads and features differ in
                number, stop strings without a tokenizer, a `kv_budget` too small for a prompt and one row of
                it.
            SamplingError: prompts with a row whose logits leave nothing to sample from.
        """
        config = _settings(config, self.backbone)
        if not prompts:
            raise ConfigError("there are no prompts to sample from; give at least one")
        check_count("n", n)
        if features is not None and len(features) != len(prompts):
            raise ConfigError(
                f"{len(features)} features for {len(prompts)} prompts; give one (or None) for each"
            )
        backbone, spec = self.backbone, self.backbone.vision
        if feed is not None:
            feed.check(len(prompts) * n, backbone.hidden_size)
        require_full_attention(backbone)
        require_whole(backbone)
        eos_ids = _eos_ids(backbone, config)
        stops = self._stops(config, len(prompts) * n, eos_ids)
        row_seeds = _seeds(seeds, len(prompts), n, config.seed)
        vision_ids = (spec.image_token_id, spec.video_token_id)
        timer = _Timer(backbone.device)
        # Triton, events and streams go by the current device, which need not be the model's.
        with torch.cuda.device_of(backbone.embedding_weight), _evaluating(backbone):
            with timer.measure("vision"):
                features = encode_prompts(backbone, prompts) if features is None else features
            check_prompts(
                prompts, features, vision_ids, new=config.max_new_tokens, context=backbone.max_positions
            )
            plan, work = self._plan(prompts, features, n, config, row_seeds)
            work.stops, work.on_tokens, work.feed = stops, on_tokens, feed
            processors = None
            if logits_processor:
                processors = Processors(logits_processor, config.max_new_tokens, backbone.device)
            every = self.check_every or (1 if backbone.device.type == "cpu" else 16)
            positions = max(prompt.next_position for prompt in prompts) + config.max_new_tokens
            # On the CPU two products cost no more than one, and joining them copies the weights.
            joined = fused_projections(backbone) if backbone.device.type == "cuda" else nullcontext()
            with joined as fused:
                decoder = Decoder(backbone, positions, fused)
                stepper = Stepper(backbone, decoder, config, eos_ids.to(backbone.device), processors)
                run = Run(stepper, plan, work, every, timer.measure)
                output = run.run()
            timing = timer.timing() | {"steps": float(run.steps)}
            if run.graphs is not None:
                timing |= {"graphs": float(run.graphs.captured), "capture": run.graphs.seconds}
            group = torch.arange(len(prompts), device=backbone.device).repeat_interleave(n)
            like = backbone.embedding_weight[:0]
            rollout = output.rollout(group, spec.pad_id, eos_ids.tolist(), timing, vision_ids, like)
            refuse_broken(rollout, prompts, features, backbone)
            return rollout

    def check_fits(self, prompt: Prompt, max_new_tokens: int, name: str) -> None:
        """Raise `ConfigError` where one row of a prompt can never be sampled; the pictures are not looked at.

        Args:
            prompt: what would be sampled from.
            max_new_tokens: ids that a row may come to have.
            name: of the prompt, in messages.

        Raises:
            ConfigError: prompt and new ids are longer than the model's context, or need more memory than
                `kv_budget`.
        """
        check_prompts([prompt], [None], (), new=max_new_tokens, context=self.backbone.max_positions)
        make_plan(
            [name],
            [prompt.input_ids.numel()],
            [[0]],
            max_new_tokens,
            token_bytes=token_bytes(self.backbone),
            budget=self.budget,
            max_rows=1,
        )

    def _plan(
        self, prompts: Sequence[Prompt], features: Sequence[Tensor | None], n: int, config: SamplingConfig,
        seeds: Tensor,
    ) -> tuple[Plan, Work]:  # fmt: skip
        """Each distinct prompt once, with the rows that continue it, in chunks that share the memory."""
        unique, slots = _unique(prompts, features)
        rows: list[list[int]] = [[] for _ in unique]
        for p, slot in enumerate(slots):
            rows[slot] += range(p * n, (p + 1) * n)
        plan = make_plan(
            [describe(prompts[u], u) for u in unique],
            [prompts[u].input_ids.numel() for u in unique],
            rows,
            config.max_new_tokens,
            token_bytes=token_bytes(self.backbone),
            budget=self.budget,
            max_rows=self.max_rows,
        )
        row_prompts = [prompt for prompt in prompts for _ in range(n)]
        return plan, Work([prompts[u] for u in unique], [features[u] for u in unique], row_prompts, seeds)

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


class _Timer:
    """Seconds of parts of a call. What is not measured by itself counts as decoding."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.begin = device, time.perf_counter()
        self._seconds = {"vision": 0.0, "prefill": 0.0}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """On CUDA between two events, so that nothing waits."""
        if self.device.type == "cuda":
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self._events.append((name, *events))
            return
        begin = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - begin

    def timing(self) -> dict[str, float]:
        """Seconds of "vision", "prefill" and "decode"; to be called when the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        whole = time.perf_counter() - self.begin
        return self._seconds | {"decode": max(0.0, whole - sum(self._seconds.values()))}


def _budget(device: torch.device) -> int:
    """Bytes for keys and values when the caller names none."""
    if device.type == "cuda":
        # What torch keeps for later allocations counts as free: after a training step that is most of it.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(0.8 * (torch.cuda.mem_get_info(device)[0] + cached))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def _settings(config: SamplingConfig | None, backbone: Backbone) -> SamplingConfig:
    """The settings of a call; a model without latent tokens opens no block."""
    config = config if config is not None else SamplingConfig()
    return replace(config, max_blocks=0) if backbone.latents.absent else config


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
