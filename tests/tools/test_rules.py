"""One row of the rules is told, enforced, verified and tried out; a changed row changes all four."""

from pathlib import Path

import pytest

from stateset_agents.cli import app
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.rules import Rule, Signature, broken, problems, replaced, rules_text
from stateset_agents.tools.scenarios.near_misses import near_misses
from stateset_agents.tools.shop.arrange import arrange
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.money import show
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS, shop_rules
from stateset_agents.trace import ToolCall

WINDOW = next(rule for rule in shop_rules() if rule.id == "return-window")
STRICTER = WINDOW.model_copy(update={"limits": {"days": 14}, "version": 2})


def delivered(rule: Rule, days: int) -> tuple[Executor, Session, dict[str, str]]:
    """A line that was delivered `days` ago, in a shop under one version of the window."""
    shop = generate(1, "train").clone()
    order = shop.the("SELECT order_id AS id, customer_id FROM lines JOIN orders ON id = order_id")
    arrange(shop, order["id"], {"status": "delivered", "days": days})
    executor = Executor(shop, ALL_TOOLS, replaced(shop_rules(), [rule]))
    line = {"order_id": order["id"], "line": "L1"}
    return executor, Session(customer=order["customer_id"]), line


def eligible(rule: Rule, days: int) -> bool:
    """What the shop tells a customer under one version of the window."""
    executor, session, line = delivered(rule, days)
    row = executor.propose(session, "check_return_eligibility", line).result
    problem = executor.propose(session, "policy_lookup", {"topic": "return window"}).result
    assert problem["return-window"] == rule.prompt
    return bool(row["eligible"])


def refund(rule: Rule, days: int) -> ToolCall:
    """A refund of a line that was delivered `days` ago, under one version of the window."""
    executor, session, line = delivered(rule, days)
    paid = executor.shop.the(
        "SELECT paid FROM lines WHERE order_id = ? AND line = 'L1'", line["order_id"]
    )
    arguments = {**line, "amount": show(paid["paid"])}
    outcome = executor.commit(session, "issue_refund", arguments, confirmed=True, key="k")
    assert outcome.status != "proposed"
    return ToolCall(
        id="c",
        name="issue_refund",
        arguments=arguments,
        status=outcome.status,
        result=outcome.result,
        rule=outcome.rule,
        facts={thing: dict(known) for thing, known in outcome.facts.items()},
    )


def test_a_changed_row_changes_what_is_told_enforced_verified_and_tried_out() -> None:
    assert "30 days" in rules_text([WINDOW], ["issue_refund"])
    assert "14 days" in rules_text([STRICTER], ["issue_refund"])

    assert eligible(WINDOW, days=20)
    assert not eligible(STRICTER, days=20)
    assert refund(WINDOW, days=20).status == "done"
    assert refund(STRICTER, days=20).rule == "return-window"

    done = refund(WINDOW, days=20)
    assert broken([WINDOW], [done]) == ()
    assert broken([STRICTER], [done]) == ("return-window",)

    assert {"status": "delivered", "days": 31} in list(near_misses(WINDOW))
    assert {"status": "delivered", "days": 15} in list(near_misses(STRICTER))


def order_rules() -> list[tuple[Rule, dict[str, object]]]:
    return [(rule, situation) for rule in shop_rules() for situation in near_misses(rule)]


def test_most_rules_about_orders_have_complications() -> None:
    assert {rule.id for rule, _ in order_rules()} == {
        "nothing-on-hold", "cancel-before-shipping", "address-before-shipping", "change-before-shipping",
        "return-window", "price-match-window",
    }  # fmt: skip


@pytest.mark.parametrize(("rule", "situation"), order_rules())
def test_the_executor_denies_what_a_complication_arranges(
    rule: Rule, situation: dict[str, object]
) -> None:
    shop: Shop = generate(2, "train").clone()
    order = shop.first("SELECT id, customer_id FROM orders WHERE status = 'pending' ORDER BY id")
    assert order is not None
    arrange(shop, order["id"], situation)
    arguments = {
        "cancel_order": {"order_id": order["id"]},
        "change_shipping_address": {
            "order_id": order["id"],
            "street": "1 Elm Road",
            "zip": "12345",
        },
        "issue_refund": {"order_id": order["id"], "line": "L1", "amount": "1.00"},
    }
    executor, session = Executor(shop, ALL_TOOLS, [rule]), Session(customer=order["customer_id"])
    for name in set(rule.applies_to) & set(arguments):
        outcome = executor.propose(session, name, arguments[name])
        assert outcome.rule == rule.id


GOOD = """
- id: one
  version: 1
  applies_to: [cancel_order]
  unless: order.status == "pending" and order.days <= limit.days
  limits: {days: 3}
  code: too_late
  help: tell the status
  text: Within {days} days.
"""


ONLY = {"cancel_order": Signature(arguments=frozenset({"order_id"}), quoted=False, writes=True)}


def test_a_good_file_has_no_problems() -> None:
    assert problems(GOOD, tools=ONLY) == []


@pytest.mark.parametrize(
    ("change", "line", "expected"),
    [
        (("order.status", "order.colour"), 5, "order.colour"),
        (("order.status", "weather.today"), 5, "weather.today"),
        (("limit.days", "limit.weeks"), 5, "limit.weeks"),
        (('"pending"', "shop(3)"), 5, "comparisons"),
        (("== ", "=== "), 5, "condition"),
        (("{days} days.", "{weeks} weeks."), 9, "weeks"),
        (("version: 1", "version: soon"), 3, "version"),
        (("[cancel_order]", "[cancel_ordr]"), 4, "cancel_ordr"),
        (("order.days", "call.reason"), 5, "call.reason"),
        (("order.days", "quote.amount"), 5, "quote.amount"),
        (("order.days", "product.price"), 5, "product.price"),
        (("  code: too_late\n", ""), 2, "code"),
        (("  help:", "\thelp:"), 8, "YAML"),
    ],
)
def test_a_problem_is_named_with_its_line(
    change: tuple[str, str], line: int, expected: str
) -> None:
    ((row, problem), *_) = problems(GOOD.replace(*change), tools=ONLY)
    assert row == line
    assert expected in problem


def test_two_rules_of_one_name_are_refused() -> None:
    ((line, problem),) = problems(GOOD + GOOD.lstrip("\n"), tools=ONLY)
    assert line == 10
    assert "of line 2" in problem


def test_the_command_line_checks_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(GOOD.replace("cancel_order", "sing"))
    with pytest.raises(SystemExit) as ended:
        app(["rules", "check", str(file)])
    assert ended.value.code == 2
    assert f"{file}:4: applies_to" in capsys.readouterr().out
    file.write_text(GOOD)
    with pytest.raises(SystemExit) as ended:
        app(["rules", "check", str(file)])
    assert ended.value.code == 0
