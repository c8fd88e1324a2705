"""What is done for a hub in the background, beside the supervisor's rounds: each chore at its own pace.

A chore that fails is begun again after a pause, whatever it failed of; one that is slow keeps nobody waiting. Only a
hub that was taken over ends them. They begin once the supervisor has renewed its lease for the first time, and end with
it; what they do must be harmless even a moment after a takeover, as everything in storage is.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from ray_durable.errors import DurableError, FencedError
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.ports import Clock
from ray_durable.storage import list_retired, remove_retired

__all__ = ["Chore", "RemoveRetired", "pursue"]

logger = logging.getLogger(__name__)

_RETRY_S = 10.0
_RETIRED_PAUSE_S = 10.0


class Chore(Protocol):
    """See the module. `name` says in the log what it was that failed."""

    @property
    def name(self) -> str:
        """What it does, in a few words."""

    async def run(self) -> None:
        """Do it again and again, with pauses; never returns.

        Raises:
            FencedError: the hub was taken over: its supervisor stands down.
        """


async def pursue(chore: Chore) -> None:
    """Run a chore for ever, whatever it meets. Raises FencedError once the hub was taken over."""
    while True:
        try:
            await chore.run()
        except FencedError:
            raise
        except DurableError as error:
            logger.warning("%s: %s; trying again", chore.name, error)
        except Exception:
            logger.exception("%s: trying again", chore.name)
        await asyncio.sleep(_RETRY_S)


class RemoveRetired:
    """The chore of removing executions from storage whose grace period is over."""

    name = "removing retired executions"

    def __init__(self, hub: OpenHub, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock

    async def run(self) -> None:
        """See `Chore`."""
        store, keys = self._hub.store, self._hub.keys
        while True:
            for key, retired in await list_retired(store, keys, self._clock.now_us()):
                await remove_retired(store, keys, key, retired)
            await asyncio.sleep(_RETIRED_PAUSE_S)
