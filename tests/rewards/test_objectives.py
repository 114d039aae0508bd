"""Business objectives: what they count, how several become one, KPIs and the front of several policies."""

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stateset_agents.cli import app
from stateset_agents.errors import BadInput
from stateset_agents.graphs.mixed_quality import Mixed, mixed
from stateset_agents.graphs.rollout import play_episode
from stateset_agents.jobs.registry import find_reward
from stateset_agents.nodes.oracle import Oracle
from stateset_agents.reporting.kpi import Point, Tally, bucket, front, point
from stateset_agents.reward import EachTrace, Score
from stateset_agents.rewards.attacks import SITUATIONS
from stateset_agents.rewards.calibration import auc, calibrate
from stateset_agents.rewards.helpfulness import HelpfulnessReward
from stateset_agents.rewards.objectives import (
    OBJECTIVES,
    PRESETS,
    FairnessReward,
    ObjectivesReward,
    parse_objectives,
)
from stateset_agents.scenario import Change, Goal, Scenario
from stateset_agents.tools.scenarios.generator import ALL_INTENTS, scenarios
from stateset_agents.tools.shop.accounting import books_of
from stateset_agents.tools.shop.generate import generate
from stateset_agents.trace import Feedback, Sampling, Trace
from stateset_agents.traces.store import TraceStore


def trace(**books: float) -> Trace:
    return Trace(messages=({"role": "user", "content": "hi"},), books={"orders": 0.0, **books})


def test_the_books_of_a_run_are_what_happened_in_the_shop() -> None:
    async def played() -> dict[str, Trace]:
        result: dict[str, Trace] = {}
        every = scenarios(seed=3, split="train", intents=ALL_INTENTS)
        holds = scenarios(seed=3, split="train", intents=("fraud_hold",))
        for scenario in (*itertools.islice(every, 80), *itertools.islice(holds, 40)):
            variant = await play_episode(scenario, Oracle(plan=scenario.plan), Sampling())
            if variant.changes:
                result.setdefault(scenario.intent, variant)
        return result

    traces = asyncio.run(played())
    refund = traces["refund"]
    paid = sum(c.value for c in refund.changes if (c.table, c.column) == ("payments", "amount"))  # type: ignore[misc]
    assert refund.books["refunded"] == paid > 0
    assert refund.books["leaked"] == 0
    assert OBJECTIVES["gross_margin"].of(refund) == -paid
    sold = traces["cross_sell"]
    assert sold.books["orders"] == 1
    assert sold.books["revenue"] > sold.books["cost_of_goods"] > 0
    assert OBJECTIVES["conversion"].of(sold) == 1.0
    assert OBJECTIVES["order_value"].of(sold) == sold.books["revenue"]
    assert sold.segment["tier"] in ("standard", "gold")
    handed = traces["escalation"]
    assert (OBJECTIVES["first_contact"].of(handed), OBJECTIVES["csat"].of(handed)) == (0.0, 1.0)
    hold = traces["fraud_hold"]
    assert (hold.books["held"], hold.books["held_wrongly"], hold.books["fraud_missed"]) == (1, 0, 0)
    missed = hold.model_copy(update={"books": {**hold.books, "fraud_missed": 1.0}})
    assert OBJECTIVES["fraud"].of(missed) == -5.0


def test_a_refund_that_was_not_owed_leaks() -> None:
    assert OBJECTIVES["refund_leakage"].of(trace(refunded=4550, leaked=1000)) == -1000


def cells(table: str, key: str, **columns: Any) -> list[Change]:
    return [
        Change(table=table, key=key, column=name, value=value) for name, value in columns.items()
    ]


def test_what_is_no_sale_is_not_booked_as_one() -> None:
    shop = generate(1, "train").clone()
    sku = str(shop.all("SELECT sku FROM products LIMIT 1")[0]["sku"])
    line = cells("lines", "N1/L1", order_id="N1", sku=sku, quantity=1, paid=9000)
    kept = [*cells("orders", "N1", customer_id="C1", status="pending", placed_day=200), *line]
    back = [*cells("orders", "N1", customer_id="C1", status="cancelled", placed_day=200), *line]
    swap = [*kept, *cells("returns", "R1", resolution="exchange")]
    no_goal, owed = (
        Scenario(id="x"),
        Scenario(
            id="y",
            goal=Goal(
                changes=tuple(
                    cells("payments", "P1", order_id="W1", line="L1", kind="refund", amount=5000)
                )
            ),
        ),
    )
    assert [books_of(shop, no_goal, variant)["revenue"] for variant in (kept, back, swap)] == [
        9000,
        0,
        0,
    ]
    assert [books_of(shop, no_goal, variant)["orders"] for variant in (kept, back, swap)] == [
        1,
        0,
        0,
    ]
    wrong = cells("payments", "P9", order_id="W2", line="L1", kind="refund", amount=5000)
    assert books_of(shop, owed, wrong)["leaked"] == 5000  # as much as was owed, to somebody else
    assert "leaked" not in books_of(shop, no_goal, wrong)
    question = cells("tickets", "T1", kind="question", reason="?")
    assert books_of(shop, no_goal, question)["escalations"] == 0
    shop.close()


