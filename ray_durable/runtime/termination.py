"""The end of an execution that cannot be loaded: recorded without its code, its payloads and the engine.

What the log holds stays as it is; the termination and the end follow it, in the segment of a claim, so that an owner
that is still at work stands down. The next load finds an ended log, and does what is left to do.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

from ray_durable.engine import (
    Event,
    ExecutionCompleted,
    ExecutionTerminated,
    RuntimeStatus,
    SubOrchestrationInstanceCanceled,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    SubOrchestrationInstanceFailed,
)
from ray_durable.errors import FencedError, InstanceNotFoundError, OrchestrationTerminatedError
from ray_durable.failure import Failure
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.inbox import Arrival
from ray_durable.runtime.records import encode_events
from ray_durable.runtime.succession import link_of

__all__ = ["WantedEnds", "record_termination"]

logger = logging.getLogger(__name__)


class WantedEnds:
    """The terminations that somebody waits for, which must not have to wait for code that cannot be loaded.

    They wait in the inbox, too.
    """

    def __init__(self) -> None:
        self._wanted: list[tuple[ExecutionTerminated, Arrival]] = []

    @contextlib.contextmanager
    def wanting(self, event: ExecutionTerminated, arrival: Arrival) -> Iterator[None]:
        """Somebody waits for this one meanwhile."""
        self._wanted.append((event, arrival))
        try:
            yield
        finally:
            self._wanted.remove((event, arrival))

    async def record_unloaded(self, hub: OpenHub, instance_id: str, now_us: int) -> bool:
        """Record the first one, of what cannot be loaded; whether there was one and that could be done.

        Raises:
            FencedError, InstanceNotFoundError: nothing may be done here any more.
        """
        if not self._wanted:
            return False
        asked, _ = self._wanted[0]
        try:
            if not await record_termination(hub, instance_id, asked, now_us):
                return False
        except (FencedError, InstanceNotFoundError):
            raise
        except Exception as error:
            logger.warning("%s cannot be terminated: %s", instance_id, Failure.from_exception(error).describe())
            return False
        for event, arrival in self._wanted:
            if event == asked:
                arrival.accept()
        return True


async def record_termination(hub: OpenHub, instance_id: str, asked: ExecutionTerminated, now_us: int) -> bool:
    """Append `asked` and the end; False, and nothing is written, if the execution has ended already.

    Raises:
        InstanceNotFoundError: there is no such instance.
        CorruptLogError: the log cannot be read.
        ClaimLostError: another owner was quicker.
        FencedError: another cluster has taken the hub over.
    """
    await hub.require_held()
    log, history = await hub.read_log(instance_id)
    last = history[-1]
    if isinstance(last, ExecutionCompleted) or link_of(history) is not None:
        return False
    terminated = asked.stamped(last.number + 1, max(now_us, last.time_us))
    canceled: list[Event] = []
    for task in _children(history) if asked.recursive else ():
        number = terminated.number + len(canceled) + 1
        canceled.append(SubOrchestrationInstanceCanceled(number=number, time_us=terminated.time_us, task=task))
    end = ExecutionCompleted(
        number=terminated.number + len(canceled) + 1,
        time_us=terminated.time_us,
        status=RuntimeStatus.TERMINATED,
        failure=Failure(kind="cancelled", type_name=OrchestrationTerminatedError.__name__, message=asked.reason),
    )
    status = {
        **log.tail.header.status,
        "runtime_status": RuntimeStatus.TERMINATED.value,
        "updated_us": terminated.time_us,
    }
    lines, sections = encode_events([terminated, *canceled, end])
    await log.claim(lines, sections, first=terminated.number, status=status, hub_epoch=hub.epoch)
    return True


def _children(history: Iterable[Event]) -> list[int]:
    """The calls of other instances that have no answer, in order."""
    waiting: dict[int, None] = {}
    for event in history:
        if isinstance(event, SubOrchestrationInstanceCreated):
            waiting[event.number] = None
        elif isinstance(
            event,
            SubOrchestrationInstanceCompleted | SubOrchestrationInstanceFailed | SubOrchestrationInstanceCanceled,
        ):
            waiting.pop(event.task, None)
    return list(waiting)
