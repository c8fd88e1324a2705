"""Durable orchestrations on Ray: ordinary Python functions that survive anything, with nothing but a bucket.

See the README for a first example, docs/architecture.md for how it works.
"""

from ray_durable.activity_context import ActivityCancelled, ActivityInfo, ActivityTimeoutError, current_activity
from ray_durable.authoring import Activity, Orchestrator, activity, orchestrator
from ray_durable.client import Hub, connect
from ray_durable.context import OrchestrationContext
from ray_durable.determinism import DeterminismWarning
from ray_durable.engine import RuntimeStatus
from ray_durable.errors import (
    ActivityError,
    ClosedError,
    ClusterConnectionError,
    ConfigurationError,
    CorruptLogError,
    DurableError,
    FencedError,
    FunctionNotFoundError,
    HubHeldError,
    InstanceActiveError,
    InstanceEndedError,
    InstanceExistsError,
    InstanceNotFoundError,
    InvalidIdError,
    InvalidOrchestratorError,
    NestingTooDeepError,
    NonDeterminismError,
    NotDeterministicError,
    OrchestrationFailedError,
    OrchestrationTerminatedError,
    PayloadTooLargeError,
    ScheduleNotFoundError,
    SerializationError,
    StoreError,
    StoreUnavailableError,
    SubOrchestrationError,
    TooManyEventsError,
    UnsupportedStoreError,
)
from ray_durable.failure import Failure
from ray_durable.handle import Handle
from ray_durable.reader import HubReader, browse
from ray_durable.retry import RetryPolicy
from ray_durable.runtime.explanation import Explanation, Waiting
from ray_durable.runtime.index_repair import RepairReport
from ray_durable.runtime.schedules import ScheduleStatus
from ray_durable.runtime.status import InstanceStatus, Owner, Progress
from ray_durable.schedule import ScheduleHandle

__all__ = [
    "Activity",
    "ActivityCancelled",
    "ActivityError",
    "ActivityInfo",
    "ActivityTimeoutError",
    "ClosedError",
    "ClusterConnectionError",
    "ConfigurationError",
    "CorruptLogError",
    "DeterminismWarning",
    "DurableError",
    "Explanation",
    "Failure",
    "FencedError",
    "FunctionNotFoundError",
    "Handle",
    "Hub",
    "HubHeldError",
    "HubReader",
    "InstanceActiveError",
    "InstanceEndedError",
    "InstanceExistsError",
    "InstanceNotFoundError",
    "InstanceStatus",
    "InvalidIdError",
    "InvalidOrchestratorError",
    "NestingTooDeepError",
    "NonDeterminismError",
    "NotDeterministicError",
    "OrchestrationContext",
    "OrchestrationFailedError",
    "OrchestrationTerminatedError",
    "Orchestrator",
    "Owner",
    "PayloadTooLargeError",
    "Progress",
    "RepairReport",
    "RetryPolicy",
    "RuntimeStatus",
    "ScheduleHandle",
    "ScheduleNotFoundError",
    "ScheduleStatus",
    "SerializationError",
    "StoreError",
    "StoreUnavailableError",
    "SubOrchestrationError",
    "TooManyEventsError",
    "UnsupportedStoreError",
    "Waiting",
    "activity",
    "browse",
    "connect",
    "current_activity",
    "orchestrator",
]
