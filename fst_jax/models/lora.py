"""LoRA: low-rank corrections to linear layers, trained in place of the weights.

    y = x W + scale · (x A) B,   A [in, r], B [r, out],   scale = α / r

A starts Gaussian and B at zero, so that training starts at the base.
Source: Hu et al. 2021, arXiv 2106.09685, sec. 4.1.

Adapters are a pytree of their own, by the path of the layer that they correct.  Whoever computes
with them attaches them to a decoder; whoever only needs weights (a sampler, a Hugging Face folder)
merges them into the base.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fst_jax.errors import ConfigError
from fst_jax.models.decoder import Decoder
from fst_jax.parallel.sharding import path_of


class LowRank(NamedTuple):
    """The trained factors of one linear layer, or of the stack of L layers; float32.

    JAX arrays, or NumPy's where they are read from a file.
    """

    a: Float[Any, "*L I r"]
    b: Float[Any, "*L r O"]


Adapters = dict[str, LowRank]  # by path: layers/attention/query, layers/mlp/down, head


class Adapter(nnx.Module):
    """What is added to a linear layer's output: scale · (x A) B, in the dtype of x."""

    def __init__(self, factors: LowRank, scale: float):
        self.a, self.b, self.scale = nnx.Param(factors.a), nnx.Param(factors.b), scale

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        return self.scale * ((x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype))


def linear_layers(params: Any) -> dict[str, tuple[int, ...]]:
    """Path and kernel shape, [L, in, out] or [in, out], of every linear layer of a decoder."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = {path_of(keys): leaf.shape for keys, leaf in leaves}
    return {path[: -len("/kernel")]: s for path, s in paths.items() if path.endswith("/kernel")}


def chosen(params: Any, pattern: str) -> dict[str, tuple[int, ...]]:
    """The linear layers in whose path `pattern`, a regular expression, is found.

    Raises:
      ConfigError: there are none.
    """
    layers = linear_layers(params)
    found = {path: shape for path, shape in layers.items() if re.search(pattern, path)}
    if not found:
        raise ConfigError(
            f"slow.lora_layers: {pattern!r} fits no linear layer of the model; they are "
            f"{', '.join(layers)}"
        )
    return found


def starting_adapters(params: Any, pattern: str, rank: int, key: Array) -> Adapters:
    """Adapters that change nothing yet: A ~ N(0, 1/in), B = 0, in float32.

    The paper leaves A's variance open; this one keeps x A at the size of x.
    """
    adapters = {}
    for i, (path, shape) in enumerate(chosen(params, pattern).items()):
        *stack, inputs, outputs = shape
        noise = jax.random.normal(jax.random.fold_in(key, i), (*stack, inputs, rank))
        adapters[path] = LowRank(noise / inputs**0.5, jnp.zeros((*stack, rank, outputs)))
    return adapters


def attached(model: Decoder, adapters: Adapters, scale: float) -> Decoder:
    """`model` itself, each adapter now part of the layer of its path."""
    for path, factors in adapters.items():
        layer = functools.reduce(getattr, path.split("/"), model)
        layer.adapter = nnx.data(Adapter(factors, scale))  # type: ignore[attr-defined]
    return model


def merged(params: Any, adapters: Adapters, scale: float) -> Any:
    """Parameters of a plain decoder that computes the same: W + scale · A B; pure.

    Sums are made in float32 and rounded to the dtype of W.
    """

    def add(keys: tuple, kernel: Array) -> Array:
        factors = adapters.get(path_of(keys).removesuffix("/kernel"))
        if factors is None:
            return kernel
        product = jnp.matmul(*factors, preferred_element_type=jnp.float32)
        return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)

    return jax.tree_util.tree_map_with_path(add, params)
