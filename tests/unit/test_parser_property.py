"""The answer parser against a judge that tries every documented spelling, on hostile replies."""

from __future__ import annotations

import random

from fourdthinker.rewards import parse_answer

NUMBER = 2000
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
