"""One step of the slow weights: loss, gradient, accumulation, safety, and what it is for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fst_jax.config import CheckpointSettings, SlowSettings
from fst_jax.rollout.engine import Completion, Request
from fst_jax.rollout.local import LocalEngine
from fst_jax.slow.advantages import group_advantages
from fst_jax.slow.drift import drift
from fst_jax.slow.learner import Learner, LearnerState, micro_batch_loss, update
from fst_jax.slow.logprobs import score_tokens
from fst_jax.slow.objectives import recipe
from fst_jax.slow.optimizer import learning_rate, make_optimizer
from fst_jax.slow.packing import Batch, Sample, pack, pack_pairs, pack_together, split_problems
from fst_jax.state import Checkpoints
from tests.slow import tiny

SAMPLES = tiny.make_samples()
SETTINGS = SlowSettings(
    clip_threshold=1.5,
    kl_coefficient=1.0,
    kl_estimator="k2",
    learning_rate=1e-3,
    warmup_steps=4,
    micro_batch_rows=2,
    head_chunk=64,
)
GRAPHDEF, BASE = nnx.split(tiny.model())
PARAMS = tiny.perturbed(BASE, seed=1, scale=0.05)  # away from the reference, so that KL counts


@functools.partial(jax.jit, static_argnames="settings")
def share(params: nnx.State, rows: Batch, settings: SlowSettings) -> tuple:
    mesh = tiny.one_device()
    base = score_tokens(nnx.merge(GRAPHDEF, BASE), rows, settings.head_chunk, mesh).logprob
    return jax.value_and_grad(micro_batch_loss, has_aux=True)(
        params, BASE, rows, base, GRAPHDEF, settings, mesh
    )


def loss_and_gradient(batch: Batch, settings: SlowSettings = SETTINGS) -> tuple[float, np.ndarray]:
    """Sums over micro-batches, the gradient as one vector."""
    loss, total = 0.0, 0.0
    for m in range(len(batch.tokens)):
        rows = jax.tree.map(lambda x, m=m: jnp.asarray(x[m]), batch)
        (value, _), gradient = share(PARAMS, rows, settings)
        loss += float(value)
        total += np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(gradient)])
    return loss, total


@pytest.fixture(scope="module")
def reference() -> tuple[float, np.ndarray]:
    return loss_and_gradient(pack(SAMPLES, per_row=2, micro_batch_rows=2))


def assert_same(found: tuple[float, np.ndarray], wanted: tuple[float, np.ndarray]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-5, abs=1e-6)
    assert np.linalg.norm(wanted[1]) > 0.1
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-5 * np.linalg.norm(wanted[1]))


def exact_loss(params: nnx.State, ratios: list[np.ndarray] | None = None) -> tuple:
    """The paper's loss in float64, one sequence at a time; `ratios` holds min(ρ, τ) fixed."""
    weights, base = tiny.weights(params), tiny.weights(BASE)
    config = tiny.config()
    policy, regularizer, found = {}, {}, []
    for i, s in enumerate(SAMPLES):
        where = (config, s.context_ids, s.ids, s.temperature)
        logprob = tiny.logprobs(weights, *where)
        clipped = np.minimum(np.exp(logprob - s.logprobs), SETTINGS.clip_threshold)
        found.append(clipped)
        kl = (tiny.logprobs(base, *where) - logprob) ** 2 / 2
        if s.valid:
            ratio = clipped if ratios is None else ratios[i]
            policy.setdefault(s.group, []).extend(-ratio * s.advantage * logprob)
        regularizer.setdefault(s.group, []).extend(kl)
    means = [np.mean([np.mean(own) for own in x.values()]) for x in (policy, regularizer)]
    return means[0] + SETTINGS.kl_coefficient * means[1], found


