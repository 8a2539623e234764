from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from fourdthinker.errors import ConfigError
from fourdthinker.frames import FramePolicy
from fourdthinker.kernels import GrpoOptions
from fourdthinker.settings import make_config, settings_of
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig
from fourdthinker.trainers.settings_files import load_config, parse_command_line, save_config
from tools.settings_doc import settings_page

CONFIGS = Path(__file__).parents[3] / "train" / "configs"


@pytest.mark.parametrize(
    "key", ["subfolder", "media_root", "cache_dir", "resume_from_checkpoint", "data", "optim"]
)
def test_no_name_is_empty(key: str) -> None:
    """An empty cache_dir would be the current folder, and fill it."""
    with pytest.raises(ConfigError, match=rf"{key}(\[0\])? is empty; give a text"):
        make_config(DiftConfig, {key: ""})


@pytest.mark.parametrize("key", ["model", "output_dir", "cache_dir"])
def test_no_path_holds_nul(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: 'a\\x00b' holds NUL"):
        make_config(DiftConfig, {key: "a\0b"})


def test_yaml_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: m\ndata: a.jsonl\nlearning_rate: 1e-5\nframes: {fps: 2}\nreport_to: []\n")
    config = load_config(
        DiftConfig, path, ["max_steps=7", "frames.max_frames=9", "bf16=true", "cache_dir=null"]
    )
    assert config.data == ["a.jsonl"]
    assert config.learning_rate == 1e-5
    assert config.report_to == []
    assert config.frames == FramePolicy(fps=2.0, max_frames=9)
    assert config.max_steps == 7
    assert config.bf16 is True
    assert config.cache_dir is None


def test_override_reaches_below_a_setting_that_the_file_leaves_out() -> None:
    assert load_config(GrpoConfig, None, ["frames.fps=3"]).frames == FramePolicy(fps=3.0)


@pytest.mark.parametrize("cls", [DiftConfig, GrpoConfig])
def test_resolved_config_reads_back_equal(cls: type[TrainConfig], tmp_path: Path) -> None:
    config = make_config(
        cls, {"data": ["a", "b"], "frames": {"fps": 2.5}, "lr_scheduler_kwargs": {"num_cycles": 2}}
    )
    assert load_config(cls, save_config(config, tmp_path)) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rte": 1}, "'learning_rte', the nearest are learning_rate"),
        ({"frames": {"fpss": 1}}, "'frames.fpss', the nearest are frames.fps"),
        ({"num_generations": 4}, "'num_generations'"),
        ({"max_steps": "many"}, "max_steps is 'many' (str); give a whole number"),
        ({"max_steps": "1"}, "max_steps is '1' (str); give a whole number"),
        ({"max_steps": 1.0}, "max_steps is 1.0 (float); give a whole number"),
        ({"max_steps": True}, "max_steps is True (bool); give a whole number"),
        ({"learning_rate": True}, "learning_rate is True (bool); give a number"),
        ({"learning_rate": -1e-5}, "learning_rate is -1e-05; give at least 0"),
        ({"learning_rate": "nan"}, "learning_rate is 'nan'; give a finite number"),
        ({"weight_decay": float("inf")}, "weight_decay is inf; give a finite number"),
        ({"fsdp": True, "deepspeed": "z.json"}, "fsdp is true and deepspeed z.json: both divide the model"),
        ({"torch_compile": True, "deepspeed": "z.json"}, "torch_compile is true and deepspeed z.json, whose"),
        (
            {"fsdp": True, "optim": "paged_adamw_8bit"},
            "optim is paged_adamw_8bit and fsdp is true: slices of",
        ),
        (
            {"deepspeed": "z.json", "optim": "adafactor"},
            "optim is adafactor and deepspeed is z.json: slices of weights are updated by adamw_torch, ",
        ),
        ({"adam_beta1": 1.0}, "adam_beta1 is 1.0; give a number below 1"),
        ({"seed": -1}, "seed is -1; give at least 0"),
        ({"seed": 2**32}, "seed is 4294967296; give a number below 4294967296"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0.0"),
        ({"model": 3}, "model is 3 (int); give text"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"lora": 3}, "lora is 3 (int); give `key: value` lines"),
        ({"lora": {"alpha": 0}}, "lora.alpha is 0; give a number above 0"),
        ({"frames": {"max_frames": "9"}}, "frames.max_frames is '9' (str); give a whole number"),
        ({"fps": 2}, "unknown key 'fps', the nearest are fsdp, frames.fps"),
        ({3: 4}, "the key 3 is no text"),
        ({"bf16": 1}, "bf16 is 1 (int); give true or false"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"data": [1]}, "data[0] is 1"),
        ({"on_bad_record": "ignore"}, "choose one of raise, skip"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"lora": {"r": 0}}, "lora.r is 0"),
        ({"lora": {"rank": 4}}, "unknown key 'lora.rank', the nearest are lora.r"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout is 1.0"),
        ({"lora": {"target_modules": []}}, "lora.target_modules is empty"),
        ({"frames": {"fps": -1}}, "fps is -1"),
    ],
)
def test_bad_settings_name_the_key(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(DiftConfig, values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rewards": ["a:b"], "reward_weights": [1.0, 0.2]}, "one weight a function"),
        ({"reward_weights": ["heavy", 1]}, r"reward_weights\[0\] is 'heavy'"),
        ({"num_generations": 1}, "num_generations is 1"),
        ({"temperature": 0}, "temperature is 0; give at least 0.0001"),
        ({"temperature": 1e-40}, "temperature is 1e-40; give at least 0.0001"),
        ({"loss": {"beta": "much"}}, r"loss.beta is 'much' \(str\); give a number"),
        ({"loss": {"beta": -1}}, "loss: beta is -1"),
        ({"loss": {"beta": float("nan")}}, "loss.beta is nan; give a finite number"),
        ({"loss": {"loss_type": "gspo"}}, "ratio_level"),
        ({"loss": {"loss_type": "cispo", "delta": 2.0}}, "no meaning for cispo"),
        ({"loss": {"max_length": 3}}, "max_completion_length = 512, so leave it out"),
        ({"loss": {"betta": 1}}, "unknown key 'loss.betta', the nearest are loss.beta"),
        ({"loss": 3}, "loss is 3"),
        ({"beta": 1}, "unknown key 'beta', the nearest are loss.beta"),
        ({"reward_kl_weight": 0.1, "aggregate_rewards": "normalised"}, "reward_kl_weight is 0.1 and aggreg"),
        ({"rewards": ["mine:kl"], "reward_weights": [1.0]}, "rewards names a function kl"),
        ({"rewards": ["mine:r", "other:r"]}, r"two functions r; .*'package\.module:r#second'"),
        ({"rewards": ["mine:r#a"], "reward_arguments": {"r": {}}}, "reward_arguments.r: no reward has this"),
        ({"latent_term": "cosine", "latents": False}, "latent_term is cosine and latents=false"),
        ({"latent_term": "cosine", "max_blocks": 0}, "latent_term is cosine and max_blocks=0"),
        ({"num_generations_eval": 0}, "num_generations_eval is 0; give at least 1"),
        ({"stop_strings": ["</answer>", ""]}, r"stop_strings\[1\] is empty; give a text"),
        ({"stop_strings": 3}, "stop_strings is 3"),
        ({"presence_penalty": 1e31}, r"presence_penalty is 1e\+31; give at most 1e\+30"),
        ({"steps_per_generation": 0}, "steps_per_generation is 0; give at least 1"),
        (
            {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
            "steps_per_generation is 3 and gradient_accumulation_steps 2: .* such as 4",
        ),
        ({"entropy_target": 1.0, "loss": {"entropy_coef": -0.1}}, "loss.entropy_coef is -0.1"),
        ({"entropy_target": 1.0, "loss": {"entropy_coef": 1.1}}, "entropy_coef_max = 1.0"),
    ],
)
def test_bad_grpo_settings(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(GrpoConfig, values)


@pytest.mark.parametrize(
    ("rewards", "weights"),
    [
        (None, [1.0, 0.2]),
        (["fourdthinker.rewards:format_reward", "fourdthinker.rewards:accuracy_reward"], [0.2, 1.0]),
        (["fourdthinker.rewards:format_reward"], [1.0]),
        (["mine:a", "mine:b"], [1.0, 1.0]),
        (["mine:a", "mine:b", "mine:c"], [1.0, 1.0, 1.0]),
    ],
)
def test_weights_of_rewards_that_are_not_given(rewards: list[str] | None, weights: list[float]) -> None:
    given = {} if rewards is None else {"rewards": rewards}
    assert make_config(GrpoConfig, given).reward_weights == weights
    assert make_config(GrpoConfig, given | {"reward_weights": None}).reward_weights == weights


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"ref_model_sync_steps": 64},
            "ref_model_sync_steps is 64 and does nothing: sync_ref_model is false",
        ),
        ({"ref_model_mixup_alpha": 0.1}, "ref_model_mixup_alpha is 0.1 .* set sync_ref_model=true, or leave"),
        ({"latent_weight": 0.5}, "latent_weight is 0.5 and does nothing: latent_term is none"),
        ({"latent_sigma": 1.0}, "latent_sigma is 1.0 and does nothing: latent_term is not gaussian"),
        ({"entropy_step": 0.1}, "entropy_step is 0.1 and does nothing: entropy_target is null"),
        ({"entropy_coef_max": 0.1}, "entropy_coef_max is 0.1 and does nothing"),
        ({"reward_kl": "k3"}, "reward_kl is k3 and does nothing: reward_kl_weight is 0"),
        ({"loss": {"beta": 0, "kl": "k2"}}, "loss.kl is k2 and does nothing: loss.beta is 0"),
        ({"loss": {"beta": 0, "kl_weighting": "ratio"}}, "loss.kl_weighting is ratio and does nothing"),
        ({"loss": {"sampler_level": "sequence"}}, "loss.sampler_level is sequence and does nothing: neither"),
        ({"loss": {"sampler_excess": "mask"}}, "loss.sampler_excess is mask and does nothing: neither"),
        ({"loss": {"sapo_positive": 2.0}}, "loss.sapo_positive is 2.0 .* loss.loss_type is not sapo"),
        ({"loss": {"vespo_k_positive": 5.0}}, "loss.vespo_k_positive is 5.0 .* set loss.loss_type=vespo"),
        ({"latents": False, "train_start": True}, "train_start is True and does nothing: latents is false"),
        ({"latents": False, "max_blocks": 2}, "max_blocks is 2 and does nothing: latents is false"),
        ({"max_blocks": 0, "train_start": True}, "train_start is True and does nothing: max_blocks is 0"),
        (
            {"loss": {"loss_type": "sapo", "epsilon_high": 0.28}},
            "loss.epsilon_high is 0.28 and does nothing: loss.loss_type is sapo or vespo",
        ),
        ({"loss": {"loss_type": "vespo", "epsilon": 0.1}}, "loss.epsilon is 0.1 and does nothing"),
        (
            {"loss": {"loss_type": "cispo", "epsilon": 0.1, "epsilon_high": 4.0}},
            "loss.epsilon is 0.1 and does nothing: cispo has no lower bound",
        ),
        ({"loss": {"entropy_norm": "loss"}}, "loss.entropy_norm is loss and does nothing"),
        ({"log_rollouts": 0, "log_rollouts_steps": 5}, "log_rollouts_steps is 5 and does nothing"),
    ],
)
def test_what_would_do_nothing_in_4drl_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(GrpoConfig, values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"latents": False, "sim_loss_weight": 2.0}, "sim_loss_weight is 2.0 and does nothing: latents is"),
        ({"latents": False, "latent_size": 4}, "latent_size is 4 and does nothing: latents is false"),
        ({"latents": False, "self_feed": 0.5}, "self_feed is 0.5 .* set latents=true, or leave it out"),
        ({"cache_video": True}, "cache_video is True and does nothing: cache_dir is null; set cache_dir"),
    ],
)
def test_what_would_do_nothing_in_dift_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(DiftConfig, values)


