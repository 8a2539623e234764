"""The passes of an update: forward and backward of its micro-batches, all ranks together.

Private members of `transformers` and `accelerate` that are used here say why.

After every forward the ranks agree on how it went, before anything of it is reduced: a loss that is not
finite voids the update on all of them, and memory that ran out on one lets all of them begin it again with
half the rows a forward.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fourdthinker.backbones.gathering import reshard
from fourdthinker.samples import Batch, moved
from fourdthinker.trainers.checkpointing import ResumableTrainer
from fourdthinker.trainers.halved import Halved
from fourdthinker.trainers.metric_sums import MetricSums
from fourdthinker.trainers.speed import Speed, peak_rate
from fourdthinker.trainers.update import Forward, MemoryLimitError, NonFiniteLossError
from fourdthinker.trainers.watch import Watch

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY, _NOT_FINITE, _FINE = range(3)  # the worst of all ranks is that of all
# Phases of an update in their order; forward n has the numbers from 3 n on.
SAVING, EVALUATION, CHECKPOINT, READING, PREPARING = range(-10, -5)
REWARD_KL, ADVANTAGES, OTHER_PASSES, NORMALISERS, DIVISION = range(-5, 0)
_REDUCTION, _STEP = 10**8, 10**9


class PassTrainer(ResumableTrainer):
    """`transformers.Trainer` whose updates are lists of forwards. `LatentTrainer` is complete."""

    watch: Watch

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.metric_sums = MetricSums()
        self.speed = Speed(peak_rate(self.args.device))
        self.divisions = 0  # how often the forwards were halved because memory ran out
        self._halved: dict[str, Halved] = {}  # other work, by its name
        self.bad_steps = 0
        self._update: list[list[Forward]] = []
        self._done = 0  # micro-batches of the current update
        self._made = 0  # updates by this process
        self._attempt = 0  # at the current update
        self._sizes: list[int] = []  # of the update's largest forward on any rank
        self._fitted: list[int] = []  # those that were not too large, with the optimizer's state beside them
        self._failure: str | None = None  # of the current update on this rank: memory ran out
        self._bad: list[int] = []  # items of the current update with a non-finite loss, on this rank
        self._skip_update = False

    # ---- what a subclass gives

    def forwards(self) -> list[list[Forward]]:
        """For each micro-batch its forwards, as many on every rank; their gradients add up.

        A micro-batch other than the last may have none.
        """
        raise NotImplementedError

    def halve(self) -> bool:
        """Cut the current update into forwards of half the rows; False where each has one already."""
        raise NotImplementedError

    @property
    def trains(self) -> bool:
        """Whether anything of the current update is trained, on any rank."""
        return True

    def after_forward(self, forward: Forward, *outputs: Any) -> None:
        """Take what the objective returned beyond loss and metrics, before the backward pass."""

    def prepare_batch(self, batch: Batch) -> Batch:
        """Change a batch on the device before its forward."""
        return batch

    # ---- memory that runs out elsewhere

    def by_halves(self, what: str) -> Halved:
        """Does some work without gradient, on fewer items at once where memory runs out.

        Args:
            what: the work.
        """
        return self._halved.setdefault(what, Halved(what, alone=not self._divided))

    @property
    def halvings(self) -> int:
        """How often anything was halved on this rank because memory ran out."""
        return self.divisions + sum(each.times for each in self._halved.values())

    # ---- an update

    @property
    def _divided(self) -> bool:
        """Whether DeepSpeed or FSDP gathers weights and reduces gradients within every pass."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    @property
    def _together(self) -> bool:
        """Whether ranks that ran out of memory can begin again together with the others.

        Where the model is divided they are in the middle of a collective in nearly every pass.
        """
        return self.args.world_size > 1 and not self._divided

    def begin_update(self) -> list[list[Forward]]:
        """The forwards of the update that `prepare_update` has prepared."""
        self._done = 0
        self.speed.enter("passes")
        self._enter("division into forwards", DIVISION)
        self._cut()
        self.metric_sums.mark()
        return self._update

    def _cut(self) -> None:
        self._update, self._failure = self.forwards(), None
        sizes = [_sizes(forward.batch) for micro_batch in self._update for forward in micro_batch]
        self._sizes = self.most_of_ranks([max(column) for column in zip(*sizes, strict=True)])

    @property
    def _overlaps(self) -> bool:
        """Whether gradients are reduced while the last backward pass runs, which cannot be taken back.

        Only for sizes that have been there: of larger ones the ranks agree first that memory sufficed.
        """
        known = bool(self._fitted) and all(a <= b for a, b in zip(self._sizes, self._fitted, strict=True))
        return not self._together or known

    def training_step(
        self, model: nn.Module, inputs: list[Forward], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of the next micro-batch of the update, smaller where memory does not suffice.

        Returns:
            What is logged as loss, a scalar: the share of this rank times the number of ranks.
        """
        model.train()
        if isinstance(model, DistributedDataParallel):
            # None of them changes, and a rank without memory does not come to the next broadcast.
            model.broadcast_buffers = False
        first = self._done
        while True:
            try:
                for number in range(first, self._done + 1):
                    loss = self._micro_batch(model, number)
                break
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            # Outside of the handler, which would keep what the failed pass has allocated.
            self._begin_smaller(model, reason)
            first = 0
        self._done += 1
        if self._done == len(self._update):
            self._made += 1
            if self._made > 1:  # the first has made the optimizer's state
                self._fitted = [
                    max(pair) for pair in zip(self._sizes, self._fitted or self._sizes, strict=True)
                ]
            self._enter("optimizer step", _STEP)
            self._attempt = 0
        return loss

    def _begin_smaller(self, model: nn.Module, reason: str) -> None:
        """Take back what the update has done so far, and cut its forwards in halves, on all ranks."""
        step, failed = self.state.global_step + 1, self._failure is not None or not self._together
        smaller = False
        if not self._divided:
            self._drop_gradients(model)  # first of all, or there may be no room for the smaller batches
            if self.args.device.type == "cuda":
                torch.cuda.empty_cache()
            try:
                smaller = self.halve()
            except torch.OutOfMemoryError:  # then no rank can go on: forwards of this one keep their size
                failed = True
        if self.any_rank(failed and not smaller) if self._together else not smaller:
            raise MemoryLimitError(f"step {step}: {reason}")
        self.divisions += 1
        self._attempt += 1
        logger.warning(
            "step %d: out of memory (%s); run again at half the rows a forward (%d times halved)",
            step,
            reason,
            self.divisions,
        )
        self.metric_sums.rewind()
        self._bad, self._skip_update = [], False
        self._enter("division into smaller forwards", DIVISION)
        self._cut()

    def _micro_batch(self, model: nn.Module, number: int) -> Tensor:
        state, forwards = self.accelerator.gradient_state, self._update[number]
        steps = state.sync_gradients
        ends = number + 1 == len(self._update)  # whether the optimizer steps after this micro-batch
        losses = [torch.zeros((), device=self.args.device)]
        try:
            for index, forward in enumerate(forwards):
                last = ends and index + 1 == len(forwards)
                context: Any = contextlib.nullcontext()
                if self.is_fsdp_enabled:
                    # Trainer asks for whole gradients until the last micro-batch, which a void update could
                    # not take back, and of which memory has no room. Slices add up as well.
                    model.set_requires_gradient_sync(True)  # type: ignore[operator]
                elif not (last and self._overlaps) and not self.is_deepspeed_enabled:
                    context = self.accelerator.no_sync(model)
                # DeepSpeed reduces in every backward pass and steps in the one that this is set for; there is
                # no public way to say that several backward passes belong to one micro-batch.
                state._set_sync_gradients(last)
                with context, self._sums(last):
                    losses.append(self._forward_backward(model, forward, alone=not (last and self._overlaps)))
        finally:
            state._set_sync_gradients(steps)
        if ends and not self._overlaps:
            self._fill_gradients(model)
            self._enter("reduction of the gradients", _REDUCTION)
            self._agree(None, [])
            try:
                self._reduce_gradients(model)
            except (
                torch.OutOfMemoryError
            ) as error:  # the others have begun collectives that wait for this rank
                raise self._no_memory_to_reduce(error) from error
        return torch.stack(losses).sum()

    def _sums(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """A block for a pass of an update; before the last, gradients of bfloat16 add up in float32."""
        if self.masters is None:
            return contextlib.nullcontext()
        if last:
            try:
                self.masters.round_sums()
            except torch.OutOfMemoryError as error:
                if not self._together:
                    raise
                self._failure = str(error).partition("\n")[0]
            return contextlib.nullcontext()
        return self.masters.sums()

    def _drop_gradients(self, model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        if self.masters is not None:
            self.masters.drop_sums()

    def _forward_backward(self, model: nn.Module, forward: Forward, *, alone: bool) -> Tensor:
        """One pass; `alone`: its backward waits for no other rank."""
        loss, sums = self._run_forward(model, forward)
        if not self._agree(loss, forward.items.unique().tolist()):
            if self.is_fsdp_enabled:
                reshard(model)  # or the gradients so far would be of parameters that the model does not have
            return torch.zeros((), device=self.args.device)
        assert loss is not None
        self.metric_sums.become(sums)
        self._enter(f"backward {forward.number}", 3 * forward.number + 2)
        try:
            # Data parallelism averages gradients over ranks, and the loss is a share of a sum over them.
            # DeepSpeed would divide by the accumulation steps, which the global normaliser has done.
            options = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
            self.accelerator.backward(loss * self.args.world_size, **options)
        except torch.OutOfMemoryError as error:
            if not self._together:
                raise
            if not alone:
                raise self._no_memory_to_reduce(error) from error
            self._failure = str(error).partition("\n")[0]
        return loss.detach() * self.args.world_size

    def _no_memory_to_reduce(self, error: torch.OutOfMemoryError) -> MemoryLimitError:
        reason, step = str(error).partition("\n")[0], self.state.global_step + 1
        return MemoryLimitError(f"step {step}, while gradients were reduced: {reason}")

    def _run_forward(self, model: nn.Module, forward: Forward) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Loss, and the sums of metrics with its own; no loss where this rank is out of memory.

        Its others do not know that yet, so whatever allocates is done here, before the ranks agree.
        """
        if self._failure is not None:
            return None, {}
        self._enter(f"forward {forward.number}", 3 * forward.number)
        try:
            # Trainer's own way to the device rounds what is float under DeepSpeed: log-probs, advantages.
            batch = moved(forward.batch, self.args.device)
            # accelerate gives a model that FSDP divides no autocast, and rollouts have it.
            cast: Any = self.accelerator.autocast() if self.is_fsdp_enabled else contextlib.nullcontext()
            with self.compute_loss_context_manager(), cast:
                batch = self.prepare_batch(batch)
                loss, metrics, *outputs = model(batch, forward.objective)
            self.after_forward(forward, *outputs)
            sums = self.metric_sums.with_added(metrics)
        except torch.OutOfMemoryError as error:
            if not self._together:
                raise
            self._failure = str(error).partition("\n")[0]
            return None, {}
        finally:
            self._enter(f"agreement after forward {forward.number}", 3 * forward.number + 1)
        return loss, sums

    def _agree(self, loss: Tensor | None, items: list[int]) -> bool:
        """Whether the loss is finite on every rank. If not, no rank runs backward and the update is void.

        Raises:
            OutOfMemoryError: on every rank, when memory ran out on one.
        """
        outcome = torch.tensor(
            _OUT_OF_MEMORY if self._failure is not None else _FINE, device=self.args.device
        )
        if loss is not None:
            outcome = torch.where(torch.isfinite(loss.detach()), _FINE, _NOT_FINITE)
        mine = outcome.clone()
        if self.args.world_size > 1:
            dist.all_reduce(outcome, op=dist.ReduceOp.MIN)
        worst = outcome.item()
        if worst == _OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(self._failure or "on another process")
        if worst == _FINE:
            return True
        if mine.item() == _NOT_FINITE:
            self._bad += items
        self._skip_update = True
        if self.is_deepspeed_enabled:
            self._void_update("loss")
        return False

    def _fill_gradients(self, model: nn.Module) -> None:
        """Zeros where this rank has none: all that the reduction allocates, before the ranks agree on it."""
        if self._failure is not None or self._skip_update:
            return
        try:
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        except torch.OutOfMemoryError as error:
            self._failure = str(error).partition("\n")[0]

    def _reduce_gradients(self, model: nn.Module) -> None:
        """The means over the ranks, as DistributedDataParallel makes them."""
        if self._skip_update:
            return
        waiting = []
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.args.world_size
                waiting.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in waiting:
            work.wait()

    # ---- updates that are void

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
        if isinstance(norm, DTensor):  # of FSDP: the sum over the ranks is still to be made
            norm = norm.full_tensor()
        finite = norm is None or torch.isfinite(torch.as_tensor(norm)).item()  # waits for the passes
        self.speed.enter("optimizer")
        if self._skip_update:
            self._void_update("loss")
        elif not finite:
            # Gradients are already reduced here, so that all ranks come to the same conclusion.
            self._void_update("gradient")
        elif self.trains or self.is_deepspeed_enabled:  # whose engine steps by itself
            return norm
        # Of a gradient that is 0 an optimizer would make a step by what it remembers.
        self._drop_gradients(model)
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

    # ---- what ranks tell each other

    def _enter(self, phase: str, index: int) -> None:
        step = self.state.global_step + 1
        self.watch.enter(f"step {step}: {phase}", step, self._attempt, index)

    def any_rank(self, value: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.most_of_ranks([int(value)])[0])

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


def _sizes(batch: Batch) -> list[int]:
    """What the memory of a forward depends on: positions, rows of logits, patches."""
    rows = batch.get("rows", batch.get("chosen_ids"))
    patches = batch.get("patches", [])
    return [
        batch["input_ids"].numel(),
        0 if rows is None else rows.numel(),
        sum(map(len, [patches] if isinstance(patches, Tensor) else patches)),
    ]
