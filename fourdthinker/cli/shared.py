"""What several commands share: which model, and how to sample."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # heavy modules are imported by the commands that need them, so that --help is instant
    from fourdthinker.files import JsonLines
    from fourdthinker.sampler import SamplingConfig
    from fourdthinker.thinker import Thinker

Commands = argparse._SubParsersAction  # of argparse.ArgumentParser
SEEDS = 2**32 - 1  # the largest that numpy takes
SAMPLES = 65_536  # of a question

# Recommended by the models' makers. Flags given beside a preset win.
PRESETS: dict[str, dict[str, Any]] = {
    "qwen3-vl-thinking": {"temperature": 1.0, "top_p": 0.95, "top_k": 20},
    "qwen3-vl-instruct": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5},
}


def add_model(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """Declare what says which checkpoint is loaded, how and where."""
    text = "folder or hub id of a checkpoint with latent tokens"
    if positional:
        parser.add_argument("checkpoint", metavar="CHECKPOINT", help=text)
    else:
        parser.add_argument("--checkpoint", required=True, help=text)
    parser.add_argument("--subfolder", help="folder within the checkpoint that holds the model")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the weights; auto: as they were saved (default: auto)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: the first GPU, or cpu)")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="take a model without latent tokens as it is, such as MLLM-4D's or a base model",
    )
    parser.add_argument(
        "--st-cot", action="store_true", help="ask in MLLM-4D's form: states of the scene, then the answer"
    )


def add_latents(parser: argparse.ArgumentParser) -> None:
    """Declare what the model is fed inside its blocks."""
    parser.add_argument(
        "--latents",
        default="own",
        metavar="MODE",
        help="what the model is fed inside imagery blocks: own (default), oracle, zero, pad, noise, "
        "other-clip, first-repeat, shuffle or none; see docs/latents.md",
    )


def output(text: str) -> Path:
    """The type of arguments that name what is written: argparse's error for an empty path."""
    from fourdthinker.errors import OutputError
    from fourdthinker.files import named_path

    try:
        return named_path(text)
    except OutputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """The type of arguments that are whole numbers: argparse's error for others, and outside the bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also of more than 4,300 digits
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: give a whole number from {least} to {most}")
        return value

    return parse


def real(least: float, most: float) -> Callable[[str], float]:
    """The type of arguments that are numbers: argparse's error for others, NaN, and outside the bounds."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: give a number from {least:g} to {most:g}")
        return value

    return parse


def not_read(out: Path | None, inputs: Iterable[Path]) -> None:
    """ConfigError for an output that is one of the files which the same command reads, and would replace."""
    from fourdthinker.errors import ConfigError

    for path in inputs:
        if out is not None and out.exists() and path.exists() and out.samefile(path):
            raise ConfigError(f"{out} is what the command reads; name another file to write")


def differ(**outputs: Path | None) -> None:
    """ConfigError for two options, by name, that would write the same file or folder."""
    from fourdthinker.errors import ConfigError

    seen: dict[str, str] = {}
    for name, path in outputs.items():
        if path is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        other = seen.setdefault(os.path.realpath(path), flag)
        if other != flag:
            raise ConfigError(f"{other} and {flag} both name {path}; name another for one of them")


def check_with_folder(path: Path) -> None:
    """FourdError for a file that cannot be written, its folder made; asked before long work."""
    from fourdthinker.files import check_folder, check_output

    check_folder(path.parent)
    if path.parent.is_dir():
        check_output(path)


def rejected_beside(answers: Path) -> Path:
    """The file of the records that are left out: `answers.rejected.jsonl` of `answers.jsonl`.

    It is named after the answers, since a training run whose folder they are in has a rejected.jsonl too.
    """
    return answers.with_name(f"{answers.stem}.rejected.jsonl")


@contextmanager
def answers_file(path: Path) -> Iterator[JsonLines]:
    """The file of answers, which no other process writes until the command ends.

    A file that is made here and stays empty because the command fails is taken away.

    Args:
        path: as the user named it.

    Yields:
        The open file.

    Raises:
        OutputError: it cannot be written, or another process is writing it.
    """
    from fourdthinker.files import JsonLines

    is_new = not path.exists()
    with JsonLines(path) as file:
        try:
            yield file
        except BaseException:
            if is_new and file.path.stat().st_size == 0:
                file.path.unlink()  # it is locked, so that nobody else has begun to write it
            raise


def model_name(arguments: argparse.Namespace) -> str:
    """The checkpoint as it was named, with its subfolder: what results and journals call it."""
    return "/".join(filter(None, (arguments.checkpoint, arguments.subfolder)))


def thinker(arguments: argparse.Namespace) -> Thinker:
    """Load the checkpoint that the options of `add_model` name."""
    import torch

    from fourdthinker.prompt_style import ST_COT, PromptStyle
    from fourdthinker.thinker import Thinker

    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    return Thinker.from_pretrained(
        arguments.checkpoint, arguments.subfolder, dtype=dtype, device=arguments.device,
        plain=arguments.plain, style=PromptStyle(instruction="", system=ST_COT) if arguments.st_cot else None,
    )  # fmt: skip


def add_sampling(parser: argparse.ArgumentParser, *, temperature: float) -> None:
    """The flags of SamplingConfig; a setting not given is the preset's, else `temperature` or its default."""
    parser.set_defaults(sampling_defaults={"temperature": temperature, "max_new_tokens": 512})
    group = parser.add_argument_group("sampling")
    group.add_argument("--preset", choices=sorted(PRESETS), help="recommended settings; single flags win")
    for flag, kind, text in (
        ("--temperature", float, f"0 is greedy (default: {temperature:g})"),
        ("--top-k", int, "keep the k likeliest ids; 0 is off"),
        ("--top-p", float, "keep the likeliest ids of this total probability; 1 is off"),
        ("--min-p", float, "keep ids of at least this share of the likeliest one's probability; 0 is off"),
        ("--presence-penalty", float, "taken off the logits of ids already written; 0 is off"),
        ("--repetition-penalty", float, "divides the logits of ids of prompt and answer; 1 is off"),
        ("--max-new-tokens", int, "ids of an answer, latents included (default: 512)"),
        ("--max-blocks", int, "imagery blocks of an answer; 0 is text only"),
        ("--seed", int, "of the random draws (default: 0)"),
    ):
        group.add_argument(flag, type=kind, metavar="N" if kind is int else "X", help=text)
    group.add_argument("--mode", choices=("exact", "reference"), help="reference: blocks may end early")
    group.add_argument("--stop", nargs="+", dest="stop_strings", metavar="TEXT", help="end an answer here")
    group.add_argument(
        "--eos-id", nargs="+", type=int, dest="eos_ids", metavar="ID", help="instead of the checkpoint's"
    )


def sampling(arguments: argparse.Namespace) -> SamplingConfig:
    """Sampling settings: what was given, else the preset's, else the command's defaults."""
    from dataclasses import fields

    from fourdthinker.sampler import SamplingConfig

    values = dict(arguments.sampling_defaults) | PRESETS.get(arguments.preset, {})
    for field in fields(SamplingConfig):
        given = getattr(arguments, field.name, None)
        if given is not None:
            values[field.name] = tuple(given) if isinstance(given, list) else given
    return SamplingConfig(**values)
