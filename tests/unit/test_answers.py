"""The answer parser: spellings by hand, and hostile replies against a judge that tries all of them."""

from __future__ import annotations

import json
import random
import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourdthinker.answers import answer_text, parse_answer
from tests.shared import needs, shared

NUMBER = 2000
MOVES = {"A": "dolly in", "B": "truck left", "C": "pan right", "D": "Tilt up"}
CUBES = {"A": "A sphere", "B": "A cube", "C": "B cube", "D": "cube"}
SETS = [
    {"A": "left", "B": "right", "C": "up", "D": "down"},
    {"A": "B", "B": "A", "C": "C. C"},
    {"A": "a cube", "B": "a different cube", "C": "A. cube"},
    {"A": "1", "B": "2", "C": "1 2", "D": "(B)"},
    {"A": "left", "B": "Left", "C": "not left"},
]
JUNK = [
    "and",
    "or",
    "not",
    "I",
    "answer",
    "is",
    "a",
    "because",
    "→",
    "ﬁ",
    "\u200b",
    "...",
    "B",
    "(C)",
    "A.",
    "d",
    "A? no,",
    "wait,",
    "right",
    "n't",
]


def content(text: str) -> str | None:
    """What the last closed pair of tags holds, by looking at every place in turn."""
    low, opened, found, here = text.lower(), None, None, 0
    while here < len(text):
        if low.startswith("<answer>", here):
            opened = here + 8
        elif low.startswith("</answer>", here) and opened is not None:
            found, opened = text[opened:here].strip(), None
        here += 1
    return found


def plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def plausible(text: str, options: dict[str, str]) -> set[str]:
    """Every option that a reply can be said to speak of, whatever its form: a reader that takes all hints.

    Of the last answer: the one letter that is all of it; an option whose text is all of it; the letter it
    begins with, and beside that an option whose text all the rest is, or whose letter the rest has as a
    capital word or before a parenthesis, outside a repetition of the text that belongs to the first letter.
    """
    answer = " ".join((content(text) or "").split())
    words = re.findall(r"[^\W_]+", answer)
    first = words[0].upper() if words else ""
    if first in options and len(words) == 1:
        return {first}
    same = {letter for letter in options if plain(options[letter]) == plain(answer)}
    if same or first not in options:
        return same
    rest, own = answer[answer.index(words[0]) + 1 :].lstrip(").: "), options[first]
    if plain(rest) == plain(own):
        return {first}
    found = {first} | {letter for letter in options if plain(options[letter]) == plain(rest)}
    if plain(rest[: len(own)]) == plain(own):
        rest = rest[len(own) :]
    found |= {letter for letter in options if letter != first and held(options[letter], rest, own)}
    if {*re.findall(r"[^\W_]+", rest.lower())} & {
        "not",
        "no",
        "wait",
        "or",
        "wrong",
        "maybe",
        "t",
    } or "?" in rest:
        found.add("taken back")
    for word in re.findall(r"[^\W_]+\)?", rest):
        if word.strip(")") in options or (word.endswith(")") and word[:-1].upper() in options):
            found.add(word.strip(")").upper())
    return found


def held(text: str, rest: str, own: str) -> bool:
    """Whether words in a row are those of a text, and more than the end of the text before them."""
    wanted, said = (re.findall(r"[^\W_]+", part.casefold()) for part in (text, rest))
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said))) and plain(text) != plain(own)


# What leads to a letter, and what may follow it, in the documented form.
LEDS = ["{}", "({}", "({})", "{}.", "{})", "{}:", "({}).", "({}):"]
MARKED_LEDS = ["({})", "{}.", "{})", "{}:"]
NEUTRAL = ["because it moves", "it turns, then stops", "→ 3 m", "i.e. to that side", "(see it)", "", "ﬁ."]
JOINS = ["or", "and", ",", ";", "no,", "wrong;", "\n", "→", "/", "", "maybe", "it is not", "e.g."]


def documented(rng: random.Random, options: dict[str, str]) -> tuple[str, str]:
    """A reply in the documented form, with the letter it gives."""
    letter = rng.choice(list(options))
    name, own = rng.choice([letter, letter.lower()]), options[letter]
    marked = rng.choice(MARKED_LEDS).format(name)
    own = rng.choice([own, own.upper(), own.replace(" ", "  ")])
    text = rng.choice(
        [
            rng.choice(LEDS).format(name),
            f"{marked} {own}",
            f"{marked}{own}",
            f"{name} {own}",
            f"{marked} {rng.choice(NEUTRAL)}",
            f"{name}\n{rng.choice(NEUTRAL)}",
            f"{marked} {own} {rng.choice(NEUTRAL)}",
        ]
    )
    same = [key for key in options if plain(options[key]) == plain(text)]
    return (text, letter) if not same else documented(rng, options)


