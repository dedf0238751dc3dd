"""The in-process sampler: prefill each prompt once, then decode all its samples.

A device batch is P prompts × N samples.  The prompts' keys and values are
computed once, keys [L, P, Hkv, Dh, S] and values [L, P, Hkv, S, Dh], and read by
all N samples; every sample adds its own, [L, P, N, Hkv, S', Dh].  So stored, no
step of decoding has to turn a cache around: on the CPU that took longer than the
products.  Decoding is one jitted while-loop that ends as soon as every sample
has stopped.

Prompts are padded on the right and lengths come from a short list, so a run
compiles a handful of programs and then none.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from fst_jax.models.attention import attention
from fst_jax.models.decoder import Attend, Decoder

NO_TOKEN = -1  # pads the table of stop ids
_BLOCK = 256  # tokens per block of the two-level draw
_UNDERFLOW = 104.0  # exp(-104) is 0 in float32: no token so far below the best is ever drawn
_HALVINGS = 36  # from 104 nats to neighbouring float32 numbers


class Prompts(NamedTuple):
    """One device batch of contexts and how to continue them."""

    tokens: Int[Any, "P S"]
    lengths: Int[Any, "P"]  # 0 for a padding prompt
    limits: Int[Any, "P"]  # most tokens to generate
    temperature: Float[Any, "P"]  # 0 is greedy
    top_p: Float[Any, "P"]
    top_k: Int[Any, "P"]  # 0 keeps all
    stop_ids: Int[Any, "P K"]
    seeds: Int[Any, "P"]


class Samples(NamedTuple):
    """What was generated, padded with zeros after `lengths`."""

    tokens: Int[Array, "P N S"]
    logprobs: Float[Array, "P N S"]
    lengths: Int[Array, "P N"]
    stopped: Bool[Array, "P N"]  # a stop id, not the limit, ended it


@partial(jax.jit, static_argnames=("graphdef", "samples", "max_new", "truncated"))
def generate(
    params: Any, prompts: Prompts, *, graphdef: Any, samples: int, max_new: int, truncated: bool
) -> Samples:
    """Continue each prompt `samples` times by at most `max_new` tokens.

    `truncated` compiles in top-k and top-p; without it, sampling has full support.
    """
    model: Decoder = nnx.merge(graphdef, params)
    logits, prompt_cache = _prefill(model, prompts)
    shape = (prompts.tokens.shape[0], samples)
    logits = jnp.broadcast_to(logits[:, None], (*shape, logits.shape[-1]))
    value = prompt_cache[1]
    layers, _, kv_heads, _, head_dim = value.shape
    cache_shape = (layers, *shape, kv_heads, max_new, head_dim)
    prompt_mask = jnp.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
    positions = jnp.repeat(prompts.lengths, samples)[:, None]

    class Loop(NamedTuple):
        step: Array
        logits: Array
        cache: tuple[Array, Array]
        samples: Samples
        done: Array

    def unfinished(loop: Loop) -> Array:
        return (loop.step < max_new) & ~jnp.all(loop.done)

    def advance(loop: Loop) -> Loop:
        i = loop.step
        token, logprob = sample(loop.logits, prompts, i, truncated)
        live = ~loop.done
        stopped = live & jnp.any(token[..., None] == prompts.stop_ids[:, None], axis=-1)
        old = loop.samples
        new = Samples(
            old.tokens.at[..., i].set(jnp.where(live, token, 0)),
            old.logprobs.at[..., i].set(jnp.where(live, logprob, 0.0)),
            old.lengths + live,
            old.stopped | stopped,
        )
        done = loop.done | stopped | (new.lengths >= prompts.limits[:, None])
        attend = _decode_attention(prompt_mask, i, shape)
        cache = (*prompt_cache, *loop.cache)
        hidden, fresh = model(token.reshape(-1, 1), positions + i, attend, cache)

        def append(held: Array, kv: Array) -> Array:
            new = kv.reshape(*held.shape[:4], 1, held.shape[5])
            return jax.lax.dynamic_update_slice_in_dim(held, new, i, axis=4)

        generated = append(loop.cache[0], fresh[0]), append(loop.cache[1], fresh[1])
        logits = model.logits(hidden).reshape(loop.logits.shape)
        return Loop(i + 1, logits, generated, new, done)

    empty = Samples(
        jnp.zeros((*shape, max_new), jnp.int32),
        jnp.zeros((*shape, max_new), jnp.float32),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, bool),
    )
    cache = (jnp.zeros(cache_shape, value.dtype), jnp.zeros(cache_shape, value.dtype))
    done = jnp.broadcast_to((prompts.lengths == 0)[:, None], shape)
    start = Loop(jnp.zeros((), jnp.int32), logits, cache, empty, done)
    return jax.lax.while_loop(unfinished, advance, start).samples


def _prefill(model: Decoder, prompts: Prompts) -> tuple[Float[Array, "P V"], tuple[Array, Array]]:
    """Logits after each prompt, and the prompt's keys and values as decoding wants them."""
    index = jnp.arange(prompts.tokens.shape[1])
    mask = (index[:, None] >= index)[None] & (index < prompts.lengths[:, None])[:, None]
    positions = jnp.broadcast_to(index, prompts.tokens.shape)

    def attend(query: Array, key: Array, value: Array, _: Any) -> tuple[Array, Any]:
        cache = key.transpose(0, 2, 3, 1), value.swapaxes(1, 2)
        return attention(query, key, value, mask), cache

    hidden, cache = model(prompts.tokens, positions, attend)
    last = jnp.maximum(prompts.lengths - 1, 0)[:, None, None]
    return model.logits(jnp.take_along_axis(hidden, last, axis=1)[:, 0]), cache


