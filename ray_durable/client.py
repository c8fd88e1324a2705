"""The client: connect to a task hub, start instances, find them again.

A hub is where its root is; the Ray cluster that runs it may come and go. `connect` joins the cluster that holds the
hub, or takes the hub over when its holder is gone, starting a local Ray if there is none. What only reads (`status`,
`history`, `instances`, `browse`) needs storage alone and loads no Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import platformdirs

from ray_durable import registry
from ray_durable.authoring import Orchestrator
from ray_durable.capture import capture_bundle
from ray_durable.engine import Event, ExecutionCompleted, ExecutionStarted, RuntimeStatus
from ray_durable.errors import (
    ClusterConnectionError,
    ConfigurationError,
    FunctionNotFoundError,
    HubHeldError,
    InstanceEndedError,
    InstanceExistsError,
    InvalidIdError,
    InvalidOrchestratorError,
    OrchestrationFailedError,
    OrchestrationTerminatedError,
    SerializationError,
    UnsupportedStoreError,
)
from ray_durable.function import DurableFunction
from ray_durable.handle import Handle
from ray_durable.reference import FunctionReference
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.loop_thread import LoopThread
from ray_durable.runtime.records import encode_events
from ray_durable.runtime.status import InstanceStatus, summarize
from ray_durable.storage import (
    OpenEntry,
    check_hub_name,
    check_instance_id,
    create_execution,
    latest_execution,
    list_ended,
    list_open,
    remove_open,
)

if TYPE_CHECKING:
    from ray_durable.runtime.actors import Connection

__all__ = ["Hub", "HubReader", "browse", "connect"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_POLL_S_FIRST, _POLL_S_MAX = 0.05, 1.0
_LONG_POLL_S = 10.0
_SLOW_START_S = 600.0
_COMMAND_S_MAX = 60.0


def connect(
    root: str | os.PathLike[str] | None = None,
    *,
    hub: str = "default",
    storage_options: Mapping[str, Any] | str | None = None,
    takeover: bool = False,
    shared: bool = False,
    live_instances_max: int = 100,
    ray_init: Mapping[str, Any] | None = None,
) -> Hub:
    """Connect to a task hub: join the cluster that holds it, or take it over and resume what is unfinished.

    `root` is a path or URL (default: a folder of the user's data directory, private to the user); `hub` the name of the
    hub below it. `storage_options` are those of the fsspec file system: "env:NAME" or "file:/path" name where every
    process reads them as JSON; a dict serves when this call starts a local Ray. `takeover` takes the hub from a living
    holder, which then stands down. `shared` says that a local root is a disk that all nodes see. At most
    `live_instances_max` instances have an actor at a time; others wait as Pending. `ray_init` are arguments of
    `ray.init`, used when Ray is not connected yet.

    Raises:
        HubHeldError: another living cluster, not reachable from here, holds the hub.
        UnsupportedStoreError, StoreError: the root cannot hold a hub.
        ConfigurationError: an argument cannot work; the text says which and why.
    """
    check_hub_name(hub)
    if live_instances_max < 1:
        raise ConfigurationError(f"live_instances_max is {live_instances_max}: give at least 1")
    address, options = _address(root, hub, storage_options)
    connected = Hub(address)
    try:
        connected._connect(
            options, takeover=takeover, shared=shared, live_max=live_instances_max, ray_init=dict(ray_init or {})
        )
    except BaseException:
        connected.close()
        raise
    return connected


def browse(
    root: str | os.PathLike[str] | None = None,
    *,
    hub: str = "default",
    storage_options: Mapping[str, Any] | str | None = None,
) -> HubReader:
    """Look into a hub without Ray: statuses, histories, listings. Nothing is started, nothing is written.

    Raises:
        ConfigurationError: there is no such hub, or an argument cannot work.
        StoreError: the root cannot be read.
    """
    check_hub_name(hub)
    address, options = _address(root, hub, storage_options)
    if options is not None:
        os.environ[_variable_of(address)] = json.dumps(options)
    reader = HubReader(address)
    try:
        reader.run(reader._require_hub())
    except BaseException:
        reader.close()
        raise
    return reader


def default_root() -> Path:
    """The private local root: a folder in the user's data directory."""
    return Path(platformdirs.user_data_dir("ray_durable")) / "root"


class HubReader:
    """A hub as its storage shows it."""

    def __init__(self, address: HubAddress) -> None:
        self.address = address
        self._thread = LoopThread(name="client")
        self._opened: OpenHub | None = None

    def get(self, instance_id: str) -> Handle[Any]:
        """A handle on the instance with this id, whether it exists or not."""
        check_instance_id(instance_id)
        return Handle(self, instance_id)

    def instances(
        self,
        *,
        status: RuntimeStatus | str | Iterable[RuntimeStatus | str] | None = None,
        prefix: str = "",
        name: str | None = None,
        created_from: datetime | None = None,
        created_to: datetime | None = None,
    ) -> list[InstanceStatus]:
        """Instances, oldest first, that match all filters: status(es), beginning of the id, name of the orchestrator,
        time of creation (aware datetimes)."""
        wanted = [status] if isinstance(status, str) else None if status is None else list(status)
        statuses = None if wanted is None else {_status(one) for one in wanted}
        bounds = (_to_us(created_from, "created_from"), _to_us(created_to, "created_to"))
        found = self.run(self._instances(statuses, prefix, *bounds))
        return [one for one in found if name is None or one.name == name]

    def close(self) -> None:
        """Give connections back. Instances go on; calls that wait, and those to come, raise ClosedError."""
        self._thread.stop(self._give_back)

    def __enter__(self) -> HubReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address.hub!r} at {self.address.root}>"

    # What handles use

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of this client, from any thread. ClosedError once it is closed."""
        return self._thread.run(coroutine)

    async def relay(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine of this client from another event loop. ClosedError once it is closed."""
        return await asyncio.wrap_future(self._thread.submit(coroutine))

    async def status(self, instance_id: str) -> InstanceStatus:
        """See `Handle.status`."""
        return await (await self._hub()).status(instance_id)

    async def history(self, instance_id: str) -> list[Event]:
        """See `Handle.history`."""
        return await (await self._hub()).history(instance_id)

    async def result(self, instance_id: str, timeout_s: float | None) -> Any:
        """See `Handle.result`: looks again and again, since a reader has nobody to ask."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        poll_s = _POLL_S_FIRST
        while (end := await (await self._hub()).end(instance_id)) is None:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                await self._raise_timeout(instance_id, timeout_s)
            if not await self._wait_for_end(instance_id, poll_s if left_s is None else min(poll_s, left_s), left_s):
                poll_s = min(_POLL_S_MAX, 2 * poll_s)
        return await self._outcome(instance_id, end)

    async def raise_event(self, instance_id: str, name: str, value: Any, event_id: str | None) -> None:
        """A reader changes nothing."""
        raise ConfigurationError("This hub was opened to read: use ray_durable.connect to raise events")

    async def terminate(self, instance_id: str, reason: str) -> None:
        """A reader changes nothing."""
        raise ConfigurationError("This hub was opened to read: use ray_durable.connect to terminate instances")

    async def _require_hub(self) -> None:
        hub = await self._hub()
        if not await hub.exists():
            raise ConfigurationError(
                f"There is no hub {self.address.hub!r} at {hub.store.url}: check the root and the hub's name, or "
                "create it with ray_durable.connect"
            )

    async def _give_back(self) -> None:
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def _hub(self) -> OpenHub:
        if self._opened is None:
            self._opened = await OpenHub.open(self.address)
        return self._opened

    async def _wait_for_end(self, instance_id: str, poll_s: float, left_s: float | None) -> bool:
        """Wait until the end may have come; whether there is reason to think so."""
        await asyncio.sleep(poll_s)
        return False

    async def _raise_timeout(self, instance_id: str, timeout_s: float | None) -> None:
        status = await self.status(instance_id)
        problem = f" It waits: {status.problem}." if status.problem else ""
        raise TimeoutError(
            f"Instance {instance_id!r} is {status.runtime_status} after {timeout_s} s.{problem} It goes on; ask again"
        )

    async def _outcome(self, instance_id: str, end: ExecutionCompleted) -> Any:
        hub = await self._hub()
        if end.status is RuntimeStatus.COMPLETED and end.result is not None:
            where = f"result of instance {instance_id!r}"
            return hub.codec.decode(end.result, await self._result_type(instance_id), where=where)
        failure = end.failure
        assert failure is not None, "what did not complete has a failure"
        if end.status is RuntimeStatus.TERMINATED:
            raise OrchestrationTerminatedError(
                f"Instance {instance_id!r} was terminated: {failure.message or 'no reason given'}",
                instance_id=instance_id,
                reason=failure.message,
            )
        name = (await hub.status(instance_id)).name
        text = failure.message if failure.type_name == "ActivityError" else failure.describe()
        raise OrchestrationFailedError(
            f"Orchestrator function '{name}' failed: {text}", instance_id=instance_id, failure=failure
        )

    async def _result_type(self, instance_id: str) -> Any:
        """The annotated result of the orchestrator: this process's own definition before the stored one."""
        hub = await self._hub()
        started = await hub.started(instance_id)
        try:
            return registry.lookup(started.name).result_annotation
        except FunctionNotFoundError:
            pass
        try:
            return (await hub.load_orchestration(started)).function.result_annotation
        except (FunctionNotFoundError, SerializationError):
            return Any

    async def _instances(
        self, statuses: set[RuntimeStatus] | None, prefix: str, from_us: int | None, to_us: int | None
    ) -> list[InstanceStatus]:
        hub = await self._hub()
        found: dict[str, InstanceStatus] = {}
        for entry in await list_open(hub.store, hub.keys):
            if entry.instance_id.startswith(prefix) and await latest_execution(hub.store, hub.keys, entry.instance_id):
                found[entry.instance_id] = await hub.status(entry.instance_id)
        finals = None if statuses is None else [status.value for status in statuses if status.is_final]
        token: str | None = None
        while finals != []:
            page = await list_ended(
                hub.store,
                hub.keys,
                statuses=finals,
                prefix=prefix,
                created_from_us=from_us,
                created_to_us=to_us,
                token=token,
            )
            found |= {summary["instance"]: InstanceStatus.from_summary(summary) for summary in page.summaries}
            token = page.next_token
            if token is None:
                break
        matching = [
            one
            for one in found.values()
            if (statuses is None or one.runtime_status in statuses)
            and (from_us is None or one.created_us >= from_us)
            and (to_us is None or one.created_us <= to_us)
        ]
        return sorted(matching, key=lambda one: (one.created_us, one.instance_id))


