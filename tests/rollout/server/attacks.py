"""Requests that no client means to send, drawn from a seed: for a server that must take them all.

Bodies hold wrong values in every field of every route; what goes over the wire may be no HTTP.
"""

import gzip
import json
import random
import socket
from typing import Any

from tests.rollout.server.test_fields import ROUTES, SAMPLING

# Of bodies, and of controls whose body is none or hardly one.
CONTROLS = {
    "/update_weights_from_disk": (
        "model_path", "load_format", "abort_all_requests", "weight_version", "is_async",
        "flush_cache", "token_step",
    ),
    "/pause_generation": ("mode",),
    "/abort_request": ("rid", "abort_all"),
    "/release_memory_occupation": ("tags",),
    "/resume_memory_occupation": ("tags",),
    "/continue_generation": (),
    "/flush_cache": (),
}  # fmt: skip
LOOKS = ("/health", "/model_info", "/server_info", "/v1/models", "/metrics", "/nowhere", "/%00",
         "/../../etc/passwd", "//", "/generate/", "/v1/")  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW", "CONNECT", "")
DEEP = "[" * 20_000


class Raw:
    """JSON text as it stands, valid or not."""

    def __init__(self, text: str):
        self.text = text


def value(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value that fits hardly anything."""
    leaves: list[Any] = [
        None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), Raw("9" * 5000), 0.5, -0.0,
        Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("1e-999"), 1e308, "", "x", "ünï😀\u2028",
        "<|im_end|>", Raw(r'"\ud800"'), Raw('"\\u0000"'), Raw('"\x01"'), "x" * 5000,
        "../../etc/passwd", "/dev/zero", "{{ 7 * 7 }}", Raw(DEEP), Raw('{"a":' * 20_000),
        Raw("[1,"), Raw("nul"), [], {}, [[]], [None], ["x", 1], [5] * 600,
        [5, 10**9, -1], [[5], "x"], {"x": {"y": []}},
    ]  # fmt: skip
    choice = rng.random()
    if depth < 3 and choice < 0.15:
        return [value(rng, depth + 1) for _ in range(rng.randrange(5))]
    if depth < 3 and choice < 0.25:
        names = [*SAMPLING, "role", "content", "type", "text", "url", "x"]
        return {rng.choice(names): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice(leaves)


def text_of(body: Any) -> str:
    """The body as JSON, with what is no JSON where `Raw` has it."""
    if isinstance(body, Raw):
        return body.text
    if isinstance(body, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{text_of(v)}" for k, v in body.items()) + "}"
    if isinstance(body, list):
        return "[" + ",".join(map(text_of, body)) + "]"
    return json.dumps(body)


def request(rng: random.Random) -> tuple[str, str, bytes]:
    """(method, path, body) of a request that is HTTP, at least."""
    kind = rng.random()
    if kind < 0.6:
        path = rng.choice([*ROUTES])
        _, table, least = ROUTES[path]
        body = dict(least) | ({"input_ids": [5, 6]} if path == "/generate" else {})
        for name in rng.sample([*table], rng.randint(1, 3)):
            body[name] = value(rng) if rng.random() < 0.8 else table[name][0]
        if "sampling_params" in body and rng.random() < 0.5:
            body["sampling_params"] = {"max_new_tokens": 2, rng.choice([*SAMPLING]): value(rng)}
        return "POST", path, text_of(body).encode("utf-8", "surrogatepass")
    if kind < 0.8:
        path = rng.choice([*CONTROLS])
        names = CONTROLS[path]
        body = {name: value(rng) for name in rng.sample(names, rng.randint(0, len(names)))}
        return "POST", path, text_of(body).encode("utf-8", "surrogatepass")
    if kind < 0.9:
        path = rng.choice([*ROUTES, *CONTROLS])
        spoiled = [
            b"", b"\xff\xfe", b"\x00" * 1000, rng.randbytes(rng.randrange(2000)),
            gzip.compress(bytes(1 << 20)), text_of(value(rng)).encode("utf-8", "surrogatepass"),
            b"{" * 100_000, b'{"text":"' + b"a" * 200_000 + b'"}',
            b'{"text":' + b"[" + b'"a",' * 20_000 + b'"a"]}',
            b'{"input_ids":[' + b"5," * 50_000 + b"5]}",
        ]  # fmt: skip
        return rng.choice(["POST", "PUT"]), path, rng.choice(spoiled)
    return rng.choice(METHODS[:-2]), rng.choice([*LOOKS, *ROUTES, *CONTROLS]), b""


def wire(rng: random.Random) -> bytes:
    """Bytes that may be HTTP, whole, in part, or not at all."""
    method, path, body = request(rng)
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n".encode()
    length = f"content-length: {len(body)}\r\n".encode()
    chunked = b"transfer-encoding: chunked\r\n"
    closing = b"connection: close\r\n"
    whole = head + closing + length + b"\r\n" + body
    return rng.choice(
        [
            whole,
            whole,
            head + closing + b"content-encoding: gzip\r\n" + length + b"\r\n" + body,
            head + closing + b"content-length: 99999999\r\n\r\n" + body,  # more than comes
            head + closing + b"content-length: -1\r\n\r\n" + body,
            head + closing + b"content-length: 1e3\r\n\r\n" + body,
            head + closing + b"content-length: 1\r\n" + length + b"\r\n" + body,
            head + closing + length + chunked + b"\r\n" + body,
            head + closing + chunked + b"\r\nzz\r\n" + body,
            head + closing + chunked + b"\r\n" + b"f" * 40 + b"\r\n" + body,
            head + closing + chunked + b"\r\n2\r\n{}\r\n0\r\n\r\n",
            head + closing + chunked + b"\r\n1\r\n{\r\n",
            head + b"x: " + b"a" * 100_000 + b"\r\n\r\n",
            head + b"".join(b"x%d: y\r\n" % n for n in range(5000)) + b"\r\n",
            head + b"no colon\r\n\r\n",
            head + b" folded: x\r\n\r\n",
            head + b"a\x00b: \x01\r\n\r\n",
            head + b"authorization: Bearer " + b"\xff" * 100 + b"\r\n" + closing + b"\r\n",
            head + b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: x\r\n\r\n",
            head + b"expect: 100-continue\r\n" + closing + length + b"\r\n",
            head,  # and no end
            method.encode(),
            b"",
            b"\r\n" * 100,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(300),  # TLS
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            f"{method} {path} HTTP/9.9\r\n\r\n".encode(),
            f"{method} * HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
            f"{method} http://other{path} HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
            f"{method} {'/' + 'a' * 70_000} HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
            f"{method}\t{path}\tHTTP/1.1\r\n\r\n".encode(),
            b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 50 + head + closing + b"\r\n",
            rng.randbytes(rng.randrange(3000)),
        ]
    )


def exchange(address: tuple[str, int], data: bytes, timeout_s: float = 30.0) -> list[int]:
    """Send bytes and no more; the statuses of what comes back, until the server has no more to say.

    Raises TimeoutError if it neither answers nor closes.
    """
    with socket.create_connection(address, timeout_s) as connection:
        received = bytearray()
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                received += part
        except TimeoutError:
            raise
        except OSError:
            pass  # it had read enough, and closed
    lines = received.split(b"\r\n")
    return [int(line.split()[1]) for line in lines if line.startswith(b"HTTP/1.1 ")]
