"""The decode grammar against a state machine written out row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker.kernels import Recording, forbidden_tokens, latent_feedback_step_, latent_state

VOCAB, WIDTH = 12, 6
PAD, START, END, EOS, EOS2, FILL = 9, 10, 11, 7, 8, 3
IDS = {"pad_id": PAD, "start_id": START, "end_id": END, "fill_id": FILL}


def drive(samples: list[list[int]], latent_size: int, **options):
    """Run the op over ``samples`` [T][B]; returns emitted, is_policy, inputs, hidden, state, embedding."""
    rows = len(samples[0])
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(VOCAB, WIDTH, generator=generator)
    state = latent_state(rows, WIDTH, options.pop("max_latents", 64), dtype=torch.float32, device="cpu")
    emitted, policy, inputs, hiddens = [], [], [], []
    for ids in samples:
        hidden = torch.randn(rows, WIDTH, generator=generator)
        ids_out, policy_out, next_embeds = latent_feedback_step_(
            torch.tensor(ids), hidden, embedding, **state, eos_ids=torch.tensor([EOS, EOS2]),
            latent_size=latent_size, **IDS, **options,
        )  # fmt: skip
        emitted.append(ids_out.tolist())
        policy.append(policy_out.tolist())
        inputs.append(next_embeds.clone())
        hiddens.append(hidden)
    return emitted, policy, inputs, hiddens, state, embedding


def expected_row(samples: list[int], latent_size: int, mode: str, train_start: bool):
    """One row's (emitted, is_policy, source of the next input) per step, straight from the table."""
    phase, done, out = None, False, []
    for token in samples:
        if done:
            out.append((FILL, False, "embedding"))
        elif phase is None:
            out.append((token, train_start or token != START, "embedding"))
            if token == START:
                phase = 0
            done = token in (EOS, EOS2)
        elif phase < latent_size and not (mode == "reference" and token == END):
            out.append((PAD, False, "hidden"))
            phase += 1
        else:
            out.append((END, False, "embedding"))
            phase = None
    return out, done


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(st.lists(st.sampled_from([0, 1, START, END, PAD, EOS, EOS2]), min_size=3, max_size=3),
                     min_size=1, max_size=14),
    latent_size=st.integers(1, 4),
    mode=st.sampled_from(["exact", "reference"]),
    train_start=st.booleans(),
)  # fmt: skip
def test_every_row_follows_the_table(samples, latent_size, mode, train_start):
    emitted, policy, inputs, hiddens, state, embedding = drive(
        samples, latent_size, mode=mode, train_start=train_start
    )
    for row in range(3):
        expected, done = expected_row([step[row] for step in samples], latent_size, mode, train_start)
        thought = []
        for step, (token, chosen, source) in enumerate(expected):
            assert (emitted[step][row], policy[step][row]) == (token, chosen)
            want = hiddens[step][row] if source == "hidden" else embedding[token]
            assert torch.equal(inputs[step][row], want)
            if source == "hidden":
                thought.append(step)
        assert bool(state["finished"][row]) == done
        assert int(state["latent_count"][row]) == len(thought)
        assert state["latent_steps"][row, : len(thought)].tolist() == thought
        for slot, step in enumerate(thought):
            assert torch.equal(state["latents"][row, slot], hiddens[step][row])
        tokens = [token for token, _, _ in expected]
        assert int(state["blocks"][row]) == tokens.count(START)
        length = next((i + 1 for i, t in enumerate(tokens) if t in (EOS, EOS2)), len(tokens))
        assert int(state["steps"][row]) == length


def test_finished_rows_do_not_change():
    samples = [[EOS, START], [START, 0], [EOS, 0], [0, 0]]
    emitted, policy, _, _, state, _ = drive(samples, 1)
    assert [step[0] for step in emitted] == [EOS, FILL, FILL, FILL]
    assert [step[0] for step in policy] == [True, False, False, False]
    assert [step[1] for step in emitted] == [START, PAD, END, 0]
    assert state["phase"].tolist() == [0, 0]
    assert state["blocks"].tolist() == [0, 1]
    assert state["steps"].tolist() == [1, 4]


def test_history_that_is_too_short_is_counted_and_never_written_past():
    samples = [[START], [0], [0], [0], [0]]
    *_, state, _ = drive(samples, 3, max_latents=2)
    assert state["latent_count"].tolist() == [3]
    assert state["latent_steps"].tolist() == [[1, 2]]
    *_, state, _ = drive(samples, 3, max_latents=0)
    assert state["latent_count"].tolist() == [3]


def test_forbidden_tokens_by_state():
    phase = torch.tensor([0, 0, 1, 3], dtype=torch.int32)
    blocks = torch.tensor([1, 2, 2, 2], dtype=torch.int32)
    banned = forbidden_tokens(phase, blocks, pad_id=PAD, start_id=START, end_id=END, max_blocks=2)
    assert banned.tolist() == [[PAD, END, -1], [PAD, END, START], [-1, -1, -1], [-1, -1, -1]]
    assert banned.dtype == torch.int64