def hedged(rng: random.Random, options: dict[str, str]) -> str:
    """A reply that leads with one option and goes on to another one."""
    letter, other = rng.sample(list(options), 2)
    led = rng.choice([*MARKED_LEDS, "{}\n"]).format(rng.choice([letter, letter.lower()]))
    own = rng.choice(["", options[letter], rng.choice(NEUTRAL)])
    named = rng.choice(["{}", "({})", "{}.", "{})", "{}:", "**{}**"]).format(other)
    return f"{led} {own} {rng.choice(JOINS)} {named} {rng.choice(['', 'then', 'is it', '.'])}"


def wrapped(rng: random.Random, inner: str) -> str:
    """As a completion, behind other answers and words."""
    before = rng.choice(["", "<think>A or B</think>", "The answer is B. ", "<answer>C</answer>", "<answer>"])
    opening = rng.choice(["<answer>", "<ANSWER>", "<Answer>\n"])
    closing = rng.choice(["</answer>", "</ANSWER> C", "\n</answer>", "</answer><answer>A"])
    return before + opening + inner + closing


def test_1000_replies_in_the_documented_form() -> None:
    rng = random.Random(15)
    for number in range(1000):
        options = rng.choice([MOVES, CUBES, SETS[0], SETS[1]])
        inner, letter = documented(rng, options)
        assert parse_answer(wrapped(rng, inner), options) == letter, (number, inner, options)


def test_1000_replies_that_name_two_options() -> None:
    rng = random.Random(16)
    for number in range(1000):
        options = rng.choice([MOVES, SETS[0]])
        inner = hedged(rng, options)
        assert parse_answer(wrapped(rng, inner), options) is None, (number, inner, options)


# A reply that takes the option that it begins with back, in one sentence or two; {0} is that one's text.
TAKEN_BACK = [
    "{0}? no: {1}", "{0}, no, {1}", "? {1}", "wrong", "is wrong", "not this", "not {0}", "no",
    "wait, {1}", "wait, the last one", "{0} isn't it", "{0} isn’t right", "{0} but no",
    "{0}... hmm, the other", "{0}, sorry, {1}", "{0} or {1}", "{0}?", "incorrect", "ruled out, {1}",
    "cannot be", "{0} ~~{0}~~", "<s>{0}</s>", "❌", "{0} is false, {1} is true", "{0} → {1}",
    "scratch that: {1}", "{0}, actually {1}", "rather {1}", "neither", "{0} is unlikely", "{1}", "{1}!",
    "{0}; {1}.", "then {2}", "n\u0336o\u0336", "{0} ≠", "I take it back", "{0}, correction: {3}",
    "the opposite", "no, {2}", "（{3}）", "｛{4}｝",
]  # fmt: skip


def test_1000_replies_that_take_their_letter_back() -> None:
    rng = random.Random(17)
    for number in range(1000):
        options = rng.choice([SETS[0], {"A": "yes", "B": "no"}, {"A": "left", "B": "left and up", "C": "up"}])
        letter, other = rng.sample(list(options), 2)
        led = rng.choice([*MARKED_LEDS, "{}\n", "{}.\n", "({})\n"]).format(
            rng.choice([letter, letter.lower()])
        )
        wide = chr(ord(other) + 0xFEE0)
        words = [options[letter], options[other], other.lower(), other, wide]
        texts = [rng.choice([w, w.upper(), w.capitalize()]) if i < 2 else w for i, w in enumerate(words)]
        if other == "A":  # alone before a word it may be an article
            texts[2] = "a."
        inner = f"{led} {rng.choice(TAKEN_BACK).format(*texts)}"
        same = plain(inner.partition(" ")[2]) == plain(options[letter])
        assert same or parse_answer(wrapped(rng, inner), options) is None, (number, inner, options)


