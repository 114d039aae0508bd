"""Roll-outs: the groups of episodes of a step, whole ones and forks, under a limit of concurrency."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from pydantic import Field

from stateset_agents.plain import Frozen
from stateset_agents.scenario import Scenario
from stateset_agents.trace import Sampling, Trace
from stateset_agents.trainers.concurrency import Gate
from stateset_agents.trainers.config import TrainConfig

Rollout = Callable[[Scenario, Sampling], Awaitable[Trace]]


class Forkable(Protocol):
    """An episode that was played, and can be continued otherwise from its decisions."""

    trace: Trace

    @property
    def decisions(self) -> list[int]: ...

    async def fork(self, call: int, sampling: Sampling) -> Trace: ...

    async def close(self) -> None: ...


PlayForkable = Callable[[Scenario, Sampling], Awaitable[Forkable]]


class Plan(Frozen):
    """The plan of a step, made before it is played, so that a killed run plays the same."""

    step: int
    scenarios: tuple[int, ...]
    """Positions in the list of training scenarios."""
    group_size: int
    temperature: float = Field(gt=0)


class Player:
    """Plays groups. All running steps share one gate, the earlier step first: when an episode ends, the next one starts, of any
    group or step, so that the engine's batch stays full."""

    def __init__(
        self, rollout: Rollout, play_forkable: PlayForkable | None, config: TrainConfig
    ) -> None:
        self.rollout, self.play_forkable, self.config = rollout, play_forkable, config
        self.gate = Gate(config.concurrency)

    async def play(
        self,
        plan: Plan,
        scenarios: Sequence[Scenario],
        versions: dict[str, str],
        served: str,
        part: int = 0,
    ) -> list[list[Trace]]:
        """A group of episodes for each of the plan's scenarios, sampled by the version `served`, at nodes of `versions` by
        theirs. `part` distinguishes further episodes of a step from the first ones."""

        def sampling(scenario: Scenario, number: int | str, nth: int) -> Sampling:
            seed = f"{self.config.seed}/{plan.step}/{scenario.id}/{number}"
            seed = seed if not nth else f"{seed}/{nth}"  # the same scenario again in this step
            return Sampling(
                version=served,
                versions=versions,
                temperature=plan.temperature,
                seed=random.Random(seed if not part else f"{seed}/{part}").getrandbits(31),
                max_tokens=self.config.max_tokens,
            )

        async def whole(scenario: Scenario, number: int, nth: int) -> Trace:
            async with self.gate.place() as played:
                trace = await self.rollout(scenario, sampling(scenario, number, nth))
                played(trace.tokens_sampled)
                return trace

        async def forkable(scenario: Scenario, number: int, nth: int) -> Forkable:
            assert self.play_forkable is not None
            async with self.gate.place() as played:
                episode = await self.play_forkable(scenario, sampling(scenario, number, nth))
                played(episode.trace.tokens_sampled)
                return episode

        async def forked(
            episode: Forkable, call: int, scenario: Scenario, number: int, nth: int
        ) -> Trace:
            async with self.gate.place() as played:
                trace = await episode.fork(call, sampling(scenario, f"fork-{number}", nth))
                played(trace.tokens_sampled)
                return trace

        async def group(position: int, place: int) -> list[Trace]:
            scenario, nth = scenarios[place], plan.scenarios[:position].count(place)
            if not self.config.forks:
                every = (whole(scenario, number, nth) for number in range(plan.group_size))
                return list(await asyncio.gather(*every))
            count = plan.group_size - self.config.forks
            episodes = list(
                await asyncio.gather(*(forkable(scenario, number, nth) for number in range(count)))
            )
            try:
                chosen = decisions(episodes, self.config.forks)
                forks = await asyncio.gather(
                    *(forked(e, call, scenario, n, nth) for n, (e, call) in enumerate(chosen))
                )
            finally:
                for episode in episodes:
                    await episode.close()
            return [*(episode.trace for episode in episodes), *forks]

        return list(
            await asyncio.gather(*(group(n, place) for n, place in enumerate(plan.scenarios)))
        )


AT_ONE = 2
"""The least number of forks at one decision, so that each is compared with more than one other."""


def decisions(episodes: Sequence[Forkable], count: int) -> list[tuple[Forkable, int]]:
    """Where `count` forks begin, `AT_ONE` or more at each place: in the episodes in turn, at the calls that were least sure in the
    *other* episodes.

    How unsure a call was is the surprise of what was sampled, minus the sum of its log-probabilities in nats: its expectation
    is the entropy of the call. An episode's own surprise must not be used, and episodes must not be ranked by it: if rare acts
    were compared with forks and likely ones not, the comparison would depend on the act, and the gradient would be biased. The
    first call is left out, because a fork there is a whole episode.
    """
    surprise = [[-sum(call.logprobs) for call in episode.trace.model_calls] for episode in episodes]

    def unsure(place: int, call: int) -> float:
        others = [
            calls[call]
            for other, calls in enumerate(surprise)
            if other != place and call < len(calls)
        ]
        return sum(others) / len(others) if others else 0.0

    ranked = []
    for place, episode in enumerate(episodes):
        later = [(-unsure(place, call), call) for call in episode.decisions if call > 0]
        ranked.append([call for _, call in sorted(later)])
    in_turn = [
        (episodes[place], calls[rank])
        for rank in range(max(map(len, ranked), default=0))
        for place, calls in enumerate(ranked)
        if rank < len(calls)
    ]
    if not in_turn:
        in_turn = [(episode, 0) for episode in episodes if episode.decisions]
    chosen = in_turn[: max(1, count // AT_ONE)]
    return [chosen[number % len(chosen)] for number in range(count)] if chosen else []
