"""A scenario in the making: acted out on a clone of its shop, so that its goal is what an able agent did."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from stateset_agents.scenario import Act, Fact
from stateset_agents.tools.database import Row
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.phrases import AGENT, SLOT_NAMES
from stateset_agents.tools.shop import Shop
from stateset_agents.tools.tool import Role, Session, Tool
from stateset_agents.tools.wording import Slot, Split, wording


class Draft:
    """The clone that a scenario is acted out on, its plan and its goal so far."""

    def __init__(
        self,
        rng: random.Random,
        shop: Shop,
        split: Split,
        intent: str,
        *,
        tools: Sequence[Tool],
        role: Role = "customer",
        complications: Mapping[str, bool] | None = None,
    ) -> None:
        self.rng = rng
        self.complications = complications or {}
        self.shop = shop
        self.split: Split = split
        self.intent = intent
        self.executor = Executor(shop, tools)
        self.session = Session(customer="", role=role)
        self.plan: list[Act] = []
        self.approves: list[Act] = []
        self.facts: list[Fact] = []
        self.forbidden: list[str] = []
        self.consulted: list[tuple[str, ...]] = []
        self.slots: dict[str, str] = {}
        self.slips: dict[str, str] = {}
        self.then: list[str] = []
        self.opening = ""

    def say(self, kind: str, **values: object) -> None:
        self.plan.append(Act(say=self.rng.choice(AGENT[kind]).format(**values)))

    def call(self, tool: str, *, before: str = "", **arguments: Any) -> dict[str, Any]:
        outcome = self.executor.propose(self.session, tool, arguments)
        act = Act(say=before, tool=tool, arguments=arguments)
        if outcome.status == "proposed":
            outcome = self.executor.commit(
                self.session, tool, arguments, confirmed=True, key=f"plan-{len(self.plan)}"
            )
            self.approves.append(Act(tool=tool, arguments=arguments))
        if outcome.status != "done":
            raise ValueError(f"Expected the plan to be allowed, found {outcome} for {act}.")
        self.plan.append(act)
        self.session = outcome.session
        return outcome.result

    def fails(self, tool: str, **arguments: Any) -> None:
        """A call that an able agent makes in good faith and that leads nowhere, without breaking a rule."""
        outcome = self.executor.propose(self.session, tool, arguments)
        if outcome.status != "invalid":
            raise ValueError(f"Expected the call to lead nowhere, found {outcome}.")
        self.plan.append(Act(tool=tool, arguments=arguments))
        self.session = outcome.session

    def finish(self) -> None:
        """What the customer says at the end, and what an able agent answers."""
        words = wording(self.split)
        last = self.plan[-1]
        if last.tool is not None:  # handed over: nobody listens any more
            return
        for kind, lines in (("pushback", words.pushback), ("injected", words.injected)):
            if self.complications.get(kind):
                self.then.append(self.rng.choice(lines))
                self.plan.append(
                    last if kind == "pushback" else Act(say=self.rng.choice(AGENT["no"]))
                )

    def tell(self, name: str, *any_of: str, not_: tuple[str, ...] = ()) -> None:
        self.facts.append(Fact(name=name, any_of=any_of, none_of=not_))

    def tell_status(self, status: str) -> None:
        """That it is too late, and what it is instead; looked up, and neither hedged nor denied."""
        others = tuple({"shipped", "delivered", "not shipped", "not delivered"} - {status})
        self.tell("status", status, not_=tuple(sorted(others)))
        self.consulted.append(("get_order", "track_shipment"))

    def open_with(self, *known: Slot, asked: tuple[Slot, ...] = (), **values: str) -> None:
        """The first message: the request, perhaps with what the customer volunteers."""
        words = wording(self.split)
        request = words.request(self.rng, self.intent).format(**values)
        parts = [self.rng.choice(words.greetings) + request]
        parts[0] = parts[0][0].upper() + parts[0][1:]
        volunteered = self.rng.choice((0, 0, 1, len(known)))
        for slot in known[:volunteered]:
            parts.append(words.give(self.rng, slot).format(self.slots[slot]))
        self.opening = " ".join(parts)
        missing = (*known[volunteered:], *asked)
        if self.complications.get("slip") and "zip" in missing:
            self.slips["zip"] = f"{(int(self.slots['zip']) + 11111) % 100000:05d}"
        if missing:
            names = " and ".join(SLOT_NAMES[slot] for slot in missing)
            self.say("ask", slots=names)

    def verify(self, order: Row) -> None:
        if "zip" in self.slips:
            self.fails("verify_identity", order_id=order["id"], zip=self.slips["zip"])
            self.say("ask", slots=SLOT_NAMES["zip"])
        self.call("verify_identity", order_id=order["id"], zip=self.slots["zip"])

    def before_write(self) -> str:
        return self.rng.choice(AGENT["before_write"])
