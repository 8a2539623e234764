"""VLMEvalKit without a fork: its `run.py` with one more model.

python -m fourdthinker.integrations.vlmeval VLMEvalKit/run.py --pretrained runs/grpo/final \
    --model fourdthinker --data DSRBench_1fps

VLMEvalKit keeps its models in a table and has no plug-in point: the table gets an entry, and then its own
script runs, with all arguments that are not named here.
"""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmeval.config import supported_VLM
from vlmeval.vlm.base import BaseModel

from fourdthinker.errors import ConfigError
from fourdthinker.integrations.replies import Parts, Reply, replies, sampling
from fourdthinker.thinker import Thinker

log = logging.getLogger(__name__)

NAME = "fourdthinker"


class FourDThinker(BaseModel):  # type: ignore[misc]  # untyped base
    """A checkpoint as VLMEvalKit asks it: one question at a time.

    Videos come as files and are read by the checkpoint's frame policy. VLMEvalKit's extraction gets the
    content of `<answer>`, and the whole text where it has none.
    """

    allowed_types = ("text", "image", "video")
    INTERLEAVE = True
    VIDEO_LLM = True  # a video comes as a file and not as pictures

    def __init__(self, pretrained: str, device: str | None = None, max_new_tokens: int | None = None) -> None:
        """Load the checkpoint.

        Args:
            pretrained: a folder, or a model id `owner/name`.
            device: where the model runs; None: the first GPU, or the CPU without one.
            max_new_tokens: of an answer; None: 512.

        Raises:
            CheckpointError: as for `load_checkpoint`.
            ConfigError: a value out of range.
        """
        self.thinker = Thinker.from_pretrained(pretrained, device=device)
        self.config = sampling(max_new_tokens)
        self.asked = self.failed = 0

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answer one question, greedily.

        Args:
            message: its parts, each with `type` and `value`.
            dataset: name of the benchmark.

        Returns:
            The answer; "", which no rule takes for a letter, where a file is missing or cannot be read and
            where several videos or a video beside pictures are asked about. A warning says why, and how many
            there are so far.
        """
        parts = Parts([], [], [])
        kinds: dict[str, list[Any]] = {"text": parts.texts, "video": parts.videos, "image": parts.images}
        for part in message:
            kinds[part["type"]].append(part["value"])
        self.asked += 1
        name = f"{dataset or 'question'}/{self.asked}"
        try:
            reply = replies(self.thinker, [parts.record(name)], self.config, 1)[0]
        except ConfigError as error:  # such as a file that is not there
            reply = Reply("", failed=str(error))
            log.warning("%s has no answer: %s", name, error)
        if reply.failed is not None:
            self.failed += 1
            log.warning("%d of %d questions have no answer so far", self.failed, self.asked)
        return reply.answer


def main(arguments: Sequence[str] | None = None) -> None:
    """Register the model, then run VLMEvalKit's script.

    Args:
        arguments: of the command line; None: those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fourdthinker.integrations.vlmeval",
        description="Run VLMEvalKit on a checkpoint; all other arguments are VLMEvalKit's own.",
    )
    parser.add_argument("script", type=Path, help="run.py of a checkout of VLMEvalKit")
    parser.add_argument("--pretrained", required=True, help="folder of the checkpoint, or owner/name")
    parser.add_argument("--device")
    parser.add_argument("--max-new-tokens", type=int)
    given, rest = parser.parse_known_args(arguments)
    if not given.script.is_file():
        parser.error(f"{given.script}: no such file; name run.py of a checkout of VLMEvalKit")
    supported_VLM[NAME] = partial(
        FourDThinker, given.pretrained, device=given.device, max_new_tokens=given.max_new_tokens
    )
    sys.argv = [str(given.script), *rest]
    runpy.run_path(str(given.script), run_name="__main__")


if __name__ == "__main__":
    main()
