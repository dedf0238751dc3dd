"""A student that follows the prompted model: loss, gradient, rows in pairs, and what it is for."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from fst_jax.config import CheckpointSettings, DistillSettings, ParallelSettings, SlowSettings
from fst_jax.models.attention import attention
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import replicated
from fst_jax.rollout.engine import Request
from fst_jax.rollout.local import LocalEngine
from fst_jax.slow.distill import micro_batch_loss
from fst_jax.slow.learner import Learner, LearnerState
from fst_jax.slow.packing import Pair, Sample, pack_pairs, split_problems
from fst_jax.state import Checkpoints
from tests.slow import tiny

SETTINGS = SlowSettings(learning_rate=1e-3, warmup_steps=1, micro_batch_rows=2, head_chunk=64)
DISTILL = DistillSettings(enabled=True)
GRAPHDEF, BASE = nnx.split(tiny.model())
PARAMS = tiny.perturbed(BASE, seed=1, scale=0.05)  # away from the teacher's weights, too


def follow(samples: list[Sample], seed: int = 0) -> list[Sample]:
    """The student's samples: a problem's have one context, the teacher's those of `samples`."""
    rng = np.random.default_rng(seed)
    problems = sorted({s.group for s in samples})
    own = {
        p: tuple(rng.integers(tiny.VOCABULARY, size=rng.integers(1, 9)).tolist()) for p in problems
    }
    return [
        dataclasses.replace(s, context_ids=own[s.group], frozen_ids=s.context_ids, valid=True)
        for s in samples
    ]


SAMPLES = follow(tiny.make_samples())
LENGTH = 24  # holds every context and completion


def pair_of(
    samples: list[Sample], per_row: int = 2, rows: int = 2, mesh: Mesh | None = None, **more: str
) -> Pair:
    aggregation = more.get("aggregation", "problem")
    (pair,) = pack_pairs([samples], per_row, rows, mesh or tiny.one_device(), aggregation, 8)
    return pair


@functools.partial(jax.jit, static_argnames="settings")
def share(params: nnx.State, pair: Pair, settings: SlowSettings) -> tuple:
    mesh = tiny.one_device()
    return jax.value_and_grad(micro_batch_loss, has_aux=True)(
        params, BASE, *pair, GRAPHDEF, settings, mesh
    )


def flat(tree: nnx.State) -> np.ndarray:
    return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)])


def loss_and_gradient(pair: Pair, settings: SlowSettings = SETTINGS) -> tuple[float, np.ndarray]:
    """Sums over micro-batches, the gradient as one vector."""
    loss, total = 0.0, 0.0
    for m in range(len(pair.own.tokens)):
        rows = jax.tree.map(lambda x, m=m: jnp.asarray(x[m]), pair)
        (value, _), gradient = share(PARAMS, rows, settings)
        loss, total = loss + float(value), total + flat(gradient)
    return loss, total


@pytest.fixture(scope="module")
def reference() -> tuple[float, np.ndarray]:
    return loss_and_gradient(pair_of(SAMPLES))


def assert_same(found: tuple[float, np.ndarray], wanted: tuple[float, np.ndarray]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-5, abs=1e-6)
    assert np.linalg.norm(wanted[1]) > 0.1
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-5 * np.linalg.norm(wanted[1]))


def divergences(params: nnx.State, samples: list[Sample] = SAMPLES) -> list[np.ndarray]:
    """KL(student ‖ teacher) at every token of every sample in float64, over the vocabulary."""
    student, teacher, config = tiny.weights(params), tiny.weights(BASE), tiny.config()
    found = []
    for s in samples:
        ours = tiny.predictions(student, config, s.context_ids, s.ids, s.temperature)
        theirs = tiny.predictions(teacher, config, s.frozen_ids, s.ids, s.temperature)
        found.append(np.sum(np.exp(ours) * (ours - theirs), axis=-1))
    return found


