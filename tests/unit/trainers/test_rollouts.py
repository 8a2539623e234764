"""Dynamic sampling, KL in the reward, what other passes say of rollouts, the control of the entropy."""

from __future__ import annotations

import asyncio
import fnmatch
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fourdthinker.errors import CheckpointError
from fourdthinker.integrations.hub import _KEPT_BACK
from fourdthinker.kernels import top_entropy_mask
from fourdthinker.reward_calls import RewardFailedError
from fourdthinker.sampler import LatentSampler, joined_groups
from fourdthinker.settings import make_config
from fourdthinker.trainers.entropy_control import EntropyControl
from fourdthinker.trainers.experience import Experience, Scored
from fourdthinker.trainers.grpo import GrpoTrainer, train_grpo
from fourdthinker.trainers.refill import other_prompt
from fourdthinker.trainers.rollouts import RolloutTrainer
from fourdthinker.trainers.settings import GrpoConfig
from tests.e2e.training import BARE, metrics, prompts, unexplained
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.test_packing import N, OftenStart, rolled

GRPO: dict[str, Any] = BARE | {
    "reward_weights": [1.0],
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_generations": 3,
    "max_completion_length": 8,
    "max_blocks": 2,
    "learning_rate": 1e-2,
    "log_rollouts": 0,
    "loss": {"beta": 0.0},
    "max_steps": 2,
}


def half_solved(text: str, record: Any, length: int, tokens: Any) -> float:
    """Prompts of even number are solved always."""
    return 1.0 if int(record.id[1:]) % 2 == 0 else float(tokens.sum()) + length


def solved(text: str, record: Any) -> float:
    return 1.0


def half_judged(text: str, record: Any, tokens: Any) -> float:
    """Those of prompts of even number fail."""
    if int(record.id[1:]) % 2 == 0:
        raise RewardFailedError("the judge is away")
    return varied(text, record, tokens)


async def late(text: str, record: Any) -> float:
    await asyncio.sleep(20)
    return 1.0


async def soon_late(text: str, record: Any) -> float:
    """Of the first micro-batch it fails at once."""
    CALLS.append(text)
    return out_of_reach(text, record) if len(CALLS) <= 6 else await late(text, record)


def out_of_reach(text: str, record: Any) -> float:
    raise RewardFailedError("the judge is away")


CALLS: list[str] = []


def soon_solved(text: str, record: Any, tokens: Any) -> float:
    """Varied in the first update of 12 rollouts, and then all right."""
    CALLS.append(text)
    return varied(text, record, tokens) if len(CALLS) <= 12 else 1.0


def against(text: str, record: Any, tokens: Any) -> float:
    """With `varied` and twice the weight a sum of 0."""
    return -varied(text, record, tokens) / 2


def odd_alone(text: str, record: Any, tokens: Any) -> float | None:
    return 1.0 if tokens.sum() % 2 else None


def even_alone(text: str, record: Any, tokens: Any) -> float | None:
    return None if tokens.sum() % 2 else 5.0


def varied(text: str, record: Any, tokens: Any) -> float:
    return float(tokens.sum() % 97)


def train(
    folder: Path,
    reward: Callable[..., float],
    monkeypatch: pytest.MonkeyPatch,
    *,
    blocks: bool = False,
    **extra: Any,
) -> tuple[list[list[Experience]], list[int]]:
    """A tiny run: the experiences of each update, and how many prompts each call of the sampler had."""
    seen: list[list[Experience]] = []
    calls: list[int] = []
    make, roll = GrpoTrainer._make_replay, RolloutTrainer._roll_out

    def spy_make(self: GrpoTrainer, experiences: list[Experience]) -> Any:
        seen.append(experiences)
        return make(self, experiences)

    def spy_roll(self: RolloutTrainer, indices: list[int], *others: Any) -> Any:
        calls.append(len(indices))
        if blocks:
            sample = functools.partial(LatentSampler.sample, self.sampler, logits_processor=[OftenStart()])
            monkeypatch.setattr(self.sampler, "sample", sample)
        return roll(self, indices, *others)

    monkeypatch.setattr(GrpoTrainer, "_make_replay", spy_make)
    monkeypatch.setattr(RolloutTrainer, "_roll_out", spy_roll)
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    values = GRPO | {"output_dir": str(folder), "rewards": [f"{__name__}:{reward.__name__}"]} | extra
    train_grpo(make_config(GrpoConfig, values), checkpoint=checkpoint, prompts=prompts(checkpoint, 12))
    monkeypatch.setattr(GrpoTrainer, "_make_replay", make)
    monkeypatch.setattr(RolloutTrainer, "_roll_out", roll)
    return seen, calls


