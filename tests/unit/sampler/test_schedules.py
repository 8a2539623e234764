"""Random schedules: whatever else is in the batch, a row is what it is alone.

Each schedule draws prompts, settings, and limits that make rows wait, enter late, leave early and share
places; every row is compared with a plain loop over the layers of transformers. `SAMPLER_SCHEDULES` sets how
many there are (24).
"""

from __future__ import annotations

import os
import random
from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fourdthinker.backbones import Checkpoint
from fourdthinker.sampler import LatentSampler, Rollout, SamplingConfig, replay_batch, replay_logprobs
from fourdthinker.sampler.schedule import completion_room
from fourdthinker.sampler.store import token_bytes
from tests.unit.sampler.cases import make_prompt, talkative
from tests.unit.sampler.reference import ROUNDING, Row, one_row

SCHEDULES = int(os.environ.get("SAMPLER_SCHEDULES", "24"))
PARTS = 6
TOLERANCE = 1e-4


@cache
def model(family: str, adapted: bool) -> Checkpoint:
    checkpoint = talkative(family=family, layers=2)
    if adapted:
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        peft_model = get_peft_model(checkpoint.backbone.hf, lora).eval()
        checkpoint.backbone = type(checkpoint.backbone)(peft_model, checkpoint.backbone.latents)
    return checkpoint


def settings(pick: random.Random) -> SamplingConfig:
    """Settings in which rows are short or long, end early, think, or repeat themselves."""
    truncation: dict[str, Any] = pick.choice(
        [{}, {}, {"top_p": 0.9}, {"top_k": 20}, {"top_p": 0.8, "top_k": 100}, {"min_p": 0.05}]
    )
    penalties: dict[str, Any] = pick.choice(
        [{}, {}, {}, {"repetition_penalty": 1.2}, {"presence_penalty": 0.5}]
    )
    return SamplingConfig(
        max_new_tokens=pick.choice([1, 5, 12, 20, 20, 70]),
        temperature=pick.choice([0.0, 0.7, 1.0, 1.0, 1.3]),
        mode=pick.choice(["exact", "exact", "reference"]),
        max_blocks=pick.choice([0, 1, 3]),
        eos_ids=tuple(range(0, 300, pick.choice([10, 40, 299]))),
        stop_strings=pick.choice([(), (), ("a", "the")]),
        train_start=pick.random() < 0.5,
        **truncation,
        **penalties,
    )


def assert_row(rollout: Rollout, row: int, want: Row) -> None:
    length = int(rollout.lengths[row])
    assert rollout.tokens[row, :length].tolist() == want.ids
    assert rollout.policy_mask[row, :length].tolist() == want.chosen
    assert rollout.finish_reason[row] == want.reason
    for got, wanted in ((rollout.logprobs, want.logprobs), (rollout.sampled_logprobs, want.sampled)):
        torch.testing.assert_close(
            got[row, :length].double(), torch.tensor(wanted).double(), atol=TOLERANCE, rtol=0
        )
    latents = rollout.latents[rollout.latent_rows == row]
    assert len(latents) == len(want.latents)
    if want.latents:
        vectors = torch.stack(want.latents)
        assert (latents - vectors).abs().max() <= 1e-4 * vectors.abs().max()


def run_schedule(number: int) -> tuple[int, int]:
    """Rows compared, and rows left out because a draw was too close to call."""
    pick = random.Random(number)
    checkpoint = model(pick.choice(["qwen2_5_vl", "qwen3_vl"]), pick.random() < 0.3)
    config = settings(pick)
    prompts = []
    for _ in range(pick.randint(1, 5)):
        clip = pick.choice([None, None, 0, 1, 2])
        prompts.append(make_prompt(checkpoint, pick.randrange(50), pick.choice([4, 5, 9, 30, 90]), clip))
    if pick.random() < 0.3:
        prompts.append(prompts[0])
    n = pick.randint(1, 4)
    seeds = [pick.randrange(2**62) for _ in range(n * len(prompts))]
    own = completion_room(config.max_new_tokens)
    tight = (max(len(p.input_ids) for p in prompts) + own) * token_bytes(checkpoint.backbone)
    sampler = LatentSampler(
        checkpoint.backbone,
        checkpoint.tokenizer,
        check_every=pick.choice([None, 1, 3, 7]),
        kv_budget=pick.choice([None, tight, 2 * tight, 4 * tight]),
        max_rows=pick.choice([1, 2, 3, 8, 256]),
    )
    seen: dict[int, list[int]] = {row: [] for row in range(len(seeds))}
    ended = []

    def on_tokens(row: int, ids: list[int], done: bool) -> None:
        assert row not in ended
        seen[row] += ids
        if done:
            ended.append(row)

    rollout = sampler.sample(prompts, n, config, seeds=seeds, on_tokens=on_tokens)
    assert sorted(ended) == list(range(len(seeds)))
    close = 0
    for row, seed in enumerate(seeds):
        assert seen[row] == rollout.tokens[row, : rollout.lengths[row]].tolist()
        want = one_row(checkpoint, prompts[row // n], config, seed)
        if want.close < ROUNDING:
            close += 1
        else:
            assert_row(rollout, row, want)
    temperature = config.temperature or 1.0
    with torch.no_grad():
        batch = replay_batch(rollout, prompts)
        replayed = replay_logprobs(checkpoint.backbone, batch, temperature)
    assert (replayed - rollout.logprobs).abs().max() <= TOLERANCE
    return len(seeds), close


@pytest.mark.parametrize("part", range(PARTS))
def test_random_schedules(part: int) -> None:
    rows = close = 0
    for number in range(part, SCHEDULES, PARTS):
        try:
            compared, uncertain = run_schedule(number)
        except AssertionError as error:
            raise AssertionError(f"schedule {number}: {error}") from error
        rows, close = rows + compared, close + uncertain
    assert rows > 5
    assert close <= max(2, rows // 20)
