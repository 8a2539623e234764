"""config.json and tokenizer_config.json as older transformers (4.57), and what is built on them, read them.

Transformers 5 writes keys that version 4 does not know and leaves out those that it needs: the rope of the
text model, whether embedding and head are tied, and the tokenizer's class. Version 5 reads either form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def write_released_format(folder: Path) -> None:
    """Change both files of a checkpoint folder in place."""
    for name, change in (("config.json", _config), ("tokenizer_config.json", _tokenizer)):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(content: dict[str, Any]) -> None:
    text = content["text_config"]
    rope = dict(text.get("rope_parameters") or {})
    if rope:
        text["rope_theta"] = rope.pop("rope_theta", 10000.0)
        text["rope_scaling"] = rope | {"type": rope.get("rope_type", "default")}
    text["tie_word_embeddings"] = content.get("tie_word_embeddings", False)
    if "dtype" in content:
        content["torch_dtype"] = content["dtype"]


def _tokenizer(content: dict[str, Any]) -> None:
    name = content.get("tokenizer_class", "PreTrainedTokenizerFast")
    content["tokenizer_class"] = _CLASSES.get(name, name)
    content.pop("backend", None)
    extra = content.get("extra_special_tokens")
    if isinstance(extra, list):
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
