"""What the two trainers share: metrics, non-finite steps, complete checkpoints, resuming, the run folder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from fourdthinker.backbones import Checkpoint, load_checkpoint, save_checkpoint
from fourdthinker.backbones.adapters import load_trained
from fourdthinker.objectives import Batch, Metrics
from fourdthinker.trainers.batches import Items, ShardedBatches
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.setup import METRICS

logger = logging.getLogger(__name__)

FINAL = "final"


class NonFiniteLossError(RuntimeError):
    """More steps than `max_bad_steps` had a loss or a gradient that is not a finite number."""


class _LogBeforeSaving(TrainerCallback):
    """A log line is a mean over the steps since the last one, and a resumed run knows none from before its
    checkpoint: so that it writes the same lines as an unbroken one, a line ends at every checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save


class LatentTrainer(Trainer):
    """`transformers.Trainer` around a backbone whose loss is computed inside its forward pass.

    Subclasses give `get_batch_samples` (the numbers that the loss is normalised by) and `compute_loss`, which
    returns this batch's share of the loss *of the whole update* (all micro-batches, all ranks). Data
    parallelism averages gradients over ranks, so the share is multiplied by the number of ranks before the
    backward pass.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainConfig,
        args: TrainingArguments,
        items: Items[Any],
        batches: ShardedBatches,
        collator: Any,
    ) -> None:
        self.checkpoint, self.settings, self.items, self.batches = checkpoint, config, items, batches
        self.weights_from: str | None = None  # the checkpoint folder that the model was just loaded from
        backbone = checkpoint.backbone
        backbone.freeze_vision(config.freeze_vision)
        if config.gradient_checkpointing:
            backbone.gradient_checkpointing_enable()
        use_cache = getattr(backbone.config, "use_cache", None)
        super().__init__(model=backbone, args=args, data_collator=collator, train_dataset=items)
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

    # ---- data

    def get_train_dataloader(self) -> DataLoader[Any]:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.items,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        return len(self.items)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """`values` summed over all ranks, in place."""
        if self.args.world_size > 1:
            dist.all_reduce(values)
        return values

    # ---- one micro-batch

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch; the loss share of this rank times the number of ranks."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        return self._forward_backward(model, inputs, num_items_in_batch)

    def _forward_backward(self, model: nn.Module, batch: Batch, num_items: Any) -> Tensor:
        with self.compute_loss_context_manager():
            loss, metrics = self.compute_loss(model, batch, return_outputs=True, num_items_in_batch=num_items)
        if not self._finite_everywhere(loss, batch):
            return torch.zeros_like(loss)
        self.add_metrics(metrics)
        loss = loss * self.args.world_size
        # DeepSpeed would divide by the accumulation steps, which the global normaliser has done.
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}))
        return loss.detach()

    def _finite_everywhere(self, loss: Tensor, batch: Batch) -> bool:
        """Whether the loss is finite on every rank. If not, no rank runs backward and the update is void."""
        finite = torch.isfinite(loss.detach())
        everywhere = finite.to(torch.int32)
        if self.args.world_size > 1:
            dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        if everywhere.item():
            return True
        if not finite.item():
            self._bad += batch["sample_index"].unique().tolist()
        self._skip_update = True
        if self.is_deepspeed_enabled:
            self._void_update("loss")
        return False

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Called once per update, between the backward passes and the optimizer step, on every rank.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self._skip_update:
            self._void_update("loss")
            model.zero_grad(
                set_to_none=True
            )  # the optimizer leaves parameters without a gradient as they are
            return torch.zeros(())
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)).item():
            # Gradients are already reduced here, so that all ranks come to the same conclusion.
            self._void_update("gradient")
            model.zero_grad(set_to_none=True)
            return torch.zeros(())
        return norm

    def _void_update(self, what: str) -> None:
        names = [self.items.describe(i) for i in self._bad]
        if self.args.world_size > 1:
            gathered: list[list[str]] = [[] for _ in range(self.args.world_size)]
            dist.all_gather_object(gathered, names)
            names = [name for part in gathered for name in part]
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

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self._skip_update:
            return torch.zeros(())  # what was accumulated before the bad micro-batch was never reduced
        return super()._clip_grad_norm(model)

    # ---- metrics

    def add_metrics(self, metrics: Metrics) -> None:
        """Add (sum, weight) pairs; what is logged is sum / weight over ranks and steps since the last log."""
        for name, (total, weight) in metrics.items():
            pair = torch.stack([total.detach().double(), weight.double()])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._sums:  # every rank has the same names: the objectives give all of them for every batch
            names = sorted(self._sums)
            values = torch.stack([self._sums[name].to(self.args.device) for name in names])
            self._sums = {}
            for name, (total, weight) in zip(names, self.sum_over_ranks(values).tolist(), strict=True):
                if weight:
                    logs[name] = total / weight
        logs["bad_steps"] = self.bad_steps
        super().log(logs, start_time)
        if self.is_world_process_zero():
            entry = self.state.log_history[-1]
            with (Path(self.settings.output_dir) / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            shown = ("loss", "reward", "ce", "cosine", "kl", "grad_norm", "learning_rate")
            logger.info(
                "step %d: %s", entry["step"], ", ".join(f"{k} {entry[k]:.4g}" for k in shown if k in entry)
            )

    # ---- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a complete checkpoint into `output_dir`, from the first process."""
        folder = output_dir or self.settings.output_dir
        with self.whole_parameters():
            if self.args.should_save:
                save_checkpoint(folder, self.checkpoint)

    @contextlib.contextmanager
    def whole_parameters(self) -> Iterator[None]:
        """Gathers, for the time of a block, parameters that ZeRO-3 slices over the ranks."""
        if not (self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3):
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.checkpoint.backbone.parameters())):
            yield

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.settings.lora is not None:
            backbone = self.checkpoint.backbone
            load_trained(backbone, Path(resume_from_checkpoint), backbone.dtype)
            return
        if self.weights_from == resume_from_checkpoint:
            return
        saved = load_checkpoint(resume_from_checkpoint, dtype=self.checkpoint.backbone.dtype)
        self.checkpoint.backbone.load_state_dict(saved.backbone.state_dict())

    def run(self, resume: str | None) -> Path:
        """Train, save the complete final checkpoint, and give its folder."""
        self.train(resume_from_checkpoint=resume)
        final = Path(self.settings.output_dir) / FINAL
        self.save_model(str(final))
        if self.args.world_size > 1:
            dist.barrier()
        return final


def start_logging() -> None:
    """Log lines of this package to stderr, from the first process only; warnings from all."""
    first = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("fourdthinker").setLevel(logging.INFO if first else logging.WARNING)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Takes the process group down at the end, so that torchrun does not warn about a leak."""
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
