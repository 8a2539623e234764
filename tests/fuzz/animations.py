"""Random GIF and animated PNG files against a viewer that composes them pixel by pixel.

python -m tests.fuzz.animations --cases 1000 [--first 0]
"""

from __future__ import annotations

import argparse
import logging
import random
import sys

import numpy as np

from fourdthinker.errors import VideoError
from fourdthinker.frames import read_frames
from fourdthinker.frames.image_file import load_image
from fourdthinker.frames.probing import probe
from tests.oracle.animations import Animation, random_gif, random_png

log = logging.getLogger("fuzz")
NEAR = 4.0  # levels: each of up to six pictures laid over each other in 8 bits may be off by about one


def faults(animation: Animation) -> str:
    """What is wrong of its pictures, read together, alone and as a still, or of its times; "": nothing."""
    draw = random.Random(animation.kind)
    data, shown = animation.data, animation.shown
    times = [begin + 0.004 for begin in animation.begins]
    try:
        known = probe(data)
        if known.frames != len(shown) or abs(known.end - animation.end) > 1e-4:
            return f"{known.frames} pictures to {known.end:.3f} s, not {len(shown)} to {animation.end:.3f}"
        single = draw.randrange(len(times))
        for chosen in (range(len(times)), [single]):
            pixels = read_frames(data, times=[times[k] for k in chosen]).pixels.numpy()
            for k, picture in zip(chosen, pixels, strict=True):
                if np.abs(picture - shown[k]).max() > NEAR:
                    return f"picture {k} of {len(shown)}, asked for {list(chosen)}"
        if data[:3] == b"GIF" and np.abs(load_image(data) - shown[0]).max() > NEAR:
            return "the first picture as a still"
    except VideoError as error:
        return f"refused: {error}"
    return ""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Compose random GIF and animated PNG files.")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args(argv)
    failed = 0
    for seed in range(options.first, options.first + options.cases):
        for animation in (random_gif(seed), random_png(seed)):
            words = faults(animation)
            if words:
                failed += 1
                log.error("%s: %s", animation.kind, words)
    log.info("%d files, %d failed", 2 * options.cases, failed)
    return 1 if failed else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
