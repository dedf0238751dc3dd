r"""Star graph: find the one path from the centre of a star to the end of one arm.

The construction of the paper, for any (d, p, n): `degree` d arms leave the
source, each a chain; the gold arm leads to the goal and d−1 decoy arms of the
same length lead nowhere.  Nodes are drawn from 0 … n−1 without replacement, the
edges are shuffled and printed as `u,v` from source outwards.  The answer is the
comma-separated path, source and goal included, in `\boxed{}`; an exact match
earns 1, anything else 0 (spaces are ignored).

The paper leaves open whether p counts the source.  Here it does: a path has p
nodes from source to goal inclusive, so a graph has d·(p−1) + 1 nodes.  The paper's
own setting (25, 20, 500) decides it: 476 nodes fit below 500, the other reading
needs 501.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fst_jax.errors import TaskError
from fst_jax.tasks.advice import judged
from fst_jax.tasks.extract import after_thinking, last_boxed
from fst_jax.tasks.splits import Splits
from fst_jax.tasks.task import Message, Problem, Score, Split

Graph = dict[int, list[int]]  # node → the nodes its edges lead to

ADVICE = {
    "correct": (r"Keep putting only the comma-separated path inside \boxed{}.",),
    "no boxed answer": (
        r"Put only the comma-separated path inside \boxed{}.",
        r"End with the path inside \boxed{}, for example \boxed{4,8,15}.",
        r"Write the final path inside \boxed{} and nothing after it.",
    ),
    "not a path": (
        r"Inside \boxed{} write only node numbers separated by commas.",
        r"Write the path as plain numbers with commas between them, for example \boxed{4,8,15}.",
    ),
    "wrong start": (
        "Start the path with the source node.",
        "The first number of the path must be the source.",
    ),
    "repeated node": (
        "Never visit a node twice.",
        "List every node of the path once.",
    ),
    "wrong end": (
        "End the path with the goal node.",
        "The last number of the path must be the goal.",
    ),
    "not an edge": (
        "Take every step along an edge from the list: copy its two numbers exactly.",
        "Before writing a node, look up the edge that starts in the node before it.",
    ),
    "stopped early": (
        "Follow the edges until you reach the goal.",
        "Do not stop before the goal node is in the path.",
    ),
    "decoy arm": (
        "Work backwards from the goal: find the edge that ends in it, and repeat until you "
        "reach the source.",
        "Find the path from the goal back to the source first, then write it in reverse.",
    ),
}


class StarGraph:
    """The star graph task; see the module's first paragraph."""

    name = "star_graph"
    seed_prompt = r"Find the path and put it in \boxed{}, as numbers separated by commas."

    def __init__(
        self,
        degree: int = 25,
        path_nodes: int = 20,
        node_range: int = 500,
        train_size: int = 10_000,
        test_size: int = 200,
        seed: int = 0,
    ):
        """(degree, path_nodes, node_range) is the paper's (d, p, n) = (25, 20, 500)."""
        if degree < 1 or path_nodes < 2:
            raise TaskError(
                f"task star_graph: degree must be at least 1 and path_nodes at least 2, not "
                f"{degree} and {path_nodes}"
            )
        nodes = degree * (path_nodes - 1) + 1
        if nodes > node_range:
            raise TaskError(
                f"task star_graph: degree {degree} and path_nodes {path_nodes} need {nodes} "
                f"different nodes (degree·(path_nodes−1) + 1) but node_range is {node_range}: "
                "raise node_range, or lower degree or path_nodes"
            )
        if seed < 0:
            raise TaskError(f"task star_graph: seed must be at least 0, not {seed}")
        self.degree = degree
        self.path_nodes = path_nodes
        self.node_range = node_range
        self.seed = seed
        self._splits = Splits(self.name, self._draw, _graph_key, train_size, test_size)

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split, each made on demand."""
        return self._splits.problems(split)

    def render(self, problem: Problem) -> list[Message]:
        """One user message with the graph, the source and the goal."""
        return [{"role": "user", "content": problem.question}]

    def score(self, problem: Problem, text: str) -> Score:
        """1 for the gold path, else 0 and the first thing that went wrong."""
        category, detail = _judge(problem, last_boxed(after_thinking(text)))
        return judged(problem, float(category == "correct"), category, ADVICE, detail)

    def _draw(self, position: int) -> Problem:
        rng = np.random.default_rng([self.seed, position])
        steps = self.path_nodes - 1
        nodes = rng.choice(self.node_range, self.degree * steps + 1, replace=False).tolist()
        source, rest = nodes[0], nodes[1:]
        arms = [[source, *rest[a * steps : (a + 1) * steps]] for a in range(self.degree)]
        edges = [edge for arm in arms for edge in zip(arm, arm[1:], strict=False)]
        edges = [edges[i] for i in rng.permutation(len(edges))]
        path = arms[0]
        listed = " ".join(f"{u},{v}" for u, v in edges)
        return Problem(
            id=str(position),
            question=f"Edges: {listed}\nFind the path from {source} to {path[-1]}.",
            answer=",".join(map(str, path)),
            data={"edges": edges},
        )


def _graph_key(problem: Problem) -> tuple[str, frozenset[tuple[int, int]]]:
    """Two problems are one when they differ in the order of the edges alone."""
    return problem.answer, frozenset(problem.data["edges"])


def _judge(problem: Problem, boxed: str | None) -> tuple[str, str]:
    """(category, what went wrong in this answer)."""
    if boxed is None:
        return "no boxed answer", r"The answer has no complete \boxed{}."
    gold = [int(node) for node in problem.answer.split(",")]
    path = _read_path(boxed)
    if path is None:
        return "not a path", "The box does not hold numbers separated by commas."
    if path == gold:
        return "correct", "The path is right."
    if path[0] != gold[0]:
        return "wrong start", f"The path starts at {path[0]}, but the source is {gold[0]}."
    if len(set(path)) < len(path):
        repeated = Counter(path).most_common(1)[0][0]
        return "repeated node", f"Node {repeated} occurs more than once."
    graph: Graph = {}
    for u, v in problem.data["edges"]:
        graph.setdefault(u, []).append(v)
    for step, (u, v) in enumerate(zip(path, path[1:], strict=False), start=1):
        if v not in graph.get(u, []):
            detail = f"Step {step}: {u}→{v} is not an edge; {_ways(graph, u)}."
            if path[-1] == gold[-1]:
                return "not an edge", detail
            return "wrong end", f"The path ends at {path[-1]}, the goal is {gold[-1]}. {detail}"
    if path == gold[: len(path)]:
        return "stopped early", f"The path is right as far as {path[-1]}; {_ways(graph, path[-1])}."
    wrong = next(i for i, (a, b) in enumerate(zip(path, gold, strict=False)) if a != b)
    return (
        "decoy arm",
        f"Step {wrong}: {path[wrong - 1]}→{path[wrong]} leads into an arm that does not reach "
        f"the goal {gold[-1]}.",
    )


def _read_path(text: str) -> list[int] | None:
    """The nodes of "4,8,15", or None if it is anything else."""
    parts = [part.strip() for part in text.split(",")]
    if all(part.isascii() and part.isdigit() and len(part) <= 12 for part in parts):
        return [int(part) for part in parts]
    return None


def _ways(graph: Graph, node: int) -> str:
    ways = graph.get(node, [])
    if not ways:
        return f"no edge leaves {node}"
    listed = ", ".join(map(str, ways[:8])) + (", …" if len(ways) > 8 else "")
    return f"from {node} you can go to {listed}"
