"""A reflector that asks a language model: any OpenAI-compatible chat endpoint.

The paper's reflector π_ref is a frozen model whose instruction it does not
print; the wording here is ours.  The model sees the current prompt and a
budgeted selection of scored answers, the worst first, and returns a diagnosis
and then the edited prompt in a fenced block.  An answer that was cut off, or
holds no closed block, is refused rather than guessed at.

Requests are retried with growing pauses where trying again can help (no
connection, no answer in time, 429, 5xx, an answer that is not JSON).  The key
comes from the environment and is never written anywhere.
"""

import json
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from fst_jax.config import FastSettings
from fst_jax.errors import ReflectionError
from fst_jax.fast.reflect import Job, Proposal
from fst_jax.parallel.distributed import agreed
from fst_jax.rollout.rollouts import Rollout

ATTEMPTS = 5  # requests for one proposal, the first included
FIRST_PAUSE_S = 1.0  # doubled after each failure
LONGEST_PAUSE_S = 60.0  # also for a server's Retry-After
LONGEST_BODY = 8 << 20  # bytes of an answer; more is refused
EXAMPLES_CHARACTERS = 16_000  # of all examples together: about 4 000 tokens
FIELD_CHARACTERS = 1_500  # of one question, answer or feedback; the middle is left out
FAILED_SHARE = 0.8  # of the example budget; the rest shows what already works
PARALLEL = 8  # requests in flight

_INSTRUCTION = """\
A language model answers problems of one kind under a system prompt. Your work is to improve that \
system prompt by one small edit.

The current system prompt:
{fence}
{parent}
{fence}

What the model answered under it, with the score (1 is perfect) and the judge's feedback:

{examples}

First write a short diagnosis: which mistake in these answers costs the most, and which sentence \
of the prompt causes it or which one is missing. Then edit the prompt to prevent that mistake.
- Change as little as possible: add, reword or remove one or two sentences, and keep the rest \
word for word.
- Write what holds for every problem of this kind. Do not mention these examples, and do not copy \
their questions or answers.
- Keep it within about {words} words.

End with the complete edited prompt, and nothing after it, in a block like this:
{fence}
the edited prompt
{fence}"""


