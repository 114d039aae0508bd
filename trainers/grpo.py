"""GRPO on exact rows: TRL's loss and optimiser settings, with log-probabilities from a token trie.

TRL's trainer reads one padded row per prompt. Here a row is a model call, its advantage is its
episode's, and rows that begin alike are computed once; the loss itself stays TRL's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from stateset_agents.trainers import tree_attention
from stateset_agents.trainers.trie import Tree, fold, tree
from stateset_agents.trajectory import Row, Trajectory

NODES_PER_PASS = 6144
"""Nodes of a trie that go through the model at once; more are split between whole episodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What goes through the model at once: the trie of some rows and where their tokens are in it.

    B rows, T the longest answer: `sources_BT` is the index among `predict` of the node whose output
    predicts the token, `mask_BT` is 1 for sampled tokens and 0 for padding.
    """

    ids: torch.Tensor
    depth: torch.Tensor
    tree: Tree
    predict: torch.Tensor
    sources_BT: torch.Tensor
    sampled_BT: torch.Tensor
    mask_BT: torch.Tensor
    recorded_BT: torch.Tensor
    advantages_BT: torch.Tensor


def passes(
    trajectories: Sequence[Trajectory], advantages: Sequence[float], *, every: bool = False
) -> list[Pass]:
    """Pack whole episodes into passes. Episodes with advantage 0 carry no gradient and are skipped, unless
    `every` is asked for, since a KL term is paid on each token."""
    packed: list[Pass] = []
    rows: list[Row] = []
    worth: list[float] = []
    size = 0
    for trajectory, advantage in zip(trajectories, advantages, strict=True):
        if (advantage == 0.0 and not every) or not trajectory.rows:
            continue
        longest = max(len(row.prompt) + len(row.sampled) for row in trajectory.rows)
        if rows and size + longest > NODES_PER_PASS:
            packed.append(_pass(rows, worth))
            rows, worth, size = [], [], 0
        rows += trajectory.rows
        worth += [advantage] * len(trajectory.rows)
        size += longest
    if rows:
        packed.append(_pass(rows, worth))
    return packed


def _pass(rows: Sequence[Row], worth: Sequence[float]) -> Pass:
    trie = fold([(*row.prompt, *row.sampled) for row in rows])
    width = max(len(row.sampled) for row in rows)
    shape = (len(rows), width)
    nodes = torch.zeros(shape, dtype=torch.long)
    sampled = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    recorded = torch.zeros(shape)
    for number, row in enumerate(rows):
        first, count = len(row.prompt), len(row.sampled)
        nodes[number, :count] = torch.tensor(trie.nodes(number, first - 1, first - 1 + count))
        sampled[number, :count] = torch.tensor(row.sampled)
        mask[number, :count] = 1
        recorded[number, :count] = torch.tensor(row.logprobs)
    predict, sources = torch.unique(nodes, return_inverse=True)
    return Pass(
        ids=torch.tensor([trie.ids]),
        depth=torch.tensor([trie.depth]),
        tree=tree(trie),
        predict=predict,
        sources_BT=sources,
        sampled_BT=sampled,
        mask_BT=mask,
        recorded_BT=recorded,
        advantages_BT=torch.tensor(list(worth))[:, None].expand(shape).contiguous(),
    )


class TreeGRPOTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL ships no types
    """TRL's GRPOTrainer fed with passes instead of prompts; `learn` is one optimiser step."""

    temperature: float

    def learn(self, packed: Sequence[Pass], tokens: int) -> dict[str, float]:
        """One optimiser step on the passes of a batch. `tokens` normalises the loss over all of them."""
        model = self.model
        model.train()
        self._metrics["train"].clear()
        with torch.no_grad():
            ratio = self._drift(packed)
        for part in packed:
            torch.autograd.backward(self.compute_loss(model, self._inputs(part, tokens)))
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in model.parameters() if p.requires_grad], self.args.max_grad_norm
        )
        if not torch.isfinite(norm):
            raise FloatingPointError(f"Expected a finite gradient, found norm {norm.item()}.")
        self.optimizer.step()
        self.optimizer.zero_grad()
        means = {
            name: sum(values) / len(values)
            for name, values in self._metrics["train"].items()
            if values
        }
        return {
            "entropy": means.get("entropy", 0.0),
            "clipped": means.get("clip_ratio/region_mean", 0.0),
            "grad_norm": float(norm),
            **ratio,
        }

    def _drift(self, packed: Sequence[Pass]) -> dict[str, float]:
        """Importance ratio and mean absolute difference (nats a token) against what was recorded, and KL (k3) to the
        base, on the first pass."""
        if not packed:
            return {"ratio": 1.0, "gap": 0.0, "kl": 0.0}
        part = packed[0]
        now, _ = self.logprobs(self.model, part)
        assert isinstance(self.model, PeftModel)
        with self.model.disable_adapter():
            base, _ = self.logprobs(self.model, part)
        there = part.mask_BT.bool()
        away, gap = (now - part.recorded_BT)[there], (base - now)[there]
        return {
            "ratio": float(away.exp().mean()),
            "gap": float(away.abs().mean()),
            "kl": float((gap.exp() - gap - 1).mean()),
        }

    def _inputs(self, part: Pass, tokens: int) -> dict[str, Any]:
        rows = len(part.mask_BT)
        return {
            "pass": part,
            "prompt_ids": torch.zeros((rows, 0), dtype=torch.long),
            "prompt_mask": torch.zeros((rows, 0), dtype=torch.long),
            "completion_ids": part.sampled_BT,
            "completion_mask": part.mask_BT,
            "advantages": part.advantages_BT,
            "old_per_token_logps": part.recorded_BT,
            "num_items_in_batch": torch.tensor(float(tokens)),
        }

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        self._pass = inputs["pass"]
        if self.beta != 0.0:
            with torch.no_grad(), model.disable_adapter():
                inputs["ref_per_token_logps"], _ = self.logprobs(model, self._pass)
        loss: torch.Tensor = self._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self, model: Any, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        logprobs, entropy = self.logprobs(model, self._pass)
        return logprobs, entropy, None

    def logprobs(self, model: Any, part: Pass) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) log-probabilities of the sampled tokens and entropies, at the sampling temperature."""
        output = model(
            input_ids=part.ids,
            position_ids=part.depth,
            use_cache=False,
            logits_to_keep=part.predict,
            tree=part.tree,
        )
        logits = output.logits[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        every = torch.log_softmax(logits / self.temperature, -1)
        entropy = -(every.exp() * every).sum(-1)[part.sources_BT]
        return every[part.sources_BT, part.sampled_BT], entropy.detach()


def lora_model(path: str, *, rank: int, seed: int, adapter: str | None = None) -> PeftModel:
    """The base in fp32 with a LoRA on every linear layer: a fresh one, or a saved one to go on with."""
    base = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=tree_attention.NAME
    )
    if adapter is not None:
        return PeftModel.from_pretrained(base, adapter, is_trainable=True)
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    assert isinstance(model, PeftModel)
    return model


def grpo_trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    learning_rate: float,
    group_size: int,
    temperature: float,
    beta: float = 0.0,
    clip_high: float = 0.28,
) -> TreeGRPOTrainer:
    """TRL's trainer around a LoRA model: DAPO's token-level normaliser and asymmetric clip, no dropout."""
    args = GRPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=group_size,
        num_generations=group_size,
        gradient_accumulation_steps=1,
        learning_rate=learning_rate,
        loss_type="dapo",
        beta=beta,
        epsilon=0.2,
        epsilon_high=clip_high,
        temperature=temperature,
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,  # passes live on the CPU; a GPU serves the policy, through vLLM
        report_to=[],
        gradient_checkpointing=False,
        disable_tqdm=True,
        disable_dropout=True,  # the gradient is that of the very distribution that was sampled from
    )
    trainer = TreeGRPOTrainer(
        model=model,
        reward_funcs=[_unused],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "unused"}]),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    return trainer


def _unused(completions: list[str], **kwargs: Any) -> list[float]:
    """TRL wants a reward function at construction; episodes are graded before they get here."""
    raise RuntimeError("Expected graded trajectories, found a call of TRL's reward path.")
