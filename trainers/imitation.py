"""Imitation: supervised fine-tuning on the best traces, or DPO between better and worse ones, with TRL's trainers.

For traces without log-probabilities (demonstrations, an app's own records), and for warm starts. Exact calls are used token by
token; text is rendered with the tokenizer's chat template, which is good enough to imitate but never for a ratio.
"""

import asyncio
import logging
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
from stateset_agents.policy.rendering import Renderer, Unrenderable
from stateset_agents.reward import Reward
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.trainers.checkpoint import save_weights
from stateset_agents.trainers.config import DEFAULT_ADAPTER, TrainConfig
from stateset_agents.trainers.imitation_log import ImitationLog
from stateset_agents.trainers.memory import tokens_at_once
from stateset_agents.trainers.model import base_of, load_model
from stateset_agents.trainers.reading import read_rows

BATCH = 8
"""Rows of one optimiser step."""
AT_ONCE = 8192
"""Tokens of one forward pass at most, padding included; a longer row goes alone. More rows are accumulated."""
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class TokenizedCall:
    """One call as tokens: the prompt and the answer."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


Report = Callable[[ImitationLog], None]


async def imitate(
    method: Literal["sft", "dpo"],
    *,
    base: str,
    renderer: Renderer,
    traces: Sequence[Trace],
    reward: Reward,
    run: Path,
    config: TrainConfig,
    report: Report,
) -> tuple[Path, list[ImitationLog], str]:
    """Train on a store's traces. Returns where the adapter lies, the logged steps, and the method that was used: if no request
    has better and worse answers, the best traces are imitated instead. Raises BadInput if all scores are equal and not positive,
    or no trace can be scored."""
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[trace.request].append(trace)
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
            f"Expected traces that can be scored, found that the reward {reward.name!r} can score none of {len(traces)}. "
            "Name another with --reward."
        )
    if method == "dpo" and not pairs:
        method = "sft"
    place = run / "adapter-trained"
    if method == "sft":
        best = _best(scored)
        skipped = Skipped()
        learned = [call for trace in best for call in calls(renderer, trace, skipped)]
        skipped.check(len(learned))
        if not learned:
            raise BadInput(
                f"Expected traces with tokens, or with the messages of each call, found neither in the {len(best)} best."
            )
        log = await asyncio.to_thread(sft, base, renderer.tokenizer, learned, place, config, report)
    else:
        compared = [first_difference(renderer, *pair) for pair in pairs]
        differing = [calls for calls in compared if calls is not None]
        if not differing:
            raise BadInput(
                f"Expected better and worse answers that differ as tokens, found none among {len(pairs)} pairs."
            )
        log = await asyncio.to_thread(
            dpo, base, renderer.tokenizer, differing, place, config, report
        )
    return place, log, method


def _best(scored: Sequence[tuple[float, Trace]]) -> list[Trace]:
    """The traces that reached their goals: the shortest are not the best. Where none did, or there are no goals, those with scores of
    the better half. Raises BadInput if all are equal and not positive."""
    reached = [t for _, t in scored if t.goal_score is not None and t.goal_score.success]
    if reached:
        return reached
    values = sorted(value for value, _ in scored)
    if values[-1] - values[0] < ROUNDING and len(values) > 1 and values[0] <= 0:
        raise BadInput(
            f"Expected traces with different scores, so that the best can be imitated, found that all {len(values)} scored {values[0]:g}."
        )
    middle = values[len(values) // 2]
    least = middle if middle > values[0] or values[0] == values[-1] else values[-1]
    return [trace for value, trace in scored if value >= least - ROUNDING]


class Skipped:
    """Calls of text that cannot be imitated, with the reasons."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def check(self, learned: int) -> None:
        """Say how many there are. Raises BadInput if they are the most."""
        if not self.reasons:
            return
        text = (
            f"{len(self.reasons)} of {len(self.reasons) + learned} calls cannot be written with the model's chat template so that they "
            f"are read back, the first: {self.reasons[0][:200]}"
        )
        if len(self.reasons) > learned:
            raise BadInput(f"Expected calls to imitate, found that {text}")
        logging.getLogger(__name__).warning("%s; they are left out", text)


def calls(renderer: Renderer, trace: Trace, skipped: Skipped | None = None) -> list[TokenizedCall]:
    """A trace's calls as tokens; calls without tokens or text are left out, and those that cannot be rendered are `skipped`."""
    tokenized = []
    for call in trace.calls:
        try:
            tokenized.append(_tokenized(renderer, call))
        except Unrenderable as error:
            if skipped is not None:
                skipped.reasons.append(str(error))
    return [call for call in tokenized if call is not None]


def _tokenized(renderer: Renderer, call: ModelCall) -> TokenizedCall | None:
    if call.prompt_ids and call.sampled_ids:
        return TokenizedCall(call.prompt_ids, call.sampled_ids)
    if not call.messages or call.answer is None:
        return None
    tools = [dict(tool) for tool in call.tools] or None
    prompt, answer = renderer.answer([dict(m) for m in call.messages], tools, dict(call.answer))
    return TokenizedCall(tuple(prompt), tuple(answer))


def first_difference(
    renderer: Renderer, better: Trace, worse: Trace
) -> tuple[TokenizedCall, TokenizedCall] | None:
    """The first call at which two traces have the same prompt and different answers; None if there is none."""
    for good, bad in zip(calls(renderer, better), calls(renderer, worse), strict=False):
        if good.prompt != bad.prompt:
            return None
        if good.answer != bad.answer:
            return good, bad
    return None


