"""A backend is where a graph's tools act: a shop in this process or in PostgreSQL, or another shop over MCP."""

import abc
import asyncio
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from stateset_agents.plain import plain
from stateset_agents.tools.executor import Executor, Outcome, declined, denied, refused
from stateset_agents.tools.rules import Facts, Rule, asks_approval
from stateset_agents.tools.tool import Session, Tool

WRITES = 4096
"""Writes of other shops whose outcomes are kept, to answer the same key again."""

Ability = Literal["clone", "rollback", "changes", "audit"]
"""Optional abilities of a backend: cloning for an episode, rollback of a failed act, changes cell by cell, and an audit log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A tool as a graph gets it."""

    schema: dict[str, Any]
    """Its entry in OpenAI's `tools`."""
    writes: bool | Callable[[dict[str, Any]], bool]
    """Whether it needs the customer's confirmation; for a tool that only previews with some arguments, a function of them."""

    def asks(self, arguments: dict[str, Any]) -> bool:
        """Whether this call needs the customer's confirmation."""
        return self.writes(arguments) if callable(self.writes) else self.writes


class Backend(Protocol):
    """Two steps for every act: `propose` runs a read at once and leaves a write pending, `commit` makes it. `can` has its
    abilities; training needs `clone` and `changes`."""

    @property
    def can(self) -> frozenset[Ability]:
        """Its abilities."""

    @property
    def offers(self) -> Mapping[str, Offer]:
        """Its tools by name."""

    @property
    def rules(self) -> Sequence[Rule] | None:
        """The rules that it checks; None if another process does: the shop's own are assumed."""

    async def propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        """Run a read; check a write and leave it pending."""

    async def commit(
        self,
        session: Session,
        name: str,
        arguments: dict[str, Any],
        *,
        confirmed: bool,
        key: str,
        approved: bool = False,
    ) -> Outcome:
        """Make a proposed write, only once for each key."""

    async def decline(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        """The customer refused a proposal."""

    async def made(
        self, session: Session, name: str, arguments: dict[str, Any], *, key: str
    ) -> Outcome | None:
        """The outcome of a write that was made under this key before its turn broke off; None if there is none."""


@dataclass(slots=True)
class _Write:
    """A write under its key: running, or with its outcome."""

    call: tuple[str, str, str]
    """Customer, tool and arguments."""
    task: "asyncio.Task[Outcome]"


class Foreign(abc.ABC):
    """Tools outside our shop: they run or are refused, and cannot be undone. Subclasses define how a call is checked and made;
    the two steps are the same for all.

    A write runs once for its key, whatever happens to the run that asked for it: a node that is retried, timed out or cancelled
    gets the outcome of the write that it began. That holds in this process. The tool gets the key, so that it can hold in all.
    """

    can: frozenset[Ability] = frozenset()
    offers: Mapping[str, Offer]
    rules: Sequence[Rule] | None = ()
    """Rules by the names of these tools. They can use a call's arguments and the session."""
    approvals: bool = False
    """Whether a person can be asked: a rule with effect `approval` then leaves a proposal that names it. Otherwise it denies."""

    @functools.cached_property
    def _writes(self) -> dict[str, _Write]:
        """Writes by key, in the order in which they began."""
        return {}

    async def check(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome | None:
        """The reason to refuse a call before it is made, or None."""
        if name not in self.offers:
            return refused(session, "no_such_tool", "use one of the tools offered")
        return None

    @abc.abstractmethod
    async def act(
        self, session: Session, name: str, arguments: dict[str, Any], key: str | None
    ) -> Outcome:
        """Make a call: a write with its key, a read without."""

    def summary(self, name: str, arguments: dict[str, Any]) -> str:
        """A call in words, for the customer who confirms it."""
        details = ", ".join(
            f"{field.replace('_', ' ')}: {value}" for field, value in arguments.items()
        )
        return f"{name.replace('_', ' ')}: {details}" if details else name.replace("_", " ")

    async def propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        wrong = await self._refusal(
            session, name, arguments, confirmed=True, approved=self.approvals
        )
        if wrong is not None:
            return wrong
        facts = _facts(session, arguments, confirmed=True, approved=self.approvals)
        rule = asks_approval(self._rules(name), facts) if self.approvals else None
        if rule is not None or self.offers[name].asks(arguments):
            return Outcome(
                status="proposed", result=arguments, session=session, rule=rule, facts=facts,
                summary=self.summary(name, arguments),
            )  # fmt: skip
        outcome = await self.act(session, name, arguments, None)
        return replace(outcome, facts=facts)

    async def commit(
        self,
        session: Session,
        name: str,
        arguments: dict[str, Any],
        *,
        confirmed: bool,
        key: str,
        approved: bool = False,
    ) -> Outcome:
        call = (session["customer"], name, json.dumps(plain(arguments), sort_keys=True))
        made = self._begun(key)
        if made is not None:
            if made.call != call:
                return refused(session, "key_reused", "use a new key")
            task = made.task
            return task.result() if task.done() else await asyncio.shield(task)
        wrong = await self._refusal(
            session, name, arguments, confirmed=confirmed, approved=approved
        )
        if wrong is not None:
            return wrong
        if not confirmed:
            return declined(session)
        if (made := self._begun(key)) is not None:  # while the check was waited for
            return await asyncio.shield(made.task)
        # A task of its own: a turn that is cancelled in the middle must not tear the write in two.
        task = asyncio.ensure_future(self.act(session, name, arguments, key))
        self._writes[key] = _Write(call, task)
        outcome = await asyncio.shield(task)
        facts = _facts(session, arguments, confirmed=confirmed, approved=approved)
        return replace(outcome, facts=facts)

    async def made(
        self, session: Session, name: str, arguments: dict[str, Any], *, key: str
    ) -> Outcome | None:
        """The outcome of the write under this key, if it was begun in this process."""
        begun = self._begun(key)
        return None if begun is None else await asyncio.shield(begun.task)

    def _begun(self, key: str) -> _Write | None:
        """The write under this key, unless it ended without an outcome: it asked somebody, or was cancelled."""
        while len(self._writes) > WRITES and next(iter(self._writes.values())).task.done():
            del self._writes[next(iter(self._writes))]
        made = self._writes.get(key)
        ended = made is not None and made.task.done()
        if made and ended and (made.task.cancelled() or made.task.exception() is not None):
            del self._writes[key]
            return None
        return made

    async def _refusal(
        self,
        session: Session,
        name: str,
        arguments: dict[str, Any],
        *,
        confirmed: bool,
        approved: bool,
    ) -> Outcome | None:
        wrong = await self.check(session, name, arguments)
        if wrong is not None:
            return wrong
        facts = _facts(session, arguments, confirmed=confirmed, approved=approved)
        broken = next((rule for rule in self._rules(name) if not _allows(rule, facts)), None)
        return None if broken is None else denied(session, broken, facts)

    def _rules(self, name: str) -> list[Rule]:
        return [rule for rule in self.rules or () if name in rule.applies_to]

    async def decline(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        return declined(session)


def _allows(rule: Rule, facts: Facts) -> bool:
    """What a rule cannot decide it denies: an argument that is missing, or of another type."""
    try:
        return rule.allows(facts)
    except (KeyError, TypeError):
        return False


def _facts(
    session: Session, arguments: dict[str, Any], *, confirmed: bool, approved: bool
) -> dict[str, dict[str, Any]]:
    """What rules can use of a call outside our shop."""
    return {
        "call": {**arguments, "confirmed": confirmed, "approved": approved},
        "session": {"customer": session["customer"], "role": session.get("role", "customer")},
    }


@functools.lru_cache(maxsize=1024)
def _offer(tool: Tool) -> Offer:
    """Cached: making a schema takes longer than running a tool."""
    return Offer(schema=tool.schema(), writes=tool.confirm)


class ShopBackend:
    """Our shop behind its executor. `threads`: run calls in a thread, for a database on the network."""

    def __init__(self, executor: Executor, *, threads: bool = False) -> None:
        self.executor = executor
        self.threads = threads
        self.offers: Mapping[str, Offer] = {
            tool.name: _offer(tool) for tool in executor.tools.values()
        }

    @property
    def rules(self) -> Sequence[Rule]:
        return self.executor.rules

    @property
    def can(self) -> frozenset[Ability]:
        every: frozenset[Ability] = frozenset({"clone", "rollback", "changes", "audit"})
        return every - {"clone"} if self.threads else every

    async def propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        outcome: Outcome = await self._run(self.executor.propose, session, name, arguments)
        return outcome

    async def commit(
        self,
        session: Session,
        name: str,
        arguments: dict[str, Any],
        *,
        confirmed: bool,
        key: str,
        approved: bool = False,
    ) -> Outcome:
        outcome: Outcome = await self._run(
            self.executor.commit, session, name, arguments, confirmed=confirmed, key=key, approved=approved
        )  # fmt: skip
        return outcome

    async def decline(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        outcome: Outcome = await self._run(self.executor.decline, session, name, arguments)
        return outcome

    async def made(
        self, session: Session, name: str, arguments: dict[str, Any], *, key: str
    ) -> Outcome | None:
        """The outcome of an earlier commit with this key, or None if there was none."""
        outcome: Outcome | None = await self._run(
            self.executor.made, session, name, arguments, key=key
        )
        return outcome

    async def _run(self, act: Any, *arguments: Any, **options: Any) -> Any:
        if self.threads:
            return await asyncio.to_thread(act, *arguments, **options)
        return act(*arguments, **options)
