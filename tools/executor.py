"""The executor is the only way to the shop: it checks arguments and rules, acts once, and writes an audit log.

propose(issue_refund)              -> denied by a rule, or a proposal that waits for the customer's confirmation
commit(issue_refund, confirmed)    -> the change, exactly as proposed, once per key
one audit row per finished attempt, chained by hash; a failed act leaves nothing else behind
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from stateset_agents.plain import plain
from stateset_agents.tools.facts import facts_for, ids_in
from stateset_agents.tools.rules import Facts, Rule, asks_approval, facts_of
from stateset_agents.tools.shop.database import Database, Impossible
from stateset_agents.tools.summaries import summary_of
from stateset_agents.tools.tool import Arguments, Desk, Session, Tool, ToolError
from stateset_agents.tools.toolset import shop_rules

GUESSES, GUESSES_IN_ALL = 5, 10
"""Wrong guesses of one conversation, and about one order, before a person has to look."""
SEEN = 400
"""The most ids of a conversation that are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of an attempt. `result` is for the model."""

    status: Literal["done", "proposed", "denied", "invalid", "declined"]
    result: Any
    """Plain data: an object for tools of our shop; whatever a host's tool answers."""
    session: Session
    text: str | None = None
    """The answer as the model reads it; default: the result as JSON."""
    rule: str | None = None
    """The rule that denied it, or that requires a person's approval."""
    facts: Facts = field(default_factory=dict)
    """The facts that the rules were checked against."""
    summary: str = ""
    """What is proposed, in words from the shop."""


def refused(session: Session, code: str, help: str) -> Outcome:
    """The result of an impossible attempt: the problem, and what would help."""
    return Outcome(status="invalid", result={"error": code, "help": help}, session=session)


def denied(session: Session, rule: Rule, facts: Facts) -> Outcome:
    """A rule does not allow it."""
    result = {"error": rule.code, "help": rule.help}
    return Outcome(status="denied", result=result, session=session, rule=rule.id, facts=facts)


def declined(session: Session) -> Outcome:
    """The customer said no to a proposal."""
    result = {"error": "declined", "help": "the customer said no"}
    return Outcome(status="declined", result=result, session=session)


