"""What CONTRIBUTING.md shows works: all its diffs are applied to a copy of the project, and used there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fourdthinker import _video as native
from tests.unit.test_contributing import DIFFS, ROOT

LOSS = """
import torch
from fourdthinker.kernels import GrpoOptions, grpo_token_loss
options = GrpoOptions(loss_type="cispo_budget", beta=0.0, max_length=10)
logprobs, old = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-0.5, -2.0]])
loss, _ = grpo_token_loss(logprobs, torch.tensor([2.0]), torch.ones(1, 2).bool(), options, old_logprobs=old)
expected = -2 * (torch.tensor(-0.5).exp() * -1.0 + 1.0 * -2.0) / 10
assert torch.allclose(loss, expected), (loss, expected)
"""
METRIC = """
import torch
from fourdthinker.kernels import GrpoOptions, grpo_token_loss
mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
_, metrics = grpo_token_loss(torch.full((2, 3), -1.0), torch.tensor([2.0, -1.0]), mask, GrpoOptions(beta=0.0))
assert torch.allclose(metrics["advantage"], torch.tensor((2 * 2 - 3) / 5)), metrics
"""
FAMILY = """
import sys, torch
from importlib import import_module
from fourdthinker.backbones import FAMILIES
from tests.tiny import tiny_checkpoint
transformers = sys.modules["transformers"]
transformers.MyVLForConditionalGeneration = transformers.Qwen2_5_VLForConditionalGeneration
module, name = FAMILIES["my_vl"]
made = tiny_checkpoint("qwen2_5_vl")
mine = getattr(import_module(module), name)(made.backbone.model, made.backbone.latents)
theirs = made.backbone
patches, grid = torch.randn(16, 1176), torch.tensor([[1, 4, 4]])
assert mine.vision.family == "my_vl" and mine.default_policy() == theirs.default_policy()
assert mine.processor_files(mine.default_policy()).keys() == {"preprocessor_config.json"}
assert torch.equal(mine.encode_vision(patches, grid), theirs.encode_vision(patches, grid))
"""
CODEC = """
import sys, av, numpy as np
from fourdthinker.frames import FramePolicy, read_frames
from fourdthinker.frames.codecs import codec_of
assert codec_of("cinepak").flushes
path, noise = sys.argv[1], np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), np.uint8)
with av.open(path, "w") as container:
    stream = container.add_stream("cinepak", rate=10, options={"g": "4"})
    stream.width, stream.height, stream.pix_fmt = 128, 96, "rgb24"
    for picture in noise.repeat(16, 1).repeat(16, 2):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode())
every = read_frames(path, FramePolicy(fps=10.0, max_frames=100)).pixels
some = read_frames(path, FramePolicy(fps=2.0, max_frames=100)).pixels
assert len(every) == 12 and (some == every[::5][: len(some)]).all() and len(some) >= 2
"""
REWARD = """
from fourdthinker.reward_calls import load_reward
from fourdthinker.rewards import brevity_reward
assert brevity_reward("x" * 1000, None) == 0.75
assert load_reward("fourdthinker.rewards:brevity_reward").name == "brevity_reward"
"""
ARCHITECTURE = """
from fourdthinker.kernels._gpu_architectures import ARCHITECTURES, row
assert row("sample_draw", 120).num_warps == 8 and row("silu_mul", 120) == row("silu_mul", None)
"""
USES = {
    "A loss type": LOSS, "A metric of GRPO": METRIC, "A model family": FAMILY, "A codec": CODEC,
    "A reward": REWARD, "A GPU architecture": ARCHITECTURE,
}  # fmt: skip


# In one process, for the sake of time. An editable installation would answer for the copy.
ALL = """
import json, sys, traceback
sys.meta_path[:] = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
sys.path.insert(0, ".")
import fourdthinker
assert fourdthinker.__file__.startswith(sys.argv[2]), fourdthinker.__file__
failed = {}
for title, code in json.loads(sys.argv[3]).items():
    try:
        exec(code, {})
    except Exception:
        failed[title] = traceback.format_exc()
print(json.dumps(failed))
"""
PYTEST = """
import pytest
assert not pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", "type or side", {!r}])
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows of the project, with every diff applied."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("copy") / "project"
    git = ["git", "-C", str(ROOT)]
    subprocess.run([*git, "checkout-index", "--all", f"--prefix={copy}/"], check=True)
    (copy / "fourdthinker" / Path(native.__file__).name).symlink_to(native.__file__)
    for diff in DIFFS.values():
        subprocess.run(["git", "apply", "--recount", "-"], cwd=copy, input=diff, text=True, check=True)
    return copy


def test_what_was_added_works(changed: Path, tmp_path: Path) -> None:
    questions = PYTEST.format("tests/unit/synth/questions/test_questions.py")
    uses = json.dumps(USES | {"A family of questions": questions})
    command = [sys.executable, "-c", ALL, str(tmp_path / "made.avi"), str(changed), uses]
    done = subprocess.run(command, cwd=changed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout.splitlines()[-1])
    assert not failed, done.stdout + "\n".join(failed.values())


def test_all_additions_are_used() -> None:
    assert {*USES, "A family of questions"} == {*DIFFS}
