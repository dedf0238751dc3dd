"""The seam between learning and sampling: y ~ π_θ(·|x,φ).

An `Engine` takes token ids and returns token ids with the log-probability that
the sampling distribution gave each one.  Text is never re-tokenised, and the
temperature travels with the completion, so that the learner can recompute the
same quantity: log_softmax(logits / temperature).
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import numpy as np

from fst_jax.errors import ConfigError

_STRIDE = 0x9E3779B1  # odd, so that a request's seeds are distinct; 2^32 over the golden ratio


@dataclass(frozen=True)
class Request:
    """One context to continue `n` times; 0 is allowed and costs nothing.

    `top_p` = 1, `top_k` = 0 and `min_p` = 0 sample from the full support, which training
    requires: a truncated distribution biases the importance ratio.
    Sample i of a request depends on `sample_seeds[i]` alone, not on what else is in
    the batch.
    """

    prompt_ids: tuple[int, ...]
    n: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()
    seed: int = 0

    @property
    def sample_seeds(self) -> tuple[int, ...]:
        """A seed in [0, 2^31) for each sample: one number, which any served model takes."""
        return tuple((self.seed + i * _STRIDE) % 2**31 for i in range(self.n))


@dataclass(frozen=True)
class Completion:
    """One sampled continuation.

    `ids` (int32 [t]) holds the stop id when one ended the completion;
    `logprobs` (float32 [t]) are log_softmax(logits / temperature) at each id,
    not renormalised for top-p or top-k.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: Literal["stop", "length"]
    temperature: float
    weight_version: int


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; callers ask instead of assuming."""

    update_weights: bool
    max_context: int  # tokens of prompt and completion together


class Engine(Protocol):
    """Who samples: the in-process sampler or a served model."""

    @property
    def capabilities(self) -> Capabilities: ...

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Return `requests[i].n` completions at position i."""
        ...

    def update_weights(self, params: Any, version: int) -> None:
        """Serve `params` from now on; every later completion carries `version`."""
        ...


def same_arrays(old: Any, new: Any) -> bool:
    """Whether two trees of parameters are the very same arrays, which needs no look at them."""
    leaves = jax.tree.leaves(old), jax.tree.leaves(new)
    return len(leaves[0]) == len(leaves[1]) and all(map(operator.is_, *leaves))


def check_fits(requests: Sequence[Request], max_context: int) -> None:
    """Check that prompts and completions fit the model's context.

    Raises:
      ConfigError: one does not; says what to lower.
    """
    for request in requests:
        if len(request.prompt_ids) + request.max_new_tokens > max_context:
            raise ConfigError(
                f"a prompt of {len(request.prompt_ids)} tokens and a completion of up to "
                f"{request.max_new_tokens} exceed the model's context of {max_context}: "
                "lower rollout.max_new_tokens or rollout.max_prompt_tokens"
            )
