"""`fourdthinker generate`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fourdthinker.cli.shared import (
    SAMPLES,
    Commands,
    add_latents,
    add_model,
    add_sampling,
    answers_file,
    differ,
    model_name,
    not_read,
    output,
    rejected_beside,
    sampling,
    thinker,
    whole,
)

if TYPE_CHECKING:
    from fourdthinker.records import Record
    from fourdthinker.sampler import SamplingConfig

log = logging.getLogger(__name__)

_EXAMPLES = """\
examples:
  fourdthinker generate --checkpoint MODEL --video clip.mp4 --question "Which way does the camera move?"
  fourdthinker generate --checkpoint MODEL --video *.mp4 --question "What moves?" --out answers.jsonl
  fourdthinker generate --checkpoint MODEL --data questions.jsonl --samples 8 --preset qwen3-vl-thinking \\
      --out answers.jsonl --latents-out latents/

A line of questions.jsonl: {"id": "a", "question": "...", "video": "clip.mp4", "options": {"A": "...", ...}};
"frames" (a folder or list: a clip) or "images" (separate pictures) instead of "video", or neither. Records
for training are accepted too.
"""


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker generate`."""
    parser = commands.add_parser(
        "generate",
        help="answer questions about videos, pictures or text",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    asked = parser.add_argument_group("what is asked")
    asked.add_argument(
        "--video", type=Path, nargs="+", default=[], metavar="PATH", help="video files or folders of frames"
    )
    asked.add_argument("--image", type=Path, nargs="+", metavar="PATH", help="pictures of one question")
    asked.add_argument("--start", type=float, metavar="S", help="second of the video file to begin at")
    asked.add_argument("--end", type=float, metavar="S", help="second of the video file to end at")
    asked.add_argument("--question", nargs="+", default=[], metavar="TEXT", help="asked of each video")
    asked.add_argument(
        "--options", nargs="+", default=[], metavar="TEXT", help="answers to choose from, 2 to 26"
    )
    asked.add_argument("--data", type=Path, metavar="JSONL", help="questions, one JSON object a line")
    asked.add_argument("--media-root", type=Path, help="paths in --data start here (default: its folder)")
    asked.add_argument(
        "--on-bad-record",
        choices=("raise", "skip"),
        default="raise",
        help="what a line of --data that is wrong does (default: raise)",
    )
    parser.add_argument(
        "--samples",
        type=whole(1, SAMPLES),
        default=1,
        metavar="N",
        help="answers to each question (default: 1)",
    )
    parser.add_argument(
        "--out", type=output, metavar="JSONL", help="answers; the same command goes on with it"
    )
    parser.add_argument(
        "--latents-out",
        type=output,
        metavar="FOLDER",
        help="one safetensors file an answer, with its latents",
    )
    parser.add_argument(
        "--batch", type=whole(1), default=8, metavar="N", help="questions at a time (default: 8)"
    )
    add_latents(parser)
    add_sampling(parser, temperature=0.0)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Answer one question on standard output as it is sampled, or many into the file `--out`.

    Returns:
        The exit status: 0, or 1 if a question of `--out` failed.
    """
    from fourdthinker.errors import ConfigError
    from fourdthinker.sampler import check_latent_mode

    config = sampling(arguments)
    check_latent_mode(arguments.latents)
    if arguments.out is not None:
        return _to_file(arguments, config)
    records = _records(arguments)
    replaced = arguments.latents != "own"
    if len(records) > 1 or arguments.samples != 1 or arguments.latents_out is not None or replaced:
        more = ", --latents-out" if arguments.latents_out else ""
        more += f", --latents {arguments.latents}" if replaced else ""
        raise ConfigError(
            f"{len(records)} questions, {arguments.samples} samples{more}: name a file for the answers with "
            "--out"
        )
    model = thinker(arguments)
    prompt = model.encoder.prompt(records[0])

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    answer = model.answer(prompt, config, on_text=write)
    write("\n")
    if answer.finish_reason == "length":
        log.warning("cut off after %d tokens; raise --max-new-tokens", config.max_new_tokens)
    return 0


def _to_file(arguments: argparse.Namespace, config: SamplingConfig) -> int:
    """Everything that is written is looked at, and kept from other processes, before the model is loaded."""
    from fourdthinker.files import make_folder
    from fourdthinker.generate import generate_file
    from fourdthinker.records import empty_rejected

    inputs = [arguments.data, *arguments.video, *(arguments.image or [])]
    rejected = rejected_beside(arguments.out)
    for path in (arguments.out, rejected):
        not_read(path, [given for given in inputs if given is not None])
    latents_out = arguments.latents_out
    differ(out=arguments.out, latents_out=latents_out)
    with answers_file(arguments.out) as out:
        if latents_out is not None:
            make_folder(latents_out)
        if arguments.data is not None:
            empty_rejected(rejected)
        records = _records(arguments)
        done = generate_file(
            thinker(arguments),
            records,
            out,
            n=arguments.samples,
            config=config,
            batch=arguments.batch,
            latents_out=latents_out,
            latents=arguments.latents,
            name=model_name(arguments),
        )
    sys.stdout.write(f"{arguments.out}\n")
    if done.before:
        log.info("%d of %d questions were answered before", done.before, len(records))
    if done.failed:
        log.error("%d of %d questions failed; their lines say why", len(done.failed), len(records))
    return 1 if done.failed else 0


def _records(arguments: argparse.Namespace) -> list[Record]:
    from fourdthinker.errors import ConfigError
    from fourdthinker.records import read_records
    from fourdthinker.thinker import question_record

    if (arguments.data is None) == (not arguments.question):
        raise ConfigError("give either --question or --data")
    if arguments.data is not None:
        for flag in ("video", "image", "options", "start", "end"):
            if getattr(arguments, flag) not in (None, []):
                raise ConfigError(f"--{flag} goes with --question; the lines of --data say what is asked")
        return read_records(
            arguments.data,
            media_root=arguments.media_root,
            kind="ask",
            on_bad_record=arguments.on_bad_record,
            rejected=None if arguments.out is None else rejected_beside(arguments.out),
        )
    if arguments.video and arguments.image:
        raise ConfigError("give either --video or --image")
    return [
        question_record(
            video,
            question,
            images=arguments.image,
            options=arguments.options,
            start=arguments.start,
            end=arguments.end,
            id=f"{'text' if video is None else video}#{number}",
        )
        for video in arguments.video or [None]
        for number, question in enumerate(arguments.question, start=1)
    ]
