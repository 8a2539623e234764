"""The training loop: `transformers.Trainer` around a backbone, for both trainers.

Beside `arguments.py`, `checkpointing.py` and `passes.py` the only file that touches private members of
`transformers` and `accelerate`; each one says why.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback
from transformers.utils.logging import is_progress_bar_enabled

from fourdthinker.backbones import gathering
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.compiled import compile_layers
from fourdthinker.backbones.recompute import recompute_cheap_layers
from fourdthinker.errors import ConfigError
from fourdthinker.files import append_lines
from fourdthinker.objectives import Metrics
from fourdthinker.trainers import fsdp
from fourdthinker.trainers.ahead import Ahead
from fourdthinker.trainers.alarms import Alarms
from fourdthinker.trainers.batches import ShardedBatches, same
from fourdthinker.trainers.beginning import begin_run
from fourdthinker.trainers.evaluation import held_out_batches, undisturbed, without_weight
from fourdthinker.trainers.file_digests import files_of
from fourdthinker.trainers.learning_rates import freeze_parts
from fourdthinker.trainers.live import LiveLine, shown_metrics
from fourdthinker.trainers.loader import Loader
from fourdthinker.trainers.master_weights import MasterWeights, check_float16
from fourdthinker.trainers.metric_sums import MetricSums
from fourdthinker.trainers.operations import Costs
from fourdthinker.trainers.passes import CHECKPOINT, EVALUATION, PREPARING, READING, SAVING, PassTrainer
from fourdthinker.trainers.resume import check_data, finished_updates
from fourdthinker.trainers.run_folder import FINAL, METRICS, checkpoint_path, resumed_updates
from fourdthinker.trainers.run_state import RUN
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.update import Forward, Parts

logger = logging.getLogger(__name__)

_SHOWN = (
    "loss",
    "reward",
    "ce",
    "cosine",
    "kl",
    "grad_norm",
    "learning_rate",
    "train_runtime",
    "eval_loss",
    "eval_reward",
    "eval_ce",
    "eval_cosine",
    "eval_seconds",
)
_NO_STATE = "save_only_model=true: no run can go on from its checkpoints, also not after a signal"


class _Told(TrainerCallback):
    """Tells the trainer, and ends a log line at every checkpoint: a resumed run writes the same lines.

    A log line is a mean over the steps since the last one, and a resumed run knows none from before its
    checkpoint. An evaluation may lead to one. Trainer would go on with the intervals of the checkpoint.
    """

    def __init__(self, at_begin: Callable[[], None], after_update: Callable[[], None]) -> None:
        self.at_begin, self.after_update = at_begin, after_update

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)
        self.at_begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after_update()
        control.should_log |= control.should_save or control.should_evaluate


class LatentTrainer(PassTrainer):
    """`transformers.Trainer` around a backbone whose loss is computed inside its forward pass.

    Subclasses give `prepare_update`, `forwards`, `halve` and `evaluate_batch`. The rest, in the order of an
    update: `get_batch_samples` (its batches), `training_step` (each micro-batch: forward, backward),
    `_clip_grad_norm` and `_get_grad_norm` (a void update is stopped there), the optimizer, `log`,
    `save_model`.

    Args:
        config: the settings.
        parts: what is trained, on which data.
        batches: which of the items this rank sees when.

    Raises:
        ConfigError: weights of a type that cannot be trained, or items without the pixels that a tower needs.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        batches: ShardedBatches,
    ) -> None:
        self.settings, self.batches = config, batches
        self.checkpoint, self.items, args = parts.checkpoint, parts.items, parts.args
        self.watch, self.held_out, self.start = parts.watch, parts.held_out, parts.start
        if self.held_out is not None:
            args.set_evaluate("steps", config.eval_steps, config.per_device_eval_batch_size, delay=0)
        backbone = self.checkpoint.backbone
        self._prepare(backbone, args)
        use_cache = getattr(backbone.config, "use_cache", None)
        self.costs = Costs.of(backbone)
        super().__init__(
            model=backbone,
            args=args,
            data_collator=same,
            train_dataset=self.items,
            eval_dataset=self.held_out,
        )
        if args.fsdp:
            fsdp.set_up(self.accelerator, args, backbone)
            self.is_fsdp_enabled = True
        if use_cache is None:  # Trainer sets it to False, and it would be saved so
            del backbone.config.use_cache
        else:
            backbone.config.use_cache = use_cache
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.stopping = parts.stopping
        self.add_callback(self.stopping)
        self.add_callback(_Told(self._begin_updates, self.after_update))
        self._live = LiveLine()
        if sys.stderr.isatty() and is_progress_bar_enabled() and args.process_index == 0:
            self.add_callback(self._live)
        # Over the empty batches of further updates on the same rollouts to the next prompts. Workers are
        # ahead by themselves.
        depth = max(args.gradient_accumulation_steps, batches.period)
        self._ahead: Ahead[list[Any]] = Ahead(1 if args.dataloader_num_workers else depth)
        self._alarms = Alarms()
        self._weights_loaded = False
        self.resumed_from: Path | None = None  # the checkpoint folder that the run goes on from

    def _prepare(self, backbone: Backbone, args: Any) -> None:
        """Freeze what is not trained, check the types of what is, and change layers that keep too much."""
        config = self.settings
        backbone.freeze_vision(config.freeze_vision)
        freeze_parts(backbone, config.learning_rates)
        if backbone.tower_is_trained:
            self.items.require_pixels()
            if self.held_out is not None:
                self.held_out.require_pixels()
        check_float16(backbone, divided=bool(args.deepspeed or args.fsdp), bf16=args.bf16)
        if args.fsdp:
            fsdp.check_types(backbone, bf16=args.bf16)
        self.masters = None if args.deepspeed or args.fsdp else MasterWeights(backbone)
        self.dtypes = {name: p.dtype for name, p in backbone.named_parameters(remove_duplicate=False)}
        if config.gradient_checkpointing:
            backbone.gradient_checkpointing_enable()
        # ZeRO-3 gathers weights for calls of modules alone; what a compiled layer keeps its compiler says.
        elif not (args.deepspeed or config.torch_compile):
            recompute_cheap_layers(backbone)
        if config.torch_compile:
            compile_layers(backbone)

    # ---- what a subclass gives

    def prepare_update(self, batches: list[Any]) -> None:
        """Take the items of the next update of the weights; `forwards` tells of it from now on.

        Args:
            batches: (index, item) pairs of each micro-batch; on this rank.
        """
        raise NotImplementedError

    def after_update(self) -> None:
        """Called once for each update of the weights, on every rank, before anything is saved."""

    def evaluate_batch(self, batch: list[Any]) -> Metrics:
        """Metrics of held-out items, without gradient, on every rank as often.

        Args:
            batch: (index, item) pairs, one at least.
        """
        raise NotImplementedError

    def evaluated(self, means: dict[str, float]) -> dict[str, float]:
        """What is written of an evaluation, of the means over all held-out items."""
        return means

    def gathered_to_run(self, backbone: Backbone) -> AbstractContextManager[None]:
        """A block for passes without gradient, which ranks make differently often; collective.

        Weights that an engine has sliced are whole in it, or layer by layer where memory has no room.

        Args:
            backbone: that is trained, or another.
        """
        layers = list(backbone.hf.model.language_model.layers)
        element_size = 2 if self.args.bf16 else backbone.dtype.itemsize
        if gathering.is_sharded(backbone) and not gathering.have_room(layers, element_size):
            return gathering.gathered_in_turn(backbone, layers)
        return gathering.gathered(backbone)

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
        self._enter("reading the batches", READING)
        self.speed.enter("reading")
        batches = self._ahead.take(epoch_iterator, num_batches)
        self.speed.enter("preparing")
        self._enter("rollouts" if self.batches.whole_updates else "preparing the samples", PREPARING)
        self.prepare_update(batches)
        return self.begin_update(), None

    # ---- metrics

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        """Called by Trainer after the callbacks of every update; what follows waits for the other ranks."""
        self._enter("metrics and checkpoint", SAVING)
        self.speed.enter("saving")
        super()._maybe_log_save_evaluate(*arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line of metrics, from the first process: to metrics.jsonl, the trackers and the log."""
        if "eval_seconds" not in logs:
            self.metric_sums.add(self.speed.take(self.args.world_size))
            # Every rank has the same names: the objectives give all of them for every batch.
            logs |= self.metric_sums.take(self.sum_over_ranks, self.args.device)
            peak, halvings = self.most_of_ranks([_peak_memory(self.args.device), self.halvings])
            logs["memory"] = peak / 1e9
            logs["bad_steps"] = self.bad_steps
            if halvings:
                logs["out_of_memory"] = halvings
        if self.is_world_process_zero() and "loss" in logs:
            logs["alarms"] = self._alarms.check(logs, self.state.log_history)
        super().log(logs, start_time)
        if self.is_world_process_zero():
            entry = self.state.log_history[-1]
            append_lines(Path(self.settings.output_dir) / METRICS, [entry])
            logger.info("step %d: %s", entry["step"], shown_metrics(entry, _SHOWN))

    # ---- evaluation

    @torch.no_grad()
    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Called by Trainer every `eval_steps` updates and at the end: metrics of the held-out records.

        Nothing of the training is changed: neither random states nor which batches come next.

        Returns:
            Means over all held-out records and ranks, by name with `eval_` before it, and `eval_seconds`.
        """
        assert self.held_out is not None
        self._enter("evaluation", EVALUATION)
        self.speed.enter("evaluation")
        started, sums, backbone = time.perf_counter(), MetricSums(), self.checkpoint.backbone
        size, rank = self.args.per_device_eval_batch_size, self.args.process_index
        batches = held_out_batches(self.held_out, size, rank, self.args.world_size)
        ahead: Ahead[list[Any]] = Ahead(1)
        by_halves = self.by_halves("evaluation")
        try:
            with undisturbed(self.args.device):
                backbone.eval()  # the next training step sets the mode back
                while taken := ahead.take(batches, 1):
                    (batch,) = taken
                    some = batch or [self.held_out[0]]
                    for metrics in by_halves(lambda few: self.evaluate_batch(list(few)), some):
                        sums.add(metrics if batch else without_weight(metrics))
        finally:
            ahead.close()
        means = self.evaluated(sums.take(self.sum_over_ranks, self.args.device))
        logs = {f"eval_{name}": value for name, value in means.items()}
        logs["eval_seconds"] = time.perf_counter() - started
        self.log(logs)
        self.callback_handler.on_evaluate(
            self.args, self.state, self.control, logs
        )  # which it changes in place
        self._enter("checkpoint", CHECKPOINT)
        self.speed.enter("saving")
        return logs

    # ---- the run

    def run(
        self, resume: str | None, *, weights_loaded: bool = False, callbacks: Sequence[TrainerCallback] = ()
    ) -> Path:
        """Train, save the complete final checkpoint, and give its folder.

        A finished run that is resumed by `auto` stays as it is, whatever the schedule.

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
        self.resumed_from = None if resume is None else Path(resume)
        if resume is not None:
            self.take_run_state(Path(resume))
        final = Path(self.settings.output_dir) / FINAL
        *_, updates = self.set_initial_training_values(self.args, self.get_train_dataloader())
        if resume is not None:
            check_data(Path(resume), self._data)
        if (
            self.settings.resume_from_checkpoint == "auto"
            and (finished := finished_updates(final)) is not None
        ):
            if resume is None:
                check_data(final, self._data)
            if finished == updates:
                logger.info("%s: this run is finished, all %d updates are made", final, updates)
                return final
            if resume is None:
                raise ConfigError(
                    f"resume_from_checkpoint=auto: {final} has seen {finished} updates, {updates} are asked "
                    "for, and no checkpoint is there to go on from; begin a run of its own with "
                    f"model={final}, or set save_steps in a new one"
                )
        self.stopping.begin(self.args)  # before anything is written
        if self.args.save_only_model and self.is_world_process_zero():
            logger.warning(_NO_STATE)
        done = self._train_to(updates, resume)
        if self.stopping.stopped:
            how = _NO_STATE if self.args.save_only_model else "resume_from_checkpoint=auto goes on"
            logger.info("%d of %d updates; %s", done, updates, how)
            return checkpoint_path(self.settings.output_dir, done)
        self._save_final(final, done)
        return final

    def _train_to(self, updates: int, resume: str | None) -> int:
        """Make the updates that are missing; gives how many are made then."""
        if resume is not None and resumed_updates(resume) >= updates:
            self._load_from_checkpoint(resume)  # all that is missing; Trainer would make one update more
            begin_run(self.settings, self.args, resume)
            return resumed_updates(resume)
        try:
            self.train(resume_from_checkpoint=resume)
        finally:
            self._ahead.close()
            self._live.close()
        return self.state.global_step

    def _begin_updates(self) -> None:
        """Called before the first update: nothing is written until a checkpoint is loaded."""
        resume = None if self.resumed_from is None else str(self.resumed_from)
        begin_run(self.settings, self.args, resume)
        self.check_best()

    def _save_final(self, final: Path, updates: int) -> None:
        self._say_which_is_best()
        before = {}
        if self.is_world_process_zero():
            before = files_of(final)
            (final / RUN).unlink(missing_ok=True)  # of what it held before, until all of it is written
        self.save_model(str(final))
        if self.is_world_process_zero():
            self._write_run_state(final, updates, before)
        if self.args.world_size > 1:
            dist.barrier()

    def _say_which_is_best(self) -> None:
        self.check_best()
        best = self.state.best_model_checkpoint
        if best is not None and self.is_world_process_zero():
            logger.info(
                "the best checkpoint is %s: eval_%s %.4g", best, self.judged_by, self.state.best_metric
            )


def _peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that was allocated, on the CPU the largest resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB on Linux
