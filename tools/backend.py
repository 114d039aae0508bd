"""A backend is where a graph's tools act: a shop in this process or in PostgreSQL, or another shop over MCP."""

import abc
import asyncio
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from stateset_agents.tools.executor import Executor, Outcome, declined, refused
from stateset_agents.tools.tool import Session, Tool

Ability = Literal["clone", "rollback", "changes", "audit"]
"""Optional abilities of a backend: cloning for an episode, rollback of a failed act, changes cell by cell, and an audit log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A tool as a graph gets it."""

    schema: dict[str, Any]
    """Its entry in OpenAI's `tools`."""
    writes: bool
    """Whether it needs the customer's confirmation."""


class Backend(Protocol):
    """Two steps for every act: `propose` runs a read at once and leaves a write pending, `commit` makes it. `can` has its
    abilities; training needs `clone` and `changes`."""

    @property
    def can(self) -> frozenset[Ability]:
        """Its abilities."""

    @property
    def offers(self) -> Mapping[str, Offer]:
        """Its tools by name."""

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


class Foreign(abc.ABC):
    """Tools outside our shop: they run or are refused, and cannot be undone. Subclasses define how a call is checked and made;
    the two steps are the same for all."""

    can: frozenset[Ability] = frozenset()
    offers: Mapping[str, Offer]

    def check(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome | None:
        """The reason to refuse a call before it is made, or None."""
        if name not in self.offers:
            return refused(session, "no_such_tool", "use one of the tools offered")
        return None

    @abc.abstractmethod
    async def act(
        self, session: Session, name: str, arguments: dict[str, Any], key: str | None
    ) -> Outcome:
        """Make a call: a write with its key, a read without."""

    async def propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        wrong = self.check(session, name, arguments)
        if wrong is not None:
            return wrong
        if self.offers[name].writes:
            return Outcome(status="proposed", result=arguments, session=session)
        return await self.act(session, name, arguments, None)

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
        wrong = self.check(session, name, arguments)
        if wrong is not None:
            return wrong
        if not confirmed:
            return declined(session)
        return await self.act(session, name, arguments, key)

    async def decline(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        return declined(session)


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
    def can(self) -> frozenset[Ability]:
        every: frozenset[Ability] = frozenset({"clone", "rollback", "changes", "audit"})
        return every - {"clone"} if self.threads else every

    async def propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        return await self._run(self.executor.propose, session, name, arguments)

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
        return await self._run(
            self.executor.commit, session, name, arguments, confirmed=confirmed, key=key, approved=approved
        )  # fmt: skip

    async def decline(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        return await self._run(self.executor.decline, session, name, arguments)

    async def _run(self, act: Any, *arguments: Any, **options: Any) -> Outcome:
        if self.threads:
            return await asyncio.to_thread(act, *arguments, **options)
        outcome: Outcome = act(*arguments, **options)
        return outcome
