"""The training loop: `transformers.Trainer` around a backbone, for both trainers.

Beside `arguments.py` and `checkpointing.py` the only file that touches private members of `transformers` and
`accelerate`; each one says why.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback

from fourdthinker.errors import ConfigError
from fourdthinker.files import append_lines
from fourdthinker.samples import Batch
from fourdthinker.trainers.ahead import Ahead
from fourdthinker.trainers.batches import ShardedBatches, same
from fourdthinker.trainers.checkpointing import ResumableTrainer
from fourdthinker.trainers.loader import Loader
from fourdthinker.trainers.master_weights import MasterWeights
from fourdthinker.trainers.metric_sums import MetricSums
from fourdthinker.trainers.resume import check_data, finished_updates
from fourdthinker.trainers.run_folder import FINAL, METRICS, begin_run, resumed_updates
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.stopping import StopOnSignal
from fourdthinker.trainers.update import Forward, MemoryLimitError, NonFiniteLossError, Parts

logger = logging.getLogger(__name__)

_NO_STATE = "save_only_model=true: no run can go on from its checkpoints, also not after a signal"


class _AfterUpdate(TrainerCallback):
    """Tells the trainer, and ends a log line at every checkpoint: a resumed run writes the same lines.

    A log line is a mean over the steps since the last one, and a resumed run knows none from before its
    checkpoint.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell()
        control.should_log |= control.should_save


class LatentTrainer(ResumableTrainer):
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
        self.stopping = StopOnSignal(batches.repeats)
        self.add_callback(self.stopping)
        self.add_callback(_AfterUpdate(self.after_update))
        # Over the empty batches of further updates on the same rollouts to the next prompts. Workers are
        # ahead by themselves.
        depth = args.gradient_accumulation_steps * batches.repeats
        self._ahead: Ahead[list[Any]] = Ahead(1 if args.dataloader_num_workers else depth)
        self.metric_sums = MetricSums()
        self._bad: list[int] = []  # items of the current update with a non-finite loss, on this rank
        self._skip_update = False
        self.bad_steps = 0
        self._update: list[list[Forward]] = []
        self._done = 0  # micro-batches of the current update
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

    def prepare_batch(self, batch: Batch) -> Batch:
        """Change a batch on the device before its forward."""
        return batch

    def after_update(self) -> None:
        """Called once for each update of the weights, on every rank, before anything is saved."""

    # ---- data

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader of this rank. Trainer's own would shard what is sharded already."""
        workers = self.args.dataloader_num_workers
        return Loader(
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
        batches = self._ahead.take(epoch_iterator, num_batches)
        self.metric_sums.add(self._ahead.metrics)
        self._update = self.make_update(batches)
        self._done = 0
        self.metric_sums.mark()
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
        self._update = smaller
        self.metric_sums.rewind()
        self._bad, self._skip_update = [], False
        model.zero_grad(set_to_none=True)
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()

    def _micro_batch(self, model: nn.Module, forwards: list[Forward]) -> Tensor:
        state = self.accelerator.gradient_state
        steps = state.sync_gradients  # whether the optimizer steps after this micro-batch
        losses = [torch.zeros((), device=self.args.device)]
        try:
            for number, forward in enumerate(forwards):
                last = number + 1 == len(forwards)
                context: Any = contextlib.nullcontext()
                if not last and not self.is_deepspeed_enabled:
                    context = self.accelerator.no_sync(model)
                # DeepSpeed reduces in every backward pass and steps in the one that this is set for; there is
                # no public way to say that several backward passes belong to one micro-batch.
                state._set_sync_gradients(steps and last)
                with context:
                    losses.append(self._forward_backward(model, forward))
        finally:
            state._set_sync_gradients(steps)
        return torch.stack(losses).sum()

    def _forward_backward(self, model: nn.Module, forward: Forward) -> Tensor:
        batch = self._prepare_inputs(forward.batch)  # moves it to the device, as Trainer's own step does
        with self.compute_loss_context_manager():
            batch = self.prepare_batch(batch)
            loss, metrics, *outputs = model(batch, forward.objective)
        self.after_forward(forward, *outputs)
        if not self._finite_everywhere(loss, forward):
            return torch.zeros_like(loss)
        self.metric_sums.add(metrics)
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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line of metrics, from the first process: to metrics.jsonl, the trackers and the log."""
        # Every rank has the same names: the objectives give all of them for every batch.
        logs |= self.metric_sums.take(self.sum_over_ranks, self.args.device)
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

        Returns:
            `output_dir`/final, or the last checkpoint of a run that a signal ended.
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
        if self.args.save_only_model and self.is_world_process_zero():
            logger.warning(_NO_STATE)
        if resume is not None and resumed_updates(resume) >= updates:
            self._load_from_checkpoint(resume)  # all that is missing; Trainer would make one update more
            done = resumed_updates(resume)
        else:
            try:
                with self.stopping.listening():
                    self.train(resume_from_checkpoint=resume)
            finally:
                self._ahead.close()
            done = self.state.global_step
            if self.stopping.stopped:
                how = _NO_STATE if self.args.save_only_model else "resume_from_checkpoint=auto goes on"
                logger.info("%d of %d updates; %s", done, updates, how)
                return Path(self.settings.output_dir) / f"checkpoint-{done}"
        self.save_model(str(final))
        if self.is_world_process_zero():
            self._write_run_state(final, done)
        if self.args.world_size > 1:
            dist.barrier()
        return final
