"""fst_jax: Fast-Slow Training for language models in JAX.

Slow weights (the model's parameters, trained by reinforcement learning) and
fast weights (a pool of context prompts, evolved by reflection) learn together.
The algorithm is in `fst_jax/train.py`; each folder is one idea of the paper
(arXiv 2605.12484).
"""

__version__ = "0.1.0"
