"""The standalone checker of roots, run on a world's memory: what it says, as a user would read it."""

from __future__ import annotations

from pathlib import Path

import verify
from ray_durable.storage.memory import MemoryStore
from tests.support.world import World

__all__ = ["complaints"]

_HUB = b'{"v": 1, "hub": "hub", "settings": {}}'


def complaints(world: World, folder: Path) -> list[str]:
    """What storage/verify.py finds wrong with what the world has stored; `folder` is to hold a copy."""
    assert isinstance(world.objects, MemoryStore)
    for key, data in {"hub/hub.json": _HUB, **world.objects._objects}.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return [str(finding) for finding in verify.verify_hub(folder / "hub", now_us=world.clock.now_us()).findings]
