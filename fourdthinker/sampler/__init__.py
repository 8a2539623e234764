"""Sampling with latents: prompts in, rollouts out, and rollouts back through the training forward."""

from fourdthinker.sampler.config import SamplingConfig, check_count, row_seed, seed_of
from fourdthinker.sampler.engine import LatentSampler
from fourdthinker.sampler.feed import Feed
from fourdthinker.sampler.latent_modes import LATENT_MODES, check_latent_mode, make_feed, most_latents
from fourdthinker.sampler.replay import replay_batch, replay_logprobs
from fourdthinker.sampler.rollout import Rollout, joined_groups
from fourdthinker.sampler.sizes import MAX_ROWS, cache_bytes, clips_at_once, prefilled_at_once
from fourdthinker.sampler.step import head_logits
from fourdthinker.sampler.vision import encode_imagery, encode_prompts, encode_visions

__all__ = [
    "LATENT_MODES",
    "MAX_ROWS",
    "Feed",
    "LatentSampler",
    "Rollout",
    "SamplingConfig",
    "cache_bytes",
    "check_count",
    "check_latent_mode",
    "clips_at_once",
    "encode_imagery",
    "encode_prompts",
    "encode_visions",
    "head_logits",
    "joined_groups",
    "make_feed",
    "most_latents",
    "prefilled_at_once",
    "replay_batch",
    "replay_logprobs",
    "row_seed",
    "seed_of",
]