def test_refill_trains_on_full_groups_that_vary_and_goes_on_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"refill_rounds": 8, "save_steps": 1, "resume_from_checkpoint": "auto"}
    seen, calls = train(tmp_path / "run", half_solved, monkeypatch, **extra)
    assert len(calls) > 4, "some groups were replaced"
    assert max(calls) <= 2
    for experiences in seen:
        assert len(experiences) == 2
        for e in experiences:
            assert len(e.indices) == len(e.prompts) == 2
            assert all(index % 2 for index in e.indices)
            assert [p.record.id for p in e.prompts if p.record] == [f"p{index}" for index in e.indices]
            assert (e.rewards.view(2, 3).std(1) > 0).all()
            assert e.trained.all()
            assert e.rollout.group.tolist() == [0, 0, 0, 1, 1, 1]
    whole = metrics(tmp_path / "run")
    (tmp_path / "run" / "final").rename(tmp_path / "final")
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "checkpoint-2")
    again, _ = train(tmp_path / "run", half_solved, monkeypatch, **extra)
    assert [e.indices for e in again[-1]] == [e.indices for e in seen[-1]]
    assert [line["loss"] for line in metrics(tmp_path / "run")] == [line["loss"] for line in whole]


def test_refill_ends_after_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, calls = train(tmp_path, solved, monkeypatch, refill_rounds=2, max_steps=1)
    assert calls == [2] * 6, "two batches, each at first and in two rounds"
    assert not any(e.trained.any() for e in seen[0])
    (line, *_) = metrics(tmp_path)
    assert (line["loss"], line["equal_groups"], line["refilled_groups"]) == (0.0, 1.0, 0.0)
    assert line["alarms"] >= 1


def test_groups_whose_rewards_failed_are_refilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, calls = train(tmp_path, half_judged, monkeypatch, refill_rounds=8, max_steps=1)
    assert max(calls) <= 2
    assert len(calls) > 2
    for e in seen[0]:
        assert all(index % 2 for index in e.indices)
        assert e.trained.all()


