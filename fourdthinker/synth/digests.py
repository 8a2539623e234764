"""Digests of files by their content, remembered in the journal."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import time
from pathlib import Path

from fourdthinker.synth.journal import Journal

_CHUNK = 1 << 20
_OF_WEIGHTS = {".json", ".safetensors", ".txt", ".model", ".jinja"}


def file_digest(path: Path, journal: Journal, timeout: float = math.inf) -> str:
    """The digest of a file.

    Args:
        path: of the file.
        journal: knows files by path, size and time of their last change.
        timeout: seconds that reading it may take.

    Returns:
        16 bytes as hexadecimal digits.

    Raises:
        OSError: it cannot be read, or not in time.
    """
    status = path.stat()
    target = os.path.realpath(path)
    known = journal.digest(target, status.st_size, status.st_mtime_ns)
    if known is not None:
        return known
    hashed = hashlib.blake2b(digest_size=16)
    deadline = time.monotonic() + timeout
    with open(path, "rb") as file:
        left = status.st_size  # a file that grows is read as far as it was
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            hashed.update(chunk)
            left -= len(chunk)
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"not within {timeout:g} s")
    journal.note_digest(target, status.st_size, status.st_mtime_ns, hashed.hexdigest())
    return hashed.hexdigest()


def weights_digest(folder: Path, journal: Journal) -> str:
    """The digest of a checkpoint: names and contents of its weights, settings and tokenizer.

    Args:
        folder: of the checkpoint.
        journal: as of `file_digest`, so that the weights are read once, and again when they have changed.

    Returns:
        16 bytes as hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    hashed = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.suffix in _OF_WEIGHTS and path.is_file():
            hashed.update(f"{path.name}/{file_digest(path, journal)}/".encode())
    return hashed.hexdigest()
