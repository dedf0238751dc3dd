"""python -m fst_jax.plan: what a run will take on devices that are not here.

    python -m fst_jax.plan --config FILE --topology v5p:4x4x4
    python -m fst_jax.plan --config FILE --topology cpu:8 --json

Compiles the learner's train step and the sampler's programs ahead of time, for the largest shapes
that the config allows, and prints memory, FLOPs, bytes between chips and a roofline.  Nothing is
allocated and no weights are read: a folder with config.json will do for model.path.  TPU
topologies (v4, v5e, v5p, v6e; chips along each dimension) need the package libtpu (extra: tpu)
and no TPU; cpu:N is N virtual devices of this machine.
"""

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from fst_jax.settings import answer_help, command, load

FLAGS = {"json": "Print one JSON object instead of text."}
OPTIONS = {"topology": "Devices to compile for: v5p:4x4x4, v6e:8x8, …, or cpu:N."}
if __name__ == "__main__":  # before JAX is imported, which takes seconds
    answer_help("plan", __doc__ or "", FLAGS, OPTIONS)

import jax

from fst_jax.config import Config
from fst_jax.errors import ConfigError
from fst_jax.models.folder import resolve
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parts import architecture
from fst_jax.planning.advice import advise
from fst_jax.planning.flops import computed_pairs, step_flops
from fst_jax.planning.programs import (
    Model,
    compiled,
    full_batch,
    per_chip,
    sampler_programs,
    train_program,
)
from fst_jax.planning.report import Planned, Report, planned
from fst_jax.slow.packing import sides
from fst_jax.slow.policy import starting_shapes

TPUS = ("v4", "v5e", "v5p", "v6e")
# What libtpu otherwise asks a TPU machine's metadata server for.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-64",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing here takes a chip
}


def devices(topology: str) -> Sequence[Any]:
    """The devices of `kind:shape`, to compile for.  Must come before JAX's first use in a process.

    Raises:
      ConfigError: an unknown topology, or no libtpu to compile for it.
    """
    kind, _, shape = topology.partition(":")
    jax.config.update("jax_platforms", "cpu")  # this machine's accelerators are left alone
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
        jax.config.update("jax_num_cpu_devices", int(shape))
        return jax.devices()
    if kind not in TPUS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise ConfigError(
            f"--topology {topology}: must be cpu:N or one of {', '.join(TPUS)} with the chips "
            "along each dimension of the slice, as in v5p:4x4x4 or v6e:8x8"
        )
    from jax.experimental import topologies

    os.environ.update(_ENVIRONMENT)
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}  # one device a chip
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except (RuntimeError, ImportError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"--topology {topology}: libtpu cannot compile for it ({reason}); it comes with "
            "pip install 'fst_jax[tpu]', and some shapes do not exist"
        ) from error


def plan(config: Config, topology: str) -> Report:
    """Compile what the config would run on a topology, and count.

    Raises:
      UserError: the config or its model cannot run there.
    """
    # The seconds that compiling takes are a figure, and cached programs do not tell their memory.
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = make_mesh(config.parallel, devices(topology))
    model = Model.of(config, architecture(config, resolve(config.model.path, weights=False)), mesh)
    learner, own, flops, density = [], None, None, 1.0
    if config.slow.enabled:
        batch = full_batch(config, model.config.hidden_size, mesh)
        learner.append(train_program(config, model, batch, mesh))
        own = sides(batch).own
        pairs = computed_pairs(own, mesh)
        density = pairs / own.tokens.shape[2] ** 2
        adapters = starting_shapes(model.params, config.slow)[0] if config.slow.lora_rank else None
        distills = config.distill.enabled
        flops = step_flops(model.config, batch, config.model.remat, pairs, adapters, distills)
    sampler = sampler_programs(config, model, mesh) if config.rollout.engine == "local" else []

    # What each of the two keeps in memory while the other works; the engine's caches are gone then.
    state = learner[0].arguments if learner else {"parameters": per_chip(model.params)}
    state = {kind: size for kind, size in state.items() if kind != "batch"}
    copy = {"sampler": sum(x.beside["sampler"] for x in sampler if x.name == "rearrange")}
    programs: list[Planned] = []
    for each, resident in [*((x, copy) for x in learner), *((x, state) for x in sampler)]:
        print(f"compiling {each.name} for {topology}", file=sys.stderr, flush=True)
        done = compiled(each, mesh.devices.flat[0].platform)
        programs.append(planned(done, resident, mesh, density))
    advice = advise(config, model.config.vocab_size, own, mesh, programs)
    return Report(topology, mesh, programs, flops, advice)


def main(arguments: list[str]) -> None:
    """Print the report."""
    config, given = load(arguments, "plan", __doc__ or "", flags=FLAGS, options=OPTIONS)
    if "topology" not in given:
        raise ConfigError("--topology is needed: v5p:4x4x4, v6e:8x8, …, or cpu:N")
    if not config.slow.enabled and config.rollout.engine != "local":
        raise ConfigError(
            "slow.enabled is false and rollout.engine is sglang: such a run compiles nothing here"
        )
    report = plan(config, given["topology"])
    print(report.to_json() if "json" in given else report.to_text())


if __name__ == "__main__":
    sys.exit(command(main))