@pytest.mark.parametrize(("reward", "number"), [(out_of_reach, 6), (late, 2), (soon_late, 3)])
def test_refill_of_failed_groups_is_bounded_and_does_not_wait_for_more_that_hang(
    reward: Callable[..., Any], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CALLS.clear()
    seen, calls = train(tmp_path, reward, monkeypatch, refill_rounds=2, max_steps=1, reward_timeout=0.05)
    assert calls == [2] * number, "of two micro-batches"
    assert not any(e.trained.any() for e in seen[0])
    (line, *_) = metrics(tmp_path)
    assert (line["failed_rewards"], line["refilled_groups"]) == (1.0, 0.0)


def test_an_update_that_trains_nothing_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW's momentum of the first update would move the weights in the second."""
    CALLS.clear()
    seen, _ = train(tmp_path, soon_solved, monkeypatch, drop_equal_groups=True, save_steps=1)
    assert [any(bool(e.trained.any()) for e in update) for update in seen] == [True, False]
    first, second = (load_file(tmp_path / f"checkpoint-{n}" / "model.safetensors") for n in (1, 2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    lines = metrics(tmp_path)
    assert lines[0]["grad_norm"] > 0
    assert (lines[1]["grad_norm"], lines[1]["bad_steps"]) == (0.0, 0)


def test_groups_that_differ_by_the_kl_alone_teach_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"reward_kl_weight": 2.0, "drop_equal_groups": True}
    seen, _ = train(tmp_path, half_solved, monkeypatch, **extra)
    solved_groups = 0
    for e in seen[1]:
        groups = [not index % 2 for index in e.indices for _ in range(3)]
        solved_groups += sum(groups)
        assert e.kept.tolist() == [not equal for equal in groups]
        assert (e.rewards.view(-1, 3).std(1) > 0).all(), "the KL is part of the rewards"
    assert metrics(tmp_path)[1]["equal_groups"] == solved_groups / 12
    assert 0 < solved_groups < 12


@pytest.mark.parametrize(
    ("functions", "weights", "taught"),
    [((varied, against), [1.0, 2.0], True), ((odd_alone, even_alone), [1.0, 1.0], False)],
)
def test_with_gdpo_a_group_teaches_nothing_where_its_advantages_are_0(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    functions: list[Callable[..., Any]],
    weights: list[float],
    taught: bool,
) -> None:
    """Equal sums may be of rewards whose advantages differ, and sums that differ of some that are all 0."""
    extra: dict[str, Any] = {"rewards": [f"{__name__}:{one.__name__}" for one in functions]}
    extra |= {
        "reward_weights": weights,
        "aggregate_rewards": "normalised",
        "refill_rounds": 1,
        "max_steps": 1,
    }
    seen, calls = train(tmp_path, varied, monkeypatch, **extra)
    rewards = torch.cat([e.rewards for e in seen[0]]).view(-1, 3)
    assert (rewards.std(1) > 0).any() != taught
    for e in seen[0]:
        assert e.kept.tolist() == [taught] * 6
        assert (e.advantages.abs().view(2, 3).amax(1) > 1e-3).tolist() == [taught] * 2
    assert (len(calls) == 2) == taught, "groups were replaced"


@pytest.mark.parametrize(("kind", "kl"), [("k1", -200.0), ("k2", 200.0**2 / 2), ("k3", math.exp(20) - 201)])
def test_a_token_that_the_reference_thinks_certain_has_a_finite_kl(kind: str, kl: float) -> None:
    rollout = SimpleNamespace(
        policy_mask=torch.ones(2, 1, dtype=torch.bool), logprobs=torch.tensor([[-0.1], [-1.0]])
    )
    none = torch.zeros(2, dtype=torch.bool)
    scored = Scored([0], [], rollout, None, [], torch.ones(2), {}, none, "", False, ~none)  # type: ignore[arg-type]
    settings = SimpleNamespace(reward_kl=kind, reward_kl_weight=0.5, num_generations=2)
    ref = torch.tensor([[199.9], [-1.0]])
    made = RolloutTrainer._with_kl(SimpleNamespace(settings=settings), scored, ref)  # type: ignore[arg-type]
    assert made.rewards.tolist() == pytest.approx([1 - 0.5 * kl, 1.0], rel=1e-6)


def test_other_prompts_depend_on_the_slot_alone() -> None:
    drawn = [other_prompt(7, 3, attempt, 5, 4, {0, 2}) for attempt in range(1, 30)]
    assert set(drawn) == {1, 3}
    assert drawn == [other_prompt(7, 3, attempt, 5, 4, {0, 2}) for attempt in range(1, 30)]
    assert other_prompt(7, 3, 1, 5, 1, {0}) == 0, "where there are no others"


def test_groups_of_rollouts_are_joined() -> None:
    one = rolled()
    rows = [range(2 * N, 3 * N), range(N)]
    made = joined_groups([(one, rows[0]), (one, rows[1])], 0)
    chosen = [*rows[0], *rows[1]]
    assert torch.equal(made.tokens, one.tokens[chosen])
    assert made.group.tolist() == [0] * N + [1] * N
    assert made.timing == one.timing
    for i, row in enumerate(chosen):
        assert torch.equal(made.latents[made.latent_rows == i], one.latents[one.latent_rows == row])
        assert torch.equal(made.latent_steps[made.latent_rows == i], one.latent_steps[one.latent_rows == row])


def test_rollouts_end_at_stop_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = ["e", "o", "t"]
    seen, _ = train(tmp_path, varied, monkeypatch, stop_strings=stops, max_steps=1, max_blocks=0)
    tokenizer = tiny_checkpoint(hidden=32, layers=1).tokenizer
    ends = []
    for e in seen[0]:
        whole = e.rollout.texts(tokenizer)
        for row, why in enumerate(e.rollout.finish_reason):
            length = int(e.rollout.lengths[row])
            before = tokenizer.decode(e.rollout.tokens[row, : length - 1].tolist())
            assert not any(stop in before for stop in stops)
            assert any(stop in whole[row] for stop in stops) == (why == "stop")
            assert int(e.rollout.policy_mask[row].sum()) == length, "the id that ends it is trained too"
            ends.append(why)
    assert "stop" in ends
    (line,) = metrics(tmp_path)
    assert line["finish_stop"] == pytest.approx(ends.count("stop") / len(ends))
    assert line["sampler_gap_max"] < 1e-4


def test_overlong_rollouts_count_as_sequences_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in TRL, whose mean over sequences keeps those whose tokens are masked."""
    seen, _ = train(tmp_path, varied, monkeypatch, mask_overlong=True, max_steps=1)
    for e in seen[0]:
        cut = [reason == "length" for reason in e.rollout.finish_reason]
        assert any(cut)
        assert e.kept.all()
        assert (~e.trained).tolist() == cut
        sequences, tokens, _ = e.counts
        assert (sequences, tokens) == (6, int(e.rollout.policy_mask[e.trained].sum()))


def test_kl_in_the_reward_and_a_mask_of_the_highest_entropies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"reward_kl_weight": 2.0, "reward_kl": "k1", "top_entropy": 0.3, "latent_term": "cosine"}
    extra |= {"loss": {"loss_type": "dapo", "beta": 0.1, "entropy_coef": 0.02}}
    seen, _ = train(tmp_path, varied, monkeypatch, blocks=True, max_completion_length=16, **extra)
    for update, experiences in enumerate(seen):
        kept = torch.cat([e.entropy_mask.flatten() for e in experiences])  # type: ignore[union-attr]
        chosen = torch.cat([e.rollout.policy_mask.flatten() for e in experiences])
        assert not (kept & ~chosen).any()
        assert int(kept.sum()) == 1 + math.floor(0.3 * (int(chosen.sum()) - 1))
        for e in experiences:
            assert e.ref_logprobs is not None
            own = torch.where(e.rollout.policy_mask, e.rollout.logprobs - e.ref_logprobs, 0.0).sum(1)
            torch.testing.assert_close(e.parts["kl"], own)
            torch.testing.assert_close(e.rewards, e.parts["varied"] - 2.0 * own)
            assert (own.abs().max() > 1e-3) == (update > 0), "before the first update the models are one"
    lines = metrics(tmp_path)
    assert lines[0]["latent_anchor"] == pytest.approx(1.0, abs=1e-4)
    assert lines[1]["latent_anchor"] < 1.0
    for line in lines:
        parts = line["policy_loss"] + 0.1 * line["kl"] - 0.02 * line["entropy"] + line["latent_loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-3, abs=1e-5)
    assert abs(lines[1]["policy_loss"]) > 1e-4
    assert unexplained(lines[1]) == set()


def test_top_entropy_is_of_the_tokens_that_count() -> None:
    entropy = torch.tensor([[3.0, 1.0, 2.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert top_entropy_mask(entropy, mask, 0.5).tolist() == [[True, False, True, False]]


def test_entropy_is_held_at_its_target(tmp_path: Path) -> None:
    control = EntropyControl(coef=0.01, target=1.0, step=0.005, highest=0.018)
    assert control.applied == 0.0, "no update has been made"
    for entropy, coef, applied in ((0.9, 0.015, 0.015), (0.5, 0.018, 0.018), (1.5, 0.013, 0.0)):
        control.update(entropy)
        assert control.coef == pytest.approx(coef)
        assert control.applied == pytest.approx(applied)
    control.update(math.nan)
    assert control.last == 1.5
    for _ in range(9):
        control.update(1.1)
    assert control.coef == 0.0
    control.save(tmp_path)
    other = EntropyControl(coef=0.3, target=1.0, step=0.005, highest=0.018)
    other.load(tmp_path)
    assert other == control
    other.load(tmp_path / "of a run without a target")
    assert other == control
    (tmp_path / "entropy_control.json").write_text('{"coef": 0.5, "last": 2.0}')
    other.load(tmp_path)
    assert (other.coef, other.last) == (0.018, 2.0), "within the bounds of this run"
    for text in ("[]", "{}", '{"coef": "much", "last": null}', '{"coef": 0.1, "last": true}'):
        (tmp_path / "entropy_control.json").write_text(text)
        with pytest.raises(CheckpointError, match="earlier checkpoint"):
            other.load(tmp_path)


def test_the_control_of_the_entropy_goes_on_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"entropy_target": 100.0, "entropy_step": 0.5, "save_steps": 1, "resume_from_checkpoint": "auto"}
    train(tmp_path / "run", varied, monkeypatch, **extra)
    whole = metrics(tmp_path / "run")
    control = EntropyControl(0.0, 100.0, 0.5, 1.0)
    control.load(tmp_path / "run" / "checkpoint-2")
    assert control.coef == 1.0
    assert control.last == pytest.approx(whole[1]["entropy"], rel=1e-6)
    (tmp_path / "run" / "final").rename(tmp_path / "final")
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "checkpoint-2")
    train(tmp_path / "run", varied, monkeypatch, **extra)
    assert [line["loss"] for line in metrics(tmp_path / "run")] == [line["loss"] for line in whole]
    both, model = (set(os.listdir(tmp_path / name)) for name in ("checkpoint-2", "final"))
    for name in both - model:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in _KEPT_BACK), f"push uploads {name}"
