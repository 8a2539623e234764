"""EASI's protocol on five rows of its TSV: prompt text, frame indices, and letters of stored replies."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fourdthinker import cli
from fourdthinker.errors import RecordError, VideoError
from fourdthinker.evaluate import AnsweredQuestion, easi_protocol, read_benchmark
from fourdthinker.evaluate.easi import easi_letter
from fourdthinker.evaluate.easi_protocol import EasiEncoder, check_easi, easi_indices
from fourdthinker.frames import FramePolicy, Frames, read_frames
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.records import Record
from fourdthinker.sampler import Rollout
from tests.tiny import tiny_checkpoint

# index, video, question, options, answer, task_type; the options as JSON and as a Python list.
ROWS = (
    ("0", "a.mp4", "How far is it?", '["A. larger", "B. smaller", "C. same", "D. none"]', "B", "abs_dis"),
    ("1", "a.mp4", "Which way?", "['A. Left', 'B. Right|Above', 'C. Front', 'D. Behind']", "A", "rel_dir"),
    ("2", "a.mp4", "Who?", '["A. the dog", "B. a cat", "C. both", "D. (1) it\'s equal"]', "D", "abs_spd"),
    ("3", "b.mp4", "What moves?", '["A. x", "B. y", "C. z", "D. w"]', "C", "non_temp"),
    ("4", "b.mp4", "Where?", '["A. x", "B. y", "C. z", "D. w"]', "A", "abs_ori"),
)  # fmt: skip
REPLIES = ("B", "The answer is A.", "**D**", "<think>the cat</think>\nC. z", "I cannot tell")
LETTERS = ("B", "A", "D", "C", None)
BEFORE = (
    "\nThese are the frames of a video. Select the best answer to the following multiple-choice question "
    "based on the video. Respond with only the letter (A, B, C, or D) of the correct option.\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TSV, and its two videos: 26 pictures at 8 a second, and half a second; picture k is k * 9 grey."""
    folder = tmp_path_factory.mktemp("easi")
    for name, pictures in (("a", 26), ("b", 4)):
        with av.open(str(folder / f"{name}.mp4"), "w") as out:
            stream = out.add_stream("mpeg4", rate=8)
            stream.width = stream.height = 56
            stream.pix_fmt = "yuv420p"
            for k in range(pictures):
                grey = np.full((56, 56, 3), 9 * k, dtype=np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            out.mux(stream.encode(None))
    names = ("index", "video", "question", "options", "answer", "task_type")
    text = "\n".join("\t".join(row) for row in (names, *ROWS))
    (folder / "DSRBench.tsv").write_text(text + "\n", encoding="utf-8")
    return folder


def test_prompt_frames_and_letters_are_easis(folder: Path) -> None:
    policy = FramePolicy(max_pixels=56 * 56)
    checkpoint = tiny_checkpoint(layers=1, policy=policy, style=PromptStyle(instruction="Think."))
    encoder = EasiEncoder(checkpoint.encoder())
    data = read_benchmark("dsr", folder)
    assert len(data.records) == 5
    vision = encoder.read(data.records[0])
    assert vision is not None
    indices = [0, 8, 16]  # int(26 / 8) = 3 of them, of which the last stands twice
    assert easi_indices(26, 8.0) == indices
    times = [k / 8 + 0.01 for k in indices]
    normal = {"mean": encoder.spec.mean, "std": encoder.spec.std}
    shown = read_frames(str(folder / "a.mp4"), policy, times=times, out="patches", **normal)
    assert shown.patches is not None
    assert (vision.patches == shown.patches).all()
    with pytest.raises(VideoError, match=r"b.mp4: 0.500 s; EASI takes no frame under 1 s"):
        encoder.read(data.records[3])

    data.records[0].start = 0.5
    with pytest.raises(RecordError, match="start or end: EASI shows whole videos"):
        encoder.read(data.records[0])
    data.records[0].start = None

    right = 0
    for record, row, reply, letter in zip(data.records, ROWS, REPLIES, LETTERS, strict=True):
        text = checkpoint.tokenizer.decode(encoder.prompt(record, frames=vision).input_ids)
        listed = "\n".join(f"{x}. {record.options[x]}" for x in "ABCD")
        assert all(option in row[3] for option in listed.split("\n"))
        after = f"Question: {row[2]}\n{listed}\nAnswer: <|im_end|>"
        head, _, tail = text.partition("<|vision_start|>")
        assert head.endswith(f"user\n{BEFORE}")
        assert tail.partition("<|vision_end|>")[2].startswith(after)
        assert easi_letter(reply) == letter
        right += letter == row[4]
        question = AnsweredQuestion(record.id, row[5], row[1], record.options, row[4], greedy_text=reply)
        assert question.answer == record.answer
    assert right == 4


def numbered(path: Path, pictures: int, rate: Fraction) -> None:
    """A video whose picture k is dark on the left by k % 25 and on the right by k // 25."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for k in range(pictures):
            picture = np.full((32, 64, 3), 20 + 8 * (k % 25), dtype=np.uint8)
            picture[:, 32:] = 20 + 16 * (k // 25)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


def number_of(picture: np.ndarray) -> int:
    left, right = picture[8:24, 8:24].mean(), picture[8:24, 40:56].mean()
    return round((left - 20) / 8) + 25 * round((right - 20) / 16)


# index, video, question, options, answer, type, reply and the letter that VLMEvalKit reads; the options are
# shown as they stand here, spaces and brackets and all.
ASKED = (
    (0, "a.mp4", "How far is it? ", '["A. larger", "B. smaller", "C.  same", "D. none"]', "B", "abs_dis",
     "B", "B"),
    (1, "a.mp4", "Which way?", "['A. Left', 'B. Right|Above', 'C. Front', 'D. Behind']", "C", "rel_dir",
     "The answer is A.", "A"),
    (2, "b.mp4", "Who?", '["(A) the dog", "(B) a cat", "(C) both", "(D) it\'s equal"]', "D", "abs_spd",
     "so **D**", "D"),
    (3, "b.mp4", "What moves?", '["A. x", "B. y", "C. z", "D. w"]', "C", "non_temp",
     "<think>the cat</think>\nC. z", "C"),
    (4, "a.mp4", "Where?", '["A. x", "B. y", "C. z", "D. w"]', "A", "abs_ori", "I cannot tell", None),
)  # fmt: skip
# 299 pictures at 25 a second, 90 at 30000 / 1001, as decord counts them and VLMEvalKit picks from them
INDICES = {"a.mp4": [*range(0, 251, 25)], "b.mp4": [0, 29, 59]}


def test_five_rows_from_the_tsv_to_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered(tmp_path / "a.mp4", 299, Fraction(25))
    numbered(tmp_path / "b.mp4", 90, Fraction(30000, 1001))
    names = ("index", "video", "question", "options", "answer", "task_type")
    lines = ["\t".join(names), *("\t".join(map(str, row[:6])) for row in ASKED)]
    (tmp_path / "DSRBench.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    policy, style = FramePolicy(max_pixels=56 * 56), PromptStyle(instruction="Think.")
    tiny_checkpoint(tmp_path / "model", layers=1, policy=policy, style=style)

    seen: dict[str, list[int]] = {}
    texts: dict[str, str] = {}
    order: list[int] = []

    def reading(source: str, policy: Any, **keys: Any) -> Frames:
        pixels = read_frames(source, times=keys["times"]).pixels
        assert pixels is not None
        seen[Path(source).name] = [number_of(picture) for picture in pixels.numpy()]
        return read_frames(source, policy, **keys)

    def prompting(self: EasiEncoder, record: Record, frames: Any = None) -> Any:
        prompt = real(self, record, frames)
        texts[record.id] = self.tokenizer.decode(prompt.input_ids)
        order.append(int(record.id.rpartition("/")[2]))
        return prompt

    def replies(self: Rollout, tokenizer: Any) -> list[str]:
        return [ASKED[number][6] for number in order]

    real = EasiEncoder.prompt
    monkeypatch.setattr(easi_protocol, "read_frames", reading)
    monkeypatch.setattr(EasiEncoder, "prompt", prompting)
    monkeypatch.setattr(Rollout, "texts", replies)
    command = ["eval", "--bench", "dsr", "--data", str(tmp_path), "--checkpoint", str(tmp_path / "model")]
    command += ["--protocol", "easi", "--max-new-tokens", "2", "--baselines"]
    assert cli.main([*command, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0

    assert seen == INDICES
    for number, video, question, options, *_ in ASKED:
        head, _, tail = texts[f"{video}/{number}"].partition("<|vision_start|>")
        assert head.endswith(f"user\n{BEFORE}")
        listed = "\n".join(ast.literal_eval(options))
        after = tail.rpartition("<|vision_end|>")[2]
        assert after.startswith(f"Question: {question}\n{listed}\nAnswer: <|im_end|>")
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()[1:]]
    assert [easi_letter(line["greedy_text"]) for line in answers] == [row[7] for row in ASKED]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["easi"]["accuracy"] == 3 / 5
    assert results["model"]["accuracy"] == 0.0  # none of them has <answer>
    assert results["format_share"]["mean"] == 3 / 5


@pytest.mark.parametrize(
    ("pictures", "rate", "indices"),
    [
        (90, 30.0, [0, 30, 60]),
        (119, 30000 / 1001, [0, 29, 59]),
        (50, 12.5, [0, 12, 25, 37]),
        (29, 30.0, []),
        (299, 25.0, [*range(0, 251, 25)]),
    ],
)
def test_indices(pictures: int, rate: float, indices: list[int]) -> None:
    assert easi_indices(pictures, rate) == indices


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"end": 2.0}, "start or end"),
        ({"video": None, "frames": ["0.jpg"]}, "frames in place of a video"),
        ({"video": None, "media": [("video", "a.mp4"), ("image", "b.png")]}, "2 videos and images"),
        ({"options": dict.fromkeys("ABCDE", "x")}, "options A, B, C, D, E"),
        ({"options": {}}, "options none"),
    ],
)
def test_questions_that_easi_cannot_ask(change: dict[str, Any], why: str) -> None:
    good = Record("rl", "1", "Which?", {"A": "x", "B": "y"}, "A", video="a.mp4", where="data.jsonl:7")
    check_easi([good])
    with pytest.raises(RecordError, match=f"data.jsonl:7: {why}"):
        check_easi([good, replace(good, **change)])
