"""The thread that trains: one for a job's life."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class LearnerThread:
    """Runs a job's training, so that the event loop goes on with episodes.

    One thread and not `asyncio.to_thread`, which takes another one for nearly each step: malloc gives each thread an arena of its own, and
    each arena keeps what a step needed.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="learner")

    def close(self) -> None:
        """Let the thread end. What it does now is done first, and not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work`, in the thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(work, *args, **kwargs))
