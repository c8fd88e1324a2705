"""A log whose events are names, for tests of who may write it and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_durable.errors import FencedError
from ray_durable.storage import (
    ClaimLostError,
    HubKeys,
    ObjectStore,
    Pacing,
    RunLog,
    Segment,
    create_execution,
)

__all__ = ["KEYS", "RUN", "Owner", "Patience", "contend", "line", "names", "read", "start"]

KEYS = HubKeys("hub")
RUN = "0123456789abcdef0123456789abcdef"

_STEPS = 4


@dataclass(slots=True)
class Patience:
    """A pacing that never really sleeps, and what it was told."""

    troubles: list[str] = field(default_factory=list)

    @property
    def pacing(self) -> Pacing:
        """The pacing."""
        return Pacing(sleep=lambda _: asyncio.sleep(0), on_trouble=lambda error, _: self.troubles.append(str(error)))


def line(number: int, name: str) -> bytes:
    """An event line that can be told from others."""
    return json.dumps({"n": number, "t": number, "type": "EventRaised", "name": name}).encode()


def names(segments: list[Segment]) -> list[str]:
    """What the events of a history are called, in order."""
    return [json.loads(text)["name"] for segment in segments for text in segment.lines]


async def start(store: ObjectStore, request_id: str = "r", name: str = "start") -> Segment | None:
    """Create the execution."""
    return await create_execution(
        store,
        KEYS,
        instance_id="i",
        execution=1,
        run=RUN,
        lines=[line(1, name)],
        sections=[],
        status={"request_id": request_id},
        hub_epoch=0,
    )


async def read(store: ObjectStore, patience: Patience | None = None) -> RunLog:
    """Read the log."""
    return await RunLog.read(store, KEYS, "i", 1, pacing=(patience or Patience()).pacing)


class Owner:
    """An owner of the log who counts event numbers as the engine does."""

    def __init__(self, log: RunLog) -> None:
        self.log = log
        last = log.tail.header
        self.next_event = last.first + last.count

    @classmethod
    async def claimed(cls, store: ObjectStore, name: str, patience: Patience | None = None) -> Owner:
        """Read the log and claim it."""
        owner = cls(await read(store, patience))
        await owner.claim(name)
        return owner

    async def claim(self, name: str) -> Segment:
        """Append a claim whose event is called `name`."""
        return await self._write(self.log.claim, name)

    async def append(self, name: str) -> Segment:
        """Append an event called `name`."""
        return await self._write(self.log.append, name)

    async def _write(self, write: Any, name: str) -> Segment:
        number = self.next_event
        segment: Segment = await write([line(number, name)], [], first=number, status={}, hub_epoch=1)
        self.next_event += 1
        return segment


async def contend(ways: Sequence[ObjectStore], store: ObjectStore, pause: Callable[[], Awaitable[None]]) -> None:
    """Owners, each with its own way to the store, claim and append in turn; then `store` must show one history.

    Nothing acknowledged is lost, nothing is there twice, and whoever was fenced added nothing.
    """
    await start(store)
    acknowledged: list[str] = []

    async def work(number: int) -> None:
        await pause()
        owner = Owner(await read(ways[number]))
        while True:
            name = f"{number}:claim"
            try:
                await owner.claim(name)
                break
            except ClaimLostError:
                owner.next_event += len(names(await owner.log.refresh()))
        acknowledged.append(name)
        for step in range(_STEPS):
            try:
                await owner.append(f"{number}:{step}")
            except FencedError:
                return
            acknowledged.append(f"{number}:{step}")

    await asyncio.gather(*map(work, range(len(ways))))
    for way in ways:
        await way.close()
    log = await read(store)
    history = names(log.segments)
    assert len(history) == len(set(history)), "an event lies in the log twice"
    assert set(acknowledged) <= set(history), "an acknowledged event is lost"
    for number in range(len(ways)):
        of_one = [name for name in history if name.startswith(f"{number}:")]
        assert of_one == [f"{number}:claim", *(f"{number}:{step}" for step in range(_STEPS))][: len(of_one)]
    epochs = [segment.header.epoch for segment in log.segments if segment.header.claim]
    assert epochs == list(range(1, len(ways) + 1))
