"""4DRL: reinforcement learning by GRPO, with the latents of the rollouts replayed in the training forward.

`torchrun -m fourdthinker.trainers.grpo --config x.yaml key=value ...`
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback

from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.common import Backbone
from fourdthinker.errors import ConfigError
from fourdthinker.kernels import GrpoOptions, group_advantages
from fourdthinker.objectives import Batch, grpo_objective, policy_logprobs
from fourdthinker.prompts import Prompt
from fourdthinker.rewards import Reward, accuracy_reward, load_reward
from fourdthinker.sampler import LatentSampler, encode_prompts
from fourdthinker.trainers.batches import REPEAT, Items, ShardedBatches, same
from fourdthinker.trainers.common import LatentTrainer, process_group, start_logging
from fourdthinker.trainers.experience import (
    Experience,
    equal_groups,
    replay_chunks,
    rollout_metrics,
    rollout_seeds,
    sampling_config,
    score,
    write_rollouts,
)
from fourdthinker.trainers.packing import pack
from fourdthinker.trainers.settings import GrpoConfig
from fourdthinker.trainers.settings_files import parse_command_line
from fourdthinker.trainers.setup import (
    ROLLOUTS,
    adapt,
    fill_cache,
    load_model,
    load_records,
    load_reference,
    make_encoder,
    prepare_run,
    training_arguments,
)

logger = logging.getLogger(__name__)


@dataclass
class Update:
    """What rollouts train: the replay batches of every micro-batch, and the global normaliser."""

    micro_batches: list[list[Batch]]
    num_items: Tensor


class GrpoTrainer(LatentTrainer):
    """Each update (or each `num_iterations` of them): sample, reward, replay.

    A micro-batch that Trainer hands to `training_step` is a list of replay batches, whose gradients add up.
    """

    settings: GrpoConfig

    def __init__(
        self, *args: Any, rewards: dict[str, Reward], reference: Backbone | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rewards, self.reference = rewards, reference  # None with beta: the model without its adapter
        if reference is not None:
            reference.to(self.args.device)
        self.sampler = LatentSampler(self.checkpoint.backbone)
        self._update: Update | None = None
        self._unchecked = self.settings.share_prompt  # until packed and plain forward were compared

    # ---- sampling

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[list[Batch]], Tensor]:
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        if batches[0][0][0] == REPEAT:
            if self._update is None:
                raise ConfigError(
                    f"step {self.state.global_step} is within the {self.settings.num_iterations} updates on "
                    "one batch of rollouts, which are gone; resume from an earlier checkpoint"
                )
        else:
            self._update = self._sample([list(zip(*batch, strict=True)) for batch in batches])
        return self._update.micro_batches, self._update.num_items

    @torch.no_grad()
    def _sample(self, batches: list[Any]) -> Update:
        started = time.perf_counter()
        step, rank, config = self.state.global_step + 1, self.args.process_index, self.settings
        indices = [index for batch, _ in batches for index in batch]
        seeds = rollout_seeds(config.seed, step, rank, indices, config.num_generations)
        experiences = []
        with self.accelerator.autocast(), self.whole_parameters():
            for batch, prompts in batches:
                count = len(batch) * config.num_generations
                mine, seeds = seeds[:count], seeds[count:]
                experiences.append(self._roll_out(list(batch), list(prompts), mine))
        self._advantages(experiences)
        if (
            self.is_world_process_zero()
            and (step - 1) % config.log_rollouts_steps == 0
            and config.log_rollouts
        ):
            write_rollouts(Path(config.output_dir) / ROLLOUTS, step, experiences[0], config.log_rollouts)

        device = self.args.device
        counts = torch.tensor(
            [[e.num_sequences, e.num_tokens] for e in experiences], dtype=torch.float64, device=device
        )
        numbers = self.sum_over_ranks(counts.sum(0))
        num_items = numbers[0] if loss_options(config).counts_sequences else numbers[1]
        pad_id = self.checkpoint.backbone.vision.pad_id
        updates = [
            replay_chunks(e, n, pad_id, share=config.share_prompt)
            for e, n in zip(experiences, self._chunks(experiences), strict=True)
        ]
        if self._unchecked:
            self._check_sharing(experiences[0])
            self._unchecked = False
        if config.beta:
            for chunk in (chunk for chunks in updates for chunk in chunks):
                chunk["ref_logprobs"] = self._reference_logprobs(chunk)
        for experience in experiences:
            self.add_metrics(rollout_metrics(experience, config.num_generations))
        elapsed = torch.tensor(time.perf_counter() - started)
        self.add_metrics({"sampling_seconds": (elapsed, torch.ones(()))})
        return Update(updates, num_items)

    def _logprobs(self, backbone: Backbone, chunk: Batch) -> Tensor:
        objective = functools.partial(policy_logprobs, temperature=self.settings.temperature)
        with self.accelerator.autocast():
            return backbone.eval()(dict(chunk), objective)  # the next training step sets the mode back

    def _reference_logprobs(self, chunk: Batch) -> Tensor:
        if self.reference is not None:
            return self._logprobs(self.reference, chunk)
        with self.checkpoint.backbone.without_adapter():
            return self._logprobs(self.checkpoint.backbone, chunk)

    def _check_sharing(self, experience: Experience) -> None:
        """Compare two completions of one prompt, packed behind it, with each in a sequence of its own.

        ConfigError when their log-probabilities differ by more than rounding: some part of this model does
        not keep to the mask or the positions it is given.
        """
        backbone, rows = self.checkpoint.backbone, torch.arange(2)
        packed, plain = (
            self._logprobs(
                backbone,
                pack(
                    experience.rollout,
                    experience.prompts,
                    rows,
                    backbone.vision.pad_id,
                    features=experience.features,
                    share=share,
                ),
            )
            for share in (True, False)
        )
        exact = backbone.dtype == torch.float32 and not self.args.bf16
        gap, bound = float((packed - plain).abs().max()), 1e-3 if exact else 0.5
        if gap > bound:
            raise ConfigError(
                f"share_prompt: log-probabilities of completions behind one prompt are off by {gap:.2g} (at "
                f"most {bound} is rounding); set share_prompt=false"
            )

    def _roll_out(self, indices: list[int], prompts: list[Prompt], seeds: list[int]) -> Experience:
        config, backbone = self.settings, self.checkpoint.backbone
        # An open tower needs its pictures in the training forward, where gradients flow through it.
        features = encode_prompts(backbone, prompts)
        rollout = self.sampler.sample(
            prompts, config.num_generations, sampling_config(config), seeds=seeds, features=features
        )
        mine = [prompts[i] for i in rollout.group.tolist()]
        written = rollout.texts(self.checkpoint.tokenizer)
        texts = [prompt.opening + text for prompt, text in zip(mine, written, strict=True)]
        records = [prompt.record for prompt in mine]
        rewards, parts = score(texts, records, self.rewards, config.reward_weights)
        kept = torch.ones(len(texts), dtype=torch.bool)
        if config.drop_equal_groups:
            kept = ~equal_groups(rewards, config.num_generations)
        shared = features if config.freeze_vision else None
        return Experience(
            indices, prompts, rollout, shared, texts, rewards, parts, torch.zeros_like(rewards), kept
        )

    def _advantages(self, experiences: list[Experience]) -> None:
        """Groups never span ranks, but the standard deviation of the batch is that of all ranks."""
        size, scale = self.settings.num_generations, self.settings.scale_rewards
        rewards = torch.cat([e.rewards for e in experiences])
        everywhere, own = rewards, 0
        if scale == "batch" and self.args.world_size > 1:
            gathered: list[Any] = [None] * self.args.world_size
            dist.all_gather_object(gathered, rewards)
            own = sum(len(part) for part in gathered[: self.args.process_index])
            everywhere = torch.cat(gathered)
        advantages = group_advantages(everywhere, size, scale=scale)[own : own + len(rewards)]
        for experience, part in zip(
            experiences, advantages.split([len(e.rewards) for e in experiences]), strict=True
        ):
            experience.advantages = part

    def _chunks(self, experiences: list[Experience]) -> list[int]:
        """How many forwards each micro-batch is cut into: as many on all ranks, or collectives would hang."""
        size = self.settings.rows_per_forward
        counts = torch.tensor(
            [-(-e.num_sequences // size) if size else 1 for e in experiences], device=self.args.device
        ).clamp(min=1)
        if self.args.world_size > 1:
            dist.all_reduce(counts, op=dist.ReduceOp.MAX)
        return counts.tolist()

    # ---- training

    def training_step(self, model: nn.Module, inputs: list[Batch], num_items_in_batch: Any = None) -> Tensor:
        model.train()
        state = self.accelerator.gradient_state
        steps = state.sync_gradients  # whether the optimizer steps after this micro-batch
        losses = []
        for number, chunk in enumerate(inputs):
            context: Any = contextlib.nullcontext()
            if number + 1 < len(inputs) and not self.is_deepspeed_enabled:
                context = self.accelerator.no_sync(model)
            # DeepSpeed reduces in every backward pass and steps in the one that this is set for.
            state._set_sync_gradients(steps and number + 1 == len(inputs))
            with context:
                losses.append(self._forward_backward(model, chunk, num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        config = self.settings
        objective = functools.partial(
            grpo_objective,
            options=loss_options(config),
            num_items=num_items_in_batch,
            temperature=config.temperature,
        )
        loss, metrics, logprobs = model(dict(inputs), objective)
        if config.num_iterations > 1 and "old_logprobs" not in inputs:
            inputs["old_logprobs"] = logprobs  # of the policy that is about to be updated for the first time
        return (loss, metrics) if return_outputs else loss


def loss_options(config: GrpoConfig) -> GrpoOptions:
    """The options of the loss among the settings."""
    shared = ("loss_type", "ratio_level", "kl", "beta", "epsilon", "epsilon_high", "delta", "entropy_coef")
    chosen = {name: getattr(config, name) for name in shared}
    return GrpoOptions(**chosen, max_length=config.max_completion_length)


def train_grpo(
    config: GrpoConfig,
    *,
    checkpoint: Checkpoint | None = None,
    prompts: Sequence[Prompt] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Reinforce and return the folder of the final checkpoint, `output_dir`/final.

    Args:
        config: the settings.
        checkpoint: what to train, changed in place; None: loaded from `config.model`.
        prompts: encoded prompts in memory, with their records (and `vision.features`, if the tower shall not
            run);
            None: made from the records of `config.data`.
        callbacks: of `transformers`, added to those of Trainer.

    Raises:
        FourdError: a record, a video, the checkpoint or a setting is wrong; before the first step.
        NonFiniteLossError: more than `max_bad_steps` steps without a finite loss.
    """
    rewards = {path.rpartition(":")[2]: load_reward(path) for path in config.rewards}
    if len(rewards) != len(config.rewards):
        raise ConfigError(f"rewards {config.rewards}: two functions have the same name; rename one")
    args = training_arguments(config)
    resume = prepare_run(config, args)
    # The model without its adapter is the reference, unless more than the adapter is trained.
    lora = config.lora
    copied = config.beta > 0 and (lora is None or lora.train_embeddings or not config.freeze_vision)
    reference = load_reference(config, args, resume, checkpoint) if copied else None
    loaded = load_model(config, args, resume, checkpoint)
    attention = loaded.backbone.config.get_text_config()._attn_implementation
    if config.share_prompt and attention != "sdpa":
        raise ConfigError(
            f"share_prompt needs sdpa attention, the model has {attention}; set share_prompt=false"
        )
    if copied and reference is None:
        reference = frozen_copy(loaded.backbone, share_tower=config.freeze_vision)
    adapt(config, loaded.backbone)
    items: Items[Prompt]
    if prompts is not None:
        for index, prompt in enumerate(prompts):
            loaded.backbone.require_family(prompt.family, f"prompt {index}")
        items = Items(prompts)
        records = [p.record for p in prompts if p.record is not None]
    else:
        encoder = make_encoder(loaded)
        # Filling the cache reads everything too, but cannot leave a record out.
        covered = config.cache_dir is not None and config.on_bad_record == "raise"
        records = load_records(config, "rl", args, None if covered else encoder)
        if config.cache_dir is None:
            items = Items(records, encoder.prompt)
        else:
            cache = fill_cache(config, args, loaded.backbone, encoder, records, clips=True, imagery=False)
            items = Items(records, cache.prompt)
    if accuracy_reward in rewards.values():
        for record in records:
            accuracy_reward(
                "", record
            )  # a record without an answer is found now and not in the middle of the run
    batches = ShardedBatches(
        len(items),
        config.per_device_train_batch_size,
        rank=args.process_index,
        world_size=args.world_size,
        seed=config.seed,
        accumulation=config.gradient_accumulation_steps,
        repeats=config.num_iterations,
        whole_updates=True,
    )
    trainer = GrpoTrainer(loaded, config, args, items, batches, same, rewards=rewards, reference=reference)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.weights_from = resume if checkpoint is None else None
    return trainer.run(resume)


def frozen_copy(backbone: Backbone, *, share_tower: bool) -> Backbone:
    """A copy whose parameters do not train; a frozen tower needs no second copy in memory."""
    memo: dict[int, Any] = {id(backbone.visual): backbone.visual} if share_tower else {}
    reference = copy.deepcopy(backbone, memo).eval()
    reference.requires_grad_(False)
    return reference


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: `[--config FILE] [key=value ...]`."""
    config = parse_command_line(
        GrpoConfig,
        argv,
        program="torchrun -m fourdthinker.trainers.grpo",
        description="Reinforce a checkpoint by GRPO, with its latents replayed (4DRL).",
    )
    start_logging()
    with process_group():
        final = train_grpo(config)
        logger.info("the checkpoint is in %s", final)


if __name__ == "__main__":
    main()
