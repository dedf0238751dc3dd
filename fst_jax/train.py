"""python -m fst_jax.train: Fast-Slow Training, Algorithm 1 of the paper.

    python -m fst_jax.train                                   configs/quickstart.yaml
    python -m fst_jax.train --config FILE --section.field VALUE …

Every T steps a fast round evolves the pool of prompts Φ under the current
weights; every step samples G rollouts of each problem, G/K under each prompt,
and moves the weights θ with advantages over the whole group.  `slow.enabled`
and `fast.enabled` switch either half off; with `distill.enabled` (FST-distill)
rollouts are sampled without the prompts, and θ moves towards the frozen model
under them.  Running the same command again resumes; with more `train.steps`,
it goes on.

In Python a run is `Run(config)`; `for step in run` takes its steps one by one.
"""

import contextlib
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fst_jax.settings import answer_help, command, load

FLAGS = {"dry-run": "Check everything, print config, shapes and memory, and stop."}
if __name__ == "__main__":  # before JAX is imported, which takes seconds
    answer_help("train", __doc__ or "", FLAGS)

import jax
import numpy as np

from fst_jax.compiles import compiles
from fst_jax.config import Config
from fst_jax.dry_run import describe
from fst_jax.errors import EngineError, Interrupted, ReflectionError, RunError, TaskError
from fst_jax.fast.bridge import RollOut
from fst_jax.fast.evolve import evolve
from fst_jax.fast.pool import Pool
from fst_jax.fast.reuse import Leftovers
from fst_jax.fast.round_log import RoundLog
from fst_jax.interrupt import StopRequest
from fst_jax.journal import Progress
from fst_jax.parallel.distributed import agreed, any_of, is_main, leaving_together, start
from fst_jax.parts import read_inputs
from fst_jax.rollout.exam import Exam
from fst_jax.rollout.rollouts import Actor, Rollout, Sampling
from fst_jax.run import OpenRun, sync, texts
from fst_jax.run_folder import RunFolder
from fst_jax.slow.groups import followers, group_metrics, samples_of
from fst_jax.slow.learner import Learner
from fst_jax.slow.objectives import recipe
from fst_jax.slow.packing import (
    Batch,
    Pair,
    Sample,
    completions_per_row,
    contexts_per_row,
    pack_pairs,
    pack_together,
    split_problems,
)
from fst_jax.summary import print_summary, resume_command
from fst_jax.tasks.stream import Stream
from fst_jax.tasks.task import Problem
from fst_jax.watchdog import Watchdog, notice_of, phase


@dataclass(frozen=True)
class Step:
    """What one step of a run has recorded, in the events and keys of metrics.jsonl."""

    number: int  # steps done, this one included
    metrics: Mapping[str, Any]  # the event `step`; empty where θ is frozen
    fast_round: Mapping[str, Any] | None  # the event `evolve`, if the step began with a fast round
    evaluations: tuple[Mapping[str, Any], ...]  # the events `eval` since the step before


