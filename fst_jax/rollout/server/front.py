"""What all routes share: the model they serve, the limits, and the ways to answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

from fst_jax.errors import ModelError
from fst_jax.models.config import ModelConfig
from fst_jax.models.folder import load_config
from fst_jax.models.huggingface import Place, load_model
from fst_jax.rollout.server.questions import Prompt, Reader
from fst_jax.rollout.server.service import Answer, Service, Stream, Unavailable

BODY_S = 60.0  # for a body to arrive


class TooLarge(Exception):
    """The body is larger than the server takes.  HTTP status 413."""


class TooSlow(Exception):
    """The body did not arrive in time.  HTTP status 408."""


class Front:
    """One served model before its clients."""

    def __init__(
        self,
        service: Service,
        reader: Reader,
        folder: Path,
        config: ModelConfig,
        place: Place,
        *,
        dtype: Any,
        name: str,
        weights_root: Path | None = None,
        max_body_bytes: int = 1 << 24,
    ) -> None:
        """`place` puts a parameter on the devices; new weights must lie below `weights_root`."""
        self.service, self.reader, self.tokenizer = service, reader, reader.tokenizer
        self.folder = self.tokenizer_folder = folder
        self.name, self.max_body_bytes = name, max_body_bytes
        self._config, self._place, self._dtype = config, place, dtype
        self._root = weights_root
        self._loading = asyncio.Lock()

    def check_open(self) -> None:
        """Raises Unavailable if no request is taken any more."""
        if self.service.closing:
            raise Unavailable("the server is shutting down")

    async def body(self, request: Request) -> bytes:
        """The whole body.

        Raises:
          TooLarge: it is above the limit; the rest is not read.
          TooSlow: it takes too long.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    body += part
                    if len(body) > self.max_body_bytes:
                        raise TooLarge(f"the body exceeds {self.max_body_bytes} bytes")
        except TimeoutError as error:
            raise TooSlow(f"the body did not arrive in {BODY_S:g} s") from error
        return bytes(body)

    def submit(self, prompts: Sequence[Prompt]) -> list[Stream]:
        """Begin to answer all prompts, or none.

        Raises:
          Overloaded, Unavailable.
        """
        self.check_open()
        self.service.check_room(sum(prompt.request.n for prompt in prompts))
        return [self.service.submit(prompt) for prompt in prompts]

    async def load(self, path: str) -> Any:
        """The parameters in a folder below the weights' root, on the devices.

        Raises:
          ModelError: the folder lies elsewhere, or does not hold this architecture.
        """
        folder = Path(path).resolve()
        if self._root is None or not folder.is_relative_to(self._root.resolve()):
            raise ModelError(
                f"weights are taken only from below the server's --weights-root "
                f"({self._root or 'not set'}), and {path} is not there"
            )
        async with self._loading:
            return await asyncio.to_thread(self._load, folder)

    def _load(self, folder: Path) -> Any:
        if not folder.is_dir():
            raise ModelError(f"there is no folder {folder}")
        if load_config(folder) != self._config:
            raise ModelError(f"{folder} holds another architecture than the one that is served")
        model = load_model(folder, dtype=self._dtype, param_dtype=self._dtype, place=self._place)
        return jax.block_until_ready(nnx.state(model))

    def serves(self, path: str) -> None:
        """Note where the weights now come from."""
        self.folder = Path(path)


class Grown(NamedTuple):
    """An answer that has grown or ended, and its place among those of all streams."""

    place: int
    stream: Stream
    answer: Answer


class Merged:
    """Several streams as one; begins to follow them at once, so that none is left unfollowed."""

    def __init__(self, service: Service, streams: Sequence[Stream]) -> None:
        self._changes: asyncio.Queue[Grown | None] = asyncio.Queue()
        self._tasks = []
        places = 0
        for stream in streams:
            self._tasks.append(asyncio.create_task(self._follow(service, stream, places)))
            places += len(stream.answers)

    async def _follow(self, service: Service, stream: Stream, first: int) -> None:
        try:
            async for index in service.follow(stream):
                self._changes.put_nowait(Grown(first + index, stream, stream.answers[index]))
        finally:
            self._changes.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Grown]:
        """Every answer that grew by its stream's interval, or ended; the last of those at hand.

        Whoever leaves early aborts the samples.
        """
        left = len(self._tasks)
        told: dict[int, int] = {}  # tokens of the answer in each place
        try:
            while left:
                waiting = [await self._changes.get()]
                while not self._changes.empty():
                    waiting.append(self._changes.get_nowait())
                left -= waiting.count(None)
                for place, grown in {grown.place: grown for grown in waiting if grown}.items():
                    tokens = len(grown.answer.ids)
                    enough = tokens - told.get(place, 0) >= grown.stream.prompt.interval
                    if enough or grown.answer.finish:
                        told[place] = tokens
                        yield grown
        finally:
            for task in self._tasks:
                task.cancel()


async def answer_all(
    request: Request, service: Service, streams: Sequence[Stream]
) -> list[list[Answer]]:
    """The answers of all streams; a client that hangs up aborts them.

    Raises:
      ClientDisconnect: it has.
      Unavailable: the engine failed.
    """
    answers: asyncio.Future[list[list[Answer]]] = asyncio.gather(
        *(service.finished(stream) for stream in streams)
    )
    gone = asyncio.create_task(_hung_up(request))
    try:
        either: list[asyncio.Future[Any]] = [answers, gone]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise ClientDisconnect
        found = answers.result()
    finally:
        gone.cancel()
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)
    for finish in (answer.finish for group in found for answer in group):
        if finish and finish.failed:
            raise Unavailable(finish.message)
    return found


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def sse(events: AsyncIterator[str]) -> StreamingResponse:
    """Server-sent events, a data line each."""

    async def lines() -> AsyncIterator[str]:
        async for event in events:
            yield f"data: {event}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
