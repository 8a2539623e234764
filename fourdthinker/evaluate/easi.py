"""The letter that EASI (VLMEvalKit's spatial benchmarks) reads from a reply: far more forgiving than ours.

Ours is the reward and the score; beside it, theirs says how much of an error is the form of the answer.
Written from the rules of `can_match_option` as of August 2026, for options A to F.
"""

from __future__ import annotations

import re

_TAIL = 800  # characters that the rules about the end of a reply look at
_LINES = 6
_INVISIBLE = re.compile("[\u200b\u200c\u200d\ufeff]")
_BLOCK = re.compile(
    r"<\s*answer\b[^>]*>\s*([A-J])(?:\s*[\.．:：\)\]】、])?.*?<\s*/\s*answer\s*>", re.IGNORECASE | re.DOTALL
)
_BEFORE_END = [
    re.compile(rf"(?<![A-Za-z])[\(\[\{{（【]?\s*([A-F])\s*[\)\]\}}）】]?\s*</\s*{tag}\s*>", re.IGNORECASE)
    for tag in ("answer", "think")
]
_THINK = [re.compile(rf"<{slash}\s*think\s*>", re.IGNORECASE) for slash in ("/", r"\s*")]
_LISTED = re.compile(r"^[*_>\-\s]*(?:option|选项)\s+[A-J]\s*[:：]", re.IGNORECASE)
_ALONE = re.compile(r"\s*[*_`>（）\[\]【】\(\)]*\s*([A-Fa-f])\s*[*_`（）\[\]【】\(\)]*\s*")
_LABEL = re.compile(r"\s*([A-F])\s*[\.．:：\)\]】、-]\s+", re.IGNORECASE)
_INLINE = re.compile(
    r"(?<![A-Za-z])[*_`（\[\{\(]*\s*([A-F])\s*[*_`）\]\})]*(?=$|[\s\.,:;!?\)\]】》」』，。；、：）])"
)
_PHRASE = re.compile(
    r"(?:final\s*answer|the\s*answer\s*is|answer(?:\s*is)?|correct\s*answer|答案|最终答案|结论|所以|因此|我选(?:择)?"
    r"|选择|选)\s*[:：>＝=]?\s*[\(\[\{（【]?\s*([A-F])\s*[\)\]\}）】]?(?:\b|[.)、。])",
    re.IGNORECASE,
)
_ANYWHERE = re.compile(r"(?<![A-Za-z])[\(\[\{（【]?\s*([A-F])\s*[\)\]\}）】]?(?![A-Za-z])")


def easi_letter(text: str) -> str | None:
    """The letter of a reply, by the first of these rules that finds one.

    1. the first `<answer>` block that begins with a letter A to J; 2. a letter before `</answer>`, else
    before `</think>`, in the last 800 characters; 3. of the last six lines after the last `</think>` (else
    after the last `<think>`, else of all), from the last upwards: a letter alone, a line that begins "A. ",
    the only capital letter that stands alone; 4. the same of the last 800 characters; 5. "the answer is B"
    and the like; 6. the only capital letter that stands alone in the whole text.

    Args:
        text: a decoded completion.

    Returns:
        A capital letter, which need not be one of the question's options; None where no rule finds one.
    """
    text = _INVISIBLE.sub("", text.strip())
    tail = text[-_TAIL:]
    found = _BLOCK.search(text) or _BEFORE_END[0].search(tail) or _BEFORE_END[1].search(tail)
    if found:
        return found[1].upper()
    letter = _of_lines(_after_thinking(text)) or _of_lines(tail)
    if letter:
        return letter
    if found := _PHRASE.search(text):
        return found[1].upper()
    kept = "\n".join(line for line in text.splitlines() if not _LISTED.search(line))
    letters = set(_ANYWHERE.findall(kept))
    return letters.pop() if len(letters) == 1 else None


def _after_thinking(text: str) -> str:
    for tag in _THINK:
        ends = [match.end() for match in tag.finditer(text)]
        if ends:
            return text[ends[-1] :].strip()
    return text


def _of_lines(text: str) -> str | None:
    for line in reversed([line.strip() for line in text.splitlines()[-_LINES:]]):
        if not line or _LISTED.search(line):
            continue
        if found := _ALONE.fullmatch(line) or _LABEL.match(line):
            return found[1].upper()
        letters = set(_INLINE.findall(line))
        if len(letters) == 1:
            return letters.pop()
    return None
