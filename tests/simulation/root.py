"""What storage/verify.py says of the store of a simulation."""

from __future__ import annotations

from collections.abc import Iterator

import verify
from ray_durable.testing.simulation import Simulation
from verify_lib.roots import OBJECT_BYTES_MAX

__all__ = ["findings"]

_GIVEN_UP = "orphan"
"""The rule of starts whose client died between its two writes."""


def findings(simulation: Simulation) -> list[str]:
    """All that the checker finds, but for starts that clients gave up."""
    root = _Objects(simulation.store.objects, "hub/")
    report = verify.verify_hub(root, name="hub", now_us=simulation.now_us)
    return [f"{one.rule} {one}" for one in report.findings if one.rule != _GIVEN_UP]


class _Objects:
    """The checker's `Root` over objects in memory."""

    def __init__(self, objects: dict[str, bytes], place: str) -> None:
        self._objects = objects
        self._place = place
        self._folders: dict[str, set[str]] = {}
        for key in objects:
            if key.startswith(place):
                parts = key[len(place) :].split("/")
                for depth, part in enumerate(parts):
                    folder = "".join(f"{name}/" for name in parts[:depth])
                    self._folders.setdefault(folder, set()).add(part if depth == len(parts) - 1 else f"{part}/")

    def read(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """See `verify_lib.roots.Root`."""
        data = self._objects.get(f"{self._place}{key}")
        return data if data is None or len(data) <= bytes_max else b""

    def names(self, folder: str) -> list[str]:
        """See `verify_lib.roots.Root`."""
        return sorted(self._folders.get(folder, ()))

    def walk(self, folder: str) -> Iterator[str]:
        """See `verify_lib.roots.Root`."""
        for name in self.names(folder):
            if name.endswith("/"):
                yield from (f"{name}{deeper}" for deeper in self.walk(f"{folder}{name}"))
            else:
                yield name

    def below(self, folder: str) -> _Objects:
        """See `verify_lib.roots.Root`."""
        return _Objects(self._objects, f"{self._place}{folder}")
