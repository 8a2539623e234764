"""Frames decoded and converted by a GPU."""
