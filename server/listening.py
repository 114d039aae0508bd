"""How our servers listen: a connection that never says what it wants is closed, and an end is an end."""

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 10.0
"""How long a request's head may take to arrive."""
GRACE = 30
"""How long a server waits for answers under way when it is told to end, in seconds."""


class Listening(AutoHTTPProtocol):  # type: ignore[valid-type,misc]
    """uvicorn's protocol, which waits for a request's head without end."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self._rest()
        elif self._late is None and not self.transport.is_closing():
            self._watch()  # a further request has begun

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        self._late = self.loop.call_later(HEAD_SECONDS, self._close)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if not self._is_answering() and not self.transport.is_closing():
            self.transport.close()


def config(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    """How an app is served on a port."""
    return uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, http=Listening,
        timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
