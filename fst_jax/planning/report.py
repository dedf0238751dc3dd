"""What a plan says: memory by kind, FLOPs, bytes between chips, a roofline, and what to change.

A chip's time for a step is at least that of its products at peak speed, of its traffic at the
memory's bandwidth, and of the bytes that it sends over the links that the mesh axis has; at best
all three overlap, so the roofline is the longest of them (Williams et al. 2009, Roofline: an
insightful visual performance model).  Real steps take longer.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from fst_jax.parallel.chips import GIB, Chip, chip_of, links
from fst_jax.planning.cost import Cost, cost_of
from fst_jax.planning.flops import StepFlops
from fst_jax.planning.hlo import parse
from fst_jax.planning.programs import Compiled

KINDS = ("parameters", "optimizer", "reference", "activations", "temporaries", "batch", "sampler")


@dataclass(frozen=True)
class Roofline:
    """Seconds of one run of a program, at the least."""

    compute: float
    memory: float
    network: dict[tuple[str, ...], float]  # by mesh axes

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, sum(self.network.values()))

    @property
    def bound(self) -> str:
        """What takes that long."""
        times = {
            "products": self.compute,
            "memory": self.memory,
            "network": sum(self.network.values()),
        }
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class Planned:
    """A compiled program with its work, and all that lies in a chip's memory while it runs."""

    compiled: Compiled
    hbm: dict[str, int]  # bytes by kind of KINDS
    cost: Cost | None  # of one chip; None where the program was not compiled
    roofline: Roofline | None  # None where the chip's facts are not known

    @property
    def name(self) -> str:
        return self.compiled.lowered.name

    @property
    def peak(self) -> int:
        return sum(self.hbm.values())


def planned(
    compiled: Compiled, resident: dict[str, int], mesh: Mesh, density: float = 1.0
) -> Planned:
    """Count a program's work, and its memory beside what others keep there, `resident` by kind.

    A kind that is an argument of the program is not counted anew.
    """
    lowered = compiled.lowered
    own = lowered.arguments
    hbm = {kind: own.get(kind, resident.get(kind, 0)) for kind in KINDS}
    for kind, size in lowered.beside.items():
        hbm[kind] += size
    rest = compiled.peak - sum(lowered.arguments.values())
    hbm["activations"] = min(lowered.activations, rest)
    hbm["temporaries"] = rest - hbm["activations"]
    if compiled.text is None:
        return Planned(compiled, hbm, None, None)
    cost = cost_of(parse(compiled.text), mesh.shape, lowered.turns, density)
    return Planned(compiled, hbm, cost, roofline(cost, mesh))


