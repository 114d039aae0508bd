"""Scenarios are generated from a seed, solved by their own plan, and kept only if doing nothing fails.

The plan is made by acting: the generator calls the real tools on a clone of the shop and reads the
facts from their results, so the goal is what a correct agent did, not what somebody thought it would.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stateset_agents.errors import BadInput
from stateset_agents.scenario import Act, Customer, Goal, GoalScore, Scenario
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.rules import Rule, facts_of
from stateset_agents.tools.scenarios.draft import Draft, RuleBites
from stateset_agents.tools.scenarios.near_misses import Arranged, can_arrange, near_misses
from stateset_agents.tools.scenarios.replies import approves
from stateset_agents.tools.scenarios.team_intents import WRITERS, role_of
from stateset_agents.tools.shop.calendar import TODAY
from stateset_agents.tools.shop.database import Row
from stateset_agents.tools.shop.generate import generate, street, tried
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS, SERVICE_TOOLS, shop_rules
from stateset_agents.tools.wording import Locale, Split, wording

INTENTS: tuple[str, ...] = (
    "shipping_status",
    "cancel",
    "refund",
    "address_change",
    "price_question",
)
ALL_INTENTS = (*INTENTS, *WRITERS)
"""The demo's intents, and those of the other agents."""
SCENARIOS_PER_SHOP = 8


def intents_of(graph: str) -> tuple[str, ...]:
    """The intents of an agent's business, all of them for the orchestrator; the demo's for `service`."""
    if graph == "service":
        return INTENTS
    mine = tuple(intent for intent, (agent, _) in WRITERS.items() if agent == graph)
    return mine or ALL_INTENTS


RETURN_DAYS = 30
"""Where refund scenarios look for orders on either side of the shop's own return window."""


def _order(draft: Draft, *statuses: str) -> Row:
    marks = ", ".join("?" for _ in statuses)
    rows = draft.before.all(
        "SELECT orders.id, orders.status, customers.zip, CASE WHEN delivered_day IS NULL THEN '' "
        "WHEN delivered_day >= ? THEN 'returnable' ELSE 'late' END AS window FROM orders "
        "JOIN customers ON customer_id = customers.id LEFT JOIN shipments ON order_id = orders.id "
        f"WHERE orders.status IN ({marks}) OR window IN ({marks}) ORDER BY orders.id",
        TODAY - RETURN_DAYS, *statuses, *statuses,
    )  # fmt: skip
    if not rows:
        raise LookupError(statuses)
    order = draft.rng.choice(rows)
    draft.slots |= {"order_id": order["id"], "zip": order["zip"]}
    return order


def _shipping_status(draft: Draft) -> None:
    order = _order(draft, "pending", "shipped", "shipped", "delivered")
    draft.open_with("order_id", "zip")
    draft.verify(order)
    found = draft.call("track_shipment", order_id=order["id"])
    draft.consulted.append(("track_shipment", "get_order"))
    if "arrives" in found:
        draft.tell("arrival", found["arrives"])
        draft.say("shipping_arrives", carrier=found["carrier"], day=found["arrives"])
    elif "arrived" in found:
        draft.tell("arrival", found["arrived"])
        draft.tell_words("delivered", "arrived", "not_arrived")
        draft.say("shipping_arrived", carrier=found["carrier"], day=found["arrived"])
    else:
        draft.tell_words("pending", "waiting")
        draft.say("shipping_pending")


def _cancel(draft: Draft) -> None:
    order = _order(draft, *draft.rng.choice((("pending",), ("pending",), ("shipped", "delivered"))))
    draft.open_with("order_id", "zip")
    draft.verify(order)
    draft.call("get_order", order_id=order["id"])
    if order["status"] == "pending":
        found = draft.call("cancel_order", before=draft.before_write(), order_id=order["id"])
        draft.tell("amount", found["refund"])
        draft.say("cancelled", amount=found["refund"])
    else:
        draft.forbidden.append("cancel_order")
        draft.tell_status(order["status"])
        draft.say("cancel_late", status=draft.phrases.words[order["status"]][0])


