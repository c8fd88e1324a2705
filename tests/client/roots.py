"""Hubs on disk for the client's tests, written without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from ray_durable.client import Hub
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.hub import OpenHub
from tests.runtime import flows

__all__ = ["make_hub"]


class _NoCluster:
    """A connection whose supervisor is never there: instances stay Pending."""

    async def admit(self, instance_id: str) -> None:
        """Nobody is told."""

    def close(self) -> None:
        """Nothing was opened."""


def make_hub(root: Path, *, instance_id: str, hub: str = "default") -> Path:
    """A hub below `root` with one instance that was started and that nobody runs; `root`."""
    address = HubAddress(root=str(root), hub=hub)

    async def create() -> None:
        opened = await OpenHub.open(address)
        await opened.create()
        await opened.close()

    asyncio.run(create())
    with Hub(address) as client:
        client._connection = cast(Any, _NoCluster())
        client.start(flows.chain, 1, instance_id=instance_id)
    return root
