"""The demo replaces what is its own, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourdthinker.demo import work as demo_work
from fourdthinker.demo.pipeline import check_is_demo, run_demo
from fourdthinker.demo.settings import quick_settings
from fourdthinker.demo.work import StoppedError, Work
from fourdthinker.errors import ConfigError, OutputError
from fourdthinker.files import write_json


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A folder `render` is removed before scenes are rendered anew."""
    (tmp_path / "render").mkdir()
    (tmp_path / "render" / "mine.blend").write_text("weeks of work")
    with pytest.raises(ConfigError, match=f"{tmp_path} holds other things than a demo; name a new or empty"):
        run_demo(tmp_path, quick=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["render", "mine.blend"]


@pytest.mark.parametrize("settings", ["", "[]", '{"editor.tabSize": 4}', "\0", None])
def test_settings_of_something_else_are_no_demo(settings: str | None, tmp_path: Path) -> None:
    if settings is None:
        (tmp_path / "settings.json").mkdir()
    else:
        (tmp_path / "settings.json").write_text(settings)
    with pytest.raises(ConfigError, match="holds other things than a demo"):
        check_is_demo(tmp_path)


def test_a_demo_an_empty_and_a_new_folder_are_taken(tmp_path: Path) -> None:
    check_is_demo(tmp_path)
    check_is_demo(tmp_path / "new")
    (tmp_path / ".fourdthinker-0123456789ab.part").write_text("{")  # killed while it wrote the settings
    check_is_demo(tmp_path)
    write_json(tmp_path / "settings.json", quick_settings().to_dict())
    (tmp_path / "render").mkdir()
    check_is_demo(tmp_path)


def test_a_second_demo_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It removed the clips that the first one trains on."""
    said: list[str] = []

    def render(run: Path, *_: object) -> None:
        with pytest.raises(
            OutputError, match=f"{tmp_path}: another process is writing this folder"
        ) as caught:
            run_demo(tmp_path, quick=True)
        said.append(str(caught.value))
        raise KeyboardInterrupt

    monkeypatch.setattr("fourdthinker.demo.pipeline.render_scenes", render)
    for _ in range(2):  # the lock ends with the run, and is no other thing than a demo
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path, quick=True)
        (tmp_path / "settings.json").unlink()
    assert len(said) == 2


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=f"{tmp_path / 'file'} is not a folder"):
        run_demo(tmp_path / "file" / "demo", quick=True)


def test_a_training_that_a_signal_ended_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base phase went on with the weights of half the training, and was noted as finished."""
    settings = quick_settings()
    work = Work(tmp_path, settings, 0, 1)
    monkeypatch.setattr(demo_work, "LazySamples", lambda *_: [])
    monkeypatch.setattr(Work, "records", lambda *_: [])
    monkeypatch.setattr(demo_work, "train_dift", lambda *_, **__: tmp_path / "base" / "checkpoint-3")
    with pytest.raises(StoppedError, match=r"a signal ended the training at .*checkpoint-3"):
        work.base()
