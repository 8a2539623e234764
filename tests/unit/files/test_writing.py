"""Files are written whole, through links, by one process; what stops that is said by name."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fourdthinker.errors import OutputError
from fourdthinker.files import (
    JsonLines,
    append_lines,
    atomic_writer,
    check_folder,
    check_output,
    make_folder,
    write_bytes,
    write_json,
    write_text,
)
from tests.full_disk import largest_file

WRITERS = {
    "write_text": lambda path: write_text(path, "new"),
    "write_bytes": lambda path: write_bytes(path, b"new"),
    "append_lines": lambda path: append_lines(path, [{"new": 1}]),
    "JsonLines": lambda path: JsonLines(path).close(),
    "check_output": check_output,
}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_what_is_no_regular_file_is_refused_by_name(write: object, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, said in (
        ("/dev/null", "/dev/null is a device, not a regular file; name a file"),
        (tmp_path / "link", "link is a device"),
        (tmp_path / "folder", "folder is a folder"),
        (tmp_path / "pipe", "pipe is a named pipe"),
        (tmp_path / "loop", "loop: cannot be written"),
        (tmp_path / "pipe" / "x.html", "pipe is not a folder, and one is needed; name another"),
        ("", "the path is empty; name what to write"),
        (tmp_path / "none" / "x.html", "x.html: the folder .*none does not exist; create it"),
    ):
        with pytest.raises(OutputError, match=said):
            write(path)  # type: ignore[operator]
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link", "loop", "pipe"]


@pytest.mark.parametrize("write", list(WRITERS.values())[:4], ids=list(WRITERS)[:4])
def test_a_link_stays_and_its_target_is_written(write: object, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep" / "target", tmp_path / "link"
    link.symlink_to("deep/target")  # dangling at first
    for _ in range(2):
        write(link)  # type: ignore[operator]
        assert link.is_symlink()
        assert target.is_file()
    assert os.listdir(tmp_path / "deep") == ["target"]


def test_permissions_are_kept_and_new_files_follow_the_umask(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        for path in (old, new):
            write_text(path, "text")
        append_lines(tmp_path / "lines", [1])
    finally:
        os.umask(before)
    assert [mode(path) for path in (old, new, tmp_path / "lines")] == [0o640, 0o640, 0o640]
    old.chmod(0o604)
    with JsonLines(old) as file:
        file.keep([b"{}"])
    assert mode(old) == 0o604


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_writer(path) as file:
        file.writelines([b"half", 1])  # type: ignore[list-item]
    with largest_file(100), pytest.raises(OutputError, match=r"file: cannot be written \(File too large\)"):
        write_text(path, "x" * 200)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_a_journal_of_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with JsonLines(path) as file:
        file.append([{"id": "a"}])
        before = path.read_bytes()
        with largest_file(100), pytest.raises(OutputError, match="journal: cannot be written"):
            file.append([{"id": "x" * 200}])
        assert path.read_bytes() == before
        with largest_file(100), pytest.raises(OutputError, match="journal: cannot be written"):
            file.keep([b"1" * 200])
        assert path.read_bytes() == before
        file.append([{"id": "b"}])
    assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == ["a", "b"]


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_path_that_cannot_be_is_refused(name: str) -> None:
    for write in (make_folder, check_folder, check_output, lambda path: write_text(path, "")):
        with pytest.raises(OutputError, match=r"the path is empty|holds NUL"):
            write(name)


def test_a_folder_is_looked_at_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, message in (
        ("file", "is not a folder, and one is needed"),
        ("file/below", "is not a folder, and one is needed"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises(OutputError, match=message):
            check_folder(tmp_path / name)
    check_folder(tmp_path / "new" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folders_are_made_or_refused_by_name(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is not a folder"):
        make_folder(tmp_path / "file")
    for deeper in ("b", "b/c"):
        with pytest.raises(OutputError, match=r"file is not a folder, and one is needed"):
            make_folder(tmp_path / "file" / deeper)
    with pytest.raises(OutputError, match="the path is empty; name what to write"):
        make_folder("")


def test_text_and_json_of_any_characters(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "a\u2028é\udc80")
    assert (tmp_path / "text").read_bytes() == "a\u2028é\\udc80".encode()
    with JsonLines(tmp_path / "lines") as file:
        file.append([{"a": "\u2028é\udc80"}])
        assert [json.loads(line) for line in file.lines()] == [{"a": "\u2028é\udc80"}]
    path = write_json(tmp_path / "deep" / "values.json", {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("data", "lines", "kept"),
    [
        (b"", [], b""),
        (b'{"id": 1}\n', [b'{"id": 1}'], b'{"id": 1}\n'),
        (b'{"id": 1}\n{"id', [b'{"id": 1}'], b'{"id": 1}\n'),
        (b'{"id": 1}\n{', [b'{"id": 1}'], b'{"id": 1}\n'),
        (b'{"id": 1}', [b'{"id": 1}'], b'{"id": 1}\n'),  # killed before the newline
        (b"hello", [b"hello"], b"hello\n"),  # nobody's half line
    ],
)
def test_a_half_line_goes_and_a_whole_one_stays(
    data: bytes, lines: list[bytes], kept: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    path.write_bytes(data)
    with JsonLines(path) as file:
        assert file.lines() == lines
        assert path.read_bytes() == data  # reading changes nothing
        file.keep(lines)
        assert path.read_bytes() == kept
        file.append([{"id": 2}])
    assert path.read_bytes() == kept + b'{"id": 2}\n'


def test_a_half_line_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n{"a"')
    append_lines(path, [{"a": 2}])
    assert path.read_bytes() == b'{"a": 1}\n{"a"\n{"a": 2}\n'


def test_a_file_is_replaced_only_if_a_line_must_go(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"id": 1}\n{"id": 2}\n{"id')
    inode = path.stat().st_ino
    with JsonLines(path) as file:
        file.keep(file.lines())
        file.append([{"id": 3}])
        assert path.stat().st_ino == inode
        file.keep([line for line in file.lines() if b"2" not in line])
        file.append([{"id": 4}])
        assert path.stat().st_ino != inode
    assert path.read_bytes() == b'{"id": 1}\n{"id": 3}\n{"id": 4}\n'


WORKER = """
import sys, time
from fourdthinker.errors import OutputError
from fourdthinker.files import JsonLines
name, path = sys.argv[1:]
written = 0
for number in range(200):
    while True:
        try:
            with JsonLines(path) as file:
                lines = file.lines()
                file.keep([line for line in lines if b"drop" not in line])
                file.append([{"id": f"{name}{number}-{k}"} for k in range(5)] + [{"drop": 1}])
            break
        except OutputError as error:
            assert "another process" in str(error), error
            time.sleep(0.0002)
"""


def test_two_processes_lose_no_line(tmp_path: Path) -> None:
    """Both rewrite and append at every turn: 2,000 lines, each once, and none cut."""
    path = tmp_path / "journal"
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, name, str(path)], cwd=Path(__file__).parents[3])
        for name in "ab"
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    found = [json.loads(line) for line in path.read_text().splitlines()]
    ids = [line["id"] for line in found if "id" in line]
    assert sorted(ids) == sorted(f"{name}{i}-{k}" for name in "ab" for i in range(200) for k in range(5))
    assert len(found) == 2001


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    code = (
        "import os, sys; from fourdthinker.files import JsonLines; "
        "file = JsonLines(sys.argv[1]); file.append([{'id': 1}]); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    with JsonLines(path) as file:
        assert file.lines() == [b'{"id": 1}']
