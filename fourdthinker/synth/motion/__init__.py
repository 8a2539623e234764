"""Moves of the camera and of objects, from their tracks. docs/synthesis-labels.md explains each label."""

from fourdthinker.synth.motion.camera import camera_moves, move_sets, moves_during, unclear_spans
from fourdthinker.synth.motion.objects import (
    distance_change,
    distances,
    measures_agree,
    object_direction,
    object_moves,
    seen_part,
    speed_profile,
)
from fourdthinker.synth.motion.rates import camera_rates, longest_run
from fourdthinker.synth.motion.settings import MotionSettings

__all__ = [
    "MotionSettings",
    "camera_moves",
    "camera_rates",
    "distance_change",
    "distances",
    "longest_run",
    "measures_agree",
    "move_sets",
    "moves_during",
    "object_direction",
    "object_moves",
    "seen_part",
    "speed_profile",
    "unclear_spans",
]
