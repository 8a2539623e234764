"""Runs where lmms-eval is installed: its own registry, task objects and scoring."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
pytest.importorskip("datasets", reason="datasets are not installed")

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from PIL import Image

from fourdthinker.backbones import load_checkpoint
from fourdthinker.errors import ConfigError
from fourdthinker.frames import FramePolicy
from fourdthinker.integrations.lmms_eval import MANIFEST, FourDThinker
from fourdthinker.thinker import Thinker
from tests.clips import make_clip
from tests.tiny import tiny_checkpoint

TASK = """
task: tiny_motion
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_visual: !function motion.shown
doc_to_text: question
doc_to_messages: !function motion.messages
doc_to_target: answer
process_results: !function motion.score
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """
from PIL import Image
def shown(doc):
    return [Image.open(doc["video"]) if doc["video"].endswith(".png") else doc["video"]]
def messages(doc, lmms_eval_specific_kwargs=None):
    kind = "image" if doc["video"].endswith(".png") else "video"
    parts = [{"type": kind, "url": shown(doc)[0]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": parts}]
def score(doc, results):
    return {"exact": float(results[0] == doc["answer"])}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    policy = FramePolicy(fps=2, max_frames=4, max_pixels=64 * 64, min_pixels=56 * 56, factor=28)
    tiny_checkpoint(folder, policy=policy)
    return folder


def test_the_entry_point_names_the_model():
    from importlib.metadata import EntryPoint

    from lmms_eval.models.registry_v2 import ModelRegistryV2

    point = EntryPoint("fourdthinker", "fourdthinker.integrations.lmms_eval:MANIFEST", "lmms_eval.models")
    registry = ModelRegistryV2()
    registry.register_manifest(point.load())
    assert registry.get_model_class("fourdthinker") is FourDThinker
    assert MANIFEST.model_id == "fourdthinker"


def test_a_task_of_lmms_eval_runs_and_scores_what_the_model_says(checkpoint, tmp_path):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    clip = make_clip(tmp_path / "clip.mp4", range(0, 2000, 167))
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "still.png")
    thinker = Thinker(load_checkpoint(checkpoint))
    model = FourDThinker(str(checkpoint), device="cpu", max_new_tokens=12, whole_text=True)
    texts = [
        thinker.generate(clip, "where does it go", config=model._config({})).text,
        thinker.generate(None, "what moves", images=[tmp_path / "still.png"], config=model._config({})).text,
    ]
    rows = [
        {"video": str(clip), "question": "where does it go", "answer": texts[0].strip()},
        {"video": str(tmp_path / "still.png"), "question": "what moves", "answer": texts[1].strip()},
        {"video": str(clip), "question": "where does it go", "answer": "something else"},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny_motion.yaml").write_text(TASK.format(data=data))
    (tmp_path / "motion.py").write_text(FUNCTIONS)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False, model_name="fourdthinker")
    results = simple_evaluate(
        model, tasks=["tiny_motion"], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    assert results["results"]["tiny_motion"]["exact,none"] == pytest.approx(2 / 3)


def test_the_documented_command_finds_model_and_task(checkpoint, tmp_path):
    """In a process of its own, with nothing but the entry point to say where the model is."""
    clip = make_clip(tmp_path / "clip.mp4", range(0, 2000, 167))
    data = tmp_path / "rows.jsonl"
    rows = [{"video": str(clip), "question": question, "answer": ""} for question in ("where", "what")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny_motion.yaml").write_text(TASK.format(data=data))
    (tmp_path / "motion.py").write_text(FUNCTIONS)
    command = [
        sys.executable, "-m", "lmms_eval", "--model", "fourdthinker",
        "--model_args", f"pretrained={checkpoint},device=cpu", "--tasks", "tiny_motion", "--batch_size", "16",
        "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("*_results.json")
    assert "exact,none" in json.loads(results.read_text())["results"]["tiny_motion"]
    (samples,) = (tmp_path / "out").rglob("*_samples_tiny_motion.jsonl")
    assert len(samples.read_text().splitlines()) == 2


def test_an_empty_line_ends_no_answer(checkpoint):
    model = FourDThinker(str(checkpoint), device="cpu")
    config = model._config({"until": ["\n\n"], "max_new_tokens": 4, "temperature": 0, "do_sample": False})
    assert config.stop_strings == ()
    assert (config.max_new_tokens, config.temperature) == (4, 0.0)


def test_repeats_differ_and_a_missing_file_costs_its_question(checkpoint, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", range(0, 2000, 167))
    model = FourDThinker(str(checkpoint), device="cpu", max_new_tokens=12, whole_text=True)
    docs = [{"video": str(clip)}, {"video": str(tmp_path / "nowhere.mp4")}]
    model.task_dict = {"t": {"test": docs}}

    def messages(doc):
        return [
            {
                "role": "user",
                "content": [{"type": "video", "url": doc["video"]}, {"type": "text", "text": "go"}],
            }
        ]

    settings = {"max_new_tokens": 12, "temperature": 1.0, "do_sample": True, "top_p": 0}
    requests = [
        Instance(
            "generate_until", ("", messages, settings, doc, "t", "test"), 0,
            {"task": "t", "doc_id": doc, "repeats": 2},
        )
        for doc in (0, 0, 1)
    ]  # fmt: skip
    first, second, missing = model.generate_until(requests)
    assert first.text != second.text
    assert missing.text == ""
    assert model.device.type == "cpu"


def test_arguments_and_tasks_that_do_not_fit_are_named(checkpoint):
    with pytest.raises(ConfigError, match="max_frames unknown"):
        FourDThinker(str(checkpoint), max_frames=3)
    with pytest.raises(ConfigError, match="batch_size is auto"):
        FourDThinker(str(checkpoint), batch_size="auto")
    with pytest.raises(ConfigError, match="dtype is int8; give auto, float32, bfloat16, float16"):
        FourDThinker(str(checkpoint), dtype="int8")
    half = FourDThinker(str(checkpoint), device="cpu", dtype="bfloat16")
    assert half.thinker.checkpoint.backbone.dtype == torch.bfloat16
