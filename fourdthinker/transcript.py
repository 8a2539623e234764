"""What a model wrote, with its latent blocks as marks that people can read."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from fourdthinker.answers import TAGS
from fourdthinker.latents import LATENT_END, LATENT_PAD, LATENT_START, LatentSpec

_CONTEXT = 8  # ids decoded again before new ones: a tokenizer may write an id differently at the start

_BLOCK = f"{re.escape(LATENT_START)}\\s*(?:{re.escape(LATENT_PAD)}\\s*)*(?:{re.escape(LATENT_END)})?"
_TAG = "|".join(map(re.escape, (*TAGS, "<|im_end|>", "<|endoftext|>")))
_PARTS = re.compile(rf"(?P<block>{_BLOCK})|(?P<tag>{_TAG})")


def text_plain(text: str) -> str:
    """Make a completion readable.

    Args:
        text: with latent blocks as tokens.

    Returns:
        The text with every block as "[imagery × 4]", 4 being its number of latents.
    """
    return _PARTS.sub(lambda m: m[0] if m["block"] is None else _mark(m[0].count(LATENT_PAD)), text)


def _mark(latents: int) -> str:
    return f"[imagery × {latents}]"


def text_spans(text: str) -> list[tuple[str, int, int]]:
    """Where the pieces of one kind are in a completion.

    Args:
        text: with latent blocks as tokens.

    Returns:
        Triples (kind, begin, end) that cover the text, in order: "text", "tag" (a control tag), "imagery".
    """
    spans, begin = [], 0
    for match in _PARTS.finditer(text):
        if match.start() > begin:
            spans.append(("text", begin, match.start()))
        spans.append(("tag" if match["block"] is None else "imagery", match.start(), match.end()))
        begin = match.end()
    if begin < len(text):
        spans.append(("text", begin, len(text)))
    return spans


def text_parts(text: str) -> list[tuple[str, str]]:
    """Cut a completion into pieces of one kind each.

    Args:
        text: with latent blocks as tokens.

    Returns:
        Pairs: ("text", ...), ("tag", a control tag), ("imagery", number of latents).
    """
    return [
        (kind, str(text.count(LATENT_PAD, begin, end)) if kind == "imagery" else text[begin:end])
        for kind, begin, end in text_spans(text)
    ]


class TextStream:
    """Turns the ids of one row, as they come, into text with a mark for every latent block.

    The pieces joined are the text of the whole row as `text_plain` shows it. A character whose bytes
    are not complete yet, and a block that is not closed yet, wait for the ids that complete them.
    """

    def __init__(self, tokenizer: Any, latents: LatentSpec, eos_ids: Collection[int]) -> None:
        self.tokenizer, self.latents, self.eos_ids = tokenizer, latents, frozenset(eos_ids)
        self._shown: list[int] = []  # text ids already given out since the last block, the last few of them
        self._held: list[int] = []  # text ids not given out yet
        self._block: int | None = None  # latents of the open block

    def feed(self, ids: Sequence[int]) -> str:
        """The text that these next ids complete."""
        text = ""
        for token in ids:
            if token in self.eos_ids:
                break
            if token == self.latents.start_id:
                text += self.close()
                self._block, self._shown = 0, []  # bytes on both sides of a block make no character
            elif self._block is not None and token == self.latents.pad_id:
                self._block += 1
            elif self._block is not None and token == self.latents.end_id:
                text += self.close()
            else:
                self._held.append(token)
        return text + self._complete()

    def close(self) -> str:
        """What still waits: at the end of the row, or where a block begins or ends."""
        text = self._complete(final=True)
        if self._block is not None:
            text += _mark(self._block)
            self._block = None
        return text

    def _complete(self, final: bool = False) -> str:
        if not self._held:
            return ""
        before = self._decode(self._shown)
        after = self._decode(self._shown + self._held)
        if after.endswith("\ufffd") and not final:
            return ""
        self._shown = (self._shown + self._held)[-_CONTEXT:]
        self._held = []
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
