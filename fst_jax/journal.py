"""What a run leaves behind: metrics, pool files, samples, checkpoints, export.

The same config in the same folder goes on from the newest checkpoint; lines of
metrics.jsonl written after it are cut off and written again.  All random
numbers of a run are functions of (seed, purpose, step), so `Progress` and the
learner's state are everything there is to save.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fst_jax.config import Config
from fst_jax.fast.evolve import EvolveReport
from fst_jax.fast.pool import Pool
from fst_jax.fast.reuse import Leftovers
from fst_jax.models.huggingface import save_model
from fst_jax.models.peft import save_adapter
from fst_jax.parallel.chips import utilisation
from fst_jax.parallel.distributed import agreed, is_main
from fst_jax.parts import Inputs
from fst_jax.rollout.rollouts import Rollout, Spent
from fst_jax.run_folder import RunFolder
from fst_jax.slow.learner import Learner
from fst_jax.state import Checkpoints
from fst_jax.tracking import ConsoleTracker, JsonlTracker, Trackers, extra_trackers

SAMPLED_PROBLEMS = 2  # problems per step whose rollouts are written to samples/


@dataclass
class Totals:
    """What a run has spent so far."""

    rollouts: int = 0  # of RL groups, those that they reuse left out
    evolve_rollouts: int = 0  # of fast rounds: minibatches, anchors, carried prompts
    reflection_calls: int = 0
    tokens_generated: int = 0
    tokens_trained: int = 0


@dataclass
class Progress:
    """Where a run stands, apart from θ: JSON-able."""

    pool: Pool
    step: int = 0  # RL steps done
    finished: bool = False
    leftovers: Leftovers = field(default_factory=Leftovers)
    totals: Totals = field(default_factory=Totals)

    def to_json(self) -> dict[str, Any]:
        return {
            "pool": self.pool.to_json(),
            "step": self.step,
            "finished": self.finished,
            "leftovers": self.leftovers.to_json(),
            "totals": asdict(self.totals),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Progress":
        return Progress(
            Pool.from_json(data["pool"], "the checkpoint's pool"),
            data["step"],
            data["finished"],
            Leftovers.from_json(data["leftovers"]),
            Totals(**data["totals"]),
        )


class Journal:
    """The open run folder; every process of a run has one, and process 0 writes."""

    def __init__(self, config: Config, inputs: Inputs, learner: Learner | None):
        """Create the folder or go on in it: restores θ into `learner`, and `progress`.

        Raises:
          RunError: the folder belongs to another config or cannot be used.
        """
        self._config, self._inputs, self._learner = config, inputs, learner
        self.folder = RunFolder.of(config)
        agreed(lambda: self.folder.create(config))
        self._checkpoints = Checkpoints(self.folder.checkpoints, config.checkpoint.keep)
        seed_prompt = inputs.exam.task.seed_prompt
        self.progress = Progress(Pool.start(seed_prompt, config.population, config.seed))
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self._arrays()
        )
        saved = self._checkpoints.restore(like)
        offset, elapsed_s = 0, 0.0
        if saved is not None:
            self.progress = Progress.from_json(saved.host["progress"])
            offset, elapsed_s = saved.host["metrics_offset"], saved.host["elapsed_s"]
            if learner is not None:
                learner.restore(saved.arrays)
        self.resumed = saved is not None
        first_step = self.progress.step + self.resumed
        agreed(self._drop_later_files)
        self._metrics: JsonlTracker | None = None
        self._trackers = Trackers([])
        if is_main():
            self._metrics = JsonlTracker(self.folder.metrics, offset, elapsed_s)
            self._trackers = Trackers(
                [
                    self._metrics,
                    ConsoleTracker(config.train.steps),
                    *extra_trackers(config, self.folder.path, asdict(config), first_step),
                ]
            )

    def log(self, event: str, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl for the current step, and its copies elsewhere."""
        self._trackers.log(event, self.progress.step, values)

    def fast_round(self, report: EvolveReport, task: str, spent: Spent, seconds: float) -> None:
        """Record a fast round: its event, and pool/<step>.json, Φ from this step on."""
        totals = self.progress.totals
        totals.evolve_rollouts += spent.rollouts
        totals.tokens_generated += spent.tokens
        totals.reflection_calls += report.reflection_calls
        values = {name: value for name, value in vars(report).items() if name != "rollouts"}
        cycle = self.progress.pool.rounds - 1
        tokens = {"tokens_generated": spent.tokens}
        self.log("evolve", {"task": task, "cycle": cycle, **values, **tokens, "seconds": seconds})
        if is_main():
            self.progress.pool.save(self.folder.pool / f"{self.progress.step}.json")

    def slow_step(
        self,
        groups: Sequence[Sequence[Rollout]],
        metrics: dict[str, Any],
        spent: Spent,
        seconds: dict[str, float],
        compiles: int,
    ) -> None:
        """Record one RL step: its event, and samples/<step>.jsonl."""
        totals = self.progress.totals
        trained = sum(len(rollout.completion.ids) for group in groups for rollout in group)
        totals.rollouts += spent.rollouts
        totals.tokens_generated += spent.tokens
        totals.tokens_trained += trained
        self.log(
            "step",
            {
                **metrics,
                "mfu": utilisation(metrics["flops"], seconds["train"]),
                "reused_rollouts": sum(map(len, groups)) - spent.rollouts,
                "rollouts_total": totals.rollouts,
                "evolve_rollouts_total": totals.evolve_rollouts,
                "reflection_calls_total": totals.reflection_calls,
                "tokens_generated": spent.tokens,
                "tokens_trained": trained,
                "seconds": {"rollout": spent.rollout_s, "reward": spent.reward_s, **seconds},
                "compiles": compiles,
                "weight_version": self.progress.step,
            },
        )
        shown = [rollout for group in groups[:SAMPLED_PROBLEMS] for rollout in group]
        self._show("step", shown, {})

    def evaluation(self, values: dict[str, Any], shown: Sequence[Rollout]) -> None:
        """Record an evaluation: its event, and `shown` in samples/<step>.jsonl."""
        self.log("eval", values)
        self._show("eval", shown, {key: values[key] for key in ("task", "weights", "context")})

    def checkpoint(self) -> None:
        """Save everything a resumed run needs, and θ as a Hugging Face folder in export/.

        Where adapters are trained, export/ holds them merged, adapter/ by themselves.
        """
        host: dict[str, Any] = {"progress": self.progress.to_json()}
        if self._metrics:  # process 0 alone writes this part
            host |= {
                "metrics_offset": self._metrics.offset,
                "elapsed_s": self._metrics.elapsed_s,
            }
        self._checkpoints.save(self.progress.step, self._arrays(), host)
        self._export(self.folder.export)
        if self._learner is not None and self._learner.adapters is not None:
            alpha, base = self._config.slow.lora_alpha, self._config.model.path
            save_adapter(self.folder.adapter, self._learner.adapters, alpha, base)
        self._checkpoints.wait()

    def keep_weights(self) -> None:
        """Write θ as exports/<step>/; before the step's checkpoint, or a kill could skip it."""
        self._export(self.folder.exports / str(self.progress.step))

    def close(self) -> None:
        """Finish writing."""
        self._checkpoints.close()
        self._trackers.close()

    def _show(self, event: str, rollouts: Sequence[Rollout], origin: dict[str, Any]) -> None:
        """Append rollouts to the step's samples, for a reader."""
        if not is_main():
            return
        origin = {"event": event, "step": self.progress.step, **origin}
        with open(self.folder.samples / f"{self.progress.step}.jsonl", "a", encoding="utf-8") as f:
            for rollout in rollouts:
                f.write(json.dumps(origin | _sample(rollout), ensure_ascii=False) + "\n")

    def _arrays(self) -> Any:
        """The sharded state; a frozen model has none but must not be an empty tree."""
        return self._learner.saved if self._learner else (jnp.zeros(()),)

    def _export(self, folder: Path) -> None:
        if self._learner is not None:
            save_model(folder, self._learner.params, self._inputs.model, self._inputs.folder)

    def _drop_later_files(self) -> None:
        """Remove pools, samples and exports of steps that are done from now on, or again."""
        done = self.progress.step if self.resumed else -1
        for folder in (self.folder.pool, self.folder.samples, self.folder.exports):
            for path in folder.glob("*"):
                if path.stem.isdigit() and int(path.stem) <= done:
                    continue
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sample(rollout: Rollout) -> dict[str, Any]:
    return {
        "problem": rollout.problem.id,
        "question": rollout.problem.question,
        "answer": rollout.problem.answer,
        "prompt": rollout.prompt,
        "text": rollout.text,
        "reward": rollout.score.reward,
        "category": rollout.score.category,
        "feedback": rollout.score.feedback,
    }