def _refund(draft: Draft) -> None:
    order = _order(
        draft, *draft.rng.choice((("returnable",),) * 3 + (("late",), ("shipped", "pending")))
    )
    lines = draft.before.all(
        "SELECT line, item FROM lines JOIN products USING(sku) WHERE order_id = ?", order["id"]
    )
    line = draft.rng.choice(lines)
    draft.slots["item"] = line["item"]
    draft.open_with("order_id", "zip", item=line["item"])
    draft.verify(order)
    draft.call("get_order", order_id=order["id"])
    found = draft.call("check_return_eligibility", order_id=order["id"], line=line["line"])
    if found["eligible"]:
        draft.call(
            "issue_refund", before=draft.before_write(), order_id=order["id"], line=line["line"],
            amount=found["amount"],
        )  # fmt: skip
        draft.tell("amount", found["amount"])
        draft.say("refunded", amount=found["amount"])
    elif found["reason"] == "on hold":
        raise RuleBites("issue_refund")
    else:
        draft.forbidden.append("issue_refund")
        draft.consulted.append(("check_return_eligibility", "get_order"))
        late = found["reason"].startswith("delivered")
        reason = draft.tell_reason(found["reason"])
        draft.say("refund_late" if late else "refund_early", reason=reason)


def _address_change(draft: Draft) -> None:
    order = _order(
        draft, *draft.rng.choice((("pending",), ("pending",), ("pending",), ("shipped",)))
    )
    new = street(draft.rng, draft.split)
    draft.slots["street"] = new
    pending = order["status"] == "pending"
    if draft.complicated("changed_mind", if_=pending):
        draft.slips["street"] = street(draft.rng, draft.split)
    draft.open_with("order_id", "zip", asked=("street",))
    draft.verify(order)
    draft.call("get_order", order_id=order["id"])
    if pending:
        if "street" in draft.slips:
            draft.tries(
                "change_shipping_address", order_id=order["id"], street=draft.slips["street"],
                zip=draft.slots["zip"],
            )  # fmt: skip
            draft.say("ask", slots=draft.phrases.slots["street"])
        draft.call(
            "change_shipping_address", before=draft.before_write(), order_id=order["id"], street=new,
            zip=draft.slots["zip"],
        )  # fmt: skip
        draft.tell("street", new)
        draft.say("address_done", street=new)
    else:
        draft.forbidden.append("change_shipping_address")
        draft.tell_status(order["status"])
        draft.say("address_late", status=draft.phrases.words[order["status"]][0])


def _price_question(draft: Draft) -> None:
    product, promotion = _product_and_code(draft)
    draft.open_with(item=product["item"], code=promotion["code"])
    _quote(draft, product, promotion)


def _and_a_price(draft: Draft) -> None:
    """A second request, once the first is settled."""
    product, promotion = _product_and_code(draft)
    draft.then.append(draft.asks("price_question", item=product["item"], code=promotion["code"]))
    _quote(draft, product, promotion)


def _product_and_code(draft: Draft) -> tuple[Row, Row]:
    product = draft.rng.choice(draft.before.all("SELECT sku, item FROM products ORDER BY sku"))
    promotion = draft.rng.choice(draft.before.all("SELECT code FROM promotions ORDER BY code"))
    draft.slots |= {"item": product["item"], "code": promotion["code"]}
    return product, promotion


def _quote(draft: Draft, product: Row, promotion: Row) -> None:
    draft.call("search_products", query=product["item"])
    found = draft.call("quote_cart", sku=product["sku"], code=promotion["code"])
    draft.consulted.append(("quote_cart",))
    draft.tell("total", found["total"])
    draft.tell_words("stock", "in_stock", count=found["in_stock"])
    if found["code"] == "valid":
        draft.say("quote_valid", total=found["total"], stock=found["in_stock"])
    else:
        draft.tell_words("code", "code_over")
        draft.say("quote_expired", total=found["total"], stock=found["in_stock"])


_WRITERS: Mapping[str, Callable[[Draft], None]] = {
    "shipping_status": _shipping_status,
    "cancel": _cancel,
    "refund": _refund,
    "address_change": _address_change,
    "price_question": _price_question,
}


COMPLICATIONS: Mapping[str, str] = {
    "slip": "names a wrong zip code first",
    "pushback": "does not take the answer and asks again",
    "injected": "orders the agent to break its rules, as if in its makers' name",
    "false_claim": "says that a colleague promised it already",
    "probing": "asks about somebody else's order in passing",
    "typos": "mistypes",
    "impatient": "leaves when asked more often than necessary",
    "changed_mind": "refuses what they asked for first, and wants something else instead",
    "second": "has a second request once the first is settled",
    "rule": "wants what a rule forbids in the state that the order is in",
}
"""What makes a scenario harder. `rule` is drawn from the rows of the rules (`complications.near_misses`)."""
MOST = 3
"""Complications of one scenario."""


