"""Episodes of mixed quality whose outcome is known: right ones, and ones that go wrong in the ways agents do.

Used to measure rewards, and as preferences to learn a reward from. They are played through the real graph on a clone of the
shop by a scripted agent, and the goal verifies the result.
"""

import random
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from stateset_agents.graphs.rollout import play_episode
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.scenario import Act, Scenario
from stateset_agents.tools.scenarios.demonstrations import FLAWS, bend
from stateset_agents.tools.scenarios.mutants import mutants
from stateset_agents.trace import Sampling, Trace

_NUMBER = re.compile(r"\d+")
SALAD = "word salad"
_SALAD = (
    "I am happy to help! Great question, thank you so much for your patience. I understand completely, your satisfaction is "
    "important to us. Absolutely, certainly, of course: resolved, solution, help, refund, order, delivered, done."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """An episode and its kind: `right`, or the name of the mistake."""

    kind: str
    trace: Trace

    @property
    def success(self) -> bool:
        goal = self.trace.goal_score
        return goal is not None and goal.success


def variants(scenario: Scenario, rng: random.Random) -> dict[str, tuple[Act, ...]]:
    """Ways to play a scenario, the right one first."""
    plan = scenario.plan
    plans = {"right": plan, **mutants(scenario)}
    for flaw in FLAWS.get(scenario.intent, {}):
        altered = bend(scenario, flaw, rng) if scenario.customer.locale == "en" else None
        if altered is not None:
            plans[flaw] = altered
    *before, last = plan
    if last.say and _NUMBER.search(last.say):
        wrong = _NUMBER.sub(lambda m: str(int(m[0]) + rng.randint(1, 9)), last.say, count=1)
        plans["wrong fact"] = (*before, last.model_copy(update={"say": wrong}))
    plans["stops half way"] = plan[: max(1, len(plan) // 2)]
    plans[SALAD] = (Act(say=_SALAD),)
    return plans


async def mixed(
    scenarios: Sequence[Scenario], *, seed: int = 0, share: float = 0.5
) -> AsyncIterator[Mixed]:
    """One episode for each scenario: the right one for `share` of them, another at random for the rest."""
    rng = random.Random(seed)
    for scenario in scenarios:
        ways = variants(scenario, rng)
        wrong = [kind for kind in ways if kind != "right"]
        kind = "right" if rng.random() < share else rng.choice(wrong)
        yield await played(scenario, kind, ways[kind])


async def pairs(
    scenarios: Sequence[Scenario], *, seed: int = 0
) -> AsyncIterator[tuple[Mixed, Mixed]]:
    """For each scenario the right episode and one that went wrong: a preference that the shop verified. For every sixth
    scenario it is a failed episode and a word salad: trying is better than only sounding right."""
    rng = random.Random(seed)
    for number, scenario in enumerate(scenarios):
        ways = variants(scenario, rng)
        wrong = [kind for kind in ways if kind not in ("right", SALAD)]
        good = "right" if number % 6 else rng.choice(wrong)
        bad = rng.choice([*wrong, SALAD]) if number % 6 else SALAD
        better, worse = (
            await played(scenario, good, ways[good]),
            await played(scenario, bad, ways[bad]),
        )
        if better.success == (good == "right") and not worse.success:
            yield better, worse


async def played(scenario: Scenario, kind: str, acts: tuple[Act, ...]) -> Mixed:
    """Play a list of acts through the graph, as an episode."""
    return Mixed(kind=kind, trace=await play_episode(scenario, Oracle(plan=acts), Sampling()))
