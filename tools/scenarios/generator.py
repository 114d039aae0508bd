"""Scenarios are generated from a seed, solved by their own plan, and kept only if doing nothing fails.

The plan is made by acting: the generator calls the real tools on a clone of the shop and reads the
facts from their results, so the goal is what a correct agent really did.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stateset_agents.errors import BadInput
from stateset_agents.scenario import Customer, Goal, Scenario
from stateset_agents.tools.rules import Rule, facts_of
from stateset_agents.tools.scenarios.draft import Draft, RuleBites
from stateset_agents.tools.scenarios.mutants import mutants, score_acts
from stateset_agents.tools.scenarios.near_misses import near_misses
from stateset_agents.tools.scenarios.service_intents import SERVICE_WRITERS, second_request
from stateset_agents.tools.scenarios.team_intents import WRITERS, role_of
from stateset_agents.tools.shop.arrange import Arranged, can_arrange
from stateset_agents.tools.shop.generate import Shops, generate, tried
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
BARREN = 2000
"""Tries of one intent in a row for which the shops have nothing fitting, until it is given up."""


def intents_of(graph: str) -> tuple[str, ...]:
    """The intents of an agent; for the orchestrator all of them, for `service` the demo's."""
    if graph == "service":
        return INTENTS
    mine = tuple(intent for intent, (agent, _) in WRITERS.items() if agent == graph)
    return mine or ALL_INTENTS


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
"""What makes a scenario harder. `rule` is made from the rules (`near_misses`)."""
MOST = 3
"""The most complications of one scenario."""


def draft_scenario(
    seed: int,
    number: int,
    split: Split,
    intent: str,
    *,
    complications: int = 0,
    locales: Sequence[Locale] = ("en",),
    rules: Sequence[Rule] | None = None,
    shops: Shops = generate,
) -> Scenario | None:
    """The candidate of a seed and number, with up to `complications` complications, in one of the languages. None if the shop
    has no fitting order."""
    hard = random.Random(f"hard/{split}/{intent}/{seed}/{number}")
    chosen = (
        hard.sample(list(COMPLICATIONS), hard.randint(0, complications)) if complications else []
    )
    locale = hard.choice(locales)
    candidate = _drafted(seed, number, split, intent, locale, chosen, {}, shops)
    if candidate is None or "rule" not in chosen:
        return candidate
    enforced = shop_rules() if rules is None else rules
    arranged = _arrangement(hard, candidate, enforced)
    if not arranged:
        return candidate
    return _drafted(seed, number, split, intent, locale, chosen, arranged, shops)


def _arrangement(hard: random.Random, candidate: Scenario, rules: Sequence[Rule]) -> Arranged:
    """A state of the order in which a rule forbids what this scenario's customer wants; {} for none."""
    write = next((act for act in candidate.customer.approves if "order_id" in act.arguments), None)
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
    shops: Shops,
) -> Scenario | None:
    rng = random.Random(f"scenario/{split}/{intent}/{seed}/{number}")
    shop_seed = seed * 100_000 + number // SCENARIOS_PER_SHOP
    graph, write = (
        ("service", SERVICE_WRITERS[intent]) if intent in SERVICE_WRITERS else WRITERS[intent]
    )
    role = role_of(graph)
    tools = SERVICE_TOOLS if graph == "service" else ALL_TOOLS
    master = shops(shop_seed, split)
    with tried(master, arranged) as shop:
        draft = Draft(
            rng, shop, split, intent, tools=tools, role=role, locale=locale, complications=chosen
        )
        if arranged:
            draft.before = master
        try:
            try:
                write(draft)
            except RuleBites as bites:
                draft.give_up(bites.tool)
            over = draft.plan[-1].tool is not None
            service = graph == "service" and intent != "price_question"
            if draft.complicated("second", if_=service and not over):
                second_request(draft)
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
    shops: Shops = generate,
) -> Iterator[Scenario]:
    """Endless solvable scenarios, intents in turn, with up to so many complications each and one of the
    languages, in generated shops or others. Candidates that a mutant solves are dropped. Raises BadInput if a shop of your own
    has nothing that fits an intent."""
    if not 0 <= complications <= MOST:
        raise BadInput(f"complications: expected 0 to {MOST}, found {complications}.")
    barren = dict.fromkeys(intents, 0)
    for number in itertools.count():
        intent = intents[number % len(intents)]
        candidate = draft_scenario(
            seed, number, split, intent, complications=complications, locales=locales, shops=shops
        )
        barren[intent] = barren[intent] + 1 if candidate is None else 0
        if barren[intent] > BARREN:
            raise BadInput(
                f"Expected a shop with something for {intent!r}, found nothing in {BARREN} tries."
            )
        if candidate is None:
            continue
        wrong = mutants(candidate).values()
        if not any(score_acts(candidate, acts, shops).success for acts in wrong):
            yield candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Counts of one intent's candidates, before rejection."""

    intent: str
    candidates: int
    """Candidates for which the shop has something fitting."""
    unsolved: int
    """Not solved by their own plan."""
    by_doing_nothing: int
    """Solved by doing nothing."""
    by_a_mutant: int
    """Solved by a mutant, including doing nothing: these are rejected."""


def survey(
    *, seed: int, split: Split, count: int, intents: tuple[str, ...] = ALL_INTENTS
) -> Iterator[Survey]:
    """Candidates of each intent, drawn until there are `count`, before rejection."""
    for intent in intents:
        drawn = (draft_scenario(seed, number, split, intent) for number in itertools.count())
        candidates = list(itertools.islice((c for c in drawn if c is not None), count))
        solved = [
            {name for name, acts in mutants(c).items() if score_acts(c, acts).success}
            for c in candidates
        ]
        yield Survey(
            intent=intent,
            candidates=len(candidates),
            unsolved=sum(not score_acts(c, c.plan).success for c in candidates),
            by_doing_nothing=sum("does nothing" in names for names in solved),
            by_a_mutant=sum(bool(names) for names in solved),
        )
