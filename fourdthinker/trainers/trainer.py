"""The training loop: `transformers.Trainer` around a backbone, for both trainers.

Beside `arguments.py` the only file that touches private members of `transformers` and `accelerate`; each one
says why.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from fourdthinker.backbones import load_checkpoint, save_checkpoint
from fourdthinker.backbones.adapters import load_trained
from fourdthinker.backbones.gathering import gathered
from fourdthinker.errors import ConfigError
from fourdthinker.files import append_lines
from fourdthinker.objectives import Metrics
from fourdthinker.sampler import row_seed
from fourdthinker.trainers.batches import ShardedBatches, same
from fourdthinker.trainers.master_weights import MasterWeights
from fourdthinker.trainers.resume import RunState, check_data, finished_updates, run_state
from fourdthinker.trainers.run_folder import (
    FINAL,
    METRICS,
    begin_run,
    resumed_updates,
)
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.update import Forward, MemoryLimitError, NonFiniteLossError, Parts

logger = logging.getLogger(__name__)


class _LogBeforeSaving(TrainerCallback):
    """Ends a log line at every checkpoint, so that a resumed run writes the same lines as an unbroken one.

    A log line is a mean over the steps since the last one, and a resumed run knows none from before its
    checkpoint.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save


class LatentTrainer(Trainer):
    """`transformers.Trainer` around a backbone whose loss is computed inside its forward pass.

    Subclasses give `make_update`. The rest, in the order of an update: `get_batch_samples` (its batches),
    `training_step` (each micro-batch: forward, backward), `_clip_grad_norm` and `_get_grad_norm` (a void
    update is stopped there), the optimizer, `log`, `save_model`.

    Args:
        config: the settings.
        parts: what is trained, on which data.
        batches: which of the items this rank sees when.

    Raises:
        ConfigError: weights of a type that cannot be trained.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        batches: ShardedBatches,
    ) -> None:
        self.settings, self.batches = config, batches
        self.checkpoint, self.items, args = parts.checkpoint, parts.items, parts.args
        backbone = self.checkpoint.backbone
        backbone.freeze_vision(config.freeze_vision)
        self.masters = None if args.deepspeed else MasterWeights(backbone)
        if config.gradient_checkpointing:
            backbone.gradient_checkpointing_enable()
        use_cache = getattr(backbone.config, "use_cache", None)
        super().__init__(model=backbone, args=args, data_collator=same, train_dataset=self.items)
        if use_cache is None:  # Trainer sets it to False, and it would be saved so
            del backbone.config.use_cache
        else:
            backbone.config.use_cache = use_cache
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.add_callback(_LogBeforeSaving())
        self._sums: dict[str, Tensor] = {}
        self._bad: list[int] = []  # items of the current update with a non-finite loss, on this rank
        self._skip_update = False
        self.bad_steps = 0
        self._update: list[list[Forward]] = []
        self._done = 0  # micro-batches of the current update
        self._sums_before: dict[str, Tensor] = {}  # the update
        self.divisions = 0  # how often the forwards were halved because memory ran out
        self._weights_loaded = False

    # ---- what a subclass gives

    def make_update(self, batches: list[Any]) -> list[list[Forward]]:
        """The forwards of one update of the weights.

        Args:
            batches: (index, item) pairs of each micro-batch; on this rank.

        Returns:
            For each micro-batch its forwards, as many on every rank; their gradients add up. A micro-batch
            other than the last may have none.
        """
        raise NotImplementedError

    def divide_update(self) -> list[list[Forward]] | None:
        """The current update at half the rows a forward, or None where every forward has one row."""
        raise NotImplementedError

    def after_forward(self, forward: Forward, *outputs: Any) -> None:
        """Take what the objective returned beyond loss and metrics, before the backward pass."""

    # ---- data

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader of this rank. Trainer's own would shard what is sharded already."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.items,
            batch_sampler=self.batches,
            collate_fn=same,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
        )

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Items of the data set; Trainer would ask the loader's sampler."""
        return len(self.items)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[list[Forward]], None]:
        """The micro-batches of an update. No number of items goes to Trainer: objectives know theirs."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        self._update = self.make_update(batches)
        self._done, self._sums_before = 0, dict(self._sums)
        return self._update, None

    # ---- one micro-batch

    def training_step(
        self, model: nn.Module, inputs: list[Forward], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of the next micro-batch of the update, smaller where memory does not suffice.

        Returns:
            What is logged as loss, a scalar: the share of this rank times the number of ranks.
        """
        model.train()
        first = self._done
        while True:
            try:
                for micro_batch in self._update[first : self._done + 1]:
                    loss = self._micro_batch(model, micro_batch)
                break
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            # Outside of the handler, which would keep what the failed pass has allocated.
            self._begin_smaller(model, reason)
            first = 0
        self._done += 1
        return loss

    def _begin_smaller(self, model: nn.Module, reason: str) -> None:
        """Take back what the update has done so far, and cut its forwards in halves.

        With several processes the others are in the middle of a collective, which cannot be taken back.
        """
        alone = self.args.world_size == 1 and not self.is_deepspeed_enabled
        smaller = self.divide_update() if alone else None
        if smaller is None:
            raise MemoryLimitError(f"step {self.state.global_step + 1}: {reason}")
        self.divisions += 1
        logger.warning(
            "step %d: out of memory; run again at half the rows a forward (%d times halved)",
            self.state.global_step + 1,
            self.divisions,
        )
        self._update, self._sums = smaller, dict(self._sums_before)
        self._bad, self._skip_update = [], False
        model.zero_grad(set_to_none=True)
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()

    def _micro_batch(self, model: nn.Module, forwards: list[Forward]) -> Tensor:
        state = self.accelerator.gradient_state
        steps = state.sync_gradients  # whether the optimizer steps after this micro-batch
        losses = [torch.zeros((), device=self.args.device)]
        for number, forward in enumerate(forwards):
            last = number + 1 == len(forwards)
            context: Any = contextlib.nullcontext()
            if not last and not self.is_deepspeed_enabled:
                context = self.accelerator.no_sync(model)
            # DeepSpeed reduces in every backward pass and steps in the one that this is set for; there is no
            # public way to say that several backward passes belong to one micro-batch.
            state._set_sync_gradients(steps and last)
            with context:
                losses.append(self._forward_backward(model, forward))
        state._set_sync_gradients(steps)
        return torch.stack(losses).sum()

    def _forward_backward(self, model: nn.Module, forward: Forward) -> Tensor:
        batch = self._prepare_inputs(forward.batch)  # moves it to the device, as Trainer's own step does
        with self.compute_loss_context_manager():
            loss, metrics, *outputs = model(batch, forward.objective)
        self.after_forward(forward, *outputs)
        if not self._finite_everywhere(loss, forward):
            return torch.zeros_like(loss)
        self.add_metrics(metrics)
        # Data parallelism averages gradients over ranks, and the loss is a share of a sum over them.
        loss = loss * self.args.world_size
        # DeepSpeed would divide by the accumulation steps, which the global normaliser has done.
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}))
        return loss.detach()

    # ---- updates that are void

    def _finite_everywhere(self, loss: Tensor, forward: Forward) -> bool:
        """Whether the loss is finite on every rank. If not, no rank runs backward and the update is void."""
        finite = torch.isfinite(loss.detach())
        everywhere = finite.to(torch.int32)
        if self.args.world_size > 1:
            dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        if everywhere.item():
            return True
        if not finite.item():
            self._bad += forward.items.unique().tolist()
        self._skip_update = True
        if self.is_deepspeed_enabled:
            self._void_update("loss")
        return False

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Called once per update where gradients are clipped; in a void update nothing is.

        What was accumulated before the bad micro-batch was never reduced.
        """
        return torch.zeros(()) if self._skip_update else super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The one point at which an update can still be taken back.

        Called once per update, between the backward passes and the optimizer step, on every rank. An
        optimizer leaves parameters without a gradient as they are.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self._skip_update:
            self._void_update("loss")
        elif norm is not None and not torch.isfinite(torch.as_tensor(norm)).item():
            # Gradients are already reduced here, so that all ranks come to the same conclusion.
            self._void_update("gradient")
        else:
            return norm
        model.zero_grad(set_to_none=True)
        return torch.zeros(())

    def _void_update(self, what: str) -> None:
        names = [self.items.describe(i) for i in self._bad]
        if self.args.world_size > 1:
            parts: list[list[str]] = [[] for _ in range(self.args.world_size)]
            dist.all_gather_object(parts, names)
            names = [name for part in parts for name in part]
        self._bad, self._skip_update = [], False
        self.bad_steps += 1
        message = f"step {self.state.global_step + 1}: non-finite {what}" + (
            f", in {', '.join(names)}" if names else ""
        )
        if self.is_deepspeed_enabled:
            # Its engine counts backward passes and steps by itself, so that neither can be left out.
            raise NonFiniteLossError(
                f"{message}; under DeepSpeed this ends the run, resume from a checkpoint"
            )
        if self.bad_steps > self.settings.max_bad_steps:
            raise NonFiniteLossError(
                f"{message}; {self.bad_steps} such steps, max_bad_steps is {self.settings.max_bad_steps}. "
                "Look at these records, lower learning_rate, or train in float32"
            )
        logger.warning(
            "%s; the step is skipped (%d of %d)", message, self.bad_steps, self.settings.max_bad_steps
        )

    # ---- metrics

    def most_of_ranks(self, values: list[int]) -> list[int]:
        """Of each of `values` the largest that a rank has."""
        if self.args.world_size == 1:
            return values
        most = torch.tensor(values, device=self.args.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return most.tolist()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """`values` summed over all ranks, in place."""
        if self.args.world_size > 1:
            dist.all_reduce(values)
        return values

    def add_metrics(self, metrics: Metrics) -> None:
        """Add (sum, weight) pairs; what is logged is sum / weight over ranks and steps since the last log."""
        for name, (total, weight) in metrics.items():
            pair = torch.stack([total.detach().double(), weight.double()])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line of metrics, from the first process: to metrics.jsonl, the trackers and the log."""
        if self._sums:  # every rank has the same names: the objectives give all of them for every batch
            names = sorted(self._sums)
            values = torch.stack([self._sums[name].to(self.args.device) for name in names])
            self._sums = {}
            for name, (total, weight) in zip(names, self.sum_over_ranks(values).tolist(), strict=True):
                if weight:
                    logs[name] = total / weight
        logs["bad_steps"] = self.bad_steps
        if self.divisions:
            logs["out_of_memory"] = self.divisions
        super().log(logs, start_time)
        if self.is_world_process_zero():
            entry = self.state.log_history[-1]
            append_lines(Path(self.settings.output_dir) / METRICS, [entry])
            shown = ("loss", "reward", "ce", "cosine", "kl", "grad_norm", "learning_rate", "train_runtime")
            text = ", ".join(f"{key} {entry[key]:.4g}" for key in shown if key in entry)
            logger.info("step %d: %s", entry["step"], text)

    # ---- the optimizer and checkpoints

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's own, on float32 copies of weights that are bfloat16."""
        optimizer = super().create_optimizer(model)
        if self.masters is not None:
            self.masters.attach(optimizer)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a complete checkpoint into `output_dir`, from the first process.

        One that training goes on from (`_internal_call`, of Trainer) has the float32 weights too.
        """
        folder = output_dir or self.settings.output_dir
        with gathered(self.checkpoint.backbone):
            if self.args.should_save:
                save_checkpoint(folder, self.checkpoint)
        if self.args.should_save and _internal_call:
            self._write_run_state(Path(folder), self.state.global_step)
            if self.masters is not None and not self.args.save_only_model:
                self.masters.save(Path(folder))

    def _write_run_state(self, folder: Path, updates: int) -> None:
        run_state(self.settings, self.args, updates, self._data).write(folder)

    @functools.cached_property
    def _data(self) -> str:
        return self.items.fingerprint()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Called by Trainer when it resumes; its own looks for files that a backbone does not write."""
        backbone = self.checkpoint.backbone
        if backbone.model is not backbone.hf:
            load_trained(backbone, Path(resume_from_checkpoint), backbone.dtype)
        elif not self._weights_loaded:
            saved = load_checkpoint(resume_from_checkpoint, dtype=backbone.dtype)
            backbone.load_state_dict(saved.backbone.state_dict())
        if self.masters is not None:
            self.masters.load(Path(resume_from_checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called by Trainer when it resumes.

        On another number of processes there is no state of each: they draw on from the seed, the step and
        their rank. Rollouts do not depend on it.
        """
        if checkpoint is None:
            return
        if RunState.read(Path(checkpoint)).processes == self.args.world_size:
            super()._load_rng_state(checkpoint)
            return
        step = self.state.global_step
        set_seed(row_seed(self.settings.seed, step, self.args.process_index) % 2**32)

    # ---- the run

    def run(
        self, resume: str | None, *, weights_loaded: bool = False, callbacks: Sequence[TrainerCallback] = ()
    ) -> Path:
        """Train, save the complete final checkpoint, and give its folder.

        A finished run that is resumed stays as it is, whatever the schedule.

        Args:
            resume: the checkpoint folder to go on from, or None.
            weights_loaded: whether the model has the weights of that checkpoint already.
            callbacks: added to those of Trainer.
        """
        for callback in callbacks:
            self.add_callback(callback)
        self._weights_loaded = weights_loaded
        final = Path(self.settings.output_dir) / FINAL
        *_, updates = self.set_initial_training_values(self.args, self.get_train_dataloader())
        if self.settings.resume_from_checkpoint is not None:
            finished = finished_updates(final)
            if resume is not None or finished is not None:
                check_data(final if resume is None else Path(resume), self._data)
            if finished == updates:
                logger.info("%s: this run is finished, all %d updates are made", final, updates)
                return final
            if resume is None and finished is not None:
                raise ConfigError(
                    f"resume_from_checkpoint=auto: {final} has seen {finished} updates, {updates} are asked "
                    "for, and no checkpoint is there to go on from; begin a run of its own with "
                    f"model={final}, or set save_steps in a new one"
                )
        begin_run(self.settings, self.args, resume)
        if resume is not None and resumed_updates(resume) >= updates:
            self._load_from_checkpoint(resume)  # all that is missing; Trainer would make one update more
            done = resumed_updates(resume)
        else:
            self.train(resume_from_checkpoint=resume)
            done = self.state.global_step
        self.save_model(str(final))
        if self.is_world_process_zero():
            self._write_run_state(final, done)
        if self.args.world_size > 1:
            dist.barrier()
        return final
