"""Messages that docs/troubleshooting.md quotes are those of the code."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text("utf-8")


def said() -> str:
    """Every text of the package, with … for what is put into it."""
    texts = []
    for path in (ROOT / "fst_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                texts.append("".join(map(str, parts)))
    return "\n\n".join(re.sub(r"[ \n]+", " ", text).replace("%s", "…") for text in texts)


def quoted() -> list[str]:
    return [
        " ".join(block.split()) for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    ]


def test_quoted_messages_are_those_of_the_code():
    texts = said()
    assert len(quoted()) >= 25
    for message in quoted():
        for part in (part.strip(" …:,()") for part in re.split("[…;]", message)):
            if len(part) > 3:
                assert part in texts, f"{part!r} of {message!r}"


def test_there_are_enough_of_them_and_each_says_what_to_do():
    symptoms = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    assert len(symptoms) >= 25
    for symptom in symptoms:
        title, _, rest = symptom.partition("\n")
        assert re.sub(r"```.*?```", "", rest, flags=re.DOTALL).strip(), title
