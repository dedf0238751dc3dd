"""Compiled programs as XLA prints them, parsed as far as counting their work needs.

A program is a set of computations; an instruction may call others (fusions, loop bodies,
branches).  `trips` reads off how often a loop runs: XLA's own cost analysis counts its body once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LEFT = re.compile(r"(ROOT )?%?([\w.\-]+) = ")
_LEAF = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_PASSED_ON = ("copy", "convert", "bitcast", "reshape", "copy-done")
_DEVICE_MEMORY = 0  # as XLA numbers memory spaces; others are on the chip, or the host's


@dataclass(frozen=True)
class Shape:
    """One array: an element of a tuple, or what an instruction gives."""

    dtype: str
    dims: tuple[int, ...]
    space: int = _DEVICE_MEMORY

    @property
    def elements(self) -> int:
        count = 1
        for size in self.dims:
            count *= size
        return count

    @property
    def bytes(self) -> float:
        if self.dtype == "pred":
            return float(self.elements)
        bits = re.search(r"\d+", self.dtype)  # bf16, f8e4m3fn, s32; tokens have none
        return self.elements * int(bits[0]) / 8 if bits else 0.0

    @property
    def device_bytes(self) -> float:
        """Bytes in the device's main memory."""
        return self.bytes if self.space == _DEVICE_MEMORY else 0.0


@dataclass(frozen=True)
class Instruction:
    name: str
    shapes: tuple[Shape, ...]  # the leaves of its result
    opcode: str
    operands: tuple[str, ...]
    literal: str  # what stands in its brackets: a constant's value, a parameter's number
    attributes: str

    def attribute(self, name: str) -> str | None:
        """The value of `name=…` up to the next comma or blank."""
        found = re.search(rf"\b{name}=([^\s,]+)", self.attributes)
        return found[1] if found else None

    def sizes(self, name: str) -> list[int]:
        """The numbers of `name={…}`."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return [int(size) for size in found[1].split(",") if size] if found else []

    def called(self, *roles: str) -> list[str]:
        """The computations that it names as `role=%name` or `role={%name, …}`."""
        names: list[str] = []
        for role in roles:
            for one, several in re.findall(
                rf"\b{role}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.attributes
            ):
                names += [one] if one else _NAME.findall(several)
        return names


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    @cached_property
    def parameters(self) -> dict[int, str]:
        """The name of each parameter by its number."""
        return {int(x.literal): x.name for x in self if x.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each value."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self:
            for operand in set(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]


@dataclass
class Program:
    computations: dict[str, Computation]
    entry: str

    def __getitem__(self, name: str) -> Computation:
        return self.computations[name]


def parse(text: str) -> Program:
    """The program of `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: no entry computation.
    """
    computations: dict[str, Computation] = {}
    current, entry = None, None
    for line in _whole_lines(text):
        if header := _HEADER.match(line):
            current = computations[header[2]] = Computation(header[2])
            entry = header[2] if header[1] else entry
        elif current and (left := _LEFT.match(line.lstrip())):
            instruction = _instruction(left[2], line.lstrip()[left.end() :])
            current.instructions[instruction.name] = instruction
            if left[1]:
                current.root = instruction.name
    if entry is None:
        raise ValueError("no entry computation in the text of this program")
    return Program(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """The lines of a program; attributes that are written over several become one line."""
    whole = ""
    for line in text.splitlines():
        if line.startswith(("  ", "}", "%", "ENTRY")) and not line.startswith("}}"):
            yield whole
            whole = line
        else:
            whole += line
    yield whole


def _instruction(name: str, text: str) -> Instruction:
    """`type opcode(operands), attributes`."""
    cut = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shapes = tuple(_shape(leaf) for leaf in _LEAF.finditer(text[:cut]))
    rest = text[cut:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name, shapes, rest[:opening], tuple(_NAME.findall(inside)), inside, rest[closing + 1 :]
    )


def _shape(leaf: re.Match[str]) -> Shape:
    dims = tuple(int(size.removeprefix("<=")) for size in leaf[2].split(",") if size)
    space = _SPACE.search(leaf[3] or "")
    return Shape(leaf[1], dims, int(space[1]) if space else _DEVICE_MEMORY)


def _closing(text: str, opening: int) -> int:
    """The place of the bracket that closes the one at `opening`."""
    depth = 0
    for bracket in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return bracket.start()
    raise ValueError(f"brackets do not close in {text[:80]!r}")


def trips(program: Program, caller: Computation, loop: Instruction) -> int | None:
    """How often a `while` runs its body; None where that depends on data.

    XLA notes it on some platforms.  Elsewhere it follows from the loop's counter: where it starts,
    what is added to it, and what the condition compares it with.
    """
    if known := re.search(r"known_trip_count\D+(\d+)", loop.attributes):
        return int(known[1])
    condition = program[loop.called("condition")[0]]
    compared = _comparison(program, condition)
    if compared is None:
        return None
    element, bound, inclusive = compared
    start, step = _start(caller, loop, element), _step(program, loop, element)
    if start is None or step is None or step <= 0:
        return None
    return max(0, -(-(bound + inclusive - start) // step))


def _comparison(program: Program, condition: Computation) -> tuple[int, int, bool] | None:
    """(element of the carry, bound, whether the bound itself is included) of `carry[i] < bound`."""
    computation, root, outer = condition, condition[condition.root], None
    if root.opcode in ("fusion", "call"):
        outer = root
        computation = program[root.called("calls", "to_apply")[0]]
        root = computation[computation.root]
    direction = root.attribute("direction")
    if root.opcode != "compare" or direction not in ("LT", "LE", "GT", "GE"):
        return None

    def seen(name: str) -> tuple[int | None, int | None]:
        """(constant, element) that a value is."""
        within, instruction = computation, computation[name]
        while instruction.opcode in _PASSED_ON or instruction.opcode == "parameter":
            if instruction.opcode == "parameter":
                if outer is None or within is condition:
                    return None, None
                within, name = condition, outer.operands[int(instruction.literal)]
            else:
                name = instruction.operands[0]
            instruction = within[name]
        if instruction.opcode == "constant":
            return int(instruction.literal), None
        index = instruction.attribute("index")
        return None, int(index) if instruction.opcode == "get-tuple-element" and index else None

    (left, left_element), (right, right_element) = map(seen, root.operands)
    if left_element is not None and right is not None and direction in ("LT", "LE"):
        return left_element, right, direction == "LE"
    if right_element is not None and left is not None and direction in ("GT", "GE"):
        return right_element, left, direction == "GE"
    return None


def _start(caller: Computation, loop: Instruction, element: int) -> int | None:
    """The counter before the loop; 0, as `jax.lax.scan` has it, where the program hides it."""
    carry = caller[loop.operands[0]]
    if carry.opcode != "tuple":
        return 0
    value = caller[carry.operands[element]]
    while value.opcode in _PASSED_ON:
        value = caller[value.operands[0]]
    if value.opcode == "constant":
        return int(value.literal)
    return None if value.opcode in ("add", "subtract", "multiply") else 0


def _step(program: Program, loop: Instruction, element: int) -> int | None:
    """What a turn adds to the counter; 1 where a fusion hides it."""
    body = program[loop.called("body")[0]]
    root = body[body.root]
    if root.opcode != "tuple":
        return 1
    value = body[root.operands[element]]
    while value.opcode in _PASSED_ON:
        value = body[value.operands[0]]
    if value.opcode != "add":
        return 1
    constants = [body[name] for name in value.operands if body[name].opcode == "constant"]
    return int(constants[0].literal) if constants else None
