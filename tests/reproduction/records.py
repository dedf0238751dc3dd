"""Run folders written by hand, in the format that training leaves."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fst_jax.config import Config
from fst_jax.reproduction.experiments import ARMS
from fst_jax.settings import to_yaml

EVERY = 6  # steps between evaluations


def write_run(
    folder: Path, arm: str, rewards: Sequence[float], exports: Sequence[int] = (), seed: int = 0
) -> Path:
    """A finished run's config, evaluations (the base's first) and exports; no checkpoint."""
    steps = EVERY * (len(rewards) - 1)
    config = Config(name=folder.name, output=str(folder.parent), seed=seed)
    config = replace(config, train=replace(config.train, steps=steps))
    config = replace(
        config,
        slow=replace(config.slow, enabled=ARMS[arm].get("slow.enabled", True)),
        fast=replace(config.fast, enabled=ARMS[arm].get("fast.enabled", True)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    events = [_evaluation(0, "base", "seed", rewards[0])]
    for i, reward in enumerate(rewards[1:], start=1):
        contexts = ("seed",) if arm == "rl" else ("seed", "pool")
        events.append(_step(i * EVERY))
        for context in contexts:
            own = context == "pool" or arm == "rl"
            events.append(_evaluation(i * EVERY, "trained", context, reward if own else 0.0))
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines)
    for step in exports:
        (folder / f"exports/{step}").mkdir(parents=True)
        (folder / f"exports/{step}/config.json").write_text("{}")
    return folder


def _evaluation(step: int, weights: str, context: str, reward: float) -> dict[str, object]:
    return {
        "event": "eval", "step": step, "time_s": 1.0, "task": "tiny_star_graph",
        "weights": weights, "context": context, "mean_at_k": reward, "best_at_k": reward,
        "k": 4, "n": 256, "kl_to_base": 0.1 * step, "entropy": 1.0,
    }  # fmt: skip


def _step(step: int) -> dict[str, object]:
    return {
        "event": "step", "step": step, "time_s": 1.0, "reward_mean": 0.5,
        "rollouts_total": 128 * step, "evolve_rollouts_total": 0, "reflection_calls_total": 0,
        "tokens_generated": 1, "tokens_trained": 1, "seconds": {"rollout": 1.0},
    }  # fmt: skip