def test_loss_and_gradient_equal_the_formula(reference):
    loss, ratios = exact_loss(PARAMS)
    clipped = np.concatenate(ratios) == SETTINGS.clip_threshold
    assert 0.1 < clipped.mean() < 0.9
    assert reference[0] == pytest.approx(loss, rel=1e-5)
    rng = np.random.default_rng(0)
    for _ in range(3):  # slopes along random directions, by central differences
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), PARAMS)
        step = 1e-5
        up, down = (
            jax.tree.map(lambda x, d, h=h: np.asarray(x, np.float64) + h * d, PARAMS, direction)
            for h in (step, -step)
        )
        slope = (exact_loss(up, ratios)[0] - exact_loss(down, ratios)[0]) / (2 * step)
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(direction)])
        assert reference[1] @ flat == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_order_and_split_do_not_matter(reference):
    order = np.random.default_rng(0).permutation(len(SAMPLES))
    shuffled = pack([SAMPLES[i] for i in order], per_row=2, micro_batch_rows=2)
    assert_same(loss_and_gradient(shuffled), reference)
    alone = pack(SAMPLES, per_row=1, micro_batch_rows=2)  # no shared context
    assert len(alone.tokens) == 2 * len(pack(SAMPLES, per_row=2, micro_batch_rows=2).tokens)
    assert_same(loss_and_gradient(alone), reference)


def test_micro_batch_size_padding_and_chunks_do_not_matter(reference):
    batch = pack(SAMPLES, per_row=2, micro_batch_rows=8)  # 6 rows and 2 of padding
    assert len(batch.tokens) == 1

    widths = ((0, 0), (0, 3), (0, 16))
    padded = jax.tree.map(lambda x: np.pad(x, widths), batch)
    padded = padded._replace(temperature=np.pad(batch.temperature, widths, constant_values=1))
    settings = dataclasses.replace(SETTINGS, head_chunk=37)
    assert_same(loss_and_gradient(padded, settings), reference)


def shared_beginnings() -> list[Sample]:
    """The samples, with contexts that begin alike: by one of two prompts."""
    prompts = ((11, 12, 13, 14, 15), (11, 12, 40))
    return [
        dataclasses.replace(s, context_ids=(*prompts[s.context_ids[0] % 2], *s.context_ids))
        for s in SAMPLES
    ]


@pytest.mark.parametrize("kernel", ["xla", "splash"])
def test_shared_beginnings_do_not_matter(kernel, monkeypatch):
    samples = shared_beginnings()
    alone = loss_and_gradient(pack(samples, per_row=1, micro_batch_rows=2))
    for module in ("fst_jax.models.row_attention", "fst_jax.slow.packing"):
        monkeypatch.setattr(f"{module}.kernel_of", lambda mesh: kernel)
    share.clear_cache()
    shared = pack(samples, 2, 2, tiny.one_device(), contexts=3)
    assert (shared.layout is not None) == (kernel == "splash")
    assert np.count_nonzero(shared.segments) < sum(len(s.ids) for s in samples) + sum(
        map(len, {s.context_ids for s in samples})
    )
    assert_same(loss_and_gradient(shared), alone)
    share.clear_cache()


def make_learner(params: nnx.State, settings: SlowSettings) -> Learner:
    """A learner at `params` with the base as its reference; it owns its buffers."""
    learner = Learner(
        nnx.merge(GRAPHDEF, jax.tree.map(jnp.copy, BASE)), settings, tiny.one_device()
    )
    placed = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), params, learner.params)
    learner.state = learner.state._replace(params=jax.tree.map(jnp.copy, placed))
    return learner


def host(state: LearnerState) -> list[np.ndarray]:
    return [np.array(x) for x in jax.tree.leaves(state)]


def drifted(learner: Learner, batch: Batch) -> float:
    return drift(
        learner.params,
        learner.reference,
        batch,
        graphdef=learner.graphdef,
        mesh=learner.mesh,
        head_chunk=learner.settings.head_chunk,
    )["kl_to_base"]


@pytest.fixture(scope="module")
def learner() -> Learner:
    return make_learner(PARAMS, SETTINGS)


@pytest.fixture(scope="module")
def start(learner: Learner) -> LearnerState:
    return jax.tree.map(np.array, learner.state)