def blank(rows: int, limit: int, seen: bool = True) -> Recording:
    return Recording(
        tokens=torch.full((rows, limit + 1), -1), policy_mask=torch.zeros(rows, limit + 1, dtype=torch.bool),
        logprobs=torch.zeros(rows, limit + 1), sampled_logprobs=torch.zeros(rows, limit + 1),
        positions=torch.full((rows,), 9), newest=torch.full((rows,), -1),
        forbidden=torch.full((rows, 3), -7),
        seen=torch.zeros(rows, VOCAB, dtype=torch.uint8) if seen else None,
    )  # fmt: skip


def test_what_is_recorded():
    """Rows that talk until the limit, think and end, in five steps of at most four ids."""
    samples = [[0, START, EOS], [1, 0, 0], [2, START, 0], [4, 5, 0], [0, 0, 0]]
    state = latent_state(3, WIDTH, 4, dtype=torch.float32, device="cpu")
    recording = blank(3, 4)
    logprobs = torch.tensor([-1.0, torch.nan, -3.0])
    for step, ids in enumerate(samples):
        latent_feedback_step_(
            torch.tensor(ids), torch.zeros(3, WIDTH), torch.zeros(VOCAB, WIDTH), **state,
            eos_ids=torch.tensor([EOS]), latent_size=1, **IDS, recording=recording, max_blocks=1,
            logprobs=logprobs, sampled_logprobs=torch.full((3,), -0.5),
        )  # fmt: skip
        banned = forbidden_tokens(
            state["phase"], state["blocks"], pad_id=PAD, start_id=START, end_id=END, max_blocks=1
        )
        assert torch.equal(recording.forbidden, banned), step
        assert torch.equal(recording.newest, state["steps"] - 1)
    assert recording.tokens[:, :4].tolist() == [[0, 1, 2, 4], [START, PAD, END, 5], [EOS, FILL, -1, -1]]
    assert recording.policy_mask[:, :4].tolist() == [[True] * 4, [False] * 3 + [True], [True] + [False] * 3]
    assert recording.logprobs[0, :4].tolist() == [-1.0] * 4
    assert recording.logprobs[1, :4].isnan().all()  # also where the id is no choice
    assert recording.logprobs[2, :2].tolist() == [-3.0, 0.0]
    assert recording.sampled_logprobs[1, :4].tolist() == [0.0, 0.0, 0.0, -0.5]
    assert state["finished"].tolist() == [True, True, True]
    assert state["steps"].tolist() == [4, 4, 1]
    assert recording.positions.tolist() == [13, 13, 10]
    seen = recording.seen
    assert [row.nonzero()[:, 0].tolist() for row in seen] == [
        [0, 1, 2, FILL, 4], [FILL, 5, PAD, START, END], [FILL, EOS],
    ]  # fmt: skip
    assert seen[0, 4] == 3


def test_outputs_are_written_into_the_given_tensors():
    state = latent_state(2, WIDTH, 4, dtype=torch.bfloat16, device="cpu")
    outputs = {
        "emitted": torch.full((2,), -1),
        "is_policy": torch.zeros(2, dtype=torch.bool),
        "next_embeds": torch.full((2, WIDTH), torch.nan, dtype=torch.bfloat16),
    }
    embedding = torch.randn(VOCAB, WIDTH).bfloat16()
    returned = latent_feedback_step_(
        torch.tensor([0, 1]), torch.randn(2, WIDTH).bfloat16(), embedding, **state,
        eos_ids=torch.zeros(0, dtype=torch.long), latent_size=2, **IDS, **outputs,
    )  # fmt: skip
    assert all(a is b for a, b in zip(returned, outputs.values(), strict=True))
    assert torch.equal(outputs["next_embeds"], embedding[:2])


def test_bad_input_is_named(monkeypatch):
    def call(**changes):
        state = latent_state(2, WIDTH, 4, dtype=torch.float32, device="cpu")
        arguments = {"sampled": torch.zeros(2, dtype=torch.long), "hidden": torch.zeros(2, WIDTH),
                     "embedding": torch.zeros(VOCAB, WIDTH), **state, "latent_size": 2,
                     "eos_ids": torch.tensor([EOS]), **IDS, **changes}  # fmt: skip
        return latent_feedback_step_(**arguments)

    call()
    with pytest.raises(ValueError, match="mode is 'free'"):
        call(mode="free")
    with pytest.raises(ValueError, match="latent_size is 0"):
        call(latent_size=0)
    with pytest.raises(ValueError, match=r"phase is .*int64"):
        call(phase=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"latents is \(2,\); it must be \[B, L, H\]"):
        call(latents=torch.zeros(2))
    with pytest.raises(ValueError, match=r"hidden is torch.* but embedding is"):
        call(embedding=torch.zeros(VOCAB, WIDTH, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"must be .B, H. and .V, H."):
        call(hidden=torch.zeros(2, WIDTH + 1))
    with pytest.raises(ValueError, match="go together"):
        call(recording=blank(2, 3))
    some = {"logprobs": torch.zeros(2), "sampled_logprobs": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"recording.newest is \(3,\)"):
        call(recording=replace(blank(2, 3), newest=torch.zeros(3, dtype=torch.long)), **some)
    monkeypatch.setenv("FOURDTHINKER_DEBUG", "1")
    with pytest.raises(ValueError, match=r"sampled has values from 0 to 12; they must be in \[0, 12\)"):
        call(sampled=torch.tensor([0, VOCAB]))
