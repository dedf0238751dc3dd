"""What clients may ask: the bodies of requests, checked, and turned into prompts for the engine.

Names and defaults are SGLang 0.5.23's (`sglang/api/v1/api_types.py`) and OpenAI's.  As with
SGLang, unknown keys of a body are ignored and unknown keys of `sampling_params` are refused.  An
option that this server knows and cannot honour is refused too, unless it is set to its neutral
value: nothing is silently sampled otherwise than asked.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from fst_jax.errors import UserError
from fst_jax.rollout.chat import Chat
from fst_jax.rollout.engine import Request

T = TypeVar("T")


class BadRequest(Exception):
    """The request cannot be served; the message says why.  HTTP status 400."""


@dataclass(frozen=True)
class Prompt:
    """One prompt as the engine takes it, and how its answers are to be shown."""

    request: Request  # of all its samples
    stop: tuple[str, ...] = ()  # texts that end an answer
    show_stop: bool = False  # leave what ended an answer in its text
    skip_special: bool = True
    logprobs: bool = False
    token_texts: bool = False
    interval: int = 1  # tokens between two events of a stream
    name: str = ""  # SGLang's rid


class SamplingParams(msgspec.Struct, forbid_unknown_fields=True):
    """SGLang's sampling_params."""

    max_new_tokens: int | None = 128
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = -1
    min_p: float | None = 0.0
    n: int | None = 1
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = True
    no_stop_trim: bool | None = False
    sampling_seed: int | None = None
    spaces_between_special_tokens: bool | None = True
    stream_interval: int | None = None
    # Refused unless neutral.
    min_new_tokens: int | None = 0
    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    repetition_penalty: float | None = 1.0
    stop_regex: str | list[str] | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    logit_bias: dict[str, float] | None = None
    custom_params: Any = None
    beam_width: int | None = None
    watermark: Any = None
    choice: list[str] | None = None


_NEUTRAL = {
    "min_new_tokens": 0, "min_tokens": 0, "frequency_penalty": 0.0, "presence_penalty": 0.0,
    "repetition_penalty": 1.0, "response_format": {"type": "text"},
}  # fmt: skip
# Of any body; each is a field of some.
_REFUSED = (
    *_NEUTRAL, "stop_regex", "json_schema", "regex", "ebnf", "structural_tag", "logit_bias",
    "custom_params", "beam_width", "watermark", "choice", "top_logprobs_num", "token_ids_logprob",
    "return_hidden_states", "image_data", "audio_data", "video_data", "lora_path",
    "custom_logit_processor", "session_params", "echo", "suffix", "tools", "top_logprobs",
    "continue_final_message",
)  # fmt: skip
_MOST_STOPS = 64  # each bucket of their number is a program; texts are looked for in each chunk
_LONGEST_STOP = 1000  # characters of a stop text
_MOST_MESSAGES = 4096
_LONGEST_TOKEN = 256  # characters; text of more than this for each token of the context is not read
_COLDEST = 1e-6  # of temperatures; below, as SGLang has it, the likeliest token is taken


class Generate(msgspec.Struct):
    """The body of POST /generate."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None  # of one prompt, or of each
    sampling_params: SamplingParams | list[SamplingParams] | None = None
    return_logprob: bool | list[bool] | None = False
    logprob_start_len: int | list[int] | None = -1
    return_text_in_logprobs: bool | None = False
    stream: bool | None = False
    rid: str | list[str] | None = None
    # Refused unless empty.
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: Any = None
    return_hidden_states: Any = None
    image_data: Any = None
    audio_data: Any = None
    video_data: Any = None
    lora_path: Any = None
    custom_logit_processor: Any = None
    session_params: Any = None


class Message(msgspec.Struct):
    """A message of a chat; its content a text, or OpenAI's list of text parts."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Completions(msgspec.Struct):
    """What both of OpenAI's bodies have in common."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    n: int | None = 1
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    # SGLang's additions.
    top_k: int | None = -1
    min_p: float | None = 0.0
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = True
    # Refused unless neutral.
    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    repetition_penalty: float | None = 1.0
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    min_tokens: int | None = 0
    regex: str | None = None
    ebnf: str | None = None
    stop_regex: str | list[str] | None = None
    lora_path: Any = None


class TextCompletion(Completions):
    """The body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]] = ""
    logprobs: int | None = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: int | None = None


class ChatCompletion(Completions):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = []
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None
    continue_final_message: bool | None = False


