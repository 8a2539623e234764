"""Solvers that see no pixel: what each takes a question's text to say about its answer.

A solver is a function of a table, the questions that it may learn from and those that it must answer; it
gives a score for each option of the latter, and the highest score is its answer. Rules learn nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.audit.features import Array, option_features
from fourdthinker.audit.question_files import ChoiceQuestion
from fourdthinker.audit.texts import likeness, normal, shape
from fourdthinker.errors import install

Indices = NDArray[np.int64]
Scores = list[Array]
Solver = Callable[["Table", Indices, Indices], Scores]

_HASHED = 1 << 18  # columns of the word features
_HELD_OUT = 5  # a classifier's settings are chosen on a fifth of the videos that it may learn from


@dataclass(frozen=True)
class Table:
    """Questions with what solvers learn from, made once.

    Attributes:
        items: the questions.
        starts: int64 [items + 1], row of the first option of each question.
        features: float64 [options, features].
        words: sparse [options, columns], words of option and question, hashed.
        right: bool [options].
        groups: int64 [items], number of the question's video.
    """

    items: tuple[ChoiceQuestion, ...]
    starts: Indices
    features: Array
    words: Any
    right: NDArray[np.bool_]
    groups: Indices

    def rows(self, chosen: Indices) -> Indices:
        """Rows of the options of these questions, in order."""
        return np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in chosen])

    def by_item(self, values: Array, chosen: Indices) -> Scores:
        """One array a question, of values that `rows` has put one after the other."""
        sizes = self.starts[chosen + 1] - self.starts[chosen]
        return np.split(values, np.cumsum(sizes)[:-1])


def make_table(items: Sequence[ChoiceQuestion]) -> Table:
    """What the solvers learn from.

    Args:
        items: the questions.

    Returns:
        The table.

    Raises:
        ImportError: scikit-learn is missing.
    """
    if find_spec("sklearn") is None:
        raise ImportError(f"an audit needs scikit-learn, which is not installed; {install('audit')}")
    numbers: dict[str, int] = {}
    return Table(
        items=tuple(items),
        starts=np.cumsum([0, *(len(item.options) for item in items)]),
        features=option_features(items),
        words=_hashed_words(items),
        right=np.array([right for item in items for right in item.right]),
        groups=np.array([numbers.setdefault(item.group, len(numbers)) for item in items]),
    )


# --- priors -----------------------------------------------------------------------------------------------


def text_prior(table: Table, train: Indices, test: Indices) -> Scores:
    """How often an option's text was right, of the times it was offered, in questions of the same type.

    Laplace: (right + 1) / (offered + options). Texts that deny are counted as one.
    """
    offered: Counter[Hashable] = Counter()
    right: Counter[Hashable] = Counter()
    for item in (table.items[i] for i in train):
        for text in item.options:
            offered[item.type, normal(text)] += 1
        right[item.type, normal(item.options[item.answer])] += 1
    return [
        np.array([(right[key] + 1) / (offered[key] + len(item.options)) for key in _keys(item)])
        for item in (table.items[i] for i in test)
    ]


def set_prior(table: Table, train: Indices, test: Indices) -> Scores:
    """Which text was right when these very options were offered, in any order."""
    right: Counter[Hashable] = Counter()
    for item in (table.items[i] for i in train):
        keys = _keys(item)
        right[frozenset(keys), keys[item.answer]] += 1
    return [
        np.array([right[frozenset(keys), key] + 1.0 for key in keys])
        for keys in (_keys(table.items[i]) for i in test)
    ]


def letter_prior(table: Table, train: Indices, test: Indices) -> Scores:
    """How often each letter was right, in questions of the same type with as many options."""
    right: Counter[Hashable] = Counter()
    for item in (table.items[i] for i in train):
        right[item.type, len(item.options), item.answer] += 1
    return [
        np.array([right[item.type, len(item.options), k] + 1.0 for k in range(len(item.options))])
        for item in (table.items[i] for i in test)
    ]


def _keys(item: ChoiceQuestion) -> list[tuple[str, str]]:
    return [(item.type, normal(text)) for text in item.options]


# --- rules ------------------------------------------------------------------------------------------------


def shortest(table: Table, train: Indices, test: Indices) -> Scores:
    """The option of the fewest characters."""
    return _rule(table, test, lambda item: [-shape(text).characters for text in item.options])


def longest(table: Table, train: Indices, test: Indices) -> Scores:
    """The option of the most characters."""
    return _rule(table, test, lambda item: [shape(text).characters for text in item.options])


def smoothest(table: Table, train: Indices, test: Indices) -> Scores:
    """The option whose steps change least from one to the next; of equal ones that of the fewest steps."""
    return _rule(
        table, test, lambda item: [-(s.roughness + 1e-3 * s.steps) for s in map(shape, item.options)]
    )


def most_alike(table: Table, train: Indices, test: Indices) -> Scores:
    """The option that shares most words with the others: they may have been made from it."""

    def scores(item: ChoiceQuestion) -> list[float]:
        words = [shape(text).words for text in item.options]
        return [sum(likeness(a, b) for b in words) for a in words]

    return _rule(table, test, scores)


def _rule(table: Table, test: Indices, scores: Callable[[ChoiceQuestion], Sequence[float]]) -> Scores:
    return [np.array(scores(table.items[i]), dtype=np.float64) for i in test]


# --- classifiers ------------------------------------------------------------------------------------------


def classifier(table: Table, train: Indices, test: Indices) -> Scores:
    """The best of a logistic regression and two boosted forests over the features of `option_features`.

    Which one is best is decided within the questions to learn from, on videos held out for it.
    """
    inner = table.groups[train] % _HELD_OUT == 0
    models = _models()
    if inner.any() and not inner.all():
        chances = [
            _accuracy(table, train[inner], _fit(model, table, table.features, train[~inner], train[inner]))
            for model in models
        ]
        models = [models[int(np.argmax(chances))]]
    return _fit(models[0], table, table.features, train, test)


def words(table: Table, train: Indices, test: Indices) -> Scores:
    """Logistic regression over the words of the option, and each with the words of the question."""
    from sklearn.linear_model import LogisticRegression

    return _fit(LogisticRegression(C=0.3, solver="liblinear"), table, table.words, train, test)


def _models() -> list[Any]:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    boosted: dict[str, Any] = {"early_stopping": False, "random_state": 0}
    return [
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1)),
        HistGradientBoostingClassifier(max_iter=60, max_depth=3, **boosted),
        HistGradientBoostingClassifier(max_iter=150, max_leaf_nodes=15, l2_regularization=1.0, **boosted),
    ]


def _fit(model: Any, table: Table, values: Any, train: Indices, test: Indices) -> Scores:
    """Probability of each option to be right, divided by the sum over its question."""
    from threadpoolctl import threadpool_limits

    learned = table.rows(train)
    if len(set(table.right[learned])) < 2:
        return [np.ones(len(table.items[i].options)) for i in test]
    with threadpool_limits(1):  # so little data that more threads wait for each other
        model.fit(values[learned], table.right[learned])
        found = table.by_item(model.predict_proba(values[table.rows(test)])[:, 1], test)
    return [p / max(p.sum(), 1e-12) for p in found]


def _accuracy(table: Table, chosen: Indices, scores: Scores) -> float:
    return float(np.mean([hit(table.items[i], s) for i, s in zip(chosen, scores, strict=True)]))


def hit(item: ChoiceQuestion, scores: Array) -> float:
    """Probability that the option of the highest score is right, when ties are broken by lot."""
    best = scores >= scores.max() - 1e-12
    return float(np.asarray(item.right)[best].mean())


def _hashed_words(items: Sequence[ChoiceQuestion]) -> Any:
    from sklearn.feature_extraction import FeatureHasher

    def tokens(item: ChoiceQuestion, text: str) -> list[str]:
        option, own = normal(text), sorted(shape(text).words)
        asked = sorted(shape(item.question).words)
        return [
            option,
            f"{item.type}|{option}",
            *(f"{item.type}/{word}" for word in own),
            *(f"{word}?{option}" for word in asked),
        ]

    hasher = FeatureHasher(_HASHED, input_type="string", alternate_sign=False)
    return hasher.transform(tokens(item, text) for item in items for text in item.options).tocsr()


# What an audit runs; the second value says whether it learns, so that its scores are probabilities.
SOLVERS: dict[str, tuple[Solver, bool]] = {
    "option text": (text_prior, True),
    "option set": (set_prior, True),
    "letter": (letter_prior, True),
    "shortest": (shortest, False),
    "longest": (longest, False),
    "smoothest": (smoothest, False),
    "most alike": (most_alike, False),
    "classifier": (classifier, True),
    "words": (words, True),
}
