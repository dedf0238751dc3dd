"""SGLang's own routes: generation by token ids, weights, pauses and the prefix cache."""

import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fst_jax import __version__
from fst_jax.errors import UserError
from fst_jax.rollout.server.answers import Transcript, text_of
from fst_jax.rollout.server.front import Front, Merged, answer_all, dump, sse
from fst_jax.rollout.server.questions import BadRequest, Generate, SamplingParams, parse
from fst_jax.rollout.server.service import Answer, Stream, Unavailable


class UpdateWeights(msgspec.Struct):
    """The body of POST /update_weights_from_disk.

    Fields that concern CUDA have no effect, nor have keep_pause (as in SGLang 0.5.23), is_async and
    token_step.  Contexts of the old weights are forgotten whatever flush_cache says.
    """

    model_path: str
    load_format: str | None = None
    abort_all_requests: bool = False
    weight_version: str | None = None
    is_async: bool = False
    torch_empty_cache: bool = False
    keep_pause: bool = False
    recapture_cuda_graph: bool = False
    token_step: int = 0
    flush_cache: bool = True


class Pause(msgspec.Struct):
    """The body of POST /pause_generation."""

    mode: Literal["abort", "retract", "in_place"] = "abort"


class Abort(msgspec.Struct):
    """The body of POST /abort_request."""

    rid: str | None = None
    abort_all: bool = False


class Memory(msgspec.Struct):
    """The body of POST /release_memory_occupation and /resume_memory_occupation."""

    tags: list[Literal["kv_cache", "weights", "cuda_graph"]] | None = None


_ONE_TOKEN = SamplingParams(max_new_tokens=1, ignore_eos=True)