@pytest.fixture
def fresh(learner: Learner, start: LearnerState) -> Learner:
    """The one compiled learner, back at its start."""
    learner.state = jax.tree.map(
        lambda x, old: jax.device_put(jnp.array(x), old.sharding), start, learner.state
    )
    return learner


def test_a_step_is_clipped_adamw_on_the_whole_gradient(fresh, start, reference):
    batch = pack(SAMPLES, per_row=2, micro_batch_rows=2)
    metrics = fresh.step(batch)
    loss, gradient = reference
    norm = np.linalg.norm(gradient)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["lr"] == pytest.approx(SETTINGS.learning_rate / 4)
    assert metrics["nonfinite_steps"] == 0
    assert int(fresh.state.step) == 1
    clipped = gradient * min(1.0, SETTINGS.max_grad_norm / norm)
    # The first step of Adam: both moments are unbiased estimates from one gradient.
    update = -SETTINGS.learning_rate / 4 * clipped / (np.abs(clipped) + 1e-8)
    old = np.concatenate([np.ravel(x) for x in jax.tree.leaves(start.params)]).astype(np.float64)
    new = np.concatenate([np.ravel(x) for x in jax.tree.leaves(fresh.params)])
    certain = np.abs(clipped) > 1e-4
    assert certain.mean() > 0.3
    np.testing.assert_allclose((new - old)[certain], update[certain], rtol=2e-2, atol=2e-7)


