"""The variants of the ablation: what is trained differently, and the held-out questions answered by each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from bench._ablation_data import KINDS, OVERLAY, held_out_records, resumable, targets_path
from fourdthinker.audit.latents import LatentAudit
from fourdthinker.backbones import load_checkpoint
from fourdthinker.demo.pictures import clip_of, solid_of
from fourdthinker.demo.work import MAX_BLOCKS, Work, finished
from fourdthinker.evaluate import evaluate
from fourdthinker.latents import IMAGERY
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record
from fourdthinker.sampler import LatentSampler
from fourdthinker.samples import Sample
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.run_folder import FINAL
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig

ANSWERS = "answers"  # folder of the answers with own latents, sampled and at temperature 0
MODES = "modes"  # folder of the answers of the audit, one folder a mode
_BATCH = 128  # questions in one call of the sampler


@dataclass(frozen=True)
class Variant:
    """What is trained.

    Attributes:
        imagery: what a block stands for; None: there are no blocks.
        options: settings of DIFT beside the demo's.
        rl: whether 4DRL follows.
    """

    imagery: str | None = OVERLAY
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    rl: bool = False

    @property
    def max_blocks(self) -> int:
        """Blocks of an answer at most."""
        return 0 if self.imagery is None else MAX_BLOCKS


VARIANTS: dict[str, Variant] = {
    "none": Variant(None, rl=True),
    "latents": Variant(rl=True),
    "latent_norm": Variant(options={"latent_norm": 0.1}, rl=True),
    "self_feed": Variant(options={"self_feed": 0.2}, rl=True),
    **{kind: Variant(kind) for kind in KINDS},
}


def without_imagery(record: Record) -> Record:
    """The same reasoning in words alone."""
    words = (record.text_output or "").replace(IMAGERY, " ").split()
    return replace(record, text_output=" ".join(words), images=[])


def dift_samples(work: Work, encoder: Encoder, variant: Variant) -> list[Sample]:
    """The demo's training examples, with the imagery of a variant.

    Args:
        work: the demo's files.
        encoder: of the base model.
        variant: what is trained.

    Returns:
        The samples, in the order of the records.
    """
    features, records = work.features, work.records("dift", "dift")
    if variant.imagery is None:
        return [encoder.sample(without_imagery(record), features.clip(record)) for record in records]
    if variant.imagery == OVERLAY:
        return [features.sample(record, encoder) for record in records]
    targets = torch.from_numpy(np.load(targets_path(work, variant.imagery)))
    return [
        encoder.sample(record, features.clip(record), targets[clip_of(record)[1], solid_of(record)])
        for record in records
    ]


def train_variant(work: Work, variant: Variant, stage: str, folder: Path) -> Path:
    """Train a variant, or go on with it.

    Args:
        work: the demo's files.
        variant: what is trained.
        stage: "dift", from the base model; or "rl", from what DIFT has left in `folder`.
        folder: of the variant; gets a folder named after the stage.

    Returns:
        The folder of the final checkpoint.

    Raises:
        StoppedError: a signal ended it.
    """
    run, features = folder / stage, work.features
    if stage == "dift":
        checkpoint = load_checkpoint(work.final("base"))
        samples = dift_samples(work, checkpoint.encoder(), variant)
        settings = work.settings.dift
        options = work.common(stage, settings) | resumable(run, settings.steps) | dict(variant.options)
        return finished(train_dift(DiftConfig(**options), checkpoint=checkpoint, samples=samples))
    checkpoint = load_checkpoint(folder / "dift" / FINAL)
    encoder = checkpoint.encoder()
    prompts = [features.prompt(record, encoder) for record in work.records("rl", "rl")]
    options = work.rl_options() | resumable(run, work.settings.rl.steps)
    options |= {"max_blocks": variant.max_blocks, "reward_timeout": None}  # the process may be paused
    options["train_start"] = options["train_start"] and variant.max_blocks > 0
    return finished(train_grpo(GrpoConfig(**options), checkpoint=checkpoint, prompts=prompts))


def answer_questions(work: Work, variant: Variant, final: Path, folder: Path, name: str) -> dict[str, Any]:
    """Ask a model the held-out questions, with its own latents and, where it has any, in every mode.

    Args:
        work: the demo's files.
        variant: what was trained.
        final: its checkpoint.
        folder: gets the answers, in `ANSWERS` and in `MODES`/MODE; from there it goes on after a kill.
        name: of the model.

    Returns:
        For JSON: what the audit says about the blocks; {} for a variant without any.
    """
    checkpoint = load_checkpoint(final)
    encoder, features = checkpoint.encoder(), work.features
    sampler = LatentSampler(checkpoint.backbone.eval())
    records = held_out_records(work, variant.imagery)
    prompts = [features.prompt(record, encoder) for record in records]
    config = replace(work.sampling(), max_blocks=variant.max_blocks)
    evaluate(
        sampler, encoder, records, n=work.settings.evaluate.samples, config=config, batch_prompts=_BATCH,
        prompts=prompts, name=name, progress=False, journal=folder / ANSWERS / "answers.jsonl",
    )  # fmt: skip
    if variant.imagery is None:
        return {}
    audit = LatentAudit(
        sampler, encoder, records, config=config, batch=_BATCH, folder=folder / MODES, name=name,
        progress=False,
    )  # fmt: skip
    found = audit.run(prompts=prompts)
    return {key: found[key] for key in ("blocks", "without_blocks", "left_out")}


def order(only: Sequence[str], seeds: Sequence[int]) -> list[tuple[int, str, str]]:
    """What there is to do: seed after seed, the scenes first and each imagery before it is needed.

    Args:
        only: names of variants.
        seeds: of the demo.

    Returns:
        (seed, variant, stage). The scenes are stage "scenes" of variant "", all imagery of the synthesis is
        stage "imagery".
    """
    chosen = [name for name in VARIANTS if name in only]
    out = []
    for seed in seeds:
        out.append((seed, "", "scenes"))
        imagery = False
        for name in chosen:
            if name in KINDS and not imagery:
                out.append((seed, "", "imagery"))
                imagery = True
            out.append((seed, name, "dift"))
            if VARIANTS[name].rl:
                out.append((seed, name, "rl"))
    return out
