"""One optimiser step on exact rows: TRL's losses, metrics and optimiser, with log-probabilities from a token trie.

TRL reads one padded row per prompt. Here a row is a trajectory's span, all the tokens that were sampled in it, so that each of
TRL's losses sees the sequence of its paper, in any number of model calls; and common prefixes are computed once.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from stateset_agents.errors import RunBroken
from stateset_agents.trainers.algorithms import ALGORITHMS
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.model import Model, base_of
from stateset_agents.trainers.packing.batches import Batch, Sample, batches
from stateset_agents.trainers.reading import Reading, logprobs, reading_of
from stateset_agents.trainers.step_log import StepUpdate

NEVER = 1e9
"""A clip that no ratio reaches."""
SCALE = 1024.0
"""The loss scale for float16, whose smallest number is 6e-8; gradients are divided by it again."""


class TreeGRPOTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL ships no types
    """TRL's GRPOTrainer fed with batches of trajectories instead of prompts; `learn` is one optimiser step."""

    config: TrainConfig
    reading: Reading
    """Whether prefixes go through the model once."""

    def learn(
        self,
        samples: Mapping[str, Sequence[Sample]],
        *,
        max_gap: float = math.inf,
        least_ess: float = 0.0,
    ) -> StepUpdate:
        """One optimiser step on the samples of each adapter; none if there is nothing to learn from, or if the effective sample
        size is below `least_ess`.

        Raises RunBroken if a loss or a gradient is not finite, or the log-probabilities differ by more than `max_gap` nats a
        token from the recorded ones; then no weight has changed.
        """
        self._check_length(samples)
        self.model.train()
        self._metrics["train"].clear()
        update = StepUpdate()
        self._starts: list[dict[str, float]] = []
        norms = []
        try:
            for name, own in samples.items():
                self._use(name)
                packed = batches(
                    own, self.config.tokens_per_batch, most=self.config.episodes_per_batch,
                    every=self.beta != 0.0,
                )  # fmt: skip
                for number, batch in enumerate(packed):
                    self._backward(batch.to(self.model.device), own, base=number == 0)
                    update.tokens_trained += int(batch.mask_BT.sum())
                    update.positions_forwarded += batch.ids.size(1)
                    update.positions_in_rows += batch.positions_in_rows
                if packed:
                    norms.append(self._clip())
            for name, mean in _means(self._starts).items():
                setattr(update, name, mean)
            if update.gap > max_gap:
                raise RunBroken(
                    f"Expected tokens that this policy sampled, or one close to it, found that its log-probabilities are "
                    f"{update.gap:.2f} nats a token from the recorded ones (at most {max_gap:g}). Serve the same "
                    "model in fp32 or bf16, vLLM with --logprobs-mode processed_logprobs; of a store, train the model that "
                    "sampled it: `traces list` names its version."
                )
        except RunBroken:
            self.optimizer.zero_grad()
            raise
        finally:
            self._use_all()
        update.stepped = bool(norms) and update.ess >= least_ess
        if update.stepped:
            self.optimizer.step()
        self.optimizer.zero_grad()
        means = {
            name: sum(values) / len(values)
            for name, values in self._metrics["train"].items()
            if values
        }
        update.entropy = means.get("entropy", 0.0)
        update.clipped = means.get("clip_ratio/region_mean", means.get("cispo_clip_ratio", 0.0))
        update.grad_norm = max(norms, default=0.0)
        return update

    def _check_length(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        config = base_of(self.model).config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        for sample in (sample for own in samples.values() for sample in own):
            longest = max(
                (len(r.prompt) + len(r.sampled) for r in sample.trajectory.rows), default=0
            )
            if limit is not None and longest > limit:
                raise RunBroken(
                    f"Expected conversations within the model's context of {limit} tokens, found {longest} in trace "
                    f"{sample.trajectory.trace_id!r}: another model sampled it. Train that one, or leave the trace out."
                )

    def _backward(self, batch: Batch, every: Sequence[Sample], *, base: bool) -> None:
        """The gradient of one batch; with `base`, the KL to the base model is measured as well."""
        loss = self.batch_loss(batch, every)
        if not torch.isfinite(loss):
            raise RunBroken(
                f"Expected a finite loss, found {loss.item()}. The last committed step is whole; lower the learning rate."
            )
        torch.autograd.backward(loss * self._scale)
        if base and isinstance(self.model, PeftModel):
            self._starts[-1].update(self._moved(batch))

    @property
    def _scale(self) -> float:
        return SCALE if self.config.precision == "fp16" else 1.0

    def _clip(self) -> float:
        for parameter in self.model.parameters():
            if parameter.grad is not None and self._scale != 1.0:
                parameter.grad /= self._scale
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad and p.grad is not None],
            self.config.max_grad_norm,
        )
        if not torch.isfinite(norm):
            raise RunBroken(
                f"Expected a finite gradient, found norm {norm.item()}. The last committed step is whole; lower the "
                "learning rate."
            )
        return float(norm)

    @torch.no_grad()
    def _moved(self, batch: Batch) -> dict[str, float]:
        """KL (k3 estimate, arXiv 2402.03300, eq. 4) to the model without its adapter, summed over a batch's tokens."""
        now = self._now
        with self.model.disable_adapter():
            base, _ = self.logprobs(batch)
        gap = (base - now)[batch.mask_BT.bool()].double()
        return {"kl": float((gap.exp() - gap - 1).sum()), "kl_tokens": float(len(gap))}

    def batch_loss(self, batch: Batch, every: Sequence[Sample]) -> torch.Tensor:
        """This batch's share of the loss over `every` sample of the step."""
        spans = len(batch.samples)
        none = torch.zeros((spans, 0), dtype=torch.long, device=batch.ids.device)
        inputs: dict[str, Any] = {
            "batch": batch,
            "prompt_ids": none,
            "prompt_mask": none,
            "completion_ids": batch.sampled_BT,
            "completion_mask": batch.mask_BT,
            "advantages": batch.advantages_BT,
            "num_items_in_batch": torch.tensor(float(sum(sample.tokens for sample in every))),
        }
        if self.config.importance == "recorded":
            inputs["old_per_token_logps"] = (
                batch.recorded_BT
            )  # else TRL takes today's: a ratio of 1
        loss = self.compute_loss(self.model, inputs)
        if self.loss_type in ("grpo", "dr_grpo"):  # means over the trajectories of this batch
            loss = loss * (spans / max(1, sum(bool(sample.tokens) for sample in every)))
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        self._inputs = inputs
        if self.beta != 0.0:
            with torch.no_grad(), model.disable_adapter():
                inputs["ref_per_token_logps"], _ = self.logprobs(inputs["batch"])
        loss: torch.Tensor = self._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self, model: Any, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Called by TRL's loss before it reads anything else of its inputs."""
        batch: Batch = self._inputs["batch"]
        logprobs, entropies = self.logprobs(batch)
        self._now = logprobs.detach()
        sampled_BT = batch.mask_BT.bool()
        gap_BT = ((self._now - batch.recorded_BT) * batch.mask_BT).double()
        ratio_BT = gap_BT.exp()
        if self.config.importance == "decoupled":
            weight_BT = ratio_BT.clamp(max=self.config.importance_cap).to(logprobs.dtype)
            self._inputs["advantages"] = batch.advantages_BT * weight_BT
        # A product over many tokens tells what each of them hides: how likely the policy is to do this again.
        span_B = gap_BT.sum(1).clamp(-30, 30).exp()
        if self.config.importance == "tapered":
            weight_B = span_B.clamp(max=1.0).to(logprobs.dtype)
            self._inputs["advantages"] = torch.where(
                batch.advantages_BT < 0,
                batch.advantages_BT * weight_B[:, None],
                batch.advantages_BT,
            )
        weights_B = span_B.clamp(max=2.0)
        self._starts.append(
            {
                "tokens": float(sampled_BT.sum()),
                "ratio": float(ratio_BT[sampled_BT].sum()),
                "gap": float(gap_BT.abs().sum()),
                "sampler_kl": float((ratio_BT - 1 - gap_BT)[sampled_BT].sum()),
                "spans": float(len(weights_B)),
                "weight": float(weights_B.sum()),
                "weight_squared": float((weights_B**2).sum()),
            }
        )
        return logprobs, entropies, None

    def logprobs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) log-probabilities of the sampled tokens, at the temperature they were sampled at, and entropies."""
        base = base_of(self.model)
        twice = torch.is_grad_enabled() and (self.config.gradient_checkpointing or batch.deep)
        if twice:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            return logprobs(
                self.model, batch, temperature=self.config.temperature, reading=self.reading,
                precision=self.config.precision,
            )  # fmt: skip
        finally:
            if twice:
                base.gradient_checkpointing_disable()

    def _use(self, adapter: str) -> None:
        if isinstance(self.model, PeftModel):
            self.model.set_adapter(adapter)

    def _use_all(self) -> None:
        """Mark every adapter as trained again, for the optimiser and for saving."""
        if isinstance(self.model, PeftModel):
            for name, parameter in self.model.named_parameters():
                if "lora_" in name:
                    parameter.requires_grad_(True)


def _means(starts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Values at a step's start: means per token over all batches, and the effective sample size of the trajectories' weights,
    truncated at 2, as a share of their number (Kish 1965)."""
    if not starts:
        return {"ratio": 1.0, "gap": 0.0, "sampler_kl": 0.0, "kl": 0.0, "ess": 1.0}
    names = {name for start in starts for name in start}
    total = {name: sum(start.get(name, 0.0) for start in starts) for name in names}
    tokens = total["tokens"]
    return {
        "ratio": total["ratio"] / tokens,
        "gap": total["gap"] / tokens,
        "sampler_kl": total["sampler_kl"] / tokens,
        "kl": total.get("kl", 0.0) / max(1.0, total.get("kl_tokens", 0.0)),
        "ess": total["weight"] ** 2 / (total["spans"] * total["weight_squared"]),
    }


