"""What is wrong with the input is said before the first step, with file, line or time, and remedy."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fourdthinker.backbones import load_checkpoint, save_checkpoint
from fourdthinker.errors import CheckpointError, ConfigError, FourdError, RecordError
from fourdthinker.frames import FramePolicy
from fourdthinker.records import read_records
from fourdthinker.trainers import dift, grpo
from fourdthinker.trainers.arguments import training_arguments
from fourdthinker.trainers.settings_files import load_config
from tests.e2e.training import metrics, prompts, settings, write_data, write_model
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

Change = Callable[[dict[str, Any], Path], None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bad")
    dift_data, rl_data = write_data(folder / "data", 3)
    return {"model": str(write_model(folder / "model")), "dift": str(dift_data), "rl": str(rl_data)}


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def start(trainer: str, base: dict[str, Any], run: Path, **extra: Any) -> None:
    values = {"model": base["model"], "data": base["dift" if trainer == "dift" else "rl"], "use_cpu": True}
    values |= {"max_steps": 1, "save_steps": 0, "report_to": [], "output_dir": str(run)}
    train_by(trainer, settings(values | extra))


def train_by(trainer: str, arguments: list[str]) -> None:
    if trainer == "dift":
        dift.train_dift(load_config(dift.DiftConfig, None, arguments))
    else:
        grpo.train_grpo(load_config(grpo.GrpoConfig, None, arguments))


def refused(trainer: str, base: dict[str, Any], run: Path, **extra: Any) -> str:
    with pytest.raises(FourdError) as error:
        start(trainer, base, run, **extra)
    assert not (run / "metrics.jsonl").exists(), "a step was made"
    return str(error.value)


def _replace(**values: Any) -> Callable[[dict[str, Any]], str]:
    return lambda record: json.dumps(record | values)


BAD_LINES: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "malformed": (lambda record: json.dumps(record)[:-2], "JSON"),
    "missing key": (lambda record: json.dumps({"id": record["id"]}), "text_input"),
    "unknown key": (_replace(colour="red"), "colour"),
    "missing file": (_replace(video="gone.mp4"), "gone.mp4"),
    "outside": (_replace(video="../../model/config.json"), "media_root"),
    "placeholders": (_replace(text_output="<output_image> <output_image> <output_image>"), "3"),
    "empty video": (_replace(video="empty.mp4"), "empty.mp4"),
    "no video": (_replace(video="text.mp4"), "text.mp4"),
    "cut off": (_replace(video="cut.mp4"), "cut.mp4"),
    "zero frames": (_replace(start=50.0, end=51.0), "50"),
    "small overlay": (_replace(image_output=["small.png"]), "overlay 0 has 1 features"),
    "no picture": (_replace(image_output=["text.mp4"]), "text.mp4"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_record(case: str, base: dict[str, Any], tmp_path: Path) -> None:
    data = Path(base["dift"])
    good = data.read_text().splitlines()
    change, said = BAD_LINES[case]
    (data.parent / "empty.mp4").write_bytes(b"")
    (data.parent / "text.mp4").write_text("this is not a video " * 50)
    Image.new("RGB", (28, 28)).save(data.parent / "small.png")
    whole = (data.parent / "0.mp4").read_bytes()
    (data.parent / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    bad = data.parent / "bad.jsonl"
    bad.write_text("\n".join([good[0], change(json.loads(good[2])), good[1]]) + "\n")
    message = refused("dift", base, tmp_path / "run", data=str(bad))
    assert "bad.jsonl:2" in message
    assert said in message


def test_answer_that_is_no_option(base: dict[str, Any], tmp_path: Path) -> None:
    bad = Path(base["rl"]).with_name("answer.jsonl")
    bad.write_text(json.dumps(lines(base["rl"])[0] | {"Correct": "E"}) + "\n")
    message = refused("grpo", base, tmp_path / "run", data=str(bad))
    assert "answer.jsonl:1" in message
    assert "E" in message


def test_empty_file(base: dict[str, Any], tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "empty.jsonl" in refused("grpo", base, tmp_path / "run", data=str(empty))


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_checkpoint_without_latent_tokens(trainer: str, base: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, layers=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="latent"):
        start(trainer, base, tmp_path / "run", model=str(tmp_path / "model"))


def test_base_checkpoint_can_be_grown(base: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, layers=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    start("dift", base, tmp_path / "run", model=str(tmp_path / "model"), latent_size=3, logging_steps=1)
    assert len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_frame_policy_of_the_checkpoint(trainer: str, base: dict[str, Any], tmp_path: Path) -> None:
    frames = {"fps": 4.0, "max_frames": 4, "max_pixels": 56 * 56}
    message = refused(trainer, base, tmp_path / "run", frames=frames)
    assert "fps (checkpoint 2.0, given 4.0)" in message
    start(trainer, base, tmp_path / "run", frames=frames, override_policy=True, max_steps=1)


def test_loaded_checkpoint_with_other_policy(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(layers=1)
    config = dift.DiftConfig(frames=FramePolicy(fps=3.0), use_cpu=True, output_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="frames"):
        dift.train_dift(config, checkpoint=checkpoint, samples=[])


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_a_mistake_in_a_command_is_one_line(
    trainer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = (dift if trainer == "dift" else grpo).main
    for arguments, said in (
        (["learning_rate=nan"], "error: command line: learning_rate is 'nan'; give a finite number"),
        (["--config", str(tmp_path / "no.yaml")], "no.yaml: cannot be read"),
        ([f"output_dir={tmp_path / 'run'}", "use_cpu=true"], "error: model is empty"),
        (["use_cpu=true", "report_to=[nobody]"], "nobody is not supported"),
        (["use_cpu=true", "dataloader_prefetch_factor=2"], "dataloader_num_workers"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        shown = capsys.readouterr().err
        assert said in shown
        assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optim": "nobody"}, "nobody is not a valid"),
        ({"optim": "adamw_bnb_8bit"}, "bitsandbytes"),
        ({"lr_scheduler_kwargs": {"colour": 1}}, "colour"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"tf32": True}, "tf32"),
    ],
)
def test_what_transformers_refuses_is_one_line(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    config = dift.DiftConfig(use_cpu=True, report_to=[], output_dir=str(tmp_path), **values)
    with pytest.raises(ConfigError, match="passed on to transformers is wrong: ") as error:
        training_arguments(config)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_deepspeed_is_looked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"use_cpu": True, "deepspeed": str(tmp_path / "no.json"), "output_dir": str(tmp_path / "run")}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'fourdthinker\[zero\]'"):
        training_arguments(dift.DiftConfig(**values))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"no\.json, and there is no such file; in a YAML file the path"):
        training_arguments(dift.DiftConfig(**values))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs the processes find each other")
def test_processes_that_would_train_apart_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes were started, .* set use_cpu=true"):
        training_arguments(dift.DiftConfig(output_dir=str(tmp_path / "run")))


def test_more_processes_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"4 processes .* has 2 GPUs; start one a GPU .*_node 2\)"):
        training_arguments(dift.DiftConfig(output_dir=str(tmp_path / "run")))


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_settings(trainer: str, base: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "learning_rate" in refused(trainer, base, run, learning_rte=1)
    assert "model is empty" in refused(trainer, base, run, model="")
    assert "zzz is not a valid" in refused(trainer, base, run, optim="zzz")
    assert "data is empty" in refused(trainer, base, run, data=[], overwrite_output_dir=True)
    assert "no such folder" in refused(trainer, base, run, model=str(tmp_path / "none"))
    assert "no config.json" in refused(trainer, base, run, resume_from_checkpoint=str(tmp_path / "none"))


def test_grpo_settings(base: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "nowhere" in refused("grpo", base, run, rewards=["nowhere:f"], reward_weights=[1.0])
    assert "loss_type is 'ppo'" in refused("grpo", base, run, loss={"loss_type": "ppo"})
    assert "kl is 'k1'" in refused("grpo", base, run, loss={"kl": "k1"})
    assert "delta is 1.1" in refused("grpo", base, run, loss={"delta": 1.1})
    assert "epsilon_high is -1" in refused("grpo", base, run, loss={"epsilon_high": -1.0})
    assert "no meaning for cispo" in refused("grpo", base, run, loss={"loss_type": "cispo", "delta": 3.0})
    assert "unknown key 'beta', the nearest are loss.beta" in refused("grpo", base, run, beta=0.1)
    twice = ["fourdthinker.rewards:format_reward"] * 2
    assert "two functions format_reward; call one" in refused("grpo", base, run, rewards=twice)


def test_former_run_is_not_overwritten(base: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    start("dift", base, run, save_steps=1)
    with pytest.raises(ConfigError, match="former run"):
        start("dift", base, run)
    start("dift", base, run, overwrite_output_dir=True)
    assert [path.name for path in run.glob("*checkpoint-*")] == ["former-checkpoint-1"]


@pytest.mark.parametrize("name", ["file", "file/below", "dangling", "device"])
def test_an_output_folder_that_cannot_be_is_named_before_the_model_is_loaded(
    name: str, base: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "device").symlink_to("/dev/null")
    message = refused("dift", base, tmp_path / name, model=str(tmp_path / "no model"))
    assert f"{tmp_path / name.partition('/')[0]} is not a folder, and one is needed" in message
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "dangling").is_symlink()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["folder", "device"])
def test_rejected_lines_go_to_a_regular_file(kind: str, base: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if kind == "folder":
        (run / "rejected.jsonl").mkdir()
    else:
        (run / "rejected.jsonl").symlink_to("/dev/null")
    assert f"rejected.jsonl is a {kind}, not a regular file" in refused("dift", base, run)
    assert (run / "rejected.jsonl").exists()


def test_rejected_lines_follow_a_link(base: dict[str, Any], tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "bad.jsonl"
    run.mkdir()
    (tmp_path / "elsewhere").write_text('{"where": "old.jsonl:1", "reason": "of a former run"}\n')
    (run / "rejected.jsonl").symlink_to(tmp_path / "elsewhere")
    data.write_text(Path(base["dift"]).read_text() + "no record\n")
    start("dift", base, run, data=str(data), media_root=str(Path(base["dift"]).parent), on_bad_record="skip")
    assert (run / "rejected.jsonl").is_symlink()
    (line,) = (tmp_path / "elsewhere").read_text().splitlines()
    assert json.loads(line)["where"].endswith("bad.jsonl:4")


def test_answers_are_checked_for_the_accuracy_reward(base: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(layers=1)
    items = prompts(checkpoint, 2)
    items[1].record.answer = None  # type: ignore[union-attr]
    config = grpo.GrpoConfig(use_cpu=True, output_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="memory:1"):
        grpo.train_grpo(config, checkpoint=checkpoint, prompts=items)


def test_unreadable_media_can_be_skipped(
    base: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = Path(base["rl"])
    (data.parent / "text.mp4").write_text("this is not a video " * 50)
    bad = data.parent / "some.jsonl"
    bad.write_text(
        data.read_text() + json.dumps(lines(base["rl"])[0] | {"video_path": "text.mp4", "id": "t"}) + "\n"
    )
    with caplog.at_level(logging.WARNING):
        start("grpo", base, tmp_path / "run", data=str(bad), on_bad_record="skip", max_completion_length=4)
    assert "some.jsonl:4" in (tmp_path / "run" / "rejected.jsonl").read_text()
    assert "some.jsonl:4" in caplog.text


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_a_cache_names_and_skips_bad_records_too(trainer: str, base: dict[str, Any], tmp_path: Path) -> None:
    data = Path(base["dift" if trainer == "dift" else "rl"])
    Image.new("RGB", (28, 28)).save(data.parent / "small.png")
    (data.parent / "text.mp4").write_text("this is not a video " * 50)
    key = "video" if trainer == "dift" else "video_path"
    changes = [{key: "text.mp4"}] + [{"image_output": ["small.png"]}] * (trainer == "dift")
    cache = {"cache_dir": str(tmp_path / "cache")} | ({"cache_video": True} if trainer == "dift" else {})
    for number, change in enumerate(changes):
        bad = data.parent / "cached.jsonl"
        bad.write_text(data.read_text() + json.dumps(lines(str(data))[0] | change) + "\n")
        assert "cached.jsonl:4" in refused(trainer, base, tmp_path / f"raise{number}", data=str(bad), **cache)
        run, short = tmp_path / f"skip{number}", {"max_completion_length": 4} if trainer == "grpo" else {}
        start(trainer, base, run, data=str(bad), on_bad_record="skip", **cache, **short)
        assert "cached.jsonl:4" in (run / "rejected.jsonl").read_text()


def test_growing_what_has_latent_tokens_keeps_its_policy(base: dict[str, Any], tmp_path: Path) -> None:
    frames = {"fps": 4.0, "max_frames": 4, "max_pixels": 56 * 56}
    message = refused("dift", base, tmp_path / "run", latent_size=4, frames=frames)
    assert "fps (checkpoint 2.0, given 4.0)" in message
    start("dift", base, tmp_path / "run", latent_size=4, frames=frames, override_policy=True)


def test_incomplete_checkpoint_is_named(base: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "plain", tiny_checkpoint(layers=1))
    with pytest.raises(RecordError):
        start("dift", base, tmp_path / "run", data=str(tmp_path / "none.jsonl"))
    message = refused("dift", base, tmp_path / "run", resume_from_checkpoint=str(tmp_path / "plain"))
    assert "trainer_state.json" in message


def _long(base: dict[str, Any], trainer: str, name: str) -> str:
    """Records of which the third has a question of some 100 tokens more."""
    data = Path(base["dift" if trainer == "dift" else "rl"])
    key = "text_input" if trainer == "dift" else "Question"
    records = lines(str(data))
    records[2][key] = "Which way? " * 20 + records[2][key]
    path = data.with_name(name)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


CACHED: dict[str, dict[str, Any]] = {"dift": {"cache_video": True}, "grpo": {}}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_a_prompt_that_is_too_long_is_found_first(
    trainer: str, cached: bool, base: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _long(base, trainer, f"long_{trainer}.jsonl")
    extra: dict[str, Any] = {"data": data, "max_prompt_tokens": 60}
    extra |= {"max_completion_length": 4} if trainer == "grpo" else {}
    if cached:
        extra |= {"cache_dir": str(tmp_path / "cache")} | CACHED[trainer]
    message = refused(trainer, base, tmp_path / "run", **extra)
    assert f"{data}:3: the prompt has" in message
    assert "max_prompt_tokens is 60; raise it" in message
    with caplog.at_level(logging.WARNING):
        start(trainer, base, tmp_path / "skip", **extra, on_bad_record="skip")
    assert "1 records skipped, 2 left" in caplog.text
    assert f"{data}:3" in (tmp_path / "skip" / "rejected.jsonl").read_text()


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_the_length_is_that_of_the_encoded_record(trainer: str, base: dict[str, Any], tmp_path: Path) -> None:
    """At the limit nothing is said, one token below everything is; pictures count."""
    loaded = load_checkpoint(base["model"])
    encoder, (record, *_) = loaded.encoder(), read_records(base["rl" if trainer == "grpo" else "dift"])
    prompt = encoder.prompt(record)
    # The newline after `assistant` is supervised in DIFT.
    length = prompt.input_ids.numel() - (trainer == "dift" and loaded.style.newline_after_assistant)
    assert int((prompt.input_ids == loaded.backbone.vision.video_token_id).sum()) == 4
    extra: dict[str, Any] = {"max_completion_length": 4} if trainer == "grpo" else {}
    one = tmp_path / "one.jsonl"
    one.write_text(Path(base["rl" if trainer == "grpo" else "dift"]).read_text().splitlines()[0] + "\n")
    extra |= {"data": str(one), "media_root": str(Path(base["rl"]).parent)}
    start(trainer, base, tmp_path / "run", max_prompt_tokens=length, **extra)
    message = refused(trainer, base, tmp_path / "less", max_prompt_tokens=length - 1, **extra)
    assert f"the prompt has {length} tokens" in message


def test_what_does_not_fit_into_the_context_is_found_first(base: dict[str, Any], tmp_path: Path) -> None:
    message = refused("grpo", base, tmp_path / "run", max_completion_length=4090)
    assert "rl.jsonl:1: the prompt has" in message
    assert "4090 of max_completion_length" in message
    assert "made for 4096" in message
    data = Path(base["dift"])
    records = lines(str(data))
    records[1]["text_output"] = records[1]["text_output"].replace("and ", "and " * 5000)
    path = data.with_name("context.jsonl")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "context.jsonl:2: the prompt has" in refused("dift", base, tmp_path / "dift", data=str(path))


def test_prompts_in_memory_are_measured_too(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(layers=1)
    config = grpo.GrpoConfig(use_cpu=True, output_dir=str(tmp_path / "run"), max_prompt_tokens=22)
    with pytest.raises(ConfigError, match="memory:1: the prompt has 23 tokens and max_prompt_tokens is 22"):
        grpo.train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 2))
    with pytest.raises(ConfigError, match="set check_media=true"):
        grpo.GrpoConfig(max_prompt_tokens=22, check_media=False)