def exact_loss(params: nnx.State) -> float:
    """Eq. 8, one sequence at a time: the mean over a problem's tokens, then over problems."""
    by_problem: dict[int, list[float]] = {}
    for s, own in zip(SAMPLES, divergences(params), strict=True):
        by_problem.setdefault(s.group, []).extend(own)
    return float(np.mean([np.mean(own) for own in by_problem.values()]))


def test_loss_and_gradient_equal_the_formula(reference):
    assert reference[0] == pytest.approx(exact_loss(PARAMS), rel=1e-5) and reference[0] > 0.1
    rng = np.random.default_rng(0)
    for _ in range(3):  # slopes along random directions, by central differences
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), PARAMS)
        step = 1e-5
        up, down = (
            jax.tree.map(lambda x, d, h=h: np.asarray(x, np.float64) + h * d, PARAMS, direction)
            for h in (step, -step)
        )
        slope = (exact_loss(up) - exact_loss(down)) / (2 * step)
        assert reference[1] @ flat(direction) == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_the_whole_gradient_equals_that_of_unpacked_sequences(reference):
    """Each sequence in a row of its own, all logits at once, and no custom line in between."""
    mask = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))
    positions = jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), (len(SAMPLES), 1))
    temperature = jnp.array([[[s.temperature]] for s in SAMPLES])
    problems = [s.group for s in SAMPLES]
    tokens = {p: sum(len(s.ids) for s in SAMPLES if s.group == p) for p in problems}
    weight = np.zeros((len(SAMPLES), LENGTH), np.float32)

    def laid_out(name: str) -> tuple[jax.Array, jax.Array]:
        """Whole sequences, and where each of their completions' tokens is predicted."""
        ids, predictor = np.zeros((2, len(SAMPLES), LENGTH), np.int32)
        for i, s in enumerate(SAMPLES):
            context, size = getattr(s, name), len(s.ids)
            ids[i, : len(context) + size] = [*context, *s.ids]
            predictor[i, :size] = len(context) - 1 + np.arange(size)
            weight[i, :size] = 1 / tokens[s.group] / len(tokens)
        return jnp.array(ids), jnp.array(predictor)

    sides = laid_out("context_ids"), laid_out("frozen_ids")

    def predictions(params: nnx.State, ids: jax.Array, predictor: jax.Array) -> jax.Array:
        model = nnx.merge(GRAPHDEF, params)
        hidden, _ = model(ids, positions, lambda q, k, v, _: (attention(q, k, v, mask), None))
        logits = jnp.take_along_axis(model.logits(hidden), predictor[..., None], axis=1)
        return jax.nn.log_softmax(logits / temperature)

    @jax.jit
    @jax.value_and_grad
    def dense(params: nnx.State) -> jax.Array:
        ours, theirs = predictions(params, *sides[0]), predictions(BASE, *sides[1])
        return jnp.sum(weight * jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1))

    loss, gradient = dense(PARAMS)
    assert_same(reference, (float(loss), flat(gradient)))


def test_order_split_padding_and_chunks_do_not_matter(reference):
    order = np.random.default_rng(0).permutation(len(SAMPLES))
    assert_same(loss_and_gradient(pair_of([SAMPLES[i] for i in order])), reference)
    assert_same(loss_and_gradient(pair_of(SAMPLES, per_row=1)), reference)
    whole = pair_of(SAMPLES, rows=8)  # 6 rows and 2 of padding
    assert len(whole.own.tokens) == 1

    widths = ((0, 0), (0, 3), (0, 16))
    padded = jax.tree.map(lambda x: np.pad(x, widths), whole)
    warm = np.pad(whole.own.temperature, widths, constant_values=1)
    padded = padded._replace(own=padded.own._replace(temperature=warm))
    assert_same(loss_and_gradient(padded, dataclasses.replace(SETTINGS, head_chunk=37)), reference)


