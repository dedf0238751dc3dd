"""A reflector that asks a language model: any OpenAI-compatible chat endpoint.

The paper's reflector π_ref is a frozen model.  Here it may also be the policy's
own server, whose weights are the newest θ.  The model gives a diagnosis and then
the prompt in a fenced block (`request`, `answer`); replies are kept in the run's
folder (`replies`).

Requests are sent again, after growing pauses, where that can help (no
connection, no answer in time, 429, 5xx, an answer that is not JSON).  A job
whose requests all fail is counted under its last failure, and the run goes on;
it ends where only the user can help: the endpoint refuses a whole batch, its
address is none, or nobody has ever answered there.  The key comes from the
environment and is never written anywhere.
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from fst_jax.config import Config
from fst_jax.errors import ConfigError, ReflectionError
from fst_jax.fast.answer import edited_prompt
from fst_jax.fast.reflect import Job, Proposal
from fst_jax.fast.replies import Replies, Reply
from fst_jax.fast.request import PLACEHOLDERS, Wording
from fst_jax.fast.validate import normalised
from fst_jax.keys import key_in, masked
from fst_jax.parallel.distributed import agreed
from fst_jax.tasks.task import Problem
from fst_jax.threads import side_by_side
from fst_jax.watchdog import beat

ATTEMPTS = 5  # requests for one proposal, the first included
FIRST_PAUSE_S = 1.0  # doubled after each failure
LONGEST_PAUSE_S = 60.0  # also for a server's Retry-After
LONGEST_BODY = 8 << 20  # bytes of an answer; more is not read
PARALLEL = 8  # requests in flight
PASSING = (408, 425, 429)  # statuses below 500 that may pass


class LanguageModelReflector:
    """Edits written by the model behind `fast.lm_url`, or by the policy's own server."""

    name = "lm"

    def __init__(
        self,
        config: Config,
        count_tokens: Callable[[str], int],
        shown: Callable[[Problem], str],
        replies: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """`shown` is a problem as the policy is asked it, `replies` the file that keeps them;
        `sleep` waits between attempts.

        Raises:
          ReflectionError: the key cannot be sent.
        """
        fast, rollout = config.fast, config.rollout
        own, key_env = fast.lm_url is None, fast.lm_api_key_env
        if own:
            key_env = rollout.api_key_env
        base = fast.lm_url or rollout.url.split(",")[0].strip().rstrip("/") + "/v1"
        self.url = base.rstrip("/") + "/chat/completions"
        self._setting = "rollout.url" if own else "fast.lm_url"
        self._key_env = key_env
        self.model = fast.lm_model
        self.max_tokens, self.options = fast.lm_max_tokens, fast.lm_options
        self.timeout_s = fast.lm_timeout_s
        words = max(1, fast.max_prompt_tokens * 2 // 3)
        self.wording = Wording(fast.recipe, words, fast.lm_examples_tokens, count_tokens, shown)
        try:
            self._key = key_in(key_env)
        except ConfigError as error:
            raise ReflectionError(str(error)) from error
        self._path = replies
        self._replies: Replies | None = None  # read at the first request
        self._reached = False  # whether anybody was ever there
        self._sleep = sleep

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> list[Proposal]:
        """One edit for each job, asked for side by side."""
        seeds = [rng.getrandbits(31) for _ in jobs]
        return agreed(lambda: self._ask(jobs, seeds))

    def _ask(self, jobs: Sequence[Job], seeds: Sequence[int]) -> list[Proposal]:
        if self._replies is None:
            self._replies = Replies(self._path)
            self._reached = len(self._replies) > 0
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(self.timeout_s)
        with httpx.Client(headers=headers, timeout=timeout) as client:
            asked = [partial(self._propose, client, *o) for o in zip(jobs, seeds, strict=True)]
            proposals = side_by_side(asked, PARALLEL)
        if not self._reached:  # it is rather the address that is wrong than the server down
            proposals = [replace(p, mendable=p.error is not None) for p in proposals]
        return proposals

    def _propose(self, client: httpx.Client, job: Job, seed: int) -> Proposal:
        content, fence = self.wording.request(job)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "seed": seed,
        }
        body |= self.options
        known = body | {"seed": seed}
        assert self._replies is not None
        reply = self._replies.get(known)
        if reply is None:
            sent = {name: value for name, value in body.items() if value is not None}
            answer = self._answer(client, sent)
            if isinstance(answer, Proposal):
                return answer
            reply = answer
            self._replies.keep(known, reply)
        text, refusal = edited_prompt(reply.content, reply.finish_reason, fence)
        if normalised(text).casefold() in PLACEHOLDERS:
            text, refusal = "", "no fenced prompt"
        return Proposal(
            text=text,
            refusal=refusal,
            calls=reply.calls,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )

    def _answer(self, client: httpx.Client, body: dict[str, Any]) -> Reply | Proposal:
        """The reply to one request, or the proposal that says why there is none."""
        pause = FIRST_PAUSE_S
        for calls in range(1, ATTEMPTS + 1):
            try:
                return replace(self._post(client, body), calls=calls)
            except _Failure as failure:
                last = failure
            beat()  # a request that failed is no stall
            if not last.may_pass or calls == ATTEMPTS:
                break
            self._sleep(min(max(pause, last.wait_s), LONGEST_PAUSE_S))
            pause *= 2
        message = f"the reflection endpoint {self.url} {last}"
        if calls > 1:
            message += f" (asked {calls} times)"
        error = ReflectionError(masked(message, self._key))
        return Proposal(refusal=last.reason, error=error, mendable=last.mendable, calls=calls)

    def _post(self, client: httpx.Client, body: dict[str, Any]) -> Reply:
        """One request; raises _Failure."""
        deadline = time.monotonic() + self.timeout_s
        received = bytearray()
        try:
            with client.stream("POST", self.url, json=body) as response:
                self._reached = True
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > LONGEST_BODY:
                        what = f"answered with more than {LONGEST_BODY} bytes"
                        raise _Failure("no chat completion", what, may_pass=False)
                    if time.monotonic() > deadline:
                        what = f"gave no whole answer in {self.timeout_s:g} s"
                        raise _Failure("reflector too slow", what)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            what = f"cannot be reached ({error or type(error).__name__}): start it, or set "
            raise _Failure("reflector unreachable", what + self._setting) from error
        except httpx.TimeoutException as error:
            self._reached = True
            what = f"gave no answer in {self.timeout_s:g} s; fast.lm_timeout_s sets this time"
            raise _Failure("reflector too slow", what) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            what = f"is not a usable address ({error}): set {self._setting}"
            raise _Failure("request refused", what, may_pass=False, mendable=True) from error
        except httpx.RequestError as error:
            self._reached = True
            what = f"broke the connection ({error or type(error).__name__})"
            raise _Failure("connection lost", what) from error
        return self._checked(response, bytes(received))

    def _checked(self, response: httpx.Response, received: bytes) -> Reply:
        """What a response holds; raises _Failure where it is no chat completion."""
        status = response.status_code
        said = _message(masked(received.decode(errors="replace"), self._key))
        what = f"answers {status}: {said}"
        if status in PASSING:
            wait_s = _retry_after(response.headers.get("retry-after", ""))
            raise _Failure("reflector busy", what, wait_s=wait_s)
        if status >= 500:
            wait_s = _retry_after(response.headers.get("retry-after", ""))
            raise _Failure("server error", what, wait_s=wait_s)
        if status != 200:
            what = f"{what}; check {self._to_check(status)}"
            raise _Failure("request refused", what, may_pass=False, mendable=True)
        try:
            answer = json.loads(received)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            content = choice["message"].get("content") or ""
            if not isinstance(content, str):
                raise ValueError("content is not text")
            return Reply(
                content=content.encode("utf-8", "replace").decode(),  # no half characters
                finish_reason=choice.get("finish_reason"),
                calls=1,
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                completion_tokens=int(usage.get("completion_tokens") or 0),
            )
        except (
            *(ValueError, KeyError, IndexError, TypeError, AttributeError),
            *(OverflowError, RecursionError),
        ) as error:
            raise _Failure(
                "no chat completion", "answers with something that is no chat completion"
            ) from error

    def _to_check(self, status: int) -> str:
        """The settings that a refusal may come from."""
        if status in (401, 402, 403):
            return f"the key in the environment variable {self._key_env}"
        if status in (400, 413, 422):
            return "fast.lm_model, lm_max_tokens, lm_examples_tokens and lm_options"
        return f"{self._setting} and fast.lm_model"


class _Failure(Exception):
    """A failed request: why, in words that are counted, and whether the same one may succeed."""

    def __init__(
        self,
        reason: str,
        what: str,
        *,
        may_pass: bool = True,
        mendable: bool = False,
        wait_s: float = 0.0,
    ):
        """`mendable`: the user can help, and nothing else; `wait_s`: before the next attempt."""
        super().__init__(what)
        self.reason, self.may_pass, self.mendable = reason, may_pass, mendable
        self.wait_s = wait_s


def _retry_after(header: str) -> float:
    """Seconds that a server asks to wait; a date or nonsense counts as none."""
    try:
        return max(0.0, float(header))
    except ValueError:
        return 0.0


def _message(text: str) -> str:
    """What the body of a server's answer says is wrong, in one short line."""
    try:
        data = json.loads(text)
        error = data.get("error", data) if isinstance(data, dict) else data
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:300] or "no message"
