"""Rewards order what agents do as a shop would, and say nothing about what they cannot score."""

from typing import Any

import pytest

from stateset_agents.reward import Score
from stateset_agents.rewards.composite import CompositeReward, shop_reward
from stateset_agents.rewards.helpfulness import HelpfulnessReward
from stateset_agents.rewards.safety import SafetyReward
from stateset_agents.scenario import Change, Fact, Goal, Scenario
from stateset_agents.trace import ToolCall, Trace

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
    return ToolCall(id=name, name=name, arguments={}, status=status, result=result, rule=rule)


LOOKED = call("get_order", {"status": "delivered", "lines": ["L1 oak lamp"]})
QUOTED = call("check_return_eligibility", {"eligible": True, "amount": "45.50"})
TOO_LATE = call("check_return_eligibility", {"eligible": False, "reason": "delivered 54 days ago"})
REFUNDED = call("issue_refund", {"refunded": "45.50"})
UNCONFIRMED = call(
    "issue_refund", {"error": "not_confirmed"}, status="denied", rule="confirm-writes"
)


def probe(said: str, *calls: ToolCall, scenario: Scenario = SCENARIO) -> Trace:
    messages = (
        {"role": "user", "content": "I want a refund for the oak lamp, order W20417."},
        {"role": "assistant", "content": said},
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


def seed_reward() -> CompositeReward:
    return CompositeReward([HelpfulnessReward(0.7), SafetyReward(0.3)])


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
    once, often = await values(HelpfulnessReward(), SALAD, probe(" ".join([SALAD.said] * 20)))
    assert once == often == 0.1


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
