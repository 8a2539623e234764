"""DeepSpeed's engine, ZeRO-2 and ZeRO-3, on two processes of a CPU, under the trainers.

accelerate's plugin does not work on a CPU. The trainers are therefore made without it and are told of the
engine afterwards; what it would do beyond that (read the config, choose the optimizer) is not run here.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers.trainer

from fourdthinker.backbones import Checkpoint, gathering, load_checkpoint, save_checkpoint
from fourdthinker.reward_calls import Reward
from fourdthinker.settings import make_config
from fourdthinker.trainers import driver, grpo, rollout_workers
from fourdthinker.trainers.arguments import training_arguments
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.dift import make_trainer as make_dift
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import make_trainer as make_grpo
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.model import add_adapter, reference_model
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig
from fourdthinker.trainers.trainer import LatentTrainer
from fourdthinker.trainers.update import Parts
from tests.e2e.gradients_worker import BASE, GRPO, KeepGradients
from tests.e2e.training import length_reward, metrics, pixel_samples, prompts, relative_difference, samples
from tests.processes import run_ranks
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.fake_ray import FakeRay
from tests.unit.trainers.gradient_sums import added, difference

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: make test LANE=others"
)

CASES: dict[str, dict[str, Any]] = {
    "dift": {},
    "dift_checkpointed": {"gradient_checkpointing": True, "max_tokens_per_forward": 130},
    "dift_lora": {"lora": {"r": 4, "dropout": 0.0}},
    "dift_pictures": {},  # one sample has any, so that a rank is without
    "dift_pictures_tower": {"freeze_vision": False},
    "dift_self_feed": {"self_feed": 1.0, "latent_norm": 0.1},
    "dift_pictures_self_feed": {"self_feed": 1.0},
    "grpo": {"loss": {"beta": 0.1}, "num_generations": 4, "max_completion_length": 16},
    "grpo_workers": {"loss": {"beta": 0.1}, "num_generations": 4, "max_completion_length": 16},
    "grpo_in_turn": {"loss": {"beta": 0.0}, "num_generations": 4, "max_completion_length": 16},
    "grpo_lora": {"loss": {"beta": 0.1}, "lora": {"r": 4}, "gradient_checkpointing": True},
}


def config_of(case: str, folder: Path, *, batch: int, accumulation: int) -> Any:
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    own = sizes | {"optim": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    own |= {"output_dir": str(folder / "run"), "weight_decay": 0.0} | CASES[case]
    return make_config(*((DiftConfig, BASE | own) if case.startswith("dift") else (GrpoConfig, GRPO | own)))


def save_model(folder: Path, case: str) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=2, tied="lora" not in case)
    with torch.no_grad():  # as one that has learnt to open blocks
        checkpoint.backbone.head_weight[checkpoint.backbone.latents.start_id] += 0.1
    save_checkpoint(folder / "model", checkpoint)


def items_of(case: str, checkpoint: Checkpoint) -> list[Any]:
    if "pictures" in case:
        return pixel_samples(checkpoint, 8)
    return (samples if case.startswith("dift") else prompts)(checkpoint, 8)


def on_one_process(case: str, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of an update, and the weights after it."""
    config, keep = config_of(case, folder, batch=8, accumulation=1), KeepGradients()
    checkpoint = load_checkpoint(folder / "model")
    items = items_of(case, checkpoint)
    if isinstance(config, DiftConfig):
        train_dift(config, checkpoint=checkpoint, samples=items, callbacks=[keep])
    else:
        train_grpo(config, checkpoint=checkpoint, prompts=items, callbacks=[keep])
    return keep.gradients, load_checkpoint(folder / "run" / "final").backbone.state_dict()


def with_workers(config: Any) -> Any:
    """The settings with two rollout workers, of a Ray that runs in this process."""
    os.environ["RAY_ADDRESS"] = "of the test"
    ray = FakeRay()
    rollout_workers.join_cluster = lambda option: (ray, False)  # type: ignore[assignment]
    grpo.import_ray = lambda option: ray  # type: ignore[assignment]
    return config.model_copy(update={"rollout_workers": 2})


