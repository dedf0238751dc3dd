"""claims.json: every figure of the paper's comparison, derived from run folders alone.

Figures carry mean, low and high (95 % over seeds) and the number of seeds; what has no runs is
left out.  How each is measured is in the module that it comes from.
"""

from collections.abc import Sequence
from typing import Any

from fst_jax.reporting.drift import kl_at_matched_reward
from fst_jax.reporting.efficiency import first_signal, sample_efficiency
from fst_jax.reporting.runs import ARMS, Run, round_rollouts
from fst_jax.reporting.second_task import continual, plasticity
from fst_jax.reporting.select import chosen, final, pairs, tasks_of
from fst_jax.reporting.sigmoid import Curve, ceilings, fit
from fst_jax.reporting.statistics import mean_interval, rounded
from fst_jax.reporting.variants import best_settings, variant_claims

QUADRANTS = (("base", "seed"), ("base", "pool"), ("trained", "seed"), ("trained", "pool"))
PHASES = ("rollout", "reward", "train", "sync")


def derive(runs: Sequence[Run]) -> dict[str, Any]:
    """All claims that the runs allow."""
    main = tasks_of(runs, "main")
    by_task: dict[str, dict[str, Any]] = {
        "sample_efficiency": {task: sample_efficiency(runs, task) for task in main},
        "ceiling": {task: ceiling(runs, task) for task in main},
        "kl_at_matched_reward": {task: kl_at_matched_reward(runs, task) for task in main},
        "quadrants": {task: quadrants(chosen(runs, "main", task, "fst", "")) for task in main},
        "final": {task: finals(runs, task) for task in main},
        "prompt_only": {task: prompt_only(runs, task) for task in main},
        "seed_prompt_in_use": {task: seed_prompt_in_use(runs, task) for task in main},
        "cost": {task: costs(runs, task) for task in main},
        "signal": {
            task: first_signal(runs, group, task)
            for group in ("main", "signal")  # the dedicated runs win
            for task in tasks_of(runs, group)
        },
    }
    for group in ("ablations", "reflector", "fewshot", "sweep"):
        by_task[group] = {task: variant_claims(runs, group, task) for task in tasks_of(runs, group)}
    for task, entry in by_task["sweep"].items():
        if entry:
            entry["best"] = best_settings(runs, task)
    claims: dict[str, Any] = {
        name: {task: entry for task, entry in entries.items() if entry}
        for name, entries in by_task.items()
    }
    claims["plasticity"] = plasticity(runs)
    claims["continual"] = continual(runs)
    claims["runs"] = {run.name: single(run) for run in runs if not run.group}
    return {name: claim for name, claim in claims.items() if claim}


def rollout_curve(run: Run) -> Curve:
    """(RL rollouts, mean@k) of a run under its own context."""
    return [(float(e.rollouts), e.mean_at_k) for e in run.curve()]


def ceiling(runs: Sequence[Run], task: str) -> dict[str, Any] | None:
    """The fitted ceiling A of RL and FST and their difference; None where it cannot be fitted.

    `observed` is the difference that is seen: final accuracies, without extrapolation.
    """
    paired = pairs(chosen(runs, "main", task, "rl", ""), chosen(runs, "main", task, "fst", ""))
    try:
        rl = [fit(rollout_curve(one)) for one, _ in paired]
        fst = [fit(rollout_curve(other)) for _, other in paired]
    except ValueError:  # too few evaluations
        return None
    if not paired:
        return None
    names = ("rl", "fst", "difference")
    figures = {
        name: estimate.to_json() for name, estimate in zip(names, ceilings(rl, fst), strict=True)
    }
    sigmoids = {
        arm: [{name: rounded(value) for name, value in vars(one).items()} for one in fitted]
        for arm, fitted in (("rl", rl), ("fst", fst))
    }
    observed = mean_interval([final(other) - final(one) for one, other in paired]).to_json()
    return {**figures, "observed": observed, "sigmoids": sigmoids}


def quadrants(runs: Sequence[Run]) -> dict[str, Any]:
    """mean@k of the last evaluation of {base, trained} weights × {seed, pool} context."""
    result = {}
    for weights, context in QUADRANTS:
        of_runs = [
            [e.mean_at_k for e in run.evaluations if (e.weights, e.context) == (weights, context)]
            for run in runs
        ]
        newest = [values[-1] for values in of_runs if values]
        if newest:
            result[f"{weights}_{context}"] = mean_interval(newest).to_json()
    return result


