"""The end of an execution that cannot be loaded: recorded without its code, its payloads and the engine.

What the log holds stays as it is; the termination and the end follow it, in the segment of a claim, so that an owner
that is still at work stands down. The next load finds an ended log, and does what is left to do.
"""

from __future__ import annotations

from ray_durable.engine import ExecutionCompleted, ExecutionTerminated, RuntimeStatus
from ray_durable.errors import OrchestrationTerminatedError
from ray_durable.failure import Failure
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.records import encode_events

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
    if isinstance(last, ExecutionCompleted):
        return False
    terminated = asked.stamped(last.number + 1, max(now_us, last.time_us))
    end = ExecutionCompleted(
        number=last.number + 2,
        time_us=terminated.time_us,
        status=RuntimeStatus.TERMINATED,
        failure=Failure(kind="cancelled", type_name=OrchestrationTerminatedError.__name__, message=asked.reason),
    )
    status = {
        **log.tail.header.status,
        "runtime_status": RuntimeStatus.TERMINATED.value,
        "updated_us": terminated.time_us,
    }
    lines, sections = encode_events([terminated, end])
    await log.claim(lines, sections, first=terminated.number, status=status, hub_epoch=hub.epoch)
    return True
