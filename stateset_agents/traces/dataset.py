"""What a store holds that can be trained on, and how.

exact traces of one request      by their rewards
text, answered better and worse  the better is preferred
text, answered once              the best is imitated
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from stateset_agents.errors import BadInput
from stateset_agents.trace import ModelCall, Trace

Method = Literal["auto", "rl", "sft", "dpo"]
LEARNED_FROM = "phase IN ('', 'train')"
"""Which of a store's traces are no evaluations: recorded runs, and what training and `collect` played."""


class OfflineDataset:
    """What a store holds that can be trained on."""

    def __init__(self, every: Sequence[Trace]) -> None:
        self.every = list(every)
        self.ended = [
            trace
            for trace in every
            if trace.status in ("completed", "truncated")
            and trace.calls
            and not is_measurement(trace)
        ]
        self.exact = [trace for trace in self.ended if trace.exactness == "exact"]
        self.plain = [
            t for t in self.exact if not any(modifies_distribution(call) for call in t.calls)
        ]

    def method(self, requested: Method) -> tuple[Literal["rl", "sft", "dpo"], str]:
        """How to learn from it, and why so. Raises BadInput where there is nothing."""
        if requested != "auto":
            return requested, "as requested"
        if self.exact:
            return "rl", f"{len(self.exact)} of {len(self.ended)} traces are exact"
        if not self.ended:
            raise BadInput(
                f"--from-traces: expected finished traces that are not evaluations, found none among {len(self.every)}."
            )
        answered_twice = len({trace.request for trace in self.ended}) < len(self.ended)
        reason = f"none of {len(self.ended)} traces has token ids and log-probabilities, without which there is no importance weight: "
        if answered_twice:
            return (
                "dpo",
                reason + "what answers a request better is preferred to what answers it worse",
            )
        return "sft", reason + "no request was answered twice, so the better ones are imitated"

    def groups(self) -> list[list[Trace]]:
        """Exact traces that answer the same request. Raises BadInput where there are none."""
        grouped: dict[tuple[str, ...], list[Trace]] = defaultdict(list)
        for trace in self.plain:
            grouped[_start_of(trace)].append(trace)
        groups = [group for group in grouped.values() if len(group) > 1]
        if not groups:
            raise BadInput(
                f"--from-traces: expected exact traces that answer the same request more than once, found {len(self.every)} "
                f"traces, {len(self.ended)} of them finished and not evaluations, {len(self.exact)} of those exact, {len(self.plain)} "
                "sampled without top_p or top_k, 0 groups of the same request."
            )
        return groups

    def temperature(self) -> float:
        """The one at which all were sampled. Raises BadInput where there are several."""
        temperatures = sorted({c.temperature for t in self.plain for c in t.calls}, key=str)
        if len(temperatures) != 1 or not temperatures[0]:
            raise BadInput(
                "--from-traces: expected one temperature above 0, named in every request, found "
                f"{', '.join('none named' if t is None else str(t) for t in temperatures)}."
            )
        return float(temperatures[0])


def is_measurement(trace: Trace) -> bool:
    """Whether it was played to measure a policy: what is measured on is never learned from."""
    return trace.scenario is not None and trace.scenario.split not in ("train", "user")


def _start_of(trace: Trace) -> tuple[str, ...]:
    """What makes traces comparable: they began with the very same tokens, at the same node, in the same scenario."""
    first = trace.calls[0]
    prompt = hashlib.sha256(array("i", first.prompt_ids)).hexdigest()
    return trace.scenario.id if trace.scenario else "", first.node, prompt


_NEUTRAL = {
    "top_p": 1, "top_k": (0, -1), "min_p": 0, "presence_penalty": 0, "frequency_penalty": 0,
    "repetition_penalty": 1, "logit_bias": {}, "response_format": {"type": "text"},
}  # fmt: skip


def modifies_distribution(call: ModelCall) -> bool:
    """Whether a call was sampled from another distribution than softmax(logits / temperature), which a trainer computes."""
    for name, value in call.sampling.items():
        neutral = _NEUTRAL.get(name, ())
        if value not in (neutral if isinstance(neutral, tuple) else (neutral,)):
            return True
    return False
