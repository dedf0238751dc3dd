"""Run folders with chosen curves, in the format of a real run's metrics.jsonl."""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fst_jax.config import Config
from fst_jax.fast.pool import Pool, Prompt
from fst_jax.plain_yaml import dump

Curve = Callable[[int], float]  # step → value


def flat(value: float) -> Curve:
    """A curve that stays where it is."""
    return lambda step: value


@dataclass
class Plan:
    """What a synthetic run shows; `own` and `drift` are under its own context."""

    arm: str = "fst"
    own: Curve = field(default_factory=lambda: flat(0.5))
    seeded: Curve | None = None  # accuracy under the seed prompt, for FST
    drift: Curve = field(default_factory=lambda: lambda step: 0.01 * step)
    seeded_drift: Curve | None = None
    entropy: Curve = field(default_factory=lambda: flat(1.0))
    steps: int = 60
    every: int = 6
    cycle: int = 6
    rollouts: int = 128  # per step
    round_rollouts: int = 100  # per fast round
    stop: int | None = None  # the run was interrupted here
    tasks: Sequence[str] = ("tiny_task",)
    task_own: Mapping[str, Curve] = field(default_factory=dict)  # by task, of a stream
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_run(folder: Path, plan: Plan, compressed: bool = False, seed: int = 0) -> Path:
    """Write config.yaml, metrics.jsonl[.gz], and for arms with prompts pool.json."""
    folder.mkdir(parents=True)
    config = asdict(Config(name=folder.name, seed=seed))
    config["train"]["steps"] = plan.steps
    config["slow"]["enabled"] = plan.arm != "prompt"
    config["fast"]["enabled"] = plan.arm != "rl"
    config["fast"]["reuse"] = plan.arm == "fst_reuse"
    config["task"]["name"] = plan.tasks[0]
    for section, values in plan.settings.items():
        config[section] |= values
    (folder / "config.yaml").write_text(dump(config))
    data = "".join(json.dumps(event) + "\n" for event in events(plan)).encode()
    if compressed:
        with gzip.open(folder / "metrics.jsonl.gz", "wb") as file:
            file.write(data)
    else:
        (folder / "metrics.jsonl").write_bytes(data)
    if plan.arm != "rl":
        pool(plan.steps - plan.cycle).save(folder / "pool.json")
    return folder


def events(plan: Plan) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, in the order in which train.py writes them."""
    found: list[dict[str, Any]] = []
    spent = {"rollouts": 0, "evolve": 0}

    def evaluation(step: int, weights: str, context: str, value: float, kl: float) -> None:
        for task in plan.tasks:
            own = plan.task_own.get(task)
            reward = own(step) if own else value
            found.append(
                {
                    "event": "eval", "step": step, "time_s": 1.0, "weights": weights,
                    "context": context, "task": task, "mean_at_k": reward,
                    "best_at_k": min(1.0, reward + 0.1), "k": 4, "n": 256,
                    "entropy": plan.entropy(step), "kl_to_base": kl,
                }
            )  # fmt: skip

    def held_out(step: int) -> None:
        if plan.arm == "rl":
            evaluation(step, "trained", "seed", plan.own(step), plan.drift(step))
        elif plan.arm == "prompt":
            evaluation(step, "base", "pool", plan.own(step), 0.0)
        else:
            seeded, drift = plan.seeded or plan.own, plan.seeded_drift or plan.drift
            evaluation(step, "trained", "seed", seeded(step), drift(step))
            evaluation(step, "trained", "pool", plan.own(step), plan.drift(step))

    evaluation(0, "base", "seed", plan.own(0), 0.0)
    last = plan.steps if plan.stop is None else plan.stop
    for step in range(last):
        if plan.arm != "rl" and step % plan.cycle == 0:
            spent["evolve"] += plan.round_rollouts
            found.append(
                {
                    "event": "evolve", "step": step, "time_s": 1.0, "cycle": step // plan.cycle,
                    "proposals": 4, "accepted": 1, "rejected_by_reason": {}, "pool": [],
                    "metric_calls": plan.round_rollouts - 20, "carried_rescored": 20,
                    "reflection_calls": 3, "reflection_prompt_tokens": 0,
                    "reflection_completion_tokens": 0, "tokens_generated": 500,
                    "seconds": 2.0,
                }
            )  # fmt: skip
        if plan.arm != "prompt":
            spent["rollouts"] += plan.rollouts
            found.append(
                {
                    "event": "step", "step": step + 1, "time_s": 1.0, "reward_mean": 0.5,
                    "loss": 0.0, "entropy": plan.entropy(step + 1), "kl_k3": 0.0,
                    "rollouts_total": spent["rollouts"], "evolve_rollouts_total": spent["evolve"],
                    "reflection_calls_total": 0, "tokens_generated": 1000, "tokens_trained": 900,
                    "seconds": {"rollout": 1.0, "reward": 0.1, "train": 1.5, "sync": 0.0,
                                "evolve": 2.0 * (step % plan.cycle == 0)},
                }
            )  # fmt: skip
        if (step + 1) % plan.every == 0 and step + 1 < plan.steps:
            held_out(step + 1)
    if last == plan.steps:
        if plan.arm in ("fst", "fst_reuse"):
            evaluation(plan.steps, "base", "pool", 0.4, 0.0)
        held_out(plan.steps)
        found.append({"event": "end", "step": plan.steps, "time_s": 1.0})
    return found


def pool(step: int) -> Pool:
    """A pool of a seed prompt and two generations of edits."""
    seed = Prompt("Answer the question.", scores={"a": 0.0, "b": 0.0})
    child = Prompt(
        "Answer the question.\nGo back from the goal.", seed.id, "rules", 0, {"a": 1.0, "b": 0.0}
    )
    grand = Prompt(
        "Answer the question.\nGo back from the goal, then turn the path round.",
        child.id, "rules", step, {"a": 1.0, "b": 1.0},
    )  # fmt: skip
    return Pool((seed, child, grand), (grand.id, child.id), step=step, rounds=2)
