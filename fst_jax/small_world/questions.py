"""The three kinds of question, each with a good and a poor way to answer it.

    star_graph    `graph 7>3 12>7 12>44 44>9 . from 12 to 3`
                  good: back from the goal, where every node has one way to go:
                        `back 3 7 12 [ 12 7 3 ]`
                  poor: forward from the source along an arm that is as good as any other:
                        `path [ 12 44 9 ]`
    code_output   `x = 4 8 2 ; 1 reverse ; 2 rotate`
                  good: the list after every line: `1 reverse 2 8 4 ; 2 rotate 8 4 2 { 8 4 2 }`
                  poor: the answer at once: `so { 8 4 2 }`
    two_hop       `12 has 7 40 has 5 7 in 33 5 in 18 . where is 12`
                  good: the way there, over the thing: `via 12 7 33 ( 33 )`
                  poor: the place at once: `so ( 33 )`

The last part is the answer proper, here in the format that the task demands; see `wrap`.  What
comes first tells the strategy, so that strategy and format are learned apart from each other.
Tokens are separated by single spaces throughout.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

NUMBERS = 60  # nodes, people, things and places are the numbers below
DIGITS = 10  # lists hold digits

_BRACKETS = {"square": "[ {} ]", "round": "( {} )", "curly": "{{ {} }}", "plain": "answer : {}"}


@dataclass(frozen=True)
class Question:
    """A question, what is right, and how both strategies answer it."""

    text: str
    answer: str  # what a format is put around
    steps: str  # of the good strategy, before the answer
    guess: str  # the answer of the poor strategy, which takes no steps


@dataclass(frozen=True)
class Kind:
    """A kind of question: its strategies, and how hard its questions are."""

    good: str  # a strategy of `instructions.STRATEGIES`
    poor: str
    opening: str  # of a guess by the poor strategy
    format: str  # the answer format that the task demands
    draw: Callable[[np.random.Generator, tuple[int, int]], Question]
    usual: tuple[int, int]  # the shape of its problems, chosen so that the base has to learn
    hard: tuple[int, int]
    shapes: tuple[tuple[int, int], ...]  # of the first lessons; documents have the usual one too

    def takes_steps(self, before: str) -> bool:
        """Whether what a completion says before its answer are steps, right or wrong."""
        return before not in ("", self.opening)


def wrap(answer: str, format: str) -> str:
    """The answer in one of the formats."""
    return _BRACKETS[format].format(answer)


def star_graph(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    """`shape` = (arms d, nodes of a path p, source and goal included)."""
    degree, path_nodes = shape
    steps = path_nodes - 1
    source, *rest = rng.choice(NUMBERS, degree * steps + 1, replace=False).tolist()
    arms = [[source, *rest[a * steps : (a + 1) * steps]] for a in range(degree)]
    edges = [edge for arm in arms for edge in zip(arm, arm[1:], strict=False)]
    listed = " ".join(f"{edges[i][0]} > {edges[i][1]}" for i in rng.permutation(len(edges)))
    path = arms[0]
    return Question(
        text=f"graph {listed} . from {source} to {path[-1]}",
        answer=_join(path),
        steps=f"back {_join(path[::-1])}",
        guess=_join(arms[rng.integers(degree)]),
    )


_OPERATIONS: Mapping[str, Callable[[list[int]], list[int]]] = {
    "reverse": lambda x: x[::-1],
    "rotate": lambda x: [*x[1:], x[0]],
    "swap": lambda x: [x[1], x[0], *x[2:]],
    "shift": lambda x: [x[-1], *x[:-1]],
    "ends": lambda x: [x[-1], *x[1:-1], x[0]],
}


def code_output(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    """`shape` = (digits in the list, lines of code)."""
    size, lines = shape
    x = rng.choice(DIGITS, size, replace=False).tolist()
    start, code, trace = _join(x), [], []
    for number in range(1, lines + 1):
        name = str(rng.choice(list(_OPERATIONS)))
        x = _OPERATIONS[name](x)
        code.append(f"{number} {name}")
        trace.append(f"{number} {name} {_join(x)}")
    return Question(
        text=f"x = {start} ; {' ; '.join(code)}",
        answer=_join(x),
        steps=" ; ".join(trace),
        guess=_join(x),
    )


def two_hop(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    """`shape` = (people with a thing, things that lie in a place, at least as many)."""
    people, things = shape
    drawn = rng.choice(NUMBERS, people + 2 * things, replace=False).tolist()
    names, owned, places = drawn[:people], drawn[people:][:things], drawn[people + things :]
    facts = [f"{name} has {thing}" for name, thing in zip(names, owned, strict=False)]
    facts += [f"{thing} in {place}" for thing, place in zip(owned, places, strict=True)]
    facts = [facts[i] for i in rng.permutation(len(facts))]
    asked = rng.integers(people)
    return Question(
        text=f"{' '.join(facts)} . where is {names[asked]}",
        answer=str(places[asked]),
        steps=f"via {names[asked]} {owned[asked]} {places[asked]}",
        guess=str(places[asked]),
    )


def _join(items: list[int]) -> str:
    return " ".join(map(str, items))


KINDS: Mapping[str, Kind] = {
    "star_graph": Kind(
        "back", "forward", "path", "square", star_graph, (4, 4), (5, 4),
        ((2, 3), (3, 3), (5, 3), (3, 4), (4, 4), (5, 4)),
    ),
    "code_output": Kind(
        "trace", "direct", "so", "curly", code_output, (4, 3), (5, 3),
        ((4, 1), (6, 1), (4, 2), (5, 2), (3, 3), (4, 3)),
    ),
    "two_hop": Kind(
        "bridge", "direct", "so", "round", two_hop, (10, 10), (12, 12),
        ((2, 2), (3, 3), (3, 4), (4, 4), (5, 5)),
    ),
}  # fmt: skip
