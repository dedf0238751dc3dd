"""Which token comes next: temperature, truncation, and an exact draw for each sample.

A draw depends on (seed, step) of its sample alone, so a sample comes out the same in any batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

_BLOCK = 256  # tokens per block of the two-level draw
_UNDERFLOW = 104.0  # exp(-104) is 0 in float32: no token so far below the best is ever drawn
_HALVINGS = 36  # from 104 nats to neighbouring float32 numbers


class Choice(NamedTuple):
    """How each sample chooses its tokens."""

    temperature: Float[Any, "P W"]  # 0 is greedy
    top_p: Float[Any, "P W"]  # 1 keeps all
    top_k: Int[Any, "P W"]  # 0 keeps all
    min_p: Float[Any, "P W"]  # 0 keeps all
    seeds: Int[Any, "P W"]
    before: Int[Any, "P W"]  # tokens that the sample had when it came into its slot


def choose(
    logits: Float[Array, "P W V"], choice: Choice, step: Int[Array, "P W"], truncated: bool
) -> tuple[Int[Array, "P W"], Float[Array, "P W"]]:
    """Draw a token for each sample; its logprob is log_softmax(logits / T), never renormalised.

    `step` counts the tokens that each sample generated in its slot.  T = 0 takes the most likely
    token and reports its logprob at T = 1, as SGLang does.
    """
    greedy = choice.temperature == 0
    temperature = jnp.where(greedy, 1.0, choice.temperature)
    logprobs = jax.nn.log_softmax(logits / temperature[..., None], axis=-1)
    allowed = (
        keep_top(logprobs, choice.top_p, choice.top_k, choice.min_p) if truncated else logprobs
    )

    def one(seed: Array, step: Array, scores: Array) -> Array:
        return draw(jax.random.fold_in(jax.random.key(seed), step), scores)

    drawn = jax.vmap(jax.vmap(one))(choice.seeds, choice.before + step, allowed)
    token = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
    return token, jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]


def draw(key: Array, logprobs: Float[Array, "V"]) -> Int[Array, ""]:
    """An exact draw by inverting the cumulative distribution in two levels.

    One uniform number picks a block of the vocabulary, a second a token within
    it: two random numbers a token instead of the V of the Gumbel trick, and no
    cumulative sum over a whole vocabulary.
    """
    size = logprobs.shape[0]
    padded = jnp.pad(logprobs, (0, -size % _BLOCK), constant_values=-jnp.inf)
    mass = jnp.exp(padded).reshape(-1, _BLOCK)
    uniform = jax.random.uniform(key, (2,))
    block = _invert(mass.sum(axis=-1), uniform[0])
    return block * _BLOCK + _invert(mass[block], uniform[1])


def _invert(mass: Float[Array, "M"], uniform: Float[Array, ""]) -> Int[Array, ""]:
    """The index in which `uniform` · total falls; never one without mass.

    A parallel cumulative sum is not quite monotone: rounding can make it rise where no mass is.
    """
    cumulative = jnp.where(mass > 0, jnp.cumsum(mass), 0.0)
    total = jnp.max(cumulative)
    point = jnp.minimum(uniform * total, jnp.nextafter(total, 0.0))
    return jnp.argmax(cumulative > point)


def keep_top(
    logprobs: Float[Array, "P W V"],
    top_p: Float[Array, "P W"],
    top_k: Int[Array, "P W"],
    min_p: Float[Array, "P W"],
) -> Float[Array, "P W V"]:
    """-inf outside the top k tokens, the smallest set of mass ≥ top_p, and min_p · the maximum.

    The most likely token always stays, and so does one as likely as the last that stays.
    Each set is all tokens above a threshold; those of top k and top p are found by bisection: a
    few dozen passes over the vocabulary, where sorting it takes many times as long.
    """
    probabilities = jnp.exp(logprobs)
    p = jnp.where(top_p < 1, top_p, jnp.inf)[..., None]
    k = jnp.where(top_k > 0, top_k, logprobs.shape[-1] + 1)[..., None]

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        enough, too_few = bounds
        middle = (enough + too_few) / 2
        above = logprobs >= middle
        mass = jnp.sum(jnp.where(above, probabilities, 0.0), axis=-1, keepdims=True)
        count = jnp.sum(above, axis=-1, keepdims=True)
        suffices = (mass >= p) | (count >= k)
        return jnp.where(suffices, middle, enough), jnp.where(suffices, too_few, middle)

    highest = jnp.max(logprobs, axis=-1, keepdims=True)
    bounds = highest - _UNDERFLOW, jnp.nextafter(highest, jnp.inf)
    threshold, _ = jax.lax.fori_loop(0, _HALVINGS, halve, bounds)
    threshold = jnp.maximum(threshold, highest + jnp.log(min_p)[..., None])
    return jnp.where(logprobs >= threshold, logprobs, -jnp.inf)
