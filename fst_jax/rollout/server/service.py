"""The thread that owns the engine, and what the routes may ask of it.

Requests come in on the event loop; a thread of its own advances the batcher, chunk by chunk, and
posts what was generated back to the loop.  Everything that touches the engine, such as an update
of its weights, is a function that this thread runs between two chunks, so nothing is locked.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from fst_jax.rollout.batching import Batcher
from fst_jax.rollout.sample import Sample
from fst_jax.rollout.server.metrics import Metrics
from fst_jax.rollout.server.questions import BadRequest, Prompt

T = TypeVar("T")
PauseMode = Literal["abort", "retract", "in_place"]
_STEPS = 8  # tokens between two looks at new requests: little enough to stream well


class Overloaded(Exception):
    """The queue is full.  HTTP status 429."""


class Unavailable(Exception):
    """The server is going down, or its engine has failed.  HTTP status 503."""


@dataclass(frozen=True)
class Finish:
    """Why a sample ended, as SGLang says it."""

    type: Literal["stop", "length", "abort"]
    matched: int | str | None = None  # the stop id or text
    message: str = ""
    failed: bool = False  # aborted since the engine failed


@dataclass
class Answer:
    """One sample as far as it has come."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[str, int]] = field(default_factory=list)  # (weight version, first token)
    cached: int = 0
    finish: Finish | None = None


@dataclass(frozen=True)
class _Update:
    """What a chunk added to a sample."""

    index: int
    ids: list[int]
    logprobs: list[float]
    spans: list[tuple[str, int]]
    cached: int
    finish: Finish | None


class Stream:
    """The answers to one prompt, as they grow."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.samples = [Sample(prompt.request, seed) for seed in prompt.request.sample_seeds]
        self.answers = [Answer() for _ in self.samples]
        self.started = time.monotonic()
        self.first_token_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[_Update] = asyncio.Queue()
        self._open = len(self.samples)

    async def changes(self) -> AsyncIterator[int]:
        """The index of each answer that has grown, until all have ended."""
        while self._open:
            update = await self._updates.get()
            answer = self.answers[update.index]
            if answer.finish:
                continue
            if update.ids and self.first_token_s is None:
                self.first_token_s = time.monotonic() - self.started
            answer.ids += update.ids
            answer.logprobs += update.logprobs
            answer.spans, answer.cached, answer.finish = update.spans, update.cached, update.finish
            self._open -= update.finish is not None
            yield update.index

    def post(self, update: _Update) -> None:
        """From the service's thread."""
        self._loop.call_soon_threadsafe(self._updates.put_nowait, update)