@pytest.mark.parametrize(
    ("content", "letter"),
    [
        ("A? no, B", None),
        ("A: left? no: right", None),
        ("not A but B", None),
        ("A... wait, B", None),
        ("A is wrong", None),
        ("A. left and up, clearly", None),
        ("A: b", None),
        ("A. left, as it turns", "A"),
        ("A. Left. The car's wheels turn, i.e. it goes 3 m to that side", "A"),
        ("B. left and up", "B"),
        ("B. left and up, a long way", "B"),
        ("C. not left", "C"),
        ("C. not left, as I'd say", "C"),
        ("C: left", None),
    ],
)
def test_what_takes_an_answer_back(content: str, letter: str | None) -> None:
    options = {"A": "left", "B": "left and up", "C": "not left", "D": "right"}
    assert parse_answer(f"<answer>{content}</answer>", options) == letter


def test_2000_hostile_replies() -> None:
    """None is read as an option where a reader that takes all hints finds another one too, or none."""
    rng = random.Random(15)
    read = 0
    for number in range(NUMBER):
        options = rng.choice(SETS)
        parts = [rng.choice([documented(rng, options)[0], hedged(rng, options), " ".join(options.values())])]
        parts += rng.sample(JUNK, rng.randint(0, 3))
        rng.shuffle(parts)
        text = wrapped(rng, rng.choice(["", *parts, " ".join(parts)]))
        letter = parse_answer(text, options)
        assert letter is None or plausible(text, options) == {letter}, (number, text, options)
        read += letter is not None
    assert NUMBER / 10 < read < NUMBER / 2  # both kinds are there


@pytest.mark.parametrize(
    ("content", "letter"),
    [
        ("B", "B"),
        (" b\n", "B"),
        ("B.", "B"),
        ("B)", "B"),
        ("B:", "B"),
        ("(b)", "B"),
        ("(B).", "B"),
        ("B. truck left", "B"),
        ("B) anything at all", "B"),
        ("(B) truck left", "B"),
        ("B: truck left", "B"),
        ("B.truck left", "B"),
        ("B truck left", "B"),
        ("B\nbecause it moves", "B"),
        ("truck left", "B"),
        ("  TRUCK \n left ", "B"),
        ("tilt up", "D"),
        ("", None),
        ("   ", None),
        ("E", None),
        ("7", None),
        ("A and B", None),
        ("A, B", None),
        ("AB", None),
        ("B pan right", None),
        ("Btruck left", None),
        ("Because of A", None),
        ("A camera that trucks left", None),
        ("truck", None),
        ("truck left or pan right", None),
        ("the answer is B", None),
        ("not B", None),
        ("B.C.", None),
        ("A) or B)", None),
        ("(A) and (B)", None),
        ("A. B. C. D.", None),
        ("A. B.C.D.", None),
        ("A\nB\nC", None),
        ("B. wrong; C", None),
        ("B. wrong; (c)", None),
        ("B. c: pan right", None),
        ("B. pan right", None),
        ("B: _C_", None),
        ("B. truck left, i.e. to that side (a. or so)", None),
        ("B. truck left, i.e. to a side", "B"),
        ("B. Truck left.", "B"),
        ("B. truck left, since B moves", "B"),
        ("**B**", None),
        ("İB", None),
        ("\uff22", None),  # a full-width B
    ],
)
def test_what_counts_as_an_answer(content: str, letter: str | None) -> None:
    assert parse_answer(f"<think>A or C</think><answer>{content}</answer>", MOVES) == letter


MARKED = {before + "B" + after for before in ("", "(") for after in ("", ")", ".", ":", ").", "):")}


AFTER = ["", ")", ".", ":", ").", "):", ".)", ":)", "))", "..", "::", "]", ",", ";", " ."]


@pytest.mark.parametrize("before", ["", "(", "((", "[", "."])
@pytest.mark.parametrize("after", AFTER)
def test_a_letter_alone_may_have_the_marks_that_the_docstring_names(before: str, after: str) -> None:
    content = f"{before}B{after}"
    assert parse_answer(f"<answer>{content}</answer>", MOVES) == ("B" if content in MARKED else None)


