"""EASI's protocol on five rows of its TSV: prompt text, frame indices, and letters of stored replies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fourdthinker.errors import RecordError, VideoError
from fourdthinker.evaluate import AnsweredQuestion, read_benchmark
from fourdthinker.evaluate.easi import easi_letter
from fourdthinker.evaluate.easi_protocol import EasiEncoder, check_easi, easi_indices
from fourdthinker.frames import FramePolicy, read_frames
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.records import Record
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


@pytest.mark.parametrize(
    ("pictures", "rate", "indices"),
    [
        (90, 30.0, [0, 30, 60]),
        (119, 30000 / 1001, [0, 29, 59]),
        (50, 12.5, [0, 12, 25, 37]),
        (29, 30.0, []),
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
