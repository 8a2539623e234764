"""A model to be trained from nothing, in the real Qwen2.5-VL architecture, and its word-level tokenizer."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.qwen2_5_vl import Qwen2_5_VL
from fourdthinker.demo.questions import words
from fourdthinker.demo.settings import POLICY, STYLE, ModelSettings
from fourdthinker.latents import grow_vocabulary

UNKNOWN = "<unk>"
INITIALIZER_RANGE = 0.06  # for widths of about 128; the usual 0.02 is made for thousands
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# ChatML without a system turn. Texts come before pictures: what the model makes of a picture may then depend
# on the question, and its reasoning begins at one distance from the pictures, however long the question is.
CHAT_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n"
    "{% if turn.content is string %}{{ turn.content }}{% else %}"
    "{% for part in turn.content if part.type not in ('image', 'video') %}{{ part.text }}{% endfor %}"
    "{% for part in turn.content if part.type in ('image', 'video') %}"
    "<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word between spaces that the demo's texts can hold, and Qwen's control tokens."""
    vocabulary = {word: index for index, word in enumerate([UNKNOWN, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_checkpoint(settings: ModelSettings, seed: int) -> Checkpoint:
    """A random model (float32, tied embeddings) with the latent tokens; the same for the same seed."""
    tokenizer = make_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    pairs = settings.hidden // settings.heads // 2  # rotary pairs of a head: time, height and width as 2:3:3
    temporal = pairs // 4
    spatial = (pairs - temporal) // 2
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": settings.hidden,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "num_key_value_heads": settings.key_value_heads,
            "intermediate_size": settings.intermediate,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                # The slowest rotations tell the columns of an image apart: with the usual base of 10,000 and
                # heads this small they would hardly turn at all.
                "rope_theta": 10.0,
                "mrope_section": [pairs - 2 * spatial, spatial, spatial],
            },
            "initializer_range": INITIALIZER_RANGE,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": settings.tower_layers,
            "hidden_size": settings.tower_hidden,
            "intermediate_size": settings.tower_intermediate,
            "num_heads": settings.tower_heads,
            "out_hidden_size": settings.hidden,
            "fullatt_block_indexes": list(range(settings.tower_layers)),
            "tokens_per_second": 2,
            "initializer_range": INITIALIZER_RANGE,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        initializer_range=INITIALIZER_RANGE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"]
    )
    spec = grow_vocabulary(model, tokenizer, latent_size=settings.latent_size)
    return Checkpoint(Qwen2_5_VL(model, spec), tokenizer, POLICY, STYLE)
