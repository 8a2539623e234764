"""How much of a run that is not finished is there: its numbers are not those that it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fourdthinker.evaluate import EvalResult, load_result
from fourdthinker.files import parse_json, read_regular, whole_lines
from fourdthinker.sampler import LATENT_MODES
from fourdthinker.trainers.run_folder import FINAL, STATE, checkpoints


def questions_so_far(result: EvalResult) -> str:
    """What an evaluation has of its questions, such as "30 of 100 questions"; "" for all of them."""
    wanted = result.settings.get("questions", len(result.questions))  # older runs do not say
    done = len(result.questions)
    return f"{done:,} of {wanted:,} questions" if isinstance(wanted, int) and done < wanted else ""


def audit_so_far(folder: Path) -> dict[str, str]:
    """What a latent audit has that was ended before its latents.json.

    Args:
        folder: of the audit.

    Returns:
        Mode of the latents -> how many of its questions are answered, in words; {} of no such audit.

    Raises:
        ConfigError: an answers.jsonl of a mode is not one.
    """
    found = {}
    for mode in LATENT_MODES:
        path = folder / mode / "answers.jsonl"
        if path.is_file() and whole_lines(read_regular(path)):
            found[mode] = questions_so_far(load_result(path)) or "all questions"
    return found


def in_common(first: EvalResult, second: EvalResult) -> tuple[EvalResult, EvalResult]:
    """Two results, of the questions that both have answers to, as though no more had been asked."""
    ids = {question.id for question in first.questions} & {question.id for question in second.questions}

    def part(result: EvalResult) -> EvalResult:
        questions = tuple(question for question in result.questions if question.id in ids)
        return replace(result, questions=questions, settings=result.settings | {"questions": len(ids)})

    return part(first), part(second)


def steps_so_far(folder: Path, steps: Sequence[float]) -> str:
    """How far a training is, such as "step 40 of 350"; "" where its final checkpoint is there.

    Args:
        folder: of the run.
        steps: those that it logged.

    Returns:
        Without the number of all steps where no checkpoint tells it.
    """
    if (folder / FINAL).is_dir() or not steps:
        return ""
    last = f"step {max(steps):,.0f}"
    for checkpoint in reversed(checkpoints(folder)):
        try:
            total = parse_json((checkpoint / STATE).read_bytes(), finite=False)["max_steps"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # an older one may tell
        if isinstance(total, int) and total >= max(steps):
            return f"{last} of {total:,}"
    return f"{last}, no final checkpoint"
