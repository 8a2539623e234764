"""The insides of `fourdthinker.frames`."""
