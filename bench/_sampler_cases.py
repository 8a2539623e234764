"""Models, prompts and peers of the sampler's bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.qwen2_5_vl import Qwen2_5_VL
from fourdthinker.backbones.qwen3_vl import Qwen3_VL
from fourdthinker.latents import LatentSpec
from fourdthinker.positions import mrope_positions, per_frame
from fourdthinker.sampler import LatentSampler, SamplingConfig
from fourdthinker.samples import Prompt, Vision

Call = Callable[[], Any]
VOCABULARY = 151_668
IDS = {"image": 151_655, "video": 151_656, "vision_start": 151_652, "vision_end": 151_653}
LATENTS = LatentSpec(4, 151_665, 151_666, 151_667)
EOS, PAD = 151_645, 151_643
TEXT = 50  # text tokens of a prompt, besides the pads of its clip


@dataclass
class Shape:
    """A model's sizes: of the language model, of the tower, and the patches of a prompt's clip."""

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    grid: tuple[int, int, int]


SHAPES = {
    "tiny": Shape(  # Qwen2.5-VL-3B narrowed eight times, with six layers and a tower of four
        "qwen2_5_vl",
        {"hidden_size": 256, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": VOCABULARY, "mrope_section": [4, 6, 6]},
        {"depth": 4, "hidden_size": 160, "intermediate_size": 428, "num_heads": 4, "out_hidden_size": 256,
         "window_size": 112, "fullatt_block_indexes": [3]},
        (8, 18, 32),
    ),
    "mini": Shape(  # for tests: everything but the vocabulary is as small as it gets
        "qwen2_5_vl",
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": VOCABULARY, "mrope_section": [2, 3, 3]},
        {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
         "window_size": 112, "fullatt_block_indexes": [1]},
        (2, 4, 4),
    ),
    "100m": Shape(
        "qwen2_5_vl",
        {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": VOCABULARY, "mrope_section": [8, 12, 12]},
        {"depth": 4, "hidden_size": 160, "intermediate_size": 428, "num_heads": 4, "out_hidden_size": 512,
         "window_size": 112, "fullatt_block_indexes": [3]},
        (8, 18, 26),
    ),
    "3b": Shape(
        "qwen2_5_vl",
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
         "num_key_value_heads": 2, "vocab_size": 151_936, "mrope_section": [16, 24, 24]},
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
         "out_hidden_size": 2048, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
        (8, 18, 32),
    ),
    "4b": Shape(
        "qwen3_vl",
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "mrope_section": [24, 20, 20],
         "mrope_interleaved": True},
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
         "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17]},
        (8, 18, 32),
    ),
}  # fmt: skip


def build(name: str, device: str, dtype: torch.dtype, *, layers: int | None = None) -> Backbone:
    """A model of random weights at the sizes of ``SHAPES[name]``; ``layers``: of its language model."""
    shape = SHAPES[name]
    text = shape.text | ({} if layers is None else {"num_hidden_layers": layers})
    rope = {"rope_type": "default", "rope_theta": 1e6}
    rope |= {key: text.pop(key) for key in ("mrope_section", "mrope_interleaved") if key in text}
    text |= {"rope_parameters": rope, "max_position_embeddings": 32_768}
    common: dict[str, Any] = {f"{key}_token_id": IDS[key] for key in ("image", "video")}
    common |= {f"{key}_token_id": IDS[key] for key in ("vision_start", "vision_end")}
    common["tie_word_embeddings"] = True
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if shape.family == "qwen3_vl":
                config = Qwen3VLConfig(text_config=text, vision_config=shape.vision, **common)
                model = Qwen3VLForConditionalGeneration(config)
            else:
                vision = shape.vision | {"tokens_per_second": 2}
                config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **common)
                model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=PAD)
    model.eval()
    return Qwen3_VL(model, LATENTS) if shape.family == "qwen3_vl" else Qwen2_5_VL(model, LATENTS)


def make_prompts(backbone: Backbone, count: int, grid: tuple[int, int, int]) -> list[Prompt]:
    """Prompts of one clip of ``grid`` patches each, with a few words before and after it."""
    generator = torch.Generator().manual_seed(1)
    joins_frames = backbone.vision.tokens_per_second is not None
    prompts = []
    for _ in range(count):
        words = torch.randint(0, 150_000, (TEXT - 2,), generator=generator)
        grids = torch.tensor([grid])
        runs = grids if joins_frames else per_frame(grids)
        start, end = torch.tensor([IDS["vision_start"]]), torch.tensor([IDS["vision_end"]])
        pads = [torch.full((int(run.prod()) // 4,), IDS["video"]) for run in runs]
        clip = [piece for run in pads for piece in (start, run, end)]
        ids = torch.cat([words[:14], *clip, words[14:]])
        patches = torch.randn(grid[0] * grid[1] * grid[2], backbone.vision.patch_dim, generator=generator)
        positions, following = mrope_positions(
            ids, grid_thw=runs, seconds_per_grid=[1.0] * len(runs), image_token_id=IDS["image"],
            video_token_id=IDS["video"], tokens_per_second=backbone.vision.tokens_per_second or 0.0,
        )  # fmt: skip
        prompts.append(Prompt(ids, positions, following, Vision(grids, patches, seconds_per_grid=[1.0])))
    return prompts


def generate(
    backbone: Backbone, prompts: list[Prompt], rows: int, new: int, settings: dict[str, Any],
    options: dict[str, Any] | None = None,
) -> Call:  # fmt: skip
    """``generate`` as users call it for several samples of a prompt: every row with its own pixels."""
    every = [prompt for prompt in prompts for _ in range(rows)]
    device = backbone.device

    def call() -> Any:
        ids = torch.stack([prompt.input_ids for prompt in every]).to(device)
        visions = [prompt.vision for prompt in every if prompt.vision is not None]
        patches = torch.cat([v.patches for v in visions if v.patches is not None])
        inputs: dict[str, Any] = {
            "input_ids": ids, "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": 2 * (ids == IDS["video"]).long(),
            "pixel_values_videos": patches.to(device, backbone.dtype),
            "video_grid_thw": torch.cat([v.grid_thw for v in visions]).to(device),
        }  # fmt: skip
        if backbone.family == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.ones(len(visions))
        sampling: dict[str, Any] = {"do_sample": False}
        if settings["temperature"] > 0:
            sampling = {"do_sample": True} | settings
        out = backbone.hf.generate(
            **inputs, max_new_tokens=new, min_new_tokens=new, **sampling, **(options or {})
        )
        require_length(out.shape[1] - ids.shape[1], new)
        return out

    return call


def ours(
    sampler: LatentSampler, prompts: list[Prompt], rows: int, new: int, settings: dict[str, Any]
) -> Call:
    """The sampler. Many rows that end early would make less work of it, so that is refused."""
    config = SamplingConfig(max_new_tokens=new, eos_ids=(EOS,), **settings)

    def call() -> Any:
        rollout = sampler.sample(prompts, rows, config)
        require_work(rollout.lengths, new, on_cpu=sampler.backbone.device.type == "cpu")
        return rollout

    return call


@torch.no_grad()
def eager_loop(backbone: Backbone, prompts: list[Prompt], rows: int, new: int) -> Call:
    """The published way on today's transformers: every row its own pixels and prompt, a cache that grows by
    concatenation, and a look at every row's state after each token."""
    every = [prompt for prompt in prompts for _ in range(rows)]
    latents, device = backbone.latents, backbone.device

    @torch.no_grad()
    def call() -> Tensor:
        batch: dict[str, Any] = {"input_ids": torch.stack([p.input_ids for p in every]).to(device)}
        visions = [prompt.vision for prompt in every if prompt.vision is not None]
        batch["patches"] = torch.cat([v.patches for v in visions if v.patches is not None])
        batch["grid_thw"] = torch.cat([v.grid_thw for v in visions])
        batch["vision_index"] = (batch["input_ids"].flatten() == IDS["video"]).nonzero()[:, 0]
        positions = torch.stack([p.position_ids for p in every], 1).to(device)
        following = torch.tensor([p.next_position for p in every], device=device)
        inputs = backbone.embed_inputs(batch)
        cache, embeds, deepstack = backbone.new_cache(), inputs.embeds, inputs.deepstack
        inside, emitted = [-1] * len(every), []
        for step in range(new):
            hidden = backbone.decode(embeds, positions, None, cache, deepstack=deepstack)[:, -1]
            deepstack = None
            logits = torch.nn.functional.linear(hidden, backbone.head_weight).float()
            ids = torch.multinomial(logits.softmax(-1), 1)[:, 0]
            for row in range(len(every)):
                if inside[row] >= 0:
                    ids[row] = latents.end_id if inside[row] == latents.latent_size else latents.pad_id
                    inside[row] = -1 if inside[row] == latents.latent_size else inside[row] + 1
                elif ids[row].item() == latents.start_id:
                    inside[row] = 0
            thinking = torch.tensor([state > 0 for state in inside], device=device)
            embeds = torch.where(thinking[:, None], hidden, backbone.embed_tokens(ids))[:, None]
            positions = (following + step).expand(3, -1)[..., None]
            emitted.append(ids)
        return torch.stack(emitted, 1)

    return call


def require_length(got: int, wanted: int) -> None:
    """RuntimeError when a row ended before its time: the candidates would not do the same work."""
    if got != wanted:
        raise RuntimeError(f"a row ended after {got} of {wanted} ids; draw with another seed")


def require_work(lengths: Tensor, wanted: int, *, on_cpu: bool) -> None:
    """RuntimeError when rows that ended before their time have left work out.

    On a GPU a row that has ended stays in the batch and costs the same, until many have: one in 16 may. On a
    CPU the batch closes up at once.
    """
    early = int((lengths < wanted).sum())
    if early > (0 if on_cpu else len(lengths) // 16) or int(lengths.max()) < wanted:
        require_length(int(lengths.min()), wanted)
