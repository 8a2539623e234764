"""The table of codecs is where their facts are, and the only place."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import av
import pytest

from fourdthinker.frames import codecs

DECODERS = [decoder for codec in codecs.CODECS.values() for decoder in codec.decoders]
FOLDER = Path(codecs.__file__).parent
# Names of containers of bare streams, which are those of their codecs.
CONTAINERS = {"container.py", "timeline_from_packets.py"}


def test_a_decoder_belongs_to_one_codec() -> None:
    assert [name for name, count in Counter(DECODERS).items() if count > 1] == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_are_those_of_ffmpeg(decoder: str) -> None:
    assert av.Codec(decoder, "r").name == decoder
    assert codecs.codec_of(decoder) is not codecs.codec_of("another")


@pytest.mark.parametrize(
    "path", [path for path in FOLDER.rglob("*.py") if path.name not in {"codecs.py"} | CONTAINERS], ids=str
)
def test_nothing_else_decides_by_a_codec_s_name(path: Path) -> None:
    constants = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    assert [node.value for node in constants if node.value in DECODERS] == []


def test_of_an_unknown_codec_nothing_is_assumed() -> None:
    codec = codecs.codec_of("no such decoder")
    assert codec.flags(b"")(b"data") == 0
    assert codec.begins(b"")(b"data")
    assert (codec.flushes, codec.keyframes_known, codec.reorders) == (False, False, True)
    assert (codec.damage, codec.nvdec, codec.siting(b"")) == (None, None, "left")
