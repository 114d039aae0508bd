"""A trajectory is a trace as a trainer reads it: one exact row per model call.

    prompt P1        -> sampled C1        row 1: P1 C1          loss on C1
    prompt P1 C1 T1  -> sampled C2        row 2: P1 C1 T1 C2    loss on C2   (T1: a tool's answer)

Rows are what the engine saw, never rendered again; a trie folds their shared prefixes later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stateset_agents.errors import NotExact
from stateset_agents.trace import ModelCall, Trace, agent_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model call: prompt ids, sampled ids, and their log-probabilities."""

    prompt: tuple[int, ...]
    sampled: tuple[int, ...]
    logprobs: tuple[float, ...]
    node: str
    version: str
    number: int = 0
    """Its number among the trace's model calls."""
    namespace: str = ""
    turn: int = 0

    @property
    def agent(self) -> str:
        """The agent below an orchestrator whose row it is."""
        return agent_of(self.namespace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    trace_id: str
    rows: tuple[Row, ...]
    constrained: int = 0
    """Calls without a row: something forced their tokens (`ModelCall.constraint`), or they were drawn at another temperature than the
    episode's, so that they show no choice of the policy that is trained."""

    def by(self, of: Literal["node", "agent", "turn"]) -> dict[str, tuple[Row, ...]]:
        """Its rows, node by node, agent by agent, or turn by turn (`"1"`, `"2"`, …), each in their order."""
        parts: dict[str, list[Row]] = {}
        for row in self.rows:
            parts.setdefault(str(getattr(row, of)), []).append(row)
        return {name: tuple(rows) for name, rows in parts.items()}

    @property
    def tokens(self) -> int:
        """Sampled tokens."""
        return sum(len(row.sampled) for row in self.rows)


def trajectory(trace: Trace, *, nodes: Sequence[str] | None = None) -> Trajectory:
    """The exact rows of a trace, of all nodes or of the named ones (nodes, or agents below an orchestrator). A fork has only
    the rows that it sampled itself; the others belong to the run it was forked from. A constrained call has no row.

    Raises NotExact if a call, or its token ids or log-probabilities, are missing.
    """
    if trace.lost:
        raise NotExact(
            f"Expected every call of trace {trace.id!r}, found that {trace.lost} could not be stored or read: "
            f"{trace.error}"
        )
    rows, constrained = [], 0
    first = trace.forked.calls if trace.forked else 0
    for number, call in enumerate(trace.model_calls):
        counts = number >= first and call.error is None and not call.discarded
        named = nodes is None or call.node in nodes or agent_of(call.namespace) in nodes
        if not (counts and named):
            continue
        if call.exactness != "exact":
            raise NotExact(
                f"Expected token ids and log-probabilities for every call of trace {trace.id!r}, "
                f"found none for call {number} at node {call.node!r}. Serve the policy with "
                "`return_token_ids` and `logprobs` (vLLM or `stateset-agents policy serve`)."
            )
        if call.constraint or _other_temperature(trace, call):
            constrained += 1
            continue
        rows.append(
            Row(
                prompt=call.prompt_ids,
                sampled=call.sampled_ids,
                logprobs=call.logprobs,
                node=call.node,
                version=call.version,
                number=number,
                namespace=call.namespace,
                turn=call.turn,
            )
        )
    return Trajectory(trace_id=trace.id, rows=tuple(rows), constrained=constrained)


def _other_temperature(trace: Trace, call: ModelCall) -> bool:
    """Whether a call of an episode was drawn at another temperature than the episode, as a node may ask for."""
    played = trace.scenario is not None and call.temperature is not None
    return played and abs(float(call.temperature or 0.0) - trace.sampling.temperature) > 1e-6
