"""What the kernels bench runs: every op at every size beside its peers, on data of one distribution."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import _kernel_peers as peers
from bench._kernel_data import Call, Case, Data, Sizes, present, step, trained, without_grad
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

Head = Callable[[Tensor, Tensor, Tensor], Tensor]
Pair = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # log-probabilities and entropies


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


class _Heads:
    """What the losses of a head are given, the same for all families."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        data, shape = Data(sizes, device), (sizes.sequences, sizes.length)
        self.x = data.randn(*shape, sizes.width).requires_grad_()
        self.matrix = data.randn(sizes.vocabulary, sizes.width, scale=sizes.width**-0.5)
        self.target = data.ids(*shape, below=sizes.vocabulary)
        self.mask = torch.ones(shape, dtype=torch.bool, device=device)
        self.gains = data.randn(sizes.sequences, dtype=torch.float32)
        with torch.no_grad():
            old = linear_logprobs(self.x, self.matrix, self.target)
        self.old = old + data.randn(*shape, dtype=torch.float32, scale=0.1)
        self.ref = self.old + data.randn(*shape, dtype=torch.float32, scale=0.1)
        self.rows = shape[0] * shape[1]
        self.size = f"{self.rows} x {sizes.width} x {sizes.vocabulary} {_name(sizes.dtype)}"

    def grpo(self, x: Tensor, weight: Tensor, **more: bool) -> Tensor:
        return linear_grpo_loss(
            x, weight, self.target, advantages=self.gains, mask=self.mask, old_logprobs=self.old,
            ref_logprobs=self.ref, options=GrpoOptions(beta=peers.BETA), **more,
        )[0]  # fmt: skip

    def steps(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """A trained and a frozen weight, each with what a case of a forward and a backward pass says."""
        for frozen in (False, True):
            weight = self.matrix.clone().requires_grad_(not frozen)
            yield weight, {
                "size": self.size, "mode": f"forward+backward, head {'frozen' if frozen else 'trained'}",
                "flops": (4 if frozen else 6) * self.rows * weight.numel(), "dw": not frozen,
                "given": self.x.nbytes + weight.nbytes,
            }  # fmt: skip


def _with_heads(loss: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor] | None]:
    """A loss of the fused heads of others, None where one is absent."""
    heads = {
        "TRL fused head": peers.attempted(peers.trl_logprobs),
        "verl fused head": peers.attempted(peers.verl_logprobs),
    }
    return {name: head and functools.partial(loss, head) for name, head in heads.items()}


