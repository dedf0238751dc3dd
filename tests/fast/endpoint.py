"""A scripted OpenAI-compatible server on this machine: real HTTP, and every way to fail."""

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RESET = "reset"  # in place of a reply: the connection is cut without one
Reply = Any  # (status, headers, JSON, bytes or the seconds to wait before a good answer) or RESET

EDIT = "Diagnosis: no box.\n```\nAnswer.\nUse a box.\n```"


def chat(content: str | None, finish: str = "stop", usage: Any = (11, 7)) -> dict[str, Any]:
    """The body of a chat completion."""
    tokens = dict(zip(("prompt_tokens", "completion_tokens"), usage or (), strict=False))
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish}
    return {"choices": [choice], "usage": tokens or None}


class Endpoint:
    """Plays a list of replies and repeats the last one, or answers by `answer(body)`."""

    def __init__(self) -> None:
        self.replies: list[Reply] = [(200, {}, chat(EDIT))]
        self.answer: Callable[[dict[str, Any]], Reply] | None = None
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.lock = threading.Lock()
        self.in_flight = self.most_in_flight = 0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with endpoint.lock:
                    endpoint.requests.append((body | {"path": self.path}, dict(self.headers)))
                    reply = endpoint.replies[0]
                    if len(endpoint.replies) > 1:
                        endpoint.replies.pop(0)
                    endpoint.in_flight += 1
                    endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
                try:
                    self.play(endpoint.answer(body) if endpoint.answer else reply)
                except OSError:
                    pass  # the client gave up
                with endpoint.lock:
                    endpoint.in_flight -= 1

            def play(self, reply: Reply) -> None:
                if reply == RESET:
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()
                    return
                status, headers, answer = reply
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = chat(EDIT)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # a connection that was cut has no stream left to close

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def seeds(self) -> list[int]:
        """Of the requests so far."""
        return [body["seed"] for body, _ in self.requests]


@contextmanager
def serving() -> Iterator[Endpoint]:
    """An endpoint that is gone at the end."""
    endpoint = Endpoint()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()


LINES = (
    "Work backwards from the goal.",
    "Box the whole path.",
    "Think of every node.",
    "Check each edge.",
    "Be brief.",
    "Start at the source.",
)


def editor(body: dict[str, Any]) -> Reply:
    """A model that adds a line to the prompt that it is shown: which, the seed says."""
    said = body["messages"][0]["content"].split("```\n")[1].strip()
    line = random.Random(body["seed"]).choice(LINES)
    return (200, {}, chat(f"<think>Hm.</think>It lacks a line.\n```\n{said}\n{line}\n```"))
