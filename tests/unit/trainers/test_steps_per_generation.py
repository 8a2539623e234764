"""Updates on shares of the rollouts that were sampled together."""

from __future__ import annotations

import ast
import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fourdthinker.backbones import load_checkpoint
from fourdthinker.errors import ConfigError
from fourdthinker.trainers.grpo import GrpoTrainer
from fourdthinker.trainers.update import Forward
from tests.e2e.training import metrics
from tests.unit.trainers.every_update import run

STEPS, EACH, ITERATIONS = 4, 2, 2  # batches that are sampled together, batches of an update
SETTINGS: dict[str, Any] = {
    "gradient_accumulation_steps": EACH,
    "steps_per_generation": STEPS,
    "num_iterations": ITERATIONS,
    "num_generations": 3,
    "max_steps": 5,
}


def train(folder: Path, **extra: Any) -> Path:
    return run(folder, SETTINGS | extra)


@pytest.fixture(scope="module")
def forwards() -> list[dict[str, Any]]:
    """Of every forward of `whole` its prompts and log-probs, and the update that it is part of."""
    return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, forwards: list[dict[str, Any]]) -> Path:
    after = GrpoTrainer.after_forward

    def spy(self: GrpoTrainer, forward: Forward, *outputs: Tensor) -> None:
        batch = {name: forward.batch.get(name) for name in ("old_logprobs", "rollout_logprobs")}
        told = {"update": self.state.global_step, "items": set(forward.items.tolist()), "now": outputs[0]}
        forwards.append(batch | told)
        after(self, forward, *outputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GrpoTrainer, "after_forward", spy)
        return train(tmp_path_factory.mktemp("steps") / "run").parent


def test_updates_take_their_shares_of_rollouts_of_the_same_weights(
    whole: Path, forwards: list[dict[str, Any]]
) -> None:
    lines = metrics(whole)
    assert [line["staleness"] for line in lines] == [0, 1, 2, 3, 0]
    assert ["reward" in line for line in lines] == [True, False, False, False, True]
    away = [abs(line["ratio"] - 1) for line in lines]
    assert max(away[0], away[4]) < 1e-5, "the policy is the one that sampled"
    assert min(away[1:4]) > 1e-2
    assert max(line["sampler_gap_max"] for line in lines) < 1e-4, "old log-probs are those of that policy"
    items = [[f["items"] for f in forwards if f["update"] == update] for update in range(4)]
    assert items[0] == items[2]
    assert items[1] == items[3]
    assert not set.union(*items[0]) & set.union(*items[1])
    moved = next(f for f in forwards if f["update"] == 1)
    assert torch.allclose(moved["old_logprobs"], moved["rollout_logprobs"], atol=1e-4)
    assert not torch.allclose(moved["now"], moved["rollout_logprobs"], atol=1e-3)


def test_the_order_is_that_of_trl(whole: Path, forwards: list[dict[str, Any]]) -> None:
    """Which of the batches that are sampled together each step trains, of TRL's own function."""
    found = importlib.util.find_spec("trl")
    if found is None or found.origin is None:
        pytest.skip("trl is not installed")
    source = Path(found.origin).with_name("trainer") / "grpo_trainer.py"
    function = next(
        node
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "_prepare_inputs"
    )
    function.decorator_list = []
    same = ("split_pixel_values_by_grid", "shuffle_sequence_dict", "unsplit_pixel_values_by_grid")
    scope: dict[str, Any] = dict.fromkeys(same, lambda batch: batch)
    scope["split_tensor_dict"] = lambda batch, number: [(batch, part) for part in range(number)]
    exec(compile(ast.Module([function], []), str(source), "exec", flags=0x1000000), scope)
    trl = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(steps_per_generation=STEPS),
        num_iterations=ITERATIONS,
        _step=0,
        _buffered_inputs=None,
        _generate_and_score_completions=lambda batch: batch,
    )
    theirs = []
    for trl._step in range(5 * EACH):
        theirs.append(scope["_prepare_inputs"](trl, trl._step // (STEPS * ITERATIONS)))
    own: dict[tuple[int, ...], tuple[int, int]] = {}
    ours = []
    for forward in forwards:
        sampled = forward["update"] // (STEPS // EACH * ITERATIONS)
        key = (sampled, *sorted(forward["items"]))
        ours.append(own.setdefault(key, (sampled, sum(first == sampled for first, *_ in own))))
    assert ours == theirs


def test_shares_add_up_to_the_gradient_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights that stay: two updates of one batch each, beside one update of both."""
    gradients: list[Tensor] = []
    norm = GrpoTrainer._get_grad_norm

    def spy(self: GrpoTrainer, model: Any, grad_norm: Any = None) -> Any:
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(found).clone())
        return norm(self, model, grad_norm)

    monkeypatch.setattr(GrpoTrainer, "_get_grad_norm", spy)
    same = {"learning_rate": 0.0, "save_steps": 0, "max_grad_norm": 0.0, "num_iterations": 1}
    same |= {"steps_per_generation": 2, "resume_from_checkpoint": None}
    train(tmp_path / "shares", gradient_accumulation_steps=1, max_steps=2, **same)
    train(tmp_path / "all", gradient_accumulation_steps=2, max_steps=1, **same)
    first, second, both = gradients
    assert both.norm() > 1e-3
    assert torch.allclose((first + second) / 2, both, atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-3)


def test_the_highest_entropies_are_those_of_each_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[int, int]] = []
    make = GrpoTrainer._make_replay

    def spy(self: GrpoTrainer, experiences: list[Any]) -> Any:
        for first in range(0, STEPS, EACH):
            update = experiences[first : first + EACH]
            tokens = sum(e.num_tokens for e in update)
            kept.append((sum(int(e.entropy_mask.sum()) for e in update), tokens))
        return make(self, experiences)

    monkeypatch.setattr(GrpoTrainer, "_make_replay", spy)
    train(tmp_path, max_steps=1, save_steps=0, top_entropy=0.25)
    assert len(kept) == 2
    for chosen, tokens in kept:
        assert chosen == pytest.approx(0.25 * tokens, abs=1)


# ---- checkpoints between


def test_a_run_goes_on_between_shares(whole: Path, tmp_path: Path) -> None:
    kept = {p.parent.name for p in whole.glob("checkpoint-*/rollouts_0.safetensors")}
    assert kept == {f"checkpoint-{n}" for n in (1, 2, 3, 5)}
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("final", *(f"checkpoint-{later}" for later in range(2, 6))):
        shutil.rmtree(run / name)
    train(run)
    for line, other in zip(metrics(run), metrics(whole), strict=True):
        for name in ("loss", "grad_norm", "kl", "ratio"):
            assert line[name] == other[name], name
    mine, theirs = (load_checkpoint(folder / "final").backbone.state_dict() for folder in (run, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_other_shares_are_refused(whole: Path, tmp_path: Path) -> None:
    said = r"steps_per_generation / gradient_accumulation_steps is 1 and was 2; set them back"
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, resume_from_checkpoint=str(whole / "checkpoint-4"), steps_per_generation=None)
