"""The end of an execution that cannot be loaded: recorded without its code, its payloads and the engine.

What the log holds stays as it is; the termination and the end follow it, in the segment of a claim, so that an owner
that is still at work stands down. The next load finds an ended log, and does what is left to do.
"""

from __future__ import annotations

from collections.abc import Iterable

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
from ray_durable.errors import OrchestrationTerminatedError
from ray_durable.failure import Failure
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.records import encode_events
from ray_durable.runtime.succession import link_of

__all__ = ["record_termination"]


async def record_termination(hub: OpenHub, instance_id: str, asked: ExecutionTerminated, now_us: int) -> bool:
    """Append `asked` and the end; False, and nothing is written, if the execution has ended already.

    Raises:
        InstanceNotFoundError: there is no such instance.
        CorruptLogError: the log cannot be read.
        ClaimLostError: another owner was quicker.
    """
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
