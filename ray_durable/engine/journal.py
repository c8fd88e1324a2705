"""The place of an execution in its history: numbers, time, and whether the code does what the history says.

Every event of an execution passes here, in order. A caused event is numbered and kept, with the line of code that
asked for it, until the history, or the caller, is known to have it. Recorded caused events are compared with those,
one by one; a fresh input makes the caller the keeper of all that came before.

Invariants: numbers are dense; `time_us` never decreases; each event is returned by `take_new` once at most, and none
that the history has. It knows nothing of what events mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NoReturn, TypeVar

from ray_durable.engine.events import Caused, Event, Input
from ray_durable.engine.matching import Mismatch, describe_event, find_mismatch, show_context, show_difference
from ray_durable.engine.source import Source, describe_source
from ray_durable.errors import CorruptLogError, NonDeterminismError

__all__ = ["Journal"]

_InputT = TypeVar("_InputT", bound=Input)

_CONTEXT_EVENTS = 3

_ADVICE = (
    "The orchestrator's code, or something it depends on (time, random, environment, order of a set), is not what it "
    "was when this history was made. Bring back what changed, or put the change behind ctx.patched(id), and rewind the "
    "instance; or start another one with the present code."
)


class Journal:
    """Numbers events, keeps time, and matches recorded events with those that the code caused.

    `idling()` tells what the code does when it asks for nothing, and at which line.
    """

    __slots__ = ("_agreed", "_idling", "_new", "_reported", "_unmatched", "instance_id", "number", "time_us")

    def __init__(self, idling: Callable[[], tuple[str, Source | None]]) -> None:
        self.instance_id = ""
        self.number = 0
        self.time_us = 0
        self._idling = idling
        self._unmatched: deque[tuple[Caused, Source | None]] = deque()
        # The last events of the history in which the code did what is recorded.
        self._agreed: deque[Event] = deque(maxlen=_CONTEXT_EVENTS)
        self._reported = 0
        self._new: list[Event] = []

    def next_number(self) -> int:
        """Take the number of the next caused event; `record` must follow."""
        self.number += 1
        return self.number

    def record(self, event: Caused, source: Source | None) -> None:
        """Keep an event that the code caused."""
        assert event.number == self.number, "events are recorded in the order of their numbers"
        self._unmatched.append((event, source))

    def accept(self, event: _InputT) -> _InputT:
        """Give a fresh input its number and time. All that was caused before it is final."""
        self._report()
        self._unmatched.clear()
        self.number += 1
        self.time_us = max(self.time_us, event.time_us)
        stamped = event.stamped(self.number, self.time_us)
        self._reported = self.number
        self._new.append(stamped)
        return stamped

    def replay(self, event: Input) -> None:
        """Take the next input of the history.

        Raises:
            NonDeterminismError: The code asked for something more before it.
            CorruptLogError: Events are missing before it.
        """
        self._require_next(event)
        if self._unmatched:
            self._diverged(event, *self._unmatched[0], reason="The code asks for something more.")
        self._agreed.append(event)
        self.number += 1
        self.time_us = max(self.time_us, event.time_us)

    def match(self, event: Caused) -> None:
        """Compare the next recorded caused event with what the code asked for.

        Raises:
            NonDeterminismError: The code asked for something else, or for nothing.
            CorruptLogError: Events are missing before it.
        """
        self._require_next(event)
        if not self._unmatched:
            self._diverged(event, *self._idling(), reason="The code does not ask for it.")
        generated, source = self._unmatched[0]
        mismatch = find_mismatch(event, generated)
        if mismatch is not None:
            self._diverged(event, generated, source, mismatch)
        self._agreed.append(event)
        self._unmatched.popleft()

    def take_new(self) -> list[Event]:
        """The events that the history lacks and that were not returned before."""
        self._report()
        new, self._new = self._new, []
        return new

    def source_of(self, number: int) -> Source | None:
        """The line that caused event `number`, as long as the history is not known to have it."""
        return next((source for event, source in self._unmatched if event.number == number), None)

    def _report(self) -> None:
        reported = self._reported
        self._new.extend(event for event, _ in self._unmatched if event.number > reported)
        self._reported = self.number

    def _require_next(self, event: Event) -> None:
        expected = self.number - len(self._unmatched) + 1
        if event.number != expected:
            raise CorruptLogError(
                f"The history of instance '{self.instance_id}' has event {event.number} ({describe_event(event)}) "
                f"where event {expected} belongs: events are missing or out of order. Check the log's objects.",
                key=f"event {event.number}",
            )

    def _diverged(
        self,
        recorded: Event,
        actual: Event | str,
        source: Source | None,
        mismatch: Mismatch | None = None,
        *,
        reason: str = "",
    ) -> NoReturn:
        line = describe_source(source)
        agreed = [show_context(event) for event in self._agreed]
        difference = show_difference(recorded, actual, mismatch)
        lines = [
            f"Replay of instance '{self.instance_id}' diverged from its history at event {recorded.number}, "
            f"at {line or 'an unknown line'}.",
            *agreed,
            *difference,
            f"{reason} {_ADVICE}".lstrip(),
        ]
        raise NonDeterminismError(
            "\n".join(lines),
            expected=describe_event(recorded),
            actual=describe_event(actual) if isinstance(actual, Event) else actual,
            position=recorded.number,
            source=line,
        )
