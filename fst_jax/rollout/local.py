"""The engine that samples in the learner's own process and on its mesh.

Weights are shared with the learner, not copied: a sync is an assignment (and a
cast, where the compute dtype is not float32).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fst_jax.errors import ConfigError
from fst_jax.models.decoder import Decoder
from fst_jax.parallel.sharding import batch_sharding, replicated, whole_shards
from fst_jax.rollout.engine import Capabilities, Completion, Request
from fst_jax.rollout.sampler import NO_TOKEN, Prompts, Samples, generate
from fst_jax.shapes import bucket


@partial(jax.jit, static_argnames="dtype")
def _cast(params: Any, dtype: np.dtype) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), params)


class LocalEngine:
    """`Engine` over the jitted sampler.

    Holds the parameters of the newest `update_weights`; in a multi-host run
    every process calls `generate` with the same requests.
    """

    def __init__(self, model: Decoder, mesh: Mesh, batch_size: int):
        """`batch_size` is the number of sequences decoded at once."""
        self.graphdef, params = nnx.split(model)
        self.mesh, self.batch_size = mesh, batch_size
        self.max_context = model.config.max_position_embeddings
        self.dtype = model.dtype
        self.update_weights(params, version=0)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(update_weights=True, max_context=self.max_context)

    def update_weights(self, params: Any, version: int) -> None:
        """Sample from `params` from now on (device arrays, not copied)."""
        same = all(x.dtype == self.dtype for x in jax.tree.leaves(params))
        self.params = params if same else _cast(params, self.dtype)
        self.version = version

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Sample every request; requests of similar shape share device batches.

        Raises:
          ConfigError: prompt and completion do not fit the model's context.
        """
        for request in requests:
            total = len(request.prompt_ids) + request.max_new_tokens
            if total > self.max_context:
                raise ConfigError(
                    f"a prompt of {len(request.prompt_ids)} tokens and a completion of up to "
                    f"{request.max_new_tokens} exceed the model's context of {self.max_context}: "
                    "lower rollout.max_new_tokens or rollout.max_prompt_tokens"
                )
        results: list[list[Completion]] = [[] for _ in requests]
        for indices in self._batches(requests):
            members = [requests[i] for i in indices]
            samples = self._run(members)
            for p, i in enumerate(indices):
                results[i] = self._completions(requests[i], samples, p)
        return results

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """Indices of requests that go to the device together: equal n, similar length."""
        kinds: dict[tuple[int, int], list[int]] = {}
        for i, request in enumerate(requests):
            if request.n > 0:
                kinds.setdefault((request.n, bucket(request.max_new_tokens)), []).append(i)
        batches = []
        for (n, _), indices in kinds.items():
            indices.sort(key=lambda i: -len(requests[i].prompt_ids))
            while indices:
                size = self._rows(len(indices), n)
                batches.append(indices[:size])
                indices = indices[size:]
        return batches

    def _run(self, requests: list[Request]) -> Samples:
        n = requests[0].n
        rows = self._rows(len(requests), n)
        width = bucket(max(len(request.prompt_ids) for request in requests), quantum=64)
        stops = bucket(max(1, *(len(request.stop_ids) for request in requests)), quantum=4)
        tokens = np.zeros((rows, width), np.int32)
        stop_ids = np.full((rows, stops), NO_TOKEN, np.int32)
        for row, request in enumerate(requests):
            tokens[row, : len(request.prompt_ids)] = request.prompt_ids
            stop_ids[row, : len(request.stop_ids)] = request.stop_ids

        def column(values: list[Any], dtype: Any) -> np.ndarray:
            padded = np.zeros(rows, dtype)
            padded[: len(values)] = values
            return padded

        prompts = Prompts(
            tokens=tokens,
            lengths=column([len(request.prompt_ids) for request in requests], np.int32),
            limits=column([request.max_new_tokens for request in requests], np.int32),
            temperature=column([request.temperature for request in requests], np.float32),
            top_p=column([request.top_p for request in requests], np.float32),
            top_k=column([request.top_k for request in requests], np.int32),
            stop_ids=stop_ids,
            seeds=column([request.seed for request in requests], np.int32),
        )
        samples = generate(
            self.params,
            jax.device_put(prompts, batch_sharding(self.mesh)),
            graphdef=self.graphdef,
            samples=n,
            max_new=bucket(max(request.max_new_tokens for request in requests)),
            truncated=any(request.top_p < 1 or request.top_k > 0 for request in requests),
        )
        return jax.device_get(jax.device_put(samples, replicated(self.mesh)))

    def _rows(self, prompts: int, n: int) -> int:
        """Prompts in the next device batch: a full one, or a quarter for a short rest.

        Two sizes and no more, since each is a program to compile.
        """
        full = max(1, self.batch_size // n)
        return whole_shards(full if prompts > full // 2 else max(1, full // 4), self.mesh)

    def _completions(self, request: Request, samples: Samples, row: int) -> list[Completion]:
        completions = []
        for n in range(request.n):
            length = int(samples.lengths[row, n])
            completions.append(
                Completion(
                    ids=np.asarray(samples.tokens[row, n, :length]),
                    logprobs=np.asarray(samples.logprobs[row, n, :length]),
                    finish_reason="stop" if samples.stopped[row, n] else "length",
                    temperature=request.temperature,
                    weight_version=self.version,
                )
            )
        return completions
