"""Near misses: situations of an order that trigger a rule, made from the rule's row.

return-window: order.status == "delivered" and order.days <= 30
near misses:   delivered 31 days ago; not delivered yet
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

from stateset_agents.tools.rules import Rule, facts_of
from stateset_agents.tools.shop.arrange import Situation
from stateset_agents.tools.shop.calendar import NOT_DELIVERED

_DOMAINS: dict[str, tuple[Any, ...]] = {
    "status": ("pending", "shipped", "delivered"),
    "hold": ("", "review"),
}


def near_misses(rule: Rule) -> Iterator[Situation]:
    """Situations that the rule denies and would allow with one other fact, without repetition. Empty for rules that are not
    about an order's state."""
    read = sorted({name for thing, name in facts_of(rule.unless) if thing == "order"})
    if {thing for thing, _ in facts_of(rule.unless)} - {"order", "limit"} or not read:
        return
    numbers = {int(n) for n in re.findall(r"\b\d+\b", rule.unless)} | set(rule.limits.values())
    around = sorted({n + step for n in numbers for step in (-1, 0, 1) if n + step >= 0})
    values = [_DOMAINS.get(name, (*around, NOT_DELIVERED)) for name in read]
    every = [
        dict(zip(read, combination, strict=True)) for combination in itertools.product(*values)
    ]
    every = [s for s in every if _possible(s)]
    allowed = [s for s in every if rule.allows({"order": s})]
    for situation in every:
        if situation in allowed:
            continue
        if any(
            sum(situation[n] != other[n] for n in read) <= _apart(situation) for other in allowed
        ):
            yield situation


def _apart(situation: Situation) -> int:
    """ "Not delivered" changes two facts at once: the status and the days."""
    return 2 if situation.get("days") == NOT_DELIVERED else 1


def _possible(situation: Situation) -> bool:
    if "status" not in situation or "days" not in situation:
        return True
    delivered: bool = situation["status"] == "delivered"
    return delivered == bool(situation["days"] != NOT_DELIVERED)
