"""The chore of purging instances that ended long ago: a setting of the hub says how long each final status is kept.

Summaries tell where to look, oldest creation first; what is purged is decided by the log. A few instances at a time,
with pauses, so that nothing else waits for it. Nothing is remembered: a supervisor that dies leaves what the next one
finds. Callers and called are looked at each on its own, and what has not ended is never touched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ray_durable.engine import RuntimeStatus
from ray_durable.errors import ConfigurationError, DurableError, InstanceActiveError, InstanceNotFoundError
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lifecycle import purge_instance
from ray_durable.runtime.ports import Clock
from ray_durable.runtime.status import InstanceStatus
from ray_durable.storage import list_ended

__all__ = ["PurgeEnded", "retention_settings"]

logger = logging.getLogger(__name__)

_PAGE = 50
_PAGE_PAUSE_S = 1.0
_PASS_PAUSE_S = 600.0


def retention_settings(retention: Mapping[str, timedelta]) -> dict[str, float]:
    """The hub's setting, in seconds by final status.

    Raises:
        ConfigurationError: what is no final status, or no time of zero or more.
    """
    finals = [status.value for status in (RuntimeStatus.COMPLETED, RuntimeStatus.FAILED, RuntimeStatus.TERMINATED)]
    seconds: dict[str, float] = {}
    for status, kept in retention.items():
        given: object = kept
        if status not in finals:
            raise ConfigurationError(f"retention of {status!r}: an instance ends as one of {', '.join(finals)}")
        if not isinstance(given, timedelta) or given < timedelta(0):
            raise ConfigurationError(f"retention of {status!r} is {given!r}: give a timedelta of zero or more")
        seconds[str(status)] = given.total_seconds()
    return seconds


class PurgeEnded:
    """See the module."""

    name = "purging instances that ended long ago"

    def __init__(self, hub: OpenHub, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock

    async def run(self) -> None:
        """See `Chore`."""
        while True:
            await self.look_through()
            await asyncio.sleep(_PASS_PAUSE_S)

    async def look_through(self) -> None:
        """Purge all that is due by now."""
        kept_us = await self._hub.retention_us()
        if not kept_us:
            return
        token: str | None = None
        while True:
            page = await list_ended(
                self._hub.store,
                self._hub.keys,
                statuses=list(kept_us),
                # Nothing ended before it was created.
                created_to_us=self._clock.now_us() - min(kept_us.values()),
                limit=_PAGE,
                token=token,
            )
            for summary in page.summaries:
                if self._is_due(InstanceStatus.from_summary(summary), kept_us):
                    await self._purge(summary, kept_us)
            token = page.next_token
            if token is None:
                return
            await asyncio.sleep(_PAGE_PAUSE_S)

    def _is_due(self, status: InstanceStatus, kept_us: Mapping[str, int]) -> bool:
        kept = kept_us.get(str(status.runtime_status))
        return kept is not None and status.updated_us + kept <= self._clock.now_us()

    async def _purge(self, summary: Mapping[str, Any], kept_us: Mapping[str, int]) -> None:
        instance_id: str = summary["instance"]
        try:
            await purge_instance(
                self._hub,
                instance_id,
                now_us=self._clock.now_us(),
                is_wanted=lambda status: self._is_due(status, kept_us),
            )
        except InstanceActiveError:
            return  # it goes on
        except InstanceNotFoundError:
            # Whoever purged it died before the summary was removed.
            await self._hub.forget_end(summary)
        except DurableError as error:
            logger.warning("%s cannot be purged: %s", instance_id, error)
