"""The engine: events in, commands out.

Sans-IO: it knows no clock, no randomness, no thread, no network and no Ray. `Execution` is the machine; `events` are
what goes in and out; the deterministic event loop, on which the orchestrator's coroutines run, is inside.
"""

from ray_durable.engine.events import (
    Caused,
    Command,
    CustomStatusSet,
    Event,
    EventRaised,
    ExecutionCompleted,
    ExecutionStarted,
    ExecutionTerminated,
    Input,
    MapCanceled,
    MapCompleted,
    MapItemsScheduled,
    MapScheduled,
    OwnerClaimed,
    RuntimeStatus,
    TaskCanceled,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    TimerCanceled,
    TimerCreated,
    TimerFired,
)
from ray_durable.engine.execution import Execution
from ray_durable.engine.generators import drive_generator
from ray_durable.engine.interrupts import ExecutionClosed
from ray_durable.engine.maps import OutstandingMap
from ray_durable.engine.state import Counts

__all__ = [
    "Caused",
    "Command",
    "Counts",
    "CustomStatusSet",
    "Event",
    "EventRaised",
    "Execution",
    "ExecutionClosed",
    "ExecutionCompleted",
    "ExecutionStarted",
    "ExecutionTerminated",
    "Input",
    "MapCanceled",
    "MapCompleted",
    "MapItemsScheduled",
    "MapScheduled",
    "OutstandingMap",
    "OwnerClaimed",
    "RuntimeStatus",
    "TaskCanceled",
    "TaskCompleted",
    "TaskFailed",
    "TaskScheduled",
    "TimerCanceled",
    "TimerCreated",
    "TimerFired",
    "drive_generator",
]
