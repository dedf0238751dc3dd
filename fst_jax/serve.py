"""python -m fst_jax.serve: the embedded model server, which speaks SGLang's protocol and OpenAI's.

    python -m fst_jax.serve --model DIR
    python -m fst_jax.serve --model DIR --port 30000 --weights-root runs/weights

The in-process engine behind HTTP, for laptops, CI and hosts where no other server runs.  It binds
to the loopback interface; any other address needs an API key.  Weights can be exchanged while it
serves, from folders below --weights-root.  Ctrl-C or SIGTERM lets what is under way finish and
refuses the rest with status 503; a second signal stops at once.
"""

import argparse
import asyncio
import ipaddress
import os
import socket
import sys
from pathlib import Path
from types import FrameType

import jax.numpy as jnp
import uvicorn

from fst_jax.config import ParallelSettings
from fst_jax.errors import ConfigError
from fst_jax.keys import key_in
from fst_jax.models.folder import load_config, load_tokenizer, resolve, stop_ids
from fst_jax.models.huggingface import load_model
from fst_jax.parallel.mesh import make_mesh
from fst_jax.parallel.sharding import placer
from fst_jax.rollout.batching import Batcher
from fst_jax.rollout.chat import Chat
from fst_jax.rollout.server.app import application
from fst_jax.rollout.server.connections import Connection
from fst_jax.rollout.server.front import Front
from fst_jax.rollout.server.questions import Reader
from fst_jax.rollout.server.service import Service
from fst_jax.settings import command

_KEY_VARIABLE = "FST_JAX_API_KEY"


class Server(uvicorn.Server):
    """Ends when what is under way has ended."""

    def __init__(self, config: uvicorn.Config, service: Service, name: str) -> None:
        super().__init__(config)
        self._service, self._name = service, name

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it listens, once it does."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print(f"serving {self._name} at http://{host}:{port}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal closes the door, the second one ends everything."""
        if self._service.closing:
            # The engine's thread may be inside a program, which nothing can interrupt.
            print(f"stopped; {self._service.open} answers were cut off", flush=True)
            os._exit(128 + sig)
        self._service.close()
        print("finishing what is under way; the same signal again stops at once", flush=True)

    async def on_tick(self, counter: int) -> bool:
        if self._service.closing and self._service.open == 0:
            self.should_exit = True
        return await super().on_tick(counter)


async def serve(options: argparse.Namespace) -> None:
    """Load the model and serve it until a signal ends it."""
    folder = resolve(options.model)
    config, dtype = load_config(folder), jnp.dtype(options.dtype)
    mesh = make_mesh(ParallelSettings({"fsdp": 1, "tensor": options.tensor, "data": -1}))

    place = placer(mesh)
    model = load_model(folder, dtype=dtype, param_dtype=dtype, place=place)
    chat = Chat(load_tokenizer(folder), stop_ids=stop_ids(folder))
    longest = min(options.context_length or 1 << 30, config.max_position_embeddings)
    service = Service(
        Batcher(model, mesh, options.slots, version="default"),
        chat.tokenizer,
        options.slots,
        options.max_queued,
    )
    reader = Reader(
        chat, config.vocab_size, longest, options.slots, options.slots + options.max_queued
    )
    front = Front(
        service,
        reader,
        folder,
        config,
        place,
        dtype=dtype,
        name=options.served_model_name or folder.name,
        weights_root=options.weights_root,
        max_body_bytes=options.max_body_mib << 20,
    )
    server = Server(
        uvicorn.Config(
            application(front, options.api_key),
            host=options.host,
            port=options.port,
            log_level=options.log_level,
            http=Connection,
            lifespan="off",
        ),
        service,
        front.name,
    )
    await server.serve()


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; exits with code 2 and a message where it makes no sense.

    Raises:
      ConfigError: the address is not the loopback's, and there is no key.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fst_jax.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="Hugging Face folder, hub id org/name, or fst-tiny")
    add("--served-model-name", help="what clients call it (default: the folder's name)")
    add("--host", default="127.0.0.1", help="address to bind to (default: 127.0.0.1)")
    add("--port", type=int, default=30000, help="port; 0 takes a free one (default: 30000)")
    add(
        "--api-key",
        default=key_in(_KEY_VARIABLE),
        help=f"what clients must send as a bearer token (default: ${_KEY_VARIABLE}, which other "
        "users of this machine cannot see)",
    )
    add("--weights-root", type=Path, help="new weights are taken only from below this folder")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="default: float32")
    add("--slots", type=int, default=64, help="samples decoded at once (default: 64)")
    add("--max-queued", type=int, default=1024, help="samples that may wait (default: 1024)")
    add("--context-length", type=int, help="tokens of prompt and completion (default: the model's)")
    add("--max-body-mib", type=int, default=16, help="largest request body (default: 16)")
    add("--tensor", type=int, default=1, help="devices that share heads; the rest share requests")
    add("--log-level", default="warning", help="uvicorn's (default: warning)")
    options = parser.parse_args(arguments)
    if options.slots < 1 or options.max_queued < 0 or options.max_body_mib < 1:
        parser.error("--slots and --max-body-mib must be at least 1, --max-queued at least 0")
    if not _loopback(options.host) and not options.api_key:
        raise ConfigError(
            f"--host {options.host} is open to others than this machine: give --api-key, or set "
            f"{_KEY_VARIABLE}"
        )
    return options


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(arguments: list[str]) -> None:
    """The command."""
    asyncio.run(serve(parse(arguments)))


if __name__ == "__main__":
    sys.exit(command(main))