def _mean_nll(head: Head, x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return -head(x, weight, target).mean()


def head_cases(sizes: Sizes, device: str, compiled: bool) -> Iterator[Case]:
    """The ops that contain the head's matmul; eager makes all logits."""
    made = _Heads(sizes, device)
    x, target, mask, gains, old, ref = made.x, made.target, made.mask, made.gains, made.old, made.ref
    flat, flat_target = x.view(made.rows, -1), target.view(-1)

    def eager_ce(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy((x @ weight.T).float(), target)

    def eager_grpo(x: Tensor, weight: Tensor) -> Tensor:
        current = peers.eager_logprobs((x @ weight.T).float(), target)
        return peers.eager_grpo(current, gains, mask, old, ref)

    def grpo_of(head: Head, x: Tensor, weight: Tensor) -> Tensor:
        return peers.eager_grpo(head(x, weight, target), gains, mask, old, ref)

    nll, theirs = _with_heads(_mean_nll), _with_heads(grpo_of)
    compiled_ce = torch.compile(eager_ce) if compiled else None
    compiled_grpo = torch.compile(eager_grpo) if compiled else None
    liger_ce = peers.attempted(peers.liger_cross_entropy)
    for weight, facts in made.steps():
        leaves = (x, weight)
        calls, absent = present({
            "ours": step(linear_cross_entropy, leaves, flat, weight, flat_target),
            "eager": step(eager_ce, leaves, flat, weight, flat_target),
            **{name: step(loss, leaves, flat, weight, flat_target) for name, loss in nll.items()},
            "torch.compile": step(compiled_ce, leaves, flat, weight, flat_target),
            "Liger": step(liger_ce, leaves, flat, weight, flat_target),
            "F.linear_cross_entropy": step(
                peers.torch_linear_cross_entropy(), leaves, flat, weight, flat_target
            ),
        })  # fmt: skip
        yield Case("linear_cross_entropy", calls=calls, absent=absent, **facts)
        calls, absent = present({
            "ours": step(made.grpo, leaves, x, weight),
            "its matmuls alone": _matmuls(flat.detach(), weight.detach(), facts["dw"]),
            "eager (TRL)": step(eager_grpo, leaves, x, weight),
            **{name: step(loss, leaves, x, weight) for name, loss in theirs.items()},
            "torch.compile": step(compiled_grpo, leaves, x, weight),
        })  # fmt: skip
        yield Case(
            "linear_grpo_loss", calls=calls, absent=absent, without_peak=("its matmuls alone",), **facts
        )


def logprobs_cases(sizes: Sizes, device: str, compiled: bool) -> Iterator[Case]:
    """Log-probabilities of the head, without gradients and with them."""
    made, nll = _Heads(sizes, device), _with_heads(_mean_nll)
    x, target = made.x, made.target
    given = x.nbytes + made.matrix.nbytes
    size, flops = made.size, 2 * made.rows * made.matrix.numel()
    weight = made.matrix
    calls, absent = present({
        "ours": without_grad(lambda: -linear_logprobs(x, weight, target).mean()),
        "eager (TRL)": without_grad(lambda: -peers.eager_logprobs((x @ weight.T).float(), target).mean()),
        **{
            name: loss and without_grad(functools.partial(loss, x, weight, target))
            for name, loss in nll.items()
        },
    })  # fmt: skip
    yield Case("linear_logprobs", size, "forward", calls, flops=flops, absent=absent, given=given)
    weight = made.matrix.clone().requires_grad_()
    calls, absent = present({
        "ours": trained(lambda: -linear_logprobs(x, weight, target).mean(), x, weight),
        "eager (TRL)": trained(
            lambda: -peers.eager_logprobs((x @ weight.T).float(), target).mean(), x, weight
        ),
        **{name: step(loss, (x, weight), x, weight, target) for name, loss in nll.items()},
    })  # fmt: skip
    yield Case(
        "linear_logprobs", size, "forward+backward, head trained", calls, flops=4 * flops, dw=True,
        absent=absent, given=given,
    )  # fmt: skip


def entropy_cases(sizes: Sizes, device: str, compiled: bool) -> Iterator[Case]:
    """A GRPO loss with the mean entropy as a metric, as trainers log it."""
    made = _Heads(sizes, device)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return made.grpo(x, weight, return_entropy=True)

    def of(head: Pair, x: Tensor, weight: Tensor) -> Tensor:
        current, entropy = head(x, weight, made.target)
        entropy.detach().mean()
        return peers.eager_grpo(current, made.gains, made.mask, made.old, made.ref)

    def eager(x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = (x @ weight.T).float()
        with torch.no_grad():
            entropy = peers.eager_entropy(logits)
        return peers.eager_logprobs(logits, target), entropy

    heads: dict[str, Pair | None] = {
        "eager (TRL)": eager, "TRL fused head": peers.attempted(peers.trl_head_with_entropy),
        "verl fused head": peers.attempted(peers.verl_head_with_entropy),
    }  # fmt: skip
    for weight, facts in made.steps():
        leaves = (made.x, weight)
        losses = {
            "ours": ours,
            **{name: head and functools.partial(of, head) for name, head in heads.items()},
        }
        calls, absent = present({name: step(loss, leaves, *leaves) for name, loss in losses.items()})
        yield Case("linear_grpo_loss with entropy", calls=calls, absent=absent, **facts)


def liger_cases(sizes: Sizes, device: str, compiled: bool) -> Iterator[Case]:
    """Liger's GRPO loss, which torch compiles for up to a minute: the last family, so that no other waits."""
    made, loss = _Heads(sizes, device), peers.attempted(peers.liger_grpo)
    name = "Liger" if device == "cuda" else "Liger, not compiled"
    for weight, facts in made.steps():
        leaves = (made.x, weight)
        calls, absent = present({
            "ours": step(made.grpo, leaves, *leaves),
            name: step(loss, leaves, *leaves, made.target, made.gains, made.mask, made.old, made.ref),
        })  # fmt: skip
        yield Case("linear_grpo_loss", calls=calls, absent=absent, **facts)


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

    calls, absent = present({
        "ours": trained(lambda: cross_entropy(logits, target), logits),
        "eager": trained(lambda: eager_ce(logits), logits),
        "torch.compile": step(torch.compile(eager_ce) if compiled else None, (logits,), logits),
    })  # fmt: skip
    yield Case("cross_entropy", size, "forward+backward", calls, moved=3 * once, absent=absent)
    liger = peers.attempted(peers.liger_grpo_of_logits)
    calls, absent = present({
        "ours": trained(lambda: ours_grpo(logits), logits),
        "eager (TRL)": trained(lambda: eager_grpo(logits), logits),
        "torch.compile": step(torch.compile(eager_grpo) if compiled else None, (logits,), logits),
        "Liger": step(liger, (whole,), whole, target, gains, mask, old, ref),
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
    calls, absent = present({name: loss and without_grad(loss) for name, loss in losses.items()})
    yield Case("logprobs with entropy", size, "forward", calls, moved=once, absent=absent)
    calls, absent = present({name: step(loss, (logits,)) for name, loss in losses.items()})
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
    calls, absent = present({
        "ours": trained(lambda: cosine_latent_loss(hidden, goal, index)[0], hidden),
        "eager": trained(lambda: peers.eager_cosine(hidden, goal, is_latent), hidden),
        "torch.compile": step(torch.compile(peers.eager_cosine) if compiled else None, (hidden,), hidden,
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


FAMILIES = {
    "head": head_cases, "logprobs": logprobs_cases, "entropy": entropy_cases, "logits": logits_cases,
    "small": small_cases, "decode": decode_cases, "liger": liger_cases,
}  # fmt: skip
