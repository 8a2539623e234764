"""Which questions a command asks: --bench and --data, and questions that are there twice."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from fourdthinker.cli import evaluate, latents
from fourdthinker.cli.questions import add_questions, questions, take_data
from fourdthinker.errors import ConfigError


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_questions(parser)
    arguments = parser.parse_args(words)
    take_data(arguments)
    return arguments


def records(path: Path, *lines: dict) -> str:
    line = {"video_path": "a.mp4", "Question": "Where to?", "A": "left", "B": "right", "Correct": "A"}
    path.with_name("a.mp4").write_bytes(b"video")
    path.write_text("".join(json.dumps(line | one) + "\n" for one in lines))
    return str(path)


def test_bench_takes_a_file_of_records(tmp_path):
    path = records(tmp_path / "own.jsonl", {"id": "a"})
    asked, left_out, bench = questions(parse("--bench", path))
    assert ([record.id for record in asked], left_out, bench) == (["a"], {}, None)
    assert [record.id for record in questions(parse("--data", path))[0]] == ["a"]
    with pytest.raises(ConfigError, match="is the data already; leave out --data"):
        parse("--bench", path, "--data", path)
    for words in ((), ("--bench", "vlm4d")):
        with pytest.raises(ConfigError, match="no --data"):
            parse(*words)
    with pytest.raises(SystemExit):
        parse("--bench", str(tmp_path / "none"))


def test_a_question_of_the_users_under_two_ids_is_named_and_asked_once(tmp_path, caplog):
    lines = [{"id": "a"}, {"id": "b"}, {"id": "c", "Question": "And then?"}]
    lines += [{"id": "d", "Question": "When?"}, {"id": "e", "Question": "When?", "Correct": "B"}]
    asked, left_out, _ = questions(parse("--data", records(tmp_path / "own.jsonl", *lines)))
    assert [record.id for record in asked] == ["a", "c"]
    assert list(left_out) == ["b", "d", "e"]
    assert "left out: b: the same question as a" in caplog.text
    assert "left out: d: the same question as e, with another answer" in caplog.text
    assert "left out: e: the same question as d, with another answer" in caplog.text


@pytest.mark.parametrize(("protocol", "samples"), [("own", 4), ("easi", 0)])
def test_easis_protocol_is_greedy_unless_samples_are_asked_for(monkeypatch, tmp_path, protocol, samples):
    asked = []
    monkeypatch.setattr(evaluate, "_evaluate", lambda arguments, *_: asked.append(arguments.samples))
    parser = argparse.ArgumentParser()
    evaluate.add(parser.add_subparsers())
    words = ["eval", "--checkpoint", "c", "--data", records(tmp_path / "own.jsonl", {"id": "a"})]
    words += ["--protocol", protocol, "--out", str(tmp_path / "out")]
    for more in ([], ["--samples", "2"]):
        arguments = parser.parse_args(words + more)
        arguments.run(arguments)
    assert asked == [samples, 2]
    assert latents.take_data is evaluate.take_data  # both commands read questions in one way
