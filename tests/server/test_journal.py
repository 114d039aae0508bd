"""The journal under races and broken transactions, in SQLite and PostgreSQL, over two servers' connections."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.server import journal
from stateset_agents.server.conversations import Conversation, Conversations, kept_in


@pytest.fixture(params=["sqlite", "postgresql"])
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[Conversations]]:
    """The conversations of two servers on one database."""
    place = str(tmp_path / "state.db")
    if request.param == "postgresql":
        place = request.getfixturevalue("postgres_url")
    async with kept_in(place) as first, kept_in(place) as other:
        yield [first, other]


async def test_one_of_many_servers_answers_a_turn(two: list[Conversations]) -> None:
    claims = await asyncio.gather(*(two[n % 2].journal.claim("race", "yes") for n in range(40)))
    (mine,) = [claim for claim in claims if claim.mine]
    assert all(claim.outcome is None for claim in claims)
    await two[0].journal.release("race", "somebody else's token")
    assert not (await two[1].journal.claim("race", "yes")).mine
    ended = two[0].journal.ending("race", "yes", {"done": True})
    await two[0].keep(
        Conversation(id="race"), "", "g/race", checkpoint="1", pending=None, ended=ended
    )
    await two[0].journal.release("race", mine.owner)
    again = await asyncio.gather(*(two[n % 2].journal.claim("race", "yes") for n in range(10)))
    assert [(claim.mine, claim.outcome) for claim in again] == [(False, {"done": True})] * 10
    assert (await two[1].journal.claim("race", "another question")).mine


async def test_words_that_two_have_are_nobodys_however_they_race(two: list[Conversations]) -> None:
    await asyncio.gather(
        *(
            two[n % 2].keep(
                Conversation(id=f"t{n}"), "", "g/words/hi", checkpoint=str(n), pending=None
            )
            for n in range(10)
        )
    )
    assert await two[0].find("g/words/hi") is None
    assert await two[1].find("g/words/hi") is None


async def test_a_turn_is_stored_whole_or_not_at_all(two: list[Conversations]) -> None:
    kept = two[0]
    at: Any = {"checkpoint": "1", "pending": "confirm_x"}
    await kept.keep(Conversation(id="whole"), "", "g/before", **at)
    broken = [
        *kept.journal.ending("whole", "yes", {}),
        ("INSERT INTO no_such_table VALUES(?)", (1,)),
    ]
    with pytest.raises(Exception, match="no_such_table"):
        await kept.keep(
            Conversation(id="whole"),
            "g/before",
            "g/after",
            checkpoint="2",
            pending=None,
            ended=broken,
        )
    assert await two[1].find("g/after") is None
    assert await two[1].journal.outcome("whole", "yes") is None
    kept_before = await two[1].find("g/before")
    assert kept_before == Conversation(id="whole", checkpoint="1", pending="confirm_x")


async def test_who_loses_a_lease_is_told_of_it(
    two: list[Conversations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LEASE", 0.2)
    claim = await two[0].journal.claim("lost", "yes")
    leases: list[journal.Lease] = []

    async def turn() -> None:
        async with two[0].journal.held_alive("lost", claim.owner) as lease:
            leases.append(lease)
            await asyncio.sleep(0.3)  # its renewals keep it
            assert not lease.lost
            await two[1].tables.run(
                "UPDATE stateset_turn SET outcome = ? WHERE thread = ?", "another", "lost"
            )
            await asyncio.sleep(5)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.ensure_future(turn())
    assert leases[0].lost
