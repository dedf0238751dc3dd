"""fst: the commands of this package under one name.

    fst train --config configs/small_world.yaml

is `python -m fst_jax.train --config configs/small_world.yaml`, and so with each of COMMANDS.
"""

import difflib
import runpy
import sys

from fst_jax import __version__

COMMANDS = {
    "train": "Fast-Slow Training: weights and prompts learn together",
    "evaluate": "held-out reward and drift of a run, or of a model",
    "serve": "serve a model by SGLang's protocol and OpenAI's",
    "plan": "what a run will take on devices that are not here",
    "sft": "supervised warm-up of a model on chats",
    "convert": "a GGUF file, hub model or LoRA adapter to a Hugging Face folder",
    "tasks": "try a task of your own, or prepare the data of one",
    "report": "figures and one HTML page from run folders",
    "reproduce": "the experiments that test the paper's claims",
    "replay": "compute the loss of a step that was not finite again",
}


def help_text() -> str:
    """What `fst --help` prints."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: fst COMMAND [ARGUMENT ...]   or   python -m fst_jax.COMMAND [ARGUMENT ...]",
            "",
            *(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()),
            "",
            "fst COMMAND --help lists what a command takes; fst --version prints the version.",
        ]
    )


def main() -> int:
    """Run a command in this process; the exit code where there is none to run."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"fst_jax {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ";"
        print(f"error: no command {name}{meant} `fst --help` lists them", file=sys.stderr)
        return 2
    sys.argv[1:] = arguments
    runpy.run_module(f"fst_jax.{name}", run_name="__main__", alter_sys=True)
    return 0
