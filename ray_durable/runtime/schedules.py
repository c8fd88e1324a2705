"""Schedules: what starts an instance at each time of a cron expression, and how clients change it.

A schedule is an object of the hub, found again after the loss of everything. What it started is derived: the id of a
firing's instance is made of the schedule's id and the time, so that however many start it, it is one instance. Every
change is a new revision, for which all who want one contend; `runtime.firing` notes in the same way what is settled.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast, get_args

from ray_durable.authoring import Orchestrator
from ray_durable.errors import (
    ConfigurationError,
    CorruptLogError,
    InvalidIdError,
    PayloadTooLargeError,
    ScheduleNotFoundError,
)
from ray_durable.payload import Payload
from ray_durable.runtime.cron import Cron
from ray_durable.runtime.explanation import at
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lifecycle import Start, start_instance
from ray_durable.runtime.records import decode_payload, encode_payload
from ray_durable.storage import (
    ScheduleRecord,
    check_instance_id,
    create_schedule_revision,
    find_schedule,
    list_schedules,
)

__all__ = [
    "Overlap",
    "Schedule",
    "ScheduleOptions",
    "ScheduleStatus",
    "change_schedule",
    "check_overlap",
    "check_schedule_id",
    "define_schedule",
    "delete_schedule",
    "load_schedule",
    "pause_schedule",
    "resume_schedule",
    "schedule_statuses",
    "status_of",
    "trigger_schedule",
]

Overlap = Literal["skip", "allow", "cancel_previous", "buffer_one"]
"""What becomes of a firing while the instance of the one before has not ended: it is skipped; or started all the same;
or started once the other is terminated; or, one at most, started when the other ends."""

_ID_CHARS_MAX = 200
_INPUT_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule as it is stored. Times are in microseconds; firings up to `from_us` are settled.

    `last` is (instance id, due time) of the latest firing that was started, `waiting_us` a firing that waits for its
    end.
    """

    schedule_id: str
    cron: str
    timezone: str
    overlap: Overlap
    catch_up_us: int
    name: str
    input: Payload
    created_us: int
    from_us: int
    reference: dict[str, Any] | None = None
    version: str | None = None
    paused: bool = False
    note: str = ""
    last: tuple[str, int] | None = None
    waiting_us: int | None = None
    started: int = 0
    skipped: int = 0

    def times(self, now_us: int) -> Cron:
        """When it fires."""
        return Cron.parse(self.cron, self.timezone, now_us)

    def instance_id(self, due_us: int) -> str:
        """The id of the instance of one firing."""
        return f"{self.schedule_id}@{at(due_us):%Y%m%dT%H%M%SZ}"

    def start(self, instance_id: str, request_id: str) -> Start:
        """What starts an instance."""
        return Start(
            instance_id=instance_id,
            name=self.name,
            input=self.input,
            request_id=request_id,
            reference=self.reference,
            version=self.version,
        )

    def to_json(self) -> dict[str, Any]:
        """What is stored."""
        fields: dict[str, Any] = {
            "cron": self.cron,
            "timezone": self.timezone,
            "overlap": self.overlap,
            "catch_up_s": self.catch_up_us / 1_000_000,
            "name": self.name,
            "input": encode_payload(self.input),
            "created_us": self.created_us,
            "from_us": self.from_us,
            "started": self.started,
            "skipped": self.skipped,
        }
        optional = {
            "reference": self.reference,
            "version": self.version,
            "paused": self.paused or None,
            "note": self.note or None,
            "last": None if self.last is None else {"instance": self.last[0], "due_us": self.last[1]},
            "waiting_us": self.waiting_us,
        }
        return fields | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def from_record(cls, record: ScheduleRecord) -> Schedule | None:
        """The schedule that a revision describes; None if it was deleted. CorruptLogError if it describes none."""
        fields = record.fields
        if fields is None:
            return None
        try:
            return cls._of(record.schedule_id, fields)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise CorruptLogError(
                f"The schedule {record.schedule_id!r} is damaged ({type(error).__name__}): delete it, define it anew",
                key=record.schedule_id,
            ) from error

    @classmethod
    def _of(cls, schedule_id: str, fields: Mapping[str, Any]) -> Schedule:
        last = fields.get("last")
        return cls(
            schedule_id=schedule_id,
            cron=fields["cron"],
            timezone=fields["timezone"],
            overlap=check_overlap(fields["overlap"]),
            catch_up_us=round(fields["catch_up_s"] * 1_000_000),
            name=fields["name"],
            input=decode_payload(fields["input"]),
            created_us=fields["created_us"],
            from_us=fields["from_us"],
            reference=fields.get("reference"),
            version=fields.get("version"),
            paused=fields.get("paused", False),
            note=fields.get("note", ""),
            last=(last["instance"], last["due_us"]) if last else None,
            waiting_us=fields.get("waiting_us"),
            started=fields.get("started", 0),
            skipped=fields.get("skipped", 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """When a schedule fires and what then, as a caller says it."""

    cron: str
    timezone: str
    overlap: Overlap
    catch_up: timedelta

    def check_for(self, function: Orchestrator[..., Any]) -> None:
        """ConfigurationError if an option cannot work, or the orchestrator would never get a parameter of its name."""
        check_overlap(self.overlap)
        catch_up: object = self.catch_up
        if not isinstance(catch_up, timedelta) or catch_up < timedelta(0):
            raise ConfigurationError(f"catch_up is {catch_up!r}: give a timedelta of zero or more")
        for name, parameter in function.signature.parameters.items():
            if name in ("timezone", "overlap", "catch_up") and parameter.kind is not parameter.POSITIONAL_ONLY:
                raise ConfigurationError(
                    f"Orchestrator {function.name!r} has a parameter {name!r}, which hub.schedule takes for itself: "
                    f"rename it, or make it positional-only (`{name}, /`)"
                )

    def schedule(
        self,
        schedule_id: str,
        function: Orchestrator[..., Any],
        encoded: Payload,
        reference: dict[str, Any],
        now_us: int,
    ) -> Schedule:
        """The schedule that begins now. ConfigurationError if its times cannot be."""
        Cron.parse(self.cron, self.timezone, now_us)
        return Schedule(
            schedule_id=schedule_id,
            cron=self.cron,
            timezone=self.timezone,
            overlap=self.overlap,
            catch_up_us=self.catch_up // timedelta(microseconds=1),
            name=function.name,
            input=encoded,
            created_us=now_us,
            from_us=now_us,
            reference=reference,
            version=function.version,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleStatus:
    """What is known of a schedule. Times are in UTC.

    `name` is the orchestrator's, `next_at` when it fires next (None while it is paused). `last_at` and
    `last_instance_id` are of the latest firing that was started. `started` counts firings that were, `skipped` those
    that were not because an earlier one had not ended.
    """

    schedule_id: str
    name: str
    cron: str
    timezone: str
    overlap: Overlap
    catch_up: timedelta
    created_at: datetime
    paused: bool
    note: str
    next_at: datetime | None
    last_at: datetime | None
    last_instance_id: str | None
    started: int
    skipped: int


async def define_schedule(hub: OpenHub, wanted: Schedule) -> None:
    """Make a schedule, or replace the one of this id: its past stays, and so does that it is paused.

    With other times than before, those up to now are settled; with the same, none is lost.
    """
    if wanted.input.size > _INPUT_BYTES_MAX:
        where = f"arguments of schedule {wanted.schedule_id!r}"
        raise PayloadTooLargeError(
            f"The {where} take {wanted.input.size:,} bytes, and a schedule keeps at most {_INPUT_BYTES_MAX:,}: store "
            "them elsewhere, and give their place",
            where=where,
            size_bytes=wanted.input.size,
            limit_bytes=_INPUT_BYTES_MAX,
        )
    while True:
        record = await _find(hub, wanted.schedule_id)
        present = None if record is None else Schedule.from_record(record)
        changed = wanted if present is None else _replaced(present, wanted)
        if await _write(hub, wanted.schedule_id, record, changed.to_json()):
            return


def _replaced(present: Schedule, wanted: Schedule) -> Schedule:
    is_same = (present.cron, present.timezone) == (wanted.cron, wanted.timezone)
    return dataclasses.replace(
        wanted,
        created_us=present.created_us,
        from_us=present.from_us if is_same else max(present.from_us, wanted.from_us),
        paused=present.paused,
        note=present.note,
        last=present.last,
        waiting_us=present.waiting_us if wanted.overlap == "buffer_one" else None,
        started=present.started,
        skipped=present.skipped,
    )


async def change_schedule(hub: OpenHub, schedule_id: str, change: Callable[[Schedule], Schedule]) -> Schedule:
    """Apply `change` to the newest revision, anew whenever somebody else got ahead; what is there then.

    `change` may meet what it made itself, when the store's answer was lost.

    Raises:
        ScheduleNotFoundError: there is no such schedule (any more).
    """
    while True:
        record = await _find(hub, schedule_id)
        present = None if record is None else Schedule.from_record(record)
        if present is None:
            raise _not_found(hub, schedule_id)
        changed = change(present)
        if changed == present or await _write(hub, schedule_id, record, changed.to_json()):
            return changed


async def pause_schedule(hub: OpenHub, schedule_id: str, note: str) -> None:
    """Start nothing from now on."""
    await change_schedule(
        hub, schedule_id, lambda present: dataclasses.replace(present, paused=True, note=note, waiting_us=None)
    )


async def resume_schedule(hub: OpenHub, schedule_id: str, now_us: int) -> None:
    """Go on with the firings that come; those of the meantime are settled."""

    def resume(present: Schedule) -> Schedule:
        if not present.paused:
            return present
        return dataclasses.replace(present, paused=False, note="", from_us=max(present.from_us, now_us))

    await change_schedule(hub, schedule_id, resume)


async def delete_schedule(hub: OpenHub, schedule_id: str) -> None:
    """Remove it, damaged or not; what it started goes on. ScheduleNotFoundError if there is none."""
    while True:
        record = await _find(hub, schedule_id)
        if record is None or record.fields is None:
            raise _not_found(hub, schedule_id)
        if await _write(hub, schedule_id, record, None):
            return


async def trigger_schedule(hub: OpenHub, schedule_id: str, now_us: int) -> str:
    """Start an instance now, beside the firings; its id, which no firing has."""
    schedule = await load_schedule(hub, schedule_id)
    instance_id = f"{schedule_id}@{at(now_us):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"
    start = schedule.start(instance_id, secrets.token_hex(16))
    await start_instance(hub, start, now_us=now_us, reuses_ended=False)
    return instance_id


async def load_schedule(hub: OpenHub, schedule_id: str) -> Schedule:
    """The schedule of this id. ScheduleNotFoundError if there is none."""
    return await change_schedule(hub, schedule_id, lambda present: present)


async def schedule_statuses(hub: OpenHub, now_us: int) -> list[ScheduleStatus]:
    """All schedules of the hub, by id."""
    records = await list_schedules(hub.store, hub.keys)
    present = [schedule for record in records if (schedule := Schedule.from_record(record)) is not None]
    return sorted((status_of(one, now_us) for one in present), key=lambda status: status.schedule_id)


def status_of(schedule: Schedule, now_us: int) -> ScheduleStatus:
    """What a schedule shows of itself."""
    next_us = None if schedule.paused else schedule.times(now_us).next_us(max(schedule.from_us, now_us))
    last_instance_id, last_us = schedule.last or (None, None)
    return ScheduleStatus(
        schedule_id=schedule.schedule_id,
        name=schedule.name,
        cron=schedule.cron,
        timezone=schedule.timezone,
        overlap=schedule.overlap,
        catch_up=timedelta(microseconds=schedule.catch_up_us),
        created_at=at(schedule.created_us),
        paused=schedule.paused,
        note=schedule.note,
        next_at=None if next_us is None else at(next_us),
        last_at=None if last_us is None else at(last_us),
        last_instance_id=last_instance_id,
        started=schedule.started,
        skipped=schedule.skipped,
    )


def check_schedule_id(schedule_id: str) -> None:
    """InvalidIdError unless it may be a schedule's: like an instance's, with at most 200 characters."""
    check_instance_id(schedule_id)
    if len(schedule_id) > _ID_CHARS_MAX:
        raise InvalidIdError(
            f"The schedule id {schedule_id!r:.80} has {len(schedule_id)} characters: give at most {_ID_CHARS_MAX}, so "
            "that the ids of its instances have room for their times"
        )


def check_overlap(overlap: object) -> Overlap:
    """ConfigurationError unless it is a policy."""
    if overlap not in get_args(Overlap):
        known = ", ".join(map(repr, get_args(Overlap)))
        raise ConfigurationError(f"overlap is {overlap!r}: give one of {known}")
    return cast(Overlap, overlap)


async def _find(hub: OpenHub, schedule_id: str) -> ScheduleRecord | None:
    return await find_schedule(hub.store, hub.keys, schedule_id)


async def _write(hub: OpenHub, schedule_id: str, before: ScheduleRecord | None, fields: dict[str, Any] | None) -> bool:
    """Write the revision that follows; False if somebody else got ahead."""
    revision = 1 if before is None else before.revision + 1
    record = ScheduleRecord(schedule_id=schedule_id, revision=revision, fields=fields)
    return await create_schedule_revision(hub.store, hub.keys, record)


def _not_found(hub: OpenHub, schedule_id: str) -> ScheduleNotFoundError:
    return ScheduleNotFoundError(
        f"There is no schedule {schedule_id!r} in hub {hub.address.hub!r} at {hub.store.url}: hub.schedules() lists "
        "those that there are",
        schedule_id=schedule_id,
    )
