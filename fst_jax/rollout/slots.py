"""What the device holds of the sequences under way, and the jitted programs that advance them.

The engine is a grid: P rows × W slots.  A row holds one context, a slot one sample of it, and the
context's keys and values are stored once and read by all W slots of its row:

    contexts  keys [L, P, Hkv, Dh, S]     values [L, P, Hkv, S, Dh]     logits [P, V]
    slots     keys [L, P, W, Hkv, Dh, C]  values [L, P, W, Hkv, C, Dh]  logits [P, W, V]

So stored, no step of decoding turns a cache around: on the CPU that took longer than the products.
The C columns of the slots are a ring with one clock for all: whatever a slot generates at a tick
lies in the tick's column, so a step writes one column instead of a different one in every slot,
and a slot that starts later sees its own columns by its age.

Shapes come from short lists, so a run compiles a handful of programs and then none.
"""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import Attend, Decoder
from fst_jax.parallel.sharding import (
    SEQUENCES,
    constrain,
    put,
    replicated,
    shardings,
    shards,
    whole_shards,
)
from fst_jax.rollout.moves import put_rows, take_rows
from fst_jax.rollout.sampler import Choice, choose

_KEYS, _LOGITS = "sampler/contexts/keys", "sampler/contexts/logits"  # as the table names them
_FLOOR = jnp.finfo(jnp.float32).min  # of a score that does not count; -inf could make NaN


class Contexts(NamedTuple):
    """Contexts that samples continue, a row each."""

    keys: Float[Array, "L P Hkv Dh S"]
    values: Float[Array, "L P Hkv S Dh"]
    logits: Float[Array, "P V"]  # after the last token


class Slots(NamedTuple):
    """What the samples have generated."""

    keys: Float[Array, "L P W Hkv Dh C"]
    values: Float[Array, "L P W Hkv C Dh"]
    logits: Float[Array, "P W V"]  # after the last token


class Piece(NamedTuple):
    """Tokens by which contexts are continued: R rows of at most T tokens.

    A row begins as the first `offsets` ≤ S - T tokens of row `sources`.  Padding repeats an entry.
    """

    rows: Int[Any, "R"]
    sources: Int[Any, "R"]
    offsets: Int[Any, "R"]
    tokens: Int[Any, "R T"]
    counts: Int[Any, "R"]


class Plan(NamedTuple):
    """How the slots go on."""

    lengths: Int[Any, "P"]  # tokens of each context
    live: Bool[Any, "P W"]
    ages: Int[Any, "P W"]  # tokens that a slot holds
    left: Int[Any, "P W"]  # tokens that it may still generate
    choice: Choice
    stop_ids: Int[Any, "P W K"]
    clock: Int[Any, ""]  # the column of the next token
    steps: Int[Any, ""]  # at most the width of a chunk
    enough: Int[Any, ""]  # slots that end before the chunk does, so that they can be filled


class Chunk(NamedTuple):
    """What a call of `decode` generated; `counts` tokens in each slot."""

    tokens: Int[Array, "P W N"]
    logprobs: Float[Array, "P W N"]
    counts: Int[Array, "P W"]
    stopped: Bool[Array, "P W"]  # by a stop id, which is the last token
    ticks: Int[Array, ""]  # by how much the clock advanced


class Grid(NamedTuple):
    """The sizes of the engine's arrays."""

    rows: int  # P
    width: int  # W
    context: int  # S
    columns: int  # C


