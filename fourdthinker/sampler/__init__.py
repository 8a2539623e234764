"""Sampling with latents: prompts in, rollouts out, and rollouts back through the training forward."""

from fourdthinker.sampler.config import SamplingConfig, row_seed
from fourdthinker.sampler.engine import LatentSampler
from fourdthinker.sampler.replay import replay_batch, replay_logprobs
from fourdthinker.sampler.rollout import Rollout
from fourdthinker.sampler.vision import encode_imagery, encode_prompts, encode_visions

__all__ = [
    "LatentSampler",
    "Rollout",
    "SamplingConfig",
    "encode_imagery",
    "encode_prompts",
    "encode_visions",
    "replay_batch",
    "replay_logprobs",
    "row_seed",
]
