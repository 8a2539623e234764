"""Rollouts on actors against rollouts of the process itself, with a Ray that runs here."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fourdthinker.backbones import Checkpoint
from fourdthinker.errors import ConfigError, SamplingError
from fourdthinker.ray_cluster import join_cluster
from fourdthinker.sampler import LatentSampler, Rollout, encode_prompts
from fourdthinker.settings import make_config
from fourdthinker.trainers import rollout_workers
from fourdthinker.trainers.experience import Experience, sampling_config
from fourdthinker.trainers.grpo import GrpoTrainer, train_grpo
from fourdthinker.trainers.rollout_workers import RolloutWorkers, structure
from fourdthinker.trainers.settings import GrpoConfig
from fourdthinker.trainers.update import RolloutWorkerError
from tests.e2e.training import metrics
from tests.e2e.training import prompts as recorded
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.fake_ray import FakeRay
from tests.unit.trainers.test_packing import OftenStart, checkpoint, prompts
from tests.unit.trainers.test_rollouts import GRPO, half_solved, varied

ARGS: Any = SimpleNamespace(device=torch.device("cpu"), world_size=1)
SEEDS = list(range(100, 112))
STOPS = ["e", "o"]


class OftenStartSampler(LatentSampler):
    """Its model opens blocks."""

    def sample(self, *arguments: Any, **options: Any) -> Rollout:
        return super().sample(*arguments, **options, logits_processor=[OftenStart()])


def config(**extra: Any) -> GrpoConfig:
    return make_config(GrpoConfig, GRPO | {"rewards": [f"{__name__}:varied"], "rollout_workers": 3} | extra)


def pool(monkeypatch: pytest.MonkeyPatch, ray: FakeRay, **extra: Any) -> RolloutWorkers:
    """Workers that have the weights of `checkpoint`."""
    monkeypatch.setattr(rollout_workers, "join_cluster", lambda option: (ray, True))
    monkeypatch.setattr(rollout_workers, "LatentSampler", OftenStartSampler)
    loaded = checkpoint()
    backbone, tokenizer = loaded.backbone, loaded.tokenizer
    workers = RolloutWorkers(structure(backbone), config(**extra), ARGS, autocast=False, tokenizer=tokenizer)
    workers.send(backbone, 7)
    return workers


def same(a: Rollout, b: Rollout) -> None:
    """The same rows, whatever the width."""
    width = int(b.lengths.max())
    for name in ("tokens", "policy_mask"):
        assert torch.equal(getattr(a, name)[:, :width], getattr(b, name)[:, :width])
    for name in ("lengths", "latent_rows", "latent_steps", "group"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert a.finish_reason == b.finish_reason
    torch.testing.assert_close(a.logprobs[:, :width], b.logprobs[:, :width], rtol=0, atol=1e-5)
    torch.testing.assert_close(a.latents, b.latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dying", [(), (1, 3, 4)])
def test_workers_give_what_the_process_itself_samples(
    monkeypatch: pytest.MonkeyPatch, dying: Collection[int]
) -> None:
    """12 rows of 4 prompts, so that workers share groups; also where workers die."""
    asked, ray = prompts(patches=True), FakeRay(dying)
    workers, backbone = pool(monkeypatch, ray), checkpoint().backbone
    features = encode_prompts(backbone, asked)
    sampler = OftenStartSampler(backbone)
    expected = sampler.sample(asked, 3, sampling_config(config()), seeds=SEEDS, features=features)
    assert len(expected.latents) > 0

    got = workers.collect(workers.begin(asked, SEEDS))
    assert len(ray.actors) == 3 + len(dying)
    assert got.updates == 7
    same(got.rollout, expected)
    for mine, theirs in zip(got.features, features, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)
    first, second = got.split([1, 3], backbone.vision.pad_id)
    assert first.rollout.group.tolist() == [0] * 3
    assert second.rollout.group.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert torch.equal(torch.cat([first.rollout.tokens, second.rollout.tokens]), got.rollout.tokens)
    assert (len(first.features), len(second.features)) == (1, 3)
    workers.close()
    assert ray.killed == 3 + len(dying)
    assert ray.left


def test_workers_know_stop_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, loaded = prompts(), checkpoint()
    options = sampling_config(config(stop_strings=STOPS))
    expected = OftenStartSampler(loaded.backbone, loaded.tokenizer).sample(asked, 3, options, seeds=SEEDS)
    assert "stop" in expected.finish_reason
    workers = pool(monkeypatch, FakeRay(), stop_strings=STOPS)
    same(workers.collect(workers.begin(asked, SEEDS)).rollout, expected)


def test_workers_that_die_over_the_same_rollouts_and_errors_in_them_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = pool(monkeypatch, FakeRay(dying=range(1, 100)))
    with pytest.raises(RolloutWorkerError, match=r"3 rollout workers .* died unexpectedly .* resume_from"):
        workers.collect(workers.begin(prompts(), SEEDS))
    workers = pool(monkeypatch, FakeRay())
    with pytest.raises(ConfigError, match="was made for a qwen3_vl"):
        workers.collect(workers.begin([replace(p, family="qwen3_vl") for p in prompts()], SEEDS))
    with pytest.raises(RolloutWorkerError, match="a rollout worker failed: AttributeError"):
        workers.collect(workers.begin([None] * 4, SEEDS))  # type: ignore[list-item]


def test_silent_workers_are_replaced_before_other_processes_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """These wait for ddp_timeout seconds in a collective."""
    asked, ray = prompts(), FakeRay(silent=(2,))
    workers = pool(monkeypatch, ray)
    expected = OftenStartSampler(checkpoint().backbone).sample(
        asked, 3, sampling_config(config()), seeds=SEEDS
    )
    same(workers.collect(workers.begin(asked, SEEDS)).rollout, expected)
    assert (len(ray.actors), ray.killed) == (4, 1)
    ray = FakeRay(silent=range(1, 100))
    workers = pool(monkeypatch, ray)
    with pytest.raises(RolloutWorkerError, match=r"3 rollout workers .* silence of 450 s, .*ddp_timeout"):
        workers.collect(workers.begin(asked, SEEDS))
    assert ray.waited == 3 * 450 < config().ddp_timeout


def test_a_worker_without_memory_ends_the_run_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.\nAnd more.")

    workers = pool(monkeypatch, FakeRay())
    monkeypatch.setattr(rollout_workers, "encode_prompts", full)
    with pytest.raises(
        RolloutWorkerError, match=r"^out of memory in a .*: Tried .* 20\.00 GiB\.; .*--dry-run"
    ) as error:
        workers.collect(workers.begin(prompts(), SEEDS))
    assert "\n" not in str(error.value)


def test_what_is_trained_is_sent_once_more_into_the_same_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setattr(rollout_workers, "join_cluster", lambda option: (ray, False))
    monkeypatch.setattr(rollout_workers, "_PIECE", 20_000)
    backbone = tiny_checkpoint(hidden=32, layers=1, tied=True).backbone
    for parameter in backbone.hf.model.language_model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    backbone.freeze_vision(True)
    workers = RolloutWorkers(structure(backbone), config(rollout_workers=2), ARGS, autocast=False)
    workers.send(backbone, 0)
    names = [name for name, _ in backbone.named_parameters()]
    assert [name for piece in ray.put_names for name in piece] == names
    assert len(ray.put_names) > 2
    owned = [dict(actor._backbone.named_parameters()) for actor in ray.actors]
    pointers = [{name: p.data_ptr() for name, p in own.items()} for own in owned]
    ray.put_names.clear()
    with torch.no_grad():
        backbone.embedding_weight.mul_(1.5)
    workers.send(backbone, 0)
    assert not ray.put_names, "these weights are there"
    workers.send(backbone, 1)
    sent = [name for piece in ray.put_names for name in piece]
    assert sent == [name for name, p in backbone.named_parameters() if p.requires_grad] != names
    for own, at in zip(owned, pointers, strict=True):
        for name, parameter in backbone.named_parameters():
            assert torch.equal(own[name], parameter)
            assert own[name].dtype == parameter.dtype
        assert {name: p.data_ptr() for name, p in own.items()} == at
    for actor in ray.actors:
        assert actor._backbone.head_weight is actor._backbone.embedding_weight
        for (name, buffer), own in zip(backbone.named_buffers(), actor._backbone.buffers(), strict=True):
            assert torch.equal(own, buffer), name


# ---- runs


def train(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ray: FakeRay, reward: Any = varied, **extra: Any
) -> list[list[Experience]]:
    """A tiny run of 16 prompts, 4 an update: the experiences of each update."""
    seen: list[list[Experience]] = []
    make = GrpoTrainer._make_replay

    def spy(self: GrpoTrainer, experiences: list[Experience]) -> Any:
        seen.append(experiences)
        return make(self, experiences)

    with monkeypatch.context() as patch:
        patch.setattr(GrpoTrainer, "_make_replay", spy)
        patch.setattr("fourdthinker.trainers.grpo.import_ray", lambda option: ray)
        patch.setattr(rollout_workers, "join_cluster", ray.join)
        made: Checkpoint = tiny_checkpoint(hidden=32, layers=1)
        values = GRPO | {"output_dir": str(folder), "rewards": [f"{reward.__module__}:{reward.__name__}"]}
        train_grpo(make_config(GrpoConfig, values | extra), checkpoint=made, prompts=recorded(made, 16))
    return seen


def test_a_run_with_workers_is_the_run_without_and_goes_on_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = train(tmp_path / "local", monkeypatch, FakeRay())
    ray, options = FakeRay(dying=(4,)), {"rollout_workers": 2, "save_steps": 1}
    remote = train(tmp_path / "remote", monkeypatch, ray, **options)
    assert len(ray.actors) == 3, "one was replaced in the second update"
    assert ray.left
    for mine, theirs in zip(remote, local, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.indices == b.indices
            assert a.texts == b.texts
            same(a.rollout, b.rollout)
    lines, expected = metrics(tmp_path / "remote"), metrics(tmp_path / "local")
    assert [line["staleness"] for line in lines] == [0, 0]
    assert [line["staleness"] for line in expected] == [0, 0]
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert line["sampler_gap_max"] < 1e-4

    (tmp_path / "remote" / "final").rename(tmp_path / "final")
    (tmp_path / "remote" / "checkpoint-2").rename(tmp_path / "checkpoint-2")
    train(tmp_path / "remote", monkeypatch, FakeRay(), resume_from_checkpoint="auto", **options)
    assert [line["loss"] for line in metrics(tmp_path / "remote")] == [line["loss"] for line in lines]


ENDED: list[str] = []  # texts of the run that was sent a signal


def ended(text: str, record: Any, tokens: Any) -> float:
    if not ENDED:
        os.kill(os.getpid(), signal.SIGTERM)
    ENDED.append(text)
    return varied(text, record, tokens)


def test_a_signal_in_an_update_saves_it_though_ray_takes_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    ENDED.clear()
    train(tmp_path, monkeypatch, FakeRay(), ended, rollout_workers=1)
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").is_file()
    assert not (tmp_path / "final").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_updates_are_sampled_ahead_by_weights_of_bounded_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmoved = train(tmp_path / "unmoved", monkeypatch, FakeRay(), max_steps=3, learning_rate=0.0)
    ray = FakeRay()
    options = {"rollout_workers": 2, "rollout_staleness": 2, "loss": {"beta": 0.0, "sampler_cap": 2.0}}
    seen = train(tmp_path / "ahead", monkeypatch, ray, max_steps=5, **options)
    for mine, theirs in zip(seen[:3], unmoved, strict=True):  # all three by the first weights
        for a, b in zip(mine, theirs, strict=True):
            assert a.indices == b.indices
            same(a.rollout, b.rollout)
    lines = metrics(tmp_path / "ahead")
    # Epochs have four updates; those of the second begin anew.
    assert [line["staleness"] for line in lines] == [0, 1, 2, 2, 0]
    assert lines[0]["sampler_gap_max"] < 1e-4
    assert all(line["sampler_gap_max"] > 1e-3 for line in lines[1:4])
    assert lines[4]["sampler_gap_max"] < 1e-4
    assert ray.samples == 5 * 2, "nothing is sampled that is not trained on"


def test_groups_are_refilled_by_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"rollout_workers": 2, "rollout_staleness": 1, "loss": {"beta": 0.0, "sampler_cap": 2.0}}
    seen = train(tmp_path, monkeypatch, FakeRay(), half_solved, refill_rounds=8, **options)
    for experiences in seen:
        for e in experiences:
            assert all(index % 2 for index in e.indices)
            assert e.trained.all()
    assert [line["staleness"] for line in metrics(tmp_path)] == [0, 1]


# ---- what is refused


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"rollout_workers": 0}, "rollout_workers 0: a process that samples by itself"),
        ({}, "set loss.sampler_cap=2"),
        ({"loss": {"sampler_cap": 2.0}, "num_iterations": 2}, "and num_iterations 2"),
        ({"loss": {"sampler_cap": 2.0}, "steps_per_generation": 4}, "and steps_per_generation 4"),
    ],
)
def test_staleness_is_refused_where_it_is_not_corrected(extra: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        config(rollout_staleness=1, **extra)


def test_without_ray_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"rollout_workers needs Ray, .* pip install 'fourdthinker\[ray\]'"):
        train_grpo(config(output_dir=str(tmp_path / "run"), model="none"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"--engine ray needs Ray"):
        join_cluster("--engine ray")


def test_a_cluster_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model = structure(checkpoint().backbone)
    two: Any = SimpleNamespace(device=torch.device("cpu"), world_size=2)
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS not set: .* set RAY_ADDRESS=auto"):
        RolloutWorkers(model, config(), two, autocast=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    ray = FakeRay(cpus=5)
    monkeypatch.setattr(rollout_workers, "join_cluster", lambda option: (ray, True))
    with pytest.raises(ConfigError, match="2 processes need 6 CPUs, and Ray has 5"):
        RolloutWorkers(model, config(), two, autocast=False)
    assert ray.left
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(ConfigError, match="does not work through Ray's client"):
        join_cluster("rollout_workers")


def test_an_error_of_the_sampler_can_be_sent() -> None:
    error = SamplingError({2: "question 'a': logits are NaN", 3: "question 'b'"})
    sent = pickle.loads(pickle.dumps(error))
    assert (str(sent), sent.prompts) == (str(error), error.prompts)
