"""Pooled connections to policy servers, for each event loop its own."""

import asyncio
import weakref

import aiohttp

ANSWER_SECONDS = 120.0
"""How long an answer may take before its server counts as gone."""

_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = (
    weakref.WeakKeyDictionary()
)


def session_here() -> aiohttp.ClientSession:
    """The pooled connections of this event loop."""
    loop = asyncio.get_running_loop()
    session = _sessions.get(loop)
    if session is None or session.closed:
        session = aiohttp.ClientSession(
            # Uvicorn, and so vLLM, closes a connection that was idle for five seconds. We close it first.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=10),
        )
        _sessions[loop] = session
    return session


async def close_connections() -> None:
    """Close this event loop's pooled connections."""
    session = _sessions.pop(asyncio.get_running_loop(), None)
    if session is not None:
        await session.close()
