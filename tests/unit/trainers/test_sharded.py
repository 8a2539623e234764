"""Weights that are sliced over ranks: what training reads of them outside of its engine is gathered first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fourdthinker.backbones import gathering, load_checkpoint
from fourdthinker.backbones.pictures import with_features
from fourdthinker.errors import ConfigError
from fourdthinker.reward_calls import Reward
from fourdthinker.samples import collate
from fourdthinker.settings import make_config
from fourdthinker.trainers import data
from fourdthinker.trainers.arguments import training_arguments
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.data import Kept
from fourdthinker.trainers.dift import DiftTrainer
from fourdthinker.trainers.grpo import GrpoTrainer, make_trainer
from fourdthinker.trainers.model import add_adapter, reference_model
from fourdthinker.trainers.moving_reference import MovingReference
from fourdthinker.trainers.replay import Replay
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from fourdthinker.trainers.update import Parts
from fourdthinker.trainers.vision_cache import tower_fingerprint
from tests.e2e.training import length_reward, pixel_samples, prompts, relative_difference
from tests.processes import run_ranks
from tests.tiny import tiny_checkpoint

BASE: dict[str, Any] = {"use_cpu": True, "report_to": [], "max_steps": 1, "save_steps": 0}


def replay_and_checkpoint(
    folder: Path, rank: int, *, sliced: bool
) -> tuple[Replay, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a rank prepares for an update, with the reference's log-probs; what it saves; gradients.

    Ranks take different numbers of decode steps and of forwards without gradient.
    """
    checkpoint = tiny_checkpoint(seed=3)
    values = BASE | {"output_dir": str(folder), "num_generations": 3, "per_device_train_batch_size": 1}
    values |= {"rewards": ["tests.e2e.training:length_reward"], "reward_weights": [1.0], "log_rollouts": 0}
    values |= {"max_completion_length": (4, 15)[rank], "loss": {"beta": 0.1}}
    config = make_config(GrpoConfig, values)
    items = prompts(checkpoint, 2)
    parts = Parts(training_arguments(config), checkpoint, Items(items), None)
    trainer = make_trainer(config, [Reward("length", length_reward)], parts)
    if sliced:
        gathering.have_room = lambda *_: False  # layer by layer
        for layer in checkpoint.backbone.hf.model.language_model.layers:
            fully_shard(layer)
        fully_shard(checkpoint.backbone)
    replay = trainer._make_replay(trainer.sample([[(rank,), (items[rank],)]]))
    trainer.save_model(str(folder / "saved"))
    dist.barrier()
    return replay, load_checkpoint(folder / "saved").backbone.state_dict(), gradients_of(trainer, replay)


def gradients_of(trainer: GrpoTrainer, replay: Replay) -> dict[str, torch.Tensor]:
    """The mean over the ranks, each of its own rollouts; FSDP2 makes it in the backward pass."""
    trainer._replay = replay
    backbone, gradients = trainer.checkpoint.backbone, {}
    ((forward,),) = trainer.forwards()
    loss, *_ = backbone(forward.batch, forward.objective)
    loss.backward()
    for name, parameter in backbone.named_parameters():
        gradient: Any = parameter.grad
        if isinstance(gradient, DTensor):
            gradients[name] = gradient.full_tensor()
        elif gradient is not None:
            dist.all_reduce(gradient)
            gradients[name] = gradient / 2
    return gradients


def fsdp2(rank: int, folder: Path) -> None:
    """In each of two processes."""
    expected, weights, plain = replay_and_checkpoint(folder / "whole", rank, sliced=False)
    got, saved, gradients = replay_and_checkpoint(folder / "sliced", rank, sliced=True)
    for one, other in zip(got.micro_batches, expected.micro_batches, strict=True):
        for chunk, whole in zip(one, other, strict=True):
            assert torch.equal(chunk.batch["chosen_ids"], whole.batch["chosen_ids"])
            torch.testing.assert_close(chunk.batch["ref_logprobs"], whole.batch["ref_logprobs"])
    assert weights.keys() == saved.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())
    assert gradients.keys() == plain.keys()
    assert len(plain) > 10
    difference = relative_difference(gradients, plain, [name for name in plain if plain[name].any()])
    assert max(difference.values()) <= 1e-5, difference

    references = [mixed(sliced=sliced) for sliced in (False, True)]
    assert references[0].keys() == references[1].keys()
    assert all(torch.equal(references[1][name], weight) for name, weight in references[0].items())


