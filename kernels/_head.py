"""The language-model head as its ops share it: a chunk's logits, their statistics and their gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ._common import accumulation_dtype, use_triton
from ._head_arguments import CONVERTED_IDS
from ._logits import MORE, RowStats, grad_, in_memory_of, padded, stats


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast would turn the float32 matmuls below back into low precision."""
    return torch.autocast(device.type, enabled=False)


def gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, need_dx: bool, need_dw: bool, need_db: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for dx in its own dtype, dw and db in accumulation precision; empty where not needed.

    All are zeros, but dw where there are rows: the first ``backward_matmuls`` writes it, which saves a pass
    over the largest tensor of the step.

    Args:
        x: [m, H] floating.
        weight: [V, H] floating.
        bias: [V] floating, or None.
        rows: that ``backward_matmuls`` will be given in all.
        need_dx: whether dx is needed.
        need_dw: whether dw is needed.
        need_db: whether db is needed.

    Returns:
        dx [m, H], dw [V, H], db [V]; [0] where not needed.
    """
    wide = accumulation_dtype(x, weight)
    unwritten = torch.empty if rows else torch.zeros
    return (
        torch.zeros(x.shape if need_dx else (0,), dtype=x.dtype, device=x.device),
        unwritten(weight.shape if need_dw else (0,), dtype=wide, device=x.device),
        torch.zeros(bias.shape if need_db and bias is not None else (0,), dtype=wide, device=x.device),
    )


def power_of_two(*weights: Tensor) -> Tensor:
    """What the weights of a loss are divided by while its gradients are computed, so that they are near 1.

    Gradients in float16 are 0 below 6e-8, and the upstream gradient, which is large for their sake, comes
    after them. A power of two changes no digit.

    Args:
        weights: what the terms of the rows are multiplied by, any shapes, of one dtype.

    Returns:
        The power of two above the largest magnitude, a scalar; 1 where that is 0, NaN where it is NaN.
    """
    flat = [weight.reshape(-1) for weight in weights]
    largest = torch.cat([*flat, flat[0].new_zeros(1)]).abs().amax()
    return torch.where(largest == 0, 1.0, largest / torch.frexp(largest).mantissa)


def scaled_gradients(
    ctx: Any,
    upstream: Tensor,
    dtypes: tuple[torch.dtype | None, ...],
    recompute: Callable[[], Sequence[Tensor]],
) -> list[Tensor | None]:
    """The gradients that the forward computed, ``ctx.grads``, times the gradient of the loss.

    One pass without a synchronisation. The memory of the forward is scaled in place and becomes the result,
    since a second dW would be the largest tensor of the step.

    Args:
        ctx: of the autograd function; ``ctx.grads`` is dx, dw, db, or None once they have been returned.
        upstream: scalar, the gradient of the loss times its ``power_of_two``.
        dtypes: of the leaves, which the gradients are converted to.
        recompute: gives dx, dw, db anew, for a second backward through a retained graph.

    Returns:
        dx, dw, db; None where not needed.
    """
    grads, ctx.grads = ctx.grads, None
    if grads is None:
        grads = recompute()
    # On CUDA a scalar is rounded to the dtype of the other factor: 65,536 would be infinite in float16.
    factor = upstream.reshape(1) if upstream.is_cuda else upstream
    return [
        torch.mul(grad, factor, out=grad if grad.dtype == dtype else torch.empty_like(grad, dtype=dtype))
        if needed else None
        for grad, dtype, needed in zip(grads, dtypes, ctx.needs_input_grad)
    ]  # fmt: skip


def _by_onednn(z: Tensor) -> bool:
    """Whether oneDNN makes the logits z [m, V], which takes it four fifths of the time of addmm's BLAS.

    At a hundred rows of a large vocabulary: its results are new tensors, so they are made in pieces, of as
    many ids as are converted at a time.
    """
    large = z.device.type == "cpu" and z.dtype == torch.float32 and z.shape[1] >= 8 * CONVERTED_IDS
    return large and torch.backends.mkldnn.is_available()


class Head:
    """The head in plain PyTorch and accumulation precision, a chunk of rows at a time.

    With a = x . W^T + b and the soft-capped c = cap * tanh(a / cap) (or a), the scores are
    z = c / temperature. All chunks use the memory of the first, so none may have more rows. Blocks of rows
    keep the temporaries small beside it, and near the processor. Weights of fewer bits are converted some ids
    at a time, by every product anew: a copy of them all would be the largest tensor of the step.
    """

    def __init__(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
    ) -> None:
        self.dtype = accumulation_dtype(input, weight)
        self.weight = weight
        self.bias = None if bias is None else bias.to(self.dtype)
        self.temperature = temperature
        self.softcap = softcap
        self.memory: Tensor | None = None
        self.converted: Tensor | None = None
        self.dw_written = False

    def empty(self, rows: int, dtype: torch.dtype) -> Tensor:
        """[rows, V] in the one buffer, whose rows begin on multiples of 16 elements.

        Args:
            rows: m, at most that of the first call.
            dtype: of the buffer; the same in every call.
        """
        vocabulary = self.weight.shape[0]
        if self.memory is None:
            self.memory = torch.empty(rows, padded(vocabulary), dtype=dtype, device=self.weight.device)
        return self.memory[:rows, :vocabulary]

    def parts(self, step: int) -> Iterator[tuple[slice, Tensor]]:
        """The weight in ``self.dtype``, ``step`` ids at a time or, where it is converted, ``CONVERTED_IDS``.

        Args:
            step: ids of a part, at least 1.

        Yields:
            The ids, and their rows [ids, H]; converted ones lie in one buffer, which the next overwrite.
        """
        vocabulary, width = self.weight.shape
        converts = self.weight.dtype != self.dtype
        if converts:
            step = max(1, min(CONVERTED_IDS, vocabulary))
        if converts and self.converted is None:
            self.converted = torch.empty(step, width, dtype=self.dtype, device=self.weight.device)
        for start in range(0, vocabulary, step):
            ids = slice(start, min(start + step, vocabulary))
            part = self.weight[ids]
            yield ids, part if self.converted is None else self.converted[: part.shape[0]].copy_(part)

    def blocks(self, z: Tensor) -> Iterator[slice]:
        """Slices of neighbouring rows of z [m, V] that cover it, each small enough for the cache."""
        rows, vocabulary = z.shape
        step = max(1, min(2**20 // max(vocabulary, 1), max(4, rows // 32)))
        for start in range(0, rows, step):
            yield slice(start, start + step)

    def logits(self, x: Tensor) -> Tensor:
        """The scores z of a chunk.

        Args:
            x: [m, H] floating.

        Returns:
            [m, V] in ``self.dtype``, in the one buffer. ``FusedHead``: the float32 logits, without bias,
            softcap and temperature, which its kernels apply.
        """
        z, x = self.empty(x.shape[0], self.dtype), x.to(self.dtype)
        rate = 1.0 if self.softcap is not None else 1.0 / self.temperature
        by_onednn = _by_onednn(z)
        for ids, weight in self.parts(CONVERTED_IDS if by_onednn else max(z.shape[1], 1)):
            bias, part = None if self.bias is None else self.bias[ids], z[:, ids]
            if by_onednn:
                made = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
                torch.mul(made, rate, out=part)
            elif bias is None:
                torch.addmm(part, x, weight.T, beta=0, alpha=rate, out=part)
            else:
                torch.addmm(bias, x, weight.T, beta=rate, alpha=rate, out=part)
        if self.softcap is not None:
            for rows in self.blocks(z):
                z[rows].div_(self.softcap).tanh_().mul_(self.softcap / self.temperature)
        return z

    def stats(
        self, z: Tensor, target: Tensor, *, with_entropy: bool = False, with_more: bool = False
    ) -> RowStats:
        """[m] figures of the rows of z [m, V], in its dtype, for the ids ``target`` [m] int64.

        Args:
            z: from ``logits``.
            target: the id of each row.
            with_entropy: whether the entropy is computed.
            with_more: whether ``MORE`` is.
        """
        normaliser = torch.empty(z.shape[0], dtype=z.dtype, device=z.device)
        entropy = torch.empty_like(normaliser) if with_entropy else None
        more = normaliser.new_empty(len(MORE), z.shape[0]) if with_more else None
        chosen = z.gather(1, target[:, None])[:, 0]
        scratch: Tensor | None = None
        for rows in self.blocks(z):
            part = z[rows]
            if scratch is None:
                scratch = z.new_empty(2, *part.shape)
            below, weight = scratch[:, : part.shape[0]]
            top = part.amax(dim=1)
            shift = torch.where(top == -torch.inf, 0.0, top)[:, None]  # -inf - -inf would be NaN
            torch.exp(torch.sub(part, shift, out=below), out=weight)
            total = weight.sum(dim=1)
            normaliser[rows] = top + total.log()
            if more is not None:
                more[0, rows] = (chosen[rows] >= top).to(z.dtype)
                more[1, rows] = (torch.linalg.vector_norm(weight, dim=1) / total).square()
                more[2, rows] = part.mean(dim=1)
            if entropy is not None:
                # A weight of 0 adds nothing: its logarithm is made finite.
                below.clamp_(min=torch.finfo(z.dtype).min).mul_(weight)
                entropy[rows] = total.log() - below.sum(dim=1) / total
        return RowStats(chosen - normaliser, normaliser, entropy, more)

    def grad_(
        self,
        z: Tensor,
        target: Tensor,
        normaliser: Tensor,
        entropy: Tensor | None,
        grad_logprob: Tensor,
        grad_entropy: Tensor | None,
    ) -> Tensor:
        """Turn the scores z into the gradient of the loss in the logits a, in the memory of z.

        Args:
            z: [m, V] from ``logits``; overwritten.
            target: [m] int64.
            normaliser: [m] from ``stats``.
            entropy: [m] from ``stats``; None if it has no gradient.
            grad_logprob: [m] gradient of the loss in each log-probability.
            grad_entropy: [m] the same in each entropy, or None.

        Returns:
            [m, V], a view of the memory of z.

        d logprob / d z = onehot - p and d entropy / d z = -p * (log p + entropy).
        """
        rate = 1.0 / self.temperature
        grad_logprob = (grad_logprob * rate).to(z.dtype)
        for rows in self.blocks(z):
            part = z[rows]
            slope = None
            if self.softcap is not None:
                slope = 1.0 - (part * (self.temperature / self.softcap)).square_()
            part.sub_(normaliser[rows, None])
            if grad_entropy is None or entropy is None:
                part.exp_().mul_(-grad_logprob[rows, None])
            else:
                p = part.exp()
                part.masked_fill_(p == 0, 0.0).add_(entropy[rows, None])
                part.mul_(grad_entropy[rows, None] * rate).add_(grad_logprob[rows, None]).neg_().mul_(p)
            part.scatter_add_(1, target[rows, None], grad_logprob[rows, None])
            if slope is not None:
                part.mul_(slope)
        return z

    def backward_matmuls(
        self, dz: Tensor, x: Tensor, dx: Tensor | None, dw: Tensor | None, db: Tensor | None
    ) -> None:
        """The two matmuls of the backward.

        Args:
            dz: [m, V] from ``grad_``.
            x: [m, H] floating.
            dx: [m, H], written; None: left out.
            dw: [V, H] in accumulation precision, written by the first call and added to by the others; None:
                left out.
            db: [V], added to; None: left out.
        """
        if dx is not None:
            total = torch.empty(dx.shape, dtype=self.dtype, device=dx.device)
            for ids, weight in self.parts(max(dz.shape[1], 1)):
                torch.addmm(total, dz[:, ids], weight, beta=int(ids.start > 0), out=total)
            dx.copy_(total)
        if dw is not None:
            torch.addmm(dw, dz.T, x.to(self.dtype), beta=int(self.dw_written), out=dw)
            self.dw_written = True
        if db is not None:
            db += dz.sum(dim=0)


class FusedHead(Head):
    """The same, with float32 logits of low-precision matmuls and one kernel for each of the two steps."""

    def __init__(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
    ) -> None:
        # The interpreter runs on the CPU, where low-precision matmuls do not accumulate as a GPU's do.
        self.dtype = input.dtype if input.is_cuda else torch.float32
        self.weight = weight.to(self.dtype)
        self.bias = None if bias is None else bias.contiguous()  # the kernels read it as it lies in memory
        self.temperature = temperature
        self.softcap = softcap
        self.memory = None
        self.dw_written = False

    def logits(self, x: Tensor) -> Tensor:
        buffer = self.empty(x.shape[0], torch.float32)
        x = x.to(self.dtype)
        if self.dtype == torch.float32:
            torch.mm(x, self.weight.T, out=buffer)
        else:
            torch.mm(x, self.weight.T, out_dtype=torch.float32, out=buffer)
        return buffer

    def stats(
        self, z: Tensor, target: Tensor, *, with_entropy: bool = False, with_more: bool = False
    ) -> RowStats:
        return stats(
            z, target, None, 1.0 / self.temperature, with_entropy, with_more=with_more, bias=self.bias,
            softcap=self.softcap,
        )  # fmt: skip

    def grad_(
        self,
        z: Tensor,
        target: Tensor,
        normaliser: Tensor,
        entropy: Tensor | None,
        grad_logprob: Tensor,
        grad_entropy: Tensor | None,
    ) -> Tensor:
        grad = in_memory_of(z, self.dtype)
        grad_(
            grad, z, target, None, normaliser, entropy, grad_logprob, grad_entropy, 1.0 / self.temperature,
            bias=self.bias, softcap=self.softcap, has_padding=z.stride(0) >= padded(z.shape[1]),
        )  # fmt: skip
        return grad

    def backward_matmuls(
        self, dz: Tensor, x: Tensor, dx: Tensor | None, dw: Tensor | None, db: Tensor | None
    ) -> None:
        x = x.to(self.dtype)
        if dx is not None:
            dx.copy_(dz @ self.weight)
        if dw is not None:
            beta = int(self.dw_written)
            if self.dtype == torch.float32:
                torch.addmm(dw, dz.T, x, beta=beta, out=dw)
            else:
                torch.addmm(dw, dz.T, x, out_dtype=torch.float32, beta=beta, out=dw)
            self.dw_written = True
        if db is not None:
            db += dz.sum(dim=0, dtype=torch.float32)


def make_head(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    backend: str,
) -> Head:
    """The head for these tensors: with kernels where they run, else plain.

    Args:
        input: [m, H] floating, from ``matmul_rows``.
        weight: [V, H] floating.
        bias: [V] floating, or None.
        temperature: what scores are divided by.
        softcap: bounds the logits; None: no bound.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        A ``FusedHead`` or a ``Head``.
    """
    kind = FusedHead if use_triton(backend, input) and weight.dtype != torch.float64 else Head
    return kind(input, weight, bias, temperature, softcap)
