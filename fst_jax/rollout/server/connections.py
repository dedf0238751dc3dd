"""Connections that wait: one that has not sent the head of a request in time is closed.

uvicorn closes connections that are idle after a request; one on which nothing, or half a head, ever
comes would hold its file descriptor for ever.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 60.0  # for the head of a request to arrive; `front.BODY_S` is for its body


class Connection(H11Protocol):
    """uvicorn's connection with a deadline for the head of each request."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; a request that it was the body of gets no other answer."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # within an answer to what came before, or one to HEAD
            self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if not waiting:
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
