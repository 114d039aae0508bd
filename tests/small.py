"""Small parts for tests of training: a model of a few thousand parameters, and episodes of random tokens."""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.model import load_model
from stateset_agents.trainers.packing import tree_attention
from stateset_agents.trainers.packing.batches import Sample
from stateset_agents.trainers.tree_trainer import TreeGRPOTrainer, grpo_trainer
from stateset_agents.trajectory import Row, Trajectory

VOCABULARY = 97


def small_model(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A Qwen2 of two layers with random weights large enough to matter; two heads share one key head."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.2, **changes,
    }  # fmt: skip
    model: PreTrainedModel = Qwen2ForCausalLM(
        Qwen2Config(**options, attn_implementation=tree_attention.NAME)
    )
    return model


def saved(folder: Path, seed: int = 0, **changes: Any) -> str:
    """The same in a folder, with the seed policy's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    small_model(seed, vocab_size=len(tokenizer), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trainer(folder: Path, model: Any = None, **options: Any) -> TreeGRPOTrainer:
    """A trainer of all weights of a small model, or of `model`."""
    torch.set_num_threads(2)
    if model is None:
        model = small_model()
        options.setdefault("full", True)
    config = TrainConfig(**options)
    return grpo_trainer(model, AutoTokenizer.from_pretrained(SEED_POLICY), folder, config)


def lora(folder: Path, seed: int = 0, **options: Any) -> Any:
    """A small model with a LoRA that already says something."""
    config = TrainConfig(rank=4, seed=seed, **options)
    model = load_model(saved(folder / "base", seed), config)
    torch.manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def episodes(seed: int, count: int = 4, calls: int = 3, prefix: int = 12) -> list[Trajectory]:
    """Episodes of a group: one prompt, answers that differ, a tool's answer after each."""
    rng = random.Random(seed)

    def ids(number: int) -> list[int]:
        return [rng.randrange(1, VOCABULARY) for _ in range(number)]

    shared, made = ids(prefix), []
    for number in range(count):
        seen, rows = list(shared), []
        for call in range(calls):
            sampled = ids(rng.randint(1, 6))
            rows.append(
                Row(
                    prompt=tuple(seen), sampled=tuple(sampled), node=("plan", "act")[call % 2], version="policy",
                    logprobs=tuple(rng.uniform(-6, -3) for _ in sampled), number=call,
                )
            )  # fmt: skip
            seen += sampled + ids(4)
        made.append(Trajectory(trace_id=str(number), rows=tuple(rows)))
    return made


def sample(trajectory: Trajectory, *worth: float) -> Sample:
    """A trajectory and what its calls are worth: one number for all, or one for each."""
    return Sample(
        trajectory=trajectory,
        advantages=worth if len(worth) > 1 else tuple(worth) * len(trajectory.rows),
    )


def plain_logprobs(model: Any, row: Row, temperature: float = 1.0) -> torch.Tensor:
    """Of a row's sampled tokens, by the model's own forward pass over that row alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    base.set_attn_implementation("sdpa")  # eager takes its softmax in float32
    logits = model(input_ids=torch.tensor([[*row.prompt, *row.sampled]])).logits[0]
    base.set_attn_implementation(before)
    every = torch.log_softmax(logits.double() / temperature, -1)[len(row.prompt) - 1 : -1]
    return every.gather(1, torch.tensor(row.sampled)[:, None]).squeeze(1)


def gradient(model: Any) -> torch.Tensor:
    """All gradients as one vector; they are cleared."""
    gradient_now = torch.cat(
        [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    )
    model.zero_grad()
    return gradient_now


def apart(trajectory: torch.Tensor, other: torch.Tensor) -> float:
    """How far two gradients are from each other, relative to the second."""
    return float((trajectory - other).norm() / other.norm().clamp(min=1e-12))
