"""Rollouts elsewhere: Ray actors with GPUs of their own, which sample by the weights that they are sent.

An actor makes its model from the structure alone, and reads no checkpoint. Weights go through Ray's object
store, in pieces, into the tensors that its sampler reads. Calls of an actor run one after the other, so that
what is asked for after `RolloutWorkers.send` is sampled by what was sent.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fourdthinker.backbones.gathering import full_shape
from fourdthinker.errors import ConfigError, FourdError
from fourdthinker.ray_cluster import join_cluster
from fourdthinker.sampler import LatentSampler, Rollout, encode_prompts, joined_groups
from fourdthinker.samples import Prompt
from fourdthinker.trainers.experience import sampling_config
from fourdthinker.trainers.settings import GrpoConfig
from fourdthinker.trainers.update import RolloutWorkerError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from fourdthinker.backbones.common import Backbone

logger = logging.getLogger(__name__)

OPTION = "rollout_workers"
_ATTEMPTS = 3  # actors that may die over the same rollouts
_SMALLER = (
    "rollouts of workers are not halved: set more rollout_workers, or lower per_device_train_batch_size, "
    "num_generations, max_completion_length or the frames of a clip; --dry-run with rollout_workers=0 says "
    "what rollouts take"
)
_PIECE = 2**28  # bytes of weights from which on an object of Ray's store is full

Features = list[Tensor | None]
Piece = dict[str, tuple[np.ndarray[Any, Any], torch.dtype]]


@dataclass(frozen=True)
class Sampled:
    """Rollouts of P prompts.

    Attributes:
        rollout: equally many rows of each prompt, those of a prompt together.
        features: [P] as `encode_prompts` gives them.
        updates: that the oldest weights by which a row was sampled have seen.
    """

    rollout: Rollout
    features: Features
    updates: int

    def split(self, sizes: Sequence[int], pad_id: int) -> list[Sampled]:
        """Those of the first prompts, of the next ones, and so on.

        Args:
            sizes: prompts of each part, P in all.
            pad_id: fills up tokens.
        """
        each, first, made = len(self.rollout.finish_reason) // len(self.features), 0, []
        for size in sizes:
            numbers = range(first, first + size)
            groups = [(self.rollout, range(p * each, (p + 1) * each)) for p in numbers]
            features = self.features[first : first + size]
            made.append(Sampled(joined_groups(groups, pad_id), features, self.updates))
            first += size
        return made


def structure(model: Backbone, device: torch.device | str = "meta") -> Backbone:
    """A copy of a model whose weights have no values; buffers keep theirs, and tied weights stay tied.

    Args:
        model: the original.
        device: of the copy. On "meta" weights take no memory, and buffers are on the CPU.
    """
    home = "cpu" if str(device) == "meta" else device
    memo: dict[int, Any] = {id(b): b.detach().clone().to(home) for b in model.buffers()}
    for weight in model.parameters():
        empty = torch.empty(full_shape(weight), dtype=weight.dtype, device=device)
        memo[id(weight)] = nn.Parameter(empty, requires_grad=False)
    return copy.deepcopy(model, memo)


@dataclass(frozen=True)
class _Setup:
    """What else numbers depend on: device, autocast to bfloat16, precision of float32 products.

    And, where there are stop strings, the tokenizer.
    """

    device: str
    autocast: bool
    precision: str | None
    tokenizer: Any


class _Actor:
    """What an actor is."""

    def __init__(self, model: Backbone, setup: _Setup) -> None:
        if setup.precision is not None:
            torch.backends.fp32_precision = setup.precision  # type: ignore[attr-defined]
        self._setup, self._updates = setup, 0
        self._backbone = structure(model, setup.device).eval()
        self._weights = dict(self._backbone.named_parameters())
        self._sampler = LatentSampler(self._backbone, setup.tokenizer)

    @torch.no_grad()
    def load(self, piece: Piece, updates: int) -> None:
        """Take weights in place: what was captured of the sampler stays valid."""
        for name, (values, dtype) in piece.items():
            weight = self._weights[name]
            if weight.dtype != dtype:  # DeepSpeed's engine has changed it, before anything was sampled
                weight.data = weight.data.to(dtype)
            with warnings.catch_warnings():  # the store's memory is read-only, and is only read
                warnings.simplefilter("ignore", UserWarning)
                read = torch.from_numpy(values)
            weight.copy_(read.view(dtype).view(weight.shape))
        self._updates = updates

    @torch.no_grad()
    def sample(
        self, prompts: list[Prompt], rows: list[int], seeds: list[int], config: Any
    ) -> tuple[Rollout, Features, int]:
        """A row for each number of a prompt in `rows`; features of prompts that brought none."""
        kind = torch.device(self._setup.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self._setup.autocast):
            features = encode_prompts(self._backbone, prompts)
            rollout = self._sampler.sample(
                [prompts[p] for p in rows], 1, config, seeds=seeds, features=[features[p] for p in rows]
            )
        made = [None if _own_features(p) is not None else f for p, f in zip(prompts, features, strict=True)]
        there = [None if f is None else f.cpu() for f in made]
        return _moved(rollout, torch.device("cpu")), there, self._updates


def _own_features(prompt: Prompt) -> Tensor | None:
    return None if prompt.vision is None else prompt.vision.features


def _moved(rollout: Rollout, device: torch.device) -> Rollout:
    values = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    moved: dict[str, Any] = {n: v.to(device) for n, v in values.items() if isinstance(v, Tensor)}
    return replace(rollout, **moved)


def _pieces(model: Backbone, *, trained: bool) -> Iterator[Piece]:
    """Weights as bytes, which processes of a machine share without a copy; all, or those that are trained."""
    piece: Piece = {}
    size = 0
    for name, weight in model.named_parameters():
        if trained and not weight.requires_grad:
            continue
        # A copy on the CPU too: FSDP cannot free whole weights whose memory numpy has seen.
        values = weight.detach().to("cpu", copy=True).contiguous().flatten().view(torch.uint8).numpy()
        piece[name] = values, weight.dtype
        size += values.nbytes
        if size >= _PIECE:
            yield piece
            piece, size = {}, 0
    if piece:
        yield piece


@dataclass(eq=False)
class _Worker:
    """A place for an actor, which may have several one after the other."""

    actor: Any = None
    loading: list[Any] = field(default_factory=list)  # calls since the last job, which must succeed


@dataclass(eq=False)
class Job:
    """Rollouts that were asked for.

    Attributes:
        worker: who samples them.
        numbers: of its prompts among those that were asked for together.
        prompts: these.
        rows: of each row the position of its prompt in `prompts`.
        seeds: of each row.
        calls: of the actor; the last one is the sampling.
        attempts: actors that died over it.
    """

    worker: _Worker
    numbers: list[int]
    prompts: list[Prompt]
    rows: list[int]
    seeds: list[int]
    calls: list[Any] = field(default_factory=list)
    attempts: int = 0


class RolloutWorkers:
    """The actors of one process, `config.rollout_workers` of them.

    Args:
        model: of `structure`, what is trained.
        config: the settings.
        args: of Trainer.
        autocast: whether the process samples under autocast to bfloat16.
        tokenizer: of the model, for stop strings; None: there are none.

    Raises:
        ConfigError: Ray is missing or does not start, or has no room for the actors.
    """

    def __init__(
        self,
        model: Backbone,
        config: GrpoConfig,
        args: TrainingArguments,
        *,
        autocast: bool,
        tokenizer: Any = None,
    ) -> None:
        self._ray, self._began = _joined(config, args)
        precision = getattr(torch.backends, "fp32_precision", None)
        device = args.device.type
        self._model = model
        self._setup = _Setup(device, autocast, precision, tokenizer if config.stop_strings else None)
        self._class = self._ray.remote(num_cpus=1, num_gpus=int(device == "cuda"), max_restarts=0)(_Actor)
        self._config, self._device, self._pad_id = config, args.device, model.vision.pad_id
        # The other processes wait for this one as long as ddp_timeout: all attempts are over before that.
        self._patience = config.ddp_timeout / (_ATTEMPTS + 1)
        self._workers = [_Worker() for _ in range(config.rollout_workers)]
        self._jobs: list[Job] = []  # not collected yet
        self._source: Backbone | None = None
        self.updates: int | None = None  # that the weights which were sent last have seen

    def send(self, backbone: Backbone, updates: int) -> None:
        """Send weights: all of them at first, later those that are trained.

        Args:
            backbone: with whole weights, also while rollouts are collected: an actor that takes the place of
                another gets those that are there then.
            updates: that they have seen; nothing is sent where actors have them.
        """
        if updates == self.updates:
            return
        first = self._source is None
        self._source, self.updates = backbone, updates
        if first:
            for worker in self._workers:
                self._start(worker)
        self._load(self._workers, trained=not first)

    def begin(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Job]:
        """Ask for rollouts, which are sampled while this process does something else.

        Args:
            prompts: P prompts.
            seeds: one for each row, those of a prompt together; a row depends on prompt and seed alone.

        Returns:
            What `collect` takes.
        """
        each = len(seeds) // len(prompts)
        jobs = []
        for worker, part in zip(
            self._workers, torch.arange(len(seeds)).tensor_split(len(self._workers)), strict=True
        ):
            rows = part.tolist()
            if not rows:
                continue
            numbers = sorted({row // each for row in rows})
            own = [prompts[p] for p in numbers]
            positions = [numbers.index(row // each) for row in rows]
            jobs.append(Job(worker, numbers, own, positions, [seeds[row] for row in rows]))
        self._jobs += jobs
        for job in jobs:
            self._ask(job)
        return jobs

    def collect(self, jobs: Sequence[Job]) -> Sampled:
        """Wait for rollouts. What an actor that dies has not given, another one samples in its place.

        Args:
            jobs: of `begin`.

        Returns:
            The rollouts, on the device of the training; without timing.

        Raises:
            FourdError: what the sampler raises.
            RolloutWorkerError: `_ATTEMPTS` actors died over the same rollouts, one ran out of memory, or its
                code failed.
        """
        features: dict[int, Tensor | None] = {}
        parts, updates = [], []
        for job in jobs:
            rollout, made, seen = self._result(job)
            for number, prompt, feature in zip(job.numbers, job.prompts, made, strict=True):
                known = feature if feature is not None else _own_features(prompt)
                features[number] = None if known is None else known.to(self._device)
            parts.append((_moved(rollout, self._device), range(len(job.rows))))
            updates.append(seen)
        whole = joined_groups(parts, self._pad_id)
        each = len(whole.finish_reason) // len(features)
        group = torch.arange(len(features), device=self._device).repeat_interleave(each)
        # Seconds of actors that work at the same time are no seconds of this process.
        rollout = replace(whole, group=group, timing={})
        return Sampled(rollout, [features[number] for number in sorted(features)], min(updates))

    def close(self) -> None:
        """End the actors, and leave the cluster, if it was joined here."""
        try:
            for worker in self._workers:
                if worker.actor is not None:
                    self._ray.kill(worker.actor)
        finally:
            if self._began:
                self._ray.shutdown()

    # ---- actors

    def _start(self, worker: _Worker) -> None:
        worker.actor, worker.loading = self._class.remote(self._model, self._setup), []

    def _load(self, workers: Sequence[_Worker], *, trained: bool) -> None:
        assert self._source is not None
        for piece in _pieces(self._source, trained=trained):
            stored = self._ray.put(piece)
            for worker in workers:
                worker.loading.append(worker.actor.load.remote(stored, self.updates))

    def _ask(self, job: Job) -> None:
        worker = job.worker
        call = worker.actor.sample.remote(job.prompts, job.rows, job.seeds, sampling_config(self._config))
        job.calls, worker.loading = [*worker.loading, call], []

    def _result(self, job: Job) -> tuple[Rollout, Features, int]:
        errors = self._ray.exceptions
        while True:
            try:
                *_, result = self._ray.get(job.calls, timeout=self._patience)
            except errors.RayTaskError as error:
                if isinstance(error.cause, FourdError):
                    raise error.cause from error
                if isinstance(error.cause, torch.OutOfMemoryError):
                    reason = str(error.cause).partition("\n")[0]
                    raise RolloutWorkerError(
                        f"out of memory in a rollout worker: {reason}; {_SMALLER}"
                    ) from error
                raise RolloutWorkerError(f"a rollout worker failed: {_last_line(error)}") from error
            except errors.RayError as error:  # it has died, its machine has, or it does not answer
                job.attempts += 1
                reason = f"{type(error).__name__}: {_last_line(error)}"
                if isinstance(error, errors.GetTimeoutError):
                    reason = (
                        f"silence of {self._patience:g} s, a quarter of ddp_timeout (raise it where rollouts "
                        "take so long)"
                    )
                if job.attempts == _ATTEMPTS:
                    raise RolloutWorkerError(
                        f"{_ATTEMPTS} rollout workers were lost over the same rollouts, the last one by "
                        f"{reason}; look at Ray's logs (memory, packages), and go on with "
                        "resume_from_checkpoint=auto"
                    ) from error
                self._replace(job.worker, reason)
            else:
                self._jobs.remove(job)
                return result  # type: ignore[no-any-return]

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Start an actor in the place of another, and ask it for all that this one still owes."""
        logger.warning("a rollout worker is lost (%s); another one takes its place", reason)
        self._ray.kill(worker.actor)  # it may be only silent
        self._start(worker)
        self._load([worker], trained=False)
        for job in self._jobs:
            if job.worker is worker:
                self._ask(job)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _joined(config: GrpoConfig, args: TrainingArguments) -> tuple[Any, bool]:
    """Ray, and whether it was joined here; ConfigError where actors of all processes find no room."""
    gpus = args.device.type == "cuda"
    if (gpus or args.world_size > 1) and not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            f"{OPTION} is {config.rollout_workers} and RAY_ADDRESS not set: a Ray that began here would give "
            "away the GPUs that are trained on. Start one on other GPUs (CUDA_VISIBLE_DEVICES=4,5,6,7 ray "
            "start --head), and set RAY_ADDRESS=auto"
        )
    ray, began = join_cluster(OPTION)
    kind, needed = ("GPU" if gpus else "CPU"), config.rollout_workers * args.world_size
    there = int(ray.cluster_resources().get(kind, 0))
    if there < needed:
        if began:
            ray.shutdown()
        raise ConfigError(
            f"{OPTION} is {config.rollout_workers}: {args.world_size} processes need {needed} {kind}s, and "
            f"Ray has {there}; lower it, or start Ray with more"
        )
    return ray, began
