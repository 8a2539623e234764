"""Checkpoints: complete when saved, the same when loaded, and refused with a reason."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from fourdthinker.backbones import (
    FAMILIES,
    Checkpoint,
    init_checkpoint,
    load_backbone,
    load_checkpoint,
    save_checkpoint,
)
from fourdthinker.backbones.adapters import merge_adapter
from fourdthinker.backbones.common import Backbone
from fourdthinker.errors import CheckpointError, OutputError
from fourdthinker.frames import FramePolicy
from fourdthinker.latents import LATENT_PAD
from fourdthinker.prompt_style import CHAT_TEMPLATE, RELEASED, PromptStyle
from tests.full_disk import largest_file
from tests.tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

FILES = {
    "chat_template.jinja",
    "config.json",
    "frame_policy.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
}


QWEN3 = FramePolicy(factor=32, max_pixels=64 * 64, min_pixels=32 * 32)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same_weights(a: Any, b: Any) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    file.write_text(json.dumps(content))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model as its makers publish it: no latent tokens, no frame policy."""
    tokenizer = tiny_tokenizer()
    folder = tmp_path / "base"
    tiny_model(tokenizer, spare_rows=20).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tmp_path: Path, family: str, tied: bool, dtype: torch.dtype) -> None:
    factor = {"qwen2_5_vl": 28, "qwen3_vl": 32}[family]
    pixels = {"max_pixels": 4 * factor**2, "min_pixels": factor**2, "factor": factor}
    policy = FramePolicy(fps=4.0, max_frames=8, resample="bicubic", **pixels)
    style = PromptStyle(instruction="Say it.", newline_after_assistant=False, seconds_per_grid=0.5)
    checkpoint = tiny_checkpoint(family=family, tied=tied, latent_size=3, policy=policy, style=style)
    checkpoint.backbone.to(dtype)
    folder = tmp_path / "deep" / "checkpoint"

    save_checkpoint(folder, checkpoint)

    assert names(folder) == FILES
    assert names(folder.parent) == {"checkpoint"}
    loaded = load_checkpoint(folder)
    assert type(loaded.backbone) is type(checkpoint.backbone)
    assert loaded.backbone.dtype == dtype
    assert same_weights(loaded.backbone, checkpoint.backbone)
    assert (loaded.backbone.head_weight is loaded.backbone.embedding_weight) == tied
    assert not loaded.backbone.training
    assert loaded.backbone.latents == checkpoint.backbone.latents
    assert loaded.backbone.latents.latent_size == 3
    assert loaded.backbone.vision == checkpoint.backbone.vision
    assert (loaded.policy, loaded.style) == (policy, style)
    assert loaded.tokenizer.get_vocab() == checkpoint.tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == checkpoint.tokenizer.chat_template
    text = "Größe <|im_start|>assistant\n<|latent_start|><|latent_pad|> 12"
    assert loaded.tokenizer(text).input_ids == checkpoint.tokenizer(text).input_ids
    assert load_checkpoint(folder, dtype=torch.float64).backbone.dtype == torch.float64


def test_other_programs_can_read_it(saved: Path) -> None:
    """Plain transformers finds model, tokenizer and processor settings."""
    checkpoint = load_checkpoint(saved)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(saved)
    assert same_weights(model, checkpoint.backbone.hf)
    assert AutoConfig.from_pretrained(saved).latent_token_id == checkpoint.backbone.latents.pad_id
    assert LATENT_PAD in AutoTokenizer.from_pretrained(saved).get_vocab()
    eos = checkpoint.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.generation_config.eos_token_id == eos
    for name, kind in [("preprocessor", "image"), ("video_preprocessor", "video")]:
        content = json.loads((saved / f"{name}_config.json").read_text())
        assert content[f"{kind}_processor_type"].startswith("Qwen2VL")
        assert content["size"] == {"shortest_edge": 28 * 28, "longest_edge": 256 * 28 * 28}
        assert (content["patch_size"], content["merge_size"], content["temporal_patch_size"]) == (14, 2, 2)
        assert content["resample"] == 1  # Lanczos, as PIL numbers it


