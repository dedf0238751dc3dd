"""Optimisers of the slow weights: a global-norm clip, then what `slow.optimizer` names.

State per parameter, in bytes: AdamW 8, AdamW with its first moment in bfloat16 6, Adafactor next
to nothing for large matrices.  Optax has no 8-bit moments.
"""

import jax.numpy as jnp
import optax

from fst_jax.config import SlowSettings


def make_optimizer(settings: SlowSettings) -> optax.GradientTransformation:
    """The clip and the optimiser, with linear warm-up and a constant rate."""
    clip = optax.clip_by_global_norm(settings.max_grad_norm)
    rate = learning_rate(settings)
    if settings.optimizer == "adafactor":
        return optax.chain(clip, _adafactor(settings, rate))
    moment = jnp.bfloat16 if settings.optimizer == "adamw_bfloat16" else None
    adamw = optax.adamw(
        rate,
        b1=settings.adam_b1,
        b2=settings.adam_b2,
        mu_dtype=moment,
        weight_decay=settings.weight_decay,
    )
    return optax.chain(clip, adamw)


def learning_rate(settings: SlowSettings) -> optax.Schedule:
    """Rate of update i (from 0): (i + 1) / warmup of the peak, then the peak."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    return lambda step: peak * jnp.minimum(1.0, (step + 1) / max(warmup, 1))


def _adafactor(settings: SlowSettings, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) at an absolute learning rate.

    Factored second moments with the decay 1 − t^−0.8, updates clipped to a root mean square of 1
    in each parameter, no first moment.  Steps are not relative to the size of a parameter, so that
    the rate means what it means for AdamW, and weight decay is AdamW's.  Each layer's matrix is
    factored by itself; those with a side below 128 are not factored.
    """
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(settings.weight_decay),
        optax.scale_by_learning_rate(rate),
    )
