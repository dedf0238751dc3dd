"""How many programs XLA has compiled in this process: flat after warm-up, or something is wrong."""

import jax

_count = 0


def _listen(event: str, duration_secs: float, **details: str | int) -> None:
    global _count
    _count += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_listen)


def compiles() -> int:
    """Programs compiled since this module was imported."""
    return _count
