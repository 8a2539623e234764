"""Many questions about one clip cost little more than one: decoding, vision and prefill are shared."""

from __future__ import annotations

import time
from pathlib import Path

from fourdthinker.evaluate import evaluate
from fourdthinker.frames import FramePolicy
from fourdthinker.records import Record
from fourdthinker.sampler import SamplingConfig
from fourdthinker.thinker import Thinker
from fourdthinker.transcript import text_plain
from tests.clips import make_clip
from tests.tiny import tiny_checkpoint

QUESTIONS, ALONE = 200, 10
THINGS = ("cube", "sphere", "camera", "scene", "object")


def test_two_hundred_questions_about_a_clip_of_thirty_seconds(tmp_path: Path) -> None:
    """Separate calls are timed on ten of them: all take as long, for each reads the clip anew.

    Processor time, since other tests run beside this one.
    """
    clip = make_clip(tmp_path / "clip.mp4", range(0, 30_000, 200), size=(120, 160))
    thinker = Thinker(tiny_checkpoint(policy=FramePolicy(max_pixels=112 * 84)))
    options = ("left", "right", "up")
    records = [
        Record(
            "rl", str(k), f"Which way does the {THINGS[k % 5]} number {k} move?",
            dict(zip("ABC", options, strict=True)), "A", video=str(clip), where=f"data.jsonl:{k}",
        )
        for k in range(QUESTIONS)
    ]  # fmt: skip
    config = SamplingConfig(max_new_tokens=8, temperature=0.0)

    def alone(record: Record) -> str:
        return thinker.generate(clip, record.question, options=options, config=config).text

    alone(records[0])
    started = time.process_time()
    separate = [alone(record) for record in records[:: QUESTIONS // ALONE]]
    each = (time.process_time() - started) / ALONE
    started = time.process_time()
    result = evaluate(
        thinker.sampler, thinker.encoder, records, n=0, config=config, batch_prompts=50, progress=False
    )
    together = time.process_time() - started
    asked = result.questions[:: QUESTIONS // ALONE]
    assert [text_plain(question.greedy_text or "") for question in asked] == separate
    assert 5 * together < QUESTIONS * each
