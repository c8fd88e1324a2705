"""Time and randomness of the system, drawn from a seed while a simulation runs.

The runtime takes its clock as an argument, but its random names, jitter and time stamps come from the standard library,
as they should. Inside `seeded`, the few functions that it uses give what the simulation says. Not for use beside other
threads that need the real ones.
"""

from __future__ import annotations

import random
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int | str, *, now_us: Callable[[], int], monotonic_s: Callable[[], float]) -> Iterator[None]:
    """Let the standard library's clocks, random ids and shared random numbers be those of a simulation."""
    source = random.Random(f"chance {seed}")
    state = random.getstate()
    random.seed(f"jitter {seed}")

    def uuid4() -> uuid.UUID:
        return uuid.UUID(int=source.getrandbits(128), version=4)

    replaced: list[tuple[Any, str, Any]] = [
        (uuid, "uuid4", uuid4),
        (secrets, "token_bytes", lambda size=32: source.randbytes(size)),
        (secrets, "token_hex", lambda size=32: source.randbytes(size).hex()),
        (time, "time_ns", lambda: now_us() * 1_000),
        (time, "time", lambda: now_us() / 1_000_000),
        (time, "monotonic", monotonic_s),
        (time, "perf_counter", monotonic_s),
    ]
    kept = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, function in replaced:
        setattr(module, name, function)
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)
        random.setstate(state)