def grpo_trainer(
    model: Model, tokenizer: PreTrainedTokenizerBase, out: Path, config: TrainConfig
) -> TreeGRPOTrainer:
    """TRL's trainer for a model, with the loss of the config's algorithm."""
    algorithm = ALGORITHMS[config.algorithm]
    low = algorithm.clip_low if config.clip_low is None else config.clip_low
    high = algorithm.clip_high if config.clip_high is None else config.clip_high
    high = NEVER if high is None else high
    device = base_of(model).device.type
    args = GRPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=config.group_size,
        num_generations=config.group_size,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        learning_rate=config.learning_rate,
        loss_type=algorithm.loss,
        importance_sampling_level=algorithm.level,
        max_completion_length=config.max_tokens if algorithm.constant else 1,
        beta=config.beta,
        epsilon=NEVER if low is None else low,
        epsilon_high=1 + high if algorithm.loss == "cispo" else high,  # CISPO's is the cap itself
        temperature=config.temperature,
        max_grad_norm=config.max_grad_norm,
        bf16=False,  # what is trained stays float32; `precision` says what is computed in
        use_cpu=device == "cpu",
        router_aux_loss_coef=0.0,  # the loss is the policy's; a balance of experts is no part of it
        report_to=[],
        gradient_checkpointing=False,
        disable_tqdm=True,
        disable_dropout=config.lora_dropout == 0.0,  # the gradient is of what was sampled from
    )
    trainer = TreeGRPOTrainer(
        model=model,
        reward_funcs=[_unused],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "unused"}]),
        processing_class=tokenizer,
    )
    trainer.config = config
    trainer.reading = reading_of(model)
    if trainer.reading.why is not None:
        name = type(base_of(model)).__name__
        print(f"Prefixes are not shared in {name}: {trainer.reading.why}.", flush=True)
    trainer.current_gradient_accumulation_steps = 1
    trainer._starts = []
    trainer._use_all()
    trainer.create_optimizer()
    return trainer


def _unused(completions: list[str], **kwargs: Any) -> list[float]:
    """A placeholder: TRL needs a reward function, but episodes are graded before."""
    raise RuntimeError("Expected graded trajectories, found a call of TRL's reward path.")
