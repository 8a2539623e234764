"""Options that carry nothing: wrong ones are right answers of other tracks; which one is right, the lot says.

The questions of a pool are dealt into blocks of different answers. Of each block one question, drawn by lot,
is asked; the answers of the others are its wrong options, and the others are not asked. Whatever a solver
knows of all the other blocks, each option of a block is then right with the same probability: so length,
runs, reversals, frequency and every other property of a text say nothing, and neither does elimination. The
price is that a corpus needs several tracks for each question. `every=True` asks all questions of a block
instead; then a solver that has learnt the others of the block can tell the last one.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fourdthinker.audit.texts import normal
from fourdthinker.files import LETTERS
from fourdthinker.synth.questions import Question

OPTIONS = 4
# An answer takes part at most this often: a multiple of the median answer of its pool, or, where there are
# many answers, a share of the pool.
_COMMON, _SHARE = 1.5, 1 / 16

FEW = "options: too few other answers in its pool"
ALONE = "options: no other track has another answer of this kind"
COMMON = "options: answer too common in this corpus"
SERVES = "options: its answer is a wrong option of another question"


@dataclass(frozen=True)
class Optioned:
    """What `add_options` has made.

    Attributes:
        questions: those that are asked, with options and letter, in the order given.
        rejected: id -> reason, of the others.
    """

    questions: tuple[Question, ...]
    rejected: dict[str, str]


def add_options(questions: Sequence[Question], seed: int, *, every: bool = False) -> Optioned:
    """Give questions their options. To be called for each split of a corpus apart.

    A pool "a/b/c" with less than four different answers is joined with others such in "a/b", then in "a".
    Where all of "a" has less than four, its questions have fewer options, down to two.

    Args:
        questions: of the whole split; their ids differ. Those of the pool "" are open and stay as they are.
        seed: of all draws.
        every: ask every question of a block, not one.

    Returns:
        The questions that are asked, and why the others are not.
    """
    asked = {question.id: question for question in questions if not question.pool}
    rejected: dict[str, str] = {}
    pools = _pools([question for question in questions if question.pool], rejected)
    for pool, members in sorted(pools.items()):
        rng = np.random.default_rng([seed, zlib.crc32(pool.encode())])
        by_answer = _balanced(members, rng, rejected)
        size = min(OPTIONS, len(by_answer))
        if size < 2:
            rejected |= {question.id: ALONE for found in by_answer.values() for question in found}
            continue
        for block in _blocks(by_answer, size, rng, rejected):
            lot = int(rng.integers(size))
            for index, question in enumerate(block):
                if every or index == lot:
                    asked[question.id] = _with_options(question, block, rng)
                else:
                    rejected[question.id] = SERVES
    return Optioned(tuple(asked[q.id] for q in questions if q.id in asked), rejected)


def _pools(questions: Sequence[Question], rejected: dict[str, str]) -> dict[str, list[Question]]:
    """Questions by the finest pool that has as many different answers as its kind has options."""
    answers: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        answers[question.pool.split("/")[0]].add(normal(question.answer))
    pools: dict[str, list[Question]] = defaultdict(list)
    left = list(questions)
    for depth in range(max((question.pool.count("/") for question in left), default=0) + 1, 0, -1):
        found: dict[str, list[Question]] = defaultdict(list)
        for question in left:
            found["/".join(question.pool.split("/")[:depth])].append(question)
        left = []
        for pool, members in found.items():
            wanted = min(OPTIONS, len(answers[pool.split("/")[0]]))
            enough = len({normal(question.answer) for question in members}) >= wanted
            (pools[pool] if enough else left).extend(members)
    rejected |= {question.id: FEW for question in left}
    return pools


def _balanced(
    members: Sequence[Question], rng: np.random.Generator, rejected: dict[str, str]
) -> dict[str, list[Question]]:
    """Questions by answer, in random order, none of the answers much more often than the others."""
    by_answer: dict[str, list[Question]] = defaultdict(list)
    for index in rng.permutation(len(members)):
        by_answer[normal(members[index].answer)].append(members[index])
    median = float(np.median([len(found) for found in by_answer.values()]))
    most = max(1, int(max(_COMMON * median, _SHARE * len(members))))
    for found in by_answer.values():
        rejected |= {question.id: COMMON for question in found[most:]}
        del found[most:]
    return by_answer


def _blocks(
    by_answer: dict[str, list[Question]], size: int, rng: np.random.Generator, rejected: dict[str, str]
) -> list[list[Question]]:
    """As many blocks of different answers as there can be: frequent answers are taken first, ties by lot."""
    left = Counter({answer: len(found) for answer, found in by_answer.items()})
    blocks = []
    while len(left) >= size:
        answers = list(left)
        counts = np.array([left[answer] for answer in answers])
        # Blocks that can still be made; an answer with as many questions must be in each of them.
        possible = _most_blocks(counts, size)
        forced = np.flatnonzero(counts >= possible)[:size]
        others = np.setdiff1d(np.arange(len(answers)), forced)
        weights = counts[others] / max(1, counts[others].sum())
        chosen = [answers[i] for i in forced]
        if size > len(forced):
            drawn = rng.choice(others, size - len(forced), replace=False, p=weights)
            chosen += [answers[i] for i in drawn]
        blocks.append([by_answer[answer][left[answer] - 1] for answer in chosen])
        left.subtract(chosen)
        left += Counter()  # answers without questions go
    rejected |= {
        question.id: COMMON for answer, number in left.items() for question in by_answer[answer][:number]
    }
    return blocks


def _most_blocks(counts: np.ndarray, size: int) -> int:
    """The largest b with b blocks of `size` different answers: sum of min(count, b) >= b * size."""
    low, high = 0, int(counts.sum()) // size
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(counts, middle).sum() >= middle * size:
            low = middle
        else:
            high = middle - 1
    return low


def _with_options(question: Question, block: Sequence[Question], rng: np.random.Generator) -> Question:
    order = rng.permutation(len(block))
    options = {LETTERS[i]: block[k].answer for i, k in enumerate(order)}
    letter = next(LETTERS[i] for i, k in enumerate(order) if block[k].id == question.id)
    return replace(question, options=options, letter=letter)
