"""The sentences that a system prompt of the small world is made of.

A sentence of a kind asks for a strategy (how to get to the answer) or for an answer format
(what stands around it); a remark asks for nothing.  Every kind has several wordings; those in
`HELD_OUT` never occur in the corpus of the base model, but each of their words does.
"""

from collections.abc import Mapping, Sequence

STRATEGIES = ("back", "forward", "trace", "bridge", "direct")
FORMATS = ("plain", "square", "round", "curly")

_IN_BRACKETS = (
    "put the answer in {} brackets .",
    "write the answer in {} brackets .",
    "use {} brackets .",
    "the answer goes in {} brackets .",
    "answer with {} brackets .",
    "place the answer between {} brackets .",
    "give the answer inside {} brackets .",
)
_IN_BRACKETS_HELD_OUT = (
    "place the answer in {} brackets .",
    "the answer goes between {} brackets .",
    "write it inside {} brackets .",
)


def _in_brackets(wordings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {
        shape: tuple(wording.format(shape) for wording in wordings)
        for shape in ("square", "round", "curly")
    }


TRAINED: Mapping[str, Sequence[str]] = {
    "back": (
        "work backwards from the goal .",
        "trace the path back from the goal first .",
        "begin at the goal and go backwards .",
        "first walk back from the goal to the start .",
        "go from the goal back to the start first .",
        "find the way back before the answer .",
        "start with the last node and step backwards .",
    ),
    "forward": (
        "walk forward from the start .",
        "follow the edges forward .",
        "go forward from the first node .",
        "begin at the start and follow the edges .",
        "step forward along the edges .",
        "start with the first node and follow the path .",
    ),
    "trace": (
        "trace every line before the answer .",
        "write the list after each line .",
        "run the code line by line .",
        "show the list after every step .",
        "go through the lines one by one first .",
        "first trace the code step by step .",
        "write down each line and its list .",
    ),
    "bridge": (
        "name the thing in between first .",
        "first say which thing it is .",
        "name the thing before the place .",
        "say what the person has first .",
        "first find the thing , then the place .",
        "begin with the thing in between .",
        "find out what the person has .",
    ),
    "direct": (
        "answer at once .",
        "give the answer directly .",
        "just answer , no steps .",
        "write only the answer .",
        "answer without any steps .",
        "skip all steps .",
    ),
    "plain": (
        "write the answer after a colon .",
        "use a colon .",
        "the answer goes after a colon .",
        "put a colon before the answer .",
        "give the answer with a colon .",
        "answer with a colon and no brackets .",
    ),
    **_in_brackets(_IN_BRACKETS),
    "remark": (
        "you are a helpful assistant .",
        "be polite .",
        "take your time .",
        "the user is a student .",
        "stay calm and friendly .",
        "this is a test .",
        "read the question with care .",
        "do your best .",
        "be precise .",
        "it is a nice day .",
        "the user likes puzzles .",
        "solve the problem .",
        "help the user .",
        "do the task .",
    ),
}

HELD_OUT: Mapping[str, Sequence[str]] = {
    "back": (
        "trace backwards from the goal first .",
        "begin with the last node and walk back to the start .",
        "first go back from the goal .",
    ),
    "forward": (
        "start at the first node and go forward .",
        "walk along the edges from the start .",
    ),
    "trace": (
        "first run every line one by one .",
        "write the list after every line .",
        "trace the code line by line before the answer .",
    ),
    "bridge": (
        "first name the thing in between .",
        "say the thing before the place .",
        "find what the person has first .",
    ),
    "direct": (
        "give only the answer .",
        "just write the answer at once .",
    ),
    "plain": (
        "write a colon before the answer .",
        "place the answer after a colon .",
    ),
    **_in_brackets(_IN_BRACKETS_HELD_OUT),
    "remark": (
        "be nice and friendly .",
        "the user is calm .",
        "read the task with care .",
    ),
}


def as_prompt(sentence: str) -> str:
    """A sentence as people write it: "Use a colon." for the tokens "use a colon ."."""
    text = sentence.replace(" .", ".").replace(" ,", ",")
    return text[:1].upper() + text[1:]


def wordings(kind: str) -> tuple[str, ...]:
    """All wordings of a kind, as people write them."""
    return tuple(as_prompt(sentence) for sentence in (*TRAINED[kind], *HELD_OUT[kind]))
