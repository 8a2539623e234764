"""The progress bar of long work: on standard error, so that results on standard output stay clean."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(*, shown: bool = True, transient: bool = False, window: float = 30.0) -> Progress:
    """Description, bar, done of total, time gone and time left, on standard error.

    Args:
        shown: whether it is drawn at all.
        transient: it vanishes at the end.
        window: seconds over which the speed is estimated, longer than a step takes.

    Returns:
        The bar, not started.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
        transient=transient,
        speed_estimate_period=window,
    )
