"""Rewards order what agents do as a shop would, and say nothing about what they cannot score."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.jobs.registry import find_reward
from stateset_agents.reward import Declaration, EachTrace, Reward, Score
from stateset_agents.rewards.audit import audit
from stateset_agents.rewards.cache import CachedReward
from stateset_agents.rewards.composite import (
    CompositeReward,
    GatedReward,
    objectives_reward,
    seed_reward,
    shop_reward,
)
from stateset_agents.rewards.conformance import problems
from stateset_agents.rewards.disclosure import DisclosureReward
from stateset_agents.rewards.effort import EffortReward, LatencyReward
from stateset_agents.rewards.helpfulness import HelpfulnessReward
from stateset_agents.rewards.language import LanguageReward
from stateset_agents.rewards.manner import MannerReward
from stateset_agents.rewards.objectives import ObjectivesReward
from stateset_agents.rewards.outcome import OutcomeReward
from stateset_agents.rewards.rules import DisciplineReward, RulesReward
from stateset_agents.rewards.safety import SafetyReward
from stateset_agents.scenario import Change, Fact, Goal, Scenario
from stateset_agents.trace import ModelCall, ToolCall, Trace
from tests import ROOT

REFUND = Change(table="lines", key="W20417/L1", column="refunded", value=4550)
SCENARIO = Scenario(
    id="probe",
    goal=Goal(changes=(REFUND,), facts=(Fact(name="amount", any_of=("45.50",)),)),
)
LATE = Scenario(
    id="late", goal=Goal(facts=(Fact(name="reason", any_of=("delivered 54 days ago",)),))
)


def call(
    name: str, result: dict[str, Any], *, status: Any = "done", rule: str | None = None
) -> ToolCall:
    return ToolCall(
        id=name,
        name=name,
        arguments={"order_id": "W20417"},
        status=status,
        result=result,
        rule=rule,
    )


LOOKED = call("get_order", {"status": "delivered", "lines": ["L1 oak lamp"]})
QUOTED = call("check_return_eligibility", {"eligible": True, "amount": "45.50"})
TOO_LATE = call("check_return_eligibility", {"eligible": False, "reason": "delivered 54 days ago"})
REFUNDED = call("issue_refund", {"refunded": "45.50"})
UNCONFIRMED = call(
    "issue_refund", {"error": "not_confirmed"}, status="denied", rule="confirm-writes"
)


def probe(reply: str, *calls: ToolCall, scenario: Scenario = SCENARIO) -> Trace:
    messages = (
        {"role": "user", "content": "I want a refund for the oak lamp, order W20417."},
        {"role": "assistant", "content": reply},
    )
    changes = (REFUND,) if REFUNDED in calls else ()
    return Trace(scenario=scenario, messages=messages, tool_calls=calls, changes=changes)


RIGHT = probe("Done, 45.50 is refunded to you.", LOOKED, QUOTED, REFUNDED)
REFUSAL = probe(
    "I am sorry, I cannot refund it, it was delivered 54 days ago.", LOOKED, TOO_LATE, scenario=LATE
)
SALAD = probe(
    "I am happy to help! Great question, thank you for your patience. I understand completely and "
    "your satisfaction is important. Absolutely, certainly, of course, resolved, solution, help."
)
OFFER = probe("Of course, and you get a 50% discount voucher for life, free!", LOOKED, QUOTED)
LEAK = probe("Your card 4111 1111 1111 1111 is charged back.", LOOKED, QUOTED)
UNASKED = probe("Done, 45.50 is refunded to you.", LOOKED, QUOTED, UNCONFIRMED)


async def values(reward: Any, *traces: Trace) -> list[float]:
    scores: list[Score | None] = await reward(traces)
    assert all(score is not None for score in scores)
    return [score.value for score in scores if score is not None]


async def test_the_probe_table_is_in_order() -> None:
    right, refusal, salad, offer, leak, unasked = await values(
        seed_reward(), RIGHT, REFUSAL, SALAD, OFFER, LEAK, UNASKED
    )
    assert right > refusal > salad > max(offer, leak, unasked)
    assert max(offer, leak, unasked) <= 0.05


async def test_the_shops_own_reward_agrees() -> None:
    right, refusal, salad, offer, leak, unasked = await values(
        shop_reward(), RIGHT, REFUSAL, SALAD, OFFER, LEAK, UNASKED
    )
    assert min(right, refusal) > max(salad, offer, leak, unasked)
    assert unasked == min(right, refusal, salad, offer, leak, unasked)


async def test_length_and_politeness_earn_nothing() -> None:
    once, often = await values(HelpfulnessReward(), SALAD, probe(" ".join([SALAD.agent_text] * 20)))
    assert often <= once == 0.1


@pytest.mark.parametrize(
    "reward", [seed_reward(), shop_reward(), HelpfulnessReward(), SafetyReward()]
)
async def test_a_failed_run_is_not_a_zero(reward: Any) -> None:
    assert await reward([RIGHT.model_copy(update={"status": "failed"})]) == [None]


async def test_a_run_that_never_ends_is_worth_less_than_one_that_does() -> None:
    endless = RIGHT.model_copy(update={"status": "truncated"})
    done, never = await values(shop_reward(), RIGHT, endless)
    assert never < done


async def test_a_part_without_a_score_voids_the_whole() -> None:
    class Silent:
        name = "silent"

        async def __call__(self, traces: Any) -> list[Score | None]:
            return [None for _ in traces]

    assert await CompositeReward({HelpfulnessReward(): 1.0, Silent(): 1.0})([RIGHT]) == [None]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_weights_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="positive weight"):
        HelpfulnessReward(weight)
    with pytest.raises(ValueError, match="positive weight"):
        CompositeReward({SafetyReward(): weight})


def test_a_score_is_a_finite_number() -> None:
    with pytest.raises(ValueError, match="finite"):
        Score(value=float("nan"))


@pytest.mark.parametrize(
    "benign",
    [
        "Your order W20417 has 3 lines and a total of 145.50.",
        "The tracking number is 1234567890123.",
        "It arrives on 14 March between 9 and 12.",
        "You can call us on 0800 123 456.",
    ],
)
async def test_benign_texts_are_safe(benign: str) -> None:
    (score,) = await SafetyReward()([probe(benign)])
    assert score is not None
    assert score.value == 1.0


OURS: list[Any] = [
    OutcomeReward(), RulesReward(), DisciplineReward(), DisclosureReward(), EffortReward(), LatencyReward(),
    LanguageReward(), MannerReward(), HelpfulnessReward(), SafetyReward(), seed_reward(), shop_reward(),
    objectives_reward(ObjectivesReward({"csat": 0.6, "gross_margin": 0.4})),
    ObjectivesReward({"csat": 1.0, "gross_margin": 1.0}, how="gdpo"),
    ObjectivesReward(("csat", "gross_margin"), how="lexicographic"),
    GatedReward(HelpfulnessReward(), {OutcomeReward(): 1.0, RulesReward(): 0.0}),
    CompositeReward({HelpfulnessReward(): 1.0, SafetyReward(): 2.0}, how="product"),
    CompositeReward({HelpfulnessReward(): 1.0, SafetyReward(): 1.0}, how="min", missing="skip"),
]  # fmt: skip


@pytest.mark.parametrize("reward", OURS, ids=lambda reward: reward.name)
async def test_every_reward_keeps_the_protocol(reward: Any, tmp_path: Path) -> None:
    assert await problems(reward) == []
    cached = CachedReward(reward, tmp_path / "scores.db")
    assert await problems(cached) == []
    cached.close()


async def test_a_reward_that_does_not_is_told_what_is_wrong() -> None:
    class Wrong(EachTrace):
        name, declaration = "wrong", Declaration(low=0.0, high=1.0)
        calls = 0

        def score(self, trace: Trace) -> Score | None:
            self.calls += 1
            return Score(value=float(self.calls))

    class Short:
        name = ""

        async def __call__(self, traces: Any) -> list[Score | None]:
            return []

    listed = " ".join(await problems(Wrong()))
    assert "expected 0 to 1" in listed
    assert "the same scores again" in listed
    assert "any order" in listed
    assert "expected a name" in (await problems(Short()))[0]


@pytest.mark.parametrize(
    "reward",
    [
        shop_reward(), seed_reward(), objectives_reward(ObjectivesReward({"csat": 1.0})),
        objectives_reward(ObjectivesReward({"csat": 0.5, "gross_margin": 0.5})),
        RulesReward(), DisciplineReward(), MannerReward(), LanguageReward(),
    ],
)  # fmt: skip
async def test_no_attack_reaches_the_score_of_an_honest_answer(reward: Any) -> None:
    result = await audit(reward)
    assert [row.attack for row in result if row.gamed] == []
    assert len(result) >= 15


async def test_a_reward_that_can_be_talked_into_things_is_caught() -> None:
    class Polite(EachTrace):
        """What rewards elsewhere do: words that sound like service."""

        name = "polite"

        def score(self, trace: Trace) -> Score | None:
            words = ("help", "thank", "refund", "resolved", "happy", "done")
            return Score(value=sum(word in trace.agent_text.lower() for word in words) / len(words))

    gamed = {row.attack for row in await audit(Polite()) if row.gamed}
    assert {"word salad", "polite and long", "leaked card", "right words, no action"} <= gamed


async def test_single_rewards_hold_what_they_claim() -> None:
    words = {"leaked contact", "rude", "threat"}
    helpful = {row.attack for row in await audit(HelpfulnessReward()) if row.gamed}
    assert helpful <= words  # whose business is safety
    safe = {row.attack for row in await audit(SafetyReward()) if row.gamed}
    assert not safe & {
        "leaked card",
        "leaked contact",
        "rude",
        "threat",
        "invented offer",
        "broken rule",
    }


async def test_a_gate_takes_credit_and_never_a_penalty() -> None:
    class Fixed(EachTrace):
        name = "fixed"

        def __init__(self, value: float) -> None:
            self.value = value

        def score(self, trace: Trace) -> Score | None:
            return Score(value=self.value)

    def gated(value: float) -> GatedReward:
        return GatedReward(Fixed(value), {OutcomeReward(): 1.0})

    assert await values(gated(0.7), RIGHT, SALAD) == [0.7, 0.0]
    assert await values(gated(-0.7), RIGHT, SALAD) == [-0.7, -0.7]
    no_goal = RIGHT.model_copy(update={"scenario": None})
    assert await gated(0.7)([no_goal]) == [None]
    with pytest.raises(ValueError, match="at least one gate"):
        GatedReward(Fixed(1.0), {})


async def test_ways_to_combine() -> None:
    parts: dict[Reward, float] = {HelpfulnessReward(): 1.0, SafetyReward(): 1.0}
    (least,) = await values(CompositeReward(parts, how="min"), SALAD)
    (times,) = await values(CompositeReward(parts, how="product"), SALAD)
    assert least == times == 0.1
    late: dict[Reward, float] = {
        HelpfulnessReward(): 1.0,
        LatencyReward(): 3.0,
    }  # nothing was timed
    assert await CompositeReward(late)([RIGHT]) == [None]
    assert await values(CompositeReward(late, missing="skip"), RIGHT) == [4.0]


def timed(*seconds: float) -> Trace:
    calls = tuple(ModelCall(response_id=str(n), seconds=s) for n, s in enumerate(seconds))
    return RIGHT.model_copy(update={"model_calls": calls})


async def test_what_takes_away() -> None:
    (late,) = await values(LatencyReward(2.0), timed(1.0, 3.0, 2.0, 9.0))
    assert late == -0.5
    (effort,) = await values(EffortReward(10, tools=6), timed(*[0.1] * 5))
    assert effort == pytest.approx(-(0.5 + 0.5) / 2)
    (undisciplined,) = await values(DisciplineReward(), UNASKED)
    assert undisciplined == pytest.approx(-1 / 3)
    with pytest.raises(ValueError, match="SLA"):
        LatencyReward(0)


async def test_the_language_of_the_customer_is_answered_in() -> None:
    def talk(question: str, reply: str) -> Trace:
        return Trace(
            messages=(
                {"role": "user", "content": question},
                {"role": "assistant", "content": reply},
            )
        )

    german = "Guten Tag, wo bleibt mein Paket? Ich warte seit einer Woche darauf."
    right = "Ihr Paket ist unterwegs und kommt am Dienstag bei Ihnen an."
    wrong = "Your parcel is on its way and will be with you on Tuesday."
    assert await values(LanguageReward(), talk(german, right), talk(german, wrong)) == [0.0, -1.0]
    assert await LanguageReward()([talk("W20417", "OK")]) == [None]


async def test_disclosure_wants_the_facts_and_no_others() -> None:
    assert await values(
        DisclosureReward(), RIGHT, SALAD, probe("You get 99.99 back.", LOOKED, QUOTED)
    ) == [1.0, 0.0, 0.0]
    assert await DisclosureReward()([RIGHT.model_copy(update={"scenario": None})]) == [None]


async def test_odd_messages_are_read_all_the_same() -> None:
    odd = Trace(messages=(
        {"content": "no role"}, {"role": "user", "content": None},
        {"role": "assistant", "content": [{"type": "text", "text": "It is 45.50."}, {"type": "image_url", "image_url": {}}]},
    ), tool_calls=(call("look", {"when": datetime.date(2026, 5, 3), "amount": 45.5}),))  # fmt: skip
    for reward in OURS:
        assert len(await reward([odd])) == 1
    assert (await values(HelpfulnessReward(), odd))[0] > 0.5


async def test_the_audit_in_the_docs_is_what_is_measured() -> None:
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    head = next(line for line in page.splitlines() if line.startswith("| what is tried |"))
    names = [cell.strip(" `") for cell in head.split("|")[2:-1]]
    columns = [await audit(find_reward(name)) for name in names]
    for number, attack in enumerate(columns[0]):
        cells = [
            f"{column[number].best:.2f} of {column[number].honest:.2f}{' (reached)' if column[number].gamed else ''}"
            for column in columns
        ]
        assert f"| {attack.attack} | {' | '.join(cells)} |" in page, attack.attack
