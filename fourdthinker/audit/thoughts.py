"""What a model thought at each question of an audit, for the report: thoughts.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fourdthinker.evaluate.transcripts import asked_fields, row_blocks, transcript

if TYPE_CHECKING:
    from torch import Tensor

    from fourdthinker.backbones.common import Backbone
    from fourdthinker.evaluate import EvalResult
    from fourdthinker.evaluate.asking import Asked

THOUGHTS = "thoughts.jsonl"


def described_rows(
    asked: Asked, backbone: Backbone, tokenizer: Any, targets: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """The rows at temperature 0 with own latents.

    Args:
        asked: these rows, one a prompt.
        backbone: the model.
        tokenizer: of the same checkpoint.
        targets: id of a record -> what its overlays are thought as, of those that have overlays.

    Returns:
        Of each row what it answers, its text, `transcript` and `row_blocks`.
    """
    rollout = asked.rollout
    texts = rollout.texts(tokenizer)
    lines = []
    for row, (record, prompt) in enumerate(zip(asked.records, asked.prompts, strict=True)):
        blocks = row_blocks(
            backbone, rollout, row, prompt.vision, asked.features[row], targets.get(record.id)
        )
        line = asked_fields(record) | {"text": texts[row], **transcript(tokenizer, rollout, row)}
        lines.append(line | {"finish_reason": rollout.finish_reason[row], "blocks": blocks})
    return lines


def thought_lines(lines: Sequence[Mapping[str, Any]], results: Mapping[str, EvalResult]) -> list[str]:
    """The lines of thoughts.jsonl.

    Args:
        lines: as `described_rows` returns.
        results: mode -> the answers in it, "own" among them.

    Returns:
        A line for each of `lines`, by id, with modes: of each mode the answer, and the probability of the
        right letter among the letters, None where the answer names no letter.
    """
    modes: dict[str, dict[str, Any]] = {str(line["id"]): {} for line in lines}
    for mode, result in results.items():
        for q in result.questions:
            if q.id in modes:
                right = None if q.letters is None else round(q.letters[q.answer], 4)
                modes[q.id][mode] = {"answer": q.greedy, "right": right}
    ordered = sorted(lines, key=lambda line: str(line["id"]))
    return [
        json.dumps({**line, "modes": modes[str(line["id"])]}, ensure_ascii=False) + "\n" for line in ordered
    ]