def arrays_of(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """The shapes of everything that a program and those within it compute."""
    for equation in jaxpr.eqns:
        yield from (var.aval.shape for var in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(value):
                yield from arrays_of(getattr(value, "jaxpr", value))


def is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def test_logits_are_held_a_chunk_at_a_time_forwards_and_backwards():
    chunk, pair = 24, pair_of(SAMPLES, rows=8)
    settings = dataclasses.replace(SETTINGS, head_chunk=chunk)
    rows = jax.tree.map(lambda x: jnp.asarray(x[0]), pair)
    program = jax.make_jaxpr(lambda params: share(params, rows, settings))(PARAMS)
    held = [
        int(np.prod(shape[:-1]))
        for shape in arrays_of(program.jaxpr)
        if shape[-1:] == (tiny.VOCABULARY,)
    ]
    assert pair.own.target.size > 2 * chunk
    assert max(held) == chunk


@pytest.mark.slow
def test_a_kernel_that_wants_a_layout_gives_the_same(monkeypatch):
    """Contexts of other lengths, so that the layouts of the two sides differ."""
    prompt = tuple(range(20, 40))
    samples = [dataclasses.replace(s, frozen_ids=prompt + s.frozen_ids) for s in SAMPLES]
    wanted = loss_and_gradient(pair_of(samples))
    for module in ("fst_jax.models.row_attention", "fst_jax.slow.packing"):
        monkeypatch.setattr(f"{module}.kernel_of", lambda mesh: "splash")
    share.clear_cache()
    pair = pair_of(samples)
    assert pair.own.layout and pair.frozen.layout
    assert pair.own.layout != pair.frozen.layout
    assert_same(loss_and_gradient(pair), wanted)
    share.clear_cache()


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 14), seed=st.integers(0, 2**32), per_row=st.integers(1, 4),
    parts=st.integers(1, 2),
)  # fmt: skip
def test_pairs_are_aligned_whatever_repeats(count, seed, per_row, parts):
    """Problems that are asked twice, prompts that are in the pool twice, in any order."""
    rng = np.random.default_rng(seed)
    asked, prompted = [(1, 2), (3,)], [(9, 1, 2), (8, 1, 2), (8, 7, 3)]
    samples = [
        Sample(
            context_ids=asked[rng.integers(2)], frozen_ids=prompted[rng.integers(3)],
            ids=rng.integers(10, 99, size := rng.integers(1, 9)).astype(np.int32),
            logprobs=rng.normal(size=size).astype(np.float32), temperature=1.0,
            group=int(rng.integers(3)), advantage=0.0, valid=True,
        )
        for _ in range(count)
    ]  # fmt: skip
    split = [part for part in split_problems(samples, parts) if part]
    for part, pair in zip(split, pack_pairs(split, per_row, 2, None, "problem", 8), strict=True):
        student, teacher = pair
        for name in ("target", "sample", "temperature", "kl_weight", "token_weight"):
            np.testing.assert_array_equal(getattr(student, name), getattr(teacher, name))
        assert student.kl_weight.sum() == pytest.approx(1, rel=1e-5)
        for side, name in ((student, "context_ids"), (teacher, "frozen_ids")):
            for m, r, c in np.argwhere(side.sample > 0):
                number = side.sample[m, r, c]
                context = getattr(part[number - 1], name)
                begins = side.positions[m, r, side.predictor[m, r, c]] - len(context) + 1
                row = tuple(side.tokens[m, r, : len(context)])
                assert row == context
                assert begins == np.count_nonzero(side.sample[m, r, :c] == number)


def test_a_student_that_is_its_teacher_learns_nothing():
    same = [dataclasses.replace(s, frozen_ids=s.context_ids) for s in SAMPLES]
    learner = make_learner(BASE)
    metrics = learner.step(pair_of(same))
    assert metrics["loss"] == pytest.approx(0, abs=1e-6) and metrics["grad_norm"] < 1e-5


