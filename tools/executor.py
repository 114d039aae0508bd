"""The executor is the only way to the shop: it checks arguments and rules, acts once, and writes it down.

propose(issue_refund)              -> denied by a rule, or a proposal that waits for the customer
commit(issue_refund, confirmed)    -> the change, exactly as proposed, once per key
one audit row per attempt, chained by hash; a failed act leaves nothing else behind
"""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from stateset_agents.errors import BadInput
from stateset_agents.tools.money import cents
from stateset_agents.tools.returns import delivered_days_ago, refundable
from stateset_agents.tools.rules import Facts, Rule, facts_of, shop_rules
from stateset_agents.tools.shop import Shop
from stateset_agents.tools.tool import Arguments, Session, Tool, ToolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an attempt. `result` is what the model reads."""

    status: Literal["done", "proposed", "denied", "invalid", "declined"]
    result: dict[str, Any]
    session: Session
    rule: str | None = None
    """The rule that denied it."""
    facts: Facts = field(default_factory=dict)
    """What the rules were checked against."""


class Executor:
    """Runs tools on one shop under rules. Holds no state of its own: sessions are passed through."""

    def __init__(
        self, shop: Shop, tools: Sequence[Tool], rules: Sequence[Rule] | None = None
    ) -> None:
        self.shop = shop
        self.tools = {tool.name: tool for tool in tools}
        self.rules = shop_rules() if rules is None else tuple(rules)

    def propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        """Run a read at once; check a write and leave it waiting for the customer's word."""
        tool, call, refused = self._parse(session, name, arguments)
        if tool is None or call is None:
            assert refused is not None
            return refused
        if not tool.confirm:
            return self._act(session, tool, call, confirmed=False)
        checked = self._check(session, tool, call, confirmed=True)
        if isinstance(checked, Outcome):
            return checked
        return Outcome(status="proposed", result=arguments, session=session, facts=checked)

    def commit(
        self, session: Session, name: str, arguments: dict[str, Any], *, confirmed: bool, key: str
    ) -> Outcome:
        """Make a proposed write. The same key never acts twice; without confirmation it is denied."""
        tool, call, refused = self._parse(session, name, arguments)
        if tool is None or call is None:
            assert refused is not None
            return refused
        fingerprint = json.dumps([name, arguments], sort_keys=True)
        earlier = self.shop.one("SELECT call, result FROM idempotency WHERE key = ?", key)
        if earlier is not None:
            if earlier["call"] == fingerprint:
                return Outcome(status="done", result=json.loads(earlier["result"]), session=session)
            return self._refuse(session, name, arguments, "key_reused", "use a new key")
        return self._act(session, tool, call, confirmed=confirmed, key=key, fingerprint=fingerprint)

    def settle(
        self, session: Session, name: str, arguments: dict[str, Any], *, agreed: bool, key: str
    ) -> Outcome:
        """`propose`, then `commit` or `decline` at once: for who knows the customer's word beforehand."""
        outcome = self.propose(session, name, arguments)
        if outcome.status != "proposed":
            return outcome
        if agreed:
            return self.commit(session, name, arguments, confirmed=True, key=key)
        return self.decline(session, name, arguments)

    def decline(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        """The customer said no to a proposal."""
        self._audit(name, arguments, "declined", None)
        result = {"error": "declined", "help": "the customer said no"}
        return Outcome(status="declined", result=result, session=session)

    def _parse(
        self, session: Session, name: str, arguments: dict[str, Any]
    ) -> tuple[Tool | None, Arguments | None, Outcome | None]:
        tool = self.tools.get(name)
        if tool is None:
            help = "use one of the tools offered"
            return None, None, self._refuse(session, name, arguments, "no_such_tool", help)
        try:
            return tool, tool.arguments.model_validate(arguments), None
        except ValidationError as error:
            first = error.errors()[0]
            help = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:120]
            return tool, None, self._refuse(session, name, arguments, "bad_arguments", help)

    def _act(
        self,
        session: Session,
        tool: Tool,
        call: Arguments,
        *,
        confirmed: bool,
        key: str | None = None,
        fingerprint: str = "",
    ) -> Outcome:
        checked = self._check(session, tool, call, confirmed=confirmed)
        if isinstance(checked, Outcome):
            return checked
        arguments = call.model_dump()
        after = session.copy()
        try:
            with self.shop.atomically():
                result = tool.run(self.shop, after, call)
                if key is not None:
                    self.shop.run(
                        "INSERT INTO idempotency VALUES(?, ?, ?)",
                        key,
                        fingerprint,
                        json.dumps(result),
                    )
                self._audit(tool.name, arguments, "done", None)
        except ToolError as error:
            return self._refuse(session, tool.name, arguments, error.code, error.help)
        except BadInput as error:
            return self._refuse(session, tool.name, arguments, "bad_arguments", str(error))
        except sqlite3.IntegrityError as error:
            return self._refuse(session, tool.name, arguments, "impossible", str(error))
        return Outcome(status="done", result=result, session=after, facts=checked)

    def _check(
        self, session: Session, tool: Tool, call: Arguments, *, confirmed: bool
    ) -> Outcome | Facts:
        """What the first rule that denies this call leads to; the facts where all allow it."""
        arguments = call.model_dump()
        facts: dict[str, dict[str, Any]] = {
            "session": {"customer": session["customer"]},
            "call": {**arguments, "confirmed": confirmed},
        }
        for rule in self.rules:
            if tool.name not in rule.applies_to:
                continue
            try:
                needed = {thing for thing, _ in facts_of(rule.unless)}
                if "order" in needed and "order" not in facts:
                    facts["order"] = self._order(arguments["order_id"])
                if "quote" in needed and "quote" not in facts:
                    quote = refundable(self.shop, arguments["order_id"], arguments["line"])
                    facts["quote"] = {"amount": quote}
                    facts["call"]["amount"] = cents(arguments["amount"])
            except ToolError as error:
                return self._refuse(session, tool.name, arguments, error.code, error.help)
            except BadInput as error:
                return self._refuse(session, tool.name, arguments, "bad_arguments", str(error))
            if not rule.allows(facts):
                self._audit(tool.name, arguments, "denied", rule.id)
                result = {"error": rule.code, "help": rule.help}
                return Outcome(
                    status="denied", result=result, session=session, rule=rule.id, facts=facts
                )
        return facts

    def _order(self, order_id: str) -> dict[str, Any]:
        order = self.shop.one("SELECT customer_id, status, hold FROM orders WHERE id = ?", order_id)
        if order is None:
            raise ToolError("not_found", "use an order of the verified customer")
        days = delivered_days_ago(self.shop, order_id)
        return {**order, "hold": order["hold"] or "", "days": 10_000 if days is None else days}

    def _refuse(
        self, session: Session, name: str, arguments: dict[str, Any], code: str, help: str
    ) -> Outcome:
        self._audit(name, arguments, "invalid", None)
        return Outcome(status="invalid", result={"error": code, "help": help}, session=session)

    def _audit(self, name: str, arguments: dict[str, Any], outcome: str, rule: str | None) -> None:
        last = self.shop.one("SELECT hash FROM audit ORDER BY seq DESC LIMIT 1")
        row = (name[:80], json.dumps(arguments, sort_keys=True)[:2000], outcome, rule)
        self.shop.run(
            "INSERT INTO audit(tool, arguments, outcome, rule, hash) VALUES(?, ?, ?, ?, ?)",
            *row, _chained(last["hash"] if last else "", row),
        )  # fmt: skip


def _chained(previous: str, row: tuple[str, str, str, str | None]) -> str:
    return hashlib.sha256((previous + json.dumps(row)).encode()).hexdigest()


def audit_holds(shop: Shop) -> bool:
    """Whether every audit row still hashes to what was written."""
    previous = ""
    for row in shop.all("SELECT * FROM audit ORDER BY seq"):
        entry = (row["tool"], row["arguments"], row["outcome"], row["rule"])
        previous = _chained(previous, entry)
        if previous != row["hash"]:
            return False
    return True
