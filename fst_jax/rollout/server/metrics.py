"""What the server counts, for Prometheus, under the names that SGLang's dashboards know."""

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from fst_jax.rollout.server.service import Stream

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.running = Gauge("sglang:num_running_reqs", "Samples in slots.", registry=registry)
        self.waiting = Gauge("sglang:num_queue_reqs", "Samples that wait.", registry=registry)
        self._prompt = Counter(
            "sglang:prompt_tokens", "Tokens of prompts, once a sample.", registry=registry
        )
        self._cached = Counter(
            "sglang:cached_tokens", "Tokens of prompts that a row already held.", registry=registry
        )
        self._generated = Counter(
            "sglang:generation_tokens", "Tokens generated.", registry=registry
        )
        self._requests = Counter("sglang:num_requests", "Samples that ended.", registry=registry)
        self._aborted = Counter(
            "sglang:num_aborted_requests", "Samples aborted or left by clients.", registry=registry
        )
        self._first = Histogram(
            "sglang:time_to_first_token_seconds", "From arrival to the first tokens.",
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self._latency = Histogram(
            "sglang:e2e_request_latency_seconds", "From arrival to the end of all samples.",
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip

    def count(self, stream: "Stream") -> None:
        """Count a stream that has ended or was left."""
        request = stream.prompt.request
        for answer in stream.answers:
            self._requests.inc()
            self._prompt.inc(len(request.prompt_ids))
            self._cached.inc(answer.cached)
            self._generated.inc(len(answer.ids))
            if answer.finish is None or answer.finish.type == "abort":
                self._aborted.inc()
        if stream.first_token_s is not None:
            self._first.observe(stream.first_token_s)
        self._latency.observe(time.monotonic() - stream.started)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
