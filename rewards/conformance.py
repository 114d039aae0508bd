"""Whether a reward follows the protocol and its own declaration: `stateset-agents rewards check NAME`."""

import math
from collections.abc import Sequence

from stateset_agents.reward import Reward, Score, declaration_of
from stateset_agents.rewards.attacks import ATTACKS, SITUATIONS
from stateset_agents.trace import Trace


def samples() -> list[Trace]:
    """Traces of all kinds: honest ones, attacks, failed and broken-off runs, an empty one."""
    honest = [situation.honest for situation in SITUATIONS]
    attacks = [attack(SITUATIONS[0]) for attack in ATTACKS.values()]
    odd = [
        honest[0].model_copy(update={"status": s})
        for s in ("failed", "interrupted", "waiting", "truncated")
    ]
    return [*honest, *attacks, *odd, Trace(), honest[0].model_copy(update={"scenario": None})]


async def problems(reward: Reward, traces: Sequence[Trace] | None = None) -> list[str]:
    """Its problems, in words; empty for a reward that conforms."""
    group = list(traces) if traces is not None else samples()
    about, wrong = declaration_of(reward), []
    if not isinstance(getattr(reward, "name", None), str) or not reward.name:
        wrong.append("expected a name, found none")
    before = [trace.model_dump_json() for trace in group]
    scores = await reward(group)
    if not isinstance(scores, list) or len(scores) != len(group):
        count = len(scores) if hasattr(scores, "__len__") else type(scores).__name__
        return [*wrong, f"expected a list of {len(group)} scores, found {count}"]
    strange = [
        type(other).__name__
        for other in scores
        if other is not None and not isinstance(other, Score)
    ]
    if strange:
        return [*wrong, f"expected Score or None, found {strange[0]}"]
    if [trace.model_dump_json() for trace in group] != before:
        wrong.append("expected traces to be left as they are, found them changed")
    for trace, score in zip(group, scores, strict=True):
        if score is None:
            continue
        if not about.low - 1e-9 <= score.value <= about.high + 1e-9:
            wrong.append(f"expected {about.low:g} to {about.high:g}, found {score.value:g}")
        if trace.status in ("failed", "interrupted"):
            wrong.append(f"expected None for a run that {trace.status}, found {score.value:g}")
        if (
            not trace.messages
            and not trace.model_calls
            and not trace.tool_calls
            and not trace.output
        ):
            wrong.append(f"expected None for an empty trace, found {score.value:g}")
    if await reward([]):
        wrong.append("expected no score for no trace, found some")
    if about.cost == "offline":
        if not _same(scores, await reward(group)):
            wrong.append("expected the same scores again, found others")
        if not _same(scores, list(reversed(await reward(group[::-1])))):
            wrong.append(
                "expected scores to follow their traces in any order, found that they do not"
            )
        if not about.compares:
            alone = [(await reward([trace]))[0] for trace in group]
            if not _same(scores, alone):
                wrong.append(
                    "expected a trace's score not to depend on the others, found that it does"
                )
    return list(dict.fromkeys(wrong))


def _same(first: Sequence[Score | None], other: Sequence[Score | None]) -> bool:
    return all(
        (a is None) == (b is None)
        and (a is None or b is None or math.isclose(a.value, b.value, abs_tol=1e-9))
        for a, b in zip(first, other, strict=True)
    )
