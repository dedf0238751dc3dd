"""A run on its folder: its parts put together, what it knows, and what it can be asked.

How it learns is in `train.py`.
"""

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from flax import nnx

from fst_jax.config import Config
from fst_jax.display import console
from fst_jax.dry_run import welcome
from fst_jax.evaluate import Evaluator
from fst_jax.fast.pool import Pool
from fst_jax.fast.reflect import reflector_for
from fst_jax.fast.validate import Validator
from fst_jax.journal import Journal
from fst_jax.parallel.distributed import is_main, start
from fst_jax.parallel.sharding import on_devices
from fst_jax.parts import load_weights, make_actor, make_learner, make_parity, read_inputs
from fst_jax.rollout.engine import Request
from fst_jax.rollout.exam import Exam
from fst_jax.rollout.parity import Parity
from fst_jax.rollout.rollouts import Actor, Rollout
from fst_jax.run_folder import RunFolder
from fst_jax.settings import checked
from fst_jax.tasks.order import ProblemOrder, StagedOrder
from fst_jax.tasks.stream import stages_of
from fst_jax.tasks.task import Problem, Task
from fst_jax.tracking import Tracker, Trackers
from fst_jax.watchdog import phase


class OpenRun:
    """A run that has its folder for itself until `close`.

    In a run of several processes each of them has one, and calls the same methods in the same
    order.
    """

    def __init__(self, config: Config, tracker: Tracker | None = None):
        """Read and check all that a config names, load the weights, and take the folder.

        `tracker` takes the events in place of the lines, or the display, that a terminal shows.

        Raises:
          UserError: with every problem found.
        """
        self.config = config = checked(config)
        start(config.parallel)
        shown = tracker or (console(config.train.steps) if is_main() else Trackers([]))
        with contextlib.ExitStack() as undo:
            undo.callback(shown.close)
            phase("load")
            inputs = read_inputs(config)
            if tracker is None and is_main():
                print(welcome(config, inputs), flush=True)
            exam, model = inputs.exam, load_weights(config, inputs)
            learner = make_learner(config, inputs, model)  # θ
            base = learner.reference if learner else nnx.state(model)  # θ0
            actor = make_actor(config, inputs, model)  # y ~ π_θ(·|x,φ) and r(x,y)
            self._exam, self._learner, self._base, self._actor = exam, learner, base, actor
            self._parity = make_parity(config, inputs, actor, model)
            kept = RunFolder.of(config).reflections
            self._reflector = reflector_for(config, exam.chat.count, exam.shown, kept)  # π_ref
            longest, holds_control = config.fast.max_prompt_tokens, exam.chat.holds_control
            control_tokens = exam.chat.control_tokens
            self._validator = Validator(exam.chat.count, control_tokens, longest, holds_control)
            self._evaluator = Evaluator(config, inputs, actor, nnx.graphdef(model), base)
            self._order = problem_order(config, exam)  # D
            self._looked: int | None = None  # the newest step whose evaluations are made
            self._between_steps = True  # or in the middle of one
            self._journal = Journal(config, inputs, learner, base, shown)
            self._progress = self._journal.progress  # the step, and Φ = {φ_seed} at first
            if tracker is None and is_main():
                print(where_it_stands(self.folder, self.step, config, self.finished), end="")
            undo.pop_all()

    @property
    def step(self) -> int:
        """Steps done."""
        return self._progress.step

    @property
    def pool(self) -> Pool:
        """Φ: every prompt with its parent and scores, and the K in use, the best first."""
        return self._progress.pool

    @property
    def task(self) -> Task:
        """The problems, and how answers to them are scored."""
        return self._exam.task

    @property
    def folder(self) -> Path:
        """Where the run leaves what it makes."""
        return self._journal.folder.path

    @property
    def finished(self) -> bool:
        """Whether all `train.steps` are done and evaluated."""
        return self._journal.finished

    @property
    def params(self) -> Any:
        """θ, as a pytree of sharded arrays; the next step gives their memory away."""
        return self._learner.params if self._learner else self._base

    def evaluate(
        self,
        context: Literal["pool", "seed", "none"] = "pool",
        weights: Literal["trained", "base"] = "trained",
    ) -> list[dict[str, Any]]:
        """Held-out reward and drift now, of each task; nothing of it is recorded.

        Args:
          context: the prompts in use, the seed prompt, or no system prompt.
          weights: θ, or those that the run began with.

        Returns:
          task, mean_at_k, best_at_k, k, n, kl_to_base and entropy, the last two in nats per token.
        """
        return [values for values, _ in self._held_out(weights, context)]

    def sample(
        self,
        question: str | Problem,
        prompt: str | None = None,
        count: int = 1,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Answers of θ to a question, or to a problem of the task.

        Args:
          question: what the user asks; a problem is asked as its task does.
          prompt: system prompt; None: the best of Φ; "": none.
          count: how many answers.
          max_new_tokens: None: `rollout.max_new_tokens`.
          temperature: None: `eval.temperature`, with the nucleus of `eval.top_p`; 0: the likeliest
            token, always.
          seed: of the random choices.
        """
        exam, settings = self._exam, self.config.eval
        prompt = self.pool.active_prompts[0].text if prompt is None else prompt
        if isinstance(question, Problem):
            ids = exam.context(question, prompt)
        else:
            ids = exam.chat.encode([{"role": "user", "content": question}], prompt)
        asked = Request(
            prompt_ids=tuple(ids),
            n=count,
            max_new_tokens=max_new_tokens or self.config.rollout.max_new_tokens,
            temperature=settings.temperature if temperature is None else temperature,
            top_p=settings.top_p if temperature is None else 1.0,
            stop_ids=exam.chat.stop_ids,
            seed=seed,
        )
        sync(self._actor, self._parity, self.params, self.step)
        (answers,) = self._actor.engine.generate([asked])
        return [exam.chat.decode(answer.ids.tolist()) for answer in answers]

    def close(self) -> None:
        """Finish what is being saved, and let others have the folder."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._journal.close(error)

    def _held_out(self, weights: str, context: str) -> list[tuple[dict[str, Any], list[Rollout]]]:
        # The base may wait elsewhere.
        params = on_devices(self._base if weights == "base" else self.params)
        sync(self._actor, self._parity, params, self.step)
        phase("evaluate")
        seed = self._exam.task.seed_prompt
        prompts = {"none": [""], "seed": [seed], "pool": texts(self.pool)}[context]
        measured = self._evaluator(params, prompts)
        self._actor.take_spent()
        return measured


def where_it_stands(folder: Path, step: int, config: Config, finished: bool) -> str:
    """A line on a run that was begun before; empty for a new one."""
    of_all = f"{step} of {config.train.steps} steps"
    if finished:
        return f"{folder} is complete, {of_all}: a larger train.steps goes on with it\n"
    return f"going on with {folder} after {of_all}\n" if step else ""


def problem_order(config: Config, exam: Exam) -> StagedOrder:
    """The minibatches of the run, stage by stage; any task but a stream is one stage."""
    stages, per_step = stages_of(exam.task), config.rollout.problems_per_step
    orders = [ProblemOrder(stage.train, per_step, config.seed, exam.fits) for stage in stages]
    return StagedOrder(orders, [stage.steps for stage in stages], [stage.label for stage in stages])


def sync(actor: Actor, parity: Parity | None, params: Any, version: int) -> float:
    """Serve the newest θ, and see that a served model agrees; returns the seconds that it took.

    Raises:
      EngineError: a server does not, or cannot be reached.
    """
    began = time.monotonic()
    phase("sync", version)
    actor.engine.update_weights(params, version)
    if parity:
        parity(params)
    return time.monotonic() - began


def texts(pool: Pool) -> list[str]:
    """The K prompts of Φ."""
    return [prompt.text for prompt in pool.active_prompts]
