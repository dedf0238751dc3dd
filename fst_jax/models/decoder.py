"""One decoder for Llama, Qwen2 and Qwen3, with the parameters of all layers stacked.

Every layer's parameters carry a leading axis L, and the forward pass is one `jax.lax.scan`
over it: compile time does not grow with depth, and sharding rules match a handful of paths
(`embedding`, `layers/attention/query/kernel`, `layers/mlp/gate/kernel`, `norm/scale`, ...).

The decoder does not know how attention is computed or what is cached: the caller passes
`attend`, so training, prefill and decoding share this file.  Use it in pure functions by
splitting it once; the state holds parameters and nothing else:

    graphdef, params = nnx.split(model)

    @jax.jit
    def logits(params, tokens, positions):
        model = nnx.merge(graphdef, params)
        mask = positions[:, :, None] >= positions[:, None, :]
        hidden, _ = model(tokens, positions, lambda q, k, v, _: (attention(q, k, v, mask), None))
        return model.logits(hidden)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fst_jax.config import Remat
from fst_jax.models.config import ModelConfig
from fst_jax.models.rope import rope_tables, rotate

# (query [B, T, H, Dh], key [B, T, Hkv, Dh], value [B, T, Hkv, Dh], layer_cache)
#   -> (out [B, T, H, Dh], layer_output)
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]

_INIT_STDDEV = 0.02  # initializer_range of all three families
_CPU_BLOCK = 384
_UNROLLED_LAYERS = 4  # a loop this short costs a tenth to a fifth of a small model's step
_LAYER_INPUT, _LINEAR_OUTPUT = "layer_input", "linear_output"  # activations that remat may keep
_float32_matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


def abstract_params(config: ModelConfig, param_dtype: DTypeLike = jnp.float32) -> Any:
    """Paths, shapes and dtypes of a decoder's parameters; nothing is computed."""
    return nnx.eval_shape(
        lambda: nnx.state(Decoder(config, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
    )


def _in_parts(x: Float[Array, "... I"], kernel: Float[Array, "I O"]) -> Float[Array, "... O"]:
    """x @ kernel for the CPU: in parts of the inner axis, with the batch axes merged.

    XLA's CPU backend adds up the whole inner axis in one go, and its rounding grows with the
    length; adding up partial sums, as a BLAS does, halves it.  Merging saves a transpose in the
    backward pass; elsewhere it would only undo a sharding over the batch.
    """
    cuts = list(range(_CPU_BLOCK, x.shape[-1], _CPU_BLOCK))
    rows = jnp.split(x.reshape(-1, x.shape[-1]), cuts, axis=1)
    products = map(_float32_matmul, rows, jnp.split(kernel, cuts))
    y = functools.reduce(jnp.add, products).astype(x.dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


class Linear(nnx.Module):
    """x @ kernel (+ bias), with kernel [in, out] cast to the dtype of x.

    `adapter`, if one is attached (`models/lora.py`), maps x to what is added to that.
    """

    matmul: Callable[[Array, Array], Array] = staticmethod(jnp.matmul)

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        init = nnx.initializers.normal(_INIT_STDDEV)
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros((outputs,), param_dtype)) if bias else None
        self.adapter: Callable[[Array], Array] | None = None

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        y = self.matmul(x, self.kernel[...].astype(x.dtype))
        y = y if self.bias is None else y + self.bias[...].astype(x.dtype)
        y = y if self.adapter is None else y + self.adapter(x)
        return checkpoint_name(y, _LINEAR_OUTPUT)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + eps) · scale, computed in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float, *, param_dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones((size,), param_dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        exact = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(exact), axis=-1, keepdims=True)
        normed = exact * jax.lax.rsqrt(variance + self.eps)
        return (normed * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Projections, per-head norms and rotary embedding around the caller's `attend`."""

    def __init__(self, config: ModelConfig, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        hidden, head_dim = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_heads * head_dim, config.num_kv_heads * head_dim
        bias = config.attention_bias
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.query = Linear(hidden, heads, bias=bias, **options)
        self.key = Linear(hidden, kv_heads, bias=bias, **options)
        self.value = Linear(hidden, kv_heads, bias=bias, **options)
        self.output = Linear(heads, hidden, bias=config.output_bias, **options)
        eps = config.rms_norm_eps
        norm = config.qk_norm
        self.query_norm = RMSNorm(head_dim, eps, param_dtype=param_dtype) if norm else None
        self.key_norm = RMSNorm(head_dim, eps, param_dtype=param_dtype) if norm else None
        self.head_dim = head_dim

    def __call__(
        self, x: Float[Array, "B T D"], tables: tuple[Array, Array], attend: Attend, cache: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        split = (*x.shape[:2], -1, self.head_dim)
        query, key = self.query(x).reshape(split), self.key(x).reshape(split)
        value = self.value(x).reshape(split)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, *tables), rotate(key, *tables)
        out, layer_output = attend(query, key, value, cache)
        return self.output(out.reshape(*x.shape[:2], -1)), layer_output


class MLP(nnx.Module):
    """The gated MLP: down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        hidden, inner = config.hidden_size, config.intermediate_size
        options: dict[str, Any] = {
            "bias": config.mlp_bias, "param_dtype": param_dtype, "rngs": rngs
        }  # fmt: skip
        self.gate = Linear(hidden, inner, **options)
        self.up = Linear(hidden, inner, **options)
        self.down = Linear(inner, hidden, **options)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Layer(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig, *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_norm = RMSNorm(hidden, eps, param_dtype=param_dtype)
        self.attention = Attention(config, param_dtype=param_dtype, rngs=rngs)
        self.mlp_norm = RMSNorm(hidden, eps, param_dtype=param_dtype)
        self.mlp = MLP(config, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], tables: tuple[Array, Array], attend: Attend, cache: Any
    ) -> tuple[Float[Array, "B T D"], Any]:
        mixed, layer_output = self.attention(self.input_norm(x), tables, attend, cache)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), layer_output


def rematerialized(body: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The layer `body` of a scan, its activations kept for the backward pass or computed anew.

    none     all are kept
    dots     the outputs of linear layers are kept; attention, norms and products are recomputed
    full     the layer's input alone is kept (Chen et al. 2016, arXiv 1604.06174)
    offload  as full, with the inputs waiting in the host's memory: per token and layer that moves
             one hidden state each way, where the outputs of linear layers would be ten times that
    """
    policies = jax.checkpoint_policies
    match remat:
        case "none":
            return body
        case "dots":
            policy = policies.save_only_these_names(_LINEAR_OUTPUT)
        case "full":
            policy = policies.nothing_saveable
        case "offload":
            policy = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=[_LAYER_INPUT],
                offload_src="device",
                offload_dst="pinned_host",
            )
    # Within a scan XLA cannot undo the recomputation, so no barriers are needed.
    return jax.checkpoint(body, prevent_cse=False, policy=policy)


class Decoder(nnx.Module):
    """Token ids in, final hidden states out; `logits` turns hidden states into logits.

    `dtype` is the dtype of activations and matrix products, `param_dtype` that of the stored
    parameters (cast at use).  `remat` says what of each layer the backward pass recomputes (see
    `rematerialized`).  `platform` is where it will run; by default, JAX's default backend.
    Building one draws random parameters from `rngs.params`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: Remat = "none",
        platform: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.config, self.dtype, self.remat = config, jnp.dtype(dtype), remat
        init = nnx.initializers.normal(_INIT_STDDEV)
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = nnx.Param(init(rngs.params(), shape, param_dtype))

        @nnx.vmap
        def stack(key: Array) -> Layer:
            return Layer(config, param_dtype=param_dtype, rngs=nnx.Rngs(params=key))

        self.layers = stack(jax.random.split(rngs.params(), config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, param_dtype=param_dtype)
        options: dict[str, Any] = {"bias": False, "param_dtype": param_dtype, "rngs": rngs}
        self.head = None if config.tie_word_embeddings else Linear(*shape[::-1], **options)
        # Not `jax.lax.platform_dependent`: in a gradient through a scan its choice is made at run
        # time, a conditional around every product and the collectives of its operands.
        if (platform or jax.default_backend()) == "cpu":
            for _, module in nnx.iter_graph(self):
                if isinstance(module, Linear):
                    module.matmul = _in_parts

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Attend,
        cache: Any = None,
        place: Callable[[Array], Array] = lambda x: x,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Hidden states after the final norm, and the stacked outputs of `attend`.

        `attend(query, key, value, layer_cache) -> (out, layer_output)` runs once per layer,
        after the rotary embedding.  The leaves of `cache` have a leading axis L and reach it
        one layer at a time; the layer outputs come back stacked the same way.  `place` may say
        how the hidden states [B, T, D] between layers are split over devices.
        """
        tables = rope_tables(self.config.rope, self.config.head_dim, positions)
        layers, params = nnx.split(self.layers)

        def body(x: Array, layer: tuple[Any, Any]) -> tuple[Array, Any]:
            layer_params, layer_cache = layer
            x = checkpoint_name(x, _LAYER_INPUT)
            x, layer_output = nnx.merge(layers, layer_params)(x, tables, attend, layer_cache)
            return place(x), layer_output

        body = rematerialized(body, self.remat)
        x = place(jnp.take(self.embedding[...], tokens, axis=0).astype(self.dtype))
        # Unrolled, XLA would see both copies of a recomputed layer and merge them again.
        unroll = self.config.num_layers <= _UNROLLED_LAYERS and self.remat == "none"
        x, outputs = jax.lax.scan(body, x, (params, cache), unroll=unroll)
        return self.norm(x), outputs

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits of hidden states, through the embedding where the head is tied."""
        if self.head is None:
            weights, pattern = self.embedding[...], "...d,vd->...v"
        else:
            weights, pattern = self.head.kernel[...], "...d,dv->...v"
        hidden = hidden.astype(self.dtype)
        logits = jnp.einsum(
            pattern, hidden, weights.astype(self.dtype), preferred_element_type=jnp.float32
        )
        if self.head is None or self.head.adapter is None:
            return logits
        return logits + self.head.adapter(hidden)
