"""The settings that both trainers have; `settings.py` has those of each."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fourdthinker.frames import FramePolicy
from fourdthinker.settings import Bool, Float, Int, Name, Names, Settings, Text
from fourdthinker.trainers.settings_checks import check_engine, make_frames
from fourdthinker.trainers.settings_needs import check_needs
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
        "optimizer keeps float32 copies. float16 weights are trained only under DeepSpeed or FSDP with "
        "bf16=true, where passes see bfloat16.",
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
    shuffle_dataset: Bool = Field(
        True,
        description="Take the records of each epoch in a new random order; false: in that of the files.",
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
        False, description="Start in a folder that holds a former run; what that run wrote is renamed."
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
    def _check_needs(self) -> Self:
        if self.cache_dir is not None and not self.freeze_vision:
            raise ValueError(
                "cache_dir keeps features of a frozen tower; set freeze_vision=true or leave cache_dir out"
            )
        check_needs(self)
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
