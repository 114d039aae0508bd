"""Imitation: supervised fine-tuning on the best traces, or DPO between better and worse ones, with TRL's trainers.

For what has no log-probabilities (a demonstration, an app's own record), and to begin with. Exact calls are read token by token;
text is rendered with the tokenizer's chat template, and is `rendered` then: good enough to imitate, never for a ratio.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from stateset_agents.errors import BadInput
from stateset_agents.policy.chat_template import default_chat_template
from stateset_agents.reward import Reward
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.trainers.checkpoint import save_weights
from stateset_agents.trainers.config import ONE, TrainConfig
from stateset_agents.trainers.model import load_model, read_rows

BATCH = 8
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Said:
    """One call as a model reads it: what came before, and what was answered."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


async def imitate(
    method: Literal["sft", "dpo"],
    *,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    reward: Reward,
    run: Path,
    config: TrainConfig,
    report: Callable[[dict[str, Any]], None],
) -> tuple[Path, list[dict[str, Any]], str]:
    """Train on a store's traces; where the adapter lies, a line for each step that was logged, and which method it was in the end:
    where no request was answered better and worse there is nothing to prefer, and the best are imitated.

    Raises BadInput where no trace is better than another, or none can be scored.
    """
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[_request(trace)].append(trace)
    scored: list[tuple[float, Trace]] = []
    pairs: list[tuple[Trace, Trace]] = []
    for group in groups.values():
        values = [
            (score.value, trace)
            for score, trace in zip(await reward(group), group, strict=True)
            if score is not None
        ]
        scored += values
        for value, trace in values:
            worse = [other for less, other in values if less < value - ROUNDING]
            pairs += [(trace, other) for other in worse[:1]]
    if not scored:
        raise BadInput(
            f"Expected traces that can be scored, found that the reward {reward.name!r} says nothing of any of {len(traces)}. "
            "Name another with --reward."
        )
    if method == "dpo" and not pairs:
        method = "sft"
    place = run / "adapter-trained"
    if method == "sft":
        best = _best(scored)
        said = [one for trace in best for one in calls(tokenizer, trace)]
        log = await asyncio.to_thread(sft, base, tokenizer, said, place, config, report)
    else:
        found = [pair for two in pairs if (pair := parting(tokenizer, *two)) is not None]
        log = await asyncio.to_thread(dpo, base, tokenizer, found, place, config, report)
    return place, log, method


