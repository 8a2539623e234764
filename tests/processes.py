"""Functions run by processes of a gloo group, forked from a server that has imported the package."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SERVER = mp.get_context("forkserver")
SERVER.set_forkserver_preload(["fourdthinker.trainers.dift", "fourdthinker.trainers.grpo"])


def run_ranks(
    work: Callable[..., None], folder: Path, *arguments: Any, timeout: float = 60.0, processes: int = 2
) -> list[int]:
    """Call `work(rank, folder, *arguments)` in several processes.

    Args:
        work: a function of a module, called within the group.
        folder: for what it writes.
        arguments: further ones.
        timeout: of a collective, in seconds.
        processes: how many.

    Returns:
        The exit status of each; negative: the signal that ended it.
    """
    with tempfile.TemporaryDirectory() as store:
        started = [
            SERVER.Process(target=_run, args=(work, (rank, processes), folder, store, timeout, arguments))
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(400)
            if process.exitcode is None:
                process.kill()
                process.join()
        return [int(process.exitcode or 0) for process in started]


def _run(
    work: Callable[..., None],
    rank_of: tuple[int, int],
    folder: Path,
    store: str,
    timeout: float,
    arguments: Any,
) -> None:
    torch.set_num_threads(1)
    rank, size = rank_of
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    shared = dist.FileStore(os.path.join(store, "store"), size)
    limit = timedelta(seconds=timeout)
    dist.init_process_group("gloo", rank=rank, world_size=size, store=shared, timeout=limit)
    work(rank, folder, *arguments)
    dist.destroy_process_group()


def processes_named(start: str) -> list[int]:
    """Process ids of this machine's processes whose command line begins so."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                name = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(start.encode()):
                found.append(int(folder.name))
    return found