def parse(body: bytes, kind: type[T]) -> T:
    """The body as `kind`.

    Raises:
      BadRequest: it is no JSON, or a field is unknown or of the wrong type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(str(error)) from error


class Reader:
    """Turns bodies into prompts for one model."""

    def __init__(
        self, chat: Chat, vocabulary: int, max_context: int, max_samples: int, max_prompts: int
    ):
        """`max_context` counts prompt and completion; `max_samples` is the largest n, and
        `max_prompts` are as many as one request may hold."""
        self.max_prompts = max_prompts
        self._chat, self.tokenizer, self.stop_ids = chat, chat.tokenizer, chat.stop_ids
        self.vocabulary, self.max_context, self.max_samples = vocabulary, max_context, max_samples

    def generate(self, body: Generate) -> tuple[list[Prompt], bool]:
        """The prompts of /generate, and whether the answer is a list.

        Raises:
          BadRequest: with what is wrong.
        """
        _refuse(body)
        if (body.text is None) == (body.input_ids is None):
            raise BadRequest("give either text or input_ids")
        if body.text is not None:
            single = isinstance(body.text, str)
            texts = [body.text] if isinstance(body.text, str) else body.text
            if not texts:
                raise BadRequest("text must hold at least one prompt")
            self._check_count(texts)
            ids = [self.encode(text) for text in texts]
        else:
            ids = self._ids(body.input_ids or [])
            single = isinstance((body.input_ids or [0])[0], int)
        params = _each(body.sampling_params, len(ids), "sampling_params")
        logprobs = _each(body.return_logprob, len(ids), "return_logprob")
        starts = _each(body.logprob_start_len, len(ids), "logprob_start_len")
        names = body.rid if isinstance(body.rid, list) else [body.rid] * len(ids)
        if len(names) != len(ids):
            raise BadRequest(f"rid has {len(names)} entries for {len(ids)} prompts")
        given = [name for name in names if name] if isinstance(body.rid, list) else []
        if len(set(given)) < len(given):
            raise BadRequest("rid holds a name twice")
        for wanted, start, prompt_ids in zip(logprobs, starts, ids, strict=True):
            if wanted and start is not None and 0 <= start < len(prompt_ids):
                raise BadRequest(
                    "logprob_start_len: log-probabilities of input tokens are not computed here"
                )
        prompts = [
            self._prompt(
                prompt_ids,
                own or SamplingParams(),
                logprobs=bool(wanted),
                token_texts=bool(body.return_text_in_logprobs),
                name=(name if single or isinstance(body.rid, list) else name and f"{name}_{i}")
                or secrets.token_hex(16),
            )
            for i, (prompt_ids, own, wanted, name) in enumerate(
                zip(ids, params, logprobs, names, strict=True)
            )
        ]
        return prompts, not (single and prompts[0].request.n == 1)

    def completion(self, body: TextCompletion) -> list[Prompt]:
        """The prompts of /v1/completions."""
        _refuse(body)
        if body.best_of not in (None, body.n):
            raise BadRequest("best_of is not supported")
        if body.logprobs:
            raise BadRequest("logprobs: only 0, the log-probability of the chosen token")
        ids = self._ids([body.prompt] if isinstance(body.prompt, str) else body.prompt)
        limit = 16 if body.max_tokens is None else body.max_tokens
        return [self._openai(body, each, limit, body.logprobs is not None) for each in ids]

    def chat(self, body: ChatCompletion) -> list[Prompt]:
        """The prompt of /v1/chat/completions, alone in a list."""
        _refuse(body)
        if not 1 <= len(body.messages) <= _MOST_MESSAGES:
            raise BadRequest(f"messages must not be empty, nor more than {_MOST_MESSAGES}")
        messages = [{"role": each.role, "content": _text(each)} for each in body.messages]
        self._check_length(sum(len(each["content"]) for each in messages))
        given = body.chat_template_kwargs or {}
        if not given.keys().isdisjoint(self._chat.reserved_arguments):  # a template, above all
            names = ", ".join(sorted(given.keys() & self._chat.reserved_arguments))
            raise BadRequest(f"chat_template_kwargs: {names} cannot be set by a request")
        try:
            ids = self._chat.encode(messages, **given)
        except UserError as error:
            raise BadRequest(str(error)) from error
        limit = _or(body.max_completion_tokens, body.max_tokens)
        if limit is None:
            limit = max(1, self.max_context - len(ids))
        return [self._openai(body, ids, limit, bool(body.logprobs))]

    def encode(self, text: str) -> list[int]:
        self._check_length(len(text))
        return self.tokenizer.encode(text)

    def _check_length(self, characters: int) -> None:
        """Refuse at once what would take long to encode and could not be a prompt."""
        longest = _LONGEST_TOKEN * self.max_context
        if characters > longest:
            raise BadRequest(
                f"a prompt of {characters} characters exceeds the context of {self.max_context} "
                f"tokens; more than {longest} are not read"
            )

    def _check_count(self, prompts: Sequence[Any]) -> None:
        if len(prompts) > self.max_prompts:
            raise BadRequest(
                f"a request of {len(prompts)} prompts; this server takes at most "
                f"{self.max_prompts}: send fewer at a time"
            )

    def _ids(self, given: Sequence[Any]) -> list[list[int]]:
        """Token ids of each prompt, given as ids of one, ids of each, or texts."""
        kinds = {type(each) for each in given}
        if len(kinds) != 1:
            raise BadRequest("give token ids of one prompt, a list of them for each, or texts")
        if kinds == {int}:
            return [list(given)]
        self._check_count(given)
        return [self.encode(each) if isinstance(each, str) else each for each in given]

    def _openai(self, body: Completions, ids: list[int], limit: int, logprobs: bool) -> Prompt:
        params = SamplingParams(
            max_new_tokens=limit, temperature=body.temperature, top_p=body.top_p,
            top_k=body.top_k, min_p=body.min_p, n=body.n, stop=body.stop,
            stop_token_ids=body.stop_token_ids, ignore_eos=body.ignore_eos,
            skip_special_tokens=body.skip_special_tokens, sampling_seed=body.seed,
            frequency_penalty=body.frequency_penalty, presence_penalty=body.presence_penalty,
            repetition_penalty=body.repetition_penalty,
        )  # fmt: skip
        return self._prompt(ids, params, logprobs, True, secrets.token_hex(16))

    def _prompt(
        self, ids: list[int], params: SamplingParams, logprobs: bool, token_texts: bool, name: str
    ) -> Prompt:
        _refuse(params)
        limit = 128 if params.max_new_tokens is None else params.max_new_tokens
        temperature = _or(params.temperature, 1.0)
        top_p, min_p, n = _or(params.top_p, 1.0), _or(params.min_p, 0.0), _or(params.n, 1)
        top_k, interval = _or(params.top_k, -1), _or(params.stream_interval, 1)
        stops = set() if params.ignore_eos else {*self.stop_ids, *(params.stop_token_ids or ())}
        for holds, message in (
            (ids, "the prompt must hold at least one token"),
            (
                all(0 <= token < self.vocabulary for token in ids),
                f"a token id lies outside the vocabulary of {self.vocabulary}",
            ),
            (limit >= 1, f"max_new_tokens must be at least 1, got {limit}"),
            (
                len(ids) + limit <= self.max_context,
                f"{len(ids)} tokens of prompt and {limit} of completion exceed the context of "
                f"{self.max_context} tokens",
            ),
            (
                len(stops) <= _MOST_STOPS and all(0 <= id < self.vocabulary for id in stops),
                f"stop_token_ids must be at most {_MOST_STOPS} tokens of the vocabulary of "
                f"{self.vocabulary}",
            ),
            (0 <= temperature < 1e6, f"temperature must be at least 0, got {temperature}"),
            (0 < top_p <= 1, f"top_p must be in (0, 1], got {top_p}"),
            (0 <= min_p <= 1, f"min_p must be in [0, 1], got {min_p}"),
            (top_k >= 1 or top_k == -1, f"top_k must be -1 or at least 1, got {top_k}"),
            (interval >= 1, f"stream_interval must be at least 1, got {interval}"),
            (1 <= n <= self.max_samples, f"n must be in [1, {self.max_samples}], got {n}"),
        ):
            if not holds:
                raise BadRequest(message)
        stop = [params.stop] if isinstance(params.stop, str) else params.stop or []
        if len(stop) > _MOST_STOPS or max(map(len, stop), default=0) > _LONGEST_STOP:
            raise BadRequest(
                f"stop must be at most {_MOST_STOPS} texts of at most {_LONGEST_STOP} characters"
            )
        seeded = params.sampling_seed is not None
        first = (params.sampling_seed or 0) % 2**31 if seeded else secrets.randbelow(2**31)
        request = Request(
            prompt_ids=tuple(ids),
            n=n,
            max_new_tokens=limit,
            temperature=temperature if temperature >= _COLDEST else 0.0,
            top_p=top_p,
            top_k=0 if top_k == -1 or top_k >= self.vocabulary else top_k,
            min_p=min_p,
            stop_ids=tuple(sorted(stops)),
            seed=first,
        )
        return Prompt(
            request=request,
            stop=tuple(text for text in stop if text),
            show_stop=bool(params.no_stop_trim),
            skip_special=_or(params.skip_special_tokens, True),
            logprobs=logprobs,
            token_texts=token_texts,
            interval=interval,
            name=name,
        )


def _or(value: Any, default: T) -> T:
    return default if value is None else value


def _each(value: Any, count: int, name: str) -> list[Any]:
    """One value for all prompts, or a list with one for each."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise BadRequest(f"{name} has {len(value)} entries for {count} prompts")
    return value


def _refuse(body: Any) -> None:
    for name in _REFUSED:
        value, neutral = getattr(body, name, None), _NEUTRAL.get(name)
        if value not in (None, neutral) and (value or neutral is not None):
            raise BadRequest(f"{name} is not supported by this server")


def _text(message: Message) -> str:
    """The text of a message's content."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    parts = []
    for part in message.content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise BadRequest("content parts other than text are not supported")
        parts.append(part["text"])
    return "".join(parts)