@pytest.mark.parametrize(
    ("content", "letter"),
    [
        ("A", "A"),
        ("A cube", "B"),
        ("a  cube", "B"),
        ("A sphere", "A"),
        ("B cube", "C"),
        ("cube", "D"),
        ("D cube", "D"),
        ("B A cube", "B"),
        ("A A sphere", "A"),
        ("A. cube", None),  # the text of D
        ("A. A  SPHERE", "A"),
        ("A. A sphere, not a cube.", "A"),
        ("A. A sphere, not a cube of B", None),
        ("A. A sphere, not a sphere", None),
        ("A. A sphere is not a cube", None),
        ("A. A sphere, not a cube but a pyramid", None),
        ("A. A sphere, not a cube? D", None),
        ("A. not a cube", None),
        ("A. A sphere, a round one.", "A"),
        ("A. A sphere or D", None),
        ("B. A cube of B", "B"),
        ("A pyramid", None),
        ("a sphere or a cube", None),
    ],
)
def test_options_that_begin_with_a_letter(content: str, letter: str | None) -> None:
    assert parse_answer(f"<answer>{content}</answer>", CUBES) == letter


@pytest.mark.parametrize(
    ("content", "letter"),
    [
        ("A. It does not move", "A"),
        ("A. It does not move.", "A"),
        ("A It does not move", "A"),
        ("A. It does not move. Wait, it moves", None),
        ("A. It moves", None),
        ("A. It moves.", None),
        ("B. It moves!", "B"),
        ("B. It does not move", None),
        ("C. Right", None),
        ("C. Right.", None),
        ("D. Right", "D"),
        ("D. Right, as it turns.", "D"),
        ("C. Left, not right.", "C"),
        ("C. Left, not moving", None),  # the text of F
        ("E. ...", "E"),
    ],
)
def test_a_full_stop_at_the_end_of_an_option_does_not_count(content: str, letter: str | None) -> None:
    options = {
        "A": "It does not move.", "B": "It moves.", "C": "Left.", "D": "Right.", "E": "...",
        "F": "not moving", "G": "moving",
    }  # fmt: skip
    assert parse_answer(f"<answer>{content}</answer>", options) == letter


@needs("benchmarks")
def test_every_option_of_a_published_benchmark_is_read_as_its_letter_and_no_other() -> None:
    for question in json.loads((shared("benchmarks") / "vlm4d_real.json").read_text(encoding="utf-8")):
        options = {letter: str(text) for letter, text in question["choices"].items()}
        for (letter, own), other in product(options.items(), options.values()):
            same = plain(own) == plain(other)
            for text in (other, other + ".", other.rstrip(".")):
                got = parse_answer(f"<answer>{letter}. {text}</answer>", options)
                assert (got == letter) is same, (letter, text, options)


def test_ligatures_are_no_letters() -> None:
    assert parse_answer("<answer>\ufb01 left</answer>", {"A": "up", "F": "left"}) is None


def test_options_that_are_letters_or_look_like_marked_letters() -> None:
    assert parse_answer("<answer>A</answer>", {"A": "B", "B": "A"}) == "A"
    people = {"A": "B. Franklin", "B": "A. Lincoln"}
    assert parse_answer("<answer>A. Lincoln</answer>", people) == "B"
    assert parse_answer("<answer>A. Franklin</answer>", people) == "A"
    assert parse_answer("<answer>left</answer>", {"A": "left", "B": "Left", "C": "up"}) is None
    assert parse_answer("<answer>A</answer>", {}) is None


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer>A</answer> no: <answer>B</answer>", "B"),
        ("<answer>A</answer> <answer>B", "A"),
        ("<answer><answer>B</answer></answer>", "B"),
        ("<answer>A</answer>B</answer>", "A"),
        ("<ANSWER> B </Answer>", "B"),
        ("</answer>B<answer>", None),
        ("B", None),
        ("truck left", None),
        ("<answer>B", None),
        ("<answer/>B</answer>", None),
        ("<an\u017fwer>B</an\u017fwer>", None),
        ("", None),
    ],
)
def test_the_last_closed_answer_is_read(text: str, content: str | None) -> None:
    assert answer_text(text) == content
    assert parse_answer(text, MOVES) == content


@given(st.text(alphabet="ABab.():, \n<>/answer", max_size=60))
def test_parser_is_total_and_reads_nothing_outside_the_answer(text: str) -> None:
    assert parse_answer(text, MOVES) in (None, *MOVES)
    if "</answer>" not in text.lower():
        assert parse_answer(text, MOVES) is None


@given(st.sampled_from("ABCD"), st.text(max_size=30).filter(lambda s: "<" not in s))
def test_free_text_never_changes_the_answer(letter: str, noise: str) -> None:
    assert parse_answer(f"{noise}<answer>{letter}</answer>{noise}", MOVES) == letter