async def test_a_broken_limit_is_below_everything_that_keeps_it() -> None:
    group = [
        *(trace(revenue=5000.0 - n, leaked=0.0) for n in range(7)),
        trace(revenue=60_000.0, leaked=1.0),
    ]
    for how in ("sum", "gdpo", "lexicographic"):
        reward = ObjectivesReward({"revenue": 1.0}, how=how, limits={"refund_leakage": 0.0})
        *clean, leaks = await values(reward, *group)
        assert leaks is not None
        assert all(value is not None and value - leaks >= 1 for value in clean)


def test_intervals_do_not_lose_what_is_small_and_are_wide_for_few() -> None:
    tally = Tally(["revenue"])
    for number in range(100):
        tally.add("a", trace(revenue=1e9 + number % 2))
    wide = tally.kpi("a", "revenue").ci95
    assert wide is not None
    assert 0.15 < wide[1] - wide[0] < 0.25
    for value in (1.0, 2.0):
        tally.add("b", trace(revenue=value))
    few = tally.kpi("b", "revenue").ci95
    assert few is not None
    assert few[1] - few[0] > 12


async def test_equal_scores_are_in_one_bin() -> None:
    class Same(EachTrace):
        name = "same"

        def score(self, trace: Trace) -> Score | None:
            return Score(value=0.5)

    good, bad = SITUATIONS[0].honest, SITUATIONS[0].trace("", acts=False)
    result = await calibrate(Same(), [good, bad] * 5)
    assert result.reliability == ((0.5, 0.5, 10),)


def test_what_the_customer_said_goes_before_the_proxy() -> None:
    feedback = trace().model_copy(
        update={"feedback": (Feedback(key="csat", value=2.0), Feedback(key="resolved", value=1))}
    )
    assert OBJECTIVES["csat"].of(feedback) == 0.25
    assert OBJECTIVES["first_contact"].of(feedback) == 1.0
    assert OBJECTIVES["csat"].of(trace()) is None


async def values(reward: Any, *traces: Trace) -> list[float | None]:
    return [None if score is None else round(score.value, 6) for score in await reward(traces)]


async def test_a_weighted_sum_and_a_limit() -> None:
    reward = ObjectivesReward({"revenue": 2.0, "discount": 1.0})
    assert await values(reward, trace(revenue=5000.0, discounted=2500.0)) == [0.5]
    limited = ObjectivesReward({"revenue": 2.0}, limits={"refund_leakage": 0.0})
    assert await values(
        limited, trace(revenue=5000.0, leaked=0.0), trace(revenue=5000.0, leaked=100.0)
    ) == [1.0, 0.0]


async def test_nothing_to_read_is_none_and_not_zero() -> None:
    assert await values(ObjectivesReward({"revenue": 1.0, "csat": 1.0}), trace(revenue=1.0)) == [
        None
    ]
    assert await values(ObjectivesReward({"revenue": 1.0}), Trace(status="failed")) == [None]


async def test_lexicographic_looks_at_the_second_only_where_the_first_ties() -> None:
    reward = ObjectivesReward(("conversion", "revenue"), how="lexicographic")
    group = [trace(orders=1, revenue=1.0), trace(orders=0, revenue=9.0), trace(orders=1, revenue=2.0), trace(orders=0, revenue=9.0)]  # fmt: skip
    assert await values(reward, *group) == [0.5, 0.0, 1.0, 0.0]


async def test_gdpo_does_not_let_one_objective_drown_another() -> None:
    """(1, 0) and (0, 1) stay apart from each other's rank, whatever the units: a plain sum hears only the louder."""
    group = [
        trace(orders=1, revenue=0.0),
        trace(orders=0, revenue=90_000.0),
        trace(orders=0, revenue=0.0),
    ]
    plain = ObjectivesReward({"conversion": 1.0, "revenue": 1.0})
    apart = ObjectivesReward({"conversion": 1.0, "revenue": 1.0}, how="gdpo")
    variant, other, none = await values(plain, *group)
    assert other is not None and variant is not None and other > 8 * variant  # noqa: PT018
    variant, other, none = await values(apart, *group)
    assert variant == other
    assert none is not None
    assert variant is not None
    assert none < variant


async def test_fairness_compares_groups() -> None:
    def offered(tier: str, discounted: float) -> Trace:
        return trace(discounted=discounted).model_copy(update={"segment": {"tier": tier}})

    same = await values(FairnessReward(), offered("gold", 500), offered("standard", 500))
    apart = await values(FairnessReward(), offered("gold", 1000), offered("standard", 0))
    assert same == [0.0, 0.0]
    assert apart == [-0.1, -0.1]
    assert await values(FairnessReward(), trace()) == [None]


