"""Shapes are checked at run time in what these tests import first (see `jaxtyping`)."""

from jaxtyping import install_import_hook

install_import_hook(["fst_jax.slow", "fst_jax.rollout.sampler"], "beartype.beartype")
