"""What the latents of a model do: the same questions with something else in their place."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourdthinker.audit.blocks import BlockLatents, block_statistics, collect_blocks
from fourdthinker.audit.thoughts import THOUGHTS, described_rows, thought_lines
from fourdthinker.errors import ConfigError
from fourdthinker.evaluate import (
    AnsweredQuestion,
    EvalResult,
    compare,
    evaluate,
    group_clips,
    scoring,
)
from fourdthinker.evaluate.asking import Asking
from fourdthinker.evaluate.latent_modes import Key, LatentFeeds, check_mode, imagery_targets
from fourdthinker.evaluate.prompt_batches import PromptBatches, make_question
from fourdthinker.evaluate.runner import check_records
from fourdthinker.files import write_text
from fourdthinker.records import source_of
from fourdthinker.sampler import LATENT_MODES, SamplingConfig, check_count, check_latent_mode, encode_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from fourdthinker.prompts import Encoder
    from fourdthinker.records import Record
    from fourdthinker.sampler import LatentSampler
    from fourdthinker.samples import Prompt

log = logging.getLogger(__name__)


def usable_modes(records: Sequence[Record]) -> list[str]:
    """The modes that these records allow; what is left out is logged.

    Args:
        records: the questions.

    Returns:
        Names of `LATENT_MODES`, "own" first.
    """
    left_out = {}
    if any(not record.images for record in records):
        left_out["oracle"] = "not every record has overlays"
    if len({source_of(record) for record in records}) < 2:
        left_out |= dict.fromkeys(("noise", "other-clip"), "all questions are about one video")
    for mode, reason in left_out.items():
        log.info("latents %s is left out: %s", mode, reason)
    return [mode for mode in LATENT_MODES if mode not in left_out]


@dataclass
class LatentAudit:
    """Audits the latents of one model.

    Attributes:
        sampler: of the model.
        encoder: of the same checkpoint.
        records: multiple-choice questions with unique ids.
        n: samples of each question beside the answer at temperature 0.
        config: sampling settings.
        batch: questions at a time.
        folder: gets `MODE/answers.jsonl`, from which an audit that was interrupted goes on, and
            thoughts.jsonl, what the report shows of every question; None: none.
        name: of the model.
        progress: whether bars are shown on standard error.
    """

    sampler: LatentSampler
    encoder: Encoder
    records: Sequence[Record]
    n: int = 0
    config: SamplingConfig = field(default_factory=SamplingConfig)
    batch: int = 16
    folder: Path | None = None
    name: str = "model"
    progress: bool = True

    def run(
        self, modes: Sequence[str] | None = None, prompts: Sequence[Prompt] | None = None
    ) -> dict[str, Any]:
        """Answer the questions in every mode, and describe the latents.

        Args:
            modes: of LATENT_MODES, "own" is always one; None: all that the records allow.
            prompts: one encoded prompt for each record; None: they are made, each clip encoded once.

        Returns:
            For JSON. modes: mode -> accuracy and its interval, of all n questions, of which those that are
            `failed` count as wrong; answered: the same of the others; parsed; and against own, of the
            questions that are asked: difference (and
            sampled_difference) with interval, flips (share of the answers at temperature 0 that are others),
            gained, lost, p (McNemar), kl (mean divergence of the letters' probabilities from those with own
            latents, in nats, with interval, over `kl_questions`). blocks: see `block_statistics`.
            without_blocks: share of the answers that have no block. asked: how many of `questions`; failed:
            id -> reason, of the others. shuffled: answers at temperature 0 in which shuffle can move a
            latent. left_out: mode -> reason, of modes that would be nothing else than own.

        Raises:
            ConfigError: an unknown mode, no question that can be asked, or those of `evaluate`.
            RecordError: as for `evaluate`.
        """
        for mode in modes or ():
            check_latent_mode(mode)
        check_count("n", self.n, least=0)
        check_count("batch", self.batch)
        check_records(self.records, self.n, True, self.batch, prompts)
        failed: dict[str, str] = {}
        if prompts is None:
            prompts, failed = self._encode()
        asked = [record for record in self.records if record.id not in failed]
        if not asked:
            raise ConfigError(f"no question can be asked; first: {next(iter(failed.values()))}")
        chosen = usable_modes(asked) if modes is None else ["own", *(mode for mode in modes if mode != "own")]
        for mode in chosen:
            check_mode(mode, asked)  # before the model is run
        own, found, lines = self._own(asked, prompts)
        left_out = _left_out(chosen, own, asked, self.sampler.backbone.latents.latent_size)
        chosen = [mode for mode in chosen if mode not in left_out]
        results = {mode: self._answers(mode, asked, prompts, own) for mode in chosen}
        if self.folder is not None:
            write_text(self.folder / THOUGHTS, "".join(thought_lines(lines, results)))
        without = sum(not line["blocks"] for line in lines)
        missing = [make_question(r, failed=failed[r.id]) for r in self.records if r.id in failed]
        return {
            "name": self.name,
            "questions": len(self.records),
            "asked": len(asked),
            "videos": len({source_of(record) for record in asked}),
            "samples": self.n,
            "modes": {mode: mode_numbers(results["own"], r, missing) for mode, r in results.items()},
            "shuffled": sum(len(vectors) > 1 for (_, k), vectors in own.items() if k < 0),
            "blocks": block_statistics(found, self.sampler.backbone.embedding_weight),
            "without_blocks": without / len(asked),
            "failed": failed,
            "left_out": left_out,
            "settings": results["own"].settings,
        }

    def _items(self, records: Sequence[Record], prompts: Sequence[Prompt] | None) -> PromptBatches:
        return PromptBatches(records, self.encoder, group_clips(records), None, self.config.seed, prompts)

    def _encode(self) -> tuple[list[Prompt], dict[str, str]]:
        """Prompts with the features of their clips, on the CPU; what cannot be asked, with the reason."""
        made: dict[int, Prompt] = {}
        failed: dict[str, str] = {}
        for batch in self._items(self.records, None).batches((), self.batch):
            ready = [item for item in batch if not isinstance(item, AnsweredQuestion)]
            failed |= {item.id: item.failed for item in batch if isinstance(item, AnsweredQuestion)}
            features = encode_prompts(self.sampler.backbone, [prompt for _, prompt in ready])
            for (i, prompt), feature in zip(ready, features, strict=True):
                vision = prompt.vision
                if vision is not None and feature is not None:
                    vision = replace(vision, patches=None, features=feature.detach().cpu())
                made[i] = replace(prompt, vision=vision)
        return [made[i] for i in sorted(made)], failed

    def _own(
        self, records: Sequence[Record], prompts: Sequence[Prompt]
    ) -> tuple[dict[Key, Tensor], dict[int, BlockLatents], list[dict[str, Any]]]:
        """Own latents of all rows, those of each block at temperature 0, and these rows as JSON."""
        backbone = self.sampler.backbone
        sources = {record.id: source_of(record) for record in records}
        targets = imagery_targets(backbone, self.encoder, records)
        feeds = LatentFeeds("own", backbone, self.config, sources)
        asking = Asking(self.sampler, self.encoder, records, self.n, True, self.config, feeds)
        own: dict[Key, Tensor] = {}
        found: dict[int, BlockLatents] = {}
        lines: list[dict[str, Any]] = []
        for batch in self._items(records, prompts).batches((), self.batch):
            for asked in asking.sampled_rows(batch):
                own |= asked.latents()
                if asked.keys[0][1] < 0:
                    collect_blocks(found, asked, backbone, self.encoder.tokenizer, sources, targets)
                    lines += described_rows(asked, backbone, self.encoder.tokenizer, targets)
        return own, found, lines

    def _answers(
        self, mode: str, records: Sequence[Record], prompts: Sequence[Prompt], own: dict[Key, Tensor]
    ) -> EvalResult:
        return evaluate(
            self.sampler, self.encoder, records, n=self.n, config=self.config, batch_prompts=self.batch,
            latents=mode, own=own, letters=True, prompts=prompts, name=self.name, progress=self.progress,
            journal=None if self.folder is None else self.folder / mode / "answers.jsonl",
        )  # fmt: skip


def _left_out(
    modes: Sequence[str], own: dict[Key, Tensor], records: Sequence[Record], size: int
) -> dict[str, str]:
    """Modes of own latents that these, K = size in a block, do not allow, and what equals own; logged."""
    sources = {record.id: source_of(record) for record in records}
    donors = {sources[id] for (id, _), vectors in own.items() if len(vectors)}
    reasons = {}
    if len(donors) == 1:
        reasons["other-clip"] = "the answers about one video alone have imagery blocks"
    if donors and all(len(vectors) < 2 for vectors in own.values()):
        reasons["shuffle"] = "no answer has two latents"
    if size == 1:
        reasons["first-repeat"] = "a block has one latent"
    reasons = {mode: reason for mode, reason in reasons.items() if mode in modes}
    for mode, reason in reasons.items():
        log.warning("latents %s is left out: %s", mode, reason)
    return reasons


def mode_numbers(
    own: EvalResult, result: EvalResult, missing: Sequence[AnsweredQuestion] = ()
) -> dict[str, Any]:
    """The row of a mode, see `LatentAudit.run`.

    Args:
        own: the answers with own latents.
        result: those to the same questions in the mode.
        missing: failed questions beside them, which count as wrong.

    Returns:
        Numbers by name, for JSON.
    """
    every = replace(result, questions=(*result.questions, *missing))
    answered = result.answered
    out: dict[str, Any] = {
        **_accuracy(every),
        "answered": _accuracy(answered) if answered.questions else None,
        "parsed": sum(q.greedy is not None for q in result.questions) / len(result.questions),
    }
    if result.n:
        out["sampled"] = float(scoring.question_means(result.marks).mean())
    if result is own:
        return out
    found = compare(own, result).to_dict()
    gained = sum(flip["gained"] for flip in found["flips"])
    pairs = [
        (kl_divergence(a.letters, b.letters), a.cluster)
        for a, b in zip(own.questions, result.questions, strict=True)
        if a.letters and b.letters
    ]
    divergence = scoring.finite(scoring.mean_interval([kl for kl, _ in pairs], [c for _, c in pairs]))
    return out | {
        "difference": found["greedy"],
        "sampled_difference": found["sampled"],
        "flips": found["changed"],
        "gained": gained,
        "lost": len(found["flips"]) - gained,
        "p": found["p"],
        "kl": divergence,
        "kl_questions": len(pairs),
    }


def _accuracy(result: EvalResult) -> dict[str, Any]:
    found = scoring.accuracy_interval(result.scores(greedy=True), result.clusters)
    return {
        "accuracy": found["mean"],
        "low": found["low"],
        "high": found["high"],
        "n": len(result.questions),
    }


def kl_divergence(p: dict[str, float], q: dict[str, float]) -> float:
    """Sum p log(p / q) over the letters of `p`; a probability of 0 in `q` counts as 1e-12.

    Args:
        p: probabilities by letter.
        q: those that they are compared with; every letter of `p` is in it.

    Returns:
        Nats.
    """
    return sum(share * math.log(share / max(q[letter], 1e-12)) for letter, share in p.items() if share > 0)
