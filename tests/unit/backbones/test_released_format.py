"""Checkpoints open in transformers 4.57, and so in what is built on it.

The test needs its packages in a folder of their own, which `FOURDTHINKER_TRANSFORMERS_4` names, as
`make test LANE=others` makes it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fourdthinker.backbones import FAMILIES, load_checkpoint
from tests.tiny import tiny_checkpoint

PACKAGES = os.environ.get("FOURDTHINKER_TRANSFORMERS_4")
READ = """
import sys, torch, transformers
from transformers import AutoTokenizer, AutoModelForImageTextToText
assert transformers.__version__.startswith("4.57"), transformers.__version__
folder = sys.argv[1]
model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
with torch.no_grad():
    torch.save(model(input_ids=torch.arange(20)[None]).logits, folder + "/logits.pt")
ids = AutoTokenizer.from_pretrained(folder)("the <|latent_start|><|latent_pad|> moves<|im_end|>").input_ids
open(folder + "/ids.txt", "w").write(" ".join(map(str, ids)))
"""


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_keys_are_those_of_the_released_format(tmp_path: Path, family: str, tied: bool) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c", family=family, tied=tied)
    text = json.loads((tmp_path / "c" / "config.json").read_text())["text_config"]
    rope = checkpoint.backbone.config.text_config.rope_parameters
    assert text["rope_theta"] == rope["rope_theta"]
    assert text["rope_scaling"]["mrope_section"] == rope["mrope_section"]
    assert text["tie_word_embeddings"] is tied
    tokenizer = json.loads((tmp_path / "c" / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(tokenizer.get("extra_special_tokens"), list)
    again = load_checkpoint(tmp_path / "c")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = checkpoint.backbone.hf(input_ids=ids).logits
        assert torch.equal(again.backbone.hf(input_ids=ids).logits, expected)


@pytest.mark.skipif(PACKAGES is None, reason="needs transformers 4: make test LANE=others")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_transformers_4_reads_the_same_model(tmp_path: Path, family: str, tied: bool) -> None:
    folder = tmp_path / "c"
    checkpoint = tiny_checkpoint(folder, family=family, tied=tied)
    command, environment = (
        [sys.executable, "-c", READ, str(folder)],
        os.environ | {"PYTHONPATH": str(PACKAGES)},
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        expected = checkpoint.backbone.hf(input_ids=torch.arange(20)[None]).logits
    got = torch.load(folder / "logits.pt", weights_only=True)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    text = "the <|latent_start|><|latent_pad|> moves<|im_end|>"
    ids = [int(i) for i in (folder / "ids.txt").read_text().split()]
    assert ids == checkpoint.tokenizer(text).input_ids
