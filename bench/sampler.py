"""``python -m bench sampler --tiny``: the sampler against Hugging Face's ``generate`` on the same model."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from bench._measure import interleaved, peak_rss, summary
from fourdthinker.backbones.qwen2_5_vl import Qwen2_5_VL
from fourdthinker.latents import LatentSpec
from fourdthinker.positions import mrope_positions
from fourdthinker.sampler import LatentSampler, SamplingConfig
from fourdthinker.samples import Prompt, Vision

log = logging.getLogger(__name__)

VOCABULARY = 151_668
IDS = {"image": 151_655, "video": 151_656, "vision_start": 151_652, "vision_end": 151_653}
EOS, PAD = 151_645, 151_643
TEXT = 50  # text tokens of a prompt, besides the pads of its clip
CASES: dict[str, dict[str, Any]] = {
    "top_p": {"temperature": 1.0, "top_p": 0.9, "top_k": 0},
    "plain": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
    "greedy": {"temperature": 0.0},
}


def tiny_model() -> Qwen2_5_VLForConditionalGeneration:
    """Random weights: Qwen2.5-VL-3B narrowed eight times, with six layers and a tower of four."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 1376, "num_hidden_layers": 6,
            "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 4, "hidden_size": 160, "intermediate_size": 428, "num_heads": 4, "out_hidden_size": 256,
            "window_size": 112, "fullatt_block_indexes": [3], "tokens_per_second": 2,
        },
        image_token_id=IDS["image"], video_token_id=IDS["video"], vision_start_token_id=IDS["vision_start"],
        vision_end_token_id=IDS["vision_end"], tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=PAD)
    return model.eval()


def make_prompts(count: int, grid: tuple[int, int, int]) -> list[Prompt]:
    """Prompts of one clip of ``grid`` patches each, with a few words before and after it."""
    generator = torch.Generator().manual_seed(1)
    prompts = []
    for _ in range(count):
        words = torch.randint(0, 150_000, (TEXT - 2,), generator=generator)
        pads = torch.full((grid[0] * grid[1] * grid[2] // 4,), IDS["video"])
        start, end = torch.tensor([IDS["vision_start"]]), torch.tensor([IDS["vision_end"]])
        ids = torch.cat([words[:14], start, pads, end, words[14:]])
        patches = torch.randn(grid[0] * grid[1] * grid[2], 1176, generator=generator)
        vision = Vision(torch.tensor([grid]), patches, seconds_per_grid=[1.0])
        positions, following = mrope_positions(
            ids, grid_thw=vision.grid_thw, seconds_per_grid=[1.0], image_token_id=IDS["image"],
            video_token_id=IDS["video"],
        )  # fmt: skip
        prompts.append(Prompt(ids, positions, following, vision))
    return prompts


def theirs(
    model: Any, prompts: list[Prompt], rows: int, new: int, settings: dict[str, Any]
) -> Callable[[], Any]:
    """``generate`` as users call it for several samples of a prompt: every row with its own pixels."""
    every = [prompt for prompt in prompts for _ in range(rows)]

    def call() -> Any:
        ids = torch.stack([prompt.input_ids for prompt in every])
        visions = [prompt.vision for prompt in every if prompt.vision is not None]
        sampling: dict[str, Any] = {"do_sample": False}
        if settings["temperature"] > 0:
            sampling = {"do_sample": True} | settings
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids),
            mm_token_type_ids=2 * (ids == IDS["video"]).long(),
            pixel_values_videos=torch.cat([v.patches for v in visions if v.patches is not None]),
            video_grid_thw=torch.cat([v.grid_thw for v in visions]),
            second_per_grid_ts=torch.ones(len(visions)), max_new_tokens=new, min_new_tokens=new, **sampling,
        )  # fmt: skip
        _require_length(out.shape[1] - ids.shape[1], new)
        return out

    return call


def ours(
    sampler: LatentSampler, prompts: list[Prompt], rows: int, new: int, settings: dict[str, Any]
) -> Callable[[], Any]:
    """The sampler, with an EOS that is not sampled, so that rows are as long as those of ``generate``."""
    config = SamplingConfig(max_new_tokens=new, eos_ids=(EOS,), **settings)

    def call() -> Any:
        rollout = sampler.sample(prompts, rows, config)
        _require_length(int(rollout.lengths.min()), new)
        return rollout

    return call


def _require_length(got: int, wanted: int) -> None:
    if got != wanted:
        raise RuntimeError(f"a row ended after {got} of {wanted} ids; the two would not do the same work")


def _setup(new: int) -> dict[str, dict[str, Callable[[], Any]]]:
    torch.set_num_threads(2)
    model = tiny_model()
    backbone = Qwen2_5_VL(model, LatentSpec(4, 151_665, 151_666, 151_667))
    prompts = make_prompts(2, (8, 18, 32))
    sampler = LatentSampler(backbone)
    return {
        name: {"hf": theirs(model, prompts, 8, new, case), "ours": ours(sampler, prompts, 8, new, case)}
        for name, case in CASES.items()
    }


def tiny(arguments: argparse.Namespace) -> int:
    """The CPU case: 2 prompts of 1,202 tokens, 8 rows each, two threads, float32."""
    calls = _setup(arguments.new_tokens)
    if arguments.memory_of:
        name, who = arguments.memory_of.split(":")
        log.info("%d", peak_rss(calls[name][who]))
        return 0
    result: dict[str, Any] = {"new_tokens": arguments.new_tokens, "speedup_vs_hf": {}, "memory_vs_hf": {}}
    for name in arguments.cases or CASES:
        taken = interleaved(calls[name], repeats=arguments.repeats, warmup=1 if arguments.warm else 0)
        seconds = {who: summary(times)["median"] for who, times in taken.items()}
        result["speedup_vs_hf"][name] = round(seconds["hf"] / seconds["ours"], 2)
        result[name] = {f"{who}_s": round(value, 3) for who, value in seconds.items()}
        log.info("%s: %s", name, result[name])
        if not arguments.no_memory:
            peaks = {who: _memory(name, who, arguments.new_tokens) for who in ("hf", "ours")}
            result["memory_vs_hf"][name] = round(peaks["ours"] / peaks["hf"], 3)
            result[name] |= {f"{who}_mb": value >> 20 for who, value in peaks.items()}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _memory(name: str, who: str, new: int) -> int:
    command = [sys.executable, "-m", "bench", "sampler", "--tiny", "--new-tokens", str(new),
               "--memory-of", f"{name}:{who}"]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int((done.stdout + done.stderr).split()[-1])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench sampler", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="the CPU case")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cases", nargs="*", choices=list(CASES))
    parser.add_argument("--warm", action="store_true", help="an unmeasured round first")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return tiny(parser.parse_args(argv))
