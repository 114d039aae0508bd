"""Runs async code for callers without an event loop, such as synchronous nodes: one loop in its own thread, as long as the
process lives."""

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any, TypeVar

from stateset_agents.policy.transport import close_connections

T = TypeVar("T")

ENDED = "Expected an answer, found that the loop of synchronous callers was ended, as it is with the process."

_lock = threading.Lock()
_running: dict[int, tuple[asyncio.AbstractEventLoop, threading.Thread]] = {}
"""By process id: a fork does not have its parent's threads."""


def is_here() -> bool:
    """Whether this code runs in that loop's thread."""
    running = _running.get(os.getpid())
    return running is not None and running[1] is threading.current_thread()


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, in the caller's context. An interrupted caller cancels it. Raises RuntimeError on the loop
    itself, which would wait for itself."""
    future = _started(coroutine)
    try:
        return future.result()
    except CancelledError:
        raise RuntimeError(ENDED) from None
    except BaseException:
        future.cancel()
        raise


def iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """Each item as soon as it arrives. A caller that stops reading cancels the iterator."""
    queue: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    async def pump() -> None:
        try:
            async for item in items:
                queue.put(("item", item))
        except asyncio.CancelledError:
            queue.put(("error", RuntimeError(ENDED)))
            raise
        except BaseException as error:
            queue.put(("error", error))
            raise
        queue.put(("end", None))

    future = _started(pump())
    try:
        while True:
            kind, content = queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise content
            yield content
    finally:
        future.cancel()


def _started(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    if is_here():
        coroutine.close()
        raise RuntimeError("Expected a synchronous caller, found the loop that answers those.")
    with _lock:
        if os.getpid() not in _running:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="stateset-calls", daemon=True)
            thread.start()
            _running[os.getpid()] = loop, thread
        return asyncio.run_coroutine_threadsafe(coroutine, _running[os.getpid()][0])


def close() -> None:
    """Cancel running work, close the connections, and end the loop. The next call starts another one."""
    with _lock:
        loop, thread = _running.pop(os.getpid(), (None, None))
    if loop is None or thread is None:
        return

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close_connections()

    with contextlib.suppress(TimeoutError):  # what takes longer ends with the process
        asyncio.run_coroutine_threadsafe(end(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    if not thread.is_alive():
        loop.close()


atexit.register(close)
