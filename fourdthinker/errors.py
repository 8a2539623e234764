"""The exceptions users meet: `ValueError`s whose messages say what was wrong, where, and what to do."""

from __future__ import annotations


class FourdError(ValueError):
    """Base of every error this package raises about its input."""


class RecordError(FourdError):
    """A line of data is wrong. The message names file, line, key and remedy."""


class VideoError(FourdError):
    """A video or an image cannot be read. The message names file, time and cause."""


class CheckpointError(FourdError):
    """A checkpoint is incomplete, or does not fit what is asked of it."""


class ConfigError(FourdError):
    """A setting is unknown, out of range, or contradicts another one."""


class OutputError(FourdError):
    """A file cannot be written. The message names it, the cause and the remedy."""