def test_processor_files_of_qwen3_vl(tmp_path: Path) -> None:
    """What Qwen3-VL's own processors read: patches of 16, mean and deviation 0.5, pixels of a whole clip."""
    tiny_checkpoint(tmp_path / "c", family="qwen3_vl", policy=QWEN3)
    loaded = load_checkpoint(tmp_path / "c")
    model = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "c")
    assert same_weights(model, loaded.backbone.hf)
    picture, clip = (
        json.loads((tmp_path / "c" / f"{name}_config.json").read_text())
        for name in ("preprocessor", "video_preprocessor")
    )
    for content in (picture, clip):
        assert (content["patch_size"], content["merge_size"], content["temporal_patch_size"]) == (16, 2, 2)
        assert content["image_mean"] == content["image_std"] == [0.5, 0.5, 0.5]
        assert content["processor_class"] == "Qwen3VLProcessor"
    assert picture["size"] == {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    assert clip["size"] == {"shortest_edge": 2 * 32 * 32, "longest_edge": 64 * 64 * 50}
    assert (clip["video_processor_type"], clip["fps"]) == ("Qwen3VLVideoProcessor", 1.0)


def test_a_qwen3_vl_without_a_policy_is_no_released_checkpoint(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "c", family="qwen3_vl")
    (tmp_path / "c" / "frame_policy.json").unlink()
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.policy == FramePolicy(factor=32, max_pixels=256 * 32 * 32, min_pixels=32 * 32)
    assert loaded.style == PromptStyle()


def test_an_adapter_of_an_earlier_save_is_dropped(saved: Path) -> None:
    (saved / "adapter").mkdir()
    (saved / "adapter" / "adapter_config.json").write_text("{}")
    save_checkpoint(saved, tiny_checkpoint())
    assert names(saved) == FILES


def test_saving_again_replaces_and_leaves_other_files(saved: Path) -> None:
    (saved / "trainer_state.json").write_text("{}")
    (saved / "model-00001-of-00002.safetensors").write_text("of an earlier save")
    (saved / "model.safetensors.index.json").write_text("of an earlier save")
    other = tiny_checkpoint(seed=1)
    save_checkpoint(saved, other)
    assert names(saved) == FILES | {"trainer_state.json"}
    assert same_weights(load_checkpoint(saved).backbone, other.backbone)


def test_a_link_to_another_disk_stays_a_link(tmp_path: Path) -> None:
    disk = Path("/dev/shm")
    if not os.access(disk, os.W_OK) or disk.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system to write to")
    with tempfile.TemporaryDirectory(dir=disk) as folder:
        (tmp_path / "final").symlink_to(folder)
        save_checkpoint(tmp_path / "final", tiny_checkpoint())
        assert (tmp_path / "final").is_symlink()
        assert names(Path(folder)) == FILES
    assert names(tmp_path) == {"final"}


def test_a_full_disk_is_named_and_leaves_the_checkpoint(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with (
        largest_file(20_000),
        pytest.raises(OutputError, match=r"saved: cannot be .*File too large"),
    ):
        save_checkpoint(saved, tiny_checkpoint(seed=1))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert names(saved.parent) == {"saved"}


def test_an_interrupted_save_does_not_load(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, moved = os.replace, []

    def fails_late(source: Path, target: Path) -> None:
        if len(moved) == 3:
            raise OSError("disk full")
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_late)
    with pytest.raises(
        OutputError, match=r"saved: cannot be written \(disk full\); name another file or disk"
    ):
        save_checkpoint(saved, tiny_checkpoint(seed=1))
    assert not (saved / "config.json").exists()
    assert names(saved.parent) == {"saved"}
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(saved)


def test_released_format(tmp_path: Path, saved: Path) -> None:
    """No frame policy, no processor config, in a subfolder of a larger repository."""
    folder = tmp_path / "repository" / "dift" / "checkpoints"
    shutil.copytree(saved, folder)
    for name in ("frame_policy.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        (folder / name).unlink()
    (folder / "processor_config.json").unlink()

    loaded = load_checkpoint(tmp_path / "repository", "dift/checkpoints")

    assert loaded.policy == FramePolicy()
    assert loaded.policy.fps == 1.0
    assert loaded.style == RELEASED
    assert not loaded.style.newline_after_assistant
    assert loaded.style.seconds_per_grid == 1.0
    save_checkpoint(tmp_path / "complete", loaded)
    assert names(tmp_path / "complete") == FILES
    assert load_checkpoint(tmp_path / "complete").style == RELEASED
    with pytest.raises(CheckpointError, match="fps"):
        load_checkpoint(tmp_path / "repository", "dift/checkpoints", policy=FramePolicy(fps=2.0))


def test_chat_template_of_older_processors(saved: Path) -> None:
    (saved / "chat_template.jinja").unlink()
    assert load_checkpoint(saved).tokenizer.chat_template is None
    (saved / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    assert load_checkpoint(saved).tokenizer.chat_template == "{{ messages[0].content }}"


def test_what_a_tokenizer_lacks_is_named(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_checkpoint(saved)
    assert caplog.text == ""
    (saved / "chat_template.jinja").unlink()
    (saved / "tokenizer_config.json").unlink()
    load_checkpoint(saved)
    first, second = [record.getMessage() for record in caplog.records]
    assert first.startswith(f"{saved} has no tokenizer_config.json: special tokens are")
    assert second.startswith(
        f"{saved} has no chat template (chat_template.jinja): prompts are written in plain"
    )
    assert all(
        text.endswith("Copy the tokenizer files of the model it was trained from into it")
        for text in (first, second)
    )


def test_chat_template_is_always_there(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    several = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    for given, expected in [(None, CHAT_TEMPLATE), (several, several), (several, several)]:
        checkpoint.tokenizer.chat_template = given
        save_checkpoint(tmp_path / "c", checkpoint)
        assert checkpoint.tokenizer.chat_template == given
        assert load_checkpoint(tmp_path / "c").tokenizer.chat_template == expected


def test_base_model_is_refused_and_can_be_initialised(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"base/config\.json has no latent_size.*grow_vocabulary"):
        load_checkpoint(base)
    checkpoint = init_checkpoint(base, latent_size=2, policy=FramePolicy(fps=2.0))
    assert checkpoint.backbone.latents.latent_size == 2
    assert checkpoint.style == PromptStyle()
    rows = checkpoint.backbone.embedding_weight.shape[0]
    assert rows == len(tiny_tokenizer()) + 20
    save_checkpoint(tmp_path / "new", checkpoint)
    loaded = load_checkpoint(tmp_path / "new", policy=FramePolicy(fps=2.0))
    assert same_weights(loaded.backbone, checkpoint.backbone)


def test_what_has_latent_tokens_keeps_its_policy_and_style(tmp_path: Path) -> None:
    saved, style = FramePolicy(fps=2.0), PromptStyle(instruction="Look.")
    tiny_checkpoint(tmp_path / "c", policy=saved, style=style)
    again = init_checkpoint(tmp_path / "c", latent_size=4)
    assert (again.policy, again.style) == (saved, style)
    with pytest.raises(CheckpointError, match=r"fps \(checkpoint 2\.0, given 1\.0\)"):
        init_checkpoint(tmp_path / "c", policy=FramePolicy())
    changed = init_checkpoint(tmp_path / "c", policy=FramePolicy(), override_policy=True)
    assert (changed.policy, changed.style) == (FramePolicy(), style)


def test_policy_mismatch(tmp_path: Path) -> None:
    saved = FramePolicy(fps=2.0, max_frames=16)
    tiny_checkpoint(tmp_path / "c", policy=saved)
    assert load_checkpoint(tmp_path / "c", policy=FramePolicy(fps=2.0, max_frames=16)).policy == saved
    other = FramePolicy(fps=4.0, max_frames=16, resample="bicubic")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "c", policy=other)
    assert "fps (checkpoint 2.0, given 4.0)" in str(error.value)
    assert "resample (checkpoint lanczos, given bicubic)" in str(error.value)
    assert "max_frames" not in str(error.value)
    assert "override_policy=True" in str(error.value)
    assert load_checkpoint(tmp_path / "c", policy=other, override_policy=True).policy == other


def test_no_pickle(saved: Path) -> None:
    weights = load_backbone(saved).hf.state_dict()
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Only safetensors are read"):
        load_checkpoint(saved)


def test_missing_weights(saved: Path) -> None:
    text = json.loads((saved / "config.json").read_text())["text_config"] | {"tie_word_embeddings": False}
    edit(saved / "config.json", tie_word_embeddings=False, text_config=text)
    with pytest.raises(CheckpointError, match=r"1 weights are missing: lm_head\.weight"):
        load_checkpoint(saved)


def test_broken_files(saved: Path, tmp_path: Path) -> None:
    def broken(name: str, text: str | None) -> Path:
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text)
        return folder

    cases = [
        ("frame_policy.json", "{", "frame_policy.json: malformed JSON"),
        ("frame_policy.json", "[]", "a JSON list, not an object"),
        ("frame_policy.json", '{"policy": {}}', "objects `policy` and `style`"),
        ("frame_policy.json", '{"policy": {"fqs": 1}, "style": {}}', "fqs"),
        ("frame_policy.json", '{"policy": {}, "style": {"color": 1}}', "unknown prompt style color"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", None, "config.json cannot be read"),
        ("config.json", '{"model_type": "llama"}', "is a llama; supported are qwen2_5_vl, qwen3_vl"),
        ("tokenizer.json", None, "has no tokenizer"),
        ("tokenizer.json", "{", "tokenizer cannot be loaded"),
        ("model.safetensors", "{", "the weights cannot be loaded"),
        ("model.safetensors", None, "the weights cannot be loaded"),
    ]
    for name, text, message in cases:
        folder = broken(name, text)
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(folder)
        assert message in str(error.value), (name, text)
        assert "broken" in str(error.value)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_odd_values(tmp_path: Path, family: str) -> None:
    """Readers of transformers and tokenizers raise anything; all of it comes out as one kind of error."""
    tiny_checkpoint(tmp_path / "saved", family=family)
    cases: list[tuple[str, tuple[str, ...], Any, str]] = [
        ("config.json", ("text_config", "hidden_size"), "wide", r"config\.json cannot be read.*'wide'"),
        ("config.json", ("vision_config", "model_type"), [1], "cannot be loaded by its config.json"),
        ("config.json", ("text_config", "num_hidden_layers"), 10**9, r"num_hidden_layers.* \(?1000000000"),
        ("config.json", ("vision_config", "depth"), 0, "vision_config.depth in config.json is 0; 1 to 1000"),
        ("config.json", ("text_config", "vocab_size"), 7, "the weights cannot be loaded by its config.json"),
        ("config.json", ("image_token_id",), 10**9, "image_token_id is 1000000000 in .* rows 0 to"),
        (
            "generation_config.json",
            ("eos_token_id",),
            ["end"],
            "eos_id is 'end' in config.json or generation",
        ),
        ("generation_config.json", ("eos_token_id",), [], "has an eos_token_id; add it"),
        ("generation_config.json", ("pad_token_id",), {}, "the weights cannot be loaded"),
        ("tokenizer.json", ("added_tokens",), [5], "tokenizer cannot be loaded .*Copy the tokenizer files"),
        ("tokenizer.json", ("model", "vocab"), [1, 2], "tokenizer cannot be loaded .*expected a map"),
        ("tokenizer_config.json", ("pad_token",), 3, "tokenizer cannot be loaded .*pad_token has to be"),
    ]
    for name, (*parents, key), value, message in cases:
        folder = tmp_path / "odd"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "saved", folder)
        content = inner = json.loads((folder / name).read_text())
        for parent in parents:
            inner = inner[parent]
        inner[key] = value
        (folder / name).write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message) as error:
            load_checkpoint(folder)
        assert "odd" in str(error.value)


def test_tokenizer_of_another_checkpoint(saved: Path) -> None:
    tiny_tokenizer().save_pretrained(saved)
    with pytest.raises(CheckpointError, match=r"in config\.json and None in the tokenizer"):
        load_checkpoint(saved)


def test_places_that_do_not_exist(saved: Path) -> None:
    for place in ("/nowhere/at/all", "./nowhere", "a/b/c", "nowhere"):
        with pytest.raises(CheckpointError, match="no such folder"):
            load_checkpoint(place)
    with pytest.raises(CheckpointError, match="has no folder dift"):
        load_checkpoint(saved, "dift")


def test_latent_ids_beyond_the_matrix(saved: Path) -> None:
    edit(saved / "config.json", latent_end_id=4000)
    with pytest.raises(CheckpointError, match=r"4000.*do not fit the embedding matrix"):
        load_checkpoint(saved)


def lora(checkpoint: Checkpoint, **options: Any) -> Checkpoint:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)
    backbone = checkpoint.backbone
    adapted = type(backbone)(get_peft_model(backbone.hf, config), backbone.latents)
    return Checkpoint(adapted, checkpoint.tokenizer, checkpoint.policy, checkpoint.style)


def hidden(backbone: Backbone) -> torch.Tensor:
    batch = {"input_ids": torch.arange(12)[None], "position_ids": torch.arange(12).expand(3, 1, -1)}
    with torch.no_grad():
        return backbone(batch, lambda _, hidden, __: hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_base_and_adapter_are_kept_apart(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    """What is loaded is the policy that was saved, bit for bit."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "wide", tiny_checkpoint(family=family))
    plain = load_checkpoint(tmp_path / "wide", dtype=dtype)
    save_checkpoint(tmp_path / "plain", plain)
    before = hidden(plain.backbone)
    backbone = (checkpoint := lora(plain)).backbone
    save_checkpoint(tmp_path / "c", checkpoint)
    assert names(tmp_path / "c") == FILES | {"adapter"}
    loaded = load_checkpoint(tmp_path / "c").backbone
    assert loaded.dtype == dtype
    assert torch.equal(hidden(loaded), hidden(backbone))
    assert not torch.allclose(hidden(loaded), before, atol=1e-3)
    with loaded.without_adapter():
        assert torch.equal(hidden(loaded), before)
    weights = "model.safetensors"
    assert (tmp_path / "c" / weights).read_bytes() == (tmp_path / "plain" / weights).read_bytes()

    save_checkpoint(tmp_path / "again", load_checkpoint(tmp_path / "c"))
    assert torch.equal(hidden(load_checkpoint(tmp_path / "again").backbone), hidden(backbone))
    backbone.model.merge_adapter()
    with pytest.raises(CheckpointError, match=r"merged into .* in memory, .* call unmerge_adapter\(\) first"):
        save_checkpoint(tmp_path / "merged", checkpoint)


def test_a_broken_adapter_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", lora(tiny_checkpoint()))
    file = tmp_path / "c" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="adapter: the adapter cannot be loaded"):
        load_checkpoint(tmp_path / "c")
    file.unlink()
    with pytest.raises(
        CheckpointError, match=r"has adapter/adapter_config\.json and no adapter/adapter_model"
    ):
        load_checkpoint(tmp_path / "c")


def test_an_adapter_is_merged_in_float32(tmp_path: Path) -> None:
    """A young adapter is far below the last bit of bfloat16 weights: merged in float32 it is whole."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "wide", tiny_checkpoint())
    checkpoint = lora(load_checkpoint(tmp_path / "wide", dtype=torch.bfloat16))
    for name, parameter in checkpoint.backbone.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(1e-4)
    save_checkpoint(tmp_path / "c", checkpoint)
    reference = load_checkpoint(tmp_path / "c", dtype=torch.float32).backbone
    wide, lost = merge_adapter(load_checkpoint(tmp_path / "c").backbone, torch.float32)
    assert lost < 1e-2
    torch.testing.assert_close(hidden(wide), hidden(reference), atol=1e-5, rtol=1e-5)
    narrow, lost = merge_adapter(load_checkpoint(tmp_path / "c").backbone, torch.bfloat16)
    assert lost > 0.9
    assert narrow.dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="nothing to merge"):
        merge_adapter(wide, torch.float32)


def test_adapters_that_cannot_be_merged() -> None:
    with pytest.raises(CheckpointError, match="more than a sum of weights"):
        merge_adapter(lora(tiny_checkpoint(), use_dora=True).backbone, torch.float32)
    with pytest.raises(CheckpointError, match="output head is adapted"):
        _ = lora(tiny_checkpoint(tied=False), modules_to_save=["lm_head"]).backbone.head_weight
