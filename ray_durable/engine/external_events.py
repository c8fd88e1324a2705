"""External events: those that nobody waited for yet, and those who wait.

Events of one name are handed out in the order of their arrival, to waiters in the order of their asking. A cancelled
waiter takes none. Nor does one that cannot decode the event: it fails with the error, and the event goes to the next
waiter, or stays the first of those that wait to be asked for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ray_durable.engine.events import EventRaised
from ray_durable.engine.futures import CommandFuture, fail, resolve
from ray_durable.engine.loop import EventLoop
from ray_durable.engine.source import Source
from ray_durable.payload import Payload

__all__ = ["Backlog", "ExternalEvents", "decode_into"]

_Decode = Callable[[Payload], Any]

_RECENT_MAX = 1_000


@dataclass(slots=True)
class Backlog:
    """How many external events wait to be taken, and how many bytes their values have together, wherever they lie."""

    count: int = 0
    size_bytes: int = 0

    def add(self, event: EventRaised) -> None:
        """One more waits."""
        self.count += 1
        self.size_bytes += event.value.size

    def remove(self, event: EventRaised) -> None:
        """One that waited was taken."""
        self.count -= 1
        self.size_bytes -= event.value.size


def decode_into(future: CommandFuture, decode: _Decode, payload: Payload) -> bool:
    """Resolve `future` with the decoded payload, or with the exception of decoding it: whether it could be decoded."""
    if future.done():
        return True
    try:
        value = decode(payload)
    except BaseException as error:
        fail(future, error)
        return False
    resolve(future, value)
    return True


class _Waiter:
    __slots__ = ("decode", "events", "future", "name", "since_us", "source")

    def __init__(
        self,
        events: ExternalEvents,
        name: str,
        future: CommandFuture,
        decode: _Decode,
        since_us: int,
        source: Source | None,
    ) -> None:
        self.events = events
        self.since_us = since_us
        self.source = source
        self.name = name
        self.future = future
        self.decode = decode

    def revoke(self) -> None:
        self.events.forget(self)


class ExternalEvents:
    """The unread external events of an execution, and its waiters."""

    __slots__ = ("_loop", "_seen", "_unread", "_waiters", "backlog")

    def __init__(self, loop: EventLoop) -> None:
        self.backlog = Backlog()
        self._loop = loop
        self._unread: dict[str, deque[EventRaised]] = {}
        # Ordered dictionaries, because a plain one is slow to find its first key when many were taken from the front.
        self._waiters: dict[str, OrderedDict[_Waiter, None]] = {}
        # The keys are a set that remembers the order.
        self._seen: dict[str, None] = {}

    def is_known(self, id: str) -> bool:
        """Whether an event or request of this id came before."""
        return id in self._seen

    def note_ids(self, ids: Iterable[str]) -> None:
        """Events or requests of these ids have come: another one is a repetition. "" is no id."""
        self._seen.update((id, None) for id in ids if id)

    def recent_ids(self) -> list[str]:
        """The last 1,000 ids that were noted, in order."""
        return list(islice(reversed(self._seen), _RECENT_MAX))[::-1]

    def wait(self, name: str, decode: _Decode, source: Source | None = None) -> CommandFuture:
        """A future of the next event of this name. `source` is the line that asks."""
        future = self._loop.create_command_future()
        unread = self._unread.get(name)
        if unread:
            if decode_into(future, decode, unread[0].value):
                self.backlog.remove(unread.popleft())
                if not unread:
                    del self._unread[name]
        else:
            waiter = _Waiter(self, name, future, decode, self._loop.now_us, source)
            future.command = waiter
            self._waiters.setdefault(name, OrderedDict())[waiter] = None
        return future

    def raised(self, event: EventRaised) -> None:
        """Hand an event to whoever waited longest, or keep it."""
        while waiters := self._waiters.get(event.name):
            waiter = next(iter(waiters))
            self.forget(waiter)
            if decode_into(waiter.future, waiter.decode, event.value):
                return
        self._unread.setdefault(event.name, deque()).append(event)
        self.backlog.add(event)

    def is_awaited(self, name: str) -> bool:
        """Whether somebody waits for an event of this name, and would take it at once."""
        return name in self._waiters

    def forget(self, waiter: _Waiter) -> None:
        """The waiter waits no more."""
        waiters = self._waiters.get(waiter.name)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self._waiters[waiter.name]

    def clear(self) -> None:
        """Nobody waits any more: the execution has ended. Unread events stay."""
        self._waiters.clear()

    def waiting_for(self) -> list[str]:
        """The names that are waited for, in the order in which the waiting for each began."""
        return list(self._waiters)

    def waits(self) -> list[tuple[str, int, Source | None]]:
        """Who waits: the name, since when (microseconds) and the line of code, in the order in which it began."""
        waiters = [waiter for waiting in self._waiters.values() for waiter in waiting]
        return [(one.name, one.since_us, one.source) for one in sorted(waiters, key=lambda waiter: hash(waiter.future))]

    def unread(self) -> list[EventRaised]:
        """The events that nobody has taken, in the order of their arrival."""
        return sorted((event for events in self._unread.values() for event in events), key=lambda event: event.number)