def rows(tokenized: Sequence[TokenizedCall]) -> list[dict[str, list[int]]]:
    """Calls that extend one another as one row, with labels on the answers only."""
    made: list[dict[str, list[int]]] = []
    for call in tokenized:
        row = made[-1] if made else None
        start = len(row["input_ids"]) if row else 0
        if row is None or tuple(row["input_ids"]) != call.prompt[:start]:
            row, start = {"input_ids": [], "labels": []}, 0
            made.append(row)
        new = call.prompt[start:]
        row["input_ids"] += [*new, *call.answer]
        row["labels"] += [-100] * len(new) + list(call.answer)
    return made


class _Logger(TrainerCallback):  # type: ignore[misc]  # transformers ships no types for it
    def __init__(self, method: str, tokens: int, report: Report) -> None:
        self.log: list[ImitationLog] = []
        self.method, self.tokens, self.report = method, tokens, report

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            line = ImitationLog(
                step=state.global_step,
                method=self.method,
                loss=float(logs["loss"]),
                tokens_trained=round(self.tokens * args.logging_steps / max(1, state.max_steps)),
                rewards={k: float(v) for k, v in logs.items() if k.startswith("rewards/")},
            )
            self.log.append(line)
            self.report(line)


def _model(base: str, config: TrainConfig) -> Any:
    model = load_model(
        base,
        config,
        adapters={DEFAULT_ADAPTER: None},
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    read_rows(model)
    return model


def batch_of(count: int, longest: int, at_once: int = AT_ONCE) -> tuple[int, int]:
    """Rows of a forward pass of `at_once` tokens, and how many passes are accumulated for a step.

    >>> batch_of(count=300, longest=500), batch_of(count=300, longest=9000), batch_of(count=3, longest=500)
    ((8, 1), (1, 8), (3, 1))
    """
    rows = min(BATCH, count, max(1, at_once // longest))
    return rows, -(-min(BATCH, count) // rows)


def _options(
    place: Path, config: TrainConfig, lengths: Sequence[int], model: Any
) -> dict[str, Any]:
    count = len(lengths)
    most = tokens_at_once(base_of(model).config, logits=True)
    rows, accumulated = batch_of(count, max(lengths), min(AT_ONCE, most))
    steps = max(1, -(-count // BATCH) * config.epochs)
    return {
        "output_dir": str(place.with_name("trl")), "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulated,
        "num_train_epochs": config.epochs, "learning_rate": config.learning_rate, "lr_scheduler_type": "cosine",
        "warmup_steps": min(10, steps // 4), "logging_steps": max(1, steps // 20), "save_strategy": "no", "report_to": [],
        "bf16": config.precision == "bf16", "fp16": config.precision == "fp16", "use_cpu": not torch.cuda.is_available(), "disable_tqdm": True, "seed": config.seed,
        "activation_checkpointing": config.gradient_checkpointing, "max_grad_norm": config.max_grad_norm, "max_length": None,
    }  # fmt: skip


def sft(
    base: str, tokenizer: PreTrainedTokenizerBase, learned: Sequence[TokenizedCall], place: Path, config: TrainConfig,
    report: Report,
) -> list[ImitationLog]:  # fmt: skip
    """TRL's SFTTrainer on calls; writes the weights to `place`. Raises BadInput if there are no calls."""
    made = rows(learned)
    if not made:
        raise BadInput(
            "Expected calls with their messages and answers to imitate, found none: record with `record(graph, store)`, or "
            "import traces that have them."
        )
    tokens = sum(len(call.answer) for call in learned)
    logger = _Logger("sft", tokens * config.epochs, report)
    model = _model(base, config)
    trainer = SFTTrainer(
        model=model, args=SFTConfig(**_options(place, config, [len(r["input_ids"]) for r in made], model)),
        train_dataset=Dataset.from_list(made), processing_class=_padded(tokenizer), callbacks=[logger],
    )  # fmt: skip
    trainer.train()
    save_weights(trainer.model, place)
    return logger.log


class _OnIds(DPOTrainer):  # type: ignore[misc]  # TRL ships no types
    """Compares the very ids: text that is tokenised again may come to others."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def dpo(
    base: str, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[TokenizedCall, TokenizedCall]], place: Path,
    config: TrainConfig, report: Report,
) -> list[ImitationLog]:  # fmt: skip
    """TRL's DPOTrainer on the calls at which better and worse traces first differ. Raises BadInput if there are none."""
    if not pairs:
        raise BadInput(
            "Expected traces of one request that answer the same prompt differently, found none: DPO compares answers to the same prompt. "
            "Take --method sft."
        )
    made = [
        {
            "prompt_ids": list(better.prompt),
            "chosen_ids": list(better.answer),
            "rejected_ids": list(worse.answer),
        }
        for better, worse in pairs
    ]
    tokens = sum(len(better.answer) + len(worse.answer) for better, worse in pairs)
    lengths = [2 * len(b.prompt) + len(b.answer) + len(w.answer) for b, w in pairs]
    logger = _Logger("dpo", tokens * config.epochs, report)
    model = _model(base, config)
    trainer = _OnIds(
        model=model, args=DPOConfig(**_options(place, config, lengths, model), beta=config.beta or 0.1),
        train_dataset=Dataset.from_list(made), processing_class=_padded(tokenizer), callbacks=[logger],
    )  # fmt: skip
    trainer.train()
    save_weights(trainer.model, place)
    return logger.log


def _padded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
