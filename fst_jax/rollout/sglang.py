"""The engine that samples from served models, by SGLang's protocol.

Token ids in, token ids and log-probabilities out, over one or more servers: SGLang on GPUs,
sglang-jax on TPUs, or `python -m fst_jax.serve`.  What a server cannot do is found out at the
start.  Every answer is checked before it counts: ids and log-probabilities of every sample asked
for, finite, ended properly, and generated from first to last under the weights of this moment.
Anything else is asked again, with growing pauses, until `patience_s` have passed; then the run
ends with a clear message, and what was saved can be resumed.

A sync writes a Hugging Face folder and has every server load it: pause, update, look whether the
server says what it now serves, continue.  A server that comes back with other weights, since it
was started anew, is brought up to date in the same way.

Each sample is asked for with a seed of its own: SGLang gives the samples of one request one seed.
"""

import contextlib
import math
import queue
import re
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from fst_jax.errors import EngineError
from fst_jax.keys import masked
from fst_jax.parallel.distributed import agreed, is_main
from fst_jax.rollout.engine import Capabilities, Completion, Request, check_fits, same_arrays
from fst_jax.threads import side_by_side
from fst_jax.watchdog import beat

Save = Callable[[Path, Any], None]  # writes parameters as a Hugging Face folder
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
_CALLS_AHEAD = 2  # batches for every server beyond what it decodes, so that its slots stay full
_KEPT_FOLDERS = 2
_TOLD_EVERY_S = 60.0
_SPARED = 2  # tokens of its context that SGLang gives to no request


class _Transient(Exception):
    """Something that may go right when asked again; the message says what was wrong."""


@dataclass(frozen=True)
class _Ask:
    """One sample to be had: which of which request."""

    request: Request
    seed: int
    place: tuple[int, int]


@dataclass
class _Server:
    url: str
    client: httpx.Client
    updates: bool = True  # whether it can take new weights
    max_context: int | None = None
    version: str | None = None  # what it said it serves
    info: str = "/model_info"
    syncing: threading.Lock = field(default_factory=threading.Lock)


