"""Credit: what each call is worth, by episode, by node, by turn, and at decisions that were forked."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateset_agents.reward import EachTrace, Score
from stateset_agents.trace import Forked, ModelCall, Trace
from stateset_agents.trainers.algorithms.algorithm import centred
from stateset_agents.trainers.config import DEFAULT_ADAPTER, Credit
from stateset_agents.trainers.credit import Graded, samples
from stateset_agents.trainers.learner import certificate, nothing_to_learn
from stateset_agents.trainers.step_log import StepLog

ALL: dict[str, tuple[str, ...]] = {DEFAULT_ADAPTER: ()}


def trace(name: str, nodes: str, forked: Forked | None = None) -> Trace:
    """A call for each letter, which is its node."""
    calls = tuple(
        ModelCall(
            response_id=f"{name}{n}", node=node, prompt_ids=(1, n), sampled_ids=(2,), logprobs=(-1.0,), turn=n + 1
        )
        for n, node in enumerate(nodes)
    )  # fmt: skip
    return Trace(id=name, model_calls=calls, forked=forked)


def worth(
    traces: Sequence[Trace], values: Sequence[float | None], how: Credit = "trajectory",
    by_node: dict[str, Sequence[float | None]] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Advantages of each trace's own calls, by its id."""
    group = Graded(traces=traces, values=values, by_node=by_node or {})
    return {
        episode.trajectory.trace_id: [round(a, 6) for a in episode.advantages]
        for episode in samples(group, how, centred, ALL)[DEFAULT_ADAPTER]
    }


def test_an_episode_is_compared_as_a_whole() -> None:
    worths = worth([trace("a", "xy"), trace("b", "xxx"), trace("c", "y")], [1.0, 0.0, None])
    assert worths == {"a": [0.5, 0.5], "b": [-0.5] * 3}


def test_the_example_of_the_module() -> None:
    """a b c d -> 0, forked at c twice -> 1: c d pay, the forks earn, and a b are worth 2/3 against another whole episode's 0."""
    traces = [
        trace("one", "abcd"),
        trace("two", "ab"),
        trace("f1", "abcd", Forked(trace="one", calls=2)),
        trace("f2", "abc", Forked(trace="one", calls=2)),
    ]
    worths = worth(traces, [0.0, 0.0, 1.0, 1.0])
    third = round(1 / 3, 6)
    assert worths["f1"] == [third, third]
    assert worths["f2"] == [third]
    assert worths["one"][2:] == pytest.approx([-2 / 3] * 2, abs=1e-5)
    assert worths["one"][:2] == [third, third]
    assert worths["two"] == [-third, -third]


def test_a_flat_comparison_blames_the_beginning_for_what_the_end_did() -> None:
    """The naive way: every continuation is an episode of its own, and its calls get that episode's whole advantage."""
    traces = [
        trace("one", "ab"),
        trace("f1", "ab", Forked(trace="one", calls=1)),
        trace("two", "ab"),
    ]
    values = [0.0, 1.0, 0.5]
    worths = worth(traces, values)
    assert worths["one"][0] == worths["two"][0] == 0.0  # both beginnings lead to 0.5
    naive = centred(values)
    assert naive[0] < 0  # the same beginning, blamed for the end


def test_forks_of_two_decisions_settle_from_the_last_one_back() -> None:
    traces = [
        trace("one", "abc"),
        trace("late", "abc", Forked(trace="one", calls=2)),
        trace("early", "abc", Forked(trace="one", calls=1)),
        trace("two", "a"),
    ]
    worths = worth(traces, [0.0, 1.0, 1.0, 0.25])
    assert worths["one"][2] == -0.5
    assert worths["late"] == [0.5]
    assert worths["one"][1] == -0.25  # worth 0.5 there, against 1
    assert worths["early"] == [0.25, 0.25]
    assert worths["one"][0] == 0.25  # worth 0.75, against 0.25
    assert worths["two"] == [-0.25]


def test_one_episode_and_its_forks_say_nothing_of_its_beginning() -> None:
    traces = [trace("one", "ab"), trace("f", "ab", Forked(trace="one", calls=1))]
    assert worth(traces, [0.0, 1.0]) == {"one": [0.0, -0.5], "f": [0.5]}


def test_each_sampled_call_is_in_one_row_whatever_was_inherited() -> None:
    traces = [
        trace("one", "abcd"),
        trace("f", "abcd", Forked(trace="one", calls=3)),
        trace("g", "ab"),
    ]
    group = Graded(traces=traces, values=[0.0, 1.0, 0.5], by_node={})
    rows = [
        r
        for episode in samples(group, "trajectory", centred, ALL)[DEFAULT_ADAPTER]
        for r in episode.trajectory.rows
    ]
    assert len(rows) == 4 + 1 + 2
    assert [t.tokens_sampled for t in traces] == [4, 1, 2]


async def test_an_episode_that_failed_is_left_out_and_one_that_was_cut_off_is_not() -> None:
    """Failed: the engine died, and the policy could not help it. Naively it is a 0, and who was lucky is paid for that."""
    failed = trace("dead", "xy").model_copy(update={"status": "failed", "error": "the engine died"})
    cut = trace("cut", "xy").model_copy(update={"status": "truncated"})
    traces = [failed, cut, trace("a", "xy"), trace("b", "x")]

    class Length(EachTrace):
        name = "length"

        def score(self, trace: Trace) -> Score:
            return Score(value=float(len(trace.model_calls) == 2 and trace.status == "completed"))

    scores = await Length()(traces)
    assert scores[0] is None
    values = [None if score is None else score.value for score in scores]
    worths = worth(traces, values)
    assert "dead" not in worths
    assert worths["cut"] == [-round(1 / 3, 6)] * 2
    assert worths["a"] == [round(2 / 3, 6)] * 2
    naive = centred([value or 0.0 for value in values])
    assert naive[2] > worths["a"][0]  # paid for another one's crash