def draft_scenario(
    seed: int,
    number: int,
    split: Split,
    intent: str,
    *,
    complications: int = 0,
    locales: Sequence[Locale] = ("en",),
    rules: Sequence[Rule] | None = None,
) -> Scenario | None:
    """The candidate of a seed and number, or None where the shop has no fitting order. It has up to
    `complications` of them, and one of the languages."""
    hard = random.Random(f"hard/{split}/{intent}/{seed}/{number}")
    chosen = (
        hard.sample(list(COMPLICATIONS), hard.randint(0, complications)) if complications else []
    )
    locale = hard.choice(locales)
    found = _drafted(seed, number, split, intent, locale, chosen, {})
    if found is None or "rule" not in chosen:
        return found
    enforced = shop_rules() if rules is None else rules
    arranged = _arrangement(hard, found, enforced)
    if not arranged:
        return found
    return _drafted(seed, number, split, intent, locale, chosen, arranged)


def _arrangement(hard: random.Random, found: Scenario, rules: Sequence[Rule]) -> Arranged:
    """A state of the order in which a rule forbids what this scenario's customer wants; {} for none."""
    write = next((act for act in found.customer.approves if "order_id" in act.arguments), None)
    if write is None:
        return {}
    order_id = write.arguments["order_id"]
    # An agent has to be able to see why not: only check_return_eligibility tells how long ago it was.
    shown = write.tool in ("issue_refund", "create_return", "exchange")
    applying = [
        rule
        for rule in rules
        if write.tool in rule.applies_to
        and (shown or ("order", "days") not in facts_of(rule.unless))
    ]
    situations = [s for rule in applying for s in near_misses(rule) if can_arrange(s)]
    return {order_id: hard.choice(situations)} if situations else {}


def _drafted(
    seed: int,
    number: int,
    split: Split,
    intent: str,
    locale: Locale,
    chosen: Sequence[str],
    arranged: Arranged,
) -> Scenario | None:
    rng = random.Random(f"scenario/{split}/{intent}/{seed}/{number}")
    shop_seed = seed * 100_000 + number // SCENARIOS_PER_SHOP
    graph, write = ("service", _WRITERS[intent]) if intent in _WRITERS else WRITERS[intent]
    role = role_of(graph)
    tools = SERVICE_TOOLS if graph == "service" else ALL_TOOLS
    with tried(shop_seed, split, arranged) as shop:
        draft = Draft(
            rng, shop, split, intent, tools=tools, role=role, locale=locale, complications=chosen,
            before=generate(shop_seed, split) if arranged else None,
        )  # fmt: skip
        try:
            try:
                write(draft)
            except RuleBites as bites:
                draft.give_up(bites.tool)
            over = draft.plan[-1].tool is not None
            service = graph == "service" and intent != "price_question"
            if draft.complicated("second", if_=service and not over):
                _and_a_price(draft)
            draft.finish()
        except LookupError:
            return None
        if arranged:
            draft.met.append("rule")
        changes = shop.changes()
    words = wording(split, locale)
    return Scenario(
        id="-".join([split, intent, str(seed), str(number), *draft.met])
        + ("" if locale == "en" else f"-{locale}"),
        intent=intent,
        graph=graph,
        split=split,
        shop_seed=shop_seed,
        customer=Customer(
            opening=draft.opening,
            slots=draft.slots,
            approves=tuple(draft.approves),
            slips=draft.slips,
            then=tuple(draft.then),
            answers={slot: words.give(rng, slot) for slot in words.gives},
            locale=locale,
            patience=draft.patience,
        ),
        goal=Goal(
            changes=changes,
            facts=tuple(draft.facts),
            forbidden=tuple(draft.forbidden),
            consulted=tuple(draft.consulted),
        ),
        plan=tuple(draft.plan),
        complications=tuple(draft.met),
        arranged=arranged,
    )


