"""What the code must find again in replay: values of side effects, and which changes of the code are in force.

Both are answered at once, so their markers are read ahead: from the recorded events that the present input caused. A
marker stands where the code asked for it, or the code is not the one that made the history; matching tells that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ray_durable.engine.events import Event, MarkerRecorded
from ray_durable.engine.journal import Journal
from ray_durable.engine.source import Source
from ray_durable.errors import NotDeterministicError
from ray_durable.payload import Payload

__all__ = ["Markers"]

_SIDE_EFFECT = "side_effect"
_PATCH = "patch"


class Markers:
    """The markers of an execution.

    A recorded step that lacks the marker of a change was made before the change. What is read ahead is one call's
    batch: whoever replays a history in parts has to cut it between inputs, not before a marker.
    """

    __slots__ = ("_batch", "_first", "_journal", "_patches")

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._patches: dict[str, bool] = {}
        self._batch: Sequence[Event] = ()
        self._first = 0

    def read_ahead(self, batch: Sequence[Event], first: int) -> None:
        """Look for markers in `batch`, whose first event would have the number `first` (nothing: an empty batch)."""
        self._batch = batch
        self._first = first

    def side_effect(self, make: Callable[[], Payload], source: Source | None) -> Payload:
        """What `make` returned when the code ran here for the first time. What it raises is not recorded."""
        recorded = self._next(_SIDE_EFFECT, "")
        if recorded is not None and recorded.value is not None:
            value = recorded.value
        else:
            position = self._journal.number
            value = make()
            if self._journal.number != position:
                raise NotDeterministicError(
                    "The function of a side effect used the context, or something else that is recorded: a replay "
                    "does not call it. Let it compute a value only, and ask for everything else outside of it."
                )
        self._record(MarkerRecorded(kind=_SIDE_EFFECT, value=value), source)
        return value

    def is_patched(self, patch: str, source: Source | None, *, is_replaying: bool) -> bool:
        """Whether the change `patch` is in force: the first answer holds for the whole execution."""
        known = self._patches.get(patch)
        if known is not None:
            return known
        in_force = self._patches[patch] = not is_replaying or self._next(_PATCH, patch) is not None
        if in_force:
            self._record(MarkerRecorded(kind=_PATCH, id=patch), source)
        return in_force

    def _next(self, kind: str, marker: str) -> MarkerRecorded | None:
        """The marker that the history has where the code is now, if it is such a one."""
        at = self._journal.number + 1 - self._first
        event = self._batch[at] if 0 <= at < len(self._batch) else None
        is_it = isinstance(event, MarkerRecorded) and (event.kind, event.id) == (kind, marker)
        return event if is_it and isinstance(event, MarkerRecorded) else None

    def _record(self, marker: MarkerRecorded, source: Source | None) -> None:
        journal = self._journal
        journal.record(marker.stamped(journal.next_number(), journal.time_us), source)
