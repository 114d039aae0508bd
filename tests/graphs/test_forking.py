"""Forks: an episode goes on from a checkpoint, on a clone of the shop, and touches nobody else's."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from operator import add
from typing import Annotated, Any, ClassVar, TypedDict

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from stateset_agents.errors import BadInput
from stateset_agents.graphs.custom import CustomGraph
from stateset_agents.graphs.rollout import play_episode, play_forkable
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.policy.chat_model import connect
from stateset_agents.scenario import Act, Customer, Scenario
from stateset_agents.trace import Forked, ModelCall, Sampling, Trace
from stateset_agents.trainers.algorithms.algorithm import centred
from stateset_agents.trainers.config import TrainConfig
from stateset_agents.trainers.credit import Graded, samples
from stateset_agents.trainers.rollouts import Plan, Player, decisions
from stateset_agents.trajectory import trajectory


async def test_from_every_decision_the_same_acts_lead_to_the_same_end(
    development: list[Scenario],
) -> None:
    for scenario in development[:10]:
        episode = await play_forkable(scenario, Oracle(plan=scenario.plan), Sampling())
        whole = episode.trace
        assert episode.decisions == list(range(len(whole.model_calls)))
        for call in episode.decisions:
            fork = await episode.fork(call, Sampling())
            assert fork.forked is not None
            assert (fork.forked.trace, fork.forked.calls) == (whole.id, call)
            assert fork.messages == whole.messages
            assert fork.changes == whole.changes
            assert fork.tool_calls == whole.tool_calls
            assert [c.turn for c in fork.model_calls] == [c.turn for c in whole.model_calls]
            assert fork.goal_score == whole.goal_score
        await episode.close()


async def test_a_held_episode_is_the_one_that_would_have_been_played(
    development: list[Scenario],
) -> None:
    for scenario in development[:5]:
        plain = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
        episode = await play_forkable(scenario, Oracle(plan=scenario.plan), Sampling())
        assert episode.trace.messages == plain.messages
        assert episode.trace.changes == plain.changes
        await episode.close()


async def test_what_a_fork_does_no_other_fork_and_no_episode_sees(
    development: list[Scenario],
) -> None:
    """A refund is made in the episode and in one fork, and not in the other, which stops before it."""
    scenario = next(s for s in development if s.intent == "refund")
    plan = scenario.plan
    write = next(n for n, act in enumerate(plan) if act.tool == "issue_refund")

    class Hesitant(Oracle):
        """Refunds the first time it comes to it, and apologises from then on."""

        came: ClassVar[Counter[int]] = Counter()

        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
            played = sum(isinstance(m, AIMessage) for m in messages)
            self.came[played] += 1
            if played == write and self.came[played] > 1:
                message = AIMessage("Sorry, I cannot do that.")
                return ChatResult(generations=[ChatGeneration(message=message)])
            return super()._generate(messages, *args, **kwargs)

    episode = await play_forkable(scenario, Hesitant(plan=plan), Sampling())
    assert any(change.table == "payments" for change in episode.trace.changes)
    apology = await episode.fork(write, Sampling())
    assert apology.changes == ()
    assert [c.name for c in apology.tool_calls] == [
        c.name for c in episode.trace.tool_calls[:write] if c.name != "issue_refund"
    ]
    last = await episode.fork(write + 1, Sampling())  # after the refund: it is there already
    assert last.changes == episode.trace.changes
    await episode.close()


async def test_a_rule_customer_goes_on_as_it_was_at_the_decision(
    development: list[Scenario],
) -> None:
    """Its patience and its slips are its state; a fork that shared them would find it tired."""
    scenario = development[0].model_copy(
        update={"customer": development[0].customer.model_copy(update={"then": ("And one more thing.",)})}
    )  # fmt: skip
    episode = await play_forkable(scenario, Oracle(plan=scenario.plan), Sampling())
    spoken = [m for m in episode.trace.messages if m["role"] == "user"]
    assert "And one more thing." in {m["content"] for m in spoken}
    for call in episode.decisions:
        fork = await episode.fork(call, Sampling())
        assert [m for m in fork.messages if m["role"] == "user"] == spoken
    await episode.close()


async def test_forks_of_a_served_policy_sample_only_what_comes_after(
    engine: str, development: list[Scenario]
) -> None:
    policy = connect(engine, "policy")
    sampling = Sampling(version="policy", seed=1, max_tokens=64)
    episode = await play_forkable(development[1], policy, sampling)
    call = episode.decisions[-1]
    fork = await episode.fork(call, sampling.model_copy(update={"seed": 2}))
    again = await episode.fork(call, sampling.model_copy(update={"seed": 2}))
    await episode.close()
    assert [c.sampled_ids for c in fork.model_calls] == [c.sampled_ids for c in again.model_calls]
    assert fork.model_calls[:call] == episode.trace.model_calls[:call]
    rows = trajectory(fork).rows
    assert rows[0].number == call
    assert fork.tokens_sampled == sum(len(row.sampled) for row in rows)
    parent = trajectory(episode.trace).rows[call]
    assert rows[0].prompt == parent.prompt  # the very tokens the decision was taken on


class Numbers(TypedDict):
    texts: Annotated[list[str], add]


class Counting(BaseChatModel):
    """Says how many calls it has answered so far."""

    calls: list[int] = []  # noqa: RUF012 (a pydantic field)

    @property
    def _llm_type(self) -> str:
        return "counting"

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        self.calls.append(1)
        text = f"{messages[-1].text}{len(self.calls)}"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


class Ledger:
    """A world of one's own."""

    def __init__(self, entries: list[str]) -> None:
        self.entries = entries

    def clone(self) -> "Ledger":
        return Ledger(list(self.entries))