def _best(scored: Sequence[tuple[float, Trace]]) -> list[Trace]:
    """Those as good as the better half. Raises BadInput where none is better than another."""
    values = sorted(value for value, _ in scored)
    if values[-1] - values[0] < ROUNDING and len(values) > 1 and values[0] <= 0:
        raise BadInput(
            f"Expected traces of which some are worth imitating, found that all {len(values)} came to {values[0]:g}."
        )
    middle = values[len(values) // 2]
    least = middle if middle > values[0] or values[0] == values[-1] else values[-1]
    return [trace for value, trace in scored if value >= least - ROUNDING]


def _request(trace: Trace) -> str:
    asked = next((m.get("content") for m in trace.messages if m.get("role") == "user"), "")
    return trace.scenario.id if trace.scenario else str(asked)


def calls(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> list[Said]:
    """A trace's calls as tokens, those that go on from one another as one: what the model said is learned, the rest is read."""
    return [said for call in trace.calls if (said := _said(tokenizer, call)) is not None]


def _said(tokenizer: PreTrainedTokenizerBase, call: ModelCall) -> Said | None:
    if call.prompt_ids and call.sampled_ids:
        return Said(call.prompt_ids, call.sampled_ids)
    if not call.messages or call.answer is None:
        return None
    if tokenizer.chat_template is None:
        tokenizer.chat_template = default_chat_template()
    tools = [dict(tool) for tool in call.tools] or None
    before = [_plain(message) for message in call.messages]
    prompt = str(
        tokenizer.apply_chat_template(
            before, tools=tools, tokenize=False, add_generation_prompt=True
        )
    )
    whole = str(
        tokenizer.apply_chat_template([*before, _plain(call.answer)], tools=tools, tokenize=False)
    )
    if not whole.startswith(prompt):
        return None
    end = whole.rfind(
        tokenizer.eos_token or "\0"
    )  # what a template adds behind it is the next turn's
    answer = whole[
        len(prompt) : end + len(tokenizer.eos_token or "") if end > len(prompt) else None
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
    return Said(tuple(ids[0]), tuple(ids[1]))


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": message.get("content") or ""}


def parting(
    tokenizer: PreTrainedTokenizerBase, better: Trace, worse: Trace
) -> tuple[Said, Said] | None:
    """Where two traces part: the first call at which, having read the same, they said something else."""
    for one, other in zip(calls(tokenizer, better), calls(tokenizer, worse), strict=False):
        if one.prompt != other.prompt:
            return None
        if one.answer != other.answer:
            return one, other
    return None


def rows(said: Sequence[Said]) -> list[dict[str, list[int]]]:
    """Calls that go on from one another as one row, with labels on what was said alone."""
    made: list[dict[str, list[int]]] = []
    for one in said:
        last = made[-1] if made else None
        start = len(last["input_ids"]) if last else 0
        if last is None or tuple(last["input_ids"]) != one.prompt[:start]:
            last, start = {"input_ids": [], "labels": []}, 0
            made.append(last)
        new = one.prompt[start:]
        last["input_ids"] += [*new, *one.answer]
        last["labels"] += [-100] * len(new) + list(one.answer)
    return made


class _Told(TrainerCallback):  # type: ignore[misc]  # transformers ships no types for it
    def __init__(self, method: str, tokens: int, report: Callable[[dict[str, Any]], None]) -> None:
        self.log: list[dict[str, Any]] = []
        self.method, self.tokens, self.report = method, tokens, report

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            line = {
                "step": state.global_step, "method": self.method, "loss": float(logs["loss"]), "reward": None,
                "tokens_trained": round(self.tokens * args.logging_steps / max(1, state.max_steps)),
                **{k: float(v) for k, v in logs.items() if k.startswith("rewards/")},
            }  # fmt: skip
            self.log.append(line)
            self.report(line)


def _model(base: str, config: TrainConfig) -> Any:
    model = load_model(
        base, rank=config.rank, alpha=config.lora_alpha, dropout=config.lora_dropout, full=config.full,
        precision=config.precision, seed=config.seed, adapters={ONE: None},
        device="cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    read_rows(model)
    return model


def _options(place: Path, config: TrainConfig, count: int) -> dict[str, Any]:
    steps = max(1, -(-count // BATCH) * config.epochs)
    return {
        "output_dir": str(place.with_name("trl")), "per_device_train_batch_size": min(BATCH, count),
        "num_train_epochs": config.epochs, "learning_rate": config.learning_rate, "lr_scheduler_type": "cosine",
        "warmup_steps": min(10, steps // 4), "logging_steps": max(1, steps // 20), "save_strategy": "no", "report_to": [],
        "bf16": config.precision == "bf16", "fp16": config.precision == "fp16", "use_cpu": not torch.cuda.is_available(), "disable_tqdm": True, "seed": config.seed,
        "activation_checkpointing": config.gradient_checkpointing, "max_grad_norm": config.max_grad_norm, "max_length": None,
    }  # fmt: skip


def sft(
    base: str, tokenizer: PreTrainedTokenizerBase, said: Sequence[Said], place: Path, config: TrainConfig,
    report: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """TRL's SFTTrainer on calls; the weights are at `place` then. Raises BadInput where there are none."""
    made = rows(said)
    if not made:
        raise BadInput(
            "Expected calls with their messages and answers to imitate, found none: record with `record(graph, store)`, or "
            "import traces that have them."
        )
    tokens = sum(len(one.answer) for one in said)
    told = _Told("sft", tokens * config.epochs, report)
    trainer = SFTTrainer(
        model=_model(base, config), args=SFTConfig(**_options(place, config, len(made))),
        train_dataset=Dataset.from_list(made), processing_class=_padded(tokenizer), callbacks=[told],
    )  # fmt: skip
    trainer.train()
    save_weights(trainer.model, place)
    return told.log


def dpo(
    base: str, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Said, Said]], place: Path, config: TrainConfig,
    report: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """TRL's DPOTrainer on the calls at which better and worse traces part. Raises BadInput where there are none."""
    if not pairs:
        raise BadInput(
            "Expected traces of one request that part at a call, found none: DPO compares answers to the same prompt. "
            "Take --method sft."
        )
    made = [
        {
            "prompt": tokenizer.decode(list(better.prompt)),
            "chosen": tokenizer.decode(list(better.answer)),
            "rejected": tokenizer.decode(list(worse.answer)),
        }
        for better, worse in pairs
    ]
    tokens = sum(len(better.answer) + len(worse.answer) for better, worse in pairs)
    told = _Told("dpo", tokens * config.epochs, report)
    trainer = DPOTrainer(
        model=_model(base, config), args=DPOConfig(**_options(place, config, len(made)), beta=config.beta or 0.1),
        train_dataset=Dataset.from_list(made), processing_class=_padded(tokenizer), callbacks=[told],
    )  # fmt: skip
    trainer.train()
    save_weights(trainer.model, place)
    return told.log


def _padded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