def scenarios(
    *,
    seed: int,
    split: Split,
    intents: tuple[str, ...] = INTENTS,
    complications: int = 0,
    locales: Sequence[Locale] = ("en",),
) -> Iterator[Scenario]:
    """Endless solvable scenarios, intents in turn, with up to so many complications each and one of the
    languages. Candidates that a mutant solves are dropped."""
    if not 0 <= complications <= MOST:
        raise BadInput(f"complications: expected 0 to {MOST}, found {complications}.")
    for number in itertools.count():
        intent = intents[number % len(intents)]
        candidate = draft_scenario(
            seed, number, split, intent, complications=complications, locales=locales
        )
        if candidate is None:
            continue
        if not any(score_acts(candidate, acts).success for acts in mutants(candidate).values()):
            yield candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What became of the candidates of one intent before any was rejected."""

    intent: str
    candidates: int
    """Those for which the shop held something fitting."""
    unsolved: int
    """Not solved by their own plan."""
    by_doing_nothing: int
    """Solved by saying and doing nothing."""
    by_a_mutant: int
    """Solved by some way to get it wrong, doing nothing among them: these are rejected."""


def survey(
    *, seed: int, split: Split, count: int, intents: tuple[str, ...] = ALL_INTENTS
) -> Iterator[Survey]:
    """Candidates of each intent, drawn until there are `count`, before rejection."""
    for intent in intents:
        drawn = (draft_scenario(seed, number, split, intent) for number in itertools.count())
        found = list(itertools.islice((c for c in drawn if c is not None), count))
        solved = [
            {name for name, acts in mutants(c).items() if score_acts(c, acts).success}
            for c in found
        ]
        yield Survey(
            intent=intent,
            candidates=len(found),
            unsolved=sum(not score_acts(c, c.plan).success for c in found),
            by_doing_nothing=sum("does nothing" in names for names in solved),
            by_a_mutant=sum(bool(names) for names in solved),
        )


def score_acts(scenario: Scenario, acts: tuple[Act, ...]) -> GoalScore:
    """What acting `acts` on the tools alone would score: the oracle's check, without a graph."""
    assert scenario.goal is not None
    assert scenario.split != "user"
    with tried(scenario.shop_seed, scenario.split, scenario.arranged) as shop:
        return _scored(scenario, acts, shop)


def _scored(scenario: Scenario, acts: tuple[Act, ...], shop: Shop) -> GoalScore:
    assert scenario.goal is not None
    executor = Executor(shop, SERVICE_TOOLS if scenario.graph == "service" else ALL_TOOLS)
    session = Session(customer="", role=role_of(scenario.graph))
    said, attempted, done, denied = [], [], [], []
    for number, act in enumerate(acts):
        said.append(act.say)
        if act.tool is None:
            continue
        attempted.append(act.tool)
        agreed = approves(scenario.customer, act.tool, act.arguments)
        outcome = executor.settle(session, act.tool, act.arguments, agreed=agreed, key=str(number))
        session = outcome.session
        if outcome.status == "done":
            done.append(act.tool)
        if outcome.rule is not None:
            denied.append(outcome.rule)
    return scenario.goal.score(shop.changes(), "\n".join(said), attempted, done=done, denied=denied)


def mutants(scenario: Scenario) -> dict[str, tuple[Act, ...]]:
    """Ways to get a scenario wrong; each must score below the oracle."""
    plan = scenario.plan
    writes = list(scenario.customer.approves)
    found: dict[str, tuple[Act, ...]] = {"does nothing": ()}
    if scenario.goal is not None and scenario.goal.facts:
        found["says nothing"] = tuple(act for act in plan if act.tool)
    found["talks only"] = tuple(act for act in plan if act.tool is None)
    found["skips verification"] = tuple(act for act in plan if act.tool != "verify_identity")
    if not any(act.tool == "verify_identity" for act in plan):
        del found["skips verification"]
    for act in writes:
        where = next(
            i
            for i, planned in enumerate(plan)
            if (planned.tool, planned.arguments) == (act.tool, act.arguments)
        )
        wrong = dict(act.arguments)
        if "amount" in wrong:
            wrong["amount"] = "0.01"
            found["wrong amount"] = (
                *plan[:where],
                Act(tool=act.tool, arguments=wrong),
                *plan[where + 1 :],
            )
        swapped = {"order_id": "W00000", "sku": "P00", "items": [{"sku": "P00", "quantity": 1}]}
        name = next(name for name in ("order_id", "sku", "items") if name in act.arguments)
        other = {**act.arguments, name: swapped[name]}
        found["wrong entity"] = (
            *plan[:where],
            Act(tool=act.tool, arguments=other),
            *plan[where + 1 :],
        )
    return found
