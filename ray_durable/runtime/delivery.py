"""Bringing one message to its receiver, and what a message is to the instance that receives it.

A call of an instance needs storage alone: what is started is in the open set. Everything else goes to the receiver's
owner, who answers once it is in the receiver's log. Whatever is delivered twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from ray_durable.engine import (
    Event,
    EventRaised,
    ExecutionStarted,
    ExecutionTerminated,
    RuntimeStatus,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceFailed,
)
from ray_durable.errors import InstanceExistsError, InstanceNotFoundError
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.runtime.correspondence import EndChild, Message, RaiseEvent, ReportEnd, StartChild
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lifecycle import Start, rewind_instance, start_instance
from ray_durable.runtime.ports import Clock, InstanceDirectory

__all__ = ["Courier", "received"]


class Courier:
    """Brings the messages of one instance. `answer` gets what a call comes to without an instance that would tell."""

    def __init__(
        self, hub: OpenHub, instances: InstanceDirectory, clock: Clock, answer: Callable[[ReportEnd], None]
    ) -> None:
        self._hub = hub
        self._instances = instances
        self._clock = clock
        self._answer = answer

    async def deliver(self, message: Message) -> None:
        """Bring it; durable when this returns.

        Raises:
            InstanceEndedError, InstanceNotFoundError: nobody is there to take it.
            TooManyEventsError: it is an event, and the receiver has no room for it now.
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
                self._answer(_answer(message, None, Failure.from_exception(error, non_retryable=True)))
                return
        elif message.rewinds:
            if not await self._go_on(message):
                return
        elif await self._hub.end(message.receiver) is not None:
            # Called before, and over: an owner would say again what it said, and to whom it calls the same.
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

    async def _go_on(self, message: StartChild) -> bool:
        """After a rewind of the caller: tell it what was completed meanwhile, let go on what failed. Whether that
        needs an owner."""
        end = await self._hub.end(message.receiver)
        if end is None:
            return True
        is_ours = end.status is RuntimeStatus.TERMINATED and await self._is_ended_by(message)
        if end.status is RuntimeStatus.FAILED or is_ours:
            request_id = f"{message.id}.rewound.{message.run}"
            reason = f"the instance {message.parent[0]!r} that called it was rewound"
            now_us = self._clock.now_us()
            await rewind_instance(
                self._hub, message.receiver, request_id, reason=reason, now_us=now_us, is_ended_by_caller=is_ours
            )
            return True
        end = self._hub.detached(end)
        self._answer(_answer(message, end.result, end.failure))
        return False

    async def _is_ended_by(self, message: StartChild) -> bool:
        """Whether it was the caller that terminated the instance, in what its rewind cut off."""
        ids = (
            event.request_id
            for event in await self._hub.history(message.receiver)
            if isinstance(event, ExecutionTerminated)
        )
        return any(request_id.split(".", 2)[2:] == [message.parent[0]] for request_id in ids)


def received(message: Message, started: ExecutionStarted) -> Event | None:
    """The input that a message is to the execution that receives it; None if it is meant for another one."""
    if isinstance(message, RaiseEvent):
        return EventRaised(name=message.name, value=message.value, event_id=message.id)
    if isinstance(message, EndChild):
        is_meant = started.parent == message.parent
        return ExecutionTerminated(reason=message.reason, request_id=message.id) if is_meant else None
    assert isinstance(message, ReportEnd), "a call is delivered through storage"
    execution, _ = started.author_of(message.task)
    if execution != message.execution:
        return None
    if message.result is not None:
        return SubOrchestrationInstanceCompleted(task=message.task, result=message.result, message=message.id)
    assert message.failure is not None, "an end is a result or a failure"
    return SubOrchestrationInstanceFailed(
        task=message.task, failure=message.failure, message=message.id, instance=message.instance
    )


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


def _answer(message: StartChild, result: Payload | None, failure: Failure | None) -> ReportEnd:
    """What the caller is told of a call, in the place of an instance that would tell."""
    caller, execution, task = message.parent
    return ReportEnd(
        id=message.id,
        number=message.number,
        receiver=caller,
        run=message.run,
        instance=message.receiver,
        execution=execution,
        task=task,
        ended=None,
        result=result,
        failure=failure,
    )
