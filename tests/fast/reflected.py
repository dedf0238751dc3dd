"""A fast round whose reflector is asked over HTTP; as a program, one that can be killed.

python -m tests.fast.reflected URL FILE     one round, its pool printed as JSON
"""

import json
import sys
from pathlib import Path

from fst_jax.config import Config, FastSettings
from fst_jax.fast.evolve import EvolveReport, evolve
from fst_jax.fast.language_model import LanguageModelReflector
from fst_jax.fast.pool import Pool
from fst_jax.fast.validate import Validator
from tests.fast.policy import Answer, Policy, obeys_strategy, question, star_graph

GRAPH = star_graph()
ANCHORS = [GRAPH.problems("train")[i] for i in range(12)]
VALIDATOR = Validator(lambda text: len(text.split()), ["<|im_end|>"], 100)


def round_through(
    url: str,
    replies: Path | None = None,
    pool: Pool | None = None,
    answer: Answer = obeys_strategy,
    **changes: object,
) -> tuple[Pool, EvolveReport]:
    """One round on a star graph, from the seed prompt or from `pool`; pauses are not taken."""
    fast = {"population": 2, "metric_calls": 120, "minibatch": 4, "proposals": 2} | changes
    settings = FastSettings(reflector="lm", lm_url=url, **fast)
    reflector = LanguageModelReflector(
        Config(fast=settings), VALIDATOR.count_tokens, question, replies, sleep=lambda seconds: None
    )
    pool = pool or Pool.start(GRAPH.seed_prompt, 2, 0)
    policy = Policy(GRAPH, answer, pool.rounds)
    return evolve(pool, ANCHORS, policy, reflector, VALIDATOR, settings, 0, 1)


if __name__ == "__main__":
    print(json.dumps(round_through(sys.argv[1], Path(sys.argv[2]))[0].to_json()))