class Programs:
    """The jitted programs of one model on one mesh: `programs` gives them."""

    def __init__(self, graphdef: Any, config: ModelConfig, dtype: Any, mesh: Mesh):
        self._config, self._dtype, self._mesh = config, dtype, mesh
        grid = Grid(whole_shards(1, mesh, SEQUENCES), 1, 1, 1)
        contexts, slots = jax.eval_shape(partial(self._zeros, grid))
        placed = shardings({"sampler": {"contexts": contexts, "slots": slots}}, mesh)["sampler"]
        self._contexts, self._slots = placed["contexts"], placed["slots"]
        whole = replicated(mesh)
        self._empty = jax.jit(
            self._zeros, static_argnames="grid", out_shardings=(self._contexts, self._slots)
        )
        self._prefill = jax.jit(
            partial(prefill, graphdef=graphdef, mesh=mesh),
            donate_argnames="contexts",
            out_shardings=self._contexts,
        )
        self._copy = jax.jit(
            partial(copy, mesh=mesh), donate_argnames="contexts", out_shardings=self._contexts
        )
        self._decode = jax.jit(
            partial(decode, graphdef=graphdef),
            static_argnames=("chunk", "truncated"),
            donate_argnames="slots",
            out_shardings=(self._slots, whole),
        )
        self._rearrange = jax.jit(
            partial(rearrange, mesh=mesh),
            static_argnames="grid",
            out_shardings=(self._contexts, self._slots, whole),
        )

    def empty(self, grid: Grid) -> tuple[Contexts, Slots]:
        return self._empty(grid=grid)

    def prefill(self, params: Any, contexts: Contexts, piece: Piece) -> Contexts:
        return self._prefill(params, contexts, self._put(piece))

    def copy(self, contexts: Contexts, rows: Any, sources: Any) -> Contexts:
        return self._copy(contexts, *self._put((rows, sources)))

    def decode(
        self,
        params: Any,
        contexts: Contexts,
        slots: Slots,
        plan: Plan,
        *,
        chunk: int,
        truncated: bool,
    ) -> tuple[Slots, Chunk]:
        """The slots afterwards, and on the host what was generated."""
        slots, generated = self._decode(
            params, contexts, slots, self._put(plan), chunk=chunk, truncated=truncated
        )
        return slots, jax.device_get(generated)

    def rearrange(
        self, contexts: Contexts, slots: Slots, rows: Any, places: Any, clock: int, grid: Grid
    ) -> tuple[Contexts, Slots, int]:
        contexts, slots, now = self._rearrange(
            contexts, slots, *self._put((rows, places, jnp.int32(clock))), grid=grid
        )
        return contexts, slots, int(now)

    def lower(
        self, params: Any, grid: Grid, before: Grid, piece: tuple[int, int], stops: int, chunk: int
    ) -> dict[str, jax.stages.Lowered]:
        """The programs for arrays that are not there, to be compiled ahead of time.

        `params` are shapes with shardings, `before` the grid from which `rearrange` comes, `piece`
        the rows and tokens that `prefill` takes at a time, `stops` the number of stop ids.
        """
        whole = replicated(self._mesh)

        def given(shape: tuple[int, ...], dtype: Any = jnp.int32) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

        places, (rows, tokens) = (grid.rows, grid.width), piece
        integers, floats = given(places), given(places, jnp.float32)
        choice = Choice(floats, floats, integers, floats, integers, integers)
        plan = Plan(
            given(places[:1]), given(places, bool), integers, integers, choice,
            given((*places, stops)), given(()), given(()), given(()),
        )  # fmt: skip
        few = given((rows,))
        contexts, slots = self.shapes(grid)
        return {
            "prefill": self._prefill.lower(
                params, contexts, Piece(few, few, few, given((rows, tokens)), few)
            ),
            "decode": self._decode.lower(
                params, contexts, slots, plan, chunk=chunk, truncated=False
            ),
            "rearrange": self._rearrange.lower(
                *self.shapes(before), given(places[:1]), given(places), given(()), grid=grid
            ),
        }

    def shapes(self, grid: Grid) -> tuple[Contexts, Slots]:
        """What `empty` gives, as shapes with shardings."""
        arrays = jax.eval_shape(partial(self._zeros, grid))
        return jax.tree.map(
            lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
            arrays,
            (self._contexts, self._slots),
        )

    def _put(self, values: Any) -> Any:
        return put(values, replicated(self._mesh))

    def _zeros(self, grid: Grid) -> tuple[Contexts, Slots]:
        config, dtype = self._config, self._dtype
        layers, heads, size = config.num_layers, config.num_kv_heads, config.head_dim
        rows, width, context, columns = grid
        contexts = Contexts(
            jnp.zeros((layers, rows, heads, size, context), dtype),
            jnp.zeros((layers, rows, heads, context, size), dtype),
            jnp.zeros((rows, config.vocab_size), jnp.float32),
        )
        slots = Slots(
            jnp.zeros((layers, rows, width, heads, size, columns), dtype),
            jnp.zeros((layers, rows, width, heads, columns, size), dtype),
            jnp.zeros((rows, width, config.vocab_size), jnp.float32),
        )
        return contexts, slots


