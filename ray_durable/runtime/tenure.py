"""Whether this cluster still holds the hub, as its dispatcher knows it by itself.

The supervisor finds out in every round. But it may stand still, or not reach the store, while the rest of its cluster
goes on; so the dispatcher, which starts activities, looks as well: one listing every few seconds, however many
instances there are. What it has seen counts from the moment at which it began to look, and not for ever: where the
store does not answer, another cluster may have the hub by now.

Invariant: once a newer hub epoch exists, `is_certain` is false after `TRUST_S` at the latest, whatever stands still.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from ray_durable.errors import DurableError, FencedError
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.ports import Clock

__all__ = ["LOOK_S", "TRUST_S", "Granted", "Tenure", "TenureWatch"]

logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""From one look to the next: so long at most it takes to see that the hub was taken over, where the store answers."""

TRUST_S = 15.0
"""So long a look counts. That is as old as a lease may be before others take the hub over."""


class Tenure(Protocol):
    """What is known of who holds the hub."""

    @property
    def is_certain(self) -> bool:
        """Whether this cluster is known to hold it."""

    @property
    def problem(self) -> str | None:
        """Why that cannot be told, if it cannot for a while."""


class Granted:
    """Nobody else can take the hub."""

    is_certain = True
    problem = None


class TenureWatch:
    """See the module. `on_certain` is called whenever certainty came, or came back."""

    def __init__(
        self, clock: Clock, *, on_certain: Callable[[], None], look_s: float = LOOK_S, trust_s: float = TRUST_S
    ) -> None:
        self._clock = clock
        self._on_certain = on_certain
        self._look_s = look_s
        self._trust_s = trust_s
        self._seen_s: float | None = None
        self._hub: OpenHub | None = None
        self._refusal = ""

    @property
    def is_certain(self) -> bool:
        """See `Tenure`. False before the first look."""
        return self._seen_s is not None and self._clock.monotonic_s() - self._seen_s <= self._trust_s

    @property
    def problem(self) -> str | None:
        """See `Tenure`."""
        trouble = self._refusal or (self._hub is not None and self._hub.store.problem)
        if not trouble or self.is_certain:
            return None
        return f"nothing is started while it cannot be told whether this cluster still holds the hub: {trouble}"

    async def keep(self, hub: OpenHub) -> None:
        """Look again and again; never returns. Raises FencedError once another cluster has taken the hub over."""
        self._hub = hub
        while True:
            began_s = self._clock.monotonic_s()
            if await self._look(hub):
                was_certain, self._seen_s = self.is_certain, began_s
                if not self.is_certain:
                    continue  # the answer is that old: it says nothing of today
                if not was_certain:
                    self._on_certain()
            await asyncio.sleep(self._look_s)

    async def _look(self, hub: OpenHub) -> bool:
        """Whether the store answered. What it refuses may be mended."""
        try:
            await hub.require_held()
        except FencedError:
            raise
        except DurableError as error:
            if str(error) != self._refusal:
                logger.warning("the dispatcher cannot tell who holds the hub: %s; trying again", error)
            self._refusal = str(error)
            return False
        self._refusal = ""
        return True