def fan(model: BaseChatModel, world: Ledger) -> Any:
    """Two writers side by side, then one who closes the books: not commerce, not ours."""

    async def write(state: Any) -> dict[str, Any]:
        answer = await model.ainvoke([HumanMessage(state["name"])])
        world.entries.append(answer.text)
        return {"texts": [answer.text]}

    async def close(state: Numbers) -> dict[str, Any]:
        answer = await model.ainvoke([HumanMessage(f"{len(world.entries)}-")])
        return {"texts": [answer.text]}

    graph = StateGraph(Numbers)
    graph.add_node("write", write)
    graph.add_node("close", close)
    graph.add_conditional_edges(
        START, lambda s: [Send("write", {"name": n}) for n in "ab"], ["write"]
    )
    graph.add_edge("write", "close")
    graph.add_edge("close", END)
    return graph.compile()


def own(**options: Any) -> Scenario:
    return Scenario(
        id="own", graph="fan", split="user", intent="own", shop_seed=0, customer=Customer(opening="x"),
        plan=(Act(say="x"),), **options,
    )  # fmt: skip


async def test_any_graph_forks_whose_world_can_be_cloned() -> None:
    """Right under `Send`: both writers of a superstep are asked again, each once."""
    model = Counting(calls=[])
    episode = await CustomGraph(fan, "fan", world=lambda scenario: Ledger([])).play_forkable(
        own(), model, Sampling()
    )
    assert episode.trace.status == "completed", episode.trace.error
    assert episode.decisions == [0, 2]
    assert len(episode.trace.model_calls) == 3
    late = await episode.fork(2, Sampling())
    assert late.model_calls[:2] == episode.trace.model_calls[:2]
    early = await episode.fork(0, Sampling())
    assert len(early.model_calls) == 3
    assert len(model.calls) == 3 + 1 + 3
    await episode.close()


class Closing:
    """A world that counts how many of its copies are open."""

    opened = 0

    def __init__(self) -> None:
        Closing.opened += 1

    def clone(self) -> "Closing":
        return Closing()

    async def close(self) -> None:
        Closing.opened -= 1


async def test_every_copy_of_a_world_is_closed() -> None:
    async def world(scenario: Scenario) -> Closing:
        return Closing()

    episode = await CustomGraph(fan, "fan", world=world).play_forkable(
        own(), Counting(calls=[]), Sampling()
    )
    assert Closing.opened == len(episode.decisions)
    await episode.fork(episode.decisions[-1], Sampling())
    assert Closing.opened == len(episode.decisions)
    await episode.close()
    assert Closing.opened == 0


async def test_copies_are_closed_where_an_episode_comes_to_nothing() -> None:
    reached = asyncio.Event()

    async def hang(state: Numbers) -> dict[str, Any]:
        reached.set()
        await asyncio.sleep(60)
        return {}

    def graph(model: Any, world: Any) -> Any:
        async def first(state: Numbers) -> dict[str, Any]:
            await model.ainvoke("hi")
            return {}

        builder = StateGraph(Numbers)
        builder.add_node("first", first)
        builder.add_node("hang", hang)
        builder.add_edge(START, "first")
        builder.add_edge("first", "hang")
        return builder.compile()

    played = CustomGraph(graph, "hangs", world=lambda scenario: Closing())
    running = asyncio.ensure_future(played.play_forkable(own(), Counting(calls=[]), Sampling()))
    await reached.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert Closing.opened == 0


async def test_a_world_that_is_cloned_by_awaiting_is_refused_and_closed() -> None:
    class Slow(Closing):
        async def clone(self) -> "Slow":  # type: ignore[override]  # which is the point
            return Slow()

    with pytest.raises(BadInput, match="`clone` is a plain method"):
        await CustomGraph(fan, "fan", world=lambda scenario: Slow()).play_forkable(
            own(), Counting(calls=[]), Sampling()
        )
    assert Closing.opened == 0


async def test_a_world_that_cannot_be_cloned_is_refused() -> None:
    with pytest.raises(BadInput, match="can be cloned"):
        await CustomGraph(fan, "fan", world=lambda scenario: object()).play_forkable(
            own(), Counting(calls=[]), Sampling()
        )