def test_a_node_is_compared_with_those_that_reached_it() -> None:
    traces = [trace("a", "xy"), trace("b", "xy"), trace("c", "x")]
    worths = worth(traces, [1.0, 0.0, 0.2], "node")
    assert worths["a"][1] == 0.5
    assert worths["b"][1] == -0.5
    assert worths["c"] == [-0.2]
    mine = worth(traces, [1.0, 0.0, 0.2], "node", {"y": [3.0, 5.0, None]})
    assert mine["a"] == [0.6, -1.0]
    assert mine["b"] == [-0.4, 1.0]


def test_rows_go_to_the_adapter_of_their_node() -> None:
    group = Graded(traces=[trace("a", "xyx"), trace("b", "xy")], values=[1.0, 0.0], by_node={})
    worths = samples(group, "trajectory", centred, {"one": ("x",), "other": ("y",)})
    nodes = {
        name: [[row.node for row in episode.trajectory.rows] for episode in mine]
        for name, mine in worths.items()
    }
    assert nodes == {"one": [["x", "x"], ["x"]], "other": [["y"], ["y"]]}


def bandit(rng: random.Random, go_on: float) -> tuple[bool, float]:
    """Whether to go on, and what it came to: stopping pays 0.4, going on pays 1 or 0 with a chance of one half."""
    goes = rng.random() < go_on
    return goes, float(rng.random() < 0.5) if goes else 0.4


def test_the_baseline_of_a_turn_does_not_depend_on_where_an_episode_stopped() -> None:
    """A stop/continue bandit: going on is worth 0.5 and stopping 0.4, so the first decision's gradient points to going on. Compared
    only with what stopped at the same turn, as verl did (issue 7244), the decision to stop is compared with nothing."""
    rng = random.Random(0)
    ours, naive, chance = 0.0, 0.0, 0.5
    for _ in range(3000):
        episodes = [bandit(rng, chance) for _ in range(8)]
        traces = [trace(str(n), "xx" if goes else "x") for n, (goes, _) in enumerate(episodes)]
        worths = worth(traces, [value for _, value in episodes], "turn")
        for number, (goes, value) in enumerate(episodes):
            score = (1 - chance) if goes else -chance  # d log pi / d logit of the first decision
            ours += score * worths[str(number)][0]
            same = [other for went, other in episodes if went == goes]
            naive += score * (value - math.fsum(same) / len(same))
    exact = 0.25 * 0.1 * 7 / 8  # p (1 - p) (0.5 - 0.4), less the share of itself in its baseline
    assert ours / 24_000 == pytest.approx(exact, rel=0.25)
    assert abs(naive / 24_000) < 1e-9


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.data())
def test_advantages_at_a_decision_sum_to_zero(values: list[float], data: st.DataObject) -> None:
    """Whatever was forked where: those who are compared with each other sum to zero."""
    traces = [trace("t0", "abcd")]
    for number in range(1, len(values)):
        above = data.draw(st.sampled_from(traces))
        least = above.forked.calls if above.forked else 0
        whole = data.draw(st.booleans())
        forked = None
        if not whole and least < 3:
            forked = Forked(trace=above.id, calls=data.draw(st.integers(least + 1, 3)))
        traces.append(trace(f"t{number}", "abcd", forked))
    worths = worth(traces, values)
    decisions: dict[tuple[str, int], list[str]] = {}
    for episode in traces:
        if episode.forked is not None:
            decisions.setdefault((episode.forked.trace, episode.forked.calls), []).append(
                episode.id
            )
    for (above_id, call), forks in decisions.items():
        parent = next(t for t in traces if t.id == above_id)
        first = parent.forked.calls if parent.forked else 0
        total = worths[above_id][call - first] + sum(worths[fork][0] for fork in forks)
        assert total == pytest.approx(0, abs=1e-5)
    roots = [episode for episode in traces if episode.forked is None]
    if len(roots) > 1:
        assert sum(worths[episode.id][0] for episode in roots) == pytest.approx(0, abs=1e-5)


def test_equal_rewards_are_noticed_though_a_kl_term_trains_each_token() -> None:
    line = StepLog(flat_groups=1.0, tokens_trained=900)
    assert nothing_to_learn([line] * 2) is None
    assert "nothing was learned" in str(nothing_to_learn([line] * 3))
    assert nothing_to_learn([line, replace(line, flat_groups=0.5), line]) is None


def test_a_certificate_names_what_was_trained_and_nothing_else() -> None:
    """By agents below an orchestrator too, whose calls are all at a node called `policy`; and with a KL term every call."""
    calls = tuple(
        call.model_copy(update={"node": "policy", "namespace": f"{agent}:1|policy:2"})
        for call, agent in zip(
            trace("a", "xyx").model_calls, ("returns", "risk", "returns"), strict=True
        )
    )
    traces = [Trace(id="a", model_calls=calls), trace("b", "x")]
    group = Graded(traces=traces, values=[1.0, 0.0], by_node={})
    worths = samples(group, "trajectory", centred, {"mine": ("returns",)})["mine"]
    assert [(run, number) for run, number, _ in certificate([traces], worths, every=False)] == [
        ("a", 0),
        ("a", 2),
    ]
    flat = samples(
        Graded(traces=traces, values=[1.0, 1.0], by_node={}), "trajectory", centred, ALL
    )[DEFAULT_ADAPTER]
    assert certificate([traces], flat, every=False) == []
    assert len(certificate([traces], flat, every=True)) == 4
