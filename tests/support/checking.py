"""The standalone checker of roots, run on a world's memory: what it says, as a user would read it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ray_durable.storage.memory import MemoryStore
from tests.support.world import World

__all__ = ["complaints"]

_VERIFY = Path(__file__).parents[2] / "storage" / "verify.py"


def complaints(world: World, folder: Path) -> list[str]:
    """What storage/verify.py finds wrong with what the world has stored; `folder` is to hold a copy."""
    assert isinstance(world.objects, MemoryStore)
    for key, data in {"hub/hub.json": b'{"v": 1}', **world.objects._objects}.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    told = subprocess.run(
        [sys.executable, str(_VERIFY), str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert told.stdout, told.stderr
    return [line for line in told.stdout.splitlines() if line.startswith(("DAMAGE", "NOTE"))]
