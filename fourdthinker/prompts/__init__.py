"""Records to token ids, position ids and labels: prompts and training samples."""

from fourdthinker.prompts.encoder import Encoder

__all__ = ["Encoder"]
