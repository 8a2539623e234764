"""Ray, where an option asks for it: the package is imported and a cluster is joined here alone."""

from __future__ import annotations

import os
from typing import Any

from fourdthinker.errors import ConfigError, install


def import_ray(option: str) -> Any:
    """The package.

    Args:
        option: what needs it, for messages.

    Returns:
        The module `ray`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"{option} needs Ray, which is not installed; {install('ray')}") from error
    return ray


def join_cluster(option: str) -> tuple[Any, bool]:
    """Join the cluster of RAY_ADDRESS, or begin one on this machine, unless this process is in one already.

    Args:
        option: what needs it, for messages.

    Returns:
        The package, and whether it was joined here, so that the caller leaves it (`ray.shutdown`).

    Raises:
        ConfigError: Ray is not installed, does not start, or RAY_ADDRESS is that of Ray's client.
    """
    ray = import_ray(option)
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS is {address}, and {option} does not work through Ray's client; run this on a "
            "machine of the cluster, with its address as host:port or auto"
        )
    if ray.is_initialized():
        return ray, False
    try:
        ray.init(log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"RAY_ADDRESS {address or '(not set)'}: Ray does not start: {error}") from error
    return ray, True