class Run(OpenRun):
    """A run that learns; one that was interrupted is taken up where it stands."""

    def train(self) -> bool:
        """Take all steps that are left; whether the run came to its end, or was asked to stop."""
        for _ in self:
            pass
        return self.finished

    def __iter__(self) -> Iterator[Step]:
        """Algorithm 1, from where the run stands to `train.steps`, or until it is asked to stop.

        Whoever leaves before the end may go on later; what was done is saved.

        Raises:
          RunError: a guard stopped the run, or it was left in the middle of a step.
          UserError: a server, the reflector or the task failed; the newest whole step is saved.
        """
        if not self._between_steps:
            raise RunError(
                f"the run of {self.folder} was left in the middle of a step: close it, and open it "
                "again to go on from the step before"
            )
        config, journal, progress = self.config, self._journal, self._progress
        stop = StopRequest(config.watch.stop_within_s)
        begun = False
        with stop, watched(config, journal.folder, stop):
            try:
                while not journal.finished:
                    step = progress.step
                    journal.heed_guards()
                    journal.mark()
                    last, leaving = step == config.train.steps, any_of(stop.requested)
                    saves = due(step, config.checkpoint.every) and not progress.guards.in_doubt
                    if last or leaving or saves:
                        journal.checkpoint()
                    if leaving:
                        break
                    self._look(step)
                    if last:
                        journal.finish()
                    if begun:
                        phase("between steps")
                        yield recorded(step, journal.take_events())
                    if not last:
                        self._advance(step)
                        begun = True
                journal.wait()
            except Interrupted:  # the step was not done in time, and is taken again
                journal.checkpoint()
                journal.wait()
            except GeneratorExit:  # whoever asks for the steps has enough of them
                journal.checkpoint()
                journal.wait()
                raise
            except (EngineError, ReflectionError, TaskError):  # which all processes have
                journal.checkpoint()
                raise
            except Exception:
                if jax.process_count() == 1:  # what was done before is not lost
                    with contextlib.suppress(RunError):  # what went wrong first is told
                        journal.checkpoint()
                raise

    def _advance(self, step: int) -> None:
        """One turn of Algorithm 1: a fast round, if a cycle begins, and a step on θ."""
        config, learner, progress = self.config, self._learner, self._progress
        order, actor, parity, journal = self._order, self._actor, self._parity, self._journal
        self._between_steps, evolve_s = False, 0.0
        if order.begins_stage(step):
            forget(self._exam, progress, learner)
        evolves = config.fast.enabled and order.begins_cycle(step, config.fast.cycle_steps)
        # Who reads Φ: θ itself, or the teacher of a θ that does without.
        prompted = learner.reference if learner and config.distill.enabled else self.params
        sync_s = sync(actor, parity, prompted if evolves else self.params, step)

        if evolves:
            anchors = order.look_ahead(step, config.fast.cycle_steps)[: config.fast.anchors]
            began = time.monotonic()
            phase("evolve", step)
            roll_out = round_sampler(config, actor, journal.round_log, step)
            progress.pool, report = evolve(  # Φ_c → Φ_c+1, anchored on L_c, by one light GEPA round
                progress.pool, anchors, roll_out, self._reflector, self._validator, config.fast,
                step, step,
            )  # fmt: skip
            if config.fast.reuse:
                progress.leftovers = Leftovers.of_round(report.rollouts, progress.pool)
            evolve_s = time.monotonic() - began
            journal.fast_round(report, order.label(step), actor.take_spent(), evolve_s)
            if config.distill.enabled:
                sync_s += sync(actor, parity, self.params, step)

        if learner:
            phase("rollout", step)
            groups = sample_groups(config, actor, order.minibatch(step), progress, step)
            began = time.monotonic()
            phase("train", step)
            if config.distill.enabled:
                metrics = distill_step(config, self._exam, learner, groups, progress.pool)
            else:
                metrics = slow_step(config, self._exam, learner, groups)  # one step, by CISPO
            metrics["task"] = order.label(step)
            metrics |= {"sync_mismatch": parity.last} if parity else {}
            seconds = {"train": time.monotonic() - began, "sync": sync_s, "evolve": evolve_s}
            progress.step = step + 1
            journal.slow_step(groups, metrics, actor.take_spent(), seconds, compiles())
            if due(progress.step, learner.refresh_every):
                learner.refresh_reference()
        progress.step = step + 1
        if due(progress.step, config.checkpoint.export_every):
            journal.keep_weights()
        self._between_steps = True

    def _look(self, step: int) -> None:
        """The evaluations of a step, if it has any that are not made."""
        config, learner = self.config, self._learner
        if self._looked == step:  # by an iteration before this one
            return
        self._between_steps = False
        constant = ["none", "seed"] if config.unprompted else ["seed"]  # contexts beside Φ
        last = step == config.train.steps
        if step == 0:
            for context in constant:
                self._record("base", context)
        elif last or due(step, config.eval.every):
            if last and learner and config.fast.enabled:
                self._record("base", "pool")
            for context in constant if learner else []:
                self._record("trained", context)
            if config.fast.enabled:
                self._record("trained" if learner else "base", "pool")
        self._looked, self._between_steps = step, True

    def _record(self, weights: str, context: str) -> None:
        for values, shown in self._held_out(weights, context):
            values = {"weights": weights, "context": context, **values}
            self._journal.evaluation(values, shown)


def recorded(number: int, events: Sequence[Mapping[str, Any]]) -> Step:
    """A step's events as one."""
    steps, rounds, looks = (
        [event for event in events if event["event"] == kind] for kind in ("step", "evolve", "eval")
    )
    return Step(number, next(iter(steps), {}), next(iter(rounds), None), tuple(looks))


def forget(exam: Exam, progress: Progress, learner: Learner | None) -> None:
    """What a stream does not carry into the stage that begins."""
    stream = exam.task
    assert isinstance(stream, Stream), "no other task has stages"
    if stream.reset_pool:
        progress.pool, progress.leftovers = progress.pool.restarted(stream.seed_prompt), Leftovers()
    if stream.reset_optimizer and learner:
        learner.reset_optimizer()


def sample_groups(
    config: Config, actor: Actor, problems: Sequence[Problem], progress: Progress, step: int
) -> list[list[Rollout]]:
    """G rollouts of each problem, G/K under each of the K prompts: one group a problem.

    What the fast round left over is claimed first.  A student's G are all under its own prompt.
    """
    prompts = texts(progress.pool)
    if config.distill.enabled:
        prompts = [""] if config.unprompted else [progress.pool.seed.text]
    each = config.rollouts_per_context
    pairs = [(problem, prompt) for problem in problems for prompt in prompts]
    staleness = config.fast.reuse_staleness
    since = 0 if staleness is None else step - staleness
    claimed = [progress.leftovers.claim(*pair, each, since) for pair in pairs]
    rest = [each - len(of_pair) for of_pair in claimed]
    sampled = actor.roll_out(pairs, rest, training(config), generator(config, "groups", step))
    rollouts: list[Rollout] = []
    for reused, fresh in zip(claimed, sampled, strict=True):
        rollouts += [*reused, *fresh]
    size = config.rollout.group_size
    return [rollouts[start : start + size] for start in range(0, len(rollouts), size)]


