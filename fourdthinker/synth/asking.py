"""The stage questions of one clip."""

from __future__ import annotations

from typing import Any

from fourdthinker.synth.clips import RejectError
from fourdthinker.synth.context import Context
from fourdthinker.synth.labels import camera_of, moves_of, objects_of
from fourdthinker.synth.motion import distance_change, move_sets, object_direction


def questions(context: Context) -> dict[str, Any]:
    """Questions with their answers, and the instants that a picture is imagined of."""
    camera, tracks = camera_of(context.results), objects_of(context.results)
    moves, _ = moves_of(context.results)
    end = float(context.clip.times[-1])
    asked: list[dict[str, Any]] = []

    def ask(kind: str, thing: int | None, text: str, answer: str | None, start: float, until: float) -> None:
        if answer is not None:
            name = f"{context.clip.item}-{kind}-{len(asked)}"
            asked.append(
                {"id": name, "type": kind, "text": text, "answer": answer, "start": start, "end": until}
                | {"thing": thing, "instants": [start, until]}
            )

    things = context.results["geometry"]["things"]
    static = things[-1] if things else None
    for start, until, names in move_sets(moves):
        if until - start >= 1:
            text = f"How does the camera move from {start:.1f} s to {until:.1f} s?"
            ask("camera", static, text, ", ".join(sorted(names)), start, until)
    for number, track in zip(things, tracks, strict=True):
        text = f"Which way does the {track.name} move?"
        ask("direction", number, text, object_direction(track, camera, 0.0, end), 0.0, end)
        text = f"How does the distance to the {track.name} change?"
        ask("distance", number, text, distance_change(track, camera, 0.0, end), 0.0, end)
    if not asked:
        raise RejectError("nothing clear to ask about")
    return {"questions": asked[: context.settings.most_questions]}
