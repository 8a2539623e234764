"""A model card that says what a number is worth, and the upload of a checkpoint with it to the hub."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fourdthinker.backbones import POLICY_FILE
from fourdthinker.errors import ConfigError
from fourdthinker.evaluate.table import LABELS, comparisons, models, number, percent, points, span
from fourdthinker.files import read_json_object, read_regular, write_text
from fourdthinker.integrations.origin import Origin, is_model_id, public_name
from fourdthinker.integrations.same_weights import LATENTS, RESULTS, check_results

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

CARD = "README.md"
_MARK = "<!-- written by fourdthinker push -->"
_PACKAGES = ("fourdthinker", "torch", "transformers")
# Of a training, not of the model; run.json has paths of the machine.
_KEPT_BACK = (
    "run.json", "trainer_state.json", "training_args.bin", "optimizer*", "scheduler*", "scaler.pt",
    "rng_state*", "global_step*", "latest", "masters*", "zero_*", "reference.safetensors", "rollouts_*",
    "entropy_control.json", "left_out.jsonl", ".*",
)  # fmt: skip


@dataclass(frozen=True)
class CardFacts:
    """What a card says that the checkpoint itself does not know.

    Attributes:
        origin: base and data.
        results: folders of evaluations (results.json) and latent audits (latents.json) of this checkpoint.
    """

    origin: Origin = field(default_factory=Origin)
    results: Sequence[Path] = ()


def model_card(checkpoint: Path, facts: CardFacts) -> str:
    """The card of a checkpoint: base, data, frame policy, latents, metrics with their baselines, versions.

    Args:
        checkpoint: its folder.
        facts: what it does not know itself.

    Returns:
        Markdown with the header that the hub reads.

    Raises:
        ConfigError: the folder is no checkpoint, or one of the results is none, or of other weights.
    """
    config = read_json_object(
        checkpoint / "config.json", "name the folder of a checkpoint", error=ConfigError
    )
    folder = Path(os.path.realpath(checkpoint))
    sections = [
        _header(facts.origin.model_id),
        _MARK,
        f"# {_text(folder.parent.name if folder.name == 'final' else folder.name)}",
        "A model that answers questions about videos and thinks in latents between its words, "
        "made with fourdthinker.",
        _origin(facts.origin),
        _policy(checkpoint),
        _latents(config),
        *[section for folder in facts.results for section in _found(folder)],
        _versions(config),
    ]
    check_results(checkpoint, facts.results)
    return "\n\n".join(section for section in sections if section) + "\n"


def push(checkpoint: Path, repository: str | None, facts: CardFacts, *, private: bool = True) -> str:
    """Write the card into a checkpoint, and upload the folder.

    Args:
        checkpoint: its folder.
        repository: `owner/name` on the hub; None: nothing is uploaded.
        facts: for the card.
        private: whether the repository is private: made so, and refused if it is there and public.

    Returns:
        The address of the upload, or the path of the card.

    Raises:
        ConfigError: as for `model_card`; a card that somebody else wrote is there, in the folder or on the
            hub; the name is none of a repository; the repository is public and `private` is true; or the hub
            refuses.
    """
    if repository is not None and not is_model_id(repository):
        raise ConfigError(f"the repository is {repository!r}; name it owner/name")
    path = checkpoint / CARD
    if path.exists() and _MARK not in read_regular(path).decode("utf-8", "replace"):
        raise ConfigError(f"{path} was not written by this command and is not replaced; move it away")
    write_text(path, model_card(checkpoint, facts))
    if repository is None:
        return str(path)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        _check_repository(api, repository, private)
        return str(
            api.upload_folder(repo_id=repository, folder_path=checkpoint, ignore_patterns=list(_KEPT_BACK))
        )
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{repository}: the hub refuses ({said}); log in with `hf auth login`, and check the name"
        ) from error


def _check_repository(api: HfApi, repository: str, private: bool) -> None:
    """Before anything is uploaded to a repository that may have been there: who reads it, and its card."""
    if private and not api.model_info(repository).private:
        raise ConfigError(f"{repository} is there and public; give --public, or name another repository")
    if api.file_exists(repository, CARD):
        card = Path(api.hf_hub_download(repository, CARD)).read_text("utf-8", "replace")
        if _MARK not in card:
            raise ConfigError(
                f"{CARD} of {repository} was not written by this command and is not replaced; "
                "move it away there"
            )


def _header(model_id: str) -> str:
    """What the hub reads."""
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "video-text-to-text",
        "tags": ["fourdthinker", "latent-reasoning", "video"],
    }
    if model_id:
        values["base_model"] = model_id
    return f"---\n{yaml.safe_dump(values, sort_keys=True)}---"


def _origin(origin: Origin) -> str:
    through = "".join(f", through {_text(name)}" for name in origin.through)
    data = ", ".join(map(_text, origin.data)) or "not told"
    return f"## Made from\n\n- Base: {_text(origin.base) or 'not told'}{through}\n- Data: {data}"


def _policy(checkpoint: Path) -> str:
    path = checkpoint / POLICY_FILE
    if not path.exists():
        return "## Frames\n\nThe default frame policy of its family, as the released checkpoints."
    remedy = "save the checkpoint once more"
    policy = read_json_object(path, remedy, finite=False).get("policy")
    if not isinstance(policy, dict):
        raise ConfigError(f"{path}: policy is {policy!r:.60}, not an object; {remedy}")
    lines = [f"| {_text(str(key))} | {_text(str(value))} |" for key, value in policy.items()]
    return "\n".join(
        [
            "## Frames", "", "Trained on frames chosen like this, and to be asked with the same:", "",
            "| | |", "|---|---|", *lines,
        ]
    )  # fmt: skip


def _latents(config: Mapping[str, Any]) -> str:
    if config.get("latent_token_id") is None:
        return "## Latents\n\nNone: it thinks in words alone."
    ids = [config.get(key) for key in ("latent_token_id", "latent_start_id", "latent_end_id")]
    return (
        f"## Latents\n\nBlocks of K = {config.get('latent_size')} latents (targets: "
        f"{_text(str(config.get('compress_strategy')))}); the ids of pad, start and end are "
        f"{', '.join(map(str, ids))}."
    )


def _found(folder: Path) -> list[str]:
    """The sections on a folder of results."""
    sections = []
    if (folder / RESULTS).exists():
        results = read_json_object(folder / RESULTS, "evaluate again", error=ConfigError)
        sections.append(_metrics(folder.name, results))
    if (folder / LATENTS).exists():
        audit = read_json_object(folder / LATENTS, "audit again", error=ConfigError)
        sections.append(_audit(folder / LATENTS, audit))
    if not sections:
        raise ConfigError(f"{folder}: no {RESULTS} and no {LATENTS}; name the folder of an evaluation")
    return sections


def _metrics(name: str, results: Mapping[str, Any]) -> str:
    bench = results.get("benchmark")
    title = bench.get("title", name) if isinstance(bench, dict) else name
    model = _text(public_name(str(results.get("checkpoint", "this checkpoint"))))
    lines = [
        f"## Accuracy: {_text(str(title))}", "",
        f"Of `{model}`. What can be had without seeing the clip stands beside it.", "",
        "| | accuracy | 95 % interval | greedy | questions |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for key, entry in models(results).items():
        cells = (
            percent(entry["accuracy"]),
            span(entry),
            percent(entry.get("greedy")),
            str(entry.get("n", "–")),
        )
        lines.append(f"| {_text(LABELS.get(key, key))} | {' | '.join(cells)} |")
    for key, entry in comparisons(results).items():
        cells = (f"{points(entry['mean'])} points", span(entry, difference=True), "", "")
        lines.append(f"| {_text(LABELS.get(key, key))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _audit(path: Path, audit: Mapping[str, Any]) -> str:
    lines = [
        "## What the latents do", "",
        f"{audit.get('questions')} questions with other vectors in the place of the latents; differences in "
        "percentage points, paired, with 95 % intervals.", "",
        "| latents | accuracy | less own | interval | answers that are others |", "|---|---|---|---|---|",
    ]  # fmt: skip
    modes = audit.get("modes")
    if not isinstance(modes, dict):
        raise ConfigError(f"{path}: modes is {modes!r:.60}, not an object; audit again")
    for mode, entry in modes.items():
        difference = entry.get("difference") or {} if isinstance(entry, dict) else None
        if not isinstance(difference, dict) or (difference and number(difference.get("mean")) is None):
            raise ConfigError(f"{path}: {mode} is {entry!r:.60}, not what an audit finds; audit again")
        cells = (
            percent(entry.get("accuracy")), points(difference.get("mean")),
            span(difference, difference=True), percent(entry.get("flips")),
        )  # fmt: skip
        lines.append(f"| {_text(mode)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _versions(config: Mapping[str, Any]) -> str:
    found = [f"{name} {version(name)}" for name in _PACKAGES]
    saved = config.get("transformers_version")
    found += [f"Python {platform.python_version()}"]
    return (
        "## Versions\n\n"
        + ", ".join(found)
        + (f"; saved by transformers {_text(str(saved))}." if saved else ".")
    )


def _text(value: str) -> str:
    """As it can stand in a cell of Markdown."""
    for found, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " "), ("`", "'")):
        value = value.replace(found, shown)
    return value