def slow_step(
    config: Config, exam: Exam, learner: Learner, groups: Sequence[Sequence[Rollout]]
) -> dict[str, Any]:
    """Advantages over each group, then the step's updates of θ."""
    slow, metrics = config.slow, group_metrics(groups)
    reference: list[tuple[int, ...]] = []
    if slow.reference_prompt == "none":
        reference = [tuple(exam.context(group[0].problem, "")) for group in groups]
    samples = samples_of(groups, slow, reference=reference)
    if slow.kl_placement == "reward":
        (batch,) = packed(config, learner, [samples])
        penalties = slow.kl_coefficient * learner.log_ratios(batch)
        metrics["kl_penalty_mean"] = float(penalties.mean())
        samples = samples_of(groups, slow, penalties, reference)
    parts = split_problems(samples, slow.minibatches)
    return metrics | learner.step(*packed(config, learner, parts))


def distill_step(
    config: Config, exam: Exam, learner: Learner, groups: Sequence[Sequence[Rollout]], pool: Pool
) -> dict[str, Any]:
    """The step's updates of a θ without Φ towards the teacher, who reads each of the K in turn."""
    samples = followers(groups, texts(pool), exam.context)
    parts = split_problems(samples, config.slow.minibatches)
    return group_metrics(groups) | learner.step(*packed(config, learner, parts))


def packed(
    config: Config, learner: Learner, parts: Sequence[Sequence[Sample]]
) -> Sequence[Batch | Pair]:
    """Rows of one shape for each part of a step's samples; pairs, if these have two contexts."""
    rollout, each = config.rollout, config.rollout.group_size // config.population
    sizes = rollout.max_prompt_tokens, rollout.max_new_tokens, learner.hidden_size
    per_row, contexts = completions_per_row(each, *sizes), 1
    aggregation, longest = recipe(config.slow).aggregation, rollout.max_new_tokens
    most = config.slow.micro_batch_rows
    if parts[0][0].frozen_ids:
        return pack_pairs(parts, per_row, most, learner.mesh, aggregation, longest)
    if per_row == each:  # a row of `most` contexts takes no more memory than as many rows
        contexts = contexts_per_row(parts[0], per_row, *sizes, learner.mesh, most)
    rows = max(1, most // contexts)  # as they are so much longer
    return pack_together(parts, per_row, rows, learner.mesh, contexts, aggregation, longest)


def round_sampler(config: Config, actor: Actor, log: RoundLog, step: int) -> RollOut:
    """Who samples for the fast round of a step: the log what it holds, the actor the rest."""
    rng = generator(config, "evolve", step)
    agreed(lambda: log.begin(step))

    def roll_out(pairs: Sequence[tuple[Problem, str]]) -> list[Rollout]:
        kept = agreed(lambda: log.next(pairs))
        if kept is not None:
            for _ in pairs:
                rng.integers(2**31)  # the seed that its rollout had
            actor.count(kept)
            return kept
        sampled = actor.roll_out(pairs, [1] * len(pairs), training(config), rng)
        rollouts = [only for (only,) in sampled]
        agreed(lambda: log.add(pairs, rollouts))
        return rollouts

    return roll_out


def watched(config: Config, folder: RunFolder, stop: StopRequest) -> Watchdog:
    """The watchdog of this process."""
    settings = config.watch
    noticed = notice_of(settings.notice_url)
    resume = resume_command(folder)
    return Watchdog(folder.path, settings.stall_s, resume, is_main(), noticed, stop.ask)


def training(config: Config) -> Sampling:
    """Full support at the training temperature, so that importance ratios are unbiased."""
    return Sampling(config.rollout.max_new_tokens, config.rollout.temperature)


def generator(config: Config, purpose: str, step: int) -> np.random.Generator:
    """The random numbers of one purpose in one step; no state to save."""
    return np.random.default_rng([config.seed, zlib.crc32(purpose.encode()), step])


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps, 0 for never, is done at this one."""
    return every > 0 and step > 0 and step % every == 0


def main(arguments: list[str]) -> int:
    """Train, or with --dry-run say what would be done; the exit code."""
    config, given = load(arguments, "train", __doc__ or "", flags=FLAGS)
    start(config.parallel)
    agreed(lambda: RunFolder.of(config).check(config))
    if "dry-run" in given:
        described = describe(config, read_inputs(config))
        if is_main():
            print(described)
        return 0
    with leaving_together():
        with Run(config) as run:
            finished = run.train()
        if is_main():
            print_summary(RunFolder.of(config), config, run.step, run.pool, finished)
    return 0 if finished else config.watch.stopped_exit


if __name__ == "__main__":
    sys.exit(command(main))
