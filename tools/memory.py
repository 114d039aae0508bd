"""An agent's notes of a customer for later conversations, with the customer's consent, until they expire.

Notes live in LangGraph's store under ("customers", id). Each is kept only after the customer confirmed its exact words, and
expires; `forget_me` deletes all.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from langgraph.store.base import BaseStore, Item

from stateset_agents.tools.backend import Foreign, Offer
from stateset_agents.tools.commerce.catalogue import fenced
from stateset_agents.tools.executor import Outcome, refused
from stateset_agents.tools.tool import Session

DAY = 24 * 60 * 60
MOST = 20
"""The most notes of a customer; the oldest is replaced."""


def _offer(name: str, description: str, **properties: Any) -> Offer:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": description, "parameters": parameters}
    return Offer(schema={"type": "function", "function": function}, writes=True)


class Memory(Foreign):
    """The tools `remember` and `forget_me`, and their notes. Both need the customer's confirmation."""

    offers: Mapping[str, Offer] = {
        "remember": _offer(
            "remember",
            "Keep a note about the verified customer for later conversations.",
            note={"type": "string"},
        ),
        "forget_me": _offer("forget_me", "Delete all notes about the verified customer."),
    }

    def __init__(
        self, store: BaseStore, *, days: int = 180, clock: Callable[[], float] = time.time
    ) -> None:
        self.store = store
        self.days = days
        self.clock = clock

    async def recall(self, customer: str) -> list[str]:
        """The notes of a customer, oldest first; expired ones are deleted on the way."""
        if not customer:
            return []
        return [str(item.value["note"]) for item in await self._items(customer)]

    async def prompt(self, customer: str) -> str:
        """The notes as a part of the prompt."""
        notes = await self.recall(customer)
        return "".join(f"\nKept from earlier, in the customer's words: {fenced(n)}" for n in notes)

    async def act(
        self, session: Session, name: str, arguments: dict[str, Any], key: str | None
    ) -> Outcome:
        assert key is not None
        place = _place(session["customer"])
        items = await self._items(session["customer"])
        if name == "forget_me":
            for item in items:
                await self.store.adelete(place, item.key)
            return Outcome(status="done", result={"forgotten": len(items)}, session=session)
        for item in items[: max(0, len(items) + 1 - MOST)]:
            await self.store.adelete(place, item.key)
        note = {
            "note": arguments["note"],
            "at": self.clock(),
            "until": self.clock() + self.days * DAY,
        }
        # The key makes a note that is kept twice the same note.
        await self.store.aput(place, uuid.uuid5(uuid.NAMESPACE_OID, key).hex, note)
        return Outcome(status="done", result={"kept_days": self.days}, session=session)

    async def _items(self, customer: str) -> list[Item]:
        items: list[Any] = list(await self.store.asearch(_place(customer), limit=10 * MOST))
        now = self.clock()
        for item in items:
            if item.value["until"] <= now:
                await self.store.adelete(_place(customer), item.key)
        kept = [item for item in items if item.value["until"] > now]
        return sorted(kept, key=lambda item: (item.value["at"], item.key))

    async def check(self, session: Session, name: str, arguments: dict[str, Any]) -> Outcome | None:
        unknown = await super().check(session, name, arguments)
        if unknown is not None:
            return unknown
        if not session["customer"]:
            return refused(session, "not_verified", "call verify_identity first")
        note = arguments.get("note")
        wanted = {"note"} if name == "remember" else set[str]()
        if set(arguments) != wanted or (
            wanted and not (isinstance(note, str) and 0 < len(note) <= 300)
        ):
            return refused(session, "bad_arguments", "note: from 1 to 300 characters")
        return None


def _place(customer: str) -> tuple[str, str]:
    return ("customers", customer)
