"""Questions against solvers that know nothing of how they were drawn."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_jax.small_world.questions import KINDS, code_output, star_graph, two_hop

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 6), st.integers(2, 5))
def test_star_graph_has_one_path_and_the_steps_walk_it_back(seed, degree, nodes):
    question = star_graph(np.random.default_rng(seed), (degree, nodes))
    tokens = question.text.split()
    edges = [(tokens[i - 1], tokens[i + 1]) for i, token in enumerate(tokens) if token == ">"]
    source, goal = tokens[-3], tokens[-1]
    before = {v: u for u, v in edges}
    path = [goal]
    while path[-1] != source:
        path.append(before[path[-1]])
    assert len(edges) == degree * (nodes - 1)
    assert question.answer == " ".join(path[::-1])
    assert question.steps == "back " + " ".join(path)
    guess = question.guess.split()
    assert guess[0] == source and len(guess) == nodes
    assert all(edge in edges for edge in itertools.pairwise(guess))


@given(seeds, st.integers(2, 6), st.integers(1, 4))
def test_code_output_traces_every_line(seed, size, lines):
    question = code_output(np.random.default_rng(seed), (size, lines))
    start, *code = question.text.removeprefix("x = ").split(" ; ")
    x, trace = start.split(), []
    for line in code:
        number, name = line.split()
        if name == "reverse":
            x = list(reversed(x))
        elif name == "rotate":
            x = x[1:] + x[:1]
        elif name == "shift":
            x = x[-1:] + x[:-1]
        else:
            other = {"swap": 1, "ends": -1}[name]
            x[0], x[other] = x[other], x[0]
        trace.append(f"{number} {name} {' '.join(x)}")
    assert question.steps == " ; ".join(trace)
    assert question.answer == question.guess == " ".join(x)


@given(seeds, st.integers(1, 6))
def test_two_hop_names_the_thing(seed, people):
    question = two_hop(np.random.default_rng(seed), (people, people))
    facts, asked = question.text.split(" . where is ")
    tokens = facts.split()
    triples = [tuple(tokens[i : i + 3]) for i in range(0, len(tokens), 3)]
    owned = {name: thing for name, verb, thing in triples if verb == "has"}
    lies = {thing: place for thing, verb, place in triples if verb == "in"}
    assert question.answer == lies[owned[asked]]
    assert question.steps == f"via {asked} {owned[asked]} {lies[owned[asked]]}"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_hard_problems_are_longer_than_usual_ones_and_than_most_of_the_corpus(kind):
    def tokens(shape):
        return len(kind.draw(np.random.default_rng(0), shape).text.split())

    lengths = sorted(tokens(shape) for shape in kind.shapes)
    assert tokens(kind.hard) > tokens(kind.usual) >= lengths[len(lengths) // 2]
    assert tokens(kind.hard) >= lengths[-1]