def trainer_of(config: TrainConfig, case: str, folder: Path) -> Any:
    """A trainer of a checkpoint that is loaded as DeepSpeed wants it: with ZeRO-3 in slices."""
    args = training_arguments(config)
    args.deepspeed = "of the test"
    checkpoint = load_checkpoint(folder / "model")
    reference = None
    if isinstance(config, GrpoConfig) and config.lora is None:
        reference = reference_model(config, args, None, checkpoint, checkpoint)
    add_adapter(config, checkpoint.backbone)
    parts = Parts(args, checkpoint, Items(items_of(case, checkpoint)), reference)
    if isinstance(config, DiftConfig):
        return make_dift(config, parts)
    assert isinstance(config, GrpoConfig)
    if case != "grpo_workers":
        return make_grpo(config, [Reward("length_reward", length_reward)], parts)
    config = with_workers(config)
    trainer = make_grpo(config, [Reward("length_reward", length_reward)], parts)
    assert trainer._structure is not None
    trainer._workers = rollout_workers.RolloutWorkers(
        trainer._structure, config, trainer.args, autocast=False
    )
    return trainer


def update(trainer: Any, zero: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One update by an engine, as Trainer and accelerate run it; its gradients."""
    import deepspeed
    from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
    from deepspeed.utils import safe_get_full_grad

    backbone = trainer.checkpoint.backbone
    trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    engine, *_ = deepspeed.initialize(
        model=backbone,
        model_parameters=list(trained.values()),
        optimizer=torch.optim.SGD(trained.values(), lr=1.0),
        config=zero,
    )
    accelerator, wrapper, gradients = trainer.accelerator, DeepSpeedEngineWrapper(engine), {}
    accelerator.backward = lambda loss, **options: wrapper.backward(
        loss, sync_gradients=accelerator.sync_gradients, **options
    )
    trainer.is_deepspeed_enabled, trainer.state.max_steps = True, 1
    step = engine.step

    def note_and_step() -> None:
        gradients.update({name: safe_get_full_grad(p).clone() for name, p in trained.items()})
        step()

    engine.step = note_and_step
    loader = iter(trainer.get_train_dataloader())
    try:
        batches, _ = trainer.get_batch_samples(loader, trainer.args.gradient_accumulation_steps, None)
        for batch in batches:
            trainer.training_step(engine, batch)
    finally:
        trainer._ahead.close()
    return gradients


def zero_config(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }


def on_two(rank: int, folder: Path, stage: int, case: str) -> None:
    """In each of two processes: load, roll out, update, save."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from transformers.integrations import HfDeepSpeedConfig

    # It would be compiled, and gloo does. (`deepspeed.comm.torch` as an attribute is torch itself.)
    vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    zero = zero_config(stage)
    if case == "grpo_in_turn":
        gathering.have_room = lambda *_: False
    kept = HfDeepSpeedConfig(zero)  # while it lives, transformers loads weights in slices
    trainer = trainer_of(config_of(case, folder, batch=2, accumulation=2), case, folder)
    sliced = [hasattr(p, "ds_id") for p in trainer.checkpoint.backbone.parameters()]
    assert any(sliced) == (stage == 3)
    gradients = update(trainer, zero)
    trainer.save_model(str(folder / "zero"))
    del kept
    if rank == 0:
        torch.save(gradients, folder / "gradients.pt")
    dist.barrier()


SUMMED = 64  # forwards of an update


def sum_up(rank: int, folder: Path) -> None:
    """An update in bfloat16 of one forward for each sample, with the shipped config's type of sums."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    shipped = json.loads((Path(__file__).parents[2] / "train" / "configs" / "zero2.json").read_text())
    zero = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": SUMMED // 2,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": True},
        "data_types": shipped["data_types"],
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    config = config_of("dift", folder, batch=1, accumulation=SUMMED // 2)
    args = training_arguments(config)
    args.deepspeed = "of the test"
    checkpoint = load_checkpoint(folder / "model", dtype=torch.bfloat16)
    trainer = make_dift(config, Parts(args, checkpoint, Items(samples(checkpoint, SUMMED)), None))
    gradients = update(trainer, zero)
    if rank == 0:
        torch.save(gradients, folder / "gradients.pt")
    dist.barrier()


def test_forwards_add_up_in_float32(tmp_path: Path) -> None:
    """Against the exact sum; in bfloat16 it is off by 0.6 %."""
    save_model(tmp_path, "dift")
    assert run_ranks(sum_up, tmp_path) == [0, 0]
    checkpoint = load_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
    right, _ = added(checkpoint, samples(checkpoint, SUMMED))
    assert difference(torch.load(tmp_path / "gradients.pt", weights_only=True), right) < 0.003


def compare(folder: Path, case: str, checkpoint: Path) -> None:
    """Gradients, and the weights in the checkpoint after it, with those of one process."""
    got = torch.load(folder / "gradients.pt", weights_only=True)
    one, weights = on_one_process(case, folder)
    assert len(one) > 10
    assert {name for name in got if got[name].any()} == {name for name in one if one[name].any()}
    difference = relative_difference(got, one, [name for name in one if one[name].any()])
    assert max(difference.values()) <= 1e-5, difference
    saved = load_checkpoint(checkpoint).backbone.state_dict()
    before = load_checkpoint(folder / "model").backbone.state_dict()
    assert saved.keys() == weights.keys()
    assert any(not torch.equal(saved[name], before.get(name, torch.zeros(()))) for name in saved)
    for name, weight in weights.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stage", [2, 3])
def test_an_update_under_zero_is_that_of_one_process(tmp_path: Path, stage: int, case: str) -> None:
    """Heads that are tied, and with an adapter those that are not."""
    save_model(tmp_path, case)
    assert run_ranks(on_two, tmp_path, stage, case) == [0, 0]
    compare(tmp_path, case, tmp_path / "zero")


def under_engine(zero: dict[str, Any]) -> None:
    """Let the driver's runs take DeepSpeed's engine where accelerate would prepare it."""
    import deepspeed
    from accelerate import Accelerator
    from accelerate.utils import DistributedType
    from accelerate.utils.deepspeed import DeepSpeedEngineWrapper, DeepSpeedOptimizerWrapper

    arguments, train_to = driver.training_arguments, LatentTrainer._train_to
    create = LatentTrainer.create_accelerator_and_postprocess

    def told(config: TrainConfig) -> Any:
        args = arguments(config)
        args.deepspeed = "of the test"
        args.deepspeed_plugin = SimpleNamespace(zero_stage=zero["zero_optimization"]["stage"])
        return args

    def without_plugin(trainer: LatentTrainer) -> None:
        plugin, trainer.args.deepspeed_plugin = trainer.args.deepspeed_plugin, None
        create(trainer)
        trainer.args.deepspeed_plugin = plugin

    class Prepared(Accelerator):
        distributed_type = DistributedType.DEEPSPEED  # type: ignore[assignment]

        def prepare(self, model: Any, optimizer: Any) -> tuple[Any, Any]:
            engine, optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=zero)
            self.deepspeed_engine_wrapped = DeepSpeedEngineWrapper(engine)
            return engine, DeepSpeedOptimizerWrapper(optimizer)

    def train_under_engine(trainer: LatentTrainer, *where: Any) -> int:
        trainer.is_deepspeed_enabled = True
        trainer.accelerator.__class__ = Prepared
        return train_to(trainer, *where)

    driver.training_arguments = told
    LatentTrainer.create_accelerator_and_postprocess = without_plugin  # type: ignore[method-assign]
    LatentTrainer._train_to = train_under_engine  # type: ignore[method-assign]
    transformers.trainer.deepspeed_init = lambda *_, **options: (None, None)


def go_on(rank: int, folder: Path, stage: int) -> None:
    """Four updates at once, and two from the checkpoint after the second one, by the whole of the driver."""
    given = prompts(load_checkpoint(folder / "model"), 8)
    os.environ["DS_ACCELERATOR"] = "cpu"
    from transformers.integrations import HfDeepSpeedConfig

    vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    zero = zero_config(stage)
    kept = HfDeepSpeedConfig(zero)
    under_engine(zero)
    own = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 4, "save_steps": 2}
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    values = GRPO | CASES["grpo"] | own | sizes | {"model": str(folder / "model"), "warmup_steps": 0}
    for name, resume in (("whole", None), ("again", str(folder / "whole" / "checkpoint-2"))):
        where = {"output_dir": str(folder / name), "resume_from_checkpoint": resume}
        train_grpo(make_config(GrpoConfig, values | where), prompts=given)
    del kept


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_under_zero_goes_on_as_if_unbroken(tmp_path: Path, stage: int) -> None:
    """With the engine's own state, and a reference of the weights that the run began from."""
    save_model(tmp_path, "grpo")
    assert run_ranks(go_on, tmp_path, stage) == [0, 0]
    whole, again = (metrics(tmp_path / name) for name in ("whole", "again"))
    assert [line["step"] for line in again] == [3, 4]
    assert again[0]["kl"] > 0
    for name in ("loss", "kl", "grad_norm", "reward"):
        assert [line[name] for line in again] == [line[name] for line in whole[2:]], name
    one, other = (load_checkpoint(tmp_path / name / "final").backbone for name in ("whole", "again"))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