@lru_cache
def programs(graphdef: Any, config: ModelConfig, dtype: Any, mesh: Mesh) -> Programs:
    """The programs, compiled once for all engines of a model."""
    return Programs(graphdef, config, dtype, mesh)


def prefill(
    params: Any, contexts: Contexts, piece: Piece, *, graphdef: Any, mesh: Mesh
) -> Contexts:
    """The contexts with every row of the piece continued by its tokens.

    A long context takes several calls, each of which goes on where the last one stopped.
    """
    model: Decoder = nnx.merge(graphdef, params)
    count, length = piece.tokens.shape
    everywhere = count == contexts.keys.shape[1] and shards(mesh, SEQUENCES) > 1
    if everywhere:
        piece, taking_part = _in_order(piece)
    piece = piece._replace(tokens=constrain(piece.tokens, "sampler/tokens", mesh))
    index = jnp.arange(length)
    positions = piece.offsets[:, None] + index
    mask = jnp.arange(contexts.keys.shape[-1]) <= positions[..., None]
    zero = jnp.zeros_like(piece.offsets)

    @jax.vmap
    def put(old: Array, new: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice(old, new, start)

    def attend(query: Array, key: Array, value: Array, cache: Any) -> tuple[Array, Any]:
        kv_heads, head_dim = key.shape[2:]
        keys = put(cache[0], key.transpose(0, 2, 3, 1), jnp.stack([zero, zero, piece.offsets], 1))
        values = put(cache[1], value.swapaxes(1, 2), jnp.stack([zero, piece.offsets, zero], 1))
        q = query.reshape(count, length, kv_heads, -1, head_dim) * head_dim**-0.5
        q = q.transpose(0, 2, 3, 1, 4)
        scores = jnp.einsum("rkgtd,rkds->rkgts", q, keys, preferred_element_type=jnp.float32)
        scores = jnp.where(mask[:, None, None], scores, _FLOOR)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        out = jnp.einsum("rkgts,rksd->rkgtd", weights, values)
        return out.transpose(0, 3, 1, 2, 4).reshape(query.shape), (keys, values)

    cache = tuple(take_rows(x, piece.sources, _KEYS, 1, mesh) for x in contexts[:2])
    cache = jax.lax.optimization_barrier(cache)  # else XLA may copy all rows to write one
    hidden, (keys, values) = model(piece.tokens, positions, attend, cache)
    last = jnp.maximum(piece.counts - 1, 0)[:, None, None]
    logits = model.logits(jnp.take_along_axis(hidden, last, axis=1)[:, 0])
    new = Contexts(keys, values, logits)
    if not everywhere:
        return _write(contexts, piece.rows, new, mesh)
    return Contexts(
        jnp.where(taking_part[:, None, None, None], new.keys, contexts.keys),
        jnp.where(taking_part[:, None, None, None], new.values, contexts.values),
        jnp.where(taking_part[:, None], new.logits, contexts.logits),
    )


def _in_order(piece: Piece) -> tuple[Piece, Bool[Array, "R"]]:
    """A piece of as many rows as there are, each in its place, so that none leaves its device; and
    which of them take part."""
    rows = jnp.arange(piece.rows.shape[0])
    taking_part = jnp.zeros(rows.shape, bool).at[piece.rows].set(True)
    entry = jnp.zeros_like(rows).at[piece.rows].set(rows)
    ordered = Piece(rows, *(jnp.take(x, entry, axis=0) for x in piece[1:]))
    return (
        ordered._replace(
            sources=jnp.where(taking_part, ordered.sources, rows),
            offsets=jnp.where(taking_part, ordered.offsets, 0),
        ),
        taking_part,
    )


def copy(
    contexts: Contexts, rows: Int[Array, "R"], sources: Int[Array, "R"], *, mesh: Mesh
) -> Contexts:
    """The contexts with `rows` made equal to `sources`."""
    return _write(contexts, rows, _take(contexts, sources, mesh), mesh)


def _take(contexts: Contexts, sources: Int[Array, "R"], mesh: Mesh) -> Contexts:
    return Contexts(
        take_rows(contexts.keys, sources, _KEYS, 1, mesh),
        take_rows(contexts.values, sources, _KEYS, 1, mesh),
        take_rows(contexts.logits, sources, _LOGITS, 0, mesh),
    )


def _write(contexts: Contexts, rows: Int[Array, "R"], new: Contexts, mesh: Mesh) -> Contexts:
    return Contexts(
        put_rows(contexts.keys, rows, new.keys, _KEYS, 1, mesh),
        put_rows(contexts.values, rows, new.values, _KEYS, 1, mesh),
        put_rows(contexts.logits, rows, new.logits, _LOGITS, 0, mesh),
    )


def decode(
    params: Any,
    contexts: Contexts,
    slots: Slots,
    plan: Plan,
    *,
    graphdef: Any,
    chunk: int,
    truncated: bool,
) -> tuple[Slots, Chunk]:
    """Advance every live slot by up to `plan.steps` ≤ `chunk` tokens.

    Ends early when no slot is live, or when `plan.enough` have ended.  `truncated` compiles in
    top-k, top-p and min-p; without it, sampling has full support.
    """
    model: Decoder = nnx.merge(graphdef, params)
    rows, width = plan.live.shape
    columns = slots.keys.shape[-1]
    context_mask = jnp.arange(contexts.keys.shape[-1]) < plan.lengths[:, None]
    # How long ago each column was written, when the loop begins.
    since = (plan.clock - 1 - jnp.arange(columns)) % columns
    logits = jnp.where((plan.ages == 0)[..., None], contexts.logits[:, None], slots.logits)

    class Loop(NamedTuple):
        tick: Array
        live: Array
        slots: Slots
        chunk: Chunk

    def unfinished(loop: Loop) -> Array:
        ended = jnp.sum(plan.live & ~loop.live)
        return (loop.tick < plan.steps) & jnp.any(loop.live) & (ended < plan.enough)

    def advance(loop: Loop) -> Loop:
        i, live, old = loop.tick, loop.live, loop.chunk
        token, logprob = choose(loop.slots.logits, plan.choice, plan.ages + i, truncated)
        stopped = live & jnp.any(token[..., None] == plan.stop_ids, axis=-1)
        counts = old.counts + live
        new = Chunk(
            old.tokens.at[..., i].set(jnp.where(live, token, 0)),
            old.logprobs.at[..., i].set(jnp.where(live, logprob, 0.0)),
            counts,
            old.stopped | stopped,
            i + 1,
        )
        column = (plan.clock + i) % columns
        past = ((since + i) % columns)[None, None] < (plan.ages + i)[..., None]
        attend = _decode_attention(context_mask, past, (rows, width))
        positions = plan.lengths[:, None] + plan.ages + i
        cache = (contexts.keys, contexts.values, loop.slots.keys, loop.slots.values)
        hidden, fresh = model(token.reshape(-1, 1), positions.reshape(-1, 1), attend, cache)

        def place(held: Array, kv: Array, axis: int) -> Array:
            shape = (*held.shape[:axis], 1, *held.shape[axis + 1 :])
            return jax.lax.dynamic_update_slice_in_dim(held, kv.reshape(shape), column, axis)

        slots = Slots(
            place(loop.slots.keys, fresh[0], 5),
            place(loop.slots.values, fresh[1], 4),
            model.logits(hidden).reshape(loop.slots.logits.shape),
        )
        return Loop(i + 1, live & ~stopped & (counts < plan.left), slots, new)

    zeros = partial(jnp.zeros, (rows, width, chunk))
    empty = Chunk(
        zeros(jnp.int32),
        zeros(jnp.float32),
        jnp.zeros((rows, width), jnp.int32),
        jnp.zeros((rows, width), bool),
        jnp.int32(0),
    )
    start = Loop(jnp.int32(0), plan.live, slots._replace(logits=logits), empty)
    end = jax.lax.while_loop(unfinished, advance, start)
    return end.slots, end.chunk


def _decode_attention(
    context_mask: Bool[Array, "P S"], past_mask: Bool[Array, "P W C"], shape: tuple[int, int]
) -> Attend:
    """Attention of one new token over its context, its own past and itself.

    The three parts share one softmax.  The context's part is a single product for the W slots of
    a row: its keys are read once, not W times.
    """
    rows, width = shape

    def attend(query: Array, key: Array, value: Array, cache: Any) -> tuple[Array, Any]:
        context_keys, context_values, past_keys, past_values = cache
        kv_heads, head_dim = key.shape[2:]
        q = query.reshape(rows, width, kv_heads, -1, head_dim) * head_dim**-0.5
        k = key.reshape(rows, width, kv_heads, 1, head_dim)
        v = value.reshape(rows, width, kv_heads, 1, head_dim)

        def of_context(x: Array, cache: Array, dtype: Any) -> Array:
            """x @ cache, one product for the slots of a row."""
            merged = x.swapaxes(1, 2).reshape(rows, kv_heads, -1, x.shape[-1])
            y = jnp.matmul(merged, cache, preferred_element_type=dtype)
            return y.reshape(rows, kv_heads, width, -1, y.shape[-1]).swapaxes(1, 2)

        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        to_context = of_context(q, context_keys, jnp.float32)
        to_context = jnp.where(context_mask[:, None, None, None], to_context, _FLOOR)
        to_past = product("pwkgd,pwkdc->pwkgc", q, past_keys)
        to_past = jnp.where(past_mask[:, :, None, None], to_past, _FLOOR)
        to_self = product("pwkgd,pwksd->pwkgs", q, k)
        weights = jax.nn.softmax(jnp.concatenate([to_context, to_past, to_self], -1), axis=-1)
        weights = weights.astype(value.dtype)
        split = (to_context.shape[-1], to_context.shape[-1] + to_past.shape[-1])
        on_context, on_past, on_self = jnp.split(weights, split, axis=-1)
        out = (
            of_context(on_context, context_values, value.dtype)
            + jnp.einsum("pwkgc,pwkcd->pwkgd", on_past, past_values)
            + on_self * v
        )
        return out.reshape(query.shape), (key, value)

    return attend


def rearrange(
    contexts: Contexts,
    slots: Slots,
    rows: Int[Array, "Q"],
    places: Int[Array, "Q X"],
    clock: Int[Array, ""],
    *,
    grid: Grid,
    mesh: Mesh,
) -> tuple[Contexts, Slots, Int[Array, ""]]:
    """The same sequences in a grid of another shape, and the clock there.

    Row q of the new grid is the old row `rows[q]`, its slot x the old slot number `places[q, x]`,
    counted through the grid; what a smaller grid has no room for is cut.
    """

    def fit(x: Array, axis: int, size: int) -> Array:
        x = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, size - x.shape[axis])
        return jnp.pad(x, widths)

    held = slots.keys.shape[-1]
    kept = min(held, grid.columns)
    order = (clock - kept + jnp.arange(kept)) % held  # the newest columns, oldest first

    def taken(x: Array, axis: int) -> Array:
        x = x.reshape(x.shape[0], -1, *x.shape[3:])
        x = take_rows(x, places.reshape(-1), _KEYS, 1, mesh)
        x = x.reshape(x.shape[0], *places.shape, *x.shape[2:])
        return fit(jnp.take(x, order, axis=axis), axis, grid.columns)

    moved = _take(contexts, rows, mesh)
    new_contexts = Contexts(
        fit(moved.keys, 4, grid.context), fit(moved.values, 3, grid.context), moved.logits
    )
    flat = slots.logits.reshape(-1, slots.logits.shape[-1])
    logits = take_rows(flat, places.reshape(-1), _LOGITS, 0, mesh).reshape(*places.shape, -1)
    new_slots = Slots(taken(slots.keys, 5), taken(slots.values, 4), logits)
    return new_contexts, new_slots, jnp.int32(kept % grid.columns)
