"""The code in the project's documents: fenced blocks by language, and commands, a line each."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.processes import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
DOCUMENTS = [*PAGES, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SHELL = ("bash", "sh", "shell")
# How an indented block begins that holds commands, and no formula or what a command prints.
_COMMAND = re.compile(
    r"([A-Z_]+=\S+ )*(\.venv/bin/\w+|launch/\w+\.sh|curl|docker|fst|gcloud|git|make|pip|python3?"
    r"|srun|tfds|watch|xpk) "
)


@dataclass(frozen=True)
class Block:
    """Code of one document."""

    document: str
    line: int  # of its first line, from 1
    language: str  # "" for a block without one
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> Iterator[Block]:
    """Fenced blocks, and indented ones as those of the language "indented"."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = re.match(r"^( *)(```+|~~~+)(\w*)", lines[at])
        if fence:
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == fence[2])
            inner = [line.removeprefix(fence[1]) for line in lines[at + 1 : end]]
            yield Block(document, at + 2, fence[3], "\n".join(inner) + "\n")
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(line.removeprefix("    ") for line in lines[at:end])
            yield Block(document, at + 1, "indented", text.rstrip() + "\n")
            at = end
        else:
            at += 1


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """(where it stands, words) of each command of a block; comments are left out."""
    if block.language not in (*SHELL, "indented"):
        return
    if block.language == "indented" and not _COMMAND.match(block.text):
        return
    begun, waiting = block.line, ""
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        begun = begun if waiting else number
        waiting += line.removeprefix("$ ")
        if waiting.endswith("\\"):
            waiting = waiting[:-1]
            continue
        command, waiting = waiting.strip(), ""
        words: list[str] = []
        for word in [*shlex.split(command, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield f"{block.document}:{begun}", words
                words = []


def named_file(block: Block, suffix: str) -> str | None:
    """The name of the file that a block is said to be: the nearest `name.suffix` before it."""
    before = (ROOT / block.document).read_text(encoding="utf-8").splitlines()[: block.line - 2]
    found = re.findall(rf"`([\w-]+\.{suffix})`", "\n".join(before[-6:]))
    return found[-1] if found else None


def all_blocks() -> list[Block]:
    """Those of every document."""
    return [block for document in DOCUMENTS for block in blocks(document)]


def folder_of_examples(folder: Path) -> Path:
    """A folder with every file that some block is said to be, and the models."""
    if (ROOT / "models").exists():
        (folder / "models").symlink_to(ROOT / "models")
    for block in all_blocks():
        for language, suffix in (("python", "py"), ("yaml", "yaml"), ("json", "jsonl")):
            name = named_file(block, suffix) if block.language == language else None
            if name:
                (folder / name).write_text(block.text, encoding="utf-8")
    return folder
