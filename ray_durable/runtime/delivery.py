"""Bringing one message to its receiver, and what a message is to the instance that receives it.

A call of an instance needs storage alone: what is started is in the open set. Everything else goes to the receiver's
owner, who answers once it is in the receiver's log. Whatever is delivered twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from ray_durable.engine import (
    Event,
    EventRaised,
    ExecutionCompleted,
    ExecutionStarted,
    ExecutionTerminated,
    RuntimeStatus,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceFailed,
)
from ray_durable.errors import InstanceExistsError, InstanceNotFoundError
from ray_durable.failure import Failure
from ray_durable.runtime.correspondence import EndChild, Message, RaiseEvent, ReportEnd, StartChild
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lifecycle import Start, rewind_instance, start_instance
from ray_durable.runtime.ports import Clock, InstanceDirectory

__all__ = ["Courier", "received"]


class Courier:
    """Brings the messages of one instance. `answer` gets an input for the sender: a call that came to nothing."""

    def __init__(
        self, hub: OpenHub, instances: InstanceDirectory, clock: Clock, answer: Callable[[Event], None]
    ) -> None:
        self._hub = hub
        self._instances = instances
        self._clock = clock
        self._answer = answer

    async def deliver(self, message: Message) -> None:
        """Bring it; durable when this returns.

        Raises:
            InstanceEndedError, InstanceNotFoundError: nobody is there to take it.
        """
        if isinstance(message, StartChild):
            await self._start(message)
        else:
            await self._instances.deliver(message)

    async def _start(self, message: StartChild) -> None:
        called = await self._find(message)
        if called is None:
            try:
                await start_instance(self._hub, _start(message), now_us=self._clock.now_us())
            except InstanceExistsError as error:
                failure = Failure.from_exception(error, non_retryable=True)
                self._answer(SubOrchestrationInstanceFailed(task=message.number, failure=failure, message=message.id))
                return
        elif message.rewinds and not await self._go_on(message, called):
            return
        await self._instances.admit(message.receiver)

    async def _find(self, message: StartChild) -> ExecutionStarted | None:
        """The newest execution of what was called, if it is this very call's."""
        try:
            started = await self._hub.started(message.receiver)
        except InstanceNotFoundError:
            return None
        is_same = started.parent == message.parent or started.request_id == message.id
        return started if is_same else None

    async def _go_on(self, message: StartChild, called: ExecutionStarted) -> bool:
        """After a rewind of the caller: tell it what was completed meanwhile, let go on what failed. Whether that
        needs an owner."""
        end = await self._hub.end(message.receiver)
        if end is None:
            return True
        if end.status is RuntimeStatus.FAILED:
            request_id = f"{message.id}.rewound.{message.run}"
            reason = f"the instance {message.parent[0]!r} that called it was rewound"
            now_us = self._clock.now_us()
            await rewind_instance(self._hub, message.receiver, request_id, reason=reason, now_us=now_us)
            return True
        self._answer(_end_of(message.number, self._hub.detached(end), message.id))
        return False


def received(message: Message, started: ExecutionStarted) -> Event | None:
    """The input that a message is to the execution that receives it; None if it is meant for another one."""
    if isinstance(message, RaiseEvent):
        return EventRaised(name=message.name, value=message.value, event_id=message.id)
    if isinstance(message, EndChild):
        return ExecutionTerminated(reason=message.reason, request_id=message.id)
    assert isinstance(message, ReportEnd), "a call is delivered through storage"
    execution, _ = started.author_of(message.task)
    if execution != message.execution:
        return None
    if message.result is not None:
        return SubOrchestrationInstanceCompleted(task=message.task, result=message.result, message=message.id)
    assert message.failure is not None, "an end is a result or a failure"
    return SubOrchestrationInstanceFailed(task=message.task, failure=message.failure, message=message.id)


def _start(message: StartChild) -> Start:
    return Start(
        instance_id=message.receiver,
        name=message.name,
        input=message.input,
        request_id=message.id,
        run=message.run,
        reference=message.reference,
        version=message.version,
        parent=message.parent,
        depth=message.depth,
    )


def _end_of(task: int, end: ExecutionCompleted, message_id: str) -> Event:
    if end.result is not None:
        return SubOrchestrationInstanceCompleted(task=task, result=end.result, message=message_id)
    assert end.failure is not None, "what did not complete has a failure"
    return SubOrchestrationInstanceFailed(task=task, failure=end.failure, message=message_id)
