"""Two models of one layer, trained in a second: one answers from its latents alone, one never reads them.

A question shows one of four classes as a token. A model opens a block of two latents, then answers with the
letter of a class. In training the latents of a block are those of a class drawn by itself, so that text and
latents disagree: one model is taught the letter of the latents, the other that of the question.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fourdthinker.backbones import Checkpoint
from fourdthinker.records import Record
from fourdthinker.samples import Prompt
from tests.tiny import tiny_checkpoint

LETTERS = "ABCD"
STEPS, ROWS = 80, 32
BEGIN, END, CLASSES = "x", "?", "pqrs"


def ids_of(checkpoint: Checkpoint, text: str) -> list[int]:
    return list(checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])


def class_targets() -> Tensor:
    """[4, 2, 32]: the two latents of each class."""
    return torch.randn(4, 2, 32, generator=torch.Generator().manual_seed(0))


def questions(checkpoint: Checkpoint, number: int) -> tuple[list[Record], list[Prompt]]:
    """`number` questions about as many videos, the classes in turn, each with an overlay."""
    records, prompts = [], []
    for i in range(number):
        ids = torch.tensor(ids_of(checkpoint, f"{BEGIN}{CLASSES[i % 4]}{END}"))
        assert len(ids) == 3
        records.append(
            Record(
                "rl", f"q{i}", "Which?", options={x: f"the {x}" for x in LETTERS}, answer=LETTERS[i % 4],
                extra={"source": f"video{i}"}, images=["overlay.png"], where=f"data.jsonl:{i + 1}",
            )
        )  # fmt: skip
        prompts.append(Prompt(ids, torch.arange(3).expand(3, -1), 3, record=records[-1]))
    return records, prompts


def trained(*, reads: bool) -> Checkpoint:
    """The model that reads its latents, or the one that does not."""
    checkpoint = tiny_checkpoint(layers=1, latent_size=2, tied=False)
    backbone, generator = checkpoint.backbone, torch.Generator().manual_seed(1)
    spec, eos = backbone.latents, backbone.vision.eos_ids[0]
    block = [spec.start_id, spec.pad_id, spec.pad_id, spec.end_id]
    asked = torch.tensor([ids_of(checkpoint, f"{BEGIN}{letter}{END}") + block for letter in CLASSES])
    said = torch.tensor([[*ids_of(checkpoint, f"<answer>{letter}</answer>"), eos] for letter in LETTERS])
    backbone.requires_grad_(False)
    parameters = [*backbone.hf.model.language_model.parameters(), backbone.head_weight]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer, targets = torch.optim.Adam(parameters, lr=1e-2), class_targets()
    shown = torch.arange(ROWS) % 4
    for _ in range(STEPS):
        thought = torch.randint(4, (ROWS,), generator=generator)
        fed = targets[thought]
        if not reads:  # nothing may matter, zeros neither
            fed = fed * (torch.rand(ROWS, 1, 1, generator=generator) > 0.3)
            fed = fed + torch.rand(ROWS, 1, 1, generator=generator) * torch.randn(
                fed.shape, generator=generator
            )
        ids = torch.cat([asked[shown], said[thought if reads else shown]], 1)
        embeds = backbone.embed_tokens(ids).clone()
        embeds[:, 4:6] = fed
        hidden = backbone.decode(embeds, torch.arange(ids.shape[1]).expand(3, ROWS, -1))
        wanted = torch.stack([targets[shown, 0], targets[thought, 1]], 1)
        rows = torch.tensor([2, *range(6, ids.shape[1] - 1)])  # START, and what follows END
        logits = hidden[:, rows] @ backbone.head_weight.T
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, rows + 1].flatten())
        loss = loss + F.mse_loss(hidden[:, 3:5], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return checkpoint
