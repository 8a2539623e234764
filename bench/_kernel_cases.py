"""What the kernels bench runs: every op at every size beside its peers, on data of one distribution."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import _kernel_peers as peers
from fourdthinker.kernels import (
    GrpoOptions,
    chunk_size,
    cosine_latent_loss,
    cross_entropy,
    group_advantages,
    grpo_loss,
    grpo_token_loss,
    latent_feedback_step_,
    latent_state,
    linear_cross_entropy,
    linear_grpo_loss,
    linear_logprobs,
    logprobs,
    pool_latents,
    sample_tokens,
    shared_prefix_decode,
)

Call = Callable[[], object]
Head = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """One table for both kinds of hardware; only these numbers differ."""

    sequences: int
    length: int
    width: int
    vocabulary: int
    latents: int  # rows of the cosine loss
    images: int  # of 256 features each
    sample_rows: int
    groups: int  # of 8 rows
    prompt: int
    dtype: torch.dtype


SIZES = {
    "tiny": Sizes(2, 8, 16, 512, 32, 4, 2, 1, 64, torch.float32),
    "quick": Sizes(2, 64, 64, 8192, 512, 16, 4, 1, 512, torch.float32),
    "cpu": Sizes(4, 128, 256, 32_000, 4096, 256, 16, 2, 2048, torch.float32),
    "cuda": Sizes(16, 512, 2048, 151_936, 32_768, 512, 64, 16, 16_384, torch.bfloat16),
    "wide": Sizes(16, 512, 4096, 151_936, 32_768, 512, 64, 16, 16_384, torch.bfloat16),  # as Liger measures
}


@dataclass
class Case:
    """``calls``: name to what is timed, ours first. ``moved`` bytes and ``flops`` are the floor of ours."""

    op: str
    size: str
    mode: str
    calls: dict[str, Call]
    moved: float = 0.0
    flops: float = 0.0
    dw: bool = False  # whether a weight gradient is among what the peak counts
    given: int = 0  # bytes of hidden states and weights, which the peak above what was held leaves out
    absent: dict[str, str] = field(default_factory=dict)  # peers that cannot run here, and why
    alike: bool = True  # every call that returns a tensor returns the same loss, which is checked


class Data:
    """Random tensors of a device, the same whatever else is made before them."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        self.sizes, self.device = sizes, device
        self.generator = torch.Generator(device).manual_seed(0)

    def randn(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        made = torch.randn(*shape, generator=self.generator, device=self.device) * scale
        return made.to(dtype or self.sizes.dtype)

    def ids(self, *shape: int, below: int) -> Tensor:
        return torch.randint(0, below, shape, generator=self.generator, device=self.device)


def trained(loss: Callable[..., Tensor], *leaves: Tensor) -> Call:
    """A step: the loss and its gradients in those of ``leaves`` that require one, freed again at its end."""

    def step() -> Tensor:
        value = loss()
        value.backward()
        for leaf in leaves:
            leaf.grad = None
        return value.detach()

    return step


def without_grad(call: Call) -> Call:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def _present(calls: dict[str, Call | None]) -> tuple[dict[str, Call], dict[str, str]]:
    """The calls there are, and why the others are not: ``peers`` and the arguments decide."""
    why = {
        "torch.compile": "left out", "Liger": "not installed, or needs a GPU",
        "Liger, not compiled": "not installed",
        "TRL fused head": "not installed: pip install trl",
        "TRL fused": "not installed (pip install trl), or needs a GPU",
        "verl fused head": "not installed (pip install verl), or needs a GPU",
    }  # fmt: skip
    missing = {name: why.get(name, "not in this torch") for name, call in calls.items() if call is None}
    return {name: call for name, call in calls.items() if call is not None}, missing


def _step(call: Callable[..., Tensor] | None, leaves: tuple[Tensor, ...], *arguments: Tensor) -> Call | None:
    return None if call is None else trained(lambda: call(*arguments), *leaves)


def _matmuls(x: Tensor, weight: Tensor, need_dw: bool) -> Call:
    """What a fused loss cannot do without: logits, dX and (if asked for) the float32 dW, in ours' chunks.

    The gradient of the logits is random: products of zeros are faster than those of numbers.
    """
    on_cpu, wide = x.device.type == "cpu", torch.float32
    chunk = chunk_size(x.shape[0], weight.shape[0], None, on_cpu=on_cpu)
    logits = torch.empty(chunk, weight.shape[0], dtype=wide, device=x.device)
    dz = logits if x.dtype == wide else torch.randn_like(logits, dtype=x.dtype)
    dw = torch.empty(weight.shape if need_dw else (0,), dtype=wide, device=x.device)
    to_float32: dict[str, Any] = {} if x.dtype == wide else {"out_dtype": wide}

    def run() -> None:
        for number, part in enumerate(x.split(chunk)):
            torch.mm(part, weight.T, out=logits[: len(part)], **to_float32)
            torch.mm(dz[: len(part)], weight)
            if need_dw and number == 0:  # writes, so that nothing has to be cleared before
                torch.mm(dz[: len(part)].T, part, out=dw, **to_float32)
            elif need_dw:
                torch.addmm(dw, dz[: len(part)].T, part, out=dw, **to_float32)

    return run


def head_cases(sizes: Sizes, device: str, compiled: bool) -> Iterator[Case]:
    """The ops that contain the head's matmul; eager makes all logits."""
    data = Data(sizes, device)
    batch, length, width, vocabulary = sizes.sequences, sizes.length, sizes.width, sizes.vocabulary
    rows = batch * length
    x = data.randn(batch, length, width).requires_grad_()
    matrix = data.randn(vocabulary, width, scale=width**-0.5)
    target = data.ids(batch, length, below=vocabulary)
    mask = torch.ones(batch, length, dtype=torch.bool, device=device)
    gains = data.randn(batch, dtype=torch.float32)
    with torch.no_grad():
        old = linear_logprobs(x, matrix, target) + data.randn(batch, length, dtype=torch.float32, scale=0.1)
    ref = old + data.randn(batch, length, dtype=torch.float32, scale=0.1)
    size = f"{rows} x {width} x {vocabulary} {_name(sizes.dtype)}"
    flat, flat_target = x.view(rows, width), target.view(-1)

    def eager_ce(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy((x @ weight.T).float(), target)

    def eager_grpo(x: Tensor, weight: Tensor) -> Tensor:
        current = peers.eager_logprobs((x @ weight.T).float(), target)
        return peers.eager_grpo(current, gains, mask, old, ref)

    def ours_grpo(x: Tensor, weight: Tensor) -> Tensor:
        return linear_grpo_loss(
            x, weight, target, advantages=gains, mask=mask, old_logprobs=old, ref_logprobs=ref,
            options=GrpoOptions(beta=peers.BETA),
        )[0]  # fmt: skip

    heads = {
        "TRL fused head": peers.attempted(peers.trl_logprobs),
        "verl fused head": peers.attempted(peers.verl_logprobs),
    }

    def mean_nll(head: Head, x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return -head(x, weight, target).mean()

    def grpo_of(head: Head, x: Tensor, weight: Tensor) -> Tensor:
        return peers.eager_grpo(head(x, weight, target), gains, mask, old, ref)

    def with_heads(loss: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor] | None]:
        return {name: head and functools.partial(loss, head) for name, head in heads.items()}

    nll, theirs = with_heads(mean_nll), with_heads(grpo_of)
    compiled_ce = torch.compile(eager_ce) if compiled else None
    compiled_grpo = torch.compile(eager_grpo) if compiled else None
    liger, liger_ce = peers.attempted(peers.liger_grpo), peers.attempted(peers.liger_cross_entropy)
    liger_name = "Liger" if device == "cuda" else "Liger, not compiled"
    given = x.nbytes + matrix.nbytes
    for frozen in (False, True):
        weight = matrix.clone().requires_grad_(not frozen)
        leaves = (x, weight)
        mode = f"forward+backward, head {'frozen' if frozen else 'trained'}"
        flops = (4 if frozen else 6) * rows * width * vocabulary
        calls, absent = _present({
            "ours": _step(linear_cross_entropy, leaves, flat, weight, flat_target),
            "eager": _step(eager_ce, leaves, flat, weight, flat_target),
            **{name: _step(loss, leaves, flat, weight, flat_target) for name, loss in nll.items()},
            "torch.compile": _step(compiled_ce, leaves, flat, weight, flat_target),
            "Liger": _step(liger_ce, leaves, flat, weight, flat_target),
            "F.linear_cross_entropy": _step(
                peers.torch_linear_cross_entropy(), leaves, flat, weight, flat_target
            ),
        })  # fmt: skip
        facts: dict[str, Any] = {"flops": flops, "dw": not frozen, "given": given}
        yield Case("linear_cross_entropy", size, mode, calls, absent=absent, **facts)
        calls, absent = _present({
            "ours": _step(ours_grpo, leaves, x, weight),
            "its matmuls alone": _matmuls(flat.detach(), weight.detach(), not frozen),
            "eager (TRL)": _step(eager_grpo, leaves, x, weight),
            **{name: _step(loss, leaves, x, weight) for name, loss in theirs.items()},
            "torch.compile": _step(compiled_grpo, leaves, x, weight),
            liger_name: _step(liger, leaves, x, weight, target, gains, mask, old, ref),
        })  # fmt: skip
        yield Case("linear_grpo_loss", size, mode, calls, absent=absent, **facts)
    weight = matrix.clone()
    calls, absent = _present({
        "ours": without_grad(lambda: -linear_logprobs(x, weight, target).mean()),
        "eager (TRL)": without_grad(lambda: -peers.eager_logprobs((x @ weight.T).float(), target).mean()),
        **{
            name: loss and without_grad(functools.partial(loss, x, weight, target))
            for name, loss in nll.items()
        },
    })  # fmt: skip
    yield Case(
        "linear_logprobs", size, "forward", calls, flops=2 * rows * width * vocabulary, absent=absent,
        given=given,
    )  # fmt: skip
    weight = matrix.clone().requires_grad_()
    calls, absent = _present({
        "ours": trained(lambda: -linear_logprobs(x, weight, target).mean(), x, weight),
        "eager (TRL)": trained(
            lambda: -peers.eager_logprobs((x @ weight.T).float(), target).mean(), x, weight
        ),
        **{name: _step(loss, (x, weight), x, weight, target) for name, loss in nll.items()},
    })  # fmt: skip
    yield Case(
        "linear_logprobs", size, "forward+backward, head trained", calls,
        flops=8 * rows * width * vocabulary, dw=True, absent=absent, given=given,
    )  # fmt: skip


def logits_cases(sizes: Sizes, device: str, compiled: bool) -> Iterator[Case]:
    """The same losses when the logits exist already."""
    data = Data(sizes, device)
    batch, length, vocabulary = sizes.sequences, sizes.length, sizes.vocabulary
    whole = data.randn(batch, length + 1, vocabulary, scale=2.0).requires_grad_()  # as Liger takes them
    # A leaf: autograd's gradient of a slice would be half of the bytes that are moved.
    logits = whole.detach()[:, :-1].contiguous().requires_grad_()
    target = data.ids(batch, length, below=vocabulary)
    mask = torch.ones(batch, length, dtype=torch.bool, device=device)
    gains = data.randn(batch, dtype=torch.float32)
    with torch.no_grad():
        old = logprobs(logits, target) + data.randn(batch, length, dtype=torch.float32, scale=0.1)
    ref = old + data.randn(batch, length, dtype=torch.float32, scale=0.1)
    size = f"{batch * length} x {vocabulary} {_name(sizes.dtype)}"
    once = float(logits.numel() * logits.element_size())

    def eager_ce(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1).float(), target.view(-1))

    def eager_grpo(logits: Tensor) -> Tensor:
        return peers.eager_grpo(peers.eager_logprobs(logits.float(), target), gains, mask, old, ref)

    def ours_grpo(logits: Tensor) -> Tensor:
        return grpo_loss(
            logits,
            target,
            GrpoOptions(beta=peers.BETA),
            advantages=gains,
            mask=mask,
            old_logprobs=old,
            ref_logprobs=ref,
        )[0]

    calls, absent = _present({
        "ours": trained(lambda: cross_entropy(logits, target), logits),
        "eager": trained(lambda: eager_ce(logits), logits),
        "torch.compile": _step(torch.compile(eager_ce) if compiled else None, (logits,), logits),
    })  # fmt: skip
    yield Case("cross_entropy", size, "forward+backward", calls, moved=3 * once, absent=absent)
    liger = peers.attempted(peers.liger_grpo_of_logits)
    calls, absent = _present({
        "ours": trained(lambda: ours_grpo(logits), logits),
        "eager (TRL)": trained(lambda: eager_grpo(logits), logits),
        "torch.compile": _step(torch.compile(eager_grpo) if compiled else None, (logits,), logits),
        "Liger": _step(liger, (whole,), whole, target, gains, mask, old, ref),
    })  # fmt: skip
    yield Case("grpo_loss", size, "forward+backward", calls, moved=3 * once, absent=absent)
    calls = {
        "ours": without_grad(lambda: -logprobs(logits, target).mean()),
        "eager (TRL)": without_grad(lambda: -peers.eager_logprobs(logits.float(), target).mean()),
    }
    yield Case("logprobs", size, "forward", calls, moved=once)
    yield from _with_entropy(logits, target, size)


def _with_entropy(logits: Tensor, target: Tensor, size: str) -> Iterator[Case]:
    """Log-probabilities and entropies from one read of the logits, and their gradients."""
    once = float(logits.numel() * logits.element_size())

    def ours() -> Tensor:
        chosen, entropy = logprobs(logits, target, return_entropy=True)
        return -(chosen + 0.01 * entropy).mean()

    def of(pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        chosen, entropy = pair(logits, target)
        return -(chosen + 0.01 * entropy).mean()

    fused = peers.attempted(peers.trl_logprobs_and_entropy)
    losses = {
        "ours": ours, "eager (TRL)": functools.partial(of, peers.eager_logprobs_and_entropy),
        "TRL fused": fused and functools.partial(of, fused),
    }  # fmt: skip
    calls, absent = _present({name: loss and without_grad(loss) for name, loss in losses.items()})
    yield Case("logprobs with entropy", size, "forward", calls, moved=once, absent=absent)
    calls, absent = _present({name: _step(loss, (logits,)) for name, loss in losses.items()})
    yield Case("logprobs with entropy", size, "forward+backward", calls, moved=3 * once, absent=absent)


def small_cases(sizes: Sizes, device: str, compiled: bool) -> Iterator[Case]:
    """Ops without a vocabulary: latents, advantages, token losses."""
    data = Data(sizes, device)
    width, itemsize = sizes.width, sizes.dtype.itemsize
    hidden = data.randn(4, sizes.latents // 2, width).requires_grad_()
    count = sizes.latents
    is_latent = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=device)
    is_latent[:, 1 : 1 + count // 4] = True
    index, goal = is_latent.view(-1).nonzero()[:, 0], data.randn(count, width)
    calls, absent = _present({
        "ours": trained(lambda: cosine_latent_loss(hidden, goal, index)[0], hidden),
        "eager": trained(lambda: peers.eager_cosine(hidden, goal, is_latent), hidden),
        "torch.compile": _step(torch.compile(peers.eager_cosine) if compiled else None, (hidden,), hidden,
                               goal, is_latent),
    })  # fmt: skip
    positions = hidden.shape[0] * hidden.shape[1]
    yield Case(
        "cosine_latent_loss", f"{count} of {positions} x {width} {_name(sizes.dtype)}",
        "forward+backward", calls, moved=(2.0 * goal.numel() + hidden.numel()) * itemsize, absent=absent,
    )  # fmt: skip
    each = [250 + i % 13 for i in range(sizes.images)]
    counts, features = torch.tensor(each), data.randn(sum(each), width)
    calls = {
        "ours": lambda: pool_latents(features, counts, 8),
        "eager": lambda: peers.eager_pool(features, each, 8),
    }
    yield Case(
        "pool_latents", f"{sizes.images} images, {len(features)} x {width} {_name(sizes.dtype)}", "forward",
        calls, moved=float(features.numel() * itemsize), alike=False,
    )  # fmt: skip
    rewards = data.randn(1024, dtype=torch.float32)
    calls = {
        "ours": lambda: group_advantages(rewards, 8), "eager": lambda: peers.eager_advantages(rewards, 8),
    }  # fmt: skip
    yield Case("group_advantages", "1024 in groups of 8", "forward", calls, alike=False)
    current = -data.randn(32, 1024, dtype=torch.float32).abs().requires_grad_().detach()
    current.requires_grad_()
    old, ref = (current.detach() + data.randn(32, 1024, dtype=torch.float32, scale=0.1) for _ in range(2))
    mask, gains = data.ids(32, 1024, below=8) > 0, data.randn(32, dtype=torch.float32)
    calls = {
        "ours": trained(
            lambda: grpo_token_loss(
                current, gains, mask, GrpoOptions(beta=peers.BETA), old_logprobs=old, ref_logprobs=ref
            )[0], current,
        ),
        "eager (TRL)": trained(lambda: peers.eager_grpo(current, gains, mask, old, ref), current),
    }  # fmt: skip
    yield Case("grpo_token_loss", "32 x 1024", "forward+backward", calls)


def decode_cases(sizes: Sizes, device: str, compiled: bool) -> Iterator[Case]:
    """One decode step: sampling, the grammar, attention over a shared prompt."""
    data = Data(sizes, device)
    rows, vocabulary = sizes.sample_rows, 151_668 if sizes.vocabulary > 8192 else sizes.vocabulary
    # Rows of a multiple of 16 elements, as the sampler's head makes them.
    logits = data.randn(rows, -(-vocabulary // 16) * 16, scale=2.0)[:, :vocabulary]
    names = torch.arange(rows, device=device)
    ones = torch.ones(rows, device=device)
    size = f"{rows} x {vocabulary} {_name(sizes.dtype)}"
    read = float(logits.numel() * logits.element_size())
    for mode, changes, peer in (
        ("greedy", {"temperature": ones * 0}, lambda z: (z.argmax(-1), z.float().log_softmax(-1))),
        ("temperature 1", {}, peers.hf_sampler()),
        ("top-p 0.9", {"top_p": ones * 0.9}, peers.hf_sampler(top_p=0.9)),
        ("top-k 20", {"top_k": (ones * 20).int()}, peers.hf_sampler(top_k=20)),
    ):
        rules = {"seeds": names, "steps": names, "temperature": ones} | changes
        calls: dict[str, Call] = {
            "ours": lambda rules=rules: sample_tokens(logits, **rules),
            "eager (transformers)": lambda peer=peer: peer(logits),
        }
        yield Case("sample_tokens", size, mode, calls, moved=read, alike=False)
    hidden, table = data.randn(rows, sizes.width), data.randn(1024, sizes.width)
    state = latent_state(rows, sizes.width, 64, dtype=sizes.dtype, device=device)
    sampled, none = data.ids(rows, below=1000), torch.empty(0, dtype=torch.int64, device=device)
    token = {"pad_id": 1001, "start_id": 1002, "end_id": 1003, "fill_id": 1004, "latent_size": 8}

    def step(backend: str) -> object:
        return latent_feedback_step_(sampled, hidden, table, **state, eos_ids=none, **token, backend=backend)

    yield Case(
        "latent_feedback_step_", f"{rows} x {sizes.width} {_name(sizes.dtype)}", "forward",
        {"ours": lambda: step("auto"), "eager (our reference)": lambda: step("torch")},
        moved=2.0 * hidden.numel() * hidden.element_size(), alike=False,
    )  # fmt: skip
    groups, own, heads, kv, depth = sizes.groups, 64, 16, 2, 128
    prompt = [data.randn(groups, kv, sizes.prompt, depth) for _ in range(2)]
    past = [data.randn(groups * 8, kv, own, depth) for _ in range(2)]
    query = data.randn(groups * 8, heads, depth)
    whole = [torch.cat((p.repeat_interleave(8, 0), o), 2) for p, o in zip(prompt, past)]
    lengths = torch.full((groups * 8,), own, device=device)
    prompts = torch.full((groups,), sizes.prompt, device=device)
    calls = {
        "ours": lambda: shared_prefix_decode(
            query, *prompt, *past, prompt_lengths=prompts, lengths=lengths
        ),
        "eager (SDPA, prompt repeated beforehand)": lambda: peers.eager_decode(query, *whole),
    }  # fmt: skip
    moved = 2.0 * (prompt[0].numel() + past[0].numel()) * query.element_size()
    yield Case(
        "shared_prefix_decode", f"{groups} x 8 rows, prompt {sizes.prompt} {_name(sizes.dtype)}", "forward",
        calls, moved=moved, alike=False,
    )  # fmt: skip


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


FAMILIES = {"head": head_cases, "logits": logits_cases, "small": small_cases, "decode": decode_cases}
