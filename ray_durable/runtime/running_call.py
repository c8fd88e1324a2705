"""One call of a slice, from its arguments to its outcome: how it runs, what it says of itself, and how it is ended.

A call that shall end gets an `ending`, the failure that becomes its outcome unless it still returns. Whoever decides
that (`watch`) also interrupts it: a plain activity by ActivityCancelled raised in its thread, an `async def` one by the
cancellation of its task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from ray_durable.activity_context import ActivityCancelled, ActivityInfo, ActivityTimeoutError
from ray_durable.authoring import Activity
from ray_durable.codec import Codec
from ray_durable.errors import DurableError, PayloadTooLargeError, StoreError
from ray_durable.failure import Failure
from ray_durable.function import DurableFunction
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime.messages import SliceWork

__all__ = ["Raised", "RunningCall", "Workshop", "failure_of"]

_DETAILS_BYTES_MAX = 16 * 1024
"""Details of heartbeats travel often, and into the log with a failure."""


class Workshop(Protocol):
    """What a worker needs of its hub; blocking."""

    codec: Codec

    def load(self, reference: FunctionReference) -> DurableFunction:
        """The function; FunctionNotFoundError or SerializationError if it cannot be had."""

    def fetch(self, run: str, payload: Payload) -> Payload:
        """The payload with its bytes loaded."""

    def offload(self, run: str, payload: Payload) -> Payload:
        """The payload, stored as a blob if it is over the inline limit."""


class Raised:
    """The outcome of a call that failed."""

    __slots__ = ("failure",)

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class RunningCall:
    """See the module. `index` is the call's offset in its slice. It is the `ActivityControl` of its own activity.

    Times are those of `time.perf_counter`. `on_heartbeat` is called from the activity's thread.
    """

    # Most calls say nothing and end by themselves: what they do not need is not set for each of them.
    details: Payload | None = None
    has_spoken = False
    """Has given a heartbeat that nobody has passed on yet."""
    began_s: float | None = None
    heard_s = 0.0
    ending: Failure | None = None
    ending_s = 0.0
    is_over = False
    is_struck = False
    """Was interrupted, which happens at most once."""
    is_interrupting = False
    """Is being interrupted right now by another thread."""
    task: asyncio.Task[None] | None = None

    def __init__(
        self,
        function: Activity[Any, Any],
        workshop: Workshop,
        work: SliceWork,
        index: int,
        item: Any,
        on_heartbeat: Callable[[RunningCall], None],
    ) -> None:
        self.function = function
        self.work = work
        self.index = index
        self.item = item
        self._workshop = workshop
        self._on_heartbeat = on_heartbeat

    def __reduce__(self) -> tuple[Any, ...]:
        """An ActivityInfo that goes to another process leaves the way back behind."""
        return _nothing, ()

    def info(self) -> ActivityInfo:
        """What the activity may know of itself."""
        work, batched = self.work, self.work.batch is not None
        key = f"{work.keys[0]}:{work.first + self.index}" if batched else work.keys[self.index]
        return ActivityInfo(
            name=self.function.name,
            instance_id=work.instance_id,
            task_id=key.split(":")[1],
            attempt=work.attempts[0 if batched else self.index],
            idempotency_key=key,
            item=work.first + self.index if batched else None,
            control=self,
        )

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the function is called with."""
        if self.work.batch is not None:
            return (self.item,), {}
        payload = self._workshop.fetch(self.work.run, self.work.calls[self.index])
        where = f"arguments of activity {self.function.name!r}"
        return self._workshop.codec.decode_call(self.function.calls, payload, where=where)

    def begin(self) -> None:
        """The user's code begins now."""
        self.began_s = self.heard_s = time.perf_counter()

    def raised(self, error: BaseException) -> Raised:
        """The outcome of a call that raised: of one that was to end, why it was."""
        if self.ending is None:
            return Raised(failure_of(error))
        if isinstance(error, ActivityCancelled | asyncio.CancelledError):
            return Raised(self.ending)
        return Raised(_because_of(self.ending, failure_of(error)))

    def due_s(self) -> float | None:
        """When it has to have ended, as things are; None if there is no such time."""
        target, began_s = self.work.target, self.began_s
        if began_s is None or (target.timeout_s is None and target.heartbeat_timeout_s is None):
            return None
        times_s = [] if target.timeout_s is None else [began_s + target.timeout_s]
        if target.heartbeat_timeout_s is not None:
            times_s.append(self.heard_s + target.heartbeat_timeout_s)
        return min(times_s)

    def timeout(self) -> Failure:
        """The failure of a call whose time is up."""
        target, began_s = self.work.target, self.began_s
        assert began_s is not None
        if target.timeout_s is not None and time.perf_counter() >= began_s + target.timeout_s:
            why = f"it did not end within its timeout of {target.timeout_s:g} s"
        else:
            why = f"it gave no heartbeat for its heartbeat_timeout of {target.heartbeat_timeout_s:g} s"
        return timeout_failure(self.function.name, why)

    @property
    def is_cancelled(self) -> bool:
        """See `ActivityControl`."""
        return self.ending is not None

    def heartbeat(self, details: Any) -> None:
        """See `ActivityControl`."""
        if self.ending is not None:
            raise ActivityCancelled(self.ending.message)
        if details is not None:
            where = f"heartbeat of activity {self.function.name!r}"
            payload = self._workshop.codec.encode(details, where=where)
            if payload.size > _DETAILS_BYTES_MAX:
                raise PayloadTooLargeError(
                    f"{where}: {payload.size} bytes are over the limit of {_DETAILS_BYTES_MAX}. Say where you are, and "
                    "keep what you have in storage of your own",
                    where=where,
                    size_bytes=payload.size,
                    limit_bytes=_DETAILS_BYTES_MAX,
                )
            self.details = payload
        self.heard_s = time.perf_counter()
        self.has_spoken = True
        self._on_heartbeat(self)

    def last_details(self) -> Any:
        """See `ActivityControl`."""
        payload = self.details or self.work.heartbeats.get(self.index)
        if payload is None:
            return None
        return self._workshop.codec.decode(payload, where=f"heartbeat of activity {self.function.name!r}")


def timeout_failure(name: str, why: str) -> Failure:
    """The failure of a call whose time was up."""
    return Failure.from_exception(ActivityTimeoutError(f"Activity {name!r} was ended: {why}"), kind="timeout")


def failure_of(error: BaseException) -> Failure:
    """The failure of a call: the store's trouble is the system's, and any other error of ours will not go away."""
    if isinstance(error, StoreError):
        return Failure.from_exception(error, kind="system")
    is_lasting = isinstance(error, DurableError) and not isinstance(error, ActivityTimeoutError)
    return Failure.from_exception(error, non_retryable=is_lasting)


def _because_of(ending: Failure, cause: Failure) -> Failure:
    """The ending of a call whose own cleanup failed in another way."""
    return Failure(
        kind=ending.kind, type_name=ending.type_name, message=ending.message, bases=ending.bases, cause=cause
    )


def _nothing() -> None:
    return None
