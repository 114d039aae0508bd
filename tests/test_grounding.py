"""Numbers are numbers and dates are dates, however a language writes them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateset_agents.grounding import says, specifics, unsupported
from stateset_agents.rewards.helpfulness import HelpfulnessReward
from stateset_agents.scenario import Fact
from stateset_agents.trace import ToolCall, Trace


@pytest.mark.parametrize(
    "text",
    [
        "Your total is $3,646.68.", "Total: 3646.68", "USD3646.68 in all", "3,646.68 US$",
        "Ihre Summe ist 3.646,68 €.", "3646,68 Euro", "3'646.68 CHF",
        "El total es 3.646,68 €", "El total es 3 646,68 euros", "Le total est de 3\u202f646,68\u00a0€.",
        "O total é R$ 3.646,68.", "R$3646,68",
    ],
)  # fmt: skip
def test_an_amount_is_found_in_every_way_of_writing(text: str) -> None:
    fact = Fact(name="total", any_of=("3646.68",))
    assert fact.said_in(text)
    for wrong in ("3646.69", "646.68", "13646.68", "3646.6", "3646"):
        assert not says(text, wrong)


def written(cents: int) -> dict[str, str]:
    whole, rest = divmod(cents, 100)
    english = f"{whole:,}.{rest:02}"
    swapped = english.replace(",", "x").replace(".", ",")
    return {
        "en": f"${english}",
        "de": f"{swapped.replace('x', '.')} €",
        "es": f"{swapped.replace('x', '.')} €",
        "fr": f"{swapped.replace('x', chr(0x202F))} €",
        "pt": f"R$ {swapped.replace('x', '.')}",
    }


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_two_amounts_are_the_same_only_if_they_are(first: int, other: int) -> None:
    plain = str(Decimal(first) / 100)
    for text in written(first).values():
        assert says(f"In all {text}.", plain)
    for text in written(other).values():
        assert says(f"In all {text}.", plain) == (first == other)


@pytest.mark.parametrize(
    "text",
    [
        "on 2026-05-03T10:00:00Z", "am 3. Mai 2026", "on May 3rd, 2026", "el 3 de mayo de 2026",
        "le 3 mai 2026", "a 3 de maio de 2026", "03.05.2026", "03/05/2026", "3 May 2026",
    ],
)  # fmt: skip
def test_a_date_is_found_in_every_way_of_writing(text: str) -> None:
    assert says(text, "3 May 2026")
    assert says(text, "2026-05-03")
    assert says(text, "3 May")
    assert not says(text, "4 May 2026")
    assert not says(text, "3 May 2025")


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("It costs 45.5", "45.50", True),
        ("It costs 45", "45.00", True),
        ("It costs 45,- €", "45.00", True),
        ("It costs 145.50", "45.50", False),
        ("Version 1.2.3", "1.2", False),
        ("Rooms 10,20,30", "20", True),
        ("Zip 01234", "1234", False),
        ("1.234 Stück", "1,234", True),
        ("Order W20417", "20417", False),
        ("12 Birch Road, Leeds", "12 birch road leeds", True),
        ("pip install foo@1.2.3", "1.2.3", True),
    ],
)
def test_what_is_a_number_and_what_is_not(text: str, phrase: str, expected: bool) -> None:
    assert says(text, phrase) == expected


@pytest.mark.parametrize("total", ["3646.68", 3646.68, {"amount": "3646.68", "currency": "USD"}])
@pytest.mark.parametrize("reply", written(364668).values())
def test_a_right_total_is_not_called_invented(total: object, reply: str) -> None:
    call = ToolCall(id="1", name="get_order", arguments={}, status="done", result={"total": total})
    question = {"role": "user", "content": "What is the total?"}
    for shown, value in ((reply, 0.8), (reply.replace("8", "9"), 0.0)):
        answer = {"role": "assistant", "content": f"It is {shown}."}
        score = HelpfulnessReward().score(Trace(messages=(question, answer), tool_calls=(call,)))
        assert score is not None
        assert score.value == value, score.reason


def test_a_whole_amount_needs_an_amount_and_no_other_number() -> None:
    def wrong(reply: str, tool: str) -> list[str]:
        return unsupported(reply, customer=[], tools=[tool], acted=False)

    assert not wrong("You pay $30.", '{"total": 30}')
    assert not wrong("You pay 30 €.", '{"total": "30.00"}')
    assert wrong("You pay $30.", '{"text": "within 30 days"}') == ["30.00"]
    assert specifics("12.5") == {"12.50"}
