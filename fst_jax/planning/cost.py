"""The work of a compiled program on one chip: FLOPs, memory traffic, bytes sent to other chips.

XLA's cost analysis counts the body of a loop once, however often it runs; here every instruction
counts as often as it is executed.  FLOPs are those of matrix products alone (`dot`,
`convolution`, and those of kernels), as in every account of model FLOPs; elementwise work is left
out.  Traffic is what instructions read from and write to the device's main memory,
each value once for each instruction that uses it; what stays inside a fusion or in the chip's own
memory is free.  A part that is sliced out of an array, or written into one, counts by its size.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from fst_jax.planning.collectives import bytes_sent, kind_of, participants
from fst_jax.planning.hlo import Computation, Instruction, Program, trips

_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "opt-barrier iota while conditional call".split()
)
_SLICES = ("dynamic-slice", "slice", "gather")
_SPLASH = re.compile(r"splash_\w+?_(fwd|dq|dkv)(?![a-z])")
# Forwards: scores and output.  Backwards, scores anew and the gradient of the weights, and with
# them that of the queries, or those of keys and values (Dao 2023, arXiv 2307.08691, alg. 2).
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_BRANCHES = ("branch_computations", "true_computation", "false_computation")


@dataclass
class Cost:
    """Of one chip."""

    flops: float = 0.0
    traffic: float = 0.0  # bytes to and from main memory
    sent: dict[tuple[str, ...], float] = field(default_factory=dict)  # bytes by mesh axes
    unknown_loops: int = 0  # whose number of turns depends on data

    def add(self, other: "Cost", times: float = 1.0) -> None:
        self.flops += times * other.flops
        self.traffic += times * other.traffic
        self.unknown_loops += other.unknown_loops
        for axes, size in other.sent.items():
            self.sent[axes] = self.sent.get(axes, 0.0) + times * size


def cost_of(
    program: Program, mesh: Mapping[str, int], unknown_trips: int = 1, density: float = 1.0
) -> Cost:
    """The cost of running the program once.

    `mesh` gives the axes by which bytes are told apart.  Loops whose number of turns depends on
    data count `unknown_trips` times; of the branches of a conditional, the dearest counts.
    `density` is the share of query-key pairs that a block-sparse attention kernel computes.
    """
    return _Counter(program, mesh, unknown_trips, density).of(program.entry, fused=False)


class _Counter:
    def __init__(
        self, program: Program, mesh: Mapping[str, int], unknown_trips: int, density: float
    ):
        self._program, self._mesh, self._unknown = program, dict(mesh), unknown_trips
        self._density = density
        self._known: dict[tuple[str, bool], Cost] = {}

    def of(self, name: str, fused: bool) -> Cost:
        """The cost of one call of a computation; within a fusion, nothing goes through memory."""
        if (name, fused) not in self._known:
            total, computation = Cost(), self._program[name]
            for instruction in computation:
                self._count(total, computation, instruction, fused)
            self._known[name, fused] = total
        return self._known[name, fused]

    def _count(
        self, total: Cost, computation: Computation, instruction: Instruction, fused: bool
    ) -> None:
        match instruction.opcode:
            case "while":
                turns = trips(self._program, computation, instruction)
                total.unknown_loops += turns is None
                for name in instruction.called("body"):
                    total.add(self.of(name, fused), self._unknown if turns is None else turns)
            case "conditional":
                costs = [self.of(name, fused) for name in instruction.called(*_BRANCHES)]
                total.add(max(costs, key=lambda cost: (cost.flops, cost.traffic)))
            case "fusion":
                for name in instruction.called("calls"):
                    total.add(self.of(name, fused=True))
            case "call" | "async-start":
                for name in instruction.called("calls", "to_apply"):
                    total.add(self.of(name, fused))
            case "dot":
                total.flops += _dot_flops(computation, instruction)
            case "convolution":
                total.flops += _convolution_flops(computation, instruction)
            case "custom-call":
                total.flops += self._density * _attention_flops(computation, instruction)
        if kind := kind_of(instruction.opcode):
            axes, group, share = participants(instruction, self._mesh)
            given = sum(_bytes(computation, name) for name in instruction.operands)
            if axes:
                size = share * bytes_sent(kind, given, group)
                total.sent[axes] = total.sent.get(axes, 0.0) + size
        if not fused and instruction.opcode not in _FREE and "-done" not in instruction.opcode:
            total.traffic += self._traffic(computation, instruction)

    def _traffic(self, computation: Computation, instruction: Instruction) -> float:
        """Bytes that an instruction moves between main memory and the chip."""
        operands = [computation[name] for name in instruction.operands]
        if instruction.opcode in _SLICES:
            return 2 * _device_bytes(instruction)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * _device_bytes(operands[1])
        if instruction.opcode.endswith("-start"):  # its result repeats what it reads
            return 2 * sum(map(_device_bytes, operands))
        if instruction.opcode != "fusion":
            return _device_bytes(instruction) + sum(map(_device_bytes, operands))
        inner = self._program[instruction.called("calls")[0]]
        read = sum(
            min(_device_bytes(operand), self._read(inner, i))
            for i, operand in enumerate(operands)
            if _device_bytes(operand)
        )
        return read + min(_device_bytes(instruction), self._written(inner))

    def _read(self, computation: Computation, parameter: int) -> float:
        """Bytes that a fused computation reads of a parameter: less than all where it slices."""
        name = computation.parameters[parameter]
        whole, total = _bytes(computation, name), 0.0
        for user in computation.users.get(name, []):
            if user.opcode in _SLICES and user.operands[0] == name:
                total += sum(shape.bytes for shape in user.shapes)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                pass  # written in place
            elif user.opcode == "fusion":
                inner = self._program[user.called("calls")[0]]
                places = [i for i, operand in enumerate(user.operands) if operand == name]
                total += sum(self._read(inner, i) for i in places)
            elif user.opcode in ("bitcast", "reshape") and len(computation.users[name]) == 1:
                return self._through(computation, user, whole)
            else:
                return whole
        return min(total, whole)

    @staticmethod
    def _through(computation: Computation, view: Instruction, whole: float) -> float:
        """The same for a parameter that is only looked at in another shape."""
        users = computation.users.get(view.name, [])
        if users and all(user.opcode in _SLICES for user in users):
            return min(whole, sum(shape.bytes for user in users for shape in user.shapes))
        updates = [user.opcode == "dynamic-update-slice" for user in users]
        return 0.0 if users and all(updates) else whole

    def _written(self, computation: Computation) -> float:
        """Bytes that a fused computation writes: the update alone where it updates in place."""
        root = computation[computation.root]
        leaves = [computation[x] for x in root.operands] if root.opcode == "tuple" else [root]
        total = 0.0
        for leaf in leaves:
            while leaf.opcode in ("bitcast", "reshape") and leaf.operands:
                leaf = computation[leaf.operands[0]]
            if leaf.opcode == "dynamic-update-slice":
                total += _bytes(computation, leaf.operands[1])
            elif leaf.opcode == "fusion":
                total += self._written(self._program[leaf.called("calls")[0]])
            else:
                total += sum(shape.bytes for shape in leaf.shapes)
        return total


def _bytes(computation: Computation, name: str) -> float:
    return sum(shape.bytes for shape in computation[name].shapes)


def _device_bytes(instruction: Instruction) -> float:
    return sum(shape.device_bytes for shape in instruction.shapes)


def _dot_flops(computation: Computation, dot: Instruction) -> float:
    left = computation[dot.operands[0]].shapes[0].dims
    contracted = np.prod([left[i] for i in dot.sizes("lhs_contracting_dims")])
    return 2.0 * dot.shapes[0].elements * float(contracted)


def _attention_flops(computation: Computation, kernel: Instruction) -> float:
    """Those of a splash attention kernel over all pairs of queries and keys; 0 for other kernels.

    The kernel says nothing of its work in the program.  Its operands are queries
    [(rows,) heads, tokens, size], then keys; of each pair of tokens it makes so many products.
    """
    found = _SPLASH.search(kernel.name)
    if found is None:
        return 0.0
    operands = [computation[name].shapes[0] for name in kernel.operands]
    query, key = [x for x in operands if x.dtype in ("bf16", "f32", "f16") and len(x.dims) >= 3][:2]
    return 2.0 * _SPLASH_PRODUCTS[found[1]] * query.elements * key.dims[-2]


def _convolution_flops(computation: Computation, convolution: Instruction) -> float:
    """Two for each product that is not with padding.

    The TPU's compiler writes matrix products as convolutions, some of them over windows that are
    mostly padding.
    """
    labels = convolution.attribute("dim_labels")
    assert labels is not None
    left_labels, right_labels, out_labels = re.split(r"_|->", labels)
    left, right = (computation[name].shapes[0].dims for name in convolution.operands[:2])
    out = convolution.shapes[0].dims
    window = re.search(r"window=\{([^}]*)\}", convolution.attributes)
    options = dict(part.split("=") for part in window[1].split()) if window else {}
    valid = 1
    for spatial in (label for label in left_labels if label.isdigit()):
        place = int(spatial)

        def option(name: str, default: str, place: int = place) -> str:
            return options[name].split("x")[place] if name in options else default

        valid *= _valid_pairs(
            left[left_labels.index(spatial)],
            right[right_labels.index(spatial)],
            out[out_labels.index(spatial)],
            int(option("stride", "1")),
            int(option("pad", "0_0").split("_")[0]),
            int(option("lhs_dilate", "1")),
            int(option("rhs_dilate", "1")),
        )
    batch = left[left_labels.index("b")] // int(convolution.attribute("batch_group_count") or 1)
    features = out[out_labels.index("f")]
    return 2.0 * valid * batch * features * right[right_labels.index("i")]


@cache
def _valid_pairs(
    inputs: int, window: int, outputs: int, stride: int, pad: int, dilate: int, spread: int
) -> int:
    """Pairs of an output and a place of the window that meet an input, along one dimension."""
    starts = np.arange(outputs) * stride - pad
    total = 0
    for place in range(window):
        met = starts + place * spread
        within = (met >= 0) & (met < (inputs - 1) * dilate + 1) & (met % dilate == 0)
        total += int(np.count_nonzero(within))
    return total