def finals(runs: Sequence[Run], task: str) -> dict[str, Any]:
    """By arm, final accuracy and drift under the run's own context and under the seed prompt."""
    result: dict[str, Any] = {}
    for arm in ARMS:
        for run_context in ("own", "seed"):
            of_arm = chosen(runs, "main", task, arm, "")
            context = None if run_context == "own" else "seed"
            last = [run.curve(context)[-1] for run in of_arm if run.curve(context)[-1].step > 0]
            if last:
                result.setdefault(arm, {})[run_context] = {
                    "accuracy": mean_interval([final(run, context) for run in of_arm]).to_json(),
                    "kl_to_base": mean_interval([e.kl_to_base for e in last]).to_json(),
                    "entropy": mean_interval([e.entropy for e in last]).to_json(),
                }
    return result


def seed_prompt_in_use(runs: Sequence[Run], task: str) -> dict[str, Any] | None:
    """How often FST had the seed prompt in use: the share of its fast rounds, by seed."""
    shares = {}
    for run in chosen(runs, "main", task, "fst", ""):
        newest, active = run.newest_pool(), run.active()
        prompts = newest["prompts"] if newest else []
        seeds = {prompt["id"] for prompt in prompts if prompt["origin"] == "seed"}
        if active and seeds:
            used = sum(bool(seeds & set(ids)) for ids in active)
            shares[str(run.seed)] = rounded(used / len(active))
    return {"per_seed": shares} if shares else None


def prompt_only(runs: Sequence[Run], task: str) -> dict[str, Any] | None:
    """Prompt evolution with frozen weights: final accuracy, and FST's and RL's minus it."""
    prompt = chosen(runs, "main", task, "prompt", "")
    if not prompt:
        return None
    result = {"final": mean_interval([final(run) for run in prompt]).to_json()}
    for arm in ("fst", "rl"):
        paired = pairs(chosen(runs, "main", task, arm, ""), prompt)
        if paired:
            differences = [final(run) - final(other) for run, other in paired]
            result[f"{arm}_minus_prompt"] = mean_interval(differences).to_json()
    return result


def costs(runs: Sequence[Run], task: str) -> dict[str, Any]:
    """By arm, what a run of the main group costs."""
    result = {}
    for arm in ARMS:
        spent = [cost(run) for run in chosen(runs, "main", task, arm, "")]
        if spent:
            result[arm] = {
                name: mean_interval([each[name] for each in spent]).to_json() for name in spent[0]
            }
    return result


def cost(run: Run) -> dict[str, float]:
    """Seconds by phase, rollouts, tokens and reflection calls of a run; evaluation is left out."""
    seconds = {
        f"seconds_{phase}": sum(float(s["seconds"].get(phase) or 0) for s in run.steps)
        for phase in PHASES
    }
    seconds["seconds_evolve"] = sum(float(event["seconds"]) for event in run.rounds)
    return {
        **seconds,
        "seconds": sum(seconds.values()),
        "rollouts": float(run.steps[-1]["rollouts_total"]) if run.steps else 0.0,
        "reused_rollouts": float(sum(s.get("reused_rollouts") or 0 for s in run.steps)),
        "evolve_rollouts": float(sum(round_rollouts(event) for event in run.rounds)),
        "reflection_calls": float(sum(event["reflection_calls"] for event in run.rounds)),
        "tokens_generated": float(
            sum(event["tokens_generated"] for event in (*run.steps, *run.rounds))
        ),
        "tokens_trained": float(sum(s["tokens_trained"] for s in run.steps)),
    }


def single(run: Run) -> dict[str, Any]:
    """What one run that is no experiment says about itself: one seed, no intervals."""
    newest = {(e.task, e.weights, e.context): e for e in run.evaluations}
    return {
        "task": run.task,
        "arm": run.arm,
        "seed": run.seed,
        "finished": run.finished,
        "evaluations": [
            {
                "task": task,
                "weights": weights,
                "context": context,
                "step": event.step,
                "mean_at_k": rounded(event.mean_at_k),
                "best_at_k": rounded(event.best_at_k),
                "kl_to_base": rounded(event.kl_to_base),
            }
            for (task, weights, context), event in newest.items()
        ],
        "cost": {name: rounded(value) for name, value in cost(run).items()},
    }
