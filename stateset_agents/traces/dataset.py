"""The traces of a store that can be trained on, and the method.

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
from stateset_agents.grounding import claims
from stateset_agents.trace import Trace, words

Method = Literal["auto", "rl", "sft", "dpo"]
LEARNED_FROM = "phase NOT IN ('before', 'after', 'greedy_before', 'greedy_after', 'evaluate') AND substr(phase, 1, 5) <> 'step-'"
"""All phases but measurements: recorded runs, imported ones, and episodes of training and `collect`."""


class OfflineDataset:
    """The traces of a store that can be trained on."""

    def __init__(self, every: Sequence[Trace]) -> None:
        self.every = list(every)
        ended = [
            trace
            for trace in every
            if trace.status in ("completed", "truncated")
            and trace.calls
            and not is_measurement(trace)
        ]
        self.unbacked = [trace for trace in ended if claims_only(trace)]
        """Text in which the agent claims acts that the trace does not contain: it would teach to claim, not to act."""
        self.ended = [trace for trace in ended if not claims_only(trace)]
        self.exact = [trace for trace in self.ended if trace.exactness == "exact"]
        self.plain = [t for t in self.exact if not any(call.constraint for call in t.calls)]

    def method(self, requested: Method) -> tuple[Literal["rl", "sft", "dpo"], str]:
        """The training method and the reason. Raises BadInput if no trace can be used."""
        if requested != "auto":
            return requested, "as requested"
        if self.exact:
            return "rl", f"{len(self.exact)} of {len(self.ended)} traces are exact"
        if not self.ended:
            raise BadInput(
                f"--from-traces: expected finished traces that are not evaluations, found none among {len(self.every)}."
                f"{self._left_out()}"
            )
        answered_twice = len({trace.request for trace in self.ended}) < len(self.ended)
        reason = f"none of {len(self.ended)} traces has token ids and log-probabilities, without which there is no importance weight: "
        if answered_twice:
            how = "what answers a request better is preferred to what answers it worse"
            return "dpo", f"{reason}{how}.{self._left_out()}".removesuffix(".")
        how = "no request was answered twice, so the better ones are imitated"
        return "sft", f"{reason}{how}.{self._left_out()}".removesuffix(".")

    def _constraints(self) -> str:
        """Which parameters constrained the others."""
        names = sorted({c.constraint for t in self.exact for c in t.calls if c.constraint})
        return f" (the others with {', '.join(names)})" if names else ""

    def _left_out(self) -> str:
        if not self.unbacked:
            return ""
        return (
            f" {len(self.unbacked)} more claim acts (a refund, a cancellation, …) without a tool call that did them, and are left "
            "out: record the tool calls too."
        )

    def groups(self) -> list[list[Trace]]:
        """Groups of exact traces that answer the same request. Raises BadInput if there are none."""
        grouped: dict[tuple[str, ...], list[Trace]] = defaultdict(list)
        for trace in self.plain:
            grouped[_start_of(trace)].append(trace)
        groups = [group for group in grouped.values() if len(group) > 1]
        if not groups:
            raise BadInput(
                f"--from-traces: expected exact traces that answer the same request more than once, found {len(self.every)} "
                f"traces, {len(self.ended)} of them finished and not evaluations, {len(self.exact)} of those exact, {len(self.plain)} "
                f"sampled freely{self._constraints()}, 0 groups of the same request. A request has to be answered several times: "
                "its answers are compared with each other."
            )
        return groups

    def temperature(self) -> float:
        """The temperature of all groups. Raises BadInput if there are several."""
        temperatures = sorted({c.temperature for t in self.plain for c in t.calls}, key=str)
        if len(temperatures) != 1 or not temperatures[0]:
            raise BadInput(
                "--from-traces: expected one temperature above 0, named in every request, found "
                f"{', '.join('none named' if t is None else str(t) for t in temperatures)}."
            )
        return float(temperatures[0])


def claims_only(trace: Trace) -> bool:
    """Whether the agent says in a text trace that it acted, and no tool was called."""
    if trace.exactness == "exact" or trace.tool_calls:
        return False
    spoken = [*trace.messages, *(call.answer for call in trace.calls if call.answer)]
    shown = [*spoken, *(message for call in trace.calls for message in call.messages)]
    if any(m.get("role") == "tool" or m.get("tool_calls") for m in shown):
        return False
    return bool(claims("\n".join(words(m) for m in spoken if m.get("role") == "assistant")))


def is_measurement(trace: Trace) -> bool:
    """Whether it was played to measure a policy: such traces are never trained on."""
    return trace.scenario is not None and trace.scenario.split not in ("train", "user")


def _start_of(trace: Trace) -> tuple[str, ...]:
    """The key of comparable traces: same scenario, same node, and the same first prompt tokens."""
    first = trace.calls[0]
    prompt = hashlib.sha256(array("i", first.prompt_ids)).hexdigest()
    return trace.scenario.id if trace.scenario else "", first.node, prompt
