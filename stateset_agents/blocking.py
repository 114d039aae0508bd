"""Async code for callers without a loop, such as synchronous nodes: one loop in a thread of its own, for as long as the process lives."""

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_running: dict[int, tuple[asyncio.AbstractEventLoop, threading.Thread]] = {}
"""By process: a fork has none of its parent's threads."""
_ends: list[Callable[[], Coroutine[Any, Any, None]]] = []


def finally_(end: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Have something done on the loop before the process ends, such as closing connections."""
    _ends.append(end)


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine comes to, in the caller's context. A caller that is interrupted cancels it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """Each item as soon as it is there. A caller that leaves cancels what makes them."""
    queue: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    async def pump() -> None:
        try:
            async for item in items:
                queue.put(("item", item))
        except BaseException as error:
            queue.put(("error", error))
            raise
        queue.put(("end", None))

    future = asyncio.run_coroutine_threadsafe(pump(), _loop())
    try:
        while True:
            kind, told = queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise told
            yield told
    finally:
        future.cancel()


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        if os.getpid() not in _running:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="stateset-calls", daemon=True)
            thread.start()
            _running[os.getpid()] = loop, thread
        return _running[os.getpid()][0]


def close() -> None:
    """End the loop, once what was asked for at the end is done. The next call begins another."""
    with _lock:
        loop, thread = _running.pop(os.getpid(), (None, None))
    if loop is None or thread is None:
        return
    for end in _ends:
        asyncio.run_coroutine_threadsafe(end(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


atexit.register(close)
