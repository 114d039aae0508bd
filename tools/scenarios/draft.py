"""A draft of a scenario: acted out on a clone of its shop, so that its goal is the result of a correct agent."""

import random
from collections.abc import Sequence
from typing import Any

from stateset_agents.scenario import Act, Fact
from stateset_agents.tools.executor import Executor, Outcome
from stateset_agents.tools.shop.database import Row
from stateset_agents.tools.shop.sqlite import Shop
from stateset_agents.tools.tool import Role, Session, Tool
from stateset_agents.tools.wording import Locale, Slot, Split, phrases, wording


class RuleBites(Exception):
    """A rule forbids what the customer wants."""

    def __init__(self, tool: str) -> None:
        self.tool = tool


class Draft:
    """The clone that a scenario is acted out on, its plan and its goal so far.

    `before` is the shop in which entities are picked; the generator sets it if something was arranged in the clone.
    """

    def __init__(
        self,
        rng: random.Random,
        shop: Shop,
        split: Split,
        intent: str,
        *,
        tools: Sequence[Tool],
        role: Role = "customer",
        locale: Locale = "en",
        complications: Sequence[str] = (),
    ) -> None:
        self.rng = rng
        self.wanted = complications
        self.met: list[str] = []
        """The complications that apply to this scenario."""
        self.shop = shop
        self.before = shop
        self.split: Split = split
        self.intent = intent
        self.locale: Locale = locale
        self.words = wording(split, locale)
        self.phrases = phrases(locale)
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
        self.patience: int | None = None

    def complicated(self, name: str, *, if_: bool = True) -> bool:
        """Whether a complication is chosen and possible here; if so, it is recorded."""
        if name not in self.wanted or not if_:
            return False
        if name not in self.met:
            self.met.append(name)
        return True

    def say(self, kind: str, **values: object) -> None:
        spoken = {name: self.phrases.spoken(value) for name, value in values.items()}
        self.plan.append(Act(say=self.rng.choice(self.phrases.say[kind]).format(**spoken)))

    def call(self, tool: str, *, before: str = "", **arguments: Any) -> dict[str, Any]:
        """Call a tool as a part of the plan. Raises RuleBites if a rule unexpectedly forbids it."""
        outcome = self._propose(tool, arguments)
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
        result: dict[str, Any] = outcome.result
        return result

    def _propose(self, tool: str, arguments: dict[str, Any]) -> Outcome:
        outcome = self.executor.propose(self.session, tool, arguments)
        if outcome.status == "denied" and self.before is not self.shop:
            raise RuleBites(tool)
        return outcome

    def tries(self, tool: str, **arguments: Any) -> None:
        """A call that a correct agent makes and that has no effect, without breaking a rule: it is invalid, or the customer
        refuses."""
        outcome = self._propose(tool, arguments)
        if outcome.status not in ("invalid", "proposed"):
            raise ValueError(f"Expected the call to lead nowhere, found {outcome}.")
        self.plan.append(Act(tool=tool, arguments=arguments))
        self.session = outcome.session

    def give_up(self, tool: str) -> None:
        """What a correct agent does if a rule forbids the request: state the order's status, or hand over an order on hold."""
        order_id = self.slots["order_id"]
        self.forbidden.append(tool)
        if all(act.tool != "get_order" for act in self.plan):
            self.call("get_order", order_id=order_id)
        order = self.shop.the("SELECT status, hold FROM orders WHERE id = ?", order_id)
        if order["hold"]:
            self.hand_over()
            return
        self.tell_status(order["status"])
        self.say("too_late", status=self.phrases.words[order["status"]][0])

    def hand_over(self) -> None:
        """Hand over: an order on hold needs a person."""
        self.consulted.append(("get_order", "check_return_eligibility"))
        self.call("escalate_to_human", reason="the order is on hold")

    def finish(self) -> None:
        """The end: the customer's further messages, and a correct agent's answers."""
        questions = sum(bool(act.say) and act.tool is None for act in self.plan[:-1])
        if self.complicated("impatient", if_=questions > 0):
            self.patience = questions
        last = self.plan[-1]
        if last.tool is not None:  # handed over: nobody listens any more
            return
        if self.complicated("pushback"):
            self.then.append(self.rng.choice(self.words.pushback))
            self.plan.append(last)
        for kind, lines in (
            ("injected", self.words.injected),
            ("false_claim", self.words.false_claims),
        ):
            if self.complicated(kind):
                self._refuse(self.rng.choice(lines))
        if self.session["customer"] and self.complicated("probing"):
            others = self.before.all(
                "SELECT id FROM orders WHERE customer_id <> ? ORDER BY id", self.session["customer"]
            )
            line = self.rng.choice(self.words.probing)
            self._refuse(line.format(order_id=self.rng.choice(others)["id"]))

    def _refuse(self, write: str) -> None:
        self.then.append(write)
        self.plan.append(Act(say=self.rng.choice(self.phrases.say["no"])))

    def tell(self, name: str, value: str, *, or_: str | None = None) -> None:
        """A required fact: a tool's value in any spelling, or words for it."""
        words = self.phrases.words[or_] if or_ else ()
        self.facts.append(Fact(name=name, any_of=(*self.phrases.readings(value), *words)))

    def tell_words(self, name: str, kind: str, *not_: str, **values: object) -> None:
        """A required fact in words of the language, without a contradiction."""
        every = self.phrases.words
        self.facts.append(
            Fact(
                name=name,
                any_of=tuple(way.format(**values) for way in every[kind]),
                none_of=tuple(way for other in not_ for way in every[other]),
            )
        )

    def tell_status(self, status: str) -> None:
        """The required fact that it is too late, with the real status; looked up, and neither hedged nor negated."""
        kinds = ("delivered", "not_delivered", "not_shipped", "shipped")
        self.tell_words("status", status, *(kind for kind in kinds if kind != status))
        self.consulted.append(("get_order", "track_shipment"))

    def tell_reason(self, reason: str) -> str:
        """The required reason why a line cannot be returned. Returns an agent's sentence for it."""
        days = next((word for word in reason.split() if word.isdigit()), "")
        kinds = {"not delivered yet": "reason_early", "already refunded": "reason_refunded"}
        kind = "reason_late" if days else kinds[reason]
        self.tell_words("reason", kind, days=days)
        return self.phrases.words[kind][0].format(days=days)

    def asks(self, intent: str, **values: str) -> str:
        """A request in the customer's words."""
        values = {name: str(self.phrases.spoken(value)) for name, value in values.items()}
        template = self.words.request(self.rng, intent)
        if self.complicated("typos"):
            template = _mistyped(self.rng, template)
        return template.format(**values)

    def open_with(self, *known: Slot, requested: tuple[Slot, ...] = (), **values: str) -> None:
        """The first message: the request, perhaps with what the customer volunteers."""
        # Drawn before the greeting: the order in which a seed is used up is part of the scenario.
        request = self.asks(self.intent, **values)
        parts = [self.rng.choice(self.words.greetings) + request]
        parts[0] = parts[0][0].upper() + parts[0][1:]
        volunteered = self.rng.choice((0, 0, 1, len(known)))
        for slot in known[:volunteered]:
            parts.append(self.words.give(self.rng, slot).format(self.slots[slot]))
        self.opening = " ".join(parts)
        missing = (*known[volunteered:], *requested)
        if self.complicated("slip", if_="zip" in missing):
            self.slips["zip"] = f"{(int(self.slots['zip']) + 11111) % 100000:05d}"
        if missing:
            names = self.phrases.and_.join(self.phrases.slots[slot] for slot in missing)
            self.say("ask", slots=names)

    def verify(self, order: Row) -> None:
        if "zip" in self.slips:
            self.tries("verify_identity", order_id=order["id"], zip=self.slips["zip"])
            self.say("ask", slots=self.phrases.slots["zip"])
        self.call("verify_identity", order_id=order["id"], zip=self.slots["zip"])

    def before_write(self) -> str:
        return self.rng.choice(self.phrases.say["before_write"])


def _mistyped(rng: random.Random, template: str) -> str:
    """Swap two letters in up to two words; values stay."""
    words = template.split()
    long = [n for n, word in enumerate(words) if word.isalpha() and len(word) > 4]
    for number in rng.sample(long, min(2, len(long))):
        word, at = words[number], rng.randint(1, len(words[number]) - 3)
        words[number] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
