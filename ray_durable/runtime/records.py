"""Events of the engine as the lines of a segment, and back.

storage/FORMAT.md fixes the form: one JSON object a line with `n`, `t` and `type`; payloads that are JSON stand in the
line as themselves, small binary ones as base64, larger ones as raw sections behind the lines, blobs by their digest.
Any text can be written: a lone surrogate, which UTF-8 cannot hold, stands as its JSON escape.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ray_durable.engine import (
    ContinueAsNew,
    CustomStatusSet,
    Event,
    EventRaised,
    EventSent,
    ExecutionCompleted,
    ExecutionRestarted,
    ExecutionResumed,
    ExecutionRewound,
    ExecutionStarted,
    ExecutionSuspended,
    ExecutionTerminated,
    Input,
    MapCanceled,
    MapCompleted,
    MapItemsScheduled,
    MapScheduled,
    MarkerRecorded,
    OutboxDelivered,
    OwnerClaimed,
    RuntimeStatus,
    SubOrchestrationInstanceCanceled,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    SubOrchestrationInstanceFailed,
    TaskCanceled,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    TimerCanceled,
    TimerCreated,
    TimerFired,
)
from ray_durable.errors import CorruptLogError
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.runtime.shapes import check_event, check_failure, check_payload

__all__ = ["decode_events", "decode_payload", "encode_events", "encode_payload"]

_INLINE_BINARY_BYTES_MAX = 512
"""Base64 costs a third more and nobody can read it: beyond this size a raw section is better."""

_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=True).encode

_E = TypeVar("_E", bound=Event)
_Fields = Callable[[Any, list[bytes]], str]
_Place = dict[str, Any]
_Reader = Callable[[dict[str, Any], Sequence[bytes], _Place], Event]


def encode_events(events: Iterable[Event]) -> tuple[list[bytes], list[bytes]]:
    """The lines of `events`, and the binary sections that the lines refer to."""
    sections: list[bytes] = []
    lines: list[bytes] = []
    for event in events:
        # What Python writes for a lone surrogate is JSON's escape too.
        lines.append(_line(event, sections).encode("utf-8", "backslashreplace"))
    return lines, sections


def _line(event: Event, sections: list[bytes]) -> str:
    kind = type(event)
    return f'{{"n":{event.number},"t":{event.time_us},"type":"{kind.__name__}"{_WRITERS[kind](event, sections)}}}'


def decode_events(lines: Iterable[bytes], sections: Sequence[bytes], *, key: str) -> list[Event]:
    """Inverse of `encode_events`. `key` names the object in errors.

    Raises:
        CorruptLogError: a line that is no event, or an event type that this version does not know.
    """
    events: list[Event] = []
    for line in lines:
        try:
            record = json.loads(line)
            if record["type"] not in _READERS:
                raise CorruptLogError(
                    f"{key} holds an event of type {record['type']!r}, which this version of ray_durable does not "
                    "know: upgrade ray_durable on every machine of the cluster",
                    key=key,
                )
            events.append(_event(record, sections))
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise CorruptLogError(
                f"{key} holds a line that is no event ({type(error).__name__} in line {len(events) + 1})", key=key
            ) from error
    return events


def _event(record: dict[str, Any], sections: Sequence[bytes]) -> Event:
    return check_event(_READERS[record["type"]](record, sections, {"number": record["n"], "time_us": record["t"]}))


def encode_payload(payload: Payload) -> dict[str, Any]:
    """A payload with all of its bytes, as JSON: for objects that have no sections."""
    if payload.encoding == "json":
        return {"json": json.loads(payload.bytes)}
    return {payload.encoding: base64.b64encode(payload.bytes).decode()}


def decode_payload(fields: dict[str, Any]) -> Payload:
    """Inverse of `encode_payload`. ValueError if it is none."""
    return _payload(fields, ())


def _payload_text(payload: Payload, sections: list[bytes]) -> str:
    if payload.blob is not None:
        return _text({"encoding": payload.encoding, "blob": payload.blob, "size": payload.size})
    if payload.encoding == "json":
        return f'{{"json":{payload.bytes.decode()}}}'
    if payload.size <= _INLINE_BINARY_BYTES_MAX:
        return f'{{"{payload.encoding}":"{base64.b64encode(payload.bytes).decode()}"}}'
    sections.append(payload.bytes)
    return _text({"encoding": payload.encoding, "section": len(sections) - 1, "size": payload.size})


def _payload(fields: dict[str, Any], sections: Sequence[bytes]) -> Payload:
    if not isinstance(fields, dict):
        raise TypeError("payload")
    if "json" in fields:
        return Payload.of("json", _text(fields["json"]).encode("utf-8", "backslashreplace"))
    if "blob" in fields:
        blob = Payload(encoding=fields["encoding"], data=None, size=fields["size"], blob=fields["blob"])
        return check_payload(blob)
    if "section" in fields:
        number = fields["section"]
        if type(number) is not int or number < 0:
            raise ValueError("sections are counted from 0")
        return check_payload(Payload(encoding=fields["encoding"], data=sections[number], size=fields["size"]))
    ((encoding, encoded),) = fields.items()
    return Payload.of(encoding, base64.b64decode(encoded, validate=True))


def _failure_json(failure: Failure) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": failure.kind, "type": failure.type_name, "message": failure.message}
    if failure.traceback:
        fields["traceback"] = failure.traceback
    if failure.non_retryable:
        fields["non_retryable"] = True
    if failure.bases:
        fields["bases"] = failure.bases
    if failure.cause is not None:
        fields["cause"] = _failure_json(failure.cause)
    return fields


def _failure(fields: dict[str, Any]) -> Failure:
    if not isinstance(fields, dict):
        raise TypeError("failure")
    failure = Failure(
        kind=fields["kind"],
        type_name=fields["type"],
        message=fields["message"],
        traceback=fields.get("traceback", ""),
        non_retryable=fields.get("non_retryable", False),
        bases=tuple(fields.get("bases", ())),
        cause=_failure(fields["cause"]) if "cause" in fields else None,
    )
    return check_failure(failure)


def _lost(event: TaskCompleted | TaskFailed | MapCompleted) -> str:
    return f',"lost_workers":{event.lost_workers}' if event.lost_workers else ""


def _write_started(event: ExecutionStarted, sections: list[bytes]) -> str:
    fields: dict[str, Any] = {
        "instance": event.instance_id,
        "run": event.run,
        "execution": event.execution,
        "name": event.name,
        "request_id": event.request_id,
    }
    optional = {
        "reference": event.reference,
        "version": event.version,
        "parent": _named(_PARENT, event.parent),
        "depth": event.depth or None,
        "due": event.due_us,
        "previous": _named(_PREVIOUS, event.previous),
        "owes": event.owes or None,
        "recent": event.recent or None,
        "origin": event.origin,
        "lineage": event.lineage or None,
        "foreign": event.foreign or None,
    }
    fields |= {name: value for name, value in optional.items() if value is not None}
    carried = ",".join(_line(one, sections) for one in event.carried)
    handed_on = f',"carried":[{carried}]' if carried else ""
    return f',{_text(fields)[1:-1]}{handed_on},"input":{_payload_text(event.input, sections)}'


_PARENT = ("instance", "execution", "task")
_PREVIOUS = ("instance", "execution", "run")


def _parent(record: dict[str, Any]) -> tuple[str, int, int] | None:
    parent = record.get("parent")
    return (parent["instance"], parent["execution"], parent["task"]) if parent else None


def _named(names: tuple[str, ...], values: tuple[Any, ...] | None) -> dict[str, Any] | None:
    return None if values is None else dict(zip(names, values, strict=True))


def _read_started(record: dict[str, Any], sections: Sequence[bytes], place: _Place) -> Event:
    previous = record.get("previous")
    return ExecutionStarted(
        **place,
        instance_id=record["instance"],
        run=record["run"],
        execution=record["execution"],
        name=record["name"],
        request_id=record["request_id"],
        reference=record.get("reference"),
        version=record.get("version"),
        parent=_parent(record),
        depth=record.get("depth", 0),
        due_us=record.get("due"),
        previous=(previous["instance"], previous["execution"], previous["run"]) if previous else None,
        owes=record.get("owes", False),
        carried=tuple(_read_carried(one, sections) for one in record.get("carried", ())),
        recent=tuple(record.get("recent", ())),
        origin=record.get("origin"),
        lineage=tuple((through, execution, run) for through, execution, run in record.get("lineage", ())),
        foreign=record.get("foreign", 0),
        input=_payload(record["input"], sections),
    )


def _read_carried(record: dict[str, Any], sections: Sequence[bytes]) -> Input:
    event = _event(record, sections)
    if not isinstance(event, Input):
        raise ValueError("what is handed on is an input")
    return event


def _write_claimed(event: OwnerClaimed, _: list[bytes]) -> str:
    fields = {"epoch": event.epoch, "hub_epoch": event.hub_epoch, "host": event.host, "pid": event.pid}
    python = {"python": event.python} if event.python else {}
    return f",{_text({**fields, **python, 'attempts': event.attempts})[1:-1]}"


def _read_claimed(record: dict[str, Any], _: Sequence[bytes], place: _Place) -> Event:
    return OwnerClaimed(
        **place,
        epoch=record["epoch"],
        hub_epoch=record["hub_epoch"],
        host=record["host"],
        pid=record["pid"],
        attempts=tuple((task, attempt) for task, attempt in record["attempts"]),
        python=record.get("python", ""),
    )


def _write_task(event: TaskScheduled, sections: list[bytes]) -> str:
    retry = "" if event.retry_of is None else f',"retry_of":{event.retry_of}'
    name = _text(event.name)
    return f',"name":{name},"attempt":{event.attempt}{retry},"input":{_payload_text(event.input, sections)}'


def _read_task(record: dict[str, Any], sections: Sequence[bytes], place: _Place) -> Event:
    return TaskScheduled(
        **place,
        name=record["name"],
        attempt=record["attempt"],
        retry_of=record.get("retry_of"),
        input=_payload(record["input"], sections),
    )


def _write_map_completed(event: MapCompleted, sections: list[bytes]) -> str:
    fields: dict[str, Any] = {"map": event.map, "start": event.start, "count": event.count}
    if event.failures:
        fields["failures"] = [[offset, _failure_json(failure)] for offset, failure in event.failures]
    said = ",".join(f"[{offset},{_payload_text(payload, sections)}]" for offset, payload in event.heartbeats)
    heartbeats = f',"heartbeats":[{said}]' if said else ""
    return f',{_text(fields)[1:-1]}{_lost(event)}{heartbeats},"results":{_payload_text(event.results, sections)}'


def _read_map_completed(record: dict[str, Any], sections: Sequence[bytes], place: _Place) -> Event:
    return MapCompleted(
        **place,
        map=record["map"],
        start=record["start"],
        count=record["count"],
        results=_payload(record["results"], sections),
        failures=tuple((offset, _failure(failure)) for offset, failure in record.get("failures", ())),
        lost_workers=record.get("lost_workers", 0),
        heartbeats=tuple((offset, _payload(said, sections)) for offset, said in record.get("heartbeats", ())),
    )


def _write_restarted(event: ExecutionRestarted, sections: list[bytes]) -> str:
    fields: dict[str, Any] = {"kind": event.kind, "run": event.run, "request_id": event.request_id}
    optional = {
        "reason": event.reason or None,
        "name": event.name,
        "reference": event.reference,
        "version": event.version,
        "parent": _named(_PARENT, event.parent),
        "depth": event.depth or None,
        "due": event.due_us,
        "through": event.through or None,
        "kept": event.kept or None,
    }
    fields |= {name: value for name, value in optional.items() if value is not None}
    given = "" if event.input is None else f',"input":{_payload_text(event.input, sections)}'
    return f",{_text(fields)[1:-1]}{given}"


def _read_restarted(record: dict[str, Any], sections: Sequence[bytes], place: _Place) -> Event:
    return ExecutionRestarted(
        **place,
        kind=record["kind"],
        run=record["run"],
        request_id=record["request_id"],
        reason=record.get("reason", ""),
        name=record.get("name"),
        input=_payload(record["input"], sections) if "input" in record else None,
        reference=record.get("reference"),
        version=record.get("version"),
        parent=_parent(record),
        depth=record.get("depth", 0),
        due_us=record.get("due"),
        through=record.get("through", 0),
        kept=tuple(record.get("kept", ())),
    )


def _write_child(event: SubOrchestrationInstanceCreated, sections: list[bytes]) -> str:
    fields: dict[str, Any] = {"name": event.name, "attempt": event.attempt}
    optional = {
        "instance": event.instance,
        "retry_of": event.retry_of,
        "reference": event.reference,
        "version": event.version,
    }
    fields |= {name: value for name, value in optional.items() if value is not None}
    return f',{_text(fields)[1:-1]},"input":{_payload_text(event.input, sections)}'


def _read_child(record: dict[str, Any], sections: Sequence[bytes], place: _Place) -> Event:
    return SubOrchestrationInstanceCreated(
        **place,
        name=record["name"],
        input=_payload(record["input"], sections),
        instance=record.get("instance"),
        attempt=record["attempt"],
        retry_of=record.get("retry_of"),
        reference=record.get("reference"),
        version=record.get("version"),
    )


def _write_continued(event: ContinueAsNew, sections: list[bytes]) -> str:
    carried = f',"carried":{_text(event.carried)}' if event.carried else ""
    return f',"run":{_text(event.run)}{carried},"input":{_payload_text(event.input, sections)}'


def _write_marker(event: MarkerRecorded, sections: list[bytes]) -> str:
    fields = {"kind": event.kind} | ({"id": event.id} if event.id else {})
    value = "" if event.value is None else f',"value":{_payload_text(event.value, sections)}'
    return f",{_text(fields)[1:-1]}{value}"


def _write_control(event: ExecutionSuspended | ExecutionResumed | ExecutionRewound, _: list[bytes]) -> str:
    return f",{_text({'reason': event.reason, 'request_id': event.request_id})[1:-1]}"


def _write_terminated(event: ExecutionTerminated, _: list[bytes]) -> str:
    fields: dict[str, Any] = {"reason": event.reason, "request_id": event.request_id}
    # Absent: true, as it was before anybody could choose.
    return f",{_text(fields if event.recursive else fields | {'recursive': False})[1:-1]}"


def _read_control(kind: type[ExecutionSuspended | ExecutionResumed | ExecutionRewound]) -> _Reader:
    return lambda record, _, at: kind(**at, reason=record["reason"], request_id=record["request_id"])


def _write_ended(event: ExecutionCompleted, sections: list[bytes]) -> str:
    result = "" if event.result is None else f',"result":{_payload_text(event.result, sections)}'
    failure = "" if event.failure is None else f',"failure":{_text(_failure_json(event.failure))}'
    return f',"status":"{event.status.value}"{result}{failure}'


def _read_ended(record: dict[str, Any], sections: Sequence[bytes], place: _Place) -> Event:
    return ExecutionCompleted(
        **place,
        status=RuntimeStatus(record["status"]),
        result=_payload(record["result"], sections) if "result" in record else None,
        failure=_failure(record["failure"]) if "failure" in record else None,
    )


_WRITERS: dict[type[Event], _Fields] = {
    ExecutionStarted: _write_started,
    OwnerClaimed: _write_claimed,
    TaskScheduled: _write_task,
    TaskCompleted: lambda e, s: (
        f',"task":{e.task},"attempt":{e.attempt}{_lost(e)},"result":{_payload_text(e.result, s)}'
    ),
    TaskFailed: lambda e, s: (
        f',"task":{e.task},"attempt":{e.attempt}{_lost(e)},"failure":{_text(_failure_json(e.failure))}'
        + ("" if e.heartbeat is None else f',"heartbeat":{_payload_text(e.heartbeat, s)}')
    ),
    TaskCanceled: lambda e, _: f',"task":{e.task}',
    MapScheduled: lambda e, s: f',"name":{_text(e.name)},"count":{e.count},"items":{_payload_text(e.items, s)}',
    MapItemsScheduled: lambda e, _: f',"map":{e.map},"attempt":{e.attempt},"items":{_text(e.items)}',
    MapCompleted: _write_map_completed,
    MapCanceled: lambda e, _: f',"map":{e.map}',
    TimerCreated: lambda e, _: f',"due":{e.due_us}',
    TimerFired: lambda e, _: f',"timer":{e.timer}',
    TimerCanceled: lambda e, _: f',"timer":{e.timer}',
    EventRaised: lambda e, s: (
        f',{_text({"name": e.name, "event_id": e.event_id})[1:-1]},"value":{_payload_text(e.value, s)}'
    ),
    CustomStatusSet: lambda e, s: f',"value":{_payload_text(e.value, s)}',
    ExecutionTerminated: _write_terminated,
    ExecutionSuspended: _write_control,
    ExecutionResumed: _write_control,
    ExecutionRewound: _write_control,
    ExecutionRestarted: _write_restarted,
    ExecutionCompleted: _write_ended,
    ContinueAsNew: _write_continued,
    SubOrchestrationInstanceCreated: _write_child,
    SubOrchestrationInstanceCanceled: lambda e, _: f',"task":{e.task}',
    SubOrchestrationInstanceCompleted: lambda e, s: (
        f',"task":{e.task},"message":{_text(e.message)},"result":{_payload_text(e.result, s)}'
    ),
    SubOrchestrationInstanceFailed: lambda e, _: (
        f',"task":{e.task},"message":{_text(e.message)},"failure":{_text(_failure_json(e.failure))}'
        + (f',"instance":{_text(e.instance)}' if e.instance else "")
    ),
    EventSent: lambda e, s: (
        f',{_text({"instance": e.instance, "name": e.name})[1:-1]},"value":{_payload_text(e.value, s)}'
    ),
    OutboxDelivered: lambda e, _: f',"messages":{_text(e.messages)}',
    MarkerRecorded: _write_marker,
}

_READERS: dict[str, _Reader] = {
    "ExecutionStarted": _read_started,
    "OwnerClaimed": _read_claimed,
    "TaskScheduled": _read_task,
    "TaskCompleted": lambda r, s, at: TaskCompleted(
        **at,
        task=r["task"],
        attempt=r["attempt"],
        lost_workers=r.get("lost_workers", 0),
        result=_payload(r["result"], s),
    ),
    "TaskFailed": lambda r, s, at: TaskFailed(
        **at,
        task=r["task"],
        attempt=r["attempt"],
        lost_workers=r.get("lost_workers", 0),
        failure=_failure(r["failure"]),
        heartbeat=_payload(r["heartbeat"], s) if "heartbeat" in r else None,
    ),
    "TaskCanceled": lambda r, _, at: TaskCanceled(**at, task=r["task"]),
    "MapScheduled": lambda r, s, at: MapScheduled(
        **at, name=r["name"], count=r["count"], items=_payload(r["items"], s)
    ),
    "MapItemsScheduled": lambda r, _, at: MapItemsScheduled(
        **at, map=r["map"], attempt=r["attempt"], items=tuple(r["items"])
    ),
    "MapCompleted": _read_map_completed,
    "MapCanceled": lambda r, _, at: MapCanceled(**at, map=r["map"]),
    "TimerCreated": lambda r, _, at: TimerCreated(**at, due_us=r["due"]),
    "TimerFired": lambda r, _, at: TimerFired(**at, timer=r["timer"]),
    "TimerCanceled": lambda r, _, at: TimerCanceled(**at, timer=r["timer"]),
    "EventRaised": lambda r, s, at: EventRaised(
        **at, name=r["name"], event_id=r["event_id"], value=_payload(r["value"], s)
    ),
    "CustomStatusSet": lambda r, s, at: CustomStatusSet(**at, value=_payload(r["value"], s)),
    "ExecutionTerminated": lambda r, _, at: ExecutionTerminated(
        **at, reason=r["reason"], request_id=r["request_id"], recursive=r.get("recursive", True)
    ),
    "ExecutionSuspended": _read_control(ExecutionSuspended),
    "ExecutionResumed": _read_control(ExecutionResumed),
    "ExecutionRewound": _read_control(ExecutionRewound),
    "ExecutionRestarted": _read_restarted,
    "ExecutionCompleted": _read_ended,
    "ContinueAsNew": lambda r, s, at: ContinueAsNew(
        **at, run=r["run"], carried=tuple(r.get("carried", ())), input=_payload(r["input"], s)
    ),
    "SubOrchestrationInstanceCreated": _read_child,
    "SubOrchestrationInstanceCanceled": lambda r, _, at: SubOrchestrationInstanceCanceled(**at, task=r["task"]),
    "SubOrchestrationInstanceCompleted": lambda r, s, at: SubOrchestrationInstanceCompleted(
        **at, task=r["task"], message=r["message"], result=_payload(r["result"], s)
    ),
    "SubOrchestrationInstanceFailed": lambda r, _, at: SubOrchestrationInstanceFailed(
        **at, task=r["task"], message=r["message"], failure=_failure(r["failure"]), instance=r.get("instance", "")
    ),
    "EventSent": lambda r, s, at: EventSent(
        **at, instance=r["instance"], name=r["name"], value=_payload(r["value"], s)
    ),
    "OutboxDelivered": lambda r, _, at: OutboxDelivered(**at, messages=tuple(r["messages"])),
    "MarkerRecorded": lambda r, s, at: MarkerRecorded(
        **at, kind=r["kind"], id=r.get("id", ""), value=_payload(r["value"], s) if "value" in r else None
    ),
}
