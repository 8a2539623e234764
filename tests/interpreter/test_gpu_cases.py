"""The GPU lane's cases at small sizes on the interpreted kernels, so that they are right when a GPU comes."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import kernel_cases as cases
from tests.gpu import races

CPU = "cpu"


def test_latents_and_feedback():
    cases.latent_feedback(CPU, 6, 40, 12, "exact", torch.float16)
    cases.latents(CPU, 96, images=1, batch=2, length=20, count=9, dtype=torch.float16)


def test_sampling():
    cases.sampled_ids(CPU, 3, 900, ("top_k", "top_p", "min_p", "penalties"))
    cases.chi_square(CPU, 7, 256, truncated=False)
    cases.chi_square(CPU, 7, 64, truncated=True)


@pytest.mark.parametrize("kind", ["grpo token", "grpo sequence"])
def test_losses_of_log_probabilities(kind):
    cases.advantages_and_token_loss(CPU, 20, 5, 40, kind)


def test_losses_of_logits_and_of_hidden_states():
    cases.linear_head(CPU, 40, 16, 300, torch.float32)
    cases.given_logits(CPU, 24, 300, torch.float16)


def test_decode():
    cases.decode(CPU, 2, 2, 90, 20, 16, torch.float16)


def test_rows():
    cases.many_rows(CPU, 70)


def test_what_is_searched_for_races():
    races.launch(CPU, 2, 300)
