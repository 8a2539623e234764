"""Checkpoints of a run: what Trainer writes and reads, of a backbone.

Private members of `transformers` that are overridden here say when they are called.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import Trainer, set_seed
from transformers.integrations import deepspeed_load_checkpoint
from transformers.trainer_utils import rotate_checkpoints

from fourdthinker.backbones import Checkpoint, load_checkpoint, save_checkpoint
from fourdthinker.backbones.adapters import load_saved
from fourdthinker.backbones.gathering import exact_weights, is_sharded
from fourdthinker.errors import CheckpointError, ConfigError, FourdError
from fourdthinker.files import read_json_object, sync_file, sync_folder, sync_tree, writing
from fourdthinker.sampler import row_seed
from fourdthinker.trainers import fsdp
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.evaluation import measure_of
from fourdthinker.trainers.file_digests import file_digest, files_of
from fourdthinker.trainers.learning_rates import split_groups
from fourdthinker.trainers.left_out import write_left_out
from fourdthinker.trainers.master_weights import MasterWeights
from fourdthinker.trainers.resume import incomplete
from fourdthinker.trainers.run_folder import STATE, checkpoint_path
from fourdthinker.trainers.run_state import LAST, RunState, run_state
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.update import MemoryLimitError
from fourdthinker.trainers.watch import is_of_communication

logger = logging.getLogger(__name__)

_HOST_MEMORY = "DefaultCPUAllocator"  # in the message of an error for which torch has no type
_FAILED = 0.05  # share of an evaluation's rollouts whose rewards may fail: the others' mean is comparable


@contextlib.contextmanager
def _loading(checkpoint: str | None, what: str) -> Iterator[None]:
    """What torch, Trainer and DeepSpeed raise for damaged files, errors of any kind, as a CheckpointError.

    Memory, packages and devices that fail have lines of their own: nobody should give up a good checkpoint.
    """
    try:
        yield
    except FourdError:
        raise
    except Exception as error:
        if is_of_communication(error):  # another rank has ended, and says why
            raise
        lost = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _HOST_MEMORY in str(error)
        said = f"{checkpoint}: {what} cannot be loaded ({_reason(error)})"
        if lost:
            raise MemoryLimitError(said) from error
        if isinstance(error, ImportError):
            raise ConfigError(f"{said}; install what is missing, the checkpoint may be whole") from error
        if isinstance(error, torch.AcceleratorError):
            raise ConfigError(f"{said}; look at the device, the checkpoint may be whole") from error
        raise CheckpointError(f"{said}; name an earlier checkpoint in resume_from_checkpoint") from error


def _reason(error: Exception) -> str:
    """An error in one line, without torch's advice to read files that run code."""
    found = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
    said = str(error).partition("\n")[0] if found is None else found[1].partition(". ")[0]
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__


