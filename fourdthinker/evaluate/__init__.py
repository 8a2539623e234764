"""Scoring a model on records: sampled and greedy accuracy with intervals, baselines, paired comparisons."""

from fourdthinker.evaluate.results import EvalResult, Question, baselines, paired_difference
from fourdthinker.evaluate.runner import evaluate
from fourdthinker.evaluate.table import results_table, types_table

__all__ = [
    "EvalResult",
    "Question",
    "baselines",
    "evaluate",
    "paired_difference",
    "results_table",
    "types_table",
]