class Native:
    """The routes over a front."""

    def __init__(self, front: Front) -> None:
        self._front, self._service = front, front.service

    def routes(self) -> list[Route]:
        anything = ["GET", "POST"]
        return [
            Route("/generate", self.generate, methods=["POST", "PUT"]),
            Route("/health", self.health),
            Route("/health_generate", self.health_generate),
            Route("/model_info", self.model_info),
            Route("/get_model_info", self.model_info),
            Route("/server_info", self.server_info),
            Route("/get_server_info", self.server_info),
            Route("/update_weights_from_disk", self.update_weights, methods=["POST"]),
            Route("/pause_generation", self.pause, methods=["POST"]),
            Route("/continue_generation", self.proceed, methods=["POST"]),
            Route("/flush_cache", self.flush, methods=anything),
            Route("/abort_request", self.abort, methods=["POST"]),
            Route("/release_memory_occupation", self.release, methods=anything),
            Route("/resume_memory_occupation", self.resume, methods=anything),
        ]

    async def generate(self, request: Request) -> Response:
        body = parse(await self._front.body(request), Generate)
        prompts, listed = self._front.reader.generate(body)
        streams = self._front.submit(prompts)
        if body.stream:
            return sse(self._events(streams, Merged(self._service, streams), listed))
        await answer_all(request, self._service, streams)
        shown = [
            self._shown(stream, answer, text_of(self._front.tokenizer, stream.prompt, answer))
            for stream in streams
            for answer in stream.answers
        ]
        return JSONResponse(shown if listed else shown[0])

    async def _events(
        self, streams: list[Stream], changes: Merged, listed: bool
    ) -> AsyncIterator[str]:
        """Each event holds a sample from its beginning, as SGLang's do."""
        texts = [Transcript(self._front.tokenizer, s.prompt) for s in streams for _ in s.answers]
        async for place, stream, answer in changes:
            shown = self._shown(stream, answer, texts[place].read(answer))
            if listed:
                shown["index"] = place
            yield dump(shown)
        yield "[DONE]"

    def _shown(self, stream: Stream, answer: Answer, text: str) -> dict[str, Any]:
        """A sample in the shape of SGLang's GenerateResponse; in a stream, all so far."""
        prompt, finish = stream.prompt, answer.finish
        reason: dict[str, Any] | None = None
        if finish:
            reason = {"type": finish.type}
            if finish.type == "stop":
                reason["matched"] = finish.matched
            elif finish.type == "length":
                reason["length"] = len(answer.ids)
            else:
                reason["message"] = finish.message
        ends = [start for _, start in answer.spans[1:]] + [len(answer.ids)]
        meta: dict[str, Any] = {
            "id": prompt.name,
            "finish_reason": reason,
            "prompt_tokens": len(prompt.request.prompt_ids),
            "completion_tokens": len(answer.ids),
            "cached_tokens": answer.cached,
            "weight_version": answer.spans[-1][0] if answer.spans else self._service.version,
            "weight_versions": [
                {"version": version, "start": start, "end": end}
                for (version, start), end in zip(answer.spans, ends, strict=False)
            ],
            "e2e_latency": time.monotonic() - stream.started,
        }
        if prompt.logprobs:
            decode = self._front.tokenizer.decode
            meta["output_token_logprobs"] = [
                [logprob, token, decode([token]) if prompt.token_texts else None]
                for logprob, token in zip(answer.logprobs, answer.ids, strict=True)
            ]
        return {"text": text, "output_ids": list(answer.ids), "meta_info": meta}

    async def health(self, request: Request) -> Response:
        self._front.check_open()
        return Response()

    async def health_generate(self, request: Request) -> Response:
        """One token, to see that the engine is alive."""
        if self._service.held:
            raise Unavailable("generation is paused")
        body = Generate(input_ids=[0], sampling_params=_ONE_TOKEN)
        streams = self._front.submit(self._front.reader.generate(body)[0])
        await answer_all(request, self._service, streams)
        return Response()

    async def model_info(self, request: Request) -> Response:
        return JSONResponse(
            {
                "model_path": str(self._front.folder),
                "served_model_name": self._front.name,
                "tokenizer_path": str(self._front.tokenizer_folder),
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": self._service.version,
                "load_format": "safetensors",
            }
        )

    async def server_info(self, request: Request) -> Response:
        state = await self._service.call(self._service.state)
        return JSONResponse(
            {
                "model_path": str(self._front.folder),
                "served_model_name": self._front.name,
                "tokenizer_path": str(self._front.tokenizer_folder),
                "max_context_length": self._front.reader.max_context,
                "version": f"fst_jax {__version__}",
                "internal_states": [state],
                "incremental_streaming_output": False,
            }
        )

    async def update_weights(self, request: Request) -> Response:
        body = parse(await self._front.body(request), UpdateWeights)
        if body.load_format not in (None, "auto", "safetensors"):
            raise BadRequest(f"load_format {body.load_format!r} is not supported: only safetensors")
        try:
            params = await self._front.load(body.model_path)
        except UserError as error:
            return _outcome(False, str(error), 400, num_paused_requests=0)

        def swap() -> int:
            if body.abort_all_requests:
                self._service.abort_all("the weights were updated")
            running = self._service.running
            self._service.set_weights(params, body.weight_version or self._service.version)
            self._front.serves(body.model_path)
            return running

        running = await self._service.call(swap)
        return _outcome(True, "Succeeded to update model weights.", num_paused_requests=running)

    async def pause(self, request: Request) -> Response:
        body = parse(await self._front.body(request) or b"{}", Pause)
        await self._service.call(lambda: self._service.pause(body.mode))
        return JSONResponse({"status": "ok", "message": "Generation paused successfully."})

    async def proceed(self, request: Request) -> Response:
        await self._service.call(self._service.proceed)
        return JSONResponse({"status": "ok", "message": "Generation continued successfully."})

    async def flush(self, request: Request) -> Response:
        if await self._service.call(self._service.flush):
            return Response("Cache flushed.\n")
        return Response("Requests are pending, so the cache was not flushed.\n", 400)

    async def abort(self, request: Request) -> Response:
        body = parse(await self._front.body(request), Abort)
        if body.abort_all:
            await self._service.call(self._service.abort_all)
        elif body.rid:
            name = body.rid
            await self._service.call(lambda: self._service.abort(name))
        return Response()

    async def release(self, request: Request) -> Response:
        tags = await self._tags(request)
        await self._service.call(lambda: self._service.release(tags))
        return Response()

    async def resume(self, request: Request) -> Response:
        tags = await self._tags(request)
        await self._service.call(lambda: self._service.resume(tags))
        return Response()

    async def _tags(self, request: Request) -> list[str]:
        body = parse(await self._front.body(request) or b"{}", Memory)
        tags = set(body.tags or ("kv_cache", "weights"))
        return sorted(tags & {"kv_cache", "weights"})  # no CUDA graphs are here


def _outcome(success: bool, message: str, status: int = 200, **more: Any) -> JSONResponse:
    return JSONResponse({"success": success, "message": message, **more}, status)
