"""python -m fst_jax.evaluate: held-out reward and drift, for weights × contexts.

    python -m fst_jax.evaluate --config runs/quickstart/config.yaml

Given the config of a run, evaluates {base, trained} weights × {none, seed, pool}
contexts: where does the gain live, in θ, in Φ, or in the pair?  Given any other
config, evaluates its model without a prompt and under the seed prompt.

Per context: mean@k and best@k over k samples of each problem, and the exact
KL(π_θ ‖ π_base) per token on the first 64 of those samples (the paper leaves
its estimator open).  Under the pool, each problem's samples are spread over its prompts.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fst_jax.settings import answer_help, command, load

if __name__ == "__main__":  # before JAX is imported, which takes seconds
    answer_help("evaluate", __doc__ or "")

import numpy as np
from flax import nnx

from fst_jax.config import Config
from fst_jax.fast.pool import Pool
from fst_jax.parallel.distributed import is_main, start
from fst_jax.parallel.sharding import on_devices
from fst_jax.parts import Inputs, load_weights, make_actor, make_parity, read_inputs
from fst_jax.rollout.rollouts import Actor, Rollout, Sampling
from fst_jax.run_folder import RunFolder, by_step
from fst_jax.slow.drift import drift
from fst_jax.slow.groups import unlabelled
from fst_jax.slow.packing import completions_per_row, pack
from fst_jax.tasks.stream import stages_of
from fst_jax.tasks.task import Problem
from fst_jax.tracking import ConsoleTracker, Trackers

SHOWN_PROBLEMS = 8  # a rollout of each of the first is kept to be read
DRIFT_ROLLOUTS = 64  # KL is exact at each of their tokens, so few rollouts give many figures


class Evaluator:
    """Held-out problems of a run, always the same ones.

    Two evaluations under equally many prompts use the same seeds too, so that
    they differ in weights and prompts alone.
    """

    def __init__(self, config: Config, inputs: Inputs, actor: Actor, graphdef: Any, base: Any):
        """`base` are the parameters that drift is measured from."""
        self._config, self._mesh, self._actor = config, inputs.mesh, actor
        self._graphdef, self._base = graphdef, base
        self._hidden_size = inputs.model.hidden_size
        self._held_out: dict[str, list[Problem]] = {}  # by task; a stream has several
        for stage in stages_of(inputs.exam.task):
            first = (stage.test[i] for i in range(min(config.eval.problems, len(stage.test))))
            self._held_out[stage.label] = [p for p in first if inputs.exam.fits(p)]

    def __call__(
        self, params: Any, prompts: Sequence[str]
    ) -> list[tuple[dict[str, Any], list[Rollout]]]:
        """For each task: mean@k, best@k, KL to base and entropy, and a few rollouts to look at.

        `params` are those that the engine serves.
        """
        return [
            self._measure(task, problems, params, prompts)
            for task, problems in self._held_out.items()
        ]

    def _measure(
        self, task: str, problems: Sequence[Problem], params: Any, prompts: Sequence[str]
    ) -> tuple[dict[str, Any], list[Rollout]]:
        settings, rollout, k = self._config.eval, self._config.rollout, self._config.eval.samples
        spread = math.gcd(k, len(prompts))  # prompts per problem; which ones rotates
        pairs = [
            (problem, prompts[(i * spread + j) % len(prompts)])
            for i, problem in enumerate(problems)
            for j in range(spread)
        ]
        groups = self._actor.roll_out(
            pairs,
            [k // spread] * len(pairs),
            Sampling(rollout.max_new_tokens, settings.temperature, settings.top_p),
            np.random.default_rng([self._config.seed, len(pairs)]),
        )
        rewards = np.array([r.score.reward for group in groups for r in group]).reshape(-1, k)
        per_row = completions_per_row(
            k // spread,
            rollout.max_prompt_tokens,
            rollout.max_new_tokens,
            self._hidden_size,
        )
        measured = [rollout for group in groups for rollout in group][:DRIFT_ROLLOUTS]
        batch = pack(
            [unlabelled(rollout.context_ids, rollout.completion) for rollout in measured],
            per_row,
            self._config.slow.micro_batch_rows,
            self._mesh,
        )
        values = {
            "task": task,
            "mean_at_k": float(rewards.mean()),
            "best_at_k": float(rewards.max(axis=1).mean()),
            "k": k,
            "n": rewards.size,
            **drift(
                params,
                on_devices(self._base),
                batch,
                graphdef=self._graphdef,
                mesh=self._mesh,
                head_chunk=self._config.slow.head_chunk,
            ),
        }
        return values, [group[0] for group in groups[: SHOWN_PROBLEMS * spread : spread]]


def main(arguments: list[str]) -> None:
    """Evaluate a run's quadrants, or a model, and print a line for each context."""
    config, _ = load(arguments, "evaluate", __doc__ or "")
    start(config.parallel)
    inputs = read_inputs(config)
    run = RunFolder.of(config)
    base = load_weights(config, inputs)
    actor = make_actor(config, inputs, base)
    parity = make_parity(config, inputs, actor, base)
    weights = {"base": nnx.state(base)}
    if not run.config.is_file() and is_main():
        print(f"no run in {run.path}: evaluating the model alone")
    if (run.export / "config.json").is_file():
        weights["trained"] = nnx.state(load_weights(config, inputs, run.export))
    contexts = {"none": [""], "seed": [inputs.exam.task.seed_prompt]}
    pool = newest_pool(run.pool)
    if pool is not None:
        contexts["pool"] = [prompt.text for prompt in pool.active_prompts]
    evaluator = Evaluator(config, inputs, actor, nnx.graphdef(base), weights["base"])
    tracker = Trackers([ConsoleTracker(steps=0)] if is_main() else [])
    for version, (name, params) in enumerate(weights.items()):
        for context, prompts in contexts.items():
            actor.engine.update_weights(params, version)
            if parity:
                parity(params)
            for values, _ in evaluator(params, prompts):
                values = {"weights": name, "context": context, **values}
                tracker.log("eval", pool.step if pool else 0, values)


def newest_pool(folder: Path) -> Pool | None:
    """The pool file of the latest step, if there is one."""
    files = by_step(folder, ".json")
    return Pool.load(files[-1]) if files else None


if __name__ == "__main__":
    sys.exit(command(main))