async def test_a_group_with_forks_has_as_many_episodes_and_closes_what_it_held(
    engine: str, development: list[Scenario]
) -> None:
    policy = connect(engine, "policy")
    config = TrainConfig(group_size=6, forks=4, groups=2, max_tokens=64)

    async def play(scenario: Scenario, sampling: Sampling) -> Trace:
        return await play_episode(scenario, policy, sampling)

    async def play_one(scenario: Scenario, sampling: Sampling) -> Any:
        return await play_forkable(scenario, policy, sampling)

    player = Player(play, play_one, config)
    plan = Plan(step=1, scenarios=(0, 1), group_size=6, temperature=1.0)
    groups = await player.play(plan, development, {}, "policy")
    for group in groups:
        assert len(group) == 6
        whole = {trace.id for trace in group if trace.forked is None}
        forks = [trace.forked for trace in group if trace.forked is not None]
        assert len(whole) == 2
        assert {fork.trace for fork in forks} <= whole
        assert all(fork.calls > 0 for fork in forks)
        assert all(count >= 2 for count in Counter(forks).values())


class Past:
    """An episode that was held, by the surprise of its calls."""

    def __init__(self, *surprise: float) -> None:
        calls = tuple(
            ModelCall(response_id=str(n), prompt_ids=(1,), sampled_ids=(2,), logprobs=(-s,))
            for n, s in enumerate(surprise)
        )
        self.trace, self.decisions = Trace(model_calls=calls), list(range(len(calls)))

    async def fork(self, call: int, sampling: Sampling) -> Trace:
        raise AssertionError("where to fork is chosen before anything is forked")

    async def close(self) -> None: ...


def test_forks_begin_where_the_other_episodes_were_least_sure() -> None:
    first, other = Past(0.0, 0.1, 0.2, 0.1), Past(0.0, 0.3, 4.0, 0.0)
    assert decisions([first, other], 2) == [(first, 2), (first, 2)]
    assert decisions([first, other], 4) == [(first, 2), (other, 2)] * 2
    assert decisions([first, other], 6) == [(first, 2), (other, 2), (first, 1)] * 2
    assert all(call != 0 for _, call in decisions([first, other], 12))
    alone = Past(0.5)
    assert decisions([alone], 2) == [(alone, 0), (alone, 0)]
    assert decisions([Past()], 2) == []


def test_where_to_fork_does_not_depend_on_what_was_done_there() -> None:
    """Luck decides, and the act does not: a rare act (p = 0.2) must not be pushed either way in lucky states. Forked by its own
    surprise it is compared with what the state is worth, while a likely act is compared with the group."""

    def push(choose: Callable[[list[Past]], list[tuple[int, int]]], rng: random.Random) -> float:
        total, count = 0.0, 0
        for _ in range(3000):
            acts = [rng.random() < 0.2 for _ in range(4)]
            luck = [float(rng.random() < 0.5) for _ in range(4)]
            pasts = [Past(0.0, 1.6 if rare else 0.2) for rare in acts]
            traces = [past.trace.model_copy(update={"id": str(n)}) for n, past in enumerate(pasts)]
            values: list[float | None] = list(luck)
            for place, call in choose(pasts):
                traces.append(
                    traces[place].model_copy(
                        update={
                            "id": f"f{len(traces)}",
                            "forked": Forked(trace=str(place), calls=call),
                        }
                    )
                )
                values.append(luck[place])
            group = Graded(traces=traces, values=values, by_node={})
            chosen = {
                s.trajectory.trace_id: s
                for s in samples(group, "trajectory", centred, {"default": ()})["default"]
            }
            for place, rare in enumerate(acts):
                if luck[place]:
                    total += chosen[str(place)].advantages[1] * ((1 - 0.2) if rare else -0.2)
                    count += 1
        return total / count

    def ours(pasts: list[Past]) -> list[tuple[int, int]]:
        return [(pasts.index(past), call) for past, call in decisions(pasts, 2)]  # type: ignore[arg-type]

    def own(pasts: list[Past]) -> list[tuple[int, int]]:
        place = max(range(4), key=lambda n: -pasts[n].trace.model_calls[1].logprobs[0])
        return [(place, 1), (place, 1)]

    assert abs(push(ours, random.Random(0))) < 0.008
    assert push(own, random.Random(0)) < -0.015


async def test_a_scenario_that_comes_twice_in_a_step_is_played_otherwise(
    development: list[Scenario],
) -> None:
    seeds: list[int] = []

    async def play(scenario: Scenario, sampling: Sampling) -> Trace:
        seeds.append(sampling.seed)
        return Trace(scenario=scenario)

    player = Player(play, None, TrainConfig(group_size=4))
    await player.play(
        Plan(step=1, scenarios=(0, 1, 0), group_size=4, temperature=1.0), development, {}, "v"
    )
    assert len(set(seeds)) == 12