def test_metrics_equal_their_definitions(fresh):
    metrics = fresh.step(pack(SAMPLES, per_row=2, micro_batch_rows=2))
    weights, base, config = tiny.weights(PARAMS), tiny.weights(BASE), tiny.config()
    log_ratio, to_base, entropy = [], [], []
    for s in SAMPLES:
        every = tiny.predictions(weights, config, s.context_ids, s.ids, s.temperature)
        own = every[np.arange(len(s.ids)), s.ids]
        log_ratio.extend(own - s.logprobs)
        to_base.extend(tiny.logprobs(base, config, s.context_ids, s.ids, s.temperature) - own)
        entropy.extend(-np.sum(np.exp(every) * every, axis=-1))
    log_ratio, to_base = np.array(log_ratio), np.array(to_base)
    expected = {
        "kl_k1": -to_base.mean(),
        "kl_k2": np.mean(to_base**2) / 2,
        "kl_k3": np.mean(np.exp(to_base) - 1 - to_base),
        "entropy": np.mean(entropy),
        "clip_fraction": np.mean(np.exp(log_ratio) > SETTINGS.clip_threshold),
        "ratio_max": np.exp(log_ratio).max(),
        "mismatch_k3": np.mean(np.exp(log_ratio) - 1 - log_ratio),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name


def test_nothing_is_compiled_after_the_first_step(fresh):
    for seed in range(4):
        fresh.step(pack(tiny.make_samples(seed), per_row=2, micro_batch_rows=2))
    assert fresh._train_step._cache_size() == 1


def test_a_gradient_that_is_not_finite_changes_nothing(fresh):
    batch = pack(SAMPLES, per_row=2, micro_batch_rows=2)
    fresh.step(batch)  # moments that are not zero
    before = host(fresh.state)
    behaviour = batch.behaviour.copy()
    behaviour[1, 0, 0] = np.nan
    metrics = fresh.step(batch._replace(behaviour=behaviour))
    assert metrics["nonfinite_steps"] == 1
    for old, new in zip(before, host(fresh.state), strict=True):
        np.testing.assert_array_equal(new, old)
    assert fresh.step(batch)["nonfinite_steps"] == 0
    assert int(fresh.state.step) == 2


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_changes_nothing_even_with_a_finite_gradient(loss):
    """Of two micro-batches, one: gradients accumulate, and so does what is wrong with the loss."""

    def share(params, _, offset):
        total = jnp.sum(params["x"]) + offset
        return total, {"loss": total}

    params = {"x": jnp.ones(3)}
    state = LearnerState(params, make_optimizer(SETTINGS).init(params), jnp.int32(0))
    for offsets, skipped in (([0.0, loss], 1), ([0.0, 1.0], 0)):
        moved, metrics = update(state, None, (jnp.array(offsets),), share, SETTINGS)
        assert metrics["nonfinite_steps"] == skipped and np.isfinite(metrics["grad_norm"])
        assert int(moved.step) == 1 - skipped
        assert np.array_equal(moved.params["x"], params["x"]) == bool(skipped)


def test_a_skipped_update_is_counted_among_those_of_its_step(fresh):
    batch = pack(SAMPLES, per_row=2, micro_batch_rows=2)
    spoilt = batch._replace(behaviour=np.full_like(batch.behaviour, np.nan))
    assert fresh.step(batch, spoilt, spoilt)["nonfinite_steps"] == 2
    assert int(fresh.state.step) == 1
    assert fresh.minibatches == (batch, spoilt, spoilt)


def test_extreme_ratios_stay_finite(fresh):
    batch = pack(SAMPLES, per_row=2, micro_batch_rows=2)
    metrics = fresh.step(batch._replace(behaviour=np.full_like(batch.behaviour, -1e5)))
    assert metrics["nonfinite_steps"] == 0 and np.isfinite(list(metrics.values())).all()


def test_warm_up_is_linear_then_constant():
    rate = learning_rate(SlowSettings(learning_rate=1.0, warmup_steps=4))
    assert [float(rate(i)) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert float(learning_rate(SlowSettings(learning_rate=1.0, warmup_steps=0))(0)) == 1.0


def several(**changed: object) -> SlowSettings:
    return dataclasses.replace(SETTINGS, learning_rate=1e-2, warmup_steps=1, **changed)


def parts_of(samples: list[Sample], settings: SlowSettings) -> list[Batch]:
    parts = split_problems(samples, settings.minibatches)
    aggregation = recipe(settings).aggregation
    return pack_together(parts, 2, 2, tiny.one_device(), 1, aggregation, longest=8)


def fresh_flops(batch: Batch) -> float:
    """Of one update: 8 · parameters · tokens."""
    parameters = sum(x.size for x in jax.tree.leaves(PARAMS))
    return 8.0 * parameters * np.count_nonzero(batch.segments)


def one_by_one(learner: Learner, start: tuple, batches: list[Batch]) -> list[dict[str, np.ndarray]]:
    """The learner's updates from `start` on, each batch as it stands; what each reports."""
    learner.restore(start)
    updates = []
    for batch in map(learner._place, batches):
        learner.state, metrics = learner._train_step(learner.state, learner.reference, batch)
        updates.append(jax.device_get(metrics))
    return updates


def copy_of(learner: Learner) -> tuple:
    """What a checkpoint holds, in buffers of its own."""
    return jax.tree.map(jnp.copy, learner.saved)


def test_two_epochs_of_two_minibatches_are_four_updates():
    """CISPO's ratio is to the sampler, whatever was updated before."""
    settings = several(minibatches=2, epochs=2)
    learner = make_learner(PARAMS, settings)
    samples = tiny.make_samples(problems=4)
    batches = parts_of(samples, settings)
    start = copy_of(learner)
    found = learner.step(*batches)
    reached = host(learner.state)
    updates = one_by_one(learner, start, batches * 2)
    assert int(learner.state.step) == 4
    jax.tree.map(np.testing.assert_array_equal, reached, host(learner.state))
    for name in ("loss", "grad_norm", "kl_k3", "entropy", "clip_fraction"):
        assert found[name] == pytest.approx(np.mean([u[name] for u in updates]), rel=1e-6), name
    assert found["ratio_max"] == max(u["ratio_max"] for u in updates)
    assert found["mismatch_k3"] == updates[0]["mismatch_k3"]
    assert found["flops"] == pytest.approx(2 * sum(fresh_flops(batch) for batch in batches))
    for seed in range(1, 4):
        learner.step(*parts_of(tiny.make_samples(seed, problems=4), settings))
    assert learner._train_step._cache_size() == 1


@pytest.mark.parametrize("objective", ["dapo", "gspo"])
def test_clipped_updates_are_against_the_weights_before_the_first(objective):
    settings = several(objective=objective, epochs=3, importance_cap=1.5)
    learner = make_learner(PARAMS, settings)
    (batch,) = parts_of(SAMPLES, settings)
    start = copy_of(learner)
    found = learner.step(batch)
    # By hand: the recorded log-probabilities replaced by those of the weights before, in float64,
    # and the mismatch in the weights.
    old, truncated = batch.behaviour.copy(), batch.policy_weight.copy()
    weights, gaps = tiny.weights(PARAMS), []
    for i, s in enumerate(SAMPLES):
        here = batch.sample == 1 + i
        old[here] = tiny.logprobs(weights, tiny.config(), s.context_ids, s.ids, s.temperature)
        gap = old[here] - s.logprobs
        gaps.extend(gap)
        truncated[here] *= np.minimum(np.exp(gap.mean() if objective == "gspo" else gap), 1.5)
    by_hand = batch._replace(behaviour=old, policy_weight=truncated)
    reached = host(learner.params)
    updates = one_by_one(learner, start, [by_hand] * 3)
    apart = [np.abs(x - y) for x, y in zip(reached, host(learner.params), strict=True)]
    assert np.mean(np.concatenate([x.ravel() for x in apart]) > 1e-4) < 0.02
    assert updates[0]["ratio_max"] == pytest.approx(1, abs=1e-3)
    assert updates[0]["clip_fraction"] == 0 and updates[2]["clip_fraction"] > 0.01
    for name in ("loss", "grad_norm", "kl_k3", "clip_fraction"):
        wanted = np.mean([update[name] for update in updates])
        assert found[name] == pytest.approx(wanted, rel=2e-3, abs=1e-4), name
    assert found["mismatch_k3"] == pytest.approx(np.mean(np.expm1(gaps) - gaps), rel=1e-3)
    assert found["flops"] == pytest.approx(26 / 8 * fresh_flops(batch))
    assert learner._train_step._cache_size() == learner._against_params._cache_size() == 1


def test_one_update_of_gspo_is_against_the_weights_of_now_and_the_kl_may_be_in_the_reward():
    """The sampler is further away than the clip range, and still every completion teaches."""
    learner = make_learner(PARAMS, several(objective="gspo", kl_placement="reward"))
    (batch,) = parts_of(SAMPLES, learner.settings)
    found = learner.step(batch)
    assert found["ratio_max"] == pytest.approx(1) and found["clip_fraction"] == 0
    assert found["mismatch_k3"] > 0.1 and found["grad_norm"] > 0
    found = learner.step(batch._replace(policy_weight=np.zeros_like(batch.policy_weight)))
    assert found["loss"] == 0 and found["grad_norm"] == 0 and found["kl_k3"] > 0


def test_k3_plus_has_the_loss_of_k3_and_the_gradient_of_k2():
    (batch,) = parts_of(SAMPLES, SETTINGS)
    found = {
        name: loss_and_gradient(batch, dataclasses.replace(SETTINGS, kl_estimator=name))
        for name in ("k2", "k3", "k3+")
    }
    assert found["k3+"][0] == pytest.approx(found["k3"][0], rel=1e-5)
    assert found["k3"][0] != pytest.approx(found["k2"][0], rel=1e-3)
    assert_same((0.0, found["k3+"][1]), (0.0, found["k2"][1]))


@pytest.mark.parametrize("place", ["copy", "offload"])
def test_a_refreshed_reference_is_kept_and_comes_back(place, tmp_path):
    learner = make_learner(PARAMS, several(reference_refresh=2, reference=place))
    (batch,) = parts_of(SAMPLES, learner.settings)
    base = learner.reference
    assert learner.step(batch)["kl_k2"] > 1e-3
    before = host(learner.params)
    learner.refresh_reference()
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep=1))
    checkpoints.save(1, learner.saved, {})
    checkpoints.wait()
    assert learner.step(batch)["kl_k2"] == pytest.approx(0, abs=1e-9)
    jax.tree.map(np.testing.assert_array_equal, host(base), host(BASE))  # drift's, still there
    after = host(learner.state)
    tiny.restore_newest(learner, checkpoints)
    jax.tree.map(np.testing.assert_array_equal, host(learner.reference), before)
    jax.tree.map(np.testing.assert_array_equal, host(learner.params), before)
    learner.step(batch)
    jax.tree.map(np.testing.assert_array_equal, host(learner.state), after)
    assert learner._train_step._cache_size() == 1


