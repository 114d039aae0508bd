"""Grading: the rewards of groups, and whether there is anything to learn from them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stateset_agents.errors import RunBroken
from stateset_agents.reward import Reward, Score
from stateset_agents.trace import Trace
from stateset_agents.trainers.constraints import Limit
from stateset_agents.trajectory import trajectory

Scores = Sequence[Score | None]
"""Scores of one group."""


@dataclass(frozen=True, kw_only=True)
class Grading:
    """How episodes are graded: a reward, rewards for single nodes, and limits."""

    reward: Reward
    node_rewards: Mapping[str, Reward] = field(default_factory=dict)
    limits: Sequence[Limit] = ()


async def graded(
    groups: Sequence[Sequence[Trace]], grading: Grading
) -> tuple[list[list[Any]], dict[str, list[Scores]]]:
    """Scores of each group, and those at nodes that have a reward of their own."""
    scores = list(await asyncio.gather(*(grading.reward(list(group)) for group in groups)))
    by_node: dict[str, list[Scores]] = {
        node: list(await asyncio.gather(*(reward(list(group)) for group in groups)))
        for node, reward in grading.node_rewards.items()
    }
    return scores, by_node


def are_equal(scores: Scores) -> bool:
    """Whether a group's rewards are equal, so that none of its episodes has an advantage."""
    values = [score.value for score in scores if score is not None]
    return len(values) < 2 or max(values) - min(values) < 1e-6


def check_played(groups: Sequence[Sequence[Trace]], step: int) -> None:
    """Raises RunBroken if the played episodes cannot be trained on."""
    traces = [trace for group in groups for trace in group]
    failed = [trace for trace in traces if trace.status == "failed"]
    if len(failed) > len(traces) // 2:
        raise RunBroken(
            f"Expected episodes in step {step}, found that {len(failed)} of {len(traces)} failed, the last with: "
            f"{failed[-1].error} What was committed is kept."
        )
    ended = [trace for trace in traces if trace.status != "failed"]
    if not any(trajectory(trace).tokens for trace in ended):
        errors = [trace.error for trace in ended if trace.error]
        raise RunBroken(
            f"Expected episodes in step {step} in which the policy was called, found that none of {len(ended)} holds a token of it. "
            + (
                f"{len(errors)} ended with: {errors[-1]}"
                if errors
                else f"{_constraints(ended)}Does the graph call the model it is given?"
            )
        )


def _constraints(traces: Sequence[Trace]) -> str:
    names = sorted({c.constraint for t in traces for c in t.calls if c.constraint})
    if not names and any(trajectory(trace).constrained for trace in traces):
        names = ["another temperature than the episode's"]
    if not names:
        return ""
    return f"Calls whose tokens are forced ({', '.join(names)}) are not trained on. "


def success_of(group: Sequence[Trace], scores: Scores) -> float | None:
    """The share of a group that reached its goal; without goals, its mean reward, from 0 to 1."""
    goals = [trace.goal_score for trace in group]
    if all(goal is not None for goal in goals):
        return sum(goal is not None and goal.success for goal in goals) / len(goals)
    values = [score.value for score in scores if score is not None]
    return min(1.0, max(0.0, sum(values) / len(values))) if values else None
