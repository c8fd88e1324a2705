"""The client: connect to a task hub, start instances, find them again.

A hub is where its root is; the Ray cluster that runs it may come and go. `connect` joins the cluster that holds the
hub, or takes the hub over when its holder is gone, starting a local Ray if there is none. What only reads is inherited
from `HubReader`, which needs storage alone and loads no Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ray_durable.command import COMMAND_S_MAX, command
from ray_durable.errors import (
    ClusterConnectionError,
    ConfigurationError,
    HubHeldError,
    InstanceActiveError,
    StoreUnavailableError,
    UnsupportedStoreError,
)
from ray_durable.event_name import check_event_id, check_event_name
from ray_durable.reader import address_of
from ray_durable.reason import check_reason
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.explanation import Explanation
from ray_durable.runtime.index_repair import RepairReport, repair_index
from ray_durable.runtime.lifecycle import (
    Start,
    fork_instance,
    purge_instance,
    restart_instance,
    rewind_instance,
    start_instance,
)
from ray_durable.runtime.ports import SystemClock
from ray_durable.runtime.retention import retention_settings
from ray_durable.runtime.room import UNREAD_BYTES_MAX, UNREAD_EVENTS_MAX, RoomMax
from ray_durable.runtime.status import InstanceStatus
from ray_durable.runtime.upkeep import IDLE_S_DEFAULT, Upkeep
from ray_durable.starts import HubStarts
from ray_durable.storage import check_hub_name, check_instance_id

if TYPE_CHECKING:
    from ray_durable.runtime.actors import Connection

__all__ = ["Hub", "connect"]

P = ParamSpec("P")
R = TypeVar("R")

_POLL_S_FIRST = 0.05
_LONG_POLL_S = 10.0
_STATUS_S_MAX = 10.0
_QUIET = timedelta(seconds=2)
"""An instance whose last record is younger than this is not asked what keeps it from going on."""
_ANSWER_TIMEOUT_MIN = timedelta(seconds=3)


def connect(
    root: str | os.PathLike[str] | None = None,
    *,
    hub: str = "default",
    storage_options: Mapping[str, Any] | str | None = None,
    signing_key: bytes | str | None = None,
    takeover: bool = False,
    shared: bool = False,
    live_instances_max: int = 100,
    idle_timeout: timedelta = timedelta(seconds=IDLE_S_DEFAULT),
    answer_timeout: timedelta = timedelta(seconds=15),
    unread_events_max: int = UNREAD_EVENTS_MAX,
    unread_bytes_max: int = UNREAD_BYTES_MAX,
    grace: timedelta | None = None,
    retention: Mapping[str, timedelta] | None = None,
    ray_init: Mapping[str, Any] | None = None,
) -> Hub:
    """Connect to a task hub: join the cluster that holds it, or take it over and resume what is unfinished.

    `root` is a path or URL (default: a folder of the user's data directory, private to the user); `hub` the name of the
    hub below it. `storage_options` are those of the fsspec file system: "env:NAME" or "file:/path" name where every
    process reads them as JSON; a dict serves when this call starts a local Ray. `signing_key` authenticates the hub's
    objects, so that code and pickled values may lie on a store that others can write: "env:NAME" or "file:/path" name
    where every process reads it; bytes serve when this call starts a local Ray (default: the variable
    RAY_DURABLE_SIGNING_KEY, or the file that RAY_DURABLE_SIGNING_KEY_FILE names, if one is set). A hub is signed from
    its beginning, or not at all. `takeover` takes the hub from a living holder, which then stands down. `shared` says
    that a local root is a disk that all nodes see.

    At most `live_instances_max` instances have an actor at a time, counted apart for each depth of calls; others wait
    as Pending. An instance that has only waited for `idle_timeout`, for timers, events or instances that it called,
    gives its actor back until there is something to do. A process that has not answered for `answer_timeout` is taken
    for stopped, and replaced; code that keeps its thread busy does not keep its process from answering. At most
    `unread_events_max` external events wait for one instance to take them, with values of `unread_bytes_max` bytes
    together; more are refused (`TooManyEventsError`), unless the instance waits for them. These five hold for as long
    as the cluster holds the hub. `grace` is a setting of the hub, made when the hub is (default: 24
    hours): for so long, executions that were continued, and purged instances, stay in storage, so that a writer that
    was stopped meanwhile does no harm. `retention` is such a setting, too: how long instances are kept after their end,
    by status, such as {"Completed": timedelta(days=30)}; then they are purged, and others never. `ray_init` are
    arguments of `ray.init`, used when Ray is not connected yet.

    Raises:
        HubHeldError: another living cluster, not reachable from here, holds the hub.
        UnsupportedStoreError, StoreError: the root cannot hold a hub.
        ConfigurationError: an argument cannot work; the text says which and why.
    """
    check_hub_name(hub)
    if live_instances_max < 1:
        raise ConfigurationError(f"live_instances_max is {live_instances_max}: give at least 1")
    if idle_timeout <= timedelta(0):
        raise ConfigurationError(f"idle_timeout is {idle_timeout}: give more than zero, timedelta.max for never")
    if answer_timeout < _ANSWER_TIMEOUT_MIN:
        raise ConfigurationError(f"answer_timeout is {answer_timeout}: give at least {_ANSWER_TIMEOUT_MIN}")
    if grace is not None and grace < timedelta(0):
        raise ConfigurationError(f"grace is {grace}: give zero or more")
    room_max = RoomMax(events=unread_events_max, value_bytes=unread_bytes_max)
    address, secrets = address_of(root, hub, storage_options, signing_key)
    connected = Hub(address)
    upkeep = Upkeep(
        live_max=live_instances_max,
        idle_s=idle_timeout.total_seconds(),
        silence_s=answer_timeout.total_seconds(),
        room_max=room_max,
    )
    settings: dict[str, Any] = {} if grace is None else {"grace_s": grace.total_seconds()}
    if retention is not None:
        settings["retention_s"] = retention_settings(retention)
    try:
        connected._connect(
            secrets,
            settings,
            takeover=takeover,
            shared=shared,
            upkeep=upkeep,
            ray_init=dict(ray_init or {}),
        )
    except BaseException:
        connected.close()
        raise
    return connected


class Hub(HubStarts):
    """A connected hub. Made by `connect`."""

    def __init__(self, address: HubAddress) -> None:
        super().__init__(address)
        self._connection: Connection | None = None

    def close(self) -> None:
        """Give connections back; a Ray that `connect` started ends, and unfinished instances go on with the next."""
        super().close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def repair_index(self) -> RepairReport:
        """Hold the whole index against the log of every instance, and mend what is missing or false there.

        The hub's supervisor looks for what names alone show to be wrong every quarter of an hour; this reads all logs,
        some requests to the store for each instance. No log is changed. For use after somebody has lost or restored
        parts of the root; `storage/verify.py` tells what is wrong without changing anything.
        """
        return self.run(self._repair_index())

    async def _repair_index(self) -> RepairReport:
        return await repair_index(await self._hub(), SystemClock(), self._admit)

    def __enter__(self) -> Hub:
        return self

    async def raise_event(self, instance_id: str, name: str, value: Any, event_id: str | None, type: Any) -> None:
        """See `Handle.raise_event`."""
        check_event_name(name)
        if event_id is not None:
            check_event_id(event_id)
        payload = (await self._hub()).codec.encode_typed(value, type, where=f"value of event {name!r}")
        wanted_id = event_id or uuid.uuid4().hex

        def call(actor: Any) -> Awaitable[None]:
            event: Awaitable[None] = actor.raise_event.remote(name, payload, wanted_id)
            return event

        # An event with an id may be one that was raised before, when its caller did not learn of the outcome.
        await self._command(instance_id, wanted_id, call, may_be_done=event_id is not None)

    async def terminate(self, instance_id: str, reason: str, recursive: bool) -> None:
        """See `Handle.terminate`."""
        check_reason(reason)
        request_id = uuid.uuid4().hex
        await self._command(
            instance_id, request_id, lambda actor: actor.terminate.remote(reason, request_id, recursive)
        )

    async def suspend(self, instance_id: str, reason: str) -> None:
        """See `Handle.suspend`."""
        check_reason(reason)
        request_id = uuid.uuid4().hex
        await self._command(instance_id, request_id, lambda actor: actor.suspend.remote(reason, request_id))

    async def resume(self, instance_id: str, reason: str) -> None:
        """See `Handle.resume`."""
        check_reason(reason)
        request_id = uuid.uuid4().hex
        await self._command(instance_id, request_id, lambda actor: actor.resume.remote(reason, request_id))

    async def rewind(self, instance_id: str, reason: str) -> None:
        """See `Handle.rewind`."""
        check_reason(reason)
        hub, request_id = await self._hub(), uuid.uuid4().hex
        await rewind_instance(hub, instance_id, request_id, reason=reason, now_us=self._now_us())
        await self._admit(instance_id)

    async def restart(self, instance_id: str, new_id: str | None, reason: str) -> str:
        """See `Handle.restart`; the id of what runs."""
        check_reason(reason)
        hub, request_id = await self._hub(), uuid.uuid4().hex
        if new_id is None or new_id == instance_id:
            await restart_instance(hub, instance_id, request_id, reason=reason, now_us=self._now_us())
            await self._admit(instance_id)
            return instance_id
        check_instance_id(new_id)
        started = await hub.started(instance_id)
        start = Start(
            instance_id=new_id,
            name=started.name,
            input=started.input,
            request_id=request_id,
            run=started.run,
            reference=started.reference,
            version=started.version,
        )
        await start_instance(hub, start, now_us=self._now_us())
        await self._admit(new_id)
        return new_id

    async def fork(self, instance_id: str, new_id: str | None, after: int | None, execution: int | None) -> str:
        """See `Handle.fork`; the id of the new instance."""
        hub, wanted_id = await self._hub(), uuid.uuid4().hex if new_id is None else new_id
        check_instance_id(wanted_id)
        now_us, request_id = self._now_us(), uuid.uuid4().hex
        await fork_instance(hub, instance_id, wanted_id, request_id, through=after, now_us=now_us, execution=execution)
        await self._admit(wanted_id)
        return wanted_id

    async def purge(self, instance_id: str) -> None:
        """See `Handle.purge`."""
        hub, deadline_s = await self._hub(), time.monotonic() + COMMAND_S_MAX
        while True:
            try:
                await purge_instance(hub, instance_id, now_us=self._now_us())
                return
            except InstanceActiveError:
                # What has ended leaves in a moment, once others have its messages.
                if not (await hub.status(instance_id)).is_ended or time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(_POLL_S_FIRST)

    async def status(self, instance_id: str) -> InstanceStatus:
        """See `Handle.status`: what keeps the owner from writing is not in the store, so the owner is asked."""
        assert self._connection is not None
        try:
            status = await self._within(_STATUS_S_MAX, self.stored_status(instance_id))
        except StoreUnavailableError:
            told = await self._ask_owner(instance_id)
            if told is None:
                raise
            return told.status
        is_quiet = datetime.now(UTC) - status.updated_at > _QUIET
        if status.is_ended or status.problem is not None or not is_quiet:
            return status
        problem = (await self._connection.describe(instance_id)).get("problem")
        return replace(status, problem=problem)

    async def explain(self, instance_id: str) -> Explanation:
        """See `Handle.explain`: the instance's owner knows more than storage does."""
        return await self._ask_owner(instance_id) or await super().explain(instance_id)

    async def _ask_owner(self, instance_id: str) -> Explanation | None:
        """What the owner says; None if there is none, or no answer."""
        assert self._connection is not None
        try:
            return await self._connection.explain(instance_id)
        except ClusterConnectionError:
            return None

    def _connect(
        self,
        secrets: Mapping[str, str],
        settings: Mapping[str, Any],
        *,
        takeover: bool,
        shared: bool,
        upkeep: Upkeep,
        ray_init: dict[str, Any],
    ) -> None:
        from ray_durable.runtime.actors import Connection

        if self.address.root.startswith("memory://"):
            raise UnsupportedStoreError(
                f"{self.address.root} lives in the memory of one process, and a hub's processes are many: use a "
                "folder, or s3://, gs:// or az://",
                url=self.address.root,
            )
        if secrets and Connection.is_ray_connected():
            raise ConfigurationError(
                "storage_options as a dict, and a signing_key as bytes, would not reach a Ray that runs already, and "
                "must not travel through it: put them (the options as JSON) into an environment variable or a file on "
                "every node, and give 'env:NAME' or 'file:/path'"
            )
        # The local Ray that is about to start, and its workers, inherit them.
        os.environ.update(secrets)
        hub = self.run(self._hub())
        self.run(hub.create(settings))
        self._connection = Connection(
            self.address,
            lambda coroutine: self.run(coroutine),
            hub,
            is_shared=shared,
            upkeep=upkeep,
            ray_init=ray_init,
        )
        self._connection.open(takeover=takeover)

    async def _admit(self, instance_id: str) -> None:
        """Tell the supervisor; should that fail, it finds the instance by itself."""
        assert self._connection is not None
        try:
            await self._connection.admit(instance_id)
        except ClusterConnectionError:
            # Another cluster that holds the hub by now finds the instance, too.
            with contextlib.suppress(HubHeldError, StoreUnavailableError):
                await self._connection.repair()

    async def _command(
        self, instance_id: str, request_id: str, call: Callable[[Any], Awaitable[None]], *, may_be_done: bool = False
    ) -> None:
        """See `command`."""
        assert self._connection is not None
        await command(self, self._connection, instance_id, request_id, call, may_be_done=may_be_done)

    async def _wait_for_end(self, instance_id: str, poll_s: float, left_s: float | None) -> bool:
        assert self._connection is not None
        wait_s = _LONG_POLL_S if left_s is None else min(_LONG_POLL_S, left_s)
        began_s = time.monotonic()
        try:
            if await self._connection.wait_ended(instance_id, wait_s):
                return True
        except ClusterConnectionError:
            # What another cluster brings to its end shows in storage all the same.
            with contextlib.suppress(HubHeldError, StoreUnavailableError):
                await self._connection.repair()
            began_s = time.monotonic()
        # There may be nobody just now to wait for it.
        await asyncio.sleep(max(0.0, poll_s - (time.monotonic() - began_s)))
        return False
