"""What runs an activity: opaque to the engine, made by the context, used by the dispatcher and by workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_durable.reference import FunctionReference

__all__ = ["ActivityTarget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityTarget:
    """The function, its Ray options, and whether it runs in the orchestrator's process.

    `key` is equal for equal functions and options: calls with one key may share a slice. An attempt ends `timeout_s`
    seconds after its start on a worker, or `heartbeat_timeout_s` after its last heartbeat (None: never). A call that
    has lost `system_failures_max` workers in a row fails.
    """

    reference: FunctionReference
    options: Mapping[str, Any]
    is_local: bool
    key: str
    timeout_s: float | None = None
    heartbeat_timeout_s: float | None = None
    system_failures_max: int = 3