class ResumableTrainer(Trainer):
    """`transformers.Trainer` whose checkpoints are complete ones of this package."""

    settings: TrainConfig
    checkpoint: Checkpoint
    items: Items[Any]
    held_out: Items[Any] | None
    judged_by: str  # the metric of an evaluation that tells which checkpoint is the best
    greater_is_better: bool
    masters: MasterWeights | None
    dtypes: dict[str, torch.dtype]  # of the weights, as they are saved
    divisions: int  # how often forwards were halved because memory ran out
    start: str | None  # `weights_digest` of what a run of 4DRL began from
    _measured_by: str | None = None  # what the evaluations depended on by which the best is known
    _weights_loaded: bool  # whether the model has the weights of the checkpoint that is gone on from

    def save_rank_state(self, folder: Path) -> None:
        """Write what a subclass needs of each rank to go on, into the folder of a checkpoint."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's own, with a rate for each part, on float32 copies of weights that are bfloat16."""
        optimizer = super().create_optimizer(model)
        split_groups(optimizer, self.checkpoint.backbone, self.settings.learning_rates)
        if self.masters is not None:
            self.masters.attach(optimizer)
        return optimizer

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Called by Trainer, whose errors of writing name no file.

        Checkpoints beyond the limit are deleted here, not by Trainer, which with a limit of 1 would keep the
        best one at the end and no newest one to go on from.
        """
        if self.state.best_global_step:  # written in this folder, wherever the run went on from
            best = checkpoint_path(self.settings.output_dir, self.state.best_global_step)
            self.state.best_model_checkpoint = str(best)
        folder = checkpoint_path(self.settings.output_dir, self.state.global_step)
        with writing(folder):
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                sync_file(folder / STATE)  # which Trainer writes last
                sync_folder(folder)
                sync_folder(folder.parent)
        if self.args.should_save:
            rotate_checkpoints(
                self.settings.output_dir, self.settings.save_total_limit, self.state.best_model_checkpoint
            )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Called by Trainer after an evaluation: what is better than all before is written.

        Its own method would note the update, and write no checkpoint of it.
        """
        failed = metrics.get("eval_failed_rewards", 0.0)
        if failed > _FAILED:
            if self.is_world_process_zero():
                logger.warning(
                    "step %d: the rewards of %.2g %% of the evaluation's rollouts failed, and above %.0f %% "
                    "it does not tell whether this checkpoint is the best; look at the warnings before",
                    self.state.global_step,
                    100 * failed,
                    100 * _FAILED,
                )
            return False
        self.check_best()
        value, best = metrics.get(f"eval_{self.judged_by}", math.nan), self.state.best_metric
        sign = 1 if self.greater_is_better else -1
        better = math.isfinite(value) and (best is None or sign * value > sign * best)
        if better:
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step
            self._measured_by = self._measure
            self.control.should_save = True
        return better

    def check_best(self) -> None:
        """Forget which checkpoint is the best where it is not there whole, or was found by another measure.

        Collective.
        """
        if not self.state.best_global_step:
            return
        best = checkpoint_path(self.settings.output_dir, self.state.best_global_step)
        told = [self._problem_of(best) if self.is_world_process_zero() else None]
        if self.args.world_size > 1:
            dist.broadcast_object_list(told)  # others may see the folder later
        if told[0] is not None:
            if self.is_world_process_zero():
                logger.warning("the best checkpoint so far, %s, %s; it is looked for anew", best, told[0])
            self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None

    def _problem_of(self, best: Path) -> str | None:
        """Why a checkpoint is not the best any more, or None."""
        if self.held_out is not None and self._measured_by != self._measure:
            return "was found by other held-out records, rewards or settings of the evaluation"
        return incomplete(best) if best.is_dir() else "is gone"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a complete checkpoint into `output_dir`, from the first process.

        One that training goes on from (`_internal_call`, of Trainer) has the float32 weights too.
        """
        folder = output_dir or self.settings.output_dir
        with exact_weights(self.checkpoint.backbone, self.dtypes, keep=self.args.should_save):
            if self.args.should_save:
                later = _internal_call and not self.args.save_only_model  # with all else of the checkpoint
                save_checkpoint(folder, self.checkpoint, sync=not later)
        if not (self.args.should_save and _internal_call):
            return
        if self.args.save_only_model:
            self._write_run_state(Path(folder), self.state.global_step)
        elif self.masters is not None:
            self.masters.save(Path(folder))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Called by Trainer on every rank; under FSDP its own would write what is not trained as well."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None
        fsdp.save_state(self.accelerator, self.checkpoint.backbone, self.optimizer, Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler.pt"))

    def _write_run_state(
        self, folder: Path, updates: int, before: Mapping[Path, tuple[int, int]] | None = None
    ) -> None:
        """Write what a checkpoint belongs to; of `before`, files that its save left alone are somebody's."""
        data = filter(None, (self.items, self.held_out))
        write_left_out(folder, [line for items in data for line in items.left_out])
        written = sorted(dict(files_of(folder).items() - (before or {}).items()))
        files = {path.relative_to(folder).as_posix(): path for path in written if path.name not in LAST}
        state = run_state(
            self.settings,
            self.args,
            updates,
            self._data,
            self.divisions,
            start=self.start,
            measure=self._measured_by,
            files={name: path.stat().st_size for name, path in files.items()},
            digests={name: file_digest(path) for name, path in files.items() if path.suffix != ".json"},
        )
        state.write(folder)

    @functools.cached_property
    def _data(self) -> str:
        return self.items.fingerprint()

    @functools.cached_property
    def _measure(self) -> str:
        assert self.held_out is not None
        return measure_of(self.settings, self.held_out)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, checkpoint: str | None) -> Any:
        """Called by Trainer before its first update; what DeepSpeed raises for its own files names none.

        All of a checkpoint is loaded at its end, on every rank: trackers begin to write after it.
        """
        if checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, None)
        by_trainer = None if self.is_deepspeed_enabled else checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, by_trainer)
        if self.is_deepspeed_enabled:
            with _loading(checkpoint, "DeepSpeed's state"):
                deepspeed_load_checkpoint(self.model_wrapped, checkpoint)
            self._load_optimizer_and_scheduler(checkpoint)
            self._load_scaler(checkpoint)
        self._load_rng_state(checkpoint)  # once more than Trainer, which does so with its first batches
        if self.args.world_size > 1:
            dist.barrier()
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Called by Trainer when it resumes; what is damaged there has errors of many kinds."""
        with _loading(checkpoint, "the state of optimizer and schedule"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Called by Trainer when it resumes; its own looks for files that a backbone does not write."""
        backbone = self.checkpoint.backbone
        if self.is_fsdp_enabled and is_sharded(backbone):
            fsdp.load_weights(backbone, Path(resume_from_checkpoint))
        elif backbone.model is not backbone.hf:
            below = not self._weights_loaded
            load_saved(backbone, Path(resume_from_checkpoint), backbone.dtype, below=below)
        elif not self._weights_loaded:
            saved = load_checkpoint(resume_from_checkpoint, dtype=backbone.dtype)
            backbone.load_state_dict(saved.backbone.state_dict())
        if self.masters is not None:
            self.masters.load(Path(resume_from_checkpoint))

    def take_run_state(self, folder: Path) -> None:
        """Take what a checkpoint knows beside weights and optimizer, whatever engine loads those."""
        config = read_json_object(
            folder / "config.json", "name another checkpoint", error=CheckpointError, finite=False
        )
        backbone = self.checkpoint.backbone
        backbone.latents = replace(backbone.latents, latent_norm=config.get("latent_norm"))
        then, now = RunState.read(folder), run_state(self.settings, self.args, 0, "")
        self._measured_by = then.measure
        self.divisions = then.divisions if then.sizes == now.sizes else 0

    def _save_rng_state(self, output_dir: str) -> None:
        """Called by Trainer on every rank, before the first one writes the state that makes it complete.

        All else is on the disk then, and `run.json` says how long each file is.
        """
        folder = Path(output_dir)
        super()._save_rng_state(output_dir)
        self.save_rank_state(folder)
        sync_tree(folder)  # on every machine what was written there
        if self.args.world_size > 1:
            dist.barrier()
        if self.args.should_save:
            self._write_run_state(folder, self.state.global_step)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called by Trainer when it resumes.

        On another number of processes there is no state of each: they draw on from the seed, the step and
        their rank. Rollouts do not depend on it.
        """
        if checkpoint is None:
            return
        if RunState.read(Path(checkpoint)).processes == self.args.world_size:
            with _loading(checkpoint, "the states of the random numbers"):
                super()._load_rng_state(checkpoint)
            return
        step = self.state.global_step
        set_seed(row_seed(self.settings.seed, step, self.args.process_index) % 2**32)
