"""`fourdthinker ...`: what is not training. (Training: `torchrun -m fourdthinker.trainers.dift`, `.grpo`.)

Results go to standard output, progress and log lines to standard error. An error that the user can mend is
one line and exit status 2; `-v` shows where it came from.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fourdthinker import __version__

if TYPE_CHECKING:  # heavy modules are imported by the commands that need them, so that --help is instant
    from fourdthinker.backbones import Checkpoint
    from fourdthinker.prompts import Encoder
    from fourdthinker.sampler import LatentSampler, SamplingConfig

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1 when `doctor` finds something missing, 2 for an error, 130 on
    Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    verbose = getattr(arguments, "verbose", False)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("fourdthinker").setLevel(logging.DEBUG if verbose else logging.INFO)
    from fourdthinker.errors import FourdError

    try:
        status = arguments.run(arguments)
    except (FourdError, OSError, ImportError) as error:
        if verbose:
            raise
        sys.stderr.write(f"fourdthinker {arguments.command}: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return int(status or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fourdthinker",
        description="Latent visual reasoning for video.",
        epilog="Training is apart: torchrun -m fourdthinker.trainers.dift --help (and .grpo).",
    )
    parser.add_argument("--version", action="version", version=f"fourdthinker {__version__}")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="more log lines, and tracebacks of errors"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_demo, _add_generate, _add_eval, _add_report, _add_init, _add_doctor):
        command = add(commands)
        command.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser


# ---- demo


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = commands.add_parser("demo", help="the whole loop on rendered scenes, on a CPU in minutes")
    parser.add_argument(
        "--quick", action="store_true", help="at most 2 minutes; shows that it runs, not that it learns"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of scenes, weights and sampling (default: %(default)s)"
    )
    parser.set_defaults(run=_demo)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from fourdthinker.demo import run_demo
    from fourdthinker.errors import FourdError

    try:
        run_demo(arguments.out, quick=arguments.quick, seed=arguments.seed)
    except RuntimeError as error:  # a training process failed; its own message stands above
        raise FourdError(str(error)) from error


# ---- generate


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = commands.add_parser("generate", help="answer one question about one video")
    _add_model(parser)
    parser.add_argument("--video", type=Path, required=True, help="video file")
    parser.add_argument("--start", type=float, metavar="S", help="look from this second on")
    parser.add_argument("--end", type=float, metavar="S", help="look up to this second")
    parser.add_argument("--question", required=True)
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="TEXT", help="answers to choose from, 2 to 8"
    )
    _add_sampling(parser, temperature=0.0)
    parser.set_defaults(run=_generate)
    return parser


def _generate(arguments: argparse.Namespace) -> None:
    from fourdthinker.errors import ConfigError
    from fourdthinker.records import Record
    from fourdthinker.report import text_plain

    if arguments.options and not 2 <= len(arguments.options) <= 8:
        raise ConfigError(
            f"--options has {len(arguments.options)} texts; give 2 to 8, or none for an open question"
        )
    options = dict(zip("ABCDEFGH", arguments.options, strict=False))
    config = _sampling(arguments)
    sampler, encoder = _sampler(_load(arguments))
    record = Record(
        kind="rl",
        id="question",
        question=arguments.question,
        options=options,
        video=str(arguments.video),
        start=arguments.start,
        end=arguments.end,
        where="command line",
    )
    rollout = sampler.sample([encoder.prompt(record)], config=config)
    sys.stdout.write(text_plain(rollout.texts(encoder.tokenizer)[0]).strip() + "\n")
    if rollout.finish_reason[0] == "length":
        log.warning("cut off after %d tokens; raise --max-new-tokens", config.max_new_tokens)


# ---- eval


def _add_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = commands.add_parser("eval", help="accuracy on records, with intervals")
    _add_model(parser)
    parser.add_argument("--data", type=Path, required=True, nargs="+", metavar="JSONL", help="record files")
    parser.add_argument(
        "--media-root", type=Path, help="paths in the records start here (default: folder of the file)"
    )
    parser.add_argument(
        "--on-bad-record", choices=("raise", "skip"), default="raise", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/eval"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument(
        "--samples", type=int, default=4, help="a question; 0: greedy alone (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, help="questions in one batch (default: %(default)s)")
    parser.add_argument(
        "--frames", choices=("black", "other"), help="show black frames, or another clip's, instead"
    )
    _add_sampling(parser, temperature=1.0)
    parser.set_defaults(run=_eval)
    return parser


def _eval(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from fourdthinker.evaluate import baselines, evaluate, results_table, types_table, write_json
    from fourdthinker.records import read_records

    config = _sampling(arguments)
    rejected = arguments.out / "rejected.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    rejected.unlink(missing_ok=True)
    records = [
        record
        for path in arguments.data
        for record in read_records(
            path,
            media_root=arguments.media_root,
            kind="rl",
            on_bad_record=arguments.on_bad_record,
            rejected=rejected,
        )
    ]
    sampler, encoder = _sampler(_load(arguments))
    model = (
        arguments.checkpoint
        if arguments.subfolder is None
        else f"{arguments.checkpoint}/{arguments.subfolder}"
    )
    result = evaluate(
        sampler,
        encoder,
        records,
        n=arguments.samples,
        config=config,
        batch_prompts=arguments.batch,
        frames_override=arguments.frames,
        journal=arguments.out / "answers.jsonl",
        name=model,
    )
    skipped = len(rejected.read_text(encoding="utf-8").splitlines()) if rejected.exists() else 0
    summary = result.summary()
    results = {
        **baselines(records),
        "model": summary,
        "checkpoint": model,
        "data": [str(path) for path in arguments.data],
        "records_rejected": skipped,
        "settings": result.settings,
    }
    path = write_json(arguments.out / "results.json", results)
    console = Console()
    console.print(results_table(results, title=model))
    if len(summary["by_type"]) > 1:
        console.print(types_table(summary))
    if skipped:
        log.warning("%d records were rejected and are not counted; see %s", skipped, rejected)
    sys.stdout.write(f"{path}\n")


# ---- report


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = commands.add_parser("report", help="one HTML page about a run")
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN", help="folder of a demo, a training run or an evaluation"
    )
    parser.add_argument("--out", type=Path, help="file to write (default: RUN/report.html)")
    parser.set_defaults(run=_report)
    return parser


def _report(arguments: argparse.Namespace) -> None:
    from fourdthinker.errors import ConfigError
    from fourdthinker.report import write_report

    if not arguments.run_dir.is_dir():
        raise ConfigError(f"{arguments.run_dir}: no such folder; give the folder of a run")
    sys.stdout.write(f"{write_report(arguments.run_dir, out=arguments.out)}\n")


# ---- init


def _add_init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = commands.add_parser("init", help="give a Qwen2.5-VL checkpoint its latent tokens")
    parser.add_argument("base", metavar="BASE", help="folder or hub id of the base model")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must be new or empty")
    parser.add_argument(
        "--latent-size", type=int, default=4, help="latents in a block (default: %(default)s)"
    )
    parser.set_defaults(run=_init)
    return parser


def _init(arguments: argparse.Namespace) -> None:
    from fourdthinker.backbones import init_checkpoint, save_checkpoint
    from fourdthinker.errors import ConfigError

    if arguments.latent_size < 1:
        raise ConfigError(f"--latent-size is {arguments.latent_size}; give at least 1")
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        raise ConfigError(f"{arguments.out} is not empty; name a new folder")
    checkpoint = init_checkpoint(arguments.base, latent_size=arguments.latent_size)
    save_checkpoint(arguments.out, checkpoint)
    sys.stdout.write(f"{arguments.out}\n")


# ---- doctor


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = commands.add_parser("doctor", help="what this machine can do, and what is missing")
    parser.set_defaults(run=_doctor)
    return parser


def _doctor(arguments: argparse.Namespace) -> int:
    from fourdthinker.doctor import examine

    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
        sys.stdout.write(f"{finding.status:<8}{finding.name:<{width}}  {finding.text}{remedy}\n")
    return 1 if any(finding.status == "missing" for finding in findings) else 0


# ---- shared


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, help="folder or hub id of a checkpoint with latent tokens"
    )
    parser.add_argument("--subfolder", help="of the checkpoint")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: the first GPU, or cpu)")


def _add_sampling(parser: argparse.ArgumentParser, *, temperature: float) -> None:
    parser.add_argument(
        "--temperature", type=float, default=temperature, help="0 is greedy (default: %(default)s)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")


def _sampling(arguments: argparse.Namespace) -> SamplingConfig:
    from fourdthinker.sampler import SamplingConfig

    return SamplingConfig(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, seed=arguments.seed
    )


def _load(arguments: argparse.Namespace) -> Checkpoint:
    import torch

    from fourdthinker.backbones import load_checkpoint
    from fourdthinker.errors import ConfigError

    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    try:
        device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        checkpoint = load_checkpoint(arguments.checkpoint, arguments.subfolder, dtype=dtype)
        checkpoint.backbone.to(device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device it does not have
        raise ConfigError(f"--device {arguments.device}: {error}") from error
    checkpoint.backbone.eval()
    return checkpoint


def _sampler(checkpoint: Checkpoint) -> tuple[LatentSampler, Encoder]:
    from fourdthinker.prompts import Encoder
    from fourdthinker.sampler import LatentSampler

    backbone = checkpoint.backbone
    encoder = Encoder(
        checkpoint.tokenizer, backbone.vision, backbone.latents, checkpoint.policy, checkpoint.style
    )
    return LatentSampler(backbone, checkpoint.tokenizer), encoder


if __name__ == "__main__":
    sys.exit(main())
