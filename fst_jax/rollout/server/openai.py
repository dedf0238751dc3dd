"""OpenAI's routes: chat and text completions, streamed or whole, and the list of models."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fst_jax.rollout.server.answers import Transcript, text_of
from fst_jax.rollout.server.front import Front, Merged, answer_all, dump, sse
from fst_jax.rollout.server.questions import ChatCompletion, Completions, TextCompletion, parse
from fst_jax.rollout.server.service import Answer, Stream


class OpenAI:
    """The routes over a front."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.text, methods=["POST"]),
            Route("/v1/models", self.models),
        ]

    async def models(self, request: Request) -> Response:
        model = {
            "id": self._front.name, "object": "model", "created": 0, "owned_by": "fst_jax",
            "root": str(self._front.folder), "max_model_len": self._front.reader.max_context,
        }  # fmt: skip
        return JSONResponse({"object": "list", "data": [model]})

    async def chat(self, request: Request) -> Response:
        body = parse(await self._front.body(request), ChatCompletion)
        streams = self._front.submit(self._front.reader.chat(body))
        return await self._answer(request, body, streams, chat=True)

    async def text(self, request: Request) -> Response:
        body = parse(await self._front.body(request), TextCompletion)
        streams = self._front.submit(self._front.reader.completion(body))
        return await self._answer(request, body, streams, chat=False)

    async def _answer(
        self, request: Request, body: Completions, streams: list[Stream], chat: bool
    ) -> Response:
        kind = "chat.completion" if chat else "text_completion"
        head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": f"{kind}.chunk" if chat and body.stream else kind,
            "created": int(time.time()),
            "model": body.model or self._front.name,
        }
        if body.stream:
            changes = Merged(self._front.service, streams)
            usage = body.stream_options is not None and body.stream_options.include_usage
            return sse(self._events(head, streams, changes, chat, usage))
        await answer_all(request, self._front.service, streams)
        choices: list[dict[str, Any]] = []
        for stream in streams:
            for answer in stream.answers:
                text = text_of(self._front.tokenizer, stream.prompt, answer)
                choice: dict[str, Any] = {"index": len(choices), "finish_reason": _reason(answer)}
                choice |= {"message": _message(text)} if chat else {"text": text}
                choice["logprobs"] = self._logprobs(stream, answer, 0, chat)
                choices.append(choice)
        return JSONResponse({**head, "choices": choices, "usage": _usage(streams)})

    async def _events(
        self,
        head: dict[str, Any],
        streams: list[Stream],
        changes: Merged,
        chat: bool,
        with_usage: bool,
    ) -> AsyncIterator[str]:
        """Each event holds what came since the last one."""
        texts = [Transcript(self._front.tokenizer, s.prompt) for s in streams for _ in s.answers]
        sent = [(0, 0)] * len(texts)  # characters, tokens
        if chat:
            for index in range(len(texts)):
                delta = {"role": "assistant", "content": ""}
                choice = {"index": index, "delta": delta, "finish_reason": None}
                yield dump({**head, "choices": [choice]})
        async for place, stream, answer in changes:
            text = texts[place].read(answer)
            shown, tokens = sent[place]
            if len(text) <= shown and not answer.finish:
                continue
            sent[place] = max(shown, len(text)), len(answer.ids)
            choice = {"index": place, "finish_reason": _reason(answer)}
            choice |= {"delta": {"content": text[shown:]}} if chat else {"text": text[shown:]}
            choice["logprobs"] = self._logprobs(stream, answer, tokens, chat)
            yield dump({**head, "choices": [choice]})
        if with_usage:
            yield dump({**head, "choices": [], "usage": _usage(streams)})
        yield "[DONE]"

    def _logprobs(self, stream: Stream, answer: Answer, start: int, chat: bool) -> Any:
        """Of the tokens from `start` on, in the shape of the route; None if not asked for."""
        if not stream.prompt.logprobs:
            return None
        texts = [self._front.tokenizer.decode([token]) for token in answer.ids[start:]]
        values = answer.logprobs[start:]
        if not chat:
            return {"tokens": texts, "token_logprobs": values, "top_logprobs": None}
        return {
            "content": [
                {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
                for text, value in zip(texts, values, strict=True)
            ]
        }


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _reason(answer: Answer) -> str | None:
    return answer.finish.type if answer.finish else None


def _usage(streams: Sequence[Stream]) -> dict[str, Any]:
    prompt = sum(len(stream.prompt.request.prompt_ids) for stream in streams)
    completion = sum(len(answer.ids) for stream in streams for answer in stream.answers)
    cached = sum(stream.answers[0].cached for stream in streams)
    return {
        "prompt_tokens": prompt, "completion_tokens": completion,
        "total_tokens": prompt + completion, "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip
