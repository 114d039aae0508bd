"""How many episodes play at once."""

import asyncio

import pytest

from stateset_agents.trainers.concurrency import FIRST, Gate


async def play(gate: Gate, count: int, engine: "Engine") -> None:
    async def episode() -> None:
        async with gate.place() as played:
            await engine.run(gate.limit)
            played(10)

    await asyncio.gather(*(episode() for _ in range(count)))


class Engine:
    """One that is no faster with more than `best` at once; its clock is told and not waited for."""

    def __init__(self, best: int) -> None:
        self.best, self.now, self.running, self.most = best, 0.0, 0, 0

    async def run(self, at_once: int) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        # A step of the batch takes as long for one as for `best`, and longer in proportion for more.
        self.now += max(1.0, at_once / self.best) / at_once
        self.running -= 1


@pytest.mark.parametrize("best", [16, 64])
async def test_the_number_is_found_by_what_it_brings(best: int) -> None:
    engine = Engine(best)
    gate = Gate(0, clock=lambda: engine.now)
    assert gate.limit == FIRST
    await play(gate, 2000, engine)
    assert gate.is_settled
    assert gate.limit == best
    assert gate.running == 0


async def test_a_number_that_is_given_stands() -> None:
    engine = Engine(64)
    gate = Gate(4)
    await play(gate, 100, engine)
    assert (gate.limit, engine.most, gate.running) == (4, 4, 0)


async def test_who_is_cancelled_leaves_the_place_to_the_next() -> None:
    gate, engine = Gate(2), Engine(2)

    async def episode() -> None:
        async with gate.place():
            await asyncio.sleep(0.01)
            await engine.run(2)

    tasks = [asyncio.create_task(episode()) for _ in range(10)]
    await asyncio.sleep(0)
    for task in tasks[1:6]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(result is None for result in done) == 5
    assert (gate.running, engine.most) == (0, 2)
