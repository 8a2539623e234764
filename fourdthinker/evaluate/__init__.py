"""Scoring a model on records: sampled and greedy accuracy with intervals, baselines, paired comparisons."""

from fourdthinker.evaluate.asking import sample_seed
from fourdthinker.evaluate.benchmarks import BENCHMARKS, BenchmarkData, list_benchmarks, read_benchmark
from fourdthinker.evaluate.clips import group_clips, read_clips
from fourdthinker.evaluate.compare import Comparison, compare, load_result
from fourdthinker.evaluate.duplicates import without_duplicates
from fourdthinker.evaluate.results import AnsweredQuestion, EvalResult, baselines, paired_difference
from fourdthinker.evaluate.runner import evaluate
from fourdthinker.evaluate.several import several_samples
from fourdthinker.evaluate.table import results_table, types_table
from fourdthinker.evaluate.twins import twins_of

__all__ = [
    "BENCHMARKS",
    "AnsweredQuestion",
    "BenchmarkData",
    "Comparison",
    "EvalResult",
    "baselines",
    "compare",
    "evaluate",
    "group_clips",
    "list_benchmarks",
    "load_result",
    "paired_difference",
    "read_benchmark",
    "read_clips",
    "results_table",
    "sample_seed",
    "several_samples",
    "twins_of",
    "types_table",
    "without_duplicates",
]
