"""What a run leaves behind: metrics, pool files, samples, checkpoints, export.

The same config in the same folder goes on from the newest checkpoint; lines of
metrics.jsonl written after it are cut off and written again.  All random
numbers of a run are functions of (seed, purpose, step), so `Progress` and the
learner's state are everything there is to save.

A run can be taken up between two steps: there `mark` notes its state, and
`checkpoint` saves what was noted last, also when the step after it was left.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fst_jax.checksums import checksums
from fst_jax.config import Config
from fst_jax.errors import RunError
from fst_jax.fast.evolve import EvolveReport
from fst_jax.fast.pool import Pool
from fst_jax.fast.reuse import Leftovers
from fst_jax.fast.round_log import RoundLog
from fst_jax.lock import Lock
from fst_jax.models.huggingface import save_model
from fst_jax.models.peft import save_adapter
from fst_jax.parallel.chips import utilisation
from fst_jax.parallel.distributed import agreed, is_main
from fst_jax.parts import Inputs
from fst_jax.rollout.plain import as_text, readable
from fst_jax.rollout.rollouts import Rollout, Spent
from fst_jax.run_folder import RunFolder
from fst_jax.slow import offending
from fst_jax.slow.guards import Guards, Stop, watch
from fst_jax.slow.learner import Learner
from fst_jax.state import Checkpoints
from fst_jax.tracking import (
    END,
    JsonlTracker,
    Tracker,
    Trackers,
    extra_trackers,
    plain,
)
from fst_jax.watchdog import phase
from fst_jax.writing import to_disk, writing

SAMPLED_PROBLEMS = 2  # problems per step whose rollouts are written to samples/
SHOWN_ROLLOUTS = 8  # at a time, in trackers


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
    leftovers: Leftovers = field(default_factory=Leftovers)
    totals: Totals = field(default_factory=Totals)
    guards: Guards = field(default_factory=Guards)

    def to_json(self) -> dict[str, Any]:
        return {
            "pool": self.pool.to_json(),
            "step": self.step,
            "leftovers": self.leftovers.to_json(),
            "totals": asdict(self.totals),
            "guards": asdict(self.guards),
        }

    def copy(self) -> "Progress":
        """As it is now, whatever the next step makes of it."""
        return replace(self, leftovers=self.leftovers.copy(), totals=replace(self.totals))

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Progress":
        return Progress(
            Pool.from_json(data["pool"], "the checkpoint's pool"),
            data["step"],
            Leftovers.from_json(data["leftovers"]),
            Totals(**data["totals"]),
            Guards(**data["guards"]),
        )


@dataclass(frozen=True)
class _Mark:
    """The state between two steps."""

    progress: Progress
    arrays: Any  # of the learner; an update donates them
    offsets: dict[str, Any]  # of process 0: how far the files were, and the age of the run

    @property
    def intact(self) -> bool:
        return not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.arrays))


class Journal:
    """The open run folder; every process of a run has one, and process 0 writes."""

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        learner: Learner | None,
        base: Any,
        shown: Tracker,
    ):
        """Create the folder or go on in it: restores θ into `learner`, and `progress`.

        `base` is θ0, which a run that goes on must find as it was; `shown` is what its user sees,
        closed with the journal.

        Raises:
          RunError: the folder belongs to another config or cannot be used.
        """
        self._config, self._inputs, self._learner = config, inputs, learner
        self.folder = RunFolder.of(config)
        self._lock: Lock | None = None
        agreed(self._take)
        self._checkpoints = Checkpoints(self.folder.checkpoints, config.checkpoint)
        self.round_log = RoundLog(self.folder.round)
        seed_prompt = inputs.exam.task.seed_prompt
        self.progress = Progress(Pool.start(seed_prompt, config.population, config.seed))
        saved = self._checkpoints.restore(self._arrays())
        begun: dict[str, Any] = {"metrics": 0, "samples": 0, "elapsed_s": 0.0}
        host = saved.host if saved else begun
        self._saved: int | None = None  # the newest step of which there is a checkpoint
        self._base = checksums(base)
        if saved is not None:
            if host["base"] != self._base:
                raise RunError(
                    f"{config.model.path} holds other weights than when the run of "
                    f"{self.folder.path} began: bring them back, or choose another --name"
                )
            self._saved = saved.step
            self.progress = Progress.from_json(host["progress"])
            if learner is not None:
                learner.restore(saved.arrays)
        # Whether nothing is left to do, and the files end where they should.
        ended = agreed(lambda: self.folder.ended)
        if ended is not None and saved is None:
            raise RunError(
                f"{self.folder.path} holds a run that ended at step {ended}, and its checkpoints "
                "are gone: restore them, or choose another --name"
            )
        self.finished = saved is not None and saved.step == ended == config.train.steps
        self._mark: _Mark | None = None
        # Why the newest step is to be the last, and its rollouts.
        self._stop: tuple[Stop, Sequence[Sequence[Rollout]]] | None = None
        self._metrics: JsonlTracker | None = None
        self._trackers = Trackers([shown])
        self._events: list[dict[str, Any]] = []
        if self.finished:
            return
        agreed(lambda: self._drop_later_files(host["samples"]))
        if is_main():
            first_step = self.progress.step + (saved is not None)
            self._metrics = JsonlTracker(self.folder.metrics, host["metrics"], host["elapsed_s"])
            extra = extra_trackers(config, self.folder.path, asdict(config), first_step)
            self._trackers = Trackers([self._metrics, shown, *extra])

    def _take(self) -> None:
        """Have the folder for this run alone, and only then write into it."""
        self.folder.check(self._config)
        with writing(self.folder.path):
            self.folder.path.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.folder.path)
        self.folder.create(self._config)

    def log(self, event: str, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl for the current step, and its copies elsewhere."""
        step = self.progress.step
        self._events.append({"event": event, "step": step, **plain(values)})
        self._trackers.log(event, step, values)

    def take_events(self) -> list[dict[str, Any]]:
        """The events since the last call, in plain values."""
        events, self._events = self._events, []
        return events

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
            path = self.folder.pool / f"{self.progress.step}.json"
            with writing(path):
                self.progress.pool.save(path)
        in_use = dict.fromkeys(prompt.text for prompt in self.progress.pool.active_prompts)
        self._trackers.show("prompts", self.progress.step, list(in_use))

    def slow_step(
        self,
        groups: Sequence[Sequence[Rollout]],
        metrics: dict[str, Any],
        spent: Spent,
        seconds: dict[str, float],
        compiles: int,
    ) -> None:
        """Record one RL step: its event with its hints, and samples/<step>.jsonl."""
        progress, totals = self.progress, self.progress.totals
        progress.guards, warnings, stop = watch(
            progress.guards, self._config, progress.step, metrics, groups
        )
        self._stop = (stop, groups) if stop else None
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
                **({"warnings": warnings} if warnings else {}),
            },
        )
        shown = [rollout for group in groups[:SAMPLED_PROBLEMS] for rollout in group]
        self._show("step", shown, {})

    def evaluation(self, values: dict[str, Any], shown: Sequence[Rollout]) -> None:
        """Record an evaluation: its event, and `shown` in samples/<step>.jsonl."""
        self.log("eval", values)
        self._show("eval", shown, {key: values[key] for key in ("task", "weights", "context")})

    def mark(self) -> None:
        """Note the state between two steps, from which the run can be taken up."""
        offsets: dict[str, Any] = {}
        if self._metrics:
            samples = self._samples_of(self.progress.step)
            offsets = {
                "metrics": self._metrics.offset,
                "samples": samples.stat().st_size if samples.exists() else 0,
                "elapsed_s": self._metrics.elapsed_s,
            }
        self._mark = _Mark(self.progress.copy(), self._arrays(), offsets)

    def checkpoint(self) -> None:
        """Save what was marked, and θ as a Hugging Face folder in export/.

        The state is written in the background.  Where adapters are trained, export/ holds them
        merged, adapter/ by themselves.  Does nothing if that state is saved, or θ has moved since.

        Raises:
          RunError: the folder cannot be written, or could not at the checkpoint before.
        """
        mark = self._mark
        if mark is None or mark.progress.step == self._saved or not mark.intact:
            return
        phase("checkpoint")
        if self._metrics:
            to_disk(self.folder.metrics)
            if mark.offsets["samples"]:
                to_disk(self._samples_of(mark.progress.step))
        host = {"progress": mark.progress.to_json(), "base": self._base, **mark.offsets}
        self._checkpoints.save(mark.progress.step, mark.arrays, host)
        self._saved = mark.progress.step
        with writing(self.folder.path):
            self._export(self.folder.export)
            if self._learner is not None and self._learner.adapters is not None:
                alpha, base = self._config.slow.lora_alpha, self._config.model.path
                save_adapter(self.folder.adapter, self._learner.adapters, alpha, base)

    def wait(self) -> None:
        """Until what is being saved is on disk.

        Raises:
          RunError: it could not be written.
        """
        phase("checkpoint")
        self._checkpoints.wait()

    def finish(self) -> None:
        """Note that the run has come to its end, when everything is on disk."""
        self.wait()
        self.log(END, {})
        self.finished = True

    def heed_guards(self) -> None:
        """Go on, unless a guard has found that the newest step is to be the last.

        Where updates were skipped, θ is sound: everything is saved, and the step to look at.  Where
        a ceiling was broken it may not be: what was saved before stays the newest.

        Raises:
          RunError: what a guard has found.
        """
        if self._stop is None:
            return
        (guard, message), groups = self._stop
        if guard == "nonfinite":
            kept = self.folder.nonfinite / str(self.progress.step)
            agreed(lambda: self._keep_step(kept, groups))
            self.progress.guards = self.progress.guards.rested
            self.mark()
            self.checkpoint()
            message += (
                f" of {kept} (python -m fst_jax.replay {kept} computes the loss again); the same "
                "command goes on with the next problems"
            )
        raise RunError(message)

    def keep_weights(self) -> None:
        """Write θ as exports/<step>/; before the step's checkpoint, or a kill could skip it."""
        with writing(self.folder.exports):
            self._export(self.folder.exports / str(self.progress.step))

    def close(self, error: BaseException | None = None) -> None:
        """Finish writing, and let others use the folder; `error` is what ended the run, if any.

        Raises:
          RunError: the last checkpoint could not be written, and there was no other error.
        """
        try:
            self._checkpoints.close()
        except RunError:
            if error is None:  # else what went wrong first is told
                raise
        finally:
            self._trackers.close()
            self._trackers = Trackers([])
            if self._lock:
                self._lock.release()
                self._lock = None

    def _keep_step(self, folder: Path, groups: Sequence[Sequence[Rollout]]) -> None:
        """Save the newest step, so that it can be computed again."""
        assert self._learner is not None, "there is no step without a learner"
        with writing(folder):
            offending.save(folder, self._learner.minibatches, groups)

    def _show(self, event: str, rollouts: Sequence[Rollout], apart: dict[str, Any]) -> None:
        """Append rollouts to the step's samples, for a reader."""
        if not is_main():
            return
        step = self.progress.step
        origin = {"event": event, "step": step, **apart}
        lines = [json.dumps(origin | readable(each), ensure_ascii=False) for each in rollouts]
        path = self._samples_of(step)
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        name = "/".join(["rollouts", event, *(str(value) for value in apart.values())])
        self._trackers.show(name, step, [as_text(each) for each in rollouts[:SHOWN_ROLLOUTS]])

    def _samples_of(self, step: int) -> Path:
        return self.folder.samples / f"{step}.jsonl"

    def _arrays(self) -> Any:
        """The sharded state; a frozen model has none but must not be an empty tree."""
        return self._learner.saved if self._learner else (jnp.zeros(()),)

    def _export(self, folder: Path) -> None:
        if self._learner is not None:
            save_model(folder, self._learner.params, self._inputs.model, self._inputs.folder)

    def _drop_later_files(self, samples: int) -> None:
        """Remove what steps and evaluations left that are done from now on, or again.

        `samples` is the size that the newest step's samples had when its state was marked.
        """
        step = self._saved
        done = {self.folder.pool: step, self.folder.samples: step, self.folder.exports: step}
        if step is not None:
            done[self.folder.pool] = step - 1  # a step's own round comes after its mark
            path = self._samples_of(step)
            size = path.stat().st_size if path.exists() else 0
            if size < samples:
                raise RunError(
                    f"{path} has {size} bytes, but had {samples} when the checkpoint was saved: "
                    "restore the file, or start under another name"
                )
            if size:
                os.truncate(path, samples)
        for folder, last in done.items():
            for path in folder.glob("*"):
                if not path.stem.isdigit() or (last is not None and int(path.stem) <= last):
                    continue  # somebody's own file, or an earlier step's
                shutil.rmtree(path) if path.is_dir() else path.unlink()