class Executor:
    """Runs tools on one shop under rules. It has no state; sessions are passed through. With `approvals` a person can be asked:
    a rule with effect `approval` leaves a proposal that names it. Without, it denies."""

    def __init__(
        self,
        shop: Database,
        tools: Sequence[Tool],
        rules: Sequence[Rule] | None = None,
        *,
        approvals: bool = False,
    ) -> None:
        self.shop = shop
        self.tools = {tool.name: tool for tool in tools}
        self.rules = shop_rules() if rules is None else tuple(rules)
        self.approvals = approvals
        self._rules_of: dict[str, list[Rule]] = {}

    def propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        """Run a read at once; check a write and leave it pending for the customer's confirmation."""
        return self._attempt(session, name, arguments, self._propose)

    def _attempt(
        self,
        session: Session,
        name: str,
        arguments: dict[str, Any],
        work: Callable[[Session, str, dict[str, Any]], Outcome],
    ) -> Outcome:
        """Run `work` in one transaction. A bug in a tool becomes an answer to the model and never ends a run."""
        try:
            return self.shop.attempt(lambda: work(session, name, arguments))
        except Exception:
            logging.getLogger(__name__).exception("tool %s failed", _text(name)[:80])
            help = "this tool does not work now; go on without it, or escalate_to_human"
            return self.shop.attempt(
                lambda: self._refuse(session, name, arguments, "tool_failed", help)
            )

    def _propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        parsed = self._parse(session, name, arguments)
        if isinstance(parsed, Outcome):
            return parsed
        tool, call = parsed
        if tool.guesses and self._has_guessed_enough(session, tool, call):
            help = "a person has to verify this customer: escalate_to_human"
            return self._refuse(session, name, arguments, "too_many_attempts", help)
        checked = self._check(session, tool, call, confirmed=True, approved=self.approvals)
        if isinstance(checked, Outcome):
            return checked
        approval = asks_approval(self._rules(tool), checked) if self.approvals else None
        if tool.confirm or approval is not None:
            desk = Desk(shop=self.shop, session=session, rules=self.rules)
            return Outcome(
                status="proposed", result=arguments, session=session, rule=approval, facts=checked,
                summary=summary_of(desk, tool, call),
            )  # fmt: skip
        return self._act(session, tool, call, checked)

    def commit(
        self,
        session: Session,
        name: str,
        arguments: dict[str, Any],
        *,
        confirmed: bool,
        key: str,
        approved: bool = False,
    ) -> Outcome:
        """Make a proposed write. The same key never acts twice; without confirmation it is denied."""

        def work(session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
            parsed = self._parse(session, name, arguments)
            if isinstance(parsed, Outcome):
                return parsed
            tool, call = parsed
            earlier = self._made(session, name, call.model_dump(), key)
            if earlier is not None:
                return earlier
            checked = self._check(session, tool, call, confirmed=confirmed, approved=approved)
            if isinstance(checked, Outcome):
                return checked
            return self._act(session, tool, call, checked, key=key)

        return self._attempt(session, name, arguments, work)

    def made(
        self, session: Session, name: str, arguments: dict[str, Any], *, key: str
    ) -> Outcome | None:
        """The outcome of an earlier commit with this key, or None if there was none."""

        def work() -> Outcome | None:
            parsed = self._parse(session, name, arguments)
            if isinstance(parsed, Outcome):
                return parsed
            return self._made(session, name, parsed[1].model_dump(), key)

        return self.shop.attempt(work)

    def _made(
        self, session: Session, name: str, arguments: dict[str, Any], key: str
    ) -> Outcome | None:
        earlier = self.shop.first("SELECT call, result FROM idempotency WHERE key = ?", key)
        if earlier is None:
            return None
        if earlier["call"] != _fingerprint(session, name, arguments):
            return self._refuse(session, name, arguments, "key_reused", "use a new key")
        self._audit(name, arguments, "done", None)
        return Outcome(status="done", result=json.loads(earlier["result"]), session=session)

    def settle(
        self, session: Session, name: str, arguments: dict[str, Any], *, agreed: bool, key: str
    ) -> Outcome:
        """`propose`, then `commit` or `decline` at once, when the customer's answer is already known."""
        outcome = self.propose(session, name, arguments)
        if outcome.status != "proposed":
            return outcome
        if agreed:
            return self.commit(session, name, arguments, confirmed=True, approved=True, key=key)
        return self.decline(session, name, arguments)

    def decline(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        """The customer said no to a proposal."""
        self.shop.attempt(lambda: self._audit(name, arguments, "declined", None))
        return declined(session)

    def _parse(
        self, session: Session, name: str, arguments: dict[str, Any]
    ) -> tuple[Tool, Arguments] | Outcome:
        tool = self.tools.get(name)
        if tool is None:
            help = "use one of the tools offered"
            return self._refuse(session, name, arguments, "no_such_tool", help)
        try:
            return tool, tool.arguments.model_validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            help = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:120]
            return self._refuse(session, name, arguments, "bad_arguments", help)

    def _act(
        self,
        session: Session,
        tool: Tool,
        call: Arguments,
        facts: Facts,
        *,
        key: str | None = None,
    ) -> Outcome:
        after = session.copy()
        arguments = call.model_dump()
        try:
            with self.shop.atomically():
                desk = Desk(shop=self.shop, session=after, rules=self.rules)
                result = plain(tool.run(desk, call))
                written = json.dumps(result)
                if key is not None:
                    self.shop.insert(
                        "idempotency", key=key, call=_fingerprint(session, tool.name, arguments), result=written
                    )  # fmt: skip
        except ToolError as error:
            if tool.guesses:
                session = {**session, "guesses": session.get("guesses", 0) + 1}
            return self._refuse(session, tool.name, arguments, error.code, error.help)
        except Impossible as error:
            return self._refuse(session, tool.name, arguments, "impossible", str(error)[:200])
        self._audit(tool.name, arguments, "done", None)
        shown = ids_in(written).difference(session.get("seen", ()))
        if shown:
            after["seen"] = [*session.get("seen", ()), *sorted(shown)][-SEEN:]
        return Outcome(status="done", result=result, session=after, facts=facts)

    def _has_guessed_enough(self, session: Session, tool: Tool, call: Arguments) -> bool:
        """Whether a conversation, or all conversations about one order since it was last right, were wrong too often."""
        if session.get("guesses", 0) >= GUESSES:
            return True
        about = json.dumps({tool.guesses: getattr(call, tool.guesses)})[1:-1]
        for special in "!%_":
            about = about.replace(special, f"!{special}")
        rows = self.shop.all(
            "SELECT outcome FROM audit WHERE tool = ? AND arguments LIKE ? ESCAPE '!' AND outcome IN ('done', 'invalid') "
            "ORDER BY seq DESC LIMIT ?",
            tool.name, f"%{about}%", GUESSES_IN_ALL,
        )  # fmt: skip
        return len(rows) == GUESSES_IN_ALL and all(row["outcome"] == "invalid" for row in rows)

    def _check(
        self, session: Session, tool: Tool, call: Arguments, *, confirmed: bool, approved: bool
    ) -> Outcome | Facts:
        """The outcome of the first rule that denies this call; the facts if all allow it."""
        desk = Desk(shop=self.shop, session=session, rules=self.rules)
        facts = facts_for(desk, tool, call, (), confirmed=confirmed, approved=approved)
        for rule in self._rules(tool):
            needed = {thing for thing, _ in facts_of(rule.unless)} - facts.keys() - {"limit"}
            try:
                if needed:
                    facts |= facts_for(
                        desk, tool, call, needed, confirmed=confirmed, approved=approved
                    )
            except ToolError as error:
                return self._refuse(session, tool.name, call.model_dump(), error.code, error.help)
            if not rule.allows(facts):
                self._audit(tool.name, call.model_dump(), "denied", rule.id)
                return denied(session, rule, facts)
        return facts

    def _rules(self, tool: Tool) -> list[Rule]:
        if tool.name not in self._rules_of:
            self._rules_of[tool.name] = [r for r in self.rules if tool.name in r.applies_to]
        return self._rules_of[tool.name]

    def _refuse(
        self, session: Session, name: str, arguments: dict[str, Any], code: str, help: str
    ) -> Outcome:
        self._audit(name, arguments, "invalid", None)
        return refused(session, code, help)

    def _audit(self, name: str, arguments: dict[str, Any], outcome: str, rule: str | None) -> None:
        last = self.shop.first("SELECT hash FROM audit ORDER BY seq DESC LIMIT 1")
        row = (_text(name)[:80], json.dumps(arguments, sort_keys=True)[:2000], outcome, rule)
        self.shop.run(
            "INSERT INTO audit(tool, arguments, outcome, rule, hash) VALUES(?, ?, ?, ?, ?)",
            *row, _chained(last["hash"] if last else "", row),
        )  # fmt: skip


def _fingerprint(session: Session, name: str, arguments: dict[str, Any]) -> str:
    """The identity of a call: tool, arguments and customer."""
    return json.dumps([session["customer"], name, arguments], sort_keys=True)


def _text(name: str) -> str:
    """A tool name of a model, made safe for a database: no NUL, no half characters."""
    return name.encode("ascii", "backslashreplace").decode().replace("\0", "\\0")


def _chained(previous: str, row: tuple[str, str, str, str | None]) -> str:
    return hashlib.sha256((previous + json.dumps(row)).encode()).hexdigest()


def audit_holds(shop: Database) -> bool:
    """Whether the hash chain of the audit log is intact."""
    previous = ""
    for row in shop.all("SELECT * FROM audit ORDER BY seq"):
        entry = (row["tool"], row["arguments"], row["outcome"], row["rule"])
        previous = _chained(previous, entry)
        if previous != row["hash"]:
            return False
    return True
