"""VLMEvalKit is on no package index: a stand-in of its table and base class, and its way to call a model."""

import sys
import types
from typing import Any

import pytest

from fourdthinker.frames import FramePolicy
from fourdthinker.thinker import Thinker
from tests.clips import make_clip
from tests.tiny import tiny_checkpoint

SCRIPT = """
import sys
from vlmeval.config import supported_VLM
assert sys.argv[1:] == ["--data", "DSRBench_1fps", "--model", "fourdthinker"], sys.argv
model = supported_VLM["fourdthinker"]()
for video in ("gone.mp4", BROKEN, VIDEO):
    ASKED.append(model.generate_inner([
        {"type": "text", "value": "watch"}, {"type": "video", "value": video},
        {"type": "text", "value": "where"}], dataset="DSRBench_1fps"))
"""


@pytest.fixture
def kit(monkeypatch):
    names = ("vlmeval", "vlmeval.config", "vlmeval.vlm", "vlmeval.vlm.base")
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}
    modules["vlmeval.config"].supported_VLM = {}
    modules["vlmeval.vlm.base"].BaseModel = type("BaseModel", (), {})
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "fourdthinker.integrations.vlmeval", raising=False)
    monkeypatch.setattr(sys, "argv", ["test"])
    yield
    sys.modules.pop("fourdthinker.integrations.vlmeval", None)


def test_its_script_runs_with_one_more_model(kit, tmp_path, monkeypatch, caplog):
    """A video that is missing or damaged costs its question, and the others are answered."""
    from fourdthinker.integrations.vlmeval import main

    policy = FramePolicy(fps=2, max_frames=4, max_pixels=64 * 64, min_pixels=56 * 56, factor=28)
    tiny_checkpoint(tmp_path / "checkpoint", policy=policy)
    clip = make_clip(tmp_path / "clip.mp4", range(0, 2000, 167))
    script, asked = tmp_path / "run.py", []
    script.write_text(SCRIPT)
    import builtins

    monkeypatch.setattr(builtins, "ASKED", asked, raising=False)
    monkeypatch.setattr(builtins, "VIDEO", str(clip), raising=False)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    monkeypatch.setattr(builtins, "BROKEN", str(tmp_path / "broken.mp4"), raising=False)
    ours = ["--pretrained", str(tmp_path / "checkpoint"), "--device", "cpu", "--max-new-tokens", "9"]
    main([str(script), *ours, "--data", "DSRBench_1fps", "--model", "fourdthinker"])
    thinker = Thinker.from_pretrained(tmp_path / "checkpoint", device="cpu")
    from fourdthinker.integrations.replies import sampling

    assert asked == ["", "", thinker.generate(clip, "watch\nwhere", config=sampling(9)).text]
    said = [record.getMessage() for record in caplog.records]
    assert any("gone.mp4: no such file" in line for line in said)
    assert "2 of 2 questions have no answer so far" in said


def test_a_script_that_is_not_there_is_named(kit, capsys):
    from fourdthinker.integrations.vlmeval import main

    with pytest.raises(SystemExit):
        main(["nowhere/run.py", "--pretrained", "x"])
    assert "nowhere/run.py: no such file; name run.py" in capsys.readouterr().err
