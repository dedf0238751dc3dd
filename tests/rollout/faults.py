"""A proxy before a real server that spoils chosen answers."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import httpx

LOST = "lost"  # an error, and the server behind never hears of the request
Spoil = Callable[[BaseHTTPRequestHandler, httpx.Response], bool]  # True: nothing more is sent


class Faults(ThreadingHTTPServer):
    """`spoil(path, fault)` lets the next answer of a path go through a fault."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []  # paths, in order
        self._faults: dict[str, list[Any]] = {}
        self._lock = threading.Lock()

    def spoil(self, path: str, *faults: Any) -> None:
        self._faults.setdefault(path, []).extend(faults)

    @property
    def left(self) -> int:
        return sum(map(len, self._faults.values()))

    def next_fault(self, path: str) -> Any:
        with self._lock:
            self.asked.append(path)
            faults = self._faults.get(path)
            return faults.pop(0) if faults else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break here on purpose."""

    def __enter__(self) -> "Faults":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Faults

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        fault = self.server.next_fault(self.path)
        if fault == LOST:
            send(self, 500, b"")
            return
        response = httpx.request(
            self.command, self.server.target + self.path, content=body, timeout=120
        )
        if fault is not None and fault(self, response):
            return
        send(self, response.status_code, response.content)

    do_GET = do_POST = _pass

    def log_message(self, *_: object) -> None:
        """Be silent."""


def send(handler: BaseHTTPRequestHandler, status: int, content: bytes) -> None:
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def status(code: int) -> Spoil:
    """An error, with the real answer lost."""

    def spoil(handler: BaseHTTPRequestHandler, response: httpx.Response) -> bool:
        send(handler, code, b'{"error": {"message": "spoiled"}}')
        return True

    return spoil


def stall(seconds: float) -> Spoil:
    def spoil(handler: BaseHTTPRequestHandler, response: httpx.Response) -> bool:
        threading.Event().wait(seconds)
        return False

    return spoil


def reset(handler: BaseHTTPRequestHandler, response: httpx.Response) -> bool:
    """The connection breaks before anything is said."""
    handler.close_connection = True
    handler.connection.close()
    return True


def truncated(handler: BaseHTTPRequestHandler, response: httpx.Response) -> bool:
    """Half of the body, then the connection ends."""
    handler.send_response(200)
    handler.send_header("content-length", str(len(response.content)))
    handler.end_headers()
    handler.wfile.write(response.content[: len(response.content) // 2])
    return reset(handler, response)


def half(handler: BaseHTTPRequestHandler, response: httpx.Response) -> bool:
    """Half of the body, which claims to be all."""
    send(handler, 200, response.content[: len(response.content) // 2])
    return True


def no_json(handler: BaseHTTPRequestHandler, response: httpx.Response) -> bool:
    send(handler, 200, b"<html>busy</html>")
    return True


def changed(change: Callable[[Any], Any]) -> Spoil:
    """The answer with its JSON changed."""

    def spoil(handler: BaseHTTPRequestHandler, response: httpx.Response) -> bool:
        answers = json.loads(response.content)
        send(handler, 200, json.dumps(change(answers) or answers).encode())
        return True

    return spoil


def in_first(change: Callable[[dict[str, Any]], None]) -> Spoil:
    """The first sample of a batch changed."""
    return changed(lambda answers: change(answers[0]))
