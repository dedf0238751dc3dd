"""Shapes are checked at run time in what these tests import first; XLA compiles without -O2."""

import os

from jaxtyping import install_import_hook

# Tiny programs spend their time in the compiler.  Read when the first array is made.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

install_import_hook(["fst_jax.slow", "fst_jax.rollout.sampler"], "beartype.beartype")