def test_a_reference_that_stays_the_base_is_not_saved(fresh):
    assert len(fresh.saved) == len(LearnerState._fields)


CONTEXTS = [(5, 9, 2), (7, 1, 30, 31)]
G = 12  # with 4 in a row, the shapes of SAMPLES two in a row


def sampled(engine: LocalEngine, seed: int) -> list[list[Completion]]:
    return engine.generate(
        [
            Request(context, n=G, max_new_tokens=6, seed=1000 * seed + p)
            for p, context in enumerate(CONTEXTS)
        ]
    )


def labelled(groups: list[list[Completion]], rewards: np.ndarray) -> Batch:
    problem = np.repeat(np.arange(len(CONTEXTS)), G)
    advantages, valid = group_advantages(rewards.ravel(), problem)
    completions = [c for group in groups for c in group]
    samples = [
        Sample(CONTEXTS[p], c.ids, c.logprobs, c.temperature, int(p), float(advantage), bool(v))
        for p, c, advantage, v in zip(problem, completions, advantages, valid, strict=True)
    ]
    return pack(samples, per_row=4, micro_batch_rows=2)


@pytest.fixture(scope="module")
def unregularized() -> Learner:
    settings = dataclasses.replace(
        SETTINGS, kl_coefficient=0.0, clip_threshold=4.0, learning_rate=1e-2, warmup_steps=1
    )
    return make_learner(PARAMS, settings)


