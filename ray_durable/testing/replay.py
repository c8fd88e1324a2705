"""Running today's code over a recorded history, and what came of it.

Nothing is written and no activity runs: the engine compares what the code asks for with what the history holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray_durable import registry
from ray_durable.authoring import Orchestrator
from ray_durable.capture import Bundle
from ray_durable.codec import Codec
from ray_durable.context import Orchestration
from ray_durable.engine import Event, Execution, ExecutionCompleted, ExecutionRestarted, ExecutionStarted
from ray_durable.errors import DurableError, FunctionNotFoundError, NonDeterminismError
from ray_durable.reference import FunctionReference
from ray_durable.testing.stage import IN_PROCESS

__all__ = ["Replay", "ReplayError", "ReplayOutcome", "ReplayReport", "orchestration_of", "replay"]

ReplayOutcome = Literal["ok", "diverged", "not loaded"]

_RECORDED_WITHOUT_CODE = ("NonDeterminismError", "PayloadTooLargeError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of one history. True if today's code did what the history holds.

    `outcome` is "diverged" when it did something else (`error` is the NonDeterminismError with the difference), "not
    loaded" when code or history could not be had. `warnings` tell of what may matter: a source that has changed.
    """

    instance_id: str
    name: str
    execution: int
    event_count: int
    outcome: ReplayOutcome
    error: Exception | None = None
    warnings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.outcome == "ok"

    def __str__(self) -> str:
        head = f"{self.instance_id} ({self.name or '?'}, execution {self.execution}): {self.outcome}"
        lines = [f"{head}, {self.event_count} events"]
        if self.error is not None:
            lines += [f"    {line}" for line in f"{type(self.error).__name__}: {self.error}".splitlines()]
        return "\n".join([*lines, *(f"    warning: {warning}" for warning in self.warnings)])

    def raise_if_failed(self) -> None:
        """Raise the error, if there is one: NonDeterminismError with the difference, or why it could not be loaded."""
        if self.error is not None:
            raise self.error


class ReplayError(DurableError, AssertionError):
    """Recorded histories that today's code does not replay. `report`."""

    report: ReplayReport


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What came of many histories. True if all were replayed; its text names those that were not."""

    replays: tuple[Replay, ...]

    @property
    def failed(self) -> tuple[Replay, ...]:
        """Those that diverged or could not be loaded."""
        return tuple(one for one in self.replays if not one)

    def __bool__(self) -> bool:
        return not self.failed

    def __len__(self) -> int:
        return len(self.replays)

    def __iter__(self) -> Iterator[Replay]:
        return iter(self.replays)

    def __str__(self) -> str:
        failed = self.failed
        head = f"{len(self) - len(failed)} of {len(self)} histories are replayed by this code"
        return "\n".join([head, *map(str, failed)])

    def raise_if_failed(self) -> None:
        """Raise ReplayError if there is any that was not replayed."""
        if not self:
            raise ReplayError(str(self), report=self)


def replay(history: Sequence[Event], orchestration: Orchestration) -> Replay:
    """Run the code over a history whose payloads are loaded. Never raises for what the code does."""
    started = history[0]
    assert isinstance(started, ExecutionStarted), "a history begins with its start"
    warning = registry.changed_source(orchestration.reference)
    error: Exception | None = None
    execution = Execution(orchestration.main)
    try:
        recorded = _of_the_code(history)
        if len(recorded) > 1:
            execution.apply(recorded)
        else:
            # Nobody ran the code yet: to do so here could have effects (ctx.side_effect).
            orchestration.arguments(started)
    except Exception as raised:
        error = raised
    finally:
        execution.close()
    return Replay(
        instance_id=started.instance_id,
        name=started.name,
        execution=started.execution,
        event_count=len(history),
        outcome="ok" if error is None else "diverged" if isinstance(error, NonDeterminismError) else "not loaded",
        error=error,
        warnings=() if warning is None else (warning,),
    )


def orchestration_of(started: ExecutionStarted, codec: Codec, function: Orchestrator[..., Any] | None) -> Orchestration:
    """The code for a history without its hub: `function`, or what the history's start names.

    Raises:
        FunctionNotFoundError: it cannot be imported, or was captured from a script.
    """
    reference = FunctionReference.from_json(started.reference or {"name": started.name})
    if function is None:
        found = registry.resolve(reference, _bundle)
        if not isinstance(found, Orchestrator):
            raise FunctionNotFoundError(f"{found!r} is no orchestrator", name=started.name)
        function = found
    if not function.is_importable:
        reference = FunctionReference(name=function.name, code=IN_PROCESS)
    return Orchestration(function, reference, codec, registry.registered() if reference.code else None)


def _of_the_code(history: Sequence[Event]) -> Sequence[Event]:
    """The history without what was recorded when the code could not go on: that says nothing of the code."""
    end = len(history)
    if isinstance(history[-1], ExecutionRestarted):
        end -= 1
    last = history[end - 1]
    failure = last.failure if isinstance(last, ExecutionCompleted) else None
    if failure is not None and failure.kind == "system" and failure.type_name in _RECORDED_WITHOUT_CODE:
        end -= 1
    return history[:end]


def _bundle(digest: str) -> Bundle:
    if digest != IN_PROCESS:
        raise FunctionNotFoundError(
            "Its code was captured from a script and lies in its hub: check it there, or give the orchestrator",
            name=digest,
        )
    return Bundle(registry.registered(), {})
