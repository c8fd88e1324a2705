"""What the processes of a race do. A module of its own, so that new processes can import it.

Their barrier is a manager's stand-in for a threading one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Barrier

from ray_durable.storage.local import LocalStore

__all__ = ["OBJECT_BYTES", "race", "watch"]

OBJECT_BYTES = 200_000


def race(root: Path, has_nameless_files: bool, barrier: Barrier, rounds: int, who: int) -> list[bool]:
    """Create one object a round, at the same time as others; which of them were created here."""

    async def main() -> list[bool]:
        store = LocalStore.open(str(root), has_nameless_files=has_nameless_files)
        outcomes = []
        for number in range(rounds):
            barrier.wait()
            outcomes.append(await store.put_if_absent(f"race/{number // 50}/{number}", bytes([who]) * OBJECT_BYTES))
        return outcomes

    return asyncio.run(main())


def watch(root: Path, barrier: Barrier, rounds: int) -> list[int]:
    """Read each round's object from the moment it is there; who wrote it. Fails on bytes that are not all there."""

    async def main() -> list[int]:
        store = LocalStore.open(str(root))
        writers = []
        for number in range(rounds):
            barrier.wait()
            while (data := await store.get(f"race/{number // 50}/{number}")) is None:
                pass
            assert data == data[:1] * OBJECT_BYTES, f"round {number}: {len(data)} bytes"
            writers.append(data[0])
        return writers

    return asyncio.run(main())
