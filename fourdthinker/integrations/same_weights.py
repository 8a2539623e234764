"""Whether results are those of a checkpoint: they name the digest of the weights that answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fourdthinker.backbones import load_checkpoint
from fourdthinker.errors import ConfigError
from fourdthinker.files import read_json_object

RESULTS, LATENTS = "results.json", "latents.json"
_DTYPES = ("bfloat16", "float16", "float32")  # an adapter is float32 beside weights of another


def check_results(checkpoint: Path, folders: Sequence[Path]) -> None:
    """Check that results were made with the weights of a checkpoint.

    Args:
        checkpoint: its folder.
        folders: with results.json or latents.json.

    Raises:
        ConfigError: a result is of other weights, or names none.
        CheckpointError: as for `load_checkpoint`.
    """
    found: dict[str, dict[str, str]] = {}
    for path in (folder / name for folder in folders for name in (RESULTS, LATENTS)):
        if not path.exists():
            continue
        settings = read_json_object(path, "evaluate again", error=ConfigError).get("settings")
        said = settings if isinstance(settings, dict) else {}
        weights, dtype = said.get("weights"), said.get("dtype")
        wanted = next((name for name in _DTYPES if isinstance(dtype, str) and name in dtype.split()), None)
        if wanted is None or not isinstance(weights, str):
            raise ConfigError(f"{path}: does not say with which weights it was made; evaluate again")
        if wanted not in found:
            found[wanted] = _weights(checkpoint, wanted)
        if found[wanted] != {"weights": weights, "dtype": dtype}:
            raise ConfigError(
                f"{path}: was made with other weights ({weights:.20}) than those of {checkpoint} "
                f"({found[wanted]['weights']}); evaluate this checkpoint, or name the folder of its results"
            )


def _weights(checkpoint: Path, dtype: str) -> dict[str, str]:
    import torch

    from fourdthinker.evaluate.weights import weights_of

    return weights_of(load_checkpoint(checkpoint, dtype=getattr(torch, dtype), plain=True).backbone)
