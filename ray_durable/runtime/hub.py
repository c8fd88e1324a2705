"""A task hub, opened in one process: its store, its keys, its codec, and what the runtime reads and writes there.

Joins storage (bytes, keys) with the engine's events and the codec's values. Belongs to the event loop that opened it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import secrets
import stat
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ray_durable import registry
from ray_durable.authoring import Orchestrator
from ray_durable.capture import Bundle, load_bundle
from ray_durable.codec import Codec, Limits, Trust
from ray_durable.context import Orchestration
from ray_durable.engine import (
    ContinueAsNew,
    Event,
    EventRaised,
    EventSent,
    ExecutionCompleted,
    ExecutionRestarted,
    ExecutionStarted,
    MapCompleted,
    MapScheduled,
    MarkerRecorded,
    RuntimeStatus,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
)
from ray_durable.errors import (
    ConfigurationError,
    CorruptLogError,
    FencedError,
    FunctionNotFoundError,
    InstanceNotFoundError,
    PayloadTooLargeError,
)
from ray_durable.function import DurableFunction
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.records import decode_events
from ray_durable.runtime.status import InstanceStatus
from ray_durable.storage import (
    HubKeys,
    ObjectStore,
    OpenEntry,
    Pacing,
    PatientStore,
    RunLog,
    Segment,
    Signer,
    WakeHint,
    add_open,
    create_hub,
    current_hub_epoch,
    find_open,
    forget_ended,
    get_blob,
    is_signed,
    is_there,
    latest_execution,
    list_executions,
    open_store,
    persist,
    probe,
    put_blob,
    read_bounded,
    read_settings,
    read_start,
    read_tail,
    record_ended,
    remove_open,
)

__all__ = ["OpenHub"]

E = TypeVar("E", bound=Event)

_PAYLOAD_FIELDS: Mapping[type[Event], str] = {
    ExecutionStarted: "input",
    TaskScheduled: "input",
    TaskCompleted: "result",
    MapScheduled: "items",
    MapCompleted: "results",
    TaskFailed: "heartbeat",
    EventRaised: "value",
    EventSent: "value",
    MarkerRecorded: "value",
    SubOrchestrationInstanceCreated: "input",
    SubOrchestrationInstanceCompleted: "result",
    ContinueAsNew: "input",
    ExecutionRestarted: "input",
    ExecutionCompleted: "result",
}
"""The field of each event type that may be a blob."""

GRACE_S_DEFAULT = 24 * 3_600
"""How long executions stay in storage after they were continued or purged, unless the hub has a setting."""

_PROBLEM_CHARS_MAX = 50_000
"""Of a problem that is noted. An entry of the open set holds more, and people do not read more."""

_READS_AT_ONCE = 32
_WRITES_AT_ONCE = 32

_TURN_BYTES_MAX = 16 * 1024 * 1024
"""Of payloads inline in one turn; a segment holds four times as much."""

_LARGE_TURN_INLINE_BYTES_MAX = 4 * 1024
"""The inline limit of a turn that is over it: a blob is a request to the store, which smaller ones are not worth."""


class OpenHub:
    """See the module. `epoch` is the hub epoch in whose name this process acts (0: it only reads and starts)."""

    def __init__(
        self,
        address: HubAddress,
        store: ObjectStore,
        *,
        epoch: int = 0,
        pacing: Pacing | None = None,
        who: str = "ray_durable",
    ) -> None:
        self.address = address
        self.store = PatientStore(store, pacing, who=who)
        self.keys = HubKeys(address.hub, address.signer())
        self.epoch = epoch
        self.limits = Limits()
        self.codec = Codec(trust=_trust(store, self.keys.signer), limits=self.limits)
        # Makes the random ids of new executions, from which all random numbers of their code come.
        self.new_run: Callable[[], str] = lambda: uuid.uuid4().hex
        self._bundles: dict[str, Bundle] = {}
        self._settings: Mapping[str, Any] | None = None

    @classmethod
    async def open(
        cls, address: HubAddress, *, epoch: int = 0, pacing: Pacing | None = None, who: str = "ray_durable"
    ) -> OpenHub:
        """Open the hub's store; nothing is written, and neither root nor hub need exist.

        `pacing` says how, and for how long, the store is asked again when it does not answer (default: for ever), and
        `who` whom the log then names as the one that waits.
        """
        store = await open_store(address.root, storage_options=address.storage_options())
        return cls(address, store, epoch=epoch, pacing=pacing, who=who)

    async def create(self, settings: Mapping[str, Any] | None = None) -> None:
        """Make sure that the store can hold a hub, and that the root and the hub exist, with these settings if new.

        Raises:
            UnsupportedStoreError: the store has no atomic create-if-absent.
            StoreError: the root cannot be written.
            ConfigurationError: the hub has a format that this version does not read, or is signed and there is no key,
                or the other way round.
        """
        await probe(self.store, self.keys.probe(secrets.token_hex(8)))
        self._settings = await create_hub(self.store, self.keys, settings or {})
        for name, wanted in (settings or {}).items():
            if self._settings.get(name) != wanted:
                present = self._settings.get(name, "its default")
                raise ConfigurationError(
                    f"The hub {self.address.hub!r} at {self.store.url} was created with {name} = {present}, and this "
                    f"asks for {wanted}: settings belong to the hub, so leave it out, or use a new hub"
                )
        # A local root may be new: what it is trusted with is known only now.
        self.codec = Codec(trust=_trust(self.store, self.keys.signer), limits=self.limits)

    async def require_held(self) -> None:
        """FencedError once a newer hub epoch exists: another cluster has taken the hub over."""
        newest = await current_hub_epoch(self.store, self.keys, known=self.epoch)
        if newest > self.epoch:
            raise FencedError(f"hub epoch {newest} replaced {self.epoch}", key=self.keys.hub_epoch(newest))

    async def grace_us(self) -> int:
        """How long executions stay in storage after they were continued or purged, in microseconds."""
        return round(float((await self._read_settings()).get("grace_s", GRACE_S_DEFAULT)) * 1_000_000)

    async def retention_us(self) -> Mapping[str, int]:
        """How long ended instances are kept, in microseconds by final status; others are kept for ever."""
        kept_s = (await self._read_settings()).get("retention_s", {})
        return {status: round(float(seconds) * 1_000_000) for status, seconds in kept_s.items()}

    async def _read_settings(self) -> Mapping[str, Any]:
        if self._settings is None:
            self._settings = await persist(lambda: read_settings(self.store, self.keys)) or {}
        return self._settings

    async def exists(self) -> bool:
        """Whether there is such a hub, and what it is trusted with.

        Raises:
            ConfigurationError: this version does not read its format, or it is not signed with the given key.
        """
        settings = await persist(lambda: read_settings(self.store, self.keys))
        if settings is not None and is_signed(settings) and self.keys.signer is None:
            # Its structure may be read without the key, and nothing that needs trust.
            self.codec = Codec(trust=Trust.NONE, limits=self.limits)
        return settings is not None

    async def close(self) -> None:
        """Give the store's connections back."""
        await self.store.close()

    async def read_log(self, instance_id: str, execution: int | None = None) -> tuple[RunLog, list[Event]]:
        """The log of an execution (default: the newest), and its events; blobs are not loaded.

        Raises:
            InstanceNotFoundError: there is no such instance.
            CorruptLogError: an object is damaged or missing.
        """
        execution = execution or await self._latest(instance_id)
        log = await RunLog.read(self.store, self.keys, instance_id, execution, pacing=self.store.pacing)
        events = [event for segment in log.segments for event in self.events_of(segment)]
        for position, event in enumerate(events, start=1):
            if event.number != position:
                raise CorruptLogError(
                    f"The history of {instance_id!r} has event {event.number} at place {position}: run "
                    "storage/verify.py",
                    key=self.keys.executions(instance_id),
                )
        return log, events

    async def history(self, instance_id: str, execution: int | None = None) -> list[Event]:
        """The events of an execution (default: the newest); blobs are not loaded.

        Raises:
            InstanceNotFoundError: there is no such instance, or no such execution of it any more.
        """
        newest = await self._latest(instance_id)
        execution = newest if execution is None else execution
        if execution != newest:
            await self.require_execution(instance_id, execution)
        log = await RunLog.read(self.store, self.keys, instance_id, execution, pacing=self.store.pacing)
        return [event for segment in log.segments for event in self.events_of(segment)]

    async def require_execution(self, instance_id: str, execution: int) -> None:
        """InstanceNotFoundError unless the instance has this execution in storage."""
        await self._latest(instance_id)
        executions = await persist(lambda: list_executions(self.store, self.keys, instance_id))
        if execution not in executions.numbers:
            raise InstanceNotFoundError(
                f"Instance {instance_id!r} has no execution {execution!r} in storage, but those from "
                f"{executions.numbers[0]} to {executions.numbers[-1]}: what another one followed is removed after the "
                "hub's grace period",
                instance_id=instance_id,
            )

    async def started(self, instance_id: str) -> ExecutionStarted:
        """The first event of the newest execution."""
        execution = await self._latest(instance_id)
        segment = await persist(lambda: read_start(self.store, self.keys, instance_id, execution))
        first = self.events_of(segment)[0]
        if not isinstance(first, ExecutionStarted):
            raise CorruptLogError(f"{segment.key} does not begin with ExecutionStarted", key=segment.key)
        return first

    def events_of(self, segment: Segment) -> list[Event]:
        """The events of one segment; blobs are not loaded."""
        return decode_events(segment.lines, segment.sections, key=segment.key)

    async def tail(self, instance_id: str) -> Segment:
        """The last segment of the newest execution. InstanceNotFoundError if there is none."""
        execution = await self._latest(instance_id)
        return await persist(lambda: read_tail(self.store, self.keys, instance_id, execution))

    async def status(self, instance_id: str) -> InstanceStatus:
        """The status, from storage alone. InstanceNotFoundError if there is no such instance."""
        return await self.status_of(await self.tail(instance_id))

    async def status_of(self, tail: Segment) -> InstanceStatus:
        """The status of the instance that has this last segment."""
        status = InstanceStatus.from_summary(tail.header.status)
        if not status.is_ended:
            entry = await find_open(self.store, self.keys, tail.header.instance)
            if entry is not None and entry.problem is not None:
                return dataclasses.replace(status, problem=entry.problem)
        return status

    async def end(self, instance_id: str) -> ExecutionCompleted | None:
        """The last event of an ended instance, its result loaded; None while it has not ended."""
        segment = await self.tail(instance_id)
        last = self.events_of(segment)[-1]
        return await self.load_input(segment.header.run, last) if isinstance(last, ExecutionCompleted) else None

    async def note_problem(self, instance_id: str, problem: str | None) -> None:
        """Leave word in the open set of what keeps an instance from going on: the beginning of a long one."""
        if problem is not None and len(problem) > _PROBLEM_CHARS_MAX:
            problem = f"{problem[:_PROBLEM_CHARS_MAX]} [... {len(problem):,} characters in all]"
        entry = await persist(lambda: find_open(self.store, self.keys, instance_id))
        if entry is not None and entry.problem != problem:
            await persist(lambda: add_open(self.store, self.keys, dataclasses.replace(entry, problem=problem)))

    async def leave_hint(self, own: OpenEntry, hint: WakeHint) -> None:
        """Leave word in the open set of when an idle instance is to be woken. `own` is its entry if it has none."""
        entry = await persist(lambda: find_open(self.store, self.keys, own.instance_id))
        await self.enter(dataclasses.replace(entry or own, wake=hint))

    async def enter(self, entry: OpenEntry) -> None:
        """Enter an instance into the open set."""
        await persist(lambda: add_open(self.store, self.keys, entry))

    async def record_end(self, log: RunLog, own: OpenEntry, previous: int | None) -> bool:
        """Leave the summary of an ended instance and take it out of the open set, in this order.

        False if another execution follows by now, or if it was purged, so that another may begin: then it stays in the
        open set, with the entry `own` if it has none.
        `previous` is the execution before, if any: whoever left or purged it may have died before its summary was
        removed.
        """
        instance_id, summary = log.instance_id, log.tail.header.status
        if not await self._is_newest(log):
            return False
        entry = await persist(lambda: find_open(self.store, self.keys, instance_id))
        if previous is not None:
            await self._forget_any_end(instance_id, previous)
        await persist(lambda: record_ended(self.store, self.keys, summary))
        await persist(lambda: remove_open(self.store, self.keys, instance_id))
        if await self._is_newest(log):
            return True
        # Somebody began the next execution in between, and may have entered it before it was removed.
        await self.forget_end(summary)
        await self.enter(entry or own)
        return False

    async def _is_newest(self, log: RunLog) -> bool:
        """Whether no other execution follows this one, by a link or after a purge."""
        if not await log.is_at_end():
            return False
        key = self.keys.purged(log.instance_id, log.execution)
        return not await persist(lambda: is_there(self.store, key))

    async def keep_open(self, own: OpenEntry) -> None:
        """See that an instance that has not ended is in the open set: another owner may have died as it left it."""
        if await persist(lambda: find_open(self.store, self.keys, own.instance_id)) is None:
            await self.enter(own)

    async def _forget_any_end(self, instance_id: str, execution: int) -> None:
        try:
            start = await persist(lambda: read_start(self.store, self.keys, instance_id, execution))
        except InstanceNotFoundError:
            return
        for status in RuntimeStatus:
            if status.is_final:
                await self.forget_end({**start.header.status, "runtime_status": status.value})

    async def forget_end(self, summary: Mapping[str, Any]) -> None:
        """Remove the summary of an instance that goes on, or is purged."""
        await persist(lambda: forget_ended(self.store, self.keys, summary))

    async def load_orchestration(self, started: ExecutionStarted) -> Orchestration:
        """The orchestrator's function, with the functions captured beside it.

        Raises:
            FunctionNotFoundError: it cannot be imported, or its captured code is missing.
            SerializationError: its code was captured by value and this root is not trusted with that.
        """
        reference = FunctionReference.from_json(started.reference or {"name": started.name})
        bundle = await self._load_bundle(reference.code) if reference.code is not None else None
        function = registry.resolve(reference, lambda digest: self._bundles[digest])
        if not isinstance(function, Orchestrator):
            raise FunctionNotFoundError(f"{function!r} is no orchestrator", name=started.name)
        return Orchestration(function, reference, self.codec, bundle)

    async def load_function(self, reference: FunctionReference) -> DurableFunction:
        """The function that a reference names."""
        if reference.code is not None:
            await self._load_bundle(reference.code)
        return registry.resolve(reference, lambda digest: self._bundles[digest])

    async def store_code(self, data: bytes) -> str:
        """Store captured code; its digest.

        Raises:
            PayloadTooLargeError: it holds more than a payload may have.
        """
        if len(data) > self.limits.payload_bytes_max:
            raise PayloadTooLargeError(
                f"The captured code has {len(data):,} bytes, and at most {self.limits.payload_bytes_max:,} are stored: "
                "functions of a script take what they refer to along, so load large data inside of them, or put the "
                "code into a module that workers can import",
                where="captured code",
                size_bytes=len(data),
                limit_bytes=self.limits.payload_bytes_max,
            )
        digest = hashlib.sha256(data).hexdigest()
        await persist(lambda: self.store.put_if_absent(self.keys.code(digest), data))
        return digest

    async def load_input(self, run: str, event: E) -> E:
        """The event with its payload's bytes loaded."""
        if isinstance(event, ExecutionStarted) and event.carried:
            carried = [await self.load_input(run, one) for one in event.carried]
            event = dataclasses.replace(event, carried=tuple(carried))
        field = _PAYLOAD_FIELDS.get(type(event))
        payload: Payload | None = getattr(event, field) if field is not None else None
        if field is None or payload is None or payload.data is not None:
            return event
        return _with_payload(event, field, await self.fetch(run, payload))

    async def load_blobs(self, run: str, events: list[Event]) -> None:
        """Put the events with their payloads' bytes loaded in the places of those without."""
        unloaded = [place for place, event in enumerate(events) if _is_unloaded(event)]
        for begin in range(0, len(unloaded), _READS_AT_ONCE):
            places = unloaded[begin : begin + _READS_AT_ONCE]
            loaded = await asyncio.gather(*(self.load_input(run, events[place]) for place in places))
            for place, event in zip(places, loaded, strict=True):
                events[place] = event

    async def fetch(self, run: str, payload: Payload) -> Payload:
        """The payload with its bytes loaded."""
        if payload.data is not None or payload.blob is None:
            return payload
        if payload.size > self.limits.payload_bytes_max:
            raise CorruptLogError(
                f"The log of run {run} refers to a blob of {payload.size:,} bytes, and no payload has more than "
                f"{self.limits.payload_bytes_max:,}: run storage/verify.py",
                key=self.keys.blob(run, payload.blob),
            )
        data = await get_blob(self.store, self.keys, run, payload.blob, payload.size)
        if len(data) != payload.size:
            key = self.keys.blob(run, payload.blob)
            raise CorruptLogError(
                f"The blob {key} has {len(data)} bytes, and the log says {payload.size}: run storage/verify.py", key=key
            )
        return payload.with_data(data)

    async def offload(self, run: str, payload: Payload) -> Payload:
        """The payload, stored as a blob of `run` if it is over the inline limit."""
        return await self._offload(run, payload, self.limits.inline_bytes_max)

    async def _offload(self, run: str, payload: Payload, inline_bytes_max: int) -> Payload:
        if payload.blob is not None or payload.size <= inline_bytes_max:
            return payload
        await put_blob(self.store, self.keys, run, payload.bytes)
        return payload.as_blob()

    @classmethod
    def detached(cls, event: E) -> E:
        """A loaded event that does not say any more where its payload is stored."""
        if isinstance(event, ExecutionStarted) and event.carried:
            event = dataclasses.replace(event, carried=tuple(map(cls.detached, event.carried)))
        payload = _payload_of(event)
        if payload is None or payload.blob is None:
            return event
        assert payload.data is not None, "a payload is moved with its bytes"
        return _with_payload(event, _PAYLOAD_FIELDS[type(event)], Payload.of(payload.encoding, payload.data))

    async def store_payloads(self, run: str, events: Sequence[E]) -> list[E]:
        """The events, with payloads over the inline limit stored as blobs and referred to.

        The limit is lower for many payloads that would not fit into one segment together.
        """
        stored = list(events)
        for place, event in enumerate(stored):
            if isinstance(event, ExecutionStarted) and event.carried:
                carried = await self.store_payloads(run, event.carried)
                stored[place] = dataclasses.replace(event, carried=tuple(carried))
        limit = self.limits.inline_bytes_max
        sizes = [payload.size for payload in map(_payload_of, events) if payload is not None and payload.blob is None]
        if sum(size for size in sizes if size <= limit) > _TURN_BYTES_MAX:
            limit = min(limit, _LARGE_TURN_INLINE_BYTES_MAX)
        places = [place for place, event in enumerate(events) if _is_inline_over(limit, event)]

        async def store(place: int) -> None:
            event = stored[place]
            payload = _payload_of(event)
            assert payload is not None
            stored[place] = _with_payload(event, _PAYLOAD_FIELDS[type(event)], await self._offload(run, payload, limit))

        for begin in range(0, len(places), _WRITES_AT_ONCE):
            await asyncio.gather(*map(store, places[begin : begin + _WRITES_AT_ONCE]))
        return stored

    async def _latest(self, instance_id: str) -> int:
        execution = await latest_execution(self.store, self.keys, instance_id)
        if execution is None:
            raise InstanceNotFoundError(
                f"There is no instance {instance_id!r} in hub {self.address.hub!r} at {self.store.url}: check the id, "
                "the root and the hub's name",
                instance_id=instance_id,
            )
        return execution

    async def _load_bundle(self, digest: str) -> Bundle:
        bundle = self._bundles.get(digest)
        if bundle is None:
            key = self.keys.code(digest)
            data = await persist(lambda: read_bounded(self.store, key, self.limits.payload_bytes_max))
            if data is None or hashlib.sha256(data).hexdigest() != digest:
                raise FunctionNotFoundError(
                    f"The captured code {key} is missing or damaged: restore the object from a backup", name=digest
                )
            bundle = self._bundles[digest] = load_bundle(data, trust=self.codec.trust)
        return bundle


def _payload_of(event: Event) -> Payload | None:
    field = _PAYLOAD_FIELDS.get(type(event))
    payload: Payload | None = getattr(event, field) if field is not None else None
    return payload


def _is_unloaded(event: Event) -> bool:
    if isinstance(event, ExecutionStarted) and any(map(_is_unloaded, event.carried)):
        return True
    payload = _payload_of(event)
    return payload is not None and payload.data is None


def _is_inline_over(limit: int, event: Event) -> bool:
    payload = _payload_of(event)
    return payload is not None and payload.blob is None and payload.size > limit


def _with_payload(event: E, field: str, payload: Payload) -> E:
    changes: dict[str, Any] = {field: payload}
    return dataclasses.replace(event, **changes)


def _trust(store: ObjectStore, signer: Signer | None) -> Trust:
    """With a key, everything is authenticated before it gets to a codec. Without one, a local folder that belongs to
    this user and that nobody else may write is as safe as the user's own code."""
    if signer is not None:
        return Trust.SIGNING_KEY
    path: Path | None = store.private_path
    if path is None or not path.exists():
        return Trust.NONE
    found = path.stat()
    is_private = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return Trust.PRIVATE_LOCAL_ROOT if is_private else Trust.NONE