class SGLangEngine:
    """`Engine` over SGLang's HTTP routes.

    `generate` and `update_weights` raise EngineError when a server refuses what is asked, or
    fails for longer than `patience_s`.  Of several processes, process 0 talks to the servers.
    """

    def __init__(
        self,
        urls: Sequence[str],
        save: Save,
        weights: Path,
        *,
        max_context: int,
        batch_size: int,
        timeout_s: float = 600.0,
        patience_s: float = 600.0,
        api_key: str | None = None,
    ) -> None:
        """Find out what the servers can do.

        Args:
          save: writes parameters into a folder below `weights`, which the servers must see, too,
            and which is this run's alone: weights that are there already are removed.
          max_context: of the model, in tokens; a server may have less.
          batch_size: samples that a server decodes at once.
          timeout_s: longest wait for one answer.
          patience_s: longest time in which a server may fail to give a good one.

        Raises:
          EngineError: a server cannot be reached.
        """
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0))
        self._servers = [
            _Server(url, httpx.Client(base_url=url, timeout=timeout, headers=headers))
            for url in dict.fromkeys(url.strip().rstrip("/") for url in urls)
        ]
        self._save, self._weights = save, weights
        self._batch_size, self._patience_s, self._key = batch_size, patience_s, api_key
        self._folder: Path | None = None  # of the newest weights that were written
        self._written: deque[Path] = deque()  # by this engine, and still there
        self._label: str | None = None  # and how the servers call them; None: what they began with
        self._served: Any = None  # the parameters themselves
        self._version = 0
        self._fixed, limits = agreed(self._found)
        self._max_context = min([max_context, *limits])

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(not self._fixed, self._max_context)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Sample every request; the samples are spread over the servers in batches.

        Raises:
          ConfigError: prompt and completion do not fit the context.
          EngineError: see the class.
        """
        check_fits(requests, self._max_context)
        return agreed(lambda: self._generate(requests))

    def _generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        asked = [
            _Ask(request, seed, (i, j))
            for i, request in enumerate(requests)
            for j, seed in enumerate(request.sample_seeds)
        ]
        size = max(1, self._batch_size // 4)
        batches: queue.SimpleQueue[list[_Ask]] = queue.SimpleQueue()
        for start in range(0, len(asked), size):
            batches.put(asked[start : start + size])
        results: list[list[Any]] = [[None] * request.n for request in requests]
        stop, failures = threading.Event(), list[BaseException]()

        def work(server: _Server) -> None:
            while not stop.is_set():
                try:
                    batch = batches.get_nowait()
                except queue.Empty:
                    return
                try:
                    answers = self._patiently(server, partial(self._ask, server, batch), stop)
                    beat()
                except BaseException as error:
                    failures.append(error)  # those after the first are its consequences
                    stop.set()
                    return
                for ask, answer in zip(batch, answers, strict=True):
                    results[ask.place[0]][ask.place[1]] = answer

        count = -(-self._batch_size // size) + _CALLS_AHEAD
        workers = [server for _ in range(count) for server in self._servers]
        try:
            side_by_side([partial(work, server) for server in workers], len(workers))
        finally:
            stop.set()  # for those who go on when the run is interrupted
        if failures:
            raise failures[0]
        return results

    def update_weights(self, params: Any, version: int) -> None:
        """Have every server load `params`.  Nothing is sent where it serves these arrays already.

        Raises:
          EngineError: a server cannot take new weights, refuses these, or fails for too long.
        """
        self._version = version
        if same_arrays(self._served, params):
            return
        if self._fixed and self._served is not None:
            raise EngineError(
                f"{self._fixed[0]} has no route /update_weights_from_disk: it serves fixed "
                "weights, for rollouts and evaluation only; set slow.enabled to false, or choose "
                "another server"
            )
        self._served = params
        if self._fixed:
            return
        if not self._written and is_main():
            self._clear()
        label = f"{version}-{time.time_ns():x}"  # no other run's weights can have this name
        folder = (self._weights / label).absolute()
        self._save(folder, params)
        agreed(lambda: self._load(folder, label))

    def _clear(self) -> None:
        """Remove the weights that earlier processes of this run left behind."""
        for folder in self._weights.glob("*-*"):
            if re.fullmatch(r"\d+-[0-9a-f]+", folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    def _load(self, folder: Path, label: str) -> None:
        """Have every server load a folder that was just written."""
        self._folder, self._label = folder, label
        side_by_side([partial(self._sync, server) for server in self._servers], len(self._servers))
        self._written.append(folder)
        while len(self._written) > _KEPT_FOLDERS:
            shutil.rmtree(self._written.popleft(), ignore_errors=True)

    # One server.

    def _found(self) -> tuple[list[str], list[int]]:
        """The addresses of servers that cannot take new weights, and the limits on a context."""
        for server in self._servers:
            self._patiently(server, partial(self._detect, server))
        fixed = [server.url for server in self._servers if not server.updates]
        return fixed, [s.max_context for s in self._servers if s.max_context]

    def _patiently(
        self, server: _Server, attempt: Callable[[], Any], stop: threading.Event | None = None
    ) -> Any:
        """The result of `attempt`, made again while its failures may pass."""
        began, pause, told = time.monotonic(), _FIRST_PAUSE_S, -math.inf
        while True:
            try:
                return attempt()
            except (_Transient, httpx.TransportError, httpx.DecodingError) as error:
                beat()  # a request that failed is no stall
                passed = time.monotonic() - began
                reason = masked(str(error), self._key) or type(error).__name__
                if passed + pause > self._patience_s or (stop is not None and stop.is_set()):
                    raise EngineError(
                        f"the model server {server.url} has failed for {passed:.0f} s "
                        f"({reason}): start it, or set rollout.url; then resume"
                    ) from error
                if passed - told > _TOLD_EVERY_S and passed > _FIRST_PAUSE_S:
                    told = passed
                    left = self._patience_s - passed
                    print(
                        f"the model server {server.url} fails ({reason}); it is tried for another "
                        f"{left:.0f} s",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _call(self, server: _Server, method: str, path: str, **options: Any) -> httpx.Response:
        """A response of status 200.

        Raises:
          _Transient: one of 408, 429 or 5xx.
          EngineError: another one, which no repetition would mend.
        """
        response = server.client.request(method, path, **options)
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise _Transient(f"{path} gave status {response.status_code}")
        if response.status_code != 200:
            key = " (see rollout.api_key_env)" if response.status_code in (401, 403) else ""
            raise EngineError(
                f"{server.url}{path} refused the request with status {response.status_code}{key}: "
                f"{masked(response.text, self._key)[:500]}"
            )
        return response

    def _detect(self, server: _Server) -> None:
        """What a server is able to do."""
        if server.client.get(server.info).status_code == 404:
            server.info = "/get_model_info"  # its name before SGLang 0.5, and in sglang-jax
        server.version = self._json(server, "GET", server.info).get("weight_version")
        probe = server.client.post("/update_weights_from_disk", json={})
        server.updates = probe.status_code not in (404, 405)
        with contextlib.suppress(EngineError):
            described = self._json(server, "GET", "/server_info")
            limit = described.get("max_context_length") or described.get("context_length")
            ours = "fst_jax" in str(described.get("version"))
            server.max_context = limit if ours or not limit else limit - _SPARED

    def _sync(self, server: _Server) -> None:
        with server.syncing:
            self._patiently(server, partial(self._update, server))

    def _update(self, server: _Server) -> None:
        """Bring a server to the newest weights, and see that it serves them."""
        if self._json(server, "GET", server.info).get("weight_version") == self._label:
            # Of an earlier attempt, say, which may have lost its way before it went on.
            self._call(server, "POST", "/continue_generation", json={})
            server.version = self._label
            return
        self._call(server, "POST", "/pause_generation", json={"mode": "retract"})
        try:
            body = {
                "model_path": str(self._folder), "weight_version": self._label,
                "flush_cache": True,
            }  # fmt: skip
            self._call(server, "POST", "/update_weights_from_disk", json=body)
            served = self._json(server, "GET", server.info).get("weight_version")
            if served != self._label:
                raise _Transient(f"it serves weights {served} after an update to {self._label}")
        finally:
            self._call(server, "POST", "/continue_generation", json={})
        server.version = self._label

    def _json(self, server: _Server, method: str, path: str) -> dict[str, Any]:
        return _json(self._call(server, method, path))

    def _ask(self, server: _Server, batch: Sequence[_Ask]) -> list[Completion]:
        """The completions of a batch.

        Raises:
          _Transient: one of them is not as it must be.
        """
        body = {
            "input_ids": [list(ask.request.prompt_ids) for ask in batch],
            "sampling_params": [_sampling(ask) for ask in batch],
            "return_logprob": True,
        }
        answers = _json(self._call(server, "POST", "/generate", json=body))
        if not isinstance(answers, list) or len(answers) != len(batch):
            raise _Transient("/generate gave another number of answers than was asked for")
        names = [_meta(answer).get("id") for answer in answers]
        if len(set(map(str, names))) != len(names):
            raise _Transient("/generate gave one answer twice")
        stale = self._stale(answers, self._label or server.version)
        if stale is not None:
            if self._label is not None:
                self._sync(server)  # it was started anew, perhaps
            raise _Transient(f"/generate answered with weights {stale}")
        return [self._completion(ask, answer) for ask, answer in zip(batch, answers, strict=True)]

    def _stale(self, answers: Sequence[Any], expected: str | None) -> str | None:
        """A version that is not the one of this moment, if an answer names one."""
        if expected is None:
            return None
        for answer in answers:
            meta = _meta(answer)
            spans = meta.get("weight_versions") or []
            named = {str(span.get("version")) for span in spans if isinstance(span, dict)}
            for version in named | {str(meta.get("weight_version"))}:
                if version != expected:
                    return version
        return None

    def _completion(self, ask: _Ask, answer: Any) -> Completion:
        meta, ids, request = _meta(answer), answer.get("output_ids"), ask.request
        reason = (meta.get("finish_reason") or {}).get("type")
        if reason not in ("stop", "length"):
            raise _Transient(f"/generate ended a sample with {reason!r}")
        entries = meta.get("output_token_logprobs")
        if not isinstance(ids, list) or not isinstance(entries, list) or len(entries) != len(ids):
            raise _Transient("/generate gave other than one log-probability for each token")
        values = []
        for entry, token in zip(entries, ids, strict=True):
            value = entry[0] if isinstance(entry, list) and len(entry) > 1 else None
            if not isinstance(value, int | float) or not math.isfinite(value) or value > 1e-3:
                raise _Transient(f"/generate gave the log-probability {value!r}")
            if entry[1] != token:
                raise _Transient("/generate gave log-probabilities of other tokens")
            values.append(float(value))
        stopped = bool(ids) and ids[-1] in request.stop_ids
        whole = stopped if reason == "stop" else len(ids) == request.max_new_tokens
        if not ids or not whole or len(ids) > request.max_new_tokens:
            raise _Transient("/generate gave a sample that does not end as it says")
        return Completion(
            ids=np.array(ids, np.int32),
            logprobs=np.array(values, np.float32),
            finish_reason=reason,
            temperature=request.temperature,
            weight_version=self._version,
        )


def _sampling(ask: _Ask) -> dict[str, Any]:
    """SGLang's sampling_params of one sample."""
    request = ask.request
    params: dict[str, Any] = {
        "max_new_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "sampling_seed": ask.seed,
        "stop_token_ids": list(request.stop_ids),
        "skip_special_tokens": False,
    }
    if request.top_p < 1:
        params["top_p"] = request.top_p
    if request.top_k > 0:
        params["top_k"] = request.top_k
    if request.min_p > 0:
        params["min_p"] = request.min_p
    return params


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise _Transient(f"{response.url.path} gave no JSON") from error


def _meta(answer: Any) -> dict[str, Any]:
    meta = answer.get("meta_info") if isinstance(answer, dict) else None
    if not isinstance(meta, dict):
        raise _Transient("/generate gave an answer without meta_info")
    return meta
