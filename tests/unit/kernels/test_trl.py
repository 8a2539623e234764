"""Loss and gradient of TRL's own functions, on the same log-probabilities.

The functions are taken from TRL's source and run as they are; importing it would take longer than all else.
Of the method that samples, which needs a whole trainer, the block that makes importance-sampling weights is.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fourdthinker.kernels import GrpoOptions, group_advantages, grpo_token_loss, top_entropy_mask

_FOUND = importlib.util.find_spec("trl")
pytestmark = pytest.mark.skipif(_FOUND is None, reason="trl is not installed")
ROWS, LENGTH, MAX_LENGTH = 6, 9, 12


@pytest.fixture(scope="module")
def trl() -> dict[str, Any]:
    """`_compute_loss` and the methods that it calls, as plain functions."""
    assert _FOUND is not None
    assert _FOUND.origin is not None
    source = Path(_FOUND.origin).with_name("trainer") / "grpo_trainer.py"
    wanted = ("_compute_loss", "get_off_policy_mask", "get_high_entropy_mask", "get_gamma_weights")
    trainer = next(
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "GRPOTrainer"
    )
    methods = {node.name: node for node in trainer.body if isinstance(node, ast.FunctionDef)}
    functions = [methods[name] for name in wanted]
    for function in functions:
        function.decorator_list = [d for d in function.decorator_list if "no_grad" in ast.unparse(d)]
    functions.append(sampler_weights(methods["_generate_and_score_completions"]))
    module = ast.fix_missing_locations(ast.Module(list(functions), []))
    scope: dict[str, Any] = {"torch": torch, "math": math, "nanmin": torch.min, "nanmax": torch.max}
    exec(compile("from __future__ import annotations", "future", "exec"), scope)
    exec(compile(module, str(source), "exec", flags=0x1000000), scope)  # annotations stay text
    return {function.name: scope[function.name] for function in functions}


def sampler_weights(method: ast.FunctionDef) -> ast.FunctionDef:
    """The block of TRL's method that makes the weights, as a function of what it reads."""
    made = "vllm_importance_sampling_ratio"
    (block,) = (
        node
        for node in ast.walk(method)
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == "self.use_vllm and self.vllm_importance_sampling_correction"
        and any(
            isinstance(inner, ast.Assign) and ast.unparse(inner.targets[0]) == made for inner in node.body
        )
    )
    given = "self, old_per_token_logps, sampling_per_token_logps, completion_mask, tool_mask"
    (function,) = ast.parse(f"def sampler_weights({given}):\n    return {made}").body
    assert isinstance(function, ast.FunctionDef)
    function.body = [*block.body, *function.body]
    return function


LEVELS = ("token", "sequence")
# Those that TRL has too, each with either ratio level: names and options here, there.
LOSSES = [
    pytest.param(
        {"loss_type": name, "ratio_level": level, "max_length": MAX_LENGTH},
        # In cispo its bound is the bound itself, and not what it is above 1.
        {"loss_type": name, "importance_sampling_level": level, "epsilon_high": 0.2 + (name == "cispo")},
        id=f"{name} {level}",
    )
    for name, level in itertools.product(
        ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo"), LEVELS
    )
]


