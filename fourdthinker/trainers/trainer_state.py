"""Whether Trainer can go on from what it wrote of itself, asked before the run's folder is changed."""

from __future__ import annotations

import dataclasses
from numbers import Real
from pathlib import Path
from types import NoneType

from transformers import TrainerState

from fourdthinker.files import parse_json
from fourdthinker.trainers.run_folder import STATE

# Of the values that Trainer and this package go on with.
_TYPES: dict[str, tuple[type, ...]] = {
    "epoch": (Real,),
    "global_step": (int,),
    "num_input_tokens_seen": (int,),
    "total_flos": (Real,),
    "log_history": (list,),
    "best_metric": (Real, NoneType),
    "best_global_step": (int, NoneType),
    "best_model_checkpoint": (str, NoneType),
    "train_batch_size": (int, NoneType),
    "stateful_callbacks": (dict,),
}


def state_problem(folder: Path, updates: int) -> str | None:
    """Why the trainer_state.json of a checkpoint is of no use, or None.

    Args:
        folder: of the checkpoint.
        updates: that its run.json tells of.
    """
    try:
        state = parse_json((folder / STATE).read_bytes(), finite=False)
    except (OSError, ValueError) as error:
        return f"has a {STATE} that cannot be read ({error})"
    if not isinstance(state, dict):
        return f"has a {STATE} that is no object"
    unknown = sorted(state.keys() - {field.name for field in dataclasses.fields(TrainerState)})
    if unknown:
        return (
            f"has {', '.join(unknown)} in {STATE}, which this version of transformers does not know; go on "
            "with the version that wrote it"
        )
    wrong = [name for name, types in _TYPES.items() if name in state and not isinstance(state[name], types)]
    wrong += ["log_history"] * any(not isinstance(entry, dict) for entry in state.get("log_history") or ())
    if wrong:
        return f"has a value of a wrong type in {STATE} ({wrong[0]})"
    if state.get("global_step") != updates:
        return f"has seen {updates} updates by run.json and {state.get('global_step')} by {STATE}"
    return None
