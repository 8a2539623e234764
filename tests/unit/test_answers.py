"""The answer parser: spellings by hand, and hostile replies against a judge that tries all of them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourdthinker.answers import answer_text, parse_answer

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


def judge(text: str, options: dict[str, str]) -> str | None:
    answer = content(text)
    if not answer:
        return None
    for letter in options:
        for name in (letter, letter.lower()):
            if answer in {a + name + b + c for a in ("", "(") for b in ("", ")") for c in ("", ".", ":")}:
                return letter
    same = [letter for letter in options if plain(options[letter]) == plain(answer)]
    if same:
        return same[0] if len(same) == 1 else None
    for letter in options:
        for name in (letter, letter.lower()):
            for led in (f"({name})", f"{name}.", f"{name})", f"{name}:"):
                if answer.startswith(led):
                    rest = answer[len(led) :]
                    free = rest[:1].isspace()
                    return letter if free or plain(rest) == plain(options[letter]) else None
            if answer.startswith(name) and answer[len(name) :][:1].isspace():
                rest = answer[len(name) :]
                alone = not rest.split("\n")[0].strip() and "\n" in rest
                return letter if alone or plain(rest) == plain(options[letter]) else None
    return None


def spelling(rng: random.Random, options: dict[str, str]) -> str:
    letter = rng.choice(list(options))
    name = rng.choice([letter, letter.lower()])
    led = rng.choice([name, f"({name})", f"{name}.", f"{name})", f"{name}:", f"({name}).", f"({name}"])
    text = rng.choice([options[letter], rng.choice(list(options.values())), *rng.sample(JUNK, 2)])
    text = rng.choice([text, text.upper(), text.replace(" ", "  ")])
    return rng.choice(
        [led, text, led + " " + text, led + text, led + "\n" + text, led + " " + rng.choice(JUNK)]
    )


def reply(rng: random.Random, options: dict[str, str]) -> str:
    parts = []
    for _ in range(rng.randint(1, 4)):
        inner = rng.choice([spelling(rng, options), " ".join(rng.sample(JUNK, rng.randint(0, 3)))])
        opening = rng.choice(["<answer>"] * 4 + ["<ANSWER>", "<Answer>\n", "", "<answer"])
        closing = rng.choice(["</answer>"] * 4 + ["</ANSWER>", "\n</answer>", "", "<answer>"])
        parts += [rng.choice(["", "<think>A or B</think>", "The answer is B. "]), opening + inner + closing]
    return "".join(parts)


def test_2000_hostile_replies():
    rng = random.Random(15)
    read = 0
    for number in range(NUMBER):
        options = rng.choice(SETS)
        text = reply(rng, options)
        letter = judge(text, options)
        assert parse_answer(text, options) == letter, (number, text, options)
        read += letter is not None
    assert NUMBER / 4 < read < 3 * NUMBER / 4  # both kinds are there


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
        ("A. cube", "A"),
        ("A pyramid", None),
        ("a sphere or a cube", None),
    ],
)
def test_options_that_begin_with_a_letter(content: str, letter: str | None) -> None:
    assert parse_answer(f"<answer>{content}</answer>", CUBES) == letter


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