def mixed(*, sliced: bool) -> dict[str, torch.Tensor]:
    """The weights of a reference that a policy was mixed into."""
    policy, reference = (tiny_checkpoint(seed=seed, layers=1).backbone for seed in (3, 4))
    if sliced:
        fully_shard(policy)
    with gathering.gathered(policy):
        MovingReference(reference, policy).mix(policy, 0.25)
    return reference.state_dict()


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over the loopback interface")
def test_ranks_of_fsdp2_that_take_different_numbers_of_steps(tmp_path: Path) -> None:
    assert run_ranks(fsdp2, tmp_path) == [0, 0]


@pytest.fixture
def zero3(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ZeRO-3 does to weights: empty tensors with their shape, whole within GatheredParameters alone."""
    whole: dict[int, torch.Tensor] = {}

    @contextmanager
    def gather(parameters: list[nn.Parameter]) -> Iterator[None]:
        for parameter in parameters:
            parameter.data = whole[parameter.ds_id]  # type: ignore[attr-defined]
        yield
        for parameter in parameters:
            parameter.data = torch.empty(0)

    def slice_weights(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.ds_id, parameter.ds_shape = len(whole), parameter.shape  # type: ignore[attr-defined]
            whole[len(whole)], parameter.data = parameter.data, torch.empty(0)

    monkeypatch.setitem(
        sys.modules, "deepspeed", SimpleNamespace(zero=SimpleNamespace(GatheredParameters=gather))
    )
    return slice_weights


def test_untrained_latent_tokens_are_seen_in_a_sliced_head(zero3: Any, tmp_path: Path) -> None:
    config = make_config(DiftConfig, BASE | {"output_dir": str(tmp_path), "lora": {"r": 4}})
    backbone = tiny_checkpoint(layers=1).backbone
    with torch.no_grad():
        backbone.head_weight[list(backbone.latents.ids)] = 1.0
    zero3(backbone)
    with pytest.raises(ConfigError, match="train_embeddings=true"):
        add_adapter(config, backbone)


def test_the_reference_of_a_sliced_model_is_whole(zero3: Any, tmp_path: Path) -> None:
    config = make_config(GrpoConfig, BASE | {"output_dir": str(tmp_path)})
    expected = tiny_checkpoint(layers=1).backbone.hf.model.language_model.state_dict()
    checkpoint = tiny_checkpoint(layers=1)
    zero3(checkpoint.backbone)
    reference = reference_model(config, training_arguments(config), None, checkpoint, checkpoint)
    got = reference.hf.model.language_model.state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert checkpoint.backbone.embedding_weight.numel() == 0


def test_ranks_gather_the_tower_alike_whatever_pictures_they_have(
    zero3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen tower in a forward of ZeRO-3: as features, made outside of it by the whole tower."""
    checkpoint = tiny_checkpoint(layers=1)
    backbone, trainer = checkpoint.backbone, object.__new__(DiftTrainer)
    without, pictures = (collate([item], 0) for item in pixel_samples(checkpoint, 2))
    backbone.freeze_vision()
    expected = with_features(backbone, pictures)
    zero3(backbone)
    told: dict[str, Any] = {
        "checkpoint": checkpoint,
        "settings": SimpleNamespace(self_feed=0.0),
        "state": SimpleNamespace(global_step=0, max_steps=4),
        "args": SimpleNamespace(world_size=1),
        "is_deepspeed_enabled": True,
    }
    trainer.__dict__.update(told)
    gathers: list[list[nn.Parameter]] = []
    zero = sys.modules["deepspeed"].zero
    gather = zero.GatheredParameters
    monkeypatch.setattr(zero, "GatheredParameters", lambda sliced: gathers.append(sliced) or gather(sliced))
    assert trainer.prepare_batch(without) is without
    assert not gathers
    monkeypatch.setattr(trainer, "any_rank", lambda value: True)
    assert trainer.prepare_batch(without).keys() == without.keys()
    got = trainer.prepare_batch(pictures)
    assert got.keys() == expected.keys()
    for name in ("vision_features", "latents"):
        assert torch.equal(got[name], expected[name])
    assert [len(sliced) for sliced in gathers] == [len(list(backbone.visual.parameters()))] * 2


def test_the_vision_cache_is_filled_by_a_whole_tower(
    zero3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def fill(self: Any, backbone: Any, *_: Any, **__: Any) -> None:
        shapes.extend(parameter.numel() for parameter in backbone.visual.parameters())

    monkeypatch.setattr(data.VisionCache, "fill", fill)
    config = make_config(
        DiftConfig, BASE | {"output_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    )
    checkpoint = tiny_checkpoint(layers=1)
    expected = tower_fingerprint(checkpoint.backbone)
    zero3(checkpoint.backbone)
    cache = data._filled_cache(
        config,
        training_arguments(config),
        checkpoint,
        checkpoint.encoder(),
        [],
        Kept(clips=True, imagery=True),
    )
    assert cache._base["tower"] == expected
    assert shapes
    assert all(shapes)
