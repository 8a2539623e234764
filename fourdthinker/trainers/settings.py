"""The settings of a training run: names, types, defaults, bounds and explanations, each said once.

`--help`, docs/settings.md and the checks all come from the fields below. A setting has the name it has in
`transformers.TrainingArguments` where it means the same, and is passed on under that name.

Types are strict: text is no number and `true` is no 1. Only what YAML 1.1 reads as text although it is a
number (`1e-6`) is taken for the number. Adding a setting: one field here, under the group it belongs to
(`groups`), and `python tools/settings_doc.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fourdthinker.frames import FramePolicy
from fourdthinker.kernels import GrpoOptions
from fourdthinker.settings import Bool, Float, Int, Name, Names, Settings, Text
from fourdthinker.trainers.settings_checks import (
    PUBLISHED_BETA,
    check_engine,
    check_rl,
    make_frames,
    make_loss,
)
from fourdthinker.trainers.settings_sections import LearningRates, LoraSettings, Schedule

# Settings whose defaults differ between the trainers.
OutputDir = Annotated[Name, Field(description="Folder of the run: everything is written here.")]
LearningRate = Annotated[Float, Field(ge=0, description="Highest learning rate of the schedule.")]
WarmupSteps = Annotated[
    Float,
    Field(ge=0, description="Updates over which the learning rate rises from 0; below 1: share of all."),
]
WeightDecay = Annotated[Float, Field(ge=0, description="Decoupled weight decay of AdamW.")]
LoggingSteps = Annotated[Int, Field(ge=1, description="Write metrics every so many updates.")]
SaveSteps = Annotated[
    Int, Field(ge=0, description="Write a checkpoint every so many updates; 0: only the final one.")
]


class TrainConfig(Settings):
    """What both trainers need."""

    groups: ClassVar[dict[str, str]] = {
        "model": "Model",
        "data": "Data",
        "output_dir": "Run",
        "num_train_epochs": "Optimisation",
        "bf16": "Precision, memory and devices",
        "logging_steps": "Logging and checkpoints",
        "eval_data": "Evaluation during training",
        "dataloader_num_workers": "Data loading",
    }

    model: Text = Field("", description="Folder or hub name of a checkpoint with latent tokens.")
    subfolder: Name | None = Field(None, description="Folder inside `model` that holds the checkpoint.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type of the weights; auto: as they were saved. Of bfloat16 weights that are trained the "
        "optimizer keeps float32 copies; float16 needs DeepSpeed.",
    )
    latents: Bool = Field(
        True,
        description="false: take a model without latent tokens as it is, which then answers in words alone.",
    )
    freeze_vision: Bool = Field(True, description="Leave the vision tower as it is.")
    lora: LoraSettings | None = Field(
        None, description="Train an adapter instead of the language model's weights; null: train the weights."
    )

    data: Names = Field([], description="Record files (JSONL), read one after the other.")
    media_root: Name | None = Field(
        None, description="Folder that no path of a record may leave; null: the folder of its file."
    )
    on_bad_record: Literal["raise", "skip"] = Field(
        "raise", description="End the run at a bad record, or leave it out and write it to rejected.jsonl."
    )
    check_media: Bool = Field(
        True,
        description="Read every clip and picture once before training. Filling a cache does so anyway.",
    )
    max_prompt_tokens: Int | None = Field(
        None,
        ge=1,
        description="Tokens before the answer at most, those of pictures included; a longer record is a bad "
        "one. null: as many as fit into the model's context with the answer.",
    )
    frames: Annotated[FramePolicy | None, BeforeValidator(make_frames)] = Field(
        None, description="Which frames are seen, and at what size; null: the checkpoint's own frame policy."
    )
    instruction: Text | None = Field(
        None, description="Text added to every question, and saved; null: the checkpoint's own."
    )
    override_policy: Bool = Field(
        False, description="Allow `frames` to differ from the frame policy the checkpoint was trained on."
    )
    cache_dir: Name | None = Field(
        None, description="Compute vision features once before training, and keep them in this folder."
    )

    output_dir: OutputDir = "runs/run"
    overwrite_output_dir: Bool = Field(
        False, description="Start anew in a folder that holds a former run; its checkpoints are renamed."
    )
    resume_from_checkpoint: Name | None = Field(
        None,
        description="Checkpoint folder to go on from; auto: the newest complete one in output_dir, or a new "
        "run where there is none.",
    )
    max_bad_steps: Int = Field(
        3, ge=0, description="Updates skipped for a non-finite loss or gradient before the run ends."
    )
    seed: Int = Field(42, ge=0, lt=2**32, description="Of data order, sampling, dropout and new weights.")

    num_train_epochs: Float = Field(
        1.0, description="Passes over the data; without effect when max_steps is set."
    )
    max_steps: Int = Field(-1, description="Updates of the weights; -1: as num_train_epochs gives.")
    per_device_train_batch_size: Int = Field(
        1, ge=1, description="Records a process trains on at a time (in 4DRL prompts)."
    )
    gradient_accumulation_steps: Int = Field(1, ge=1, description="Such batches an update.")
    learning_rate: LearningRate = 1e-5
    learning_rates: LearningRates | None = Field(
        None, description="Rates of parts of the model, on the same schedule; null: learning_rate for all."
    )
    lr_scheduler_type: Schedule = Field(
        "linear", description="Schedule of the learning rate, of transformers."
    )
    lr_scheduler_kwargs: dict[str, Any] | None = Field(None, description="Further arguments of the schedule.")
    warmup_steps: WarmupSteps = 0.0
    weight_decay: WeightDecay = 0.0
    adam_beta1: Float = Field(0.9, ge=0, lt=1, description="Decay of AdamW's mean of gradients.")
    adam_beta2: Float = Field(0.999, ge=0, lt=1, description="Decay of AdamW's mean of squared gradients.")
    adam_epsilon: Float = Field(1e-8, gt=0, description="Added to AdamW's denominator.")
    max_grad_norm: Float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0: never.")
    optim: Name = Field("adamw_torch_fused", description="Optimizer, one of transformers' names.")

    bf16: Bool = Field(False, description="Run forward and backward under bfloat16 autocast.")
    tf32: Bool | None = Field(None, description="TF32 in matrix products of float32; null: as torch has it.")
    gradient_checkpointing: Bool = Field(
        False, description="Recompute each layer's activations in the backward pass: slower, less memory."
    )
    max_tokens_per_forward: Int | None = Field(
        None,
        ge=1,
        description="Positions of a training forward at most, padding included; micro-batches are cut by it, "
        "records (rollouts) of like length together. One that is longer goes alone. null: no limit.",
    )
    liger: Bool | Literal["auto"] = Field(
        "auto",
        description="RMSNorm and SwiGLU of the language model by Liger (`train` extra), each compared with "
        "the plain layer first; auto: on a GPU, where it is installed.",
    )
    torch_compile: Bool = Field(
        False,
        description="Compile the decoder layers of training forwards (torch.compile), once for all lengths. "
        "Not with deepspeed.",
    )
    fsdp: Bool = Field(
        False,
        description="Divide weights, gradients and optimizer state among the processes (FSDP2 of torch, by "
        "accelerate). Weights of bfloat16 that are trained need bf16=true.",
    )
    deepspeed: Name | None = Field(
        None,
        description="DeepSpeed config (JSON), relative to the YAML file that names it; null: no DeepSpeed. "
        "Optimizer, schedule and clipping stay those of the settings.",
    )
    use_cpu: Bool = Field(False, description="Train on the CPU though there is a GPU.")
    ddp_timeout: Int = Field(1800, ge=1, description="Seconds after which a silent process ends the run.")

    logging_steps: LoggingSteps = 10
    report_to: Names = Field(
        ["tensorboard"],
        description="Trackers: tensorboard, wandb, trackio, others of transformers; []: none.",
    )
    save_steps: SaveSteps = 500
    save_total_limit: Int | None = Field(
        2, ge=1, description="Checkpoints to keep, the newest and the best among them; null: all."
    )
    save_only_model: Bool = Field(
        False, description="Write checkpoints without optimizer state: smaller, and not to be resumed from."
    )

    eval_data: Names = Field(
        [], description="Held-out record files (JSONL) to evaluate on while training; []: no evaluation."
    )
    eval_steps: Int = Field(
        500,
        ge=1,
        description="Evaluate every so many updates and at the end; the best checkpoint is written and kept.",
    )
    per_device_eval_batch_size: Int = Field(
        8, ge=1, description="Held-out records that a process evaluates at a time."
    )

    dataloader_num_workers: Int = Field(
        0, ge=0, description="Processes that read and encode media; 0: a thread."
    )
    dataloader_prefetch_factor: Int | None = Field(
        None, ge=1, description="Batches each worker prepares ahead; null: 2."
    )
    dataloader_persistent_workers: Bool = Field(False, description="Keep the workers between epochs.")

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        check_engine(self)
        return self

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(
                f"max_steps is {self.max_steps}; give a number above 0, or -1 to use num_train_epochs"
            )
        if self.max_prompt_tokens is not None and not self.check_media:
            raise ValueError(
                f"max_prompt_tokens is {self.max_prompt_tokens} and check_media false: how long a prompt is "
                "shows when its clip is read; set check_media=true"
            )
        if self.max_steps < 0 and self.num_train_epochs <= 0:
            raise ValueError(
                f"num_train_epochs is {self.num_train_epochs}; give a number above 0, or max_steps"
            )
        return self


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

    @model_validator(mode="after")
    def _check_latents(self) -> Self:
        for name in ("latent_size", "latent_pooling", "latent_bottleneck", "latent_norm", "self_feed"):
            if not self.latents and getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)} and latents false: the model has none; leave one of "
                    "them out"
                )
        return self

    @model_validator(mode="after")
    def _check_cache(self) -> Self:
        if self.cache_dir is not None and not self.freeze_vision:
            raise ValueError(
                "cache_dir keeps features of a frozen tower; set freeze_vision=true or leave cache_dir out"
            )
        if self.cache_video and self.cache_dir is None:
            raise ValueError("cache_video=true needs cache_dir, the folder that the features are kept in")
        return self


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
        ["fourdthinker.rewards:accuracy_reward", "fourdthinker.rewards:format_reward"],
        min_length=1,
        description="Functions reward(text, record) -> float, each as package.module:function; also "
        "reward(completions) -> list, async ones, and classes whose instances are called.",
    )
    reward_arguments: dict[str, dict[str, Any]] = Field(
        {},
        description="Arguments of reward functions, by the function's name; of a class those it is made of.",
    )
    reward_timeout: Float | None = Field(
        60.0,
        gt=0,
        description="Seconds a call of a reward function may take; null: any time. Where two hang, the "
        "others of the micro-batch are not made.",
    )
    reward_concurrency: Int = Field(
        16, ge=1, description="Calls of an async reward that run at a time, on each process."
    )
    on_reward_error: Literal["raise", "skip"] = Field(
        "raise",
        description="End the run where a reward function fails or gives no finite number, or leave that "
        "rollout out and count it. A judge that cannot be reached and an async reward that is late "
        "never end the run.",
    )
    reward_weights: list[Float] = Field([1.0, 0.2], description="Weight of each reward in the sum.")
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
        False, description="Leave groups whose rewards are all equal out of the loss."
    )
    refill_rounds: Int = Field(
        0,
        ge=0,
        description="Dynamic sampling: replace groups whose rewards are all equal by groups of other "
        "prompts, in so many rounds at most; 0: never.",
    )
    mask_overlong: Bool = Field(
        False, description="Leave the tokens of rollouts that reach max_completion_length out of the loss."
    )
    loss: Annotated[GrpoOptions, BeforeValidator(make_loss)] = Field(
        GrpoOptions(beta=PUBLISHED_BETA),
        validate_default=True,
        description="The GRPO objective. With beta 0 there is no reference model.",
    )
    num_iterations: Int = Field(1, ge=1, description="Updates on each batch of rollouts.")
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
        "around what the policy thinks there, as Monet; without gradient in the first of num_iterations).",
    )
    latent_weight: Float = Field(1.0, gt=0, description="Weight of latent_term.")
    latent_sigma: Float = Field(10.0, gt=0, description="Standard deviation of latent_term=gaussian.")

    log_rollouts_steps: Int = Field(
        10, ge=1, description="Write rollouts to rollouts.jsonl every so many updates."
    )
    log_rollouts: Int = Field(8, ge=0, description="Rollouts of the first process to write each time.")

    @property
    def needs_reference(self) -> bool:
        """Whether the model that training started from has a part in the loss or the reward."""
        return self.loss.beta > 0 or self.reward_kl_weight > 0 or self.latent_term == "cosine"

    @model_validator(mode="after")
    def _check_rl(self) -> Self:
        check_rl(self)
        return self