def test_without_signal_the_weights_do_not_move(unregularized):
    batch = pack(SAMPLES, per_row=2, micro_batch_rows=2)
    before = jax.tree.map(np.array, unregularized.params)
    for silent in (
        batch._replace(advantage=np.zeros_like(batch.advantage)),
        batch._replace(policy_weight=np.zeros_like(batch.policy_weight)),
    ):
        metrics = unregularized.step(silent)
        assert metrics["grad_norm"] == 0 and metrics["loss"] == 0 and metrics["kl_k2"] > 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(unregularized.params), before)


def test_rewards_rise_with_the_engine_in_the_loop(unregularized):
    """A bandit: the reward is the share of even tokens above 40."""
    learner = unregularized
    engine = LocalEngine(nnx.merge(GRAPHDEF, learner.params), learner.mesh, batch_size=2 * G)
    means = []
    for step in range(15):
        groups = sampled(engine, step)
        assert all(c.weight_version == step for group in groups for c in group)
        rewards = np.array(
            [[np.mean((c.ids > 40) & (c.ids % 2 == 0)) for c in group] for group in groups]
        )
        means.append(rewards.mean())
        metrics = learner.step(labelled(groups, rewards))
        # The engine sampled from the very weights that the learner was at.
        assert metrics["ratio_max"] == pytest.approx(1, abs=1e-3)
        assert metrics["mismatch_k3"] < 1e-6
        engine.update_weights(learner.params, version=step + 1)
    assert np.mean(means[-3:]) > np.mean(means[:3]) + 0.3, means
    exact = tiny.weights(learner.params)
    for context, group in zip(CONTEXTS, sampled(engine, 99), strict=True):
        for c in group:
            logprobs = tiny.logprobs(exact, tiny.config(), context, c.ids)
            np.testing.assert_allclose(c.logprobs, logprobs, atol=2e-4)


