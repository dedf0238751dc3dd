"""python -m fst_jax.tasks: try a task, or prepare the data of one.

    python -m fst_jax.tasks check my_task.py              a task of your own, in one file
    python -m fst_jax.tasks check my_task.yaml            the task of a config
    python -m fst_jax.tasks check data.jsonl --task.options.scorer number
    python -m fst_jax.tasks check star_graph --task.options '{degree: 3, path_nodes: 4}'
    python -m fst_jax.tasks hover --train FILE --test FILE --pages DUMP --output FOLDER
    python -m fst_jax.tasks hover-sample --output FOLDER

`check` renders a problem, scores sample answers and shows their feedback, times the scorer, and
ends with exit code 1 when there is something to mend; its further arguments are settings, as those
of `fst_jax.train`.  `hover` makes the folder of the task hover from HoVer's JSON and a dump of page
abstracts; `hover-sample` does it for a small invented encyclopedia.
"""

import argparse
import ast
import os
import sys
import tempfile
from pathlib import Path

from fst_jax.errors import TaskError
from fst_jax.settings import command, load
from fst_jax.tasks.check import check, shown
from fst_jax.tasks.registry import BUILT_IN, load_task


def main(arguments: list[str]) -> int:
    """The command."""
    if arguments[:1] == ["check"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        return _check(arguments[1], arguments[2:])
    options = _parse(arguments)
    if options.command == "hover":
        claims = {"train": options.train, **({"test": options.test} if options.test else {})}
        _import(claims, options.pages, options.output, options.min_hops)
    else:
        from fst_jax.tasks.hover_sample import write_sample

        with tempfile.TemporaryDirectory() as raw:
            write_sample(raw, seed=options.seed)
            claims = {split: f"{raw}/{split}.json" for split in ("train", "test")}
            _import(claims, f"{raw}/pages.jsonl", options.output, options.min_hops)
    return 0


def _check(target: str, settings: list[str]) -> int:
    if target.endswith((".yaml", ".yml")):
        named, one_file = ["--config", target], False
    else:
        named, one_file = _named(target)
    config, _ = load([*named, *settings], "tasks check", __doc__ or "", default_config=os.devnull)
    report = check(load_task(config.task), disjoint=not one_file)
    print(shown(report))
    return int(bool(report.findings))


def _named(target: str) -> tuple[list[str], bool]:
    """The settings that name a task, and whether one file is both of its splits."""
    if target.endswith(".jsonl"):
        paths = [f"--task.options.{split}_path={target}" for split in ("train", "test")]
        return ["--task.name=jsonl", *paths], True
    if target.endswith(".py"):
        return [f"--task.entry_point={target}:{_class_in(Path(target))}"], False
    if ":" in target:
        return [f"--task.entry_point={target}"], False
    if target not in BUILT_IN and Path(f"{target}.py").is_file():
        return _named(f"{target}.py")
    return [f"--task.name={target}"], False


def _class_in(path: Path) -> str:
    """The one class of a file that has a task's methods."""
    try:
        parsed = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        raise TaskError(f"{path} is not valid Python: {error}") from error
    found = []
    for node in parsed.body:
        if isinstance(node, ast.ClassDef):
            methods = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
            if {"problems", "render", "score"} <= methods:
                found.append(node.name)
    if len(found) != 1:
        listed = f"{len(found)} classes with" if found else "no class with"
        raise TaskError(
            f"{path}: {listed} the methods problems, render and score; name one: {path}:MyTask"
        )
    return found[0]


def _import(claims: dict[str, str], pages: str, output: str, min_hops: int) -> None:
    from fst_jax.tasks.hover_import import import_hover

    for split, report in import_hover(claims, pages, output, min_hops).items():
        print(
            f"{split}: {report.written} of {report.claims} claims kept; left out: "
            f"{report.fewer_hops} of fewer than {min_hops} hops, {report.unknown_pages} with a "
            "page that is not in the dump"
        )
    print(f"task: {{name: hover, options: {{folder: {output}}}}}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fst_jax.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    tried = commands.add_parser("check", help="try a task")
    tried.add_argument("target", help="name, file.py, package.module:Class, config or JSONL file")
    imported = commands.add_parser("hover", help="import HoVer's claims and a dump of pages")
    imported.add_argument("--train", required=True, help="claims to train on, HoVer's JSON")
    imported.add_argument("--test", help="claims to test on (default: held out of train)")
    imported.add_argument("--pages", required=True, help="dump of page abstracts, file or folder")
    sample = commands.add_parser("hover-sample", help="an invented encyclopedia with claims")
    sample.add_argument("--seed", type=int, default=0, help="of everything in it (default: 0)")
    for each in (imported, sample):
        each.add_argument("--output", required=True, help="folder to make")
        each.add_argument(
            "--min-hops", type=int, default=3, help="fewest hops of a claim (default: 3, hard)"
        )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(command(main))
