"""Folders that one command writes from nothing: two at the same time, failures, what is there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourdthinker import cli
from fourdthinker.errors import ConfigError, OutputError
from fourdthinker.files import check_new_folder, folders, new_folder


@pytest.mark.parametrize("command", ["init", "convert"])
def test_a_second_command_is_refused_by_name(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with new_folder(out):
        assert cli.main([command, str(tmp_path / "model"), str(out)]) == 2
        assert f"{out}: another process is writing this folder; wait" in capsys.readouterr().err
        (out / "config.json").write_text("{}")
    assert cli.main([command, str(tmp_path / "model"), str(out)]) == 2
    assert f"{out} is not empty; name a new folder" in capsys.readouterr().err


def test_what_another_process_wrote_before_the_lock_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked at the folder, and the other was the quicker one."""
    out, locked = tmp_path / "out", folders._locked

    def late(path: Path) -> int:
        out.mkdir()
        (out / "config.json").write_text("theirs")
        return locked(path)

    monkeypatch.setattr(folders, "_locked", late)
    with pytest.raises(ConfigError, match="is not empty"), new_folder(out):
        pass
    assert (out / "config.json").read_text() == "theirs"


def test_a_folder_that_stays_empty_by_a_failure_is_taken_away(tmp_path: Path) -> None:
    for name, there in (("new", False), ("empty", True)):
        if there:
            (tmp_path / name).mkdir()
        with pytest.raises(OutputError, match="full"), new_folder(tmp_path / name):
            raise OutputError("full")
        assert (tmp_path / name).exists() is there
    (tmp_path / "half").mkdir()
    with new_folder(tmp_path / "half") as out:
        (out / "config.json").write_text("{}")
    assert (tmp_path / "half" / "config.json").exists()


def test_a_check_makes_nothing(tmp_path: Path) -> None:
    check_new_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        check_new_folder(tmp_path / "file")