def rollouts(cut: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Log-probs, and a mask of what counts: nothing of the rollouts that were ``cut``."""
    generator = torch.Generator().manual_seed(3)

    def noise(size: float) -> Tensor:
        return torch.randn(ROWS, LENGTH, generator=generator, dtype=torch.float64) * size

    current = -noise(1.0).abs() - 0.1
    lengths = torch.tensor([9, 5, 1, 7, 9, 4])
    rewards = torch.tensor([1.0, 0.0, 1.2, 0.2, 0.2, 1.0], dtype=torch.float64)
    lengths[list(cut)] = 0
    return {
        "current": current,
        "old": current + noise(0.3),
        "ref": current + noise(0.4),
        "sampler": current + noise(0.3),
        "entropy": noise(1.0).abs(),
        "mask": torch.arange(LENGTH) < lengths[:, None],
        "advantages": group_advantages(rewards, 3),
    }


def theirs(trl: dict[str, Any], data: dict[str, Tensor], correction: Tensor | None, **options: Any) -> Tensor:
    """TRL's loss of one batch on one device."""
    mask = data["mask"]
    arguments = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1}
    arguments |= {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
    arguments |= {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}
    known = {name: options.pop(name) for name in list(options) if name in arguments}
    alone = dict.fromkeys(("gather", "reduce", "pad_across_processes"), lambda value, **_: value)
    accelerator = SimpleNamespace(num_processes=1, sync_gradients=True, **alone)
    trainer = SimpleNamespace(
        args=SimpleNamespace(**arguments | known),
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        _get_per_token_logps_and_entropies=lambda *_, **__: (data["current"], data["entropy"], None),
        aux_loss_enabled=False,
        _entropy_bonus_enabled="entropy_coef" in options,
        use_adaptive_entropy=False,
        use_vllm=correction is not None,
        vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_LENGTH,
        get_off_policy_mask=trl["get_off_policy_mask"],
        get_gamma_weights=trl["get_gamma_weights"],
        _metrics={"train": defaultdict(list)},
        **{"epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0, "importance_sampling_level": "token"}
        | {"loss_type": "grpo", "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None}
        | options,
    )
    trainer.get_high_entropy_mask = lambda *given: trl["get_high_entropy_mask"](trainer, *given)
    inputs = {
        "prompt_ids": mask[:, :1].long(),
        "prompt_mask": mask[:, :1].long(),
        "completion_ids": mask.long(),
        "completion_mask": mask.to(torch.float64),
        "advantages": data["advantages"],
        "old_per_token_logps": data["old"],
        "ref_per_token_logps": data["ref"],
        "sampling_per_token_logps": data["sampler"],
        "importance_sampling_ratio": correction,
        "num_items_in_batch": mask.sum(),
    }
    loss: Tensor = trl["_compute_loss"](trainer, None, inputs)
    return loss


def compare(
    trl: dict[str, Any],
    ours: dict[str, Any],
    their: dict[str, Any],
    *,
    correction: Tensor | None = None,
    cut: tuple[int, ...] = (),
    **given: Any,
) -> None:
    data = rollouts(cut)
    results = []
    for mine in (True, False):
        leaf, entropy = (data[name].clone().requires_grad_() for name in ("current", "entropy"))
        if mine:
            loss, _ = grpo_token_loss(
                leaf, data["advantages"], data["mask"], GrpoOptions(**ours), old_logprobs=data["old"],
                ref_logprobs=data["ref"], sampler_logprobs=data["sampler"], entropy=entropy, **given,
            )  # fmt: skip
        else:
            loss = theirs(trl, data | {"current": leaf, "entropy": entropy}, correction, **their)
        loss.backward()
        bonus = entropy.grad if "entropy_coef" in ours else None
        results.append((loss.detach(), leaf.grad) if bonus is None else (loss.detach(), leaf.grad, bonus))
    single = ours.get("loss_type") == "sapo"  # theirs keeps its temperatures in float32
    bounds = {"rtol": 1e-5, "atol": 1e-6} if single else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(results[0], results[1], **bounds)


@pytest.mark.parametrize(("ours", "their"), LOSSES)
def test_loss_types_levels_and_kl(trl: dict[str, Any], ours: dict[str, Any], their: dict[str, Any]) -> None:
    compare(trl, ours, their)
    compare(trl, ours | {"epsilon_high": 0.28}, their | {"epsilon_high": their["epsilon_high"] + 0.08})
    for shared in ({"beta": 0.04}, {"entropy_coef": 0.1}, {"beta": 0.04, "entropy_coef": 0.1}):
        compare(trl, ours | shared, their | shared)


@pytest.mark.parametrize(("ours", "their"), LOSSES)
def test_rollouts_that_were_cut_off(trl: dict[str, Any], ours: dict[str, Any], their: dict[str, Any]) -> None:
    """With `mask_truncated_completions` their mask is all zeros; they still count as sequences."""
    for shared in ({}, {"beta": 0.04}):
        compare(trl, ours | shared, their | shared, cut=(1, 4))
    data = rollouts((1, 4))
    mask = top_entropy_mask(data["entropy"], data["mask"], 0.33)
    compare(trl, ours, their | {"top_entropy_quantile": 0.33}, cut=(1, 4), entropy_mask=mask)


def test_vespo(trl: dict[str, Any]) -> None:
    """With what the sampler's log-probs correct, which TRL makes in `_generate_and_score_completions`."""
    ours = {"loss_type": "vespo"}
    compare(trl, ours, ours)
    compare(trl, ours | {"beta": 0.04}, ours | {"beta": 0.04})
    chosen = {"vespo_k_positive": 1.5, "vespo_lambda_positive": 0.5}
    chosen |= {"vespo_k_negative": 2.5, "vespo_lambda_negative": 1.25}
    named = {"vespo_k_pos": 1.5, "vespo_lambda_pos": 0.5, "vespo_k_neg": 2.5, "vespo_lambda_neg": 1.25}
    compare(trl, ours | chosen, ours | named)
    data = rollouts()
    ratio = ((data["old"] - data["sampler"]) * data["mask"]).exp()
    cut = {"sampler_floor": 0.8, "sampler_cap": 1.3}
    compare(trl, ours | cut, ours, correction=ratio.clamp(0.8, 1.3))
    masked = ratio.masked_fill((ratio < 0.8) | (ratio > 1.3), 0.0)
    whole = (masked > 0).all(1)
    assert not whole.all()
    compare(trl, ours | cut | {"sampler_excess": "mask"}, ours, correction=masked)
    compare(trl, ours | {"off_policy_bound": 0.01}, ours | {"off_policy_mask_threshold": 0.01})


def test_dual_clip_weighted_kl_and_the_bound_on_what_is_off_policy(trl: dict[str, Any]) -> None:
    compare(trl, {"delta": 1.5}, {"delta": 1.5})
    compare(trl, {"beta": 0.3, "kl_weighting": "ratio"}, {"beta": 0.3, "use_bias_correction_kl": True})
    for bound in (0.01, 0.1):
        compare(trl, {"off_policy_bound": bound}, {"off_policy_mask_threshold": bound})


def corrected(
    trl: dict[str, Any], level: str, excess: str, floor: float | None, cap: float | None
) -> tuple[dict[str, Any], Tensor]:
    """Our options, and TRL's weights by its own."""
    data = rollouts()
    trainer = SimpleNamespace(
        vllm_importance_sampling_mode=f"{level}_{excess}",
        vllm_importance_sampling_clip_min=floor,
        vllm_importance_sampling_clip_max=cap,
    )
    ratio: Tensor = trl["sampler_weights"](trainer, data["old"], data["sampler"], data["mask"], None)
    assert (ratio[data["mask"]] if level == "token" else ratio).unique().numel() > 1
    options = {"sampler_level": level, "sampler_excess": excess, "sampler_floor": floor, "sampler_cap": cap}
    return options, ratio


@pytest.mark.parametrize(("ours", "their"), LOSSES)
def test_correction_for_the_sampler(trl: dict[str, Any], ours: dict[str, Any], their: dict[str, Any]) -> None:
    for level, excess in itertools.product(LEVELS, ("truncate", "mask")):
        options, ratio = corrected(trl, level, excess, 0.8, 1.3)
        compare(trl, ours | options, their, correction=ratio)


@pytest.mark.parametrize(("floor", "cap"), [(None, 1.2), (0.9, None)])
def test_one_bound_of_the_correction(trl: dict[str, Any], floor: float | None, cap: float | None) -> None:
    for level, excess in itertools.product(LEVELS, ("truncate", "mask")):
        options, ratio = corrected(trl, level, excess, floor, cap)
        compare(trl, options, {}, correction=ratio)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.4, 0.75])
def test_top_entropy_mask(trl: dict[str, Any], fraction: float) -> None:
    data = rollouts()
    mask = top_entropy_mask(data["entropy"], data["mask"], fraction)
    assert 0 < mask.sum() < data["mask"].sum()
    compare(trl, {}, {"top_entropy_quantile": fraction}, entropy_mask=mask)


@pytest.mark.parametrize(("ours", "their"), LOSSES)
def test_masks_of_the_highest_entropies(
    trl: dict[str, Any], ours: dict[str, Any], their: dict[str, Any]
) -> None:
    data = rollouts()
    mask = top_entropy_mask(data["entropy"], data["mask"], 0.2)
    shared = {"beta": 0.1}
    compare(trl, ours | shared, their | shared | {"top_entropy_quantile": 0.2}, entropy_mask=mask)
