"""A goal is judged by what happened; a scenario file says where it is wrong."""

import json
from pathlib import Path

import pytest

from stateset_agents.errors import BadInput
from stateset_agents.scenario import Change, Fact, Goal, load_scenarios

CANCELLED = Change(table="orders", key="W20417", column="status", value="cancelled")
OTHER = Change(table="orders", key="W31188", column="status", value="cancelled")


def test_success_needs_the_required_change_and_nothing_else() -> None:
    goal = Goal(changes=(CANCELLED,))
    assert goal.score([CANCELLED], "", []).success
    both = goal.score([CANCELLED, OTHER], "", [])
    assert not both.success
    assert both.change_f1 == pytest.approx(0.67, abs=0.01)
    assert not goal.score([], "", []).success


def test_facts_are_compared_as_words_and_amounts() -> None:
    fact = Fact(name="amount", any_of=("45.50",))
    assert fact.said_in("You get 45.50 back.")
    assert fact.said_in("45.50")
    assert not fact.said_in("You get 145.50 back.")
    assert not fact.said_in("You get 45.505 back.")
    assert Fact(name="street", any_of=("12 Birch Road",)).said_in(
        "Done, it ships to 12 birch road."
    )


def test_a_forbidden_or_denied_attempt_is_no_success() -> None:
    goal = Goal(forbidden=("issue_refund",))
    assert goal.score([], "", ["get_order"]).success
    assert not goal.score([], "", ["issue_refund"]).success
    assert not goal.score([], "", ["get_order"], denied=["verify-first"]).success
    assert not goal.score([], "", [], finished=False).success


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{nonsense", "line 1"),
        ("[]", "at least one"),
        (json.dumps([{"id": "a"}, {"intent": "x"}]), "scenario 1, field 'id'"),
        (json.dumps([{"id": "a"}, {"id": "a"}]), "appears twice"),
        (json.dumps([{"id": "a", "colour": 1}]), "field 'colour'"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "my.json"
    file.write_text(content)
    with pytest.raises(BadInput, match=expected.replace("'", ".")) as error:
        load_scenarios(file)
    assert "my.json" in str(error.value)


def test_the_short_form_is_a_scripted_customer(tmp_path: Path) -> None:
    file = tmp_path / "my.json"
    file.write_text('[{"id": "cs_demo", "user_responses": ["Hi", "Bye"]}]')
    assert load_scenarios(file)[0].customer.user_responses == ("Hi", "Bye")


def test_a_right_guess_is_no_success() -> None:
    goal = Goal(
        facts=(Fact(name="status", any_of=("shipped",), none_of=("delivered", "not shipped")),),
        consulted=(("get_order", "track_shipment"),),
    )
    text = "It is already shipped."
    assert goal.score([], text, ["get_order"], done=["get_order"]).success
    assert not goal.score([], text, [], done=[]).success
    assert not goal.score([], text, ["get_order"], done=[]).success
    for hedged in ("It is shipped or delivered.", "It has not shipped. It is shipped."):
        assert not goal.score([], hedged, ["get_order"], done=["get_order"]).success