def roofline(cost: Cost, mesh: Mesh) -> Roofline | None:
    """The least time of a program on the mesh's chips; None if their facts are not known."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    if chip is None or chip.bandwidth is None or chip.link is None:
        return None
    network = {
        axes: sent / (chip.link * _links(chip, mesh, axes)) for axes, sent in cost.sent.items()
    }
    return Roofline(cost.flops / chip.flops, cost.traffic / chip.bandwidth, network)


def _links(chip: Chip, mesh: Mesh, axes: tuple[str, ...]) -> int:
    devices = list(mesh.devices.flat)
    shape = [1 + max(device.coords[i] for device in devices) for i in range(3)]
    ring = mesh.devices[tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)]
    return max(1, links(chip, list(np.ravel(ring)), shape))


@dataclass(frozen=True)
class Report:
    """Everything that a plan found."""

    topology: str
    mesh: Mesh
    programs: list[Planned]  # the train step first, where there is one
    flops: StepFlops | None  # of a train step, by analysis
    advice: list[str]

    @property
    def step(self) -> Planned | None:
        return self.programs[0] if self.flops else None

    @property
    def largest(self) -> Planned:
        """The program while which most memory is taken."""
        return max(self.programs, key=lambda program: program.peak)

    @property
    def limit(self) -> int | None:
        return memory_limit(self.mesh)

    @property
    def fits(self) -> bool | None:
        """None where the limit is not known."""
        if any(program.compiled.text is None for program in self.programs):
            return False
        return None if self.limit is None else self.largest.peak <= self.limit

    @property
    def mfu_bound(self) -> float | None:
        """Share of the chips' peak that the step's useful FLOPs are, at the roofline."""
        chip = chip_of(self.mesh.devices.flat[0].device_kind)
        if not (self.flops and self.step and self.step.roofline and chip):
            return None
        return self.flops.model / (self.step.roofline.seconds * chip.flops * self.mesh.size)

    def to_json(self) -> str:
        """One JSON object; its keys are a contract."""
        step = self.step
        work = step.cost if step else None
        roof = step.roofline if step else None
        values: dict[str, Any] = {
            "topology": self.topology,
            "chips": self.mesh.size,
            "mesh": dict(self.mesh.shape),
            "fits": self.fits,
            "hbm_limit_bytes": self.limit,
            "hbm_peak_bytes": self.largest.peak,
            "hbm": self.largest.hbm,
            "flops_analytic": self.flops.executed if self.flops else None,
            "flops_compiled": work.flops * self.mesh.size if work else None,
            "flops_model": self.flops.model if self.flops else None,
            "collective_bytes": _joined(work.sent) if work else None,
            "step_seconds_roofline": roof.seconds if roof else None,
            "mfu_bound": self.mfu_bound,
            "compile_seconds": sum(program.compiled.seconds for program in self.programs),
            "programs": [_program_json(program) for program in self.programs],
            "advice": self.advice,
        }
        return json.dumps(values, indent=2)

    def to_text(self) -> str:
        """The same for a reader."""
        chips = f"{self.mesh.size} chips" if self.limit else f"{self.mesh.size} devices"
        lines = [f"{self.topology}: {chips} as {_named(dict(self.mesh.shape))}", ""]
        unit, name = (GIB, "GiB") if self.largest.peak >= GIB else (2**20, "MiB")
        lines += [
            f"memory of a chip in {name}" + (f", of {self.limit / unit:.2f}" if self.limit else ""),
            _row("", [program.name for program in self.programs]),
            *(_row(kind, [f"{x.hbm[kind] / unit:.2f}" for x in self.programs]) for kind in KINDS),
            _row("sum", [f"{program.peak / unit:.2f}" for program in self.programs]),
        ]
        lines += ["", *self._work(), "", *self._verdict()]
        return "\n".join(lines)

    def _work(self) -> list[str]:
        """FLOPs, bytes and times of the programs."""
        lines = [f"compiled in {sum(p.compiled.seconds for p in self.programs):.0f} s"]
        if self.flops and self.step and self.step.cost:
            compiled = self.step.cost.flops * self.mesh.size
            lines += [
                f"FLOPs of a step: {self.flops.executed:.4g} by analysis, {compiled:.4g} compiled "
                f"({compiled / self.flops.executed - 1:+.1%}); {self.flops.model:.4g} useful",
            ]
        for program in self.programs:
            if program.cost is None:
                lines.append(f"{program.name}: not compiled, for want of memory")
                continue
            turns = program.compiled.lowered.turns
            scale = f" of {turns} tokens a slot" if program.name == "decode" else ""
            sent = ", ".join(
                f"{axes} {size / 1e9:.4g}" for axes, size in _joined(program.cost.sent).items()
            )
            lines.append(
                f"{program.name}{scale}: a chip computes {program.cost.flops:.4g} FLOPs, moves "
                f"{program.cost.traffic / 1e9:.4g} GB of memory, sends GB: {sent or 'none'}"
            )
            if roof := program.roofline:
                network = sum(roof.network.values())
                lines.append(
                    f"  at least {roof.seconds:.4g} s, bound by {roof.bound}: products "
                    f"{roof.compute:.4g} s, memory {roof.memory:.4g} s, network {network:.4g} s"
                )
        if self.mfu_bound is not None:
            lines.append(f"MFU of the train step: at most {self.mfu_bound:.1%}")
        return lines

    def _verdict(self) -> list[str]:
        verdict = {
            True: "fits",
            False: "does not fit",
            None: "no memory limit is known for these devices",
        }[self.fits]
        if self.fits is False and self.limit:
            over = (self.largest.peak - self.limit) / GIB
            verdict += f": {self.largest.name} takes {over:.2f} GiB more than a chip has"
        return [verdict, *(f"  - {line}" for line in self.advice)]


def memory_limit(mesh: Mesh) -> int | None:
    """Bytes that a program may use on a chip of the mesh, if known."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    return chip.hbm if chip else None


def _program_json(program: Planned) -> dict[str, Any]:
    cost, roof = program.cost, program.roofline
    return {
        "name": program.name,
        "compiled": cost is not None,
        "compile_seconds": program.compiled.seconds,
        "hbm": program.hbm,
        "hbm_peak_bytes": program.peak,
        "program_bytes": program.compiled.peak,
        "flops_per_chip": cost.flops if cost else None,
        "traffic_bytes_per_chip": cost.traffic if cost else None,
        "collective_bytes": _joined(cost.sent) if cost else None,
        "loops_of_unknown_length": cost.unknown_loops if cost else None,
        "counted_turns": program.compiled.lowered.turns,
        "seconds": {
            "compute": roof.compute,
            "memory": roof.memory,
            "network": _joined(roof.network),
        }
        if roof
        else None,
    }


def _joined(by_axes: dict[tuple[str, ...], float]) -> dict[str, float]:
    return {"+".join(axes): value for axes, value in by_axes.items()}


def _named(sizes: dict[str, int]) -> str:
    return " × ".join(f"{size} {axis}" for axis, size in sizes.items())


def _row(name: str, cells: list[str]) -> str:
    return f"  {name:<14}" + "".join(f"{cell:>12}" for cell in cells)
