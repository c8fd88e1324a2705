"""What the context's tests share: an orchestrator as an execution of the engine, without a runtime around it."""

from __future__ import annotations

from typing import Any

from ray_durable import registry
from ray_durable.authoring import Orchestrator
from ray_durable.codec import Codec, Trust
from ray_durable.context import Orchestration
from ray_durable.engine import Event, EventRaised, Execution, ExecutionStarted, TaskCompleted
from ray_durable.failure import Failure
from ray_durable.payload import Payload

T0_US = 1_700_000_000_000_000


class Running:
    """One execution of an orchestrator; `caused` collects what it asked for."""

    def __init__(self, function: Orchestrator[..., Any], *args: Any, trust: Trust = Trust.NONE, **fields: Any) -> None:
        self.codec = Codec(trust=trust)
        self.function = function
        self.execution = Execution(Orchestration(function, registry.reference_of(function), self.codec).main)
        self.started = ExecutionStarted(
            number=1,
            time_us=T0_US,
            instance_id="one",
            run="run",
            execution=1,
            name=function.name,
            input=self.codec.encode_call(function.calls, args, {}, where="input"),
            request_id="request",
            **fields,
        )
        self.caused: list[Event] = []
        self.apply(self.started)

    def apply(self, *events: Event) -> list[Event]:
        out = self.execution.apply(events)
        self.caused += out
        return out

    def complete(self, task: int, value: object) -> list[Event]:
        return self.apply(TaskCompleted(task=task, result=self.encode(value), time_us=T0_US))

    def raise_event(self, name: str, value: object) -> list[Event]:
        return self.apply(EventRaised(name=name, value=self.encode(value), time_us=T0_US))

    def encode(self, value: object) -> Payload:
        return self.codec.encode(value, where="value")

    @property
    def result(self) -> Any:
        """The decoded result; an error if there is none."""
        assert self.execution.failure is None, self.execution.failure.describe()
        assert self.execution.result is not None, f"it is {self.execution.status}"
        return self.codec.decode(self.execution.result, self.function.result_annotation, where="result")

    @property
    def failure(self) -> Failure:
        """Why it failed."""
        assert self.execution.failure is not None, f"it is {self.execution.status}"
        return self.execution.failure
