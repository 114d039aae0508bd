"""A backend is where a graph's tools act: a shop of ours in this process or in PostgreSQL, or somebody's over MCP."""

import abc
import asyncio
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from stateset_agents.tools.executor import Executor, Outcome, declined, refused
from stateset_agents.tools.tool import Session, Tool

Ability = Literal["clone", "rollback", "changes", "audit"]
"""What a backend may be able to do beside running tools: be copied for an episode, undo a failed act, tell
cell by cell what became different, and show its audit log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A tool as a graph sees it."""

    schema: dict[str, Any]
    """OpenAI's `tools` entry."""
    writes: bool
    """Whether it waits for the customer's word."""


class Backend(Protocol):
    """Two steps for every act: `propose` runs a read at once and leaves a write waiting, `commit` makes it.

    A backend that lacks an ability says so in `can`; training needs `clone` and `changes`.
    """

    @property
    def can(self) -> frozenset[Ability]:
        """Its abilities."""

    @property
    def offers(self) -> Mapping[str, Offer]:
        """Its tools by name."""

    async def propose(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        """Run a read; check a write and leave it proposed."""

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
        """Make a proposed write, once for each key."""

    async def decline(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome:
        """The customer said no to a proposal."""


class Foreign(abc.ABC):
    """Tools that act outside a shop of ours: they run or are refused, and nothing about them can be undone.

    A kind of them says how a call is checked and how it is made; the two steps are the same for all.
    """

    can: frozenset[Ability] = frozenset()
    offers: Mapping[str, Offer]

    def check(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome | None:
        """Why a call is refused before it is made, or None."""
        if name not in self.offers:
            return refused(session, "no_such_tool", "use one of the tools offered")
        return None

    @abc.abstractmethod
    async def act(
        self, session: Session, name: str, arguments: dict[str, Any], key: str | None
    ) -> Outcome:
        """Make a call: a write under its key, a read without one."""

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
    """Made once for a tool: a schema takes longer than an act."""
    return Offer(schema=tool.schema(), writes=tool.confirm)


class ShopBackend:
    """A shop of ours behind its executor. `threads` for a database that one has to wait for."""

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
