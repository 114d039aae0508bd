"""TRL's stock trainer over padded rows: what the trie is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
)
from trl import GRPOConfig, GRPOTrainer

from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.trainers.packing.batches import Sample


@dataclass(frozen=True, slots=True)
class Segment:
    """A padded row: what is read, and which of it was sampled."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float

    @property
    def prompt(self) -> int:
        return self.mask.index(1)


def merged(samples: Sequence[Sample]) -> list[Segment]:
    """One row a trajectory: its last call's tokens, all that was sampled in it marked."""
    batches_made = []
    for sample in samples:
        rows = sample.trajectory.rows
        last = rows[-1]
        ids = (*last.prompt, *last.sampled)
        mask, logprobs = [0] * len(ids), [0.0] * len(ids)
        for row in rows:
            at = len(row.prompt)
            mask[at : at + len(row.sampled)] = [1] * len(row.sampled)
            logprobs[at : at + len(row.sampled)] = row.logprobs
        batches_made.append(Segment(ids, tuple(mask), tuple(logprobs), sample.advantages[0]))
    return batches_made


def per_call(samples: Sequence[Sample]) -> list[Segment]:
    """One row a model call."""
    return [
        Segment(
            (*row.prompt, *row.sampled),
            (0,) * len(row.prompt) + (1,) * len(row.sampled),
            (0.0,) * len(row.prompt) + row.logprobs,
            worth,
        )
        for sample in samples
        for row, worth in zip(sample.trajectory.rows, sample.advantages, strict=True)
    ]


def padded(segments: Sequence[Segment], shape: tuple[int, int] | None = None) -> dict[str, Any]:
    """TRL's tensors: prompts padded on the left, completions on the right; to `shape` where one is given."""
    wide = shape or (
        max(s.prompt for s in segments),
        max(len(s.ids) - s.prompt for s in segments),
    )
    before, after = wide
    rows = len(segments)
    made: dict[str, Any] = {
        "prompt_ids": torch.zeros((rows, before), dtype=torch.long),
        "prompt_mask": torch.zeros((rows, before), dtype=torch.long),
        "completion_ids": torch.zeros((rows, after), dtype=torch.long),
        "completion_mask": torch.zeros((rows, after), dtype=torch.long),
        "tool_mask": torch.zeros((rows, after), dtype=torch.long),
        "old_per_token_logps": torch.zeros((rows, after)),
        "advantages": torch.tensor([s.advantage for s in segments]),
    }
    for number, s in enumerate(segments):
        first, count = s.prompt, len(s.ids) - s.prompt
        made["prompt_ids"][number, before - first :] = torch.tensor(s.ids[:first])
        made["prompt_mask"][number, before - first :] = 1
        made["completion_ids"][number, :count] = torch.tensor(s.ids[first:])
        made["completion_mask"][number, :count] = 1
        made["tool_mask"][number, :count] = torch.tensor(s.mask[first:])
        made["old_per_token_logps"][number, :count] = torch.tensor(s.logprobs[first:])
    return made


class Stock(GRPOTrainer):  # type: ignore[misc]  # TRL ships no types
    """TRL's trainer; in float64 with the model's own head, since its fused one computes in float32."""

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:  # fmt: skip
        if model.dtype != torch.float64:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        parts = []
        for row, mask in zip(input_ids, attention_mask, strict=True):
            states = model.model(input_ids=row[None], attention_mask=mask[None]).last_hidden_state
            logits = model.lm_head(states[0, -logits_to_keep - 1 : -1])
            every = logits.log_softmax(-1)
            parts.append(every.gather(1, row[-logits_to_keep:, None])[:, 0])
        logprobs = torch.stack(parts)
        return logprobs, torch.zeros_like(logprobs), None


class Rival:
    """TRL's stock trainer and loss over padded rows, `size` of them at once."""

    def __init__(self, policy: PreTrainedModel, folder: Path, device: str) -> None:
        args = GRPOConfig(
            output_dir=str(folder), per_device_train_batch_size=8, num_generations=8, loss_type="dapo",
            beta=0.0, epsilon=0.2, epsilon_high=0.28, bf16=device != "cpu", use_cpu=device == "cpu", report_to=[],
            gradient_checkpointing=False, disable_tqdm=True, steps_per_generation=1,
        )  # fmt: skip
        self.trainer = Stock(
            model=policy, reward_funcs=[lambda completions, **_: [0.0] * len(completions)], args=args,
            train_dataset=Dataset.from_list([{"prompt": "unused"}]),
            processing_class=AutoTokenizer.from_pretrained(SEED_POLICY),
        )  # fmt: skip
        self.trainer.current_gradient_accumulation_steps = 1
        self.device = device

    def gradient(
        self, segments: Sequence[Segment], size: int, *, trim: bool = True
    ) -> tuple[int, int]:
        """Backward over all rows; returns the positions computed, padding included, and the micro-batches."""
        ordered = sorted(segments, key=lambda s: len(s.ids)) if trim else list(segments)
        shape = None
        if not trim:
            shape = (
                max(s.prompt for s in segments),
                max(len(s.ids) - s.prompt for s in segments),
            )
        tokens = torch.tensor(float(sum(sum(s.mask) for s in segments)))
        positions = parts = 0
        for start in range(0, len(ordered), size):
            inputs = padded(ordered[start : start + size], shape)
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            inputs["num_items_in_batch"] = tokens.to(self.device)
            positions += inputs["prompt_ids"].numel() + inputs["completion_ids"].numel()
            parts += 1
            loss = self.trainer.compute_loss(self.trainer.model, inputs)
            torch.autograd.backward(loss)
        return positions, parts
