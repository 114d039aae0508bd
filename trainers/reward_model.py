"""A neural reward model: learned from preferences with TRL's RewardTrainer, calibrated, and served like any reward.

preference  ->  RewardTrainer (Bradley-Terry on the last token)  ->  heads on its features, one for each bootstrap sample
score       ->  mean of the heads, as a probability; if they disagree, it moves towards 0.5
"""

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from stateset_agents.errors import BadInput
from stateset_agents.policy.chat_template import default_chat_template
from stateset_agents.reward import Declaration, Score, scorable
from stateset_agents.trace import Trace

Pair = tuple[Trace, Trace]
"""Pairs with the better trace first."""
LONGEST = 768
"""The most tokens of a conversation that are read, its last ones."""
HEADS = 8
BATCH = 16
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelResult:
    """The results of training on held-out pairs."""

    pairs: int
    held_out: int
    accuracy: float
    """Share of held-out pairs ranked right, by the mean of the heads."""
    expected: float
    """The mean probability that it gave to the better one, once calibrated: near the accuracy for a calibrated model."""
    temperature: float


def preferences(
    traces: Sequence[Trace], *, feedback: str | None = None, most: int = 4
) -> list[Pair]:
    """Pairs of traces that answer the same request, the better one by feedback of a kind, or else by its verified goal; at the
    most `most` for each request."""
    groups: dict[str, list[tuple[float, Trace]]] = defaultdict(list)
    for trace in traces:
        worth = _worth(trace, feedback)
        if worth is not None and scorable(trace):
            groups[trace.request].append((worth, trace))
    pairs: list[Pair] = []
    for name, group in groups.items():
        both = [(a, b) for wa, a in group for wb, b in group if wa > wb]
        random.Random(name).shuffle(both)
        pairs += both[:most]
    return pairs


