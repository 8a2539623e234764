"""The insides of `fourdthinker.records`."""
