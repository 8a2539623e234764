"""A complete random checkpoint in the real architecture of a family, small enough to make in every test."""

from __future__ import annotations

import importlib
import os
from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from fourdthinker.backbones import FAMILIES, Checkpoint, save_checkpoint
from fourdthinker.frames import FramePolicy
from fourdthinker.latents import grow_vocabulary
from fourdthinker.prompt_style import PromptStyle

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "system user assistant You are a helpful assistant.",
    "Which way does the camera move? Which way does the red object move?",
    "<think> The camera pans to the left while the cube comes closer. </think> <answer> A. left </answer>",
    "<think> I picture the scene and the sphere moves to the right. </think> <answer> B. right </answer>",
    "A. left B. right C. up D. down closer farther between the frames and the seconds 0 1 2 3 4 5 6 7 8 9",
)


@cache
def _tokenizer_json(merges: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer.to_str()


def tiny_tokenizer(merges: int = 120) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's control tokens, no latent ones, and a ChatML template: about 390 tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json(merges)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    family: str = "qwen2_5_vl",
    hidden: int = 32,
    layers: int = 2,
    tied: bool = True,
    seed: int = 0,
    spare_rows: int = 0,
) -> Any:
    """A random model of a family in float32 and eval mode, with ``spare_rows`` beyond the tokenizer's ids.

    ``hidden`` is a multiple of 32: heads are 16 wide, two of them share one key-value head. A Qwen3-VL has
    two DeepStack levels.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer) + spare_rows,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 16,
        "num_key_value_heads": hidden // 32,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,  # logits so far apart that rounding does not decide greedy choices
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": hidden,
        "initializer_range": 0.1,
    }
    common: dict[str, Any] = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "qwen3_vl":
            rope = text["rope_parameters"] | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
            text |= {"head_dim": 16, "rope_parameters": rope}
            vision |= {"depth": 3, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
            model = Qwen3VLForConditionalGeneration(
                Qwen3VLConfig(text_config=text, vision_config=vision, **common)
            )
        else:
            vision |= {"depth": 2, "window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2}
            model = Qwen2_5_VLForConditionalGeneration(
                Qwen2_5_VLConfig(text_config=text, vision_config=vision, **common)
            )
    model.generation_config = GenerationConfig(
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"]
    )
    return model.eval()


def tiny_checkpoint(
    path: str | os.PathLike[str] | None = None,
    *,
    family: str = "qwen2_5_vl",
    hidden: int = 32,
    layers: int = 2,
    tied: bool = True,
    seed: int = 0,
    latent_size: int = 4,
    policy: FramePolicy | None = None,
    style: PromptStyle | None = None,
) -> Checkpoint:
    """A random checkpoint with latent tokens, float32 on CPU; written to ``path`` when one is given."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, family=family, hidden=hidden, layers=layers, tied=tied, seed=seed)
    grow_vocabulary(model, tokenizer, latent_size=latent_size)
    module, name = FAMILIES[family]
    backbone = getattr(importlib.import_module(module), name)(model)
    policy = policy or backbone.default_policy()
    checkpoint = Checkpoint(backbone, tokenizer, policy, style or PromptStyle())
    if path is not None:
        save_checkpoint(path, checkpoint)
    return checkpoint