class Service:
    """A batcher at work for many clients."""

    def __init__(self, batcher: Batcher, tokenizer: Any, slots: int, max_queued: int) -> None:
        """At most `max_queued` samples wait beside those in the `slots`."""
        self._batcher, self._tokenizer = batcher, tokenizer
        self._limit = slots + max_queued
        self._streams: dict[Sample, tuple[Stream, int]] = {}
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._params: Any = None  # on the host, while the weights' memory is released
        self._released: set[str] = set()  # "kv_cache", "weights"
        self._paused = self._closing = False
        self._open = 0  # samples that have not ended; counted on the event loop
        self.metrics = Metrics()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # On the event loop.

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def open(self) -> int:
        """Samples that have not ended."""
        return self._open

    def check_room(self, samples: int) -> None:
        """Whether so many samples may come.

        Raises:
          BadRequest: they are more than may ever be here.
          Overloaded: too many wait already.
        """
        if samples > self._limit:
            raise BadRequest(
                f"{samples} samples are asked for at once, and this server holds at most "
                f"{self._limit}: send fewer at a time"
            )
        if self._open + samples > self._limit:
            raise Overloaded(
                f"{self._open} samples are under way or waiting, and {samples} more would exceed "
                f"the limit of {self._limit}: send fewer at a time, or try again later"
            )

    def submit(self, prompt: Prompt) -> Stream:
        """Begin to answer a prompt; its answers must be followed."""
        stream = Stream(prompt)
        self._open += len(stream.samples)

        def start() -> None:
            self._streams |= {sample: (stream, i) for i, sample in enumerate(stream.samples)}
            self._batcher.submit(stream.samples)

        self._commands.put(start)
        return stream

    async def finished(self, stream: Stream) -> list[Answer]:
        """All answers of a stream, when they have ended."""
        async for _ in self.follow(stream):
            pass
        return stream.answers

    async def follow(self, stream: Stream) -> AsyncIterator[int]:
        """`stream.changes()`, counted; whoever stops following aborts the samples."""
        try:
            async for index in stream.changes():
                yield index
        finally:
            self._open -= len(stream.samples)
            self.metrics.count(stream)
            self._commands.put(lambda: self._abort(stream.samples, "the client has gone"))

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function in the service's thread, between two chunks."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._commands.put(run)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Take no more requests; those under way go on, unless they wait for a pause to end."""
        self._closing = True
        self._commands.put(self._end_if_closing)

    # In the service's thread, through `call`.

    @property
    def pending(self) -> int:
        """Samples that run or wait."""
        return self._batcher.running + self._batcher.waiting

    @property
    def running(self) -> int:
        return self._batcher.running

    @property
    def version(self) -> str:
        return str(self._batcher.version)

    def pause(self, mode: PauseMode) -> None:
        """Stop generating; what waits and what comes waits for `proceed`."""
        if mode == "abort":
            self.abort_all("generation was paused")
        elif mode == "retract":
            self._batcher.retract()
        self._paused = True
        self._end_if_closing()

    def proceed(self) -> None:
        self._paused = False

    def abort(self, name: str) -> None:
        """Abort the requests whose rid begins with a text, as SGLang does."""
        streams = self._streams.items()
        named = [sample for sample, (stream, _) in streams if stream.prompt.name.startswith(name)]
        self._abort(named, "aborted by request")

    def abort_all(self, message: str = "aborted by request") -> None:
        self._abort(list(self._streams), message)

    def set_weights(self, params: Any, version: str) -> None:
        """Serve other weights; samples under way go on with them, their pasts as they are."""
        self._batcher.set_weights(params, version)
        self._params = None
        self._released.discard("weights")

    def flush(self) -> bool:
        """Forget all contexts; False if samples are pending."""
        if self.pending:
            return False
        self._batcher.flush()
        return True

    def release(self, tags: list[str]) -> None:
        """Give memory back, of "kv_cache", "weights" or both; samples wait until `resume`."""
        if not tags:
            return
        self._batcher.release()
        self._released |= set(tags)
        self._end_if_closing()
        if "weights" in tags and self._params is None:
            placed = self._batcher.params
            shardings = jax.tree.map(lambda x: x.sharding, placed)
            # Copies: on a CPU device_get gives views, which hold the arrays, and never let go of
            # them once they are put back.
            host = jax.tree.map(lambda x: np.array(jax.device_get(x)), placed)
            self._params = host, shardings
            self._batcher.set_weights(None, self._batcher.version)

    def resume(self, tags: list[str]) -> None:
        """Take the memory again."""
        self._released -= set(tags)
        if "weights" in tags and self._params is not None:
            self._batcher.set_weights(jax.device_put(*self._params), self._batcher.version)
            self._params = None

    def state(self) -> dict[str, Any]:
        """Figures of the moment."""
        work = self._batcher.work
        return {
            "running": self._batcher.running, "waiting": self._batcher.waiting,
            "paused": self.held, "prefilled": work.prefilled, "cached": work.cached,
            "decoded": work.decoded,
        }  # fmt: skip

    # The thread.

    @property
    def held(self) -> bool:
        """Whether nothing is generated, paused or without memory."""
        return self._paused or bool(self._released)

    def _end_if_closing(self) -> None:
        """What is held would wait for ever for a server that goes down."""
        if self._closing and self.held:
            self.abort_all("the server is shutting down")

    def _work(self) -> None:
        while True:
            asleep = self.held or not self.pending
            try:
                command = self._commands.get(block=asleep)
            except queue.Empty:
                command = None
            try:
                if command:
                    command()
                else:
                    changed = self._batcher.advance(_STEPS)
                    self._count()  # before a client knows that its samples have ended
                    for sample in changed:
                        self._deliver(sample)
                self._count()
            except Exception as error:  # out of memory, above all
                message = f"the engine failed: {type(error).__name__}: {error}"
                self._abort(list(self._streams), message, failed=True)
                self._batcher.release()

    def _count(self) -> None:
        """Tell the metrics, which are read while the engine is at work."""
        self.metrics.running.set(self._batcher.running)
        self.metrics.waiting.set(self._batcher.waiting)

    def _deliver(self, sample: Sample) -> None:
        """Post what a chunk added to a sample, unless a stop text ends it earlier."""
        stream, _ = self._streams[sample]
        finish = self._stopped(stream.prompt, sample)
        if finish and sample.finish_reason is None:
            self._batcher.cancel(sample)
        self._post(sample, finish or self._finish(sample))

    def _finish(self, sample: Sample) -> Finish | None:
        if sample.finish_reason == "stop":
            return Finish("stop", matched=sample.ids[-1])
        return Finish("length") if sample.finish_reason == "length" else None

    def _stopped(self, prompt: Prompt, sample: Sample) -> Finish | None:
        """Cut a sample after the token that completes a stop text, if there is one."""
        if not prompt.stop:
            return None
        # A text of m characters takes at most 4 m byte-level tokens.
        reach = 4 * max(map(len, prompt.stop))
        for end in range(sample.shown + 1, len(sample.ids) + 1):
            tail = self._tokenizer.decode(sample.ids[max(0, end - reach) : end])
            for text in prompt.stop:
                if text in tail:
                    del sample.ids[end:], sample.logprobs[end:]
                    sample.spans = [span for span in sample.spans if span[1] < end]
                    return Finish("stop", matched=text)
        return None

    def _post(self, sample: Sample, finish: Finish | None) -> None:
        stream, index = self._streams[sample]
        shown, sample.shown = sample.shown, len(sample.ids)
        spans = [(str(version), start) for version, start in sample.spans]
        stream.post(
            _Update(
                index, sample.ids[shown:], sample.logprobs[shown:], spans, sample.cached, finish
            )
        )
        if finish:
            del self._streams[sample]

    def _abort(self, samples: list[Sample], message: str, failed: bool = False) -> None:
        for sample in samples:
            if sample in self._streams:
                self._batcher.cancel(sample)
                self._post(sample, Finish("abort", message=message, failed=failed))