def _split(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Split into a tenth, a tenth and the rest; pairs of one request stay together, since they share traces."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair[0].request].append(pair)
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    parts: tuple[list[Pair], list[Pair], list[Pair]] = ([], [], [])
    for group in shuffled:
        place = next((n for n in (0, 1) if len(parts[n]) < len(pairs) // 10), 2)
        parts[place].extend(group)
    if len(shuffled) < 10:
        raise BadInput(f"Expected preferences about at least 10 requests, found {len(shuffled)}.")
    return parts


def _worth(trace: Trace, feedback: str | None) -> float | None:
    if feedback is not None:
        values = [item.value for item in trace.feedback if item.key == feedback]
        return values[-1] if values else None
    goal = trace.goal_score
    return None if goal is None else float(goal.success)


def train_reward_model(
    base: Path | str, pairs: Sequence[Pair], out: Path, *, seed: int = 0, learning_rate: float = 5e-4, epochs: float = 2.0,
    report: Report = lambda line: None,
) -> RewardModelResult:  # fmt: skip
    """Learn from 80 % of the pairs, calibrate on 10 %, measure on 10 %; the model is written to `out`.

    `base` is a causal language model of transformers. Raises BadInput for fewer than 50 pairs.
    """
    if len(pairs) < 50:
        raise BadInput(f"Expected at least 50 preferences, found {len(pairs)}.")
    torch.manual_seed(seed)
    held_out, kept_back, learned = _split(pairs, seed)
    tokenizer = _tokenizer(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    report(
        f"{len(learned)} pairs to learn from, {len(kept_back)} to calibrate on, {len(held_out)} to measure on"
    )
    rows = [
        {"chosen_ids": ids(tokenizer, good), "rejected_ids": ids(tokenizer, bad)}
        for good, bad in learned
    ]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(out / "training"), per_device_train_batch_size=8, num_train_epochs=epochs, learning_rate=learning_rate,
            lr_scheduler_type="cosine", warmup_steps=20, logging_steps=25, save_strategy="no", report_to=[], use_cpu=True,
            bf16=False, disable_tqdm=True, max_length=None, center_rewards_coefficient=0.01, seed=seed,
            activation_checkpointing=False, disable_dropout=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    model.eval()
    report("features of every pair")
    chosen, rejected = (
        _features(model, tokenizer, [pair[side] for pair in learned]) for side in (0, 1)
    )
    heads = _heads(chosen - rejected, seed)
    every = torch.cat([chosen, rejected]) @ heads.mean(0)
    centre = float(every.mean())
    calibration = _gaps(model, tokenizer, kept_back, heads)
    temperature = _temperature(calibration)
    gaps = _gaps(model, tokenizer, held_out, heads)
    result = RewardModelResult(
        pairs=len(learned),
        held_out=len(held_out),
        accuracy=float((gaps > 0).float().mean()),
        expected=float(torch.sigmoid(gaps / temperature).mean()),
        temperature=temperature,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    save_file({"heads": heads}, out / "heads.safetensors")
    about = {**asdict(result), "centre": centre, "base": str(base)}
    (out / "reward.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return result


class NeuralReward:
    """A trained reward model. The value is from 0 to 1; `parts` has the mean probability of the heads, and their disagreement
    (`uncertainty`, in units of the temperature), which moves the value towards 0.5."""

    name = "neural"

    def __init__(self, folder: Path) -> None:
        try:
            about = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(
                f"Expected a reward model of `rewards train` at {str(folder)!r}, found: {error}"
            ) from None
        self._tokenizer = _tokenizer(folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self._heads = load_file(folder / "heads.safetensors")["heads"]
        self._centre, self._temperature = float(about["centre"]), float(about["temperature"])
        version = (
            f"{about['accuracy']}/{about['temperature']}/{about['pairs']}/{self._heads.sum():.6f}"
        )
        self.declaration = Declaration(
            version=version, low=0.0, high=1.0, reads=("messages",), cost="model"
        )

    async def __call__(self, traces: Sequence[Trace]) -> list[Score | None]:
        there = [n for n, trace in enumerate(traces) if scorable(trace) and trace.messages]
        scores: list[Score | None] = [None] * len(traces)
        if there:
            features = _features(self._model, self._tokenizer, [traces[n] for n in there])
            logits = (features @ self._heads.T - self._centre) / self._temperature
            for n, row in zip(there, logits, strict=True):
                scores[n] = _score(float(row.mean()), float(row.std()))
        return scores


def _score(mean: float, spread: float) -> Score:
    chance = 1 / (1 + math.exp(-max(-50.0, min(50.0, mean))))
    sure = 1 / (1 + spread * spread)
    return Score(value=0.5 + (chance - 0.5) * sure, parts={"chance": chance, "uncertainty": spread})


def _tokenizer(place: Path | str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = default_chat_template()
    return tokenizer


def ids(tokenizer: PreTrainedTokenizerBase, trace: Trace) -> list[int]:
    """A conversation's tokens, the last `LONGEST` of them."""
    messages = [{**m, "content": m.get("content") or ""} for m in trace.messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])[-LONGEST:]


@torch.inference_mode()
def _features(
    model: Any, tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace]
) -> torch.Tensor:
    """(N, D) hidden states of the last layer at the last token of each conversation."""
    conversations = [ids(tokenizer, trace) for trace in traces]
    order = sorted(range(len(conversations)), key=lambda n: len(conversations[n]))
    features = torch.zeros(len(conversations), model.config.hidden_size)
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        longest = max(len(conversations[n]) for n in part)
        rows = torch.full((len(part), longest), int(tokenizer.pad_token_id))
        mask = torch.zeros((len(part), longest), dtype=torch.long)
        for place, n in enumerate(part):
            rows[place, : len(conversations[n])] = torch.tensor(conversations[n])
            mask[place, : len(conversations[n])] = 1
        hidden = model.model(input_ids=rows, attention_mask=mask).last_hidden_state
        features[part] = hidden[torch.arange(len(part)), mask.sum(1) - 1].float()
    return features


def _heads(gaps: torch.Tensor, seed: int) -> torch.Tensor:
    """(HEADS, D) weights that separate chosen from rejected, each from a bootstrap sample."""
    draw = torch.Generator().manual_seed(seed)
    heads = []
    for _ in range(HEADS):
        rows = gaps[torch.randint(len(gaps), (len(gaps),), generator=draw)]
        weights = torch.zeros(gaps.size(1), requires_grad=True)
        optimiser = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

        def closure(
            rows: torch.Tensor = rows,
            weights: torch.Tensor = weights,
            optimiser: torch.optim.LBFGS = optimiser,
        ) -> torch.Tensor:
            optimiser.zero_grad()
            fit = -torch.nn.functional.logsigmoid(rows @ weights).mean()
            loss: torch.Tensor = fit + 1e-3 * weights.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        heads.append(weights.detach())
    return torch.stack(heads)


def _gaps(
    model: Any, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], heads: torch.Tensor
) -> torch.Tensor:
    """(N,) margins between the better and the worse one of each pair."""
    good, bad = (_features(model, tokenizer, [pair[side] for pair in pairs]) for side in (0, 1))
    return (good - bad) @ heads.mean(0)


def _temperature(gaps: torch.Tensor) -> float:
    """The temperature that calibrates the margins: the likeliest of a grid."""
    row = torch.logspace(-3, 2, 101)
    fits = [float(torch.nn.functional.logsigmoid(gaps / temperature).mean()) for temperature in row]
    return float(row[max(range(len(fits)), key=fits.__getitem__)])