def test_without_reward_the_regularizer_returns_to_the_base(fresh):
    engine = LocalEngine(nnx.merge(GRAPHDEF, fresh.params), fresh.mesh, batch_size=2 * G)
    nothing = np.zeros((len(CONTEXTS), G))
    held_out = labelled(sampled(engine, 99), nothing)
    before = drifted(fresh, held_out)
    for step in range(40):
        batch = labelled(sampled(engine, step), nothing)
        assert not batch.policy_weight.any()
        metrics = fresh.step(batch)
        assert metrics["loss"] > 0
        engine.update_weights(fresh.params, version=step + 1)
    assert before > 0.02
    assert drifted(fresh, held_out) < 0.5 * before
    assert fresh._train_step._cache_size() == 1


def test_bfloat16_samples_and_steps():
    graphdef, base = nnx.split(tiny.model(dtype="bfloat16"))
    own = nnx.merge(graphdef, jax.tree.map(jnp.copy, base))
    learner = Learner(own, SETTINGS, tiny.one_device())
    engine = LocalEngine(tiny.model(dtype="bfloat16"), learner.mesh, batch_size=2 * G)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(engine.batcher.params))
    rewards = np.random.default_rng(0).random((len(CONTEXTS), G))
    metrics = learner.step(labelled(sampled(engine, 0), rewards))
    assert metrics["nonfinite_steps"] == 0 and np.isfinite(list(metrics.values())).all()
    assert np.sqrt(2 * metrics["mismatch_k3"]) < 0.05  # k3 is δ²/2 for a small gap δ
    assert metrics["grad_norm"] > 0
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(learner.params))


def test_a_reference_that_reads_what_theta_reads_changes_nothing():
    same = [dataclasses.replace(s, frozen_ids=s.context_ids) for s in SAMPLES]
    pairs = pack_pairs([same], 2, 2, tiny.one_device(), "problem", 8)
    found, wanted = make_learner(PARAMS, SETTINGS), make_learner(PARAMS, SETTINGS)
    metrics, expected = found.step(*pairs), wanted.step(pack(SAMPLES, 2, 2))
    for name in expected.keys() - {"flops"}:
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-7), name
    pairs = zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True)
    for own, other in pairs:
        np.testing.assert_allclose(own, other, atol=1e-5)


@pytest.mark.parametrize("objective", ["cispo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_a_reference_may_read_another_context(objective):
    """KL to it by NumPy; policy term, entropy and mismatch are as they were."""
    settings = dataclasses.replace(
        SETTINGS, objective=objective, epochs=1 if objective == "cispo" else 2, learning_rate=0.0
    )
    shorter = [dataclasses.replace(s, frozen_ids=s.context_ids[1:] or (1,)) for s in SAMPLES]
    (pair,) = pack_pairs([shorter], 2, 2, tiny.one_device(), "problem", 8)
    found = make_learner(PARAMS, settings)
    metrics, expected = found.step(pair), make_learner(PARAMS, settings).step(pack(SAMPLES, 2, 2))
    for name in ("entropy", "mismatch_k3", "ratio_max", "clip_fraction"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6)
    ours, theirs, config = tiny.weights(PARAMS), tiny.weights(BASE), tiny.config()
    gaps = np.concatenate([
        tiny.logprobs(ours, config, s.context_ids, s.ids, s.temperature)
        - tiny.logprobs(theirs, config, s.frozen_ids, s.ids, s.temperature)
        for s in shorter
    ])  # fmt: skip
    assert metrics["kl_k1"] == pytest.approx(gaps.mean(), abs=1e-4)
    assert metrics["kl_k2"] == pytest.approx((gaps**2 / 2).mean(), rel=1e-3)
    assert metrics["kl_k2"] != pytest.approx(expected["kl_k2"], rel=0.01)
    ratios = found.log_ratios(pair)
    sums = np.split(gaps, np.cumsum([len(s.ids) for s in shorter])[:-1])
    np.testing.assert_allclose(ratios, [x.sum() for x in sums], atol=1e-3)
