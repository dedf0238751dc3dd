"""What is trained, what is frozen, and the two policies that they make.

    whole weights   trained: θ           frozen: a copy of θ0, the reference
    LoRA            trained: A and B     frozen: θ0 alone; the reference is it with adapters off

Everything here is pure.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from fst_jax.config import SlowSettings
from fst_jax.models import lora
from fst_jax.models.decoder import Decoder
from fst_jax.parallel.sharding import on_devices
from fst_jax.slow.logprobs import batch_logprobs
from fst_jax.slow.packing import Batch


def policy(trained: Any, frozen: Any, graphdef: Any, settings: SlowSettings) -> Decoder:
    """π_θ as a model; `graphdef` is that of the decoder without adapters."""
    if settings.lora_rank:
        return lora.attached(nnx.merge(graphdef, frozen), trained, lora_scale(settings))
    return nnx.merge(graphdef, trained)


def reference_logprobs(
    frozen: Any, batch: Batch, graphdef: Any, settings: SlowSettings, mesh: Mesh
) -> Float[Array, "M R C"]:
    """log π_ref at the targets of all micro-batches.

    A pass of its own, before any gradient: an offloaded reference is on the devices no longer.
    """
    reference = nnx.merge(graphdef, on_devices(frozen))
    return batch_logprobs(reference, batch, settings.head_chunk, mesh)


def starting_point(params: Any, settings: SlowSettings, key: Array) -> tuple[Any, Any]:
    """(trained, frozen) at θ0 = `params`."""
    if settings.lora_rank:
        rank, layers = settings.lora_rank, settings.lora_layers
        return lora.starting_adapters(params, layers, rank, key), params
    return params, jax.tree.map(jnp.copy, params)


def starting_shapes(params: Any, settings: SlowSettings) -> tuple[Any, Any]:
    """The shapes of (trained, frozen); `params` may be shapes alone."""
    return jax.eval_shape(lambda held: starting_point(held, settings, jax.random.key(0)), params)


def whole_weights(trained: Any, frozen: Any, settings: SlowSettings) -> Any:
    """θ as parameters of the plain decoder, for samplers and exports."""
    return lora.merged(frozen, trained, lora_scale(settings)) if settings.lora_rank else trained


def lora_scale(settings: SlowSettings) -> float:
    """α / r."""
    return settings.lora_alpha / settings.lora_rank
