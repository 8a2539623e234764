"""What a model wrote, with its latent blocks as marks that people can read."""

from __future__ import annotations

import re
from html import escape

from fourdthinker.latents import LATENT_END, LATENT_PAD, LATENT_START

_BLOCK = f"{re.escape(LATENT_START)}\\s*(?:{re.escape(LATENT_PAD)}\\s*)*(?:{re.escape(LATENT_END)})?"
_PARTS = re.compile(rf"(?P<block>{_BLOCK})|(?P<tag></?(?:think|answer)>|<\|im_end\|>|<\|endoftext\|>)")


def text_plain(text: str) -> str:
    """The text with every latent block as "[imagery × 4]", 4 being its number of latents."""
    return _PARTS.sub(lambda m: m[0] if m["block"] is None else f"[imagery × {m[0].count(LATENT_PAD)}]", text)


def text_html(text: str) -> str:
    """Escaped text; latent blocks become one mark with the number of latents, the control tags faint."""
    out, at = [], 0
    for match in _PARTS.finditer(text):
        out.append(escape(text[at : match.start()]))
        if match["block"] is not None:
            count = match["block"].count(LATENT_PAD)
            out.append(f'<span class="imagery" title="{count} latents">◆ imagery × {count}</span>')
        else:
            out.append(f'<span class="tag">{escape(match["tag"])}</span>')
        at = match.end()
    out.append(escape(text[at:]))
    return "".join(out)
