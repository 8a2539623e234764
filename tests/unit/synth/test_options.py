"""Options carry nothing: wrong ones are answers of other tracks, and the lot decides which one is right."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fourdthinker.audit.texts import normal
from fourdthinker.synth.options import ALONE, COMMON, FEW, SERVES, add_options
from fourdthinker.synth.questions import Question, Support


def question(index: int, answer: str, pool: str = "p", kind: str = "t") -> Question:
    return Question(
        id=f"q{index}", clip=f"c{index}", source=f"v{index}.mp4", type=kind, text="What?", answer=answer,
        start=0.0, end=1.0, pool=pool, support=Support(None, (0.0,)),
    )  # fmt: skip


def questions(number: int, answers: int, seed: int = 0) -> list[Question]:
    """Skewed: the first answers are the most frequent."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, answers + 1)
    return [question(i, f"answer {a}") for i, a in enumerate(rng.choice(answers, number, p=p / p.sum()))]


def test_wrong_options_are_answers_of_other_tracks_each_used_once() -> None:
    made = questions(400, 30)
    found = add_options(made, 0)
    answers = Counter(q.answer for q in made)
    used: Counter[str] = Counter()
    assert len(found.questions) > 50
    for q in found.questions:
        assert q.options[str(q.letter)] == q.answer
        assert len({normal(text) for text in q.options.values()}) == len(q.options) == 4
        used.update(q.options.values())
    assert all(used[text] <= answers[text] for text in used)
    assert {q.id for q in found.questions} | set(found.rejected) == {q.id for q in made}
    assert not {q.id for q in found.questions} & set(found.rejected)
    assert sum(reason == SERVES for reason in found.rejected.values()) == 3 * len(found.questions)


def test_which_option_is_right_is_uniform_whatever_it_is() -> None:
    """Over many draws of one corpus: the rarest, the most frequent, the longest and each letter alike."""
    made = questions(60, 12)
    count = Counter(q.answer for q in made)
    rarest = frequent = longest = total = 0
    letters: Counter[str] = Counter()
    for seed in range(300):
        for q in add_options(made, seed).questions:
            texts = list(q.options.values())
            total += 1
            letters[str(q.letter)] += 1
            rarest += q.answer == min(texts, key=lambda t: (count[t], t))
            frequent += q.answer == max(texts, key=lambda t: (count[t], t))
            longest += q.answer == max(texts, key=lambda t: (len(t), t))
    half = 4 * np.sqrt(0.25 * 0.75 / total)
    for hits in (rarest, frequent, longest, *letters.values()):
        assert hits / total == pytest.approx(0.25, abs=half)


def test_paraphrases_are_one_answer() -> None:
    made = [
        question(i, text) for i, text in enumerate(["Pan left", "pan  left.", "PAN LEFT", "pan right"] * 5)
    ]
    for q in add_options(made, 0, every=True).questions:
        assert sorted(normal(text) for text in q.options.values()) == ["pan left", "pan right"]


def test_every_question_of_a_block_may_be_asked() -> None:
    made = questions(400, 30)
    every = add_options(made, 0, every=True)
    one = add_options(made, 0)
    assert len(every.questions) == 4 * len(one.questions)
    assert SERVES not in every.rejected.values()
    assert max(Counter(q.answer for q in every.questions).values()) <= len(every.questions) / 4


def test_answers_are_balanced() -> None:
    made = [question(i, "static" if i % 2 else f"move {i % 12}") for i in range(1200)]
    found = add_options(made, 0, every=True)
    counts = Counter(q.answer for q in found.questions)
    assert max(counts.values()) <= 1.6 * min(counts.values())
    assert COMMON in found.rejected.values()


def test_as_many_blocks_as_there_can_be() -> None:
    """Four answers, 15 times "a" and 10 times each other: 10 blocks, the frequent one in each."""
    made = [question(i, "a" if i < 15 else "bcd"[i % 3]) for i in range(45)]
    found = add_options(made, 3, every=True)
    assert len(found.questions) == 40
    five = [question(i, "a" if i < 15 else "bcdef"[i % 5]) for i in range(65)]
    assert (
        len(add_options(five, 3, every=True).questions) == 64
    )  # a draw that forgets "a" would leave it over


def test_an_answer_without_rivals_is_rejected() -> None:
    found = add_options([question(0, "left"), question(1, "left"), question(2, "up", pool="other")], 0)
    assert found.questions == ()
    assert set(found.rejected.values()) <= {ALONE, COMMON}
    assert len(found.rejected) == 3


def test_pools_do_not_mix_and_open_questions_stay() -> None:
    made = [question(i, f"{'ab'[i % 2]}{i % 6}", pool="ab"[i % 2]) for i in range(60)]
    made.append(question(99, "2.5 m", pool=""))
    found = add_options(made, 0)
    assert found.questions[-1] == made[-1]
    for q in found.questions[:-1]:
        assert {text[0] for text in q.options.values()} == {q.pool}


def test_a_pool_with_too_few_answers_is_joined_with_others_such() -> None:
    """Four answers at 0/0; two at 0/1 and two at 0/2, four at 0; three at 1/0, which are too few."""
    places = {"0/0": "abcd", "0/1": "ab", "0/2": "cd", "1/0": "abc"}
    made = [
        question(10 * k + n, answer, pool=f"box/{place}")
        for k, (place, answers) in enumerate(places.items())
        for n, answer in enumerate(answers)
    ]
    found = add_options(made, 0, every=True)
    assert [q.pool for q in found.questions] == ["box/0/0"] * 4 + ["box/0/1"] * 2 + ["box/0/2"] * 2
    assert {len(q.options) for q in found.questions} == {4}
    assert found.rejected == dict.fromkeys(("q30", "q31", "q32"), FEW)


def test_a_kind_of_three_answers_has_three_options_everywhere() -> None:
    made = [question(i, "abc"[i % 3], pool=f"box/{i % 2}") for i in range(60)]
    made += [question(100 + i, "ab"[i % 2], pool="box/2") for i in range(10)]
    found = add_options(made, 0)
    assert {len(q.options) for q in found.questions} == {3}
    assert sum(reason == FEW for reason in found.rejected.values()) == 10


def test_the_seed_decides() -> None:
    made = questions(100, 10)
    assert add_options(made, 1) == add_options(made, 1)
    assert add_options(made, 1) != add_options(made, 2)
    more = [*made, *(replace(q, id=q.id + "x", pool="later") for q in made)]
    assert [q for q in add_options(more, 1).questions if q.pool == "p"] == list(
        add_options(made, 1).questions
    )
