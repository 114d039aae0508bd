"""All of a job's training is done by one thread, one piece after the other."""

import asyncio
import threading

import pytest

from stateset_agents.trainers.learner_thread import LearnerThread


async def test_one_thread_does_it_all_in_order() -> None:
    thread, seen = LearnerThread(), list[tuple[int, int]]()

    def work(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number

    results = await asyncio.gather(*(thread.run(work, number) for number in range(20)))
    thread.close()
    assert results == list(range(20))
    assert [number for number, _ in seen] == list(range(20))
    assert len({ident for _, ident in seen}) == 1
    assert threading.get_ident() not in {ident for _, ident in seen}


async def test_errors_reach_the_caller() -> None:
    thread = LearnerThread()

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await thread.run(fail)
    thread.close()