def make_learner(
    params: nnx.State,
    settings: SlowSettings = SETTINGS,
    distill: DistillSettings = DISTILL,
    mesh: Mesh | None = None,
) -> Learner:
    """A learner at `params` whose teacher has the weights of the base; it owns its buffers."""
    owned = nnx.merge(GRAPHDEF, jax.tree.map(jnp.copy, BASE))
    learner = Learner(owned, settings, mesh or tiny.one_device(), 0, distill)
    if not settings.lora_rank:
        placed = jax.tree.map(
            lambda x, old: jax.device_put(x, old.sharding), params, learner.params
        )
        learner.state = learner.state._replace(params=jax.tree.map(jnp.copy, placed))
    return learner


def host(tree) -> list[np.ndarray]:
    return [np.array(x) for x in jax.tree.leaves(tree)]


def test_a_step_and_its_metrics(reference):
    learner = make_learner(PARAMS)
    metrics = learner.step(pair_of(SAMPLES))
    assert metrics["loss"] == pytest.approx(reference[0], rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(np.linalg.norm(reference[1]), rel=1e-5)
    weights, config, mismatch, entropy = tiny.weights(PARAMS), tiny.config(), [], []
    for s in SAMPLES:
        every = tiny.predictions(weights, config, s.context_ids, s.ids, s.temperature)
        gap = every[np.arange(len(s.ids)), s.ids] - s.logprobs
        mismatch.extend(np.exp(gap) - 1 - gap)
        entropy.extend(-np.sum(np.exp(every) * every, axis=-1))
    expected = {
        "distill_kl": np.mean(np.concatenate(divergences(PARAMS))),
        "entropy": np.mean(entropy),
        "mismatch_k3": np.mean(mismatch),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name
    student, teacher = (np.count_nonzero(side.segments) for side in pair_of(SAMPLES))
    parameters = sum(x.size for x in host(PARAMS))
    assert metrics["flops"] == parameters * (6 * student + 2 * teacher)
    jax.tree.map(np.testing.assert_array_equal, host(learner.reference), host(BASE))
    for seed in range(4):
        learner.step(pair_of(follow(tiny.make_samples(seed), seed)))
    assert learner._train_step._cache_size() == 1


def test_minibatches_and_epochs_are_updates_of_their_own():
    settings = dataclasses.replace(SETTINGS, objective="grpo", minibatches=3, epochs=2)
    learner = make_learner(PARAMS, settings)
    parts = split_problems(SAMPLES, 3)
    metrics = learner.step(*pack_pairs(parts, 2, 2, learner.mesh, "completion", 8))
    assert int(learner.state.step) == 6 and metrics["nonfinite_steps"] == 0
    assert learner._train_step._cache_size() == 1


def test_what_is_not_finite_changes_nothing():
    learner = make_learner(PARAMS)
    pair, before = pair_of(SAMPLES), host(learner.state)
    cold = pair.own.temperature.copy()
    cold[1, 0, 0] = np.nan
    spoilt = pair._replace(own=pair.own._replace(temperature=cold))
    assert learner.step(spoilt)["nonfinite_steps"] == 1
    jax.tree.map(np.testing.assert_array_equal, host(learner.state), before)


def test_recomputing_layers_gives_the_same(reference):
    graphdef = nnx.graphdef(tiny.model(remat="full"))
    learner = make_learner(PARAMS)
    own = Learner(
        nnx.merge(graphdef, jax.tree.map(jnp.copy, BASE)), SETTINGS, learner.mesh, 0, DISTILL
    )
    own.state = own.state._replace(params=jax.tree.map(jnp.copy, PARAMS))
    metrics = own.step(pair_of(SAMPLES))
    assert metrics["loss"] == pytest.approx(reference[0], rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(np.linalg.norm(reference[1]), rel=1e-4)


def test_adapters_follow_the_base_under_the_prompt():
    """The teacher has no adapters; the student's loss is that of its merged weights."""
    settings = dataclasses.replace(SETTINGS, lora_rank=3, lora_layers="", learning_rate=1e-2)
    learner = make_learner(BASE, settings)
    first = learner.step(pair_of(SAMPLES))
    assert first["distill_kl"] == pytest.approx(
        np.mean(np.concatenate(divergences(BASE))), rel=1e-3
    )
    for _ in range(5):
        learner.step(pair_of(SAMPLES))
    merged = learner.params
    wanted = np.mean(np.concatenate(divergences(merged)))
    found = learner.step(pair_of(SAMPLES))["distill_kl"]
    assert found == pytest.approx(wanted, rel=1e-3) and found < 0.9 * first["distill_kl"]
    jax.tree.map(np.testing.assert_array_equal, host(learner.reference), host(BASE))
    assert len(learner.saved) == len(LearnerState._fields)


def test_a_refreshed_teacher_is_kept_and_comes_back(tmp_path):
    learner = make_learner(PARAMS, distill=dataclasses.replace(DISTILL, teacher_refresh=2))
    pair = pair_of([dataclasses.replace(s, frozen_ids=s.context_ids) for s in SAMPLES])
    assert learner.step(pair)["distill_kl"] > 1e-2
    learner.refresh_reference()
    before = host(learner.saved)
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep=1))
    checkpoints.save(1, learner.saved, {})
    checkpoints.wait()
    assert learner.step(pair)["distill_kl"] == pytest.approx(0, abs=1e-6)
    after = host(learner.saved)
    tiny.restore_newest(learner, checkpoints)
    jax.tree.map(np.testing.assert_array_equal, host(learner.saved), before)
    learner.step(pair)
    jax.tree.map(np.testing.assert_array_equal, host(learner.saved), after)


def test_on_its_own_samples_the_student_takes_up_what_the_prompt_does():
    """The prompt alone tells the contexts apart; after learning, the KL without it is small."""
    own, prompted, count = (5, 9, 2), (33, 41, 17, 5, 9, 2), 16
    learner = make_learner(BASE, dataclasses.replace(SETTINGS, learning_rate=3e-3))
    engine = LocalEngine(nnx.merge(GRAPHDEF, learner.params), learner.mesh, batch_size=count)
    found = []
    for step in range(30):
        (completions,) = engine.generate([Request(own, n=count, max_new_tokens=4, seed=step)])
        samples = [Sample(own, c.ids, c.logprobs, 1.0, 0, 0.0, True, prompted) for c in completions]
        metrics = learner.step(pair_of(samples, per_row=4))
        assert metrics["mismatch_k3"] < 1e-6  # on-policy
        found.append(metrics["distill_kl"])
        engine.update_weights(learner.params, version=step + 1)
    assert found[0] > 0.5 and np.mean(found[-4:]) < 0.3 * found[0], found


def learn(mesh: Mesh) -> dict:
    learner = make_learner(PARAMS, dataclasses.replace(SETTINGS, micro_batch_rows=8), mesh=mesh)
    metrics = []
    for seed in range(3):
        samples = follow(tiny.make_samples(seed), seed)
        metrics.append(learner.step(pair_of(samples, rows=8, mesh=mesh)))
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(learner.params)
    assert learner._train_step._cache_size() == 1
    return {"metrics": metrics, "params": flat(jax.device_get(whole))}


def meshes() -> None:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    wanted = learn(tiny.one_device())
    assert np.mean(np.abs(wanted["params"] - flat(PARAMS)) > 1e-3) > 0.5
    for sizes in ({"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2}):
        found = learn(make_mesh(ParallelSettings(mesh=sizes)))
        np.testing.assert_allclose(found["params"], wanted["params"], rtol=0, atol=1e-5)
        for ours, theirs in zip(found["metrics"], wanted["metrics"], strict=True):
            for name, value in theirs.items():
                assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (sizes, name)


@pytest.mark.slow
def test_eight_devices(on_devices):
    on_devices(meshes)
