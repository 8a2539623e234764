"""The exceptions users meet: `ValueError`s whose messages say what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping


def install(extra: str) -> str:
    """The command that installs what an extra of this package holds, for messages.

    Args:
        extra: its name.

    Returns:
        A command for a shell.
    """
    return f"pip install 'fourdthinker[{extra}]'"


class FourdError(ValueError):
    """Base of every error this package raises about its input."""


class RecordError(FourdError):
    """A line of data is wrong. The message names file, line, key and remedy."""


class VideoError(FourdError):
    """A video or an image cannot be read. The message names file, time and cause."""


class GeometryError(FourdError):
    """Poses, a lens, depth or a track are wrong, or cannot be estimated. The message names the source."""


class CheckpointError(FourdError):
    """A checkpoint is incomplete, or does not fit what is asked of it."""


class ConfigError(FourdError):
    """A setting is unknown, out of range, or contradicts another one."""


class OutputError(FourdError):
    """A file cannot be written. The message names it, the cause and the remedy."""


class SamplingError(FourdError):
    """Prompts that the model has no answer to: its logits or latents are NaN or infinite.

    Attributes:
        prompts: index of the prompt in the call -> the reason, which names the question.
    """

    def __init__(self, prompts: Mapping[int, str]) -> None:
        self.prompts = dict(prompts)
        first, *others = self.prompts.values()
        more = f" (and {len(others)} more prompts)" if others else ""
        super().__init__(f"{first}{more}")

    def __reduce__(self) -> tuple[type[SamplingError], tuple[dict[int, str]]]:
        """Pickled by its prompts: a rollout worker sends it to its trainer."""
        return type(self), (self.prompts,)
