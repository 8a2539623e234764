"""Triton ops, imported as ``fourdthinker.kernels`` and only so.

The names below are functions, though files have the same names. In a checkout this folder can also be found
as a top-level package ``kernels``, which transformers looks for and imports: then it is empty.
"""

if __name__ == "fourdthinker.kernels":
    from . import _gpu_architectures as launch_settings
    from ._grpo_losses import LOSS_TYPES, RATIO_LEVELS, GrpoOptions
    from ._grpo_metrics import METRICS
    from ._head_arguments import CONVERTED_IDS, chunk_size
    from ._logits import TokenStatistics
    from .add_rms_norm import add_rms_norm
    from .cosine_latent_loss import cosine_latent_loss
    from .cross_entropy import cross_entropy
    from .group_advantages import group_advantages
    from .grpo_loss import grpo_loss
    from .grpo_token_loss import grpo_token_loss, top_entropy_mask
    from .latent_grammar import Recording, forbidden_tokens, latent_feedback_step_, latent_state
    from .linear_cross_entropy import linear_cross_entropy
    from .linear_grpo_loss import linear_grpo_loss
    from .linear_logprobs import linear_logprobs
    from .logprobs import logprobs
    from .pool_latents import pool_latents
    from .rotary_append import rotary_append_
    from .sample_tokens import PRESENT, REPEATED, SAMPLING_LIMITS, philox_uniform, sample_tokens
    from .shared_prefix_decode import shared_prefix_decode
    from .silu_mul import silu_mul

    __all__ = [
        "CONVERTED_IDS",
        "LOSS_TYPES",
        "METRICS",
        "PRESENT",
        "RATIO_LEVELS",
        "REPEATED",
        "SAMPLING_LIMITS",
        "GrpoOptions",
        "Recording",
        "TokenStatistics",
        "add_rms_norm",
        "chunk_size",
        "cosine_latent_loss",
        "cross_entropy",
        "forbidden_tokens",
        "group_advantages",
        "grpo_loss",
        "grpo_token_loss",
        "latent_feedback_step_",
        "latent_state",
        "launch_settings",
        "linear_cross_entropy",
        "linear_grpo_loss",
        "linear_logprobs",
        "logprobs",
        "philox_uniform",
        "pool_latents",
        "rotary_append_",
        "sample_tokens",
        "shared_prefix_decode",
        "silu_mul",
        "top_entropy_mask",
    ]
