"""Arrays on the disk that several processes fill through memory maps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fourdthinker.errors import OutputError
from fourdthinker.files.paths import output_path


def create_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
    """Make a .npy file of zeros, for `np.load(path, mmap_mode="r+")`.

    Its space is taken on the disk here: a memory map of a sparse file ends the process with SIGBUS when the
    disk is full.

    Args:
        path: the file, in an existing folder; an existing one is replaced.
        dtype: of the array.
        shape: of the array.

    Raises:
        OutputError: as `output_path`, or there is no space for it; then there is no file.
    """
    target = output_path(path)
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    try:
        np.lib.format.open_memmap(target, "w+", dtype, shape).flush()
        with open(target, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise OutputError(
            f"{path}: its {size / 1e6:,.1f} MB cannot be written ({error.strerror}); free space on this "
            "disk, or name a folder on another one"
        ) from error