@pytest.mark.parametrize("cls", [DiftConfig, GrpoConfig])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cache_dir": "c", "freeze_vision": False}, "cache_dir keeps features of a frozen tower"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 9}, "warmup_steps is 9.0 .*=constant_with_warmup"),
        ({"override_policy": True}, "override_policy is True and does nothing: frames is null"),
        ({"dataloader_prefetch_factor": 4}, "dataloader_prefetch_factor is 4 .* dataloader_num_workers is 0"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers is True and does nothing"),
    ],
)
def test_what_would_do_nothing_in_either_is_refused(
    cls: type[TrainConfig], values: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(cls, values)


def test_evaluation_settings_without_held_out_records_are_refused(tmp_path: Path) -> None:
    for name in ("eval_steps", "per_device_eval_batch_size"):
        config = make_config(DiftConfig, {name: 50, "output_dir": str(tmp_path / "run")})
        with pytest.raises(ConfigError, match=f"{name} is 50 and does nothing: eval_data is empty; set"):
            train_dift(config)
    config = make_config(GrpoConfig, {"num_generations_eval": 4, "output_dir": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match="num_generations_eval is 4 and does nothing: eval_data is empty"):
        train_grpo(config)
    assert not (tmp_path / "run").exists()


def test_what_has_its_need_or_default_is_taken() -> None:
    make_config(GrpoConfig, {"sync_ref_model": True, "ref_model_sync_steps": 64})
    make_config(GrpoConfig, {"loss": {"loss_type": "sapo", "sapo_positive": 2.0}})
    make_config(GrpoConfig, {"loss": {"sampler_cap": 2.0, "sampler_excess": "mask"}})
    make_config(GrpoConfig, {"latents": False, "max_blocks": 0, "ref_model_sync_steps": 512})
    make_config(GrpoConfig, {"loss": {"loss_type": "cispo", "epsilon": 0.1}})
    make_config(GrpoConfig, {"loss": {"entropy_norm": "loss"}, "entropy_target": 1.0})
    make_config(DiftConfig, {"lr_scheduler_type": "constant", "warmup_steps": 0})
    make_config(DiftConfig, {"lr_scheduler_type": "constant"})


def test_loss_options_start_from_the_published_ones() -> None:
    assert GrpoConfig().loss == GrpoOptions(beta=0.01, max_length=512)
    config = make_config(GrpoConfig, {"loss": {"loss_type": "dr_grpo"}, "max_completion_length": 99})
    assert config.loss == GrpoOptions(loss_type="dr_grpo", beta=0.01, max_length=99)
    assert load_config(GrpoConfig, None, ["loss.epsilon_high=2e-1"]).loss.epsilon_high == 0.2
    assert GrpoConfig(loss=GrpoOptions(), max_completion_length=7).loss == GrpoOptions(max_length=7)


def test_errors_of_files_and_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read"):
        load_config(DiftConfig, tmp_path / "no.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [")
    with pytest.raises(ConfigError, match=r"bad.yaml: not valid YAML"):
        load_config(DiftConfig, bad)
    bad.write_text("- 1")
    with pytest.raises(ConfigError, match="holds a list"):
        load_config(DiftConfig, bad)
    for argument in ("max_steps", "=3", "max_steps=["):
        with pytest.raises(ConfigError, match="argument"):
            load_config(DiftConfig, None, [argument])


@pytest.mark.parametrize("config", [DiftConfig, GrpoConfig])
def test_help_explains_every_setting(
    config: type[TrainConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        parse_command_line(config, ["--help"], program="p", description="d")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    flat = " ".join(shown.split())
    for _, group in settings_of(config):
        for setting in group:
            assert len(setting.text) > 10, f"{setting.key} is not explained"
            assert f"{setting.key} = {setting.default} {setting.text} ({setting.kind})" in flat
    assert max(len(line) for line in shown.splitlines() if "fourdthinker.rewards" not in line) <= 80


def test_every_setting_is_in_one_group() -> None:
    for config in (TrainConfig, DiftConfig, GrpoConfig):
        named = [s.key for _, group in settings_of(config) for s in group]
        assert len(named) == len(set(named))
        assert set(config.model_fields) <= {key.partition(".")[0] for key in named}


def test_the_page_of_settings_is_up_to_date() -> None:
    page = (CONFIGS.parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run python tools/settings_doc.py"


def test_messages_say_where_a_value_stands(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: -1\nframes: {fpz: 1}\n")
    with pytest.raises(ConfigError) as error:
        load_config(DiftConfig, path, ["max_steps=x", "frames.max_frames=3"])
    parts = str(error.value).split("; ")
    assert any(part.startswith(f"{path}: seed is -1") for part in parts)
    assert any(part.startswith("command line: max_steps is 'x'") for part in parts)


def test_settings_made_in_python_are_checked_and_fixed() -> None:
    with pytest.raises(ConfigError, match="seed is -1; give at least 0"):
        GrpoConfig(seed=-1)
    config = GrpoConfig(data=["a"])
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_text_that_writes_a_number_is_one(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 1e-6\n")
    assert load_config(GrpoConfig, path, ["weight_decay=1e-2"]).learning_rate == 1e-6


def test_deepspeed_configs_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "c.yaml"
    path.write_text("deepspeed: zero.json\n")
    assert load_config(DiftConfig, path).deepspeed == str(tmp_path / "configs" / "zero.json")
    assert load_config(DiftConfig, path, ["deepspeed=zero.json"]).deepspeed == "zero.json"
    resolved = save_config(load_config(DiftConfig, path), tmp_path)
    assert load_config(DiftConfig, resolved).deepspeed == str(tmp_path / "configs" / "zero.json")


def test_command_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\n")
    config, dry_run = parse_command_line(
        DiftConfig, ["--config", str(path), "max_steps=2", "output_dir=x"], program="p", description="d"
    )
    assert not dry_run
    assert (config.seed, config.max_steps, config.output_dir) == (3, 2, "x")


def test_settings_stand_on_both_sides_of_options(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\n")
    given = ["max_steps=2", "--config", str(path), "data=[x]", "--dry-run", "output_dir=y"]
    config, dry_run = parse_command_line(DiftConfig, given, program="p", description="d")
    assert dry_run
    assert (config.seed, config.max_steps, config.data, config.output_dir) == (3, 2, ["x"], "y")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("grpo*.yaml")), ids=lambda path: path.stem)
def test_recipes_take_other_rewards(path: Path) -> None:
    published = [1.0] if "mllm4d" in path.stem else [1.0, 0.2]
    assert load_config(GrpoConfig, path).reward_weights == published
    for rewards, weights in (("[mine:r]", [1.0]), ("[mine:a, mine:b]", [1.0, 1.0])):
        assert load_config(GrpoConfig, path, [f"rewards={rewards}"]).reward_weights == weights


def test_shared_names_mean_what_trainer_means() -> None:
    # Every setting is either one of TrainingArguments or one that only exists here; this list is the second
    # kind.
    ours = {
        "model", "subfolder", "data", "media_root", "on_bad_record", "check_media", "frames",
        "override_policy", "dtype", "freeze_vision", "lora", "cache_dir", "max_bad_steps",
        "overwrite_output_dir", "max_prompt_tokens", "max_tokens_per_forward", "liger", "latents",
        "instruction", "learning_rates", "eval_data", "shuffle_dataset",
    }  # fmt: skip
    theirs = {f.name for f in dataclasses.fields(TrainingArguments)}
    assert set(TrainConfig.model_fields) - theirs == ours


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    config = load_config(GrpoConfig if path.name.startswith("grpo") else DiftConfig, path)
    assert config.model
    assert config.data
    if config.deepspeed:
        assert Path(config.deepspeed).is_file()
    assert yaml.safe_load(path.read_text())


def test_configs_are_shipped() -> None:
    assert len(list(CONFIGS.glob("dift*.yaml"))) >= 2
    assert len(list(CONFIGS.glob("grpo*.yaml"))) >= 2


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max_steps: 3\nseed: 1\nmax_steps: 4\n")
    with pytest.raises(ConfigError, match=r"'max_steps' stands in lines 1 and 3; keep one"):
        load_config(DiftConfig, path)
    path.write_text("frames:\n  fps: 1\n  fps: 2\n")
    with pytest.raises(ConfigError, match=r"'fps' stands in lines 2 and 3; keep one"):
        load_config(DiftConfig, path)
    with pytest.raises(
        ConfigError, match=r"argument 'frames=\{fps: 1, fps: 2\}'.*'fps' stands twice; keep one"
    ):
        load_config(DiftConfig, None, ["frames={fps: 1, fps: 2}"])


@pytest.mark.parametrize("value", ["2020-13-45", "1" * 5000, "[" * 3000])
def test_values_that_yaml_cannot_make_are_named(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"argument .seed=.*not valid YAML"):
        load_config(DiftConfig, None, [f"seed={value}"])
    path = tmp_path / "config.yaml"
    path.write_text(f"seed: {value}\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(DiftConfig, path)


def test_ranges_of_frames_are_those_of_the_frame_policy() -> None:
    kinds = {setting.key: setting.kind for _, group in settings_of(DiftConfig) for setting in group}
    assert kinds["frames.fps"] == "number > 0 and <= 1e+06"
    assert kinds["frames.min_frames"] == "whole number >= 1"
    assert kinds["frames.resample"] == "lanczos, bicubic"
    for field in dataclasses.fields(FramePolicy):
        limits = {key: value for key, value in field.metadata.items() if key != "help"}
        assert limits, f"{field.name} has no limits"
        name, limit = limits.popitem()
        low = limit - 1 if name == "minimum" else 0
        wrong = {"choices": "none", "minimum": low, "above": limit, "maximum": 2e6}[name]
        with pytest.raises(ConfigError, match=rf"frame policy: {field.name} is {wrong!r}; (give|choose)"):
            FramePolicy(**{field.name: wrong})


def test_schedules_are_those_of_transformers() -> None:
    from transformers.trainer_utils import SchedulerType

    listed = set(typing.get_args(TrainConfig.model_fields["lr_scheduler_type"].annotation))
    needs_evaluation = {"reduce_lr_on_plateau", "greedy"}
    assert listed | needs_evaluation >= {kind.value for kind in SchedulerType}
    assert listed <= {kind.value for kind in SchedulerType}
    with pytest.raises(ConfigError, match="lr_scheduler_type is 'cosin'; choose one of linear, cosine"):
        DiftConfig(lr_scheduler_type="cosin")