class Hub(HubReader):
    """A connected hub. Made by `connect`."""

    def __init__(self, address: HubAddress) -> None:
        super().__init__(address)
        self._connection: Connection | None = None

    @overload
    def start(self, orchestrator: Orchestrator[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    # A checked signature and a keyword beside it cannot both be said: with an id, only the result is typed.
    @overload
    def start(
        self, orchestrator: Orchestrator[..., R], /, *args: Any, instance_id: str | None, **kwargs: Any
    ) -> Handle[R]: ...
    @overload
    def start(self, orchestrator: str, /, *args: Any, instance_id: str | None = None, **kwargs: Any) -> Handle[Any]: ...
    def start(  # type: ignore[misc]  # No orchestrator has a parameter `instance_id`; the decorator refuses it.
        self, orchestrator: Any, /, *args: Any, instance_id: str | None = None, **kwargs: Any
    ) -> Handle[Any]:
        """Start an instance; returns when the start is durable. Arguments are those of the orchestrator.

        `instance_id` (default: a random one) names the instance for ever.

        Raises:
            InstanceExistsError: the id is taken. `hub.get(id)` is the instance that has it.
            InvalidIdError: the id is not allowed.
            TypeError, SerializationError, PayloadTooLargeError: the arguments do not fit, or cannot be encoded.
            InvalidOrchestratorError, FunctionNotFoundError: what is to be started is no orchestrator.
        """
        function = _orchestrator(orchestrator)
        wanted_id = uuid.uuid4().hex if instance_id is None else instance_id
        check_instance_id(wanted_id)
        self.run(self._start(function, args, kwargs, wanted_id))
        return Handle(self, wanted_id)

    def close(self) -> None:
        """Give connections back; a Ray that `connect` started ends, and unfinished instances go on with the next."""
        super().close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Hub:
        return self

    async def raise_event(self, instance_id: str, name: str, value: Any, event_id: str | None) -> None:
        """See `Handle.raise_event`."""
        _check_event_name(name)
        payload = (await self._hub()).codec.encode(value, Any, where=f"value of event {name!r}")
        wanted_id = event_id or uuid.uuid4().hex
        await self._command(instance_id, lambda actor: actor.raise_event.remote(name, payload, wanted_id))

    async def terminate(self, instance_id: str, reason: str) -> None:
        """See `Handle.terminate`."""
        request_id = uuid.uuid4().hex
        await self._command(instance_id, lambda actor: actor.terminate.remote(reason, request_id))

    def _connect(
        self,
        options: Mapping[str, Any] | None,
        *,
        takeover: bool,
        shared: bool,
        live_max: int,
        ray_init: dict[str, Any],
    ) -> None:
        from ray_durable.runtime.actors import Connection

        if self.address.root.startswith("memory://"):
            raise UnsupportedStoreError(
                f"{self.address.root} lives in the memory of one process, and a hub's processes are many: use a "
                "folder, or s3://, gs:// or az://",
                url=self.address.root,
            )
        variable = _variable_of(self.address)
        if options is not None:
            if Connection.is_ray_connected():
                raise ConfigurationError(
                    "storage_options as a dict would not reach a Ray that runs already, and must not travel through "
                    "it: put them as JSON into an environment variable or a file on every node, and give "
                    "storage_options='env:NAME' or 'file:/path'"
                )
            # The local Ray that is about to start, and its workers, inherit it.
            os.environ[variable] = json.dumps(options)
        hub = self.run(self._hub())
        self.run(hub.create())
        self._connection = Connection(
            self.address,
            lambda coroutine: self.run(coroutine),
            hub,
            is_shared=shared,
            live_max=live_max,
            ray_init=ray_init,
        )
        self._connection.open(takeover=takeover)

    async def _start(
        self, function: Orchestrator[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], instance_id: str
    ) -> None:
        hub = await self._hub()
        run, request_id = uuid.uuid4().hex, uuid.uuid4().hex
        where = f"arguments of orchestrator {function.name!r}"
        encoded = hub.codec.encode_call(function.calls, args, kwargs, where=where)
        reference = await _reference(hub, function)
        await self._refuse_taken(hub, instance_id)
        now_us, began_s = time.time_ns() // 1_000, time.monotonic()
        entry = OpenEntry(instance_id=instance_id, name=function.name, request_id=request_id, entered_us=now_us)
        await hub.enter(entry)
        started = ExecutionStarted(
            number=1,
            time_us=now_us,
            instance_id=instance_id,
            run=run,
            execution=1,
            name=function.name,
            input=await hub.offload(run, encoded),
            request_id=request_id,
            reference=reference.to_json(),
        )
        lines, sections = encode_events([started])
        existing = await create_execution(
            hub.store,
            hub.keys,
            instance_id=instance_id,
            execution=1,
            run=run,
            lines=lines,
            sections=sections,
            status=summarize(
                instance_id=instance_id,
                name=function.name,
                execution=1,
                request_id=request_id,
                created_us=now_us,
                updated_us=now_us,
            ),
            hub_epoch=hub.epoch,
        )
        if existing is not None:
            await self._refuse_taken(hub, instance_id)
        if time.monotonic() - began_s > _SLOW_START_S:
            # So slow a start may have been taken for one that never happened.
            await hub.enter(entry)
        await self._admit(instance_id)

    async def _refuse_taken(self, hub: OpenHub, instance_id: str) -> None:
        if await latest_execution(hub.store, hub.keys, instance_id) is None:
            return
        status = await hub.status(instance_id)
        if status.is_ended:
            # A start that lost the race entered the open set in vain.
            await remove_open(hub.store, hub.keys, instance_id)
        raise InstanceExistsError(
            f"An instance with ID {instance_id!r} already exists ({status.runtime_status}): use "
            f"hub.get({instance_id!r}) for it, or start under another id",
            instance_id=instance_id,
        )

    async def _admit(self, instance_id: str) -> None:
        """Tell the supervisor; should that fail, it finds the instance by itself."""
        assert self._connection is not None
        try:
            await self._connection.admit(instance_id)
        except ClusterConnectionError:
            # Another cluster that holds the hub by now finds the instance, too.
            with contextlib.suppress(HubHeldError):
                await self._connection.repair()

    async def _command(self, instance_id: str, call: Callable[[Any], Awaitable[None]]) -> None:
        """Have the instance's actor do something that must be durable, and ask again while the answer is unclear.

        Raises:
            ClusterConnectionError: it did not answer for a minute; whether it will be done is unknown.
        """
        assert self._connection is not None
        deadline_s = time.monotonic() + _COMMAND_S_MAX
        while True:
            status = await self.status(instance_id)
            if status.is_ended:
                raise InstanceEndedError(
                    f"Instance {instance_id!r} has ended ({status.runtime_status}): it takes no more events or "
                    "commands",
                    instance_id=instance_id,
                    runtime_status=str(status.runtime_status),
                )
            try:
                await self._connection.ask_instance(instance_id, call)
                return
            except ClusterConnectionError as error:
                if time.monotonic() > deadline_s:
                    raise ClusterConnectionError(
                        f"Instance {instance_id!r} did not answer for {_COMMAND_S_MAX:.0f} s ({error}), so whether "
                        "this had an effect is unknown. Does its orchestrator block (time.sleep, long computations)? "
                        "Those belong into activities. handle.status() tells what is recorded"
                    ) from error
                # The outcome is unknown; the same request again is recognised by its id.
                await self._connection.repair()
                await asyncio.sleep(_POLL_S_FIRST)

    async def _wait_for_end(self, instance_id: str, poll_s: float, left_s: float | None) -> bool:
        assert self._connection is not None
        wait_s = _LONG_POLL_S if left_s is None else min(_LONG_POLL_S, left_s)
        try:
            return await self._connection.wait_ended(instance_id, wait_s)
        except ClusterConnectionError:
            # What another cluster brings to its end shows in storage all the same.
            with contextlib.suppress(HubHeldError):
                await self._connection.repair()
            await asyncio.sleep(poll_s)
            return False


def _check_event_name(name: object) -> None:
    if not (isinstance(name, str) and 1 <= len(name) <= 256 and name.isprintable()):
        raise InvalidIdError(f"The event name {name!r:.80} is not allowed: give 1 to 256 printable characters")


def _orchestrator(given: object) -> Orchestrator[..., Any]:
    found = registry.lookup(given) if isinstance(given, str) else given
    if isinstance(found, Orchestrator):
        return found
    if isinstance(found, DurableFunction):
        raise InvalidOrchestratorError(f"{found!r} is no orchestrator: call it from one")
    raise InvalidOrchestratorError(
        f"{given!r} is no orchestrator: decorate an `async def` or generator function with @orchestrator"
    )


async def _reference(hub: OpenHub, function: Orchestrator[..., Any]) -> FunctionReference:
    if function.is_importable:
        return registry.reference_of(function)
    if not hub.codec.trust.allows_pickle:
        raise SerializationError(
            f"Orchestrator {function.name!r} is defined in the running script or notebook, so its code would have "
            f"to be stored by value, which needs a private local root; {hub.store.url} is none. Move it to a module "
            "that every node can import",
            where=f"code of orchestrator {function.name!r}",
            type_name="function",
        )
    return registry.reference_of(function, await hub.store_code(capture_bundle(function)))


def _address(
    root: str | os.PathLike[str] | None, hub: str, storage_options: Mapping[str, Any] | str | None
) -> tuple[HubAddress, Mapping[str, Any] | None]:
    """The hub's address, and the options that were given as a dict."""
    url = os.fspath(default_root() if root is None else root)
    if "://" not in url:
        url = str(Path(url).expanduser().absolute())
    if isinstance(storage_options, str):
        return HubAddress(root=url, hub=hub, options_source=storage_options), None
    address = HubAddress(root=url, hub=hub)
    if storage_options is None:
        return address, None
    return HubAddress(root=url, hub=hub, options_source=f"env:{_variable_of(address)}"), storage_options


def _variable_of(address: HubAddress) -> str:
    return f"RAY_DURABLE_STORAGE_OPTIONS_{address.digest.upper()}"


def _status(given: RuntimeStatus | str) -> RuntimeStatus:
    try:
        return RuntimeStatus(given)
    except ValueError:
        known = ", ".join(repr(str(one.value)) for one in RuntimeStatus)
        raise ConfigurationError(f"There is no status {given!r}: use one of {known}") from None


def _to_us(moment: datetime | None, argument: str) -> int | None:
    if moment is None:
        return None
    if moment.utcoffset() is None:
        raise ConfigurationError(
            f"{argument} is {moment!r}, which has no time zone: give an aware datetime, for example "
            "datetime.now(timezone.utc), or moment.astimezone() for local time"
        )
    return int(moment.timestamp() * 1_000_000)
