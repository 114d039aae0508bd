"""Demonstrations like a shop's transcripts: mostly right, with the mistakes that people make.

Each is acted out on the real tools. A flaw changes the plan at one point, and the conversation ends accordingly; nobody
corrects it.
"""

import json
import random
from dataclasses import dataclass
from typing import Any

from stateset_agents.scenario import Act, Scenario
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.scenarios.replies import approves, reply
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.money import show
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import SERVICE_PROMPT, SERVICE_TOOLS

Message = dict[str, Any]

FLAWS: dict[str, dict[str, float]] = {
    "shipping_status": {"skips_verification": 0.18, "vague": 0.28},
    "cancel": {"skips_verification": 0.15, "promise_without_action": 0.28, "ignores_status": 0.28},
    "refund": {"promise_without_action": 0.28, "wrong_line": 0.22, "skips_quote": 0.18},
    "address_change": {
        "skips_verification": 0.15,
        "promise_without_action": 0.28,
        "ignores_status": 0.28,
    },
    "price_question": {"forgets_code": 0.20, "vague": 0.28},
}
"""Share of an intent's demonstrations with each flaw, if it fits."""

_PROMISES = {
    "cancel": "Done, your order is cancelled.",
    "refund": "Done, you will get your money back.",
    "address_change": "Done, the address is changed.",
}
_VAGUE = {
    "shipping_status": "It is on its way to you, thank you for your patience.",
    "price_question": "It costs a little less with the code.",
}
_SORRY = "Sorry, I cannot help with that."


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    intent: str
    flaw: str | None
    messages: tuple[Message, ...]


def demonstrate(scenario: Scenario, rng: random.Random) -> Demonstration:
    """One transcript of a scenario, flawed at the published rates."""
    draw, flaw = rng.random(), None
    for name, share in FLAWS[scenario.intent].items():
        draw -= share
        if draw < 0:
            flaw = name
            break
    acts = bend(scenario, flaw, rng) if flaw else None
    if acts is None:
        return Demonstration(
            intent=scenario.intent, flaw=None, messages=play(scenario, scenario.plan)
        )
    return Demonstration(intent=scenario.intent, flaw=flaw, messages=play(scenario, acts))


def bend(scenario: Scenario, flaw: str, rng: random.Random) -> tuple[Act, ...] | None:
    """The plan with one flaw, or None if it does not fit this scenario."""
    plan = list(scenario.plan)
    position = {act.tool: index for index, act in enumerate(plan) if act.tool}
    write = next((i for i, act in enumerate(plan) if act.tool and i == position[act.tool]
                  and any(act.tool == agreed.tool for agreed in scenario.customer.approves)), None)  # fmt: skip
    match flaw:
        case "skips_verification":
            first = position["verify_identity"]
            return (*plan[:first], plan[first + 1], Act(say=_SORRY))
        case "vague":
            return (*plan[:-1], Act(say=_VAGUE[scenario.intent]))
        case "promise_without_action" if write is not None:
            return (*plan[:write], Act(say=_PROMISES[scenario.intent]))
        case "ignores_status" if write is None:
            order = plan[position["get_order"]].arguments["order_id"]
            act = Act(tool="cancel_order", arguments={"order_id": order})
            if scenario.intent == "address_change":
                slots = scenario.customer.slots
                arguments = {"order_id": order, "street": slots["street"], "zip": slots["zip"]}
                act = Act(tool="change_shipping_address", arguments=arguments)
            return (*plan[:-1], act, Act(say=_SORRY))
        case "wrong_line" if write is not None:
            right = plan[write].arguments["line"]
            shop = _shop(scenario)
            order = plan[write].arguments["order_id"]
            others = [
                row["line"]
                for row in shop.all("SELECT line FROM lines WHERE order_id = ?", order)
                if row["line"] != right
            ]
            if not others:
                return None
            line = rng.choice(others)
            paid = shop.first("SELECT paid FROM lines WHERE order_id = ? AND line = ?", order, line)
            assert paid is not None
            amount = show(paid["paid"])
            quote = plan[position["check_return_eligibility"]]
            return (
                *plan[: write - 1],
                quote.model_copy(update={"arguments": {**quote.arguments, "line": line}}),
                plan[write].model_copy(
                    update={"arguments": {**plan[write].arguments, "line": line, "amount": amount}}
                ),
                Act(say=_SORRY),
            )
        case "skips_quote" if write is not None:
            amount = f"{rng.randint(3, 150)}.{rng.randrange(100):02d}"
            guess = plan[write].model_copy(
                update={"arguments": {**plan[write].arguments, "amount": amount}}
            )
            return (*plan[: position["check_return_eligibility"]], guess, Act(say=_SORRY))
        case "forgets_code":
            quote = plan[position["quote_cart"]]
            shop, sku = _shop(scenario), quote.arguments["sku"]
            product = shop.first(
                "SELECT price, on_hand FROM products JOIN stock USING(sku) WHERE sku = ?", sku
            )
            assert product is not None
            price = show(product["price"])
            return (
                *plan[: position["quote_cart"]],
                Act(tool="quote_cart", arguments={"sku": sku}),
                Act(say=f"It costs {price}, we have {product['on_hand']} in stock."),
            )
    return None


def play(scenario: Scenario, acts: tuple[Act, ...]) -> tuple[Message, ...]:
    """Acts as the messages of a conversation, with the tools' real answers and the customer's."""
    executor = Executor(_shop(scenario), SERVICE_TOOLS)
    session = Session(customer="")
    messages: list[Message] = [
        {"role": "system", "content": SERVICE_PROMPT},
        {"role": "user", "content": scenario.customer.opening},
    ]
    for number, act in enumerate(acts):
        if act.tool is None:
            messages.append({"role": "assistant", "content": act.say})
            answer = reply(scenario.customer, act.say)
            if answer is not None:
                messages.append({"role": "user", "content": answer})
            continue
        call = {"name": act.tool, "arguments": act.arguments}
        messages.append(
            {
                "role": "assistant",
                "content": act.say,
                "tool_calls": [{"id": f"call-{number}", "type": "function", "function": call}],
            }
        )
        agreed = approves(scenario.customer, act.tool, act.arguments)
        outcome = executor.settle(session, act.tool, act.arguments, agreed=agreed, key=str(number))
        session = outcome.session
        messages.append(
            {
                "role": "tool",
                "tool_call_id": f"call-{number}",
                "content": json.dumps(outcome.result),
            }
        )
    return tuple(messages)


def _shop(scenario: Scenario) -> Any:
    assert scenario.split != "user"
    return generate(scenario.shop_seed, scenario.split).clone()