class LanguageModelReflector:
    """Edits written by the model behind `fast.lm_url`."""

    name = "lm"

    def __init__(
        self,
        settings: FastSettings,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """`sleep` waits between attempts."""
        self.url = settings.lm_url.rstrip("/") + "/chat/completions"
        self.model = settings.lm_model
        self.max_tokens = settings.lm_max_tokens
        self.timeout_s = settings.lm_timeout_s
        self.prompt_words = max(1, settings.max_prompt_tokens * 2 // 3)
        self._key = os.environ.get(settings.lm_api_key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ReflectionError(
                f"the key in the environment variable {settings.lm_api_key_env} holds characters "
                "that cannot be sent: copy it again"
            )
        self._sleep = sleep

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> list[Proposal]:
        """One edit for each job, asked for side by side."""
        seeds = [rng.getrandbits(31) for _ in jobs]
        return agreed(lambda: self._ask(jobs, seeds))

    def _ask(self, jobs: Sequence[Job], seeds: Sequence[int]) -> list[Proposal]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(self.timeout_s)
        with (
            httpx.Client(headers=headers, timeout=timeout) as client,
            ThreadPoolExecutor(max_workers=min(PARALLEL, max(1, len(jobs)))) as threads,
        ):
            return list(threads.map(lambda j, s: self._propose(client, j, s), jobs, seeds))

    def _propose(self, client: httpx.Client, job: Job, seed: int) -> Proposal:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": instruction(job, self.prompt_words)}],
            "max_tokens": self.max_tokens,
            "seed": seed,
        }
        calls = 0
        pause = FIRST_PAUSE_S
        while True:
            calls += 1
            try:
                answer = self._post(client, body)
                break
            except _Retry as failure:
                if calls == ATTEMPTS:
                    error = self._error(f"{failure} (asked {calls} times)")
                    return Proposal(refusal="reflector failed", error=error, calls=calls)
                self._sleep(min(max(pause, failure.wait_s), LONGEST_PAUSE_S))
                pause *= 2
            except ReflectionError as error:
                return Proposal(refusal="reflector failed", error=error, calls=calls)
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        text, refusal = edited_prompt(choice["message"].get("content") or "")
        if choice.get("finish_reason") == "length":
            text, refusal = "", "truncated"
        return Proposal(
            text=text,
            refusal=refusal,
            calls=calls,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )

    def _post(self, client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
        """One request; raises _Retry where another may succeed, else ReflectionError."""
        deadline = time.monotonic() + self.timeout_s
        received = bytearray()
        try:
            with client.stream("POST", self.url, json=body) as response:
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > LONGEST_BODY:
                        raise self._error(f"answered with more than {LONGEST_BODY} bytes")
                    if time.monotonic() > deadline:
                        raise _Retry(f"gave no whole answer in {self.timeout_s:g} s")
        except httpx.TimeoutException as error:
            raise _Retry(f"gave no answer in {self.timeout_s:g} s") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise self._error(f"is not a usable address ({error}): set fast.lm_url") from error
        except httpx.RequestError as error:
            raise _Retry(f"cannot be reached ({error or type(error).__name__})") from error
        if response.status_code == 429 or response.status_code >= 500:
            wait_s = _retry_after(response.headers.get("retry-after", ""))
            raise _Retry(f"answers {response.status_code}: {_message(received)}", wait_s)
        if response.status_code != 200:
            raise self._error(f"answers {response.status_code}: {_message(received)}")
        try:
            answer = json.loads(received)
            choice = answer["choices"][0]
            if not isinstance(choice["message"].get("content") or "", str):
                raise ValueError("content is not text")
            usage = answer.get("usage") or {}
            int(usage.get("prompt_tokens") or 0) + int(usage.get("completion_tokens") or 0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Retry("answers with something that is no chat completion") from error
        return answer

    def _error(self, what: str) -> ReflectionError:
        message = f"the reflection endpoint {self.url} {what}"
        if self._key:
            message = message.replace(self._key, "[key]")
        return ReflectionError(message)


def instruction(job: Job, prompt_words: int) -> str:
    """The request for one edit, with as many examples as the budget holds."""
    examples = _examples(job.rollouts)
    longest = max((len(run) for run in re.findall("`+", job.parent + examples)), default=0)
    return _INSTRUCTION.format(
        fence="`" * max(3, longest + 1), parent=job.parent, examples=examples, words=prompt_words
    )


def edited_prompt(answer: str) -> tuple[str, str | None]:
    """The last fenced block of a model's answer, or "" and why it is refused."""
    answer = answer.rpartition("</think>")[2]
    answer, still_thinking, _ = answer.partition("<think>")
    found: str | None = None
    fence, block = "", list[str]()
    for line in answer.splitlines():
        opening = re.match(r"\s*(`{3,})[^`]*$", line)
        if not fence:
            if opening:
                fence, block = opening[1], []
        elif (stripped := line.rstrip()).endswith(fence):
            last = stripped.rstrip("`")
            found, fence = "\n".join([*block, last] if last.strip() else block), ""
        else:
            block.append(line)
    if fence or still_thinking:
        return "", "truncated"
    if found is None:
        return "", "no fenced prompt"
    return found.strip(), None


def _examples(rollouts: Sequence[Rollout]) -> str:
    """Distinct answers, the worst first; failures leave some room for what worked."""
    distinct = {(r.problem.id, r.text): r for r in rollouts}.values()
    worst_first = sorted(distinct, key=lambda rollout: rollout.score.reward)
    shown: list[str] = []
    used = 0
    for rollout in worst_first:
        example = (
            f"Example {len(shown) + 1}, score {rollout.score.reward:g}\n"
            f"Question: {_cut(rollout.problem.question)}\n"
            f"Answer: {_cut(rollout.text)}\n"
            f"Feedback: {_cut(rollout.score.feedback)}\n"
        )
        share = FAILED_SHARE if rollout.score.reward < 1 else 1.0
        if used + len(example) <= share * EXAMPLES_CHARACTERS:
            shown.append(example)
            used += len(example)
    return "\n".join(shown)


def _cut(text: str) -> str:
    """At most `FIELD_CHARACTERS` of a text: its beginning and its end."""
    text = text.strip()
    if len(text) <= FIELD_CHARACTERS:
        return text
    half = FIELD_CHARACTERS // 2
    return f"{text[:half]} […] {text[-half:]}"


class _Retry(Exception):
    """A failed request that may be repeated, after at least `wait_s`."""

    def __init__(self, what: str, wait_s: float = 0.0):
        super().__init__(what)
        self.wait_s = wait_s


def _retry_after(header: str) -> float:
    """Seconds that a server asks to wait; a date or nonsense counts as none."""
    try:
        return max(0.0, float(header))
    except ValueError:
        return 0.0


def _message(body: bytes | bytearray) -> str:
    """What the server says is wrong, in one short line."""
    text = body.decode(errors="replace")
    try:
        data = json.loads(text)
        error = data.get("error", data) if isinstance(data, dict) else data
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        pass
    return " ".join(text.split())[:300] or "no message"