def _decode_attention(
    prompt_mask: Bool[Array, "P S"], step: Int[Array, ""], shape: tuple[int, int]
) -> Attend:
    """Attention of one new token over its prompt, its own past and itself.

    The three parts share one softmax.  The prompt's part is a single product
    for the N samples of a prompt: its keys are read once, not N times.
    """
    prompts, samples = shape

    def attend(query: Array, key: Array, value: Array, cache: Any) -> tuple[Array, Any]:
        prompt_key, prompt_value, past_key, past_value = cache
        kv_heads, head_dim = key.shape[2:]
        q = query.reshape(prompts, samples, kv_heads, -1, head_dim) * head_dim**-0.5
        k = key.reshape(prompts, samples, kv_heads, 1, head_dim)
        v = value.reshape(prompts, samples, kv_heads, 1, head_dim)

        def scores(keys: Array) -> Array:
            return jnp.einsum("pnkgd,pnksd->pnkgs", q, keys, preferred_element_type=jnp.float32)

        def of_prompt(x: Array, cache: Array, dtype: Any) -> Array:
            """x @ cache, one product for the N samples of a prompt."""
            rows = x.swapaxes(1, 2).reshape(prompts, kv_heads, -1, x.shape[-1])
            y = jnp.matmul(rows, cache, preferred_element_type=dtype)
            return y.reshape(prompts, kv_heads, samples, -1, y.shape[-1]).swapaxes(1, 2)

        floor = jnp.finfo(jnp.float32).min
        to_prompt = of_prompt(q, prompt_key, jnp.float32)
        to_prompt = jnp.where(prompt_mask[:, None, None, None], to_prompt, floor)
        past = jnp.arange(past_key.shape[3]) < step
        to_past = jnp.where(past, scores(past_key), floor)
        to_self = scores(k)
        weights = jax.nn.softmax(jnp.concatenate([to_prompt, to_past, to_self], -1), axis=-1)
        weights = weights.astype(value.dtype)
        split = (to_prompt.shape[-1], to_prompt.shape[-1] + to_past.shape[-1])
        on_prompt, on_past, on_self = jnp.split(weights, split, axis=-1)
        out = (
            of_prompt(on_prompt, prompt_value, value.dtype)
            + jnp.einsum("pnkgs,pnksd->pnkgd", on_past, past_value)
            + on_self * v
        )
        return out.reshape(query.shape), (key, value)

    return attend


def sample(
    logits: Float[Array, "P N V"], prompts: Prompts, step: Int[Array, ""], truncated: bool
) -> tuple[Int[Array, "P N"], Float[Array, "P N"]]:
    """Draw a token for each sample; its logprob is log_softmax(logits / T), never renormalised.

    The draw depends on (seed, sample, step) alone.  T = 0 takes the most likely
    token and reports its logprob at T = 1, as SGLang does.
    """
    greedy = prompts.temperature == 0
    temperature = jnp.where(greedy, 1.0, prompts.temperature)
    logprobs = jax.nn.log_softmax(logits / temperature[:, None, None], axis=-1)
    allowed = keep_top(logprobs, prompts.top_p, prompts.top_k) if truncated else logprobs

    def one(seed: Array, n: Array, scores: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), n), step)
        return draw(key, scores)

    per_sample = jax.vmap(one, in_axes=(None, 0, 0))
    drawn = jax.vmap(per_sample, in_axes=(0, None, 0))(
        prompts.seeds, jnp.arange(logits.shape[1]), allowed
    )
    token = jnp.where(greedy[:, None], jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)
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
    logprobs: Float[Array, "P N V"], top_p: Float[Array, "P"], top_k: Int[Array, "P"]
) -> Float[Array, "P N V"]:
    """-inf outside the top k tokens and outside the smallest set of mass ≥ top_p.

    The most likely token always stays, and so does one as likely as the last that stays.
    Both sets are all tokens above a threshold, which is found by bisection: a few dozen
    passes over the vocabulary, where sorting it takes many times as long.
    """
    probabilities = jnp.exp(logprobs)
    p = jnp.where(top_p < 1, top_p, jnp.inf)[:, None, None]
    k = jnp.where(top_k > 0, top_k, logprobs.shape[-1] + 1)[:, None, None]

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
    return jnp.where(logprobs >= threshold, logprobs, -jnp.inf)
