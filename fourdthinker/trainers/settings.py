"""The settings of a training run: names, types, defaults, bounds and explanations, each said once.

`--help`, docs/settings.md and the checks all come from the fields below, and from those of both trainers in
`settings_base.py`. A setting has the name it has in `transformers.TrainingArguments` where it means the same,
and is passed on under that name.

Types are strict: text is no number and `true` is no 1. Only what YAML 1.1 reads as text although it is a
number (`1e-6`) is taken for the number. Adding a setting: one field here, under the group it belongs to
(`groups`), and `python tools/settings_doc.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fourdthinker.kernels import GrpoOptions
from fourdthinker.settings import Bool, Float, Int, Names
from fourdthinker.trainers.settings_base import (
    LearningRate,
    LoggingSteps,
    OutputDir,
    SaveSteps,
    TrainConfig,
    WarmupSteps,
    WeightDecay,
)
from fourdthinker.trainers.settings_checks import (
    DEFAULT_WEIGHTS,
    PUBLISHED_BETA,
    check_rl,
    make_loss,
    make_weights,
)


class DiftConfig(TrainConfig):
    """Settings of DIFT. Published: 8 GPUs, batch 1, one epoch, 1e-5 linear, warm-up 10, decay 0.01."""

    groups: ClassVar[dict[str, str]] = TrainConfig.groups | {"latent_size": "DIFT"}

    output_dir: OutputDir = "runs/dift"
    warmup_steps: WarmupSteps = 10.0
    weight_decay: WeightDecay = 0.01

    latent_size: Int | None = Field(
        None,
        ge=1,
        description="K, the latents of a block: a base checkpoint gets latent tokens, one that has them "
        "takes another K; null: the checkpoint's.",
    )
    latent_pooling: Literal["average", "grid"] | None = Field(
        None,
        description="How the features of an overlay become K targets: average (means of K runs in raster "
        "order, as published), grid (means of K cells of rows and columns); null: the checkpoint's.",
    )
    latent_bottleneck: Bool = Field(
        False,
        description="In training the words behind the first block of an answer do not attend to the frames: "
        "they see the video through words and latents only. Needs SDPA or eager attention.",
    )
    ce_loss_weight: Float | None = Field(
        None, ge=0, description="Weight of the cross-entropy; null: the checkpoint's."
    )
    sim_loss_weight: Float | None = Field(
        None, ge=0, description="Weight of the latent loss (1 - cosine); null: the checkpoint's."
    )
    latent_norm: Float = Field(
        0.0,
        ge=0,
        description="Weight of (log norm of the hidden state - log running norm of the targets)^2. The norm "
        "is saved with the checkpoint, and generation gives it to every latent that it feeds back. 0: off.",
    )
    self_feed: Float = Field(
        0.0,
        ge=0,
        le=1,
        description="Last part of the updates in which the model is fed its own latents instead of the "
        "targets, at the cost of K short forwards.",
    )
    cache_video: Bool = Field(
        False, description="Keep the features of the clips in cache_dir too, not only the imagery targets."
    )


class GrpoConfig(TrainConfig):
    """Settings of 4DRL (GRPO).

    One update of the weights uses per_device_train_batch_size * gradient_accumulation_steps prompts on every
    process. Published: learning rate 1e-6, beta 0.01, 8 rollouts, rewards accuracy 1.0 and format 0.2.
    """

    groups: ClassVar[dict[str, str]] = TrainConfig.groups | {
        "num_generations": "Rollouts",
        "rewards": "Rewards and advantages",
        "loss": "Loss",
        "log_rollouts_steps": "Rollouts written down",
    }
    derived: ClassVar[dict[str, str]] = {"loss.max_length": "max_completion_length"}

    output_dir: OutputDir = "runs/grpo"
    learning_rate: LearningRate = 1e-6
    save_steps: SaveSteps = 100
    logging_steps: LoggingSteps = 1

    num_generations: Int = Field(8, ge=2, description="Rollouts of each prompt: a group.")
    num_generations_eval: Int | None = Field(
        None,
        ge=1,
        description="Rollouts of each held-out prompt in an evaluation, sampled as in training, by the same "
        "seeds every time; null: one greedy rollout.",
    )
    max_completion_length: Int = Field(
        512, ge=1, description="Tokens of a rollout at most, with its latents."
    )
    # Below, the float32 log-probs of logits / temperature keep no digit behind the point.
    temperature: Float = Field(1.0, ge=1e-4, description="Of sampling, and of the log-probs in the loss.")
    top_k: Int = Field(0, ge=0, description="Sample from the k likeliest tokens; 0: from all.")
    top_p: Float = Field(
        1.0, gt=0, le=1, description="Sample from the likeliest tokens with this mass; 1: from all."
    )
    min_p: Float = Field(
        0.0, ge=0, lt=1, description="Leave out tokens below this share of the likeliest; 0: none."
    )
    repetition_penalty: Float = Field(
        1.0,
        ge=1e-3,
        le=1e3,
        description="In sampling, logits of ids that stand in prompt or rollout are divided by it (negative "
        "ones multiplied); 1: off. The log-probs in the loss are those without it.",
    )
    presence_penalty: Float = Field(
        0.0,
        ge=-1e30,
        le=1e30,
        description="In sampling, taken off the logits of ids that stand in the rollout, once; 0: off. The "
        "log-probs in the loss are those without it.",
    )
    stop_strings: Names = Field(
        [], description="Texts that end a rollout: with the first id after which one is in it; []: none."
    )
    max_blocks: Int = Field(8, ge=0, description="Imagery blocks of a rollout at most; 0: text only.")
    train_start: Bool = Field(False, description="Train the choice to open a block too.")
    share_prompt: Bool = Field(
        True,
        description="Run each prompt once for all its rollouts in the training forward (needs SDPA or eager "
        "attention).",
    )
    rollout_workers: Int = Field(
        0,
        ge=0,
        description="Ray actors that sample the rollouts of each process, each on a GPU of its own (`ray` "
        "extra); 0: the process samples them itself, without Ray.",
    )
    rollout_staleness: Int = Field(
        0,
        ge=0,
        description="Updates that weights which rollouts are sampled by may be behind; so many updates are "
        "sampled ahead by rollout_workers. 0: none.",
    )

    rewards: Names = Field(
        list(DEFAULT_WEIGHTS),
        min_length=1,
        description="Functions reward(text, record) -> float, each as package.module:function; also "
        "reward(completions) -> list, async ones, and classes whose instances are called. #NAME behind one "
        "gives it another name.",
    )
    reward_arguments: dict[str, dict[str, Any]] = Field(
        {},
        description="Arguments of reward functions, by the reward's name; of a class those it is made of.",
    )
    reward_timeout: Float | None = Field(
        60.0,
        gt=0,
        description="Seconds a call of a reward function may take; null: any time. After four of them "
        "without an answer (or a third of ddp_timeout) no call is made in this update on this process.",
    )
    reward_concurrency: Int = Field(
        16, ge=1, description="Calls of an async reward that run at a time, on each process."
    )
    on_reward_error: Literal["raise", "skip"] = Field(
        "raise",
        description="End the run where a plain reward function fails or gives no finite number, or leave "
        "that rollout out and count it. A failure of an async one never ends the run.",
    )
    reward_weights: Annotated[list[Float], BeforeValidator(make_weights)] = Field(
        None,
        validate_default=True,
        description="Weight of each reward in the sum; null: 1.0 and 0.2 for the two default rewards, as "
        "published, 1.0 each for others.",
    )
    reward_kl: Literal["k1", "k2", "k3"] = Field(
        "k1", description="Estimator of the KL divergence to the reference model in the reward."
    )
    reward_kl_weight: Float = Field(
        0.0, ge=0, description="What is subtracted from the reward is this times its sum over the rollout."
    )
    aggregate_rewards: Literal["sum", "normalised"] = Field(
        "sum",
        description="Weigh the rewards, add them up and compare; or compare each reward within its group, "
        "weigh and add up these, and normalise over the update (GDPO).",
    )
    scale_rewards: Literal["group", "none", "batch", "leave_one_out"] = Field(
        "group",
        description="Advantage: reward minus the group's mean, divided by the standard deviation of the "
        "group or of the batch, or by nothing; leave_one_out: minus the mean of the others.",
    )
    drop_equal_groups: Bool = Field(
        False,
        description="Leave groups whose rewards (GDPO: sums of advantages) are all equal out of the loss.",
    )
    refill_rounds: Int = Field(
        0,
        ge=0,
        description="Dynamic sampling: replace such groups by groups of other prompts, in so many rounds "
        "at most; what is equal then is left out of the loss. 0: never.",
    )
    mask_overlong: Bool = Field(
        False, description="Leave the tokens of rollouts that reach max_completion_length out of the loss."
    )
    loss: Annotated[GrpoOptions, BeforeValidator(make_loss)] = Field(
        GrpoOptions(beta=PUBLISHED_BETA),
        validate_default=True,
        description="The GRPO objective. With beta 0 there is no reference model, unless reward_kl_weight or "
        "latent_term=cosine needs one.",
    )
    num_iterations: Int = Field(1, ge=1, description="Updates on each batch of rollouts.")
    steps_per_generation: Int | None = Field(
        None,
        ge=1,
        description="Batches of prompts that are sampled together, a multiple of "
        "gradient_accumulation_steps: one update after the other takes its share of them, whole groups; "
        "null: those of one update.",
    )
    sync_ref_model: Bool = Field(
        False,
        description="Let the reference model follow the policy (TR-DPO): every ref_model_sync_steps updates "
        "its weights become a mixture of both. Not with lora.",
    )
    ref_model_mixup_alpha: Float = Field(
        0.6, gt=0, le=1, description="Share of the policy in that mixture; 1: the reference becomes it."
    )
    ref_model_sync_steps: Int = Field(512, ge=1, description="Updates from one mixture to the next.")
    top_entropy: Float = Field(
        1.0,
        gt=0,
        le=1,
        description="The policy term keeps this share of the update's tokens, those of the highest "
        "entropy; 1: all. Below 1 at the cost of a forward.",
    )
    entropy_target: Float | None = Field(
        None,
        gt=0,
        description="loss.entropy_coef rises by entropy_step after an update whose mean entropy is at most "
        "this, else it falls, and there is a bonus only after the former; null: it stays.",
    )
    entropy_step: Float = Field(0.005, gt=0, description="Change of loss.entropy_coef with entropy_target.")
    entropy_coef_max: Float = Field(1.0, gt=0, description="Its highest value with entropy_target.")
    latent_term: Literal["none", "cosine", "gaussian"] = Field(
        "none",
        description="Loss of latents, a mean over those of the update: none (as published), cosine (1 - "
        "cosine to what the reference model thinks there), gaussian (clipped ratio of normal densities "
        "around what the policy thinks there, as Monet; without gradient in the first update on rollouts).",
    )
    latent_weight: Float = Field(1.0, gt=0, description="Weight of latent_term.")
    latent_sigma: Float = Field(10.0, gt=0, description="Standard deviation of latent_term=gaussian.")

    log_rollouts_steps: Int = Field(
        10, ge=1, description="Write rollouts to rollouts.jsonl every so many updates."
    )
    log_rollouts: Int = Field(8, ge=0, description="Rollouts of the first process to write each time.")

    @property
    def shares(self) -> int:
        """Updates that the rollouts which are sampled together are divided into."""
        each = self.gradient_accumulation_steps
        return (self.steps_per_generation or each) // each

    @property
    def updates_on_rollouts(self) -> int:
        """Updates from one sampling to the next."""
        return self.shares * self.num_iterations

    @property
    def needs_reference(self) -> bool:
        """Whether the model that training started from has a part in the loss or the reward."""
        return self.loss.beta > 0 or self.reward_kl_weight > 0 or self.latent_term == "cosine"

    @model_validator(mode="after")
    def _check_rl(self) -> Self:
        check_rl(self)
        return self