@pytest.mark.parametrize(
    "wrong",
    [
        "objectives:",
        "objectives:profit=1",
        "objectives:csat=much",
        "objectives:csat=-1",
        "objectives:csat=nan",
    ],
)
def test_what_is_no_objective_is_refused(wrong: str) -> None:
    with pytest.raises(BadInput, match=r"objectives|positive weight"):
        find_reward(wrong)


def test_presets_and_names() -> None:
    assert parse_objectives("objectives:lexicographic:csat,gross_margin").how == "lexicographic"
    assert parse_objectives("objectives:gdpo:sales").weights == PRESETS["sales"]
    for preset in PRESETS:
        assert find_reward(f"objectives:{preset}").name == "composite"


def test_a_tally_has_means_intervals_and_the_difference_of_a_test() -> None:
    rng = random.Random(0)
    tally = Tally(["revenue"])
    for number in range(4000):
        thread = f"t{number}"
        group = bucket(thread, "greeting")
        assert group == bucket(thread, "greeting")
        tally.add(group, trace(revenue=rng.gauss(100.0 + 10 * (group == "B"), 20.0)))
    assert 0.45 < tally.count("B") / 4000 < 0.55
    kpi = tally.kpi("A", "revenue")
    assert kpi.ci95 is not None
    assert kpi.ci95[0] < 100 < kpi.ci95[1]
    result = tally.difference("revenue")
    assert result is not None
    assert result[1][0] < 10 < result[1][1]
    assert result[1][0] > 5
    split = [bucket(f"t{n}", "greeting") == bucket(f"t{n}", "other") for n in range(2000)]
    assert 0.45 < sum(split) / 2000 < 0.55  # tests do not know of each other


def test_the_front() -> None:
    points = [Point(name=n, means=m, reaches=(0.0, 0.0)) for n, m in (("a", (1.0, 0.0)), ("b", (0.5, 0.5)), ("c", (0.4, 0.4)))]  # fmt: skip
    assert [variant.dominated for variant in front(points)] == [False, False, True]
    with pytest.raises(ValueError, match="found none in x"):
        point("x", [trace()], ["csat", "revenue"])


async def test_helpfulness_tells_verified_successes_from_failures(episodes: list[Mixed]) -> None:
    """No goal is read."""
    result = await calibrate(HelpfulnessReward(), [variant.trace for variant in episodes])
    kinds = {variant.kind for variant in episodes}
    assert {"right", "wrong fact", "word salad", "skips verification", "wrong amount"} <= kinds
    assert (result.traces, result.unscored) == (1000, 0)
    assert 300 < result.successes < 700
    assert result.auc is not None
    assert result.auc >= 0.95
    assert result.accuracy is not None
    assert result.accuracy >= 0.9 > result.majority
    assert result.position_bias is not None
    assert abs(result.position_bias) < 0.1


def test_auc_is_the_chance_of_the_right_order() -> None:
    assert auc([1.0, 1.0], [0.0]) == 1.0
    assert auc([0.0], [1.0, 1.0]) == 0.0
    assert auc([0.5], [0.5]) == 0.5
    assert auc([], [0.5]) is None


def test_the_commands(tmp_path: Path) -> None:
    async def fill(store: TraceStore, seed: int) -> None:
        some = list(itertools.islice(scenarios(seed=seed, split="train", intents=ALL_INTENTS), 34))
        async for variant in mixed(some, seed=seed):
            await store.append(variant.trace, phase="after")

    runs = []
    for seed in (1, 2):
        run = tmp_path / f"run{seed}"
        run.mkdir()
        with TraceStore(run / "traces.db") as store:
            asyncio.run(fill(store, seed))
        runs.append(str(run))

    def output(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(
            app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=True
        )
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    assert "csat" in output("traces", "kpi", runs[0], "--by", "intent")
    assert "B - A" in output("traces", "kpi", runs[0], "--ab", "greeting", "--objective", "csat")
    assert "AUC" in output("rewards", "calibrate", "helpfulness", runs[0], "--against", "outcome")
    assert "34 scored" in output("rewards", "grade", "helpfulness", runs[0], "--write")
    with TraceStore(Path(runs[0]) / "traces.db") as store:
        assert all(row["reward"] is not None for row in store.newest(limit=50))
    assert "none of" in output("rewards", "audit", "shop")
    assert "gamed" in output("rewards", "audit", "safety", code=2)
    assert "no problems" in output("rewards", "check", "shop")
    page = tmp_path / "front.html"
    assert "on the front" in output(
        "rewards",
        "pareto",
        *runs,
        "--objective",
        "csat",
        "--objective",
        "gross_margin",
        "--out",
        str(page),
    )
    assert "<svg" in page.read_text()
    refused = CliRunner().invoke(app, ["traces", "kpi", runs[0], "--objective", "profit"])
    assert isinstance(refused.exception, BadInput)
