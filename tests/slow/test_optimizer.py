"""Optimisers against NumPy, what their state takes, and how it is split."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fst_jax.config import ParallelSettings, SlowSettings
from fst_jax.models.config import ModelConfig
from fst_jax.models.decoder import abstract_params
from fst_jax.models.lora import starting_adapters
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import path_of, shardings
from fst_jax.slow.optimizer import make_optimizer
from tests.helpers import tiny_config

SETTINGS = SlowSettings(learning_rate=1e-2, warmup_steps=2, weight_decay=0.1, max_grad_norm=1e9)
# Wide enough for Adafactor to factor its matrices, each layer's by itself.
CONFIG = ModelConfig.from_hf(tiny_config("qwen3", vocab_size=260, hidden=160, layers=2))


def optimizer_of(name: str):
    return make_optimizer(dataclasses.replace(SETTINGS, optimizer=name))


def run(name: str, params: dict, gradients: list[dict]) -> dict:
    optimizer = optimizer_of(name)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.fixture(scope="module")
def problem() -> tuple[dict, list[dict]]:
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 130, 140), "bias": (3, 7)}

    def draw(scale: float) -> dict:
        return {k: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}

    return draw(1.0), [draw(0.3) for _ in range(4)]


def test_adafactor_is_its_paper(problem):
    params, gradients = problem
    exact = {name: np.asarray(x, np.float64) for name, x in params.items()}
    rows = columns = full = 0.0
    for t, gradient in enumerate(gradients, start=1):
        decay = 1 - t**-0.8
        square = {name: np.asarray(g, np.float64) ** 2 + 1e-30 for name, g in gradient.items()}
        rows = decay * rows + (1 - decay) * square["kernel"].mean(2)  # of each layer
        columns = decay * columns + (1 - decay) * square["kernel"].mean(1)
        full = decay * full + (1 - decay) * square["bias"]
        second = {
            "kernel": rows[:, :, None] * columns[:, None] / rows.mean(1)[:, None, None],
            "bias": full,
        }
        rate = SETTINGS.learning_rate * min(1, t / 2)
        for name, g in gradient.items():
            update = np.asarray(g, np.float64) / np.sqrt(second[name])
            update /= max(1.0, np.sqrt(np.mean(update**2)))
            exact[name] = exact[name] - rate * (update + SETTINGS.weight_decay * exact[name])
    found = run("adafactor", params, gradients)
    for name, wanted in exact.items():
        assert np.abs(wanted - np.asarray(params[name])).max() > 1e-2
        np.testing.assert_allclose(found[name], wanted, atol=2e-6)


def test_a_first_moment_in_bfloat16_changes_little(problem):
    params, gradients = problem
    exact, low = (run(name, params, gradients) for name in ("adamw", "adamw_bfloat16"))
    for name, start in params.items():
        step, gap = np.abs(exact[name] - start), np.abs(exact[name] - low[name])
        assert 0 < gap.max() and gap.mean() < 0.01 * step.mean()


def leaves(tree: object) -> dict[str, jax.ShapeDtypeStruct]:
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("adamw", 8.0, 8.0), ("adamw_bfloat16", 6.0, 6.0), ("adafactor", 0.0, 0.5)],
)
def test_bytes_per_parameter(name, least, most):
    params = abstract_params(dataclasses.replace(CONFIG, hidden_size=512, intermediate_size=1024))
    state = jax.eval_shape(optimizer_of(name).init, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / count
    assert least <= held <= most + 1e-3


def factored_states_are_split() -> None:
    mesh = make_mesh(ParallelSettings(mesh={"fsdp": 4, "tensor": 2}))
    params = abstract_params(CONFIG)
    for name in ("adamw_bfloat16", "adafactor"):
        state = jax.eval_shape(optimizer_of(name).init, params)
        placed = leaves(shardings(state, mesh))  # every leaf has a rule, or this raises
        assert len(placed) == len(leaves(state))
        gate = {path: s.spec for path, s in placed.items() if path.endswith("mlp/gate/kernel")}
        down = {path: s.spec for path, s in placed.items() if path.endswith("norm/scale")}
        assert gate and down
        if name == "adamw_bfloat16":
            assert {tuple(spec) for spec in gate.values()} == {(None, "fsdp", "tensor")}
        small = [x for path, x in leaves(state).items() if "v_row" in path or "v_col" in path]
        assert sum(x.size for x in small) < 0.03 * sum(x.size for x in jax.tree.leaves(params))


def test_every_state_has_a_sharding(on_devices):
    on_devices(factored_states_are_split)


def test_factored_states_of_wide_adapters_have_a_sharding():
    params = abstract_params(CONFIG)
    adapters = jax.eval_shape(lambda p: starting_adapters(p, "", 128, jax.random.key(0)), params)
    state = jax.eval_shape(optimizer_of("adafactor").init, adapters)
    factored = [path for path, x in leaves(state).items() if "v_row" in path and x.size > 1]
    assert {path[-1] for path in factored} == {"a", "b"}
    mesh = make_mesh(ParallelSettings(), jax.devices()[:1])
    assert len(leaves(shardings(state, mesh))) == len(leaves(state))


def test_unfactored_second_moments_are_split_as_their_parameters():
    narrow = dataclasses.replace(CONFIG, hidden_size=64)
    state = leaves(jax.eval_shape(optimizer_of("adafactor").init, abstract_params(narrow)))
    path = next(path for path in state if path.endswith("/v/layers/mlp/gate/kernel"))
    assert state[path].shape == (2, 64, CONFIG.intermediate_size)
    mesh = make_mesh(ParallelSettings(), jax.devices()[:1])
    shape = nnx.eval_shape(lambda: jnp.zeros(state[path].shape))
    assert shardings({path: shape}, mesh)[path].spec == jax.sharding.PartitionSpec(
        None, "fsdp", "tensor"
    )
