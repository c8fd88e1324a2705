"""The status of an instance: the summary in the header of its last segment, and what clients make of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ray_durable.engine import Counts, RuntimeStatus
from ray_durable.errors import CorruptLogError

__all__ = ["InstanceStatus", "Owner", "Progress", "summarize"]

_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Activity calls and map items together: how many ended well, how many failed for good, how many there are."""

    done: int = 0
    failed: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that last claimed the instance's log."""

    host: str
    pid: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceStatus:
    """What is known of an instance from storage alone.

    `name` is the orchestrator's registered name; times are in UTC. `start_at` is when its code is to begin, or was, if
    the start said so (`hub.start(at=...)`). `custom_status` is what the orchestrator last set.
    `problem` says what keeps the instance from going on, if anything does (its code cannot be imported, its log is
    damaged, ...); it goes on by itself once that is mended. `warnings` are what its owner noticed and went on with.
    """

    instance_id: str
    name: str
    runtime_status: RuntimeStatus
    execution: int
    created_at: datetime
    updated_at: datetime
    start_at: datetime | None = None
    custom_status: Any = None
    progress: Progress = field(default_factory=Progress)
    owner: Owner | None = None
    problem: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def created_us(self) -> int:
        """When it was started, in microseconds since the Unix epoch."""
        return (self.created_at - _EPOCH) // timedelta(microseconds=1)

    @property
    def updated_us(self) -> int:
        """When something was last recorded, in microseconds since the Unix epoch: of an ended one, its end."""
        return (self.updated_at - _EPOCH) // timedelta(microseconds=1)

    @property
    def is_ended(self) -> bool:
        """Whether the instance has come to its end."""
        return self.runtime_status.is_final

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any], *, problem: str | None = None) -> InstanceStatus:
        """The status that the header of a segment tells.

        Raises:
            CorruptLogError: it tells none; another program wrote it.
        """
        try:
            return cls._read(summary, problem)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptLogError(
                f"The status summary of instance {summary.get('instance')!r:.80} is not understood "
                f"({type(error).__name__}): run storage/verify.py",
                key=str(summary.get("instance")),
            ) from error

    @classmethod
    def _read(cls, summary: Mapping[str, Any], problem: str | None) -> InstanceStatus:
        owner, texts = summary.get("owner"), (summary["instance"], summary["name"])
        if not all(isinstance(text, str) for text in texts) or not isinstance(summary["execution"], int):
            raise TypeError("a field of another type")
        return cls(
            instance_id=summary["instance"],
            name=summary["name"],
            runtime_status=RuntimeStatus(summary["runtime_status"]),
            execution=summary["execution"],
            created_at=_EPOCH + timedelta(microseconds=summary["created_us"]),
            updated_at=_EPOCH + timedelta(microseconds=summary["updated_us"]),
            start_at=_EPOCH + timedelta(microseconds=summary["due_us"]) if "due_us" in summary else None,
            custom_status=summary.get("custom_status"),
            progress=Progress(**summary.get("progress", {})),
            owner=Owner(**owner) if owner else None,
            problem=problem,
            warnings=tuple(summary.get("warnings", ())),
        )


def summarize(
    *,
    instance_id: str,
    name: str,
    execution: int,
    request_id: str,
    created_us: int,
    updated_us: int,
    runtime_status: RuntimeStatus = RuntimeStatus.PENDING,
    due_us: int | None = None,
    custom_status: bytes | None = None,
    counts: Counts | None = None,
    owner: Owner | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """The summary for a segment's header. `custom_status` is JSON text."""
    summary: dict[str, Any] = {
        "instance": instance_id,
        "name": name,
        "execution": execution,
        "request_id": request_id,
        "runtime_status": runtime_status.value,
        "created_us": created_us,
        "updated_us": updated_us,
    }
    if due_us is not None:
        summary["due_us"] = due_us
    if custom_status is not None:
        summary["custom_status"] = json.loads(custom_status)
    if counts is not None:
        summary["progress"] = {
            "done": counts.tasks_completed + counts.map_items_completed,
            "failed": counts.tasks_failed + counts.map_items_failed,
            "total": counts.tasks_scheduled + counts.map_items_total,
        }
    if warnings:
        summary["warnings"] = list(warnings)
    if owner is not None:
        summary["owner"] = {"host": owner.host, "pid": owner.pid, "epoch": owner.epoch}
    return summary
