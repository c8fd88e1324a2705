"""Looking into a hub: statuses, histories, results and listings, from storage alone. Loads no Ray, writes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Coroutine, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from ray_durable import registry
from ray_durable.command import STORE_PATIENCE_S
from ray_durable.engine import Event, ExecutionCompleted, RuntimeStatus
from ray_durable.errors import (
    ConfigurationError,
    FunctionNotFoundError,
    OrchestrationFailedError,
    OrchestrationTerminatedError,
    SerializationError,
    StoreUnavailableError,
)
from ray_durable.handle import Handle
from ray_durable.runtime.address import KEY_VARIABLE, OPTIONS_VARIABLE, HubAddress, default_key_source
from ray_durable.runtime.explanation import Explanation, explain_stored
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.loop_thread import LoopThread
from ray_durable.runtime.moments import to_us
from ray_durable.runtime.schedules import (
    ScheduleStatus,
    check_schedule_id,
    load_schedule,
    schedule_statuses,
    status_of,
)
from ray_durable.runtime.status import InstanceStatus
from ray_durable.schedule import ScheduleHandle
from ray_durable.storage import (
    Pacing,
    Signer,
    check_hub_name,
    check_instance_id,
    latest_execution,
    list_ended,
    list_open,
)

__all__ = ["HubReader", "address_of", "browse", "default_root"]

T = TypeVar("T")

_POLL_S_FIRST, _POLL_S_MAX = 0.05, 1.0
_LOOK_S = 5.0
"""How long a look at the store may take beyond the timeout that a caller gave."""


def browse(
    root: str | os.PathLike[str] | None = None,
    *,
    hub: str = "default",
    storage_options: Mapping[str, Any] | str | None = None,
    signing_key: bytes | str | None = None,
) -> HubReader:
    """Look into a hub without Ray: statuses, histories, listings. Nothing is started, nothing is written.

    `signing_key` is that of `connect`. A signed hub shows statuses and histories without it too, unauthenticated, and
    no value that needs trust.

    Raises:
        ConfigurationError: there is no such hub, or an argument cannot work.
        StoreError: the root cannot be read.
    """
    check_hub_name(hub)
    address, secrets = address_of(root, hub, storage_options, signing_key)
    os.environ.update(secrets)
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
        bounds = (
            None if created_from is None else to_us(created_from, "created_from"),
            None if created_to is None else to_us(created_to, "created_to"),
        )
        found = self.run(self._instances(statuses, prefix, *bounds))
        return [one for one in found if name is None or one.name == name]

    def get_schedule(self, schedule_id: str) -> ScheduleHandle[Any]:
        """A handle on the schedule with this id, whether it exists or not."""
        check_schedule_id(schedule_id)
        return ScheduleHandle(self, schedule_id)

    def schedules(self) -> list[ScheduleStatus]:
        """All schedules of the hub, by id."""
        return self.run(self._schedules())

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
        return await self.stored_status(instance_id)

    async def stored_status(self, instance_id: str) -> InstanceStatus:
        """The status as storage has it."""
        return await (await self._hub()).status(instance_id)

    async def history(self, instance_id: str, execution: int | None) -> list[Event]:
        """See `Handle.history`."""
        return await (await self._hub()).history(instance_id, execution)

    async def result(self, instance_id: str, timeout_s: float | None) -> Any:
        """See `Handle.result`: looks again and again, since a reader has nobody to ask."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        poll_s, was_told = _POLL_S_FIRST, False
        while (end := await self._look_for_end(instance_id, deadline_s)) is None:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                await self._raise_timeout(instance_id, timeout_s)
            if was_told:
                # Somebody let it begin anew at that moment.
                await asyncio.sleep(poll_s)
            wait_s = poll_s if left_s is None else min(poll_s, left_s)
            was_told = await self._wait_for_end(instance_id, wait_s, left_s)
            if not was_told:
                poll_s = min(_POLL_S_MAX, 2 * poll_s)
        return await self._outcome(instance_id, end)

    async def explain(self, instance_id: str) -> Explanation:
        """See `Handle.explain`; from storage, which knows no workers, and lines of code only of idle instances."""
        return await explain_stored(await self._hub(), instance_id)

    async def raise_event(self, instance_id: str, name: str, value: Any, event_id: str | None, type: Any) -> None:
        """A reader changes nothing."""
        raise self._reads_only("raise events")

    async def terminate(self, instance_id: str, reason: str, recursive: bool) -> None:
        """A reader changes nothing."""
        raise self._reads_only("terminate instances")

    async def suspend(self, instance_id: str, reason: str) -> None:
        """A reader changes nothing."""
        raise self._reads_only("suspend instances")

    async def resume(self, instance_id: str, reason: str) -> None:
        """A reader changes nothing."""
        raise self._reads_only("resume instances")

    async def rewind(self, instance_id: str, reason: str) -> None:
        """A reader changes nothing."""
        raise self._reads_only("rewind instances")

    async def restart(self, instance_id: str, new_id: str | None, reason: str) -> str:
        """A reader changes nothing."""
        raise self._reads_only("restart instances")

    async def fork(self, instance_id: str, new_id: str | None, after: int | None, execution: int | None) -> str:
        """A reader changes nothing."""
        raise self._reads_only("fork instances")

    async def purge(self, instance_id: str) -> None:
        """A reader changes nothing."""
        raise self._reads_only("purge instances")

    async def schedule_status(self, schedule_id: str) -> ScheduleStatus:
        """See `ScheduleHandle.describe`."""
        return status_of(await load_schedule(await self._hub(), schedule_id), self._now_us())

    async def pause_schedule(self, schedule_id: str, note: str) -> None:
        """A reader changes nothing."""
        raise self._reads_only("pause schedules")

    async def resume_schedule(self, schedule_id: str) -> None:
        """A reader changes nothing."""
        raise self._reads_only("resume schedules")

    async def delete_schedule(self, schedule_id: str) -> None:
        """A reader changes nothing."""
        raise self._reads_only("delete schedules")

    async def trigger_schedule(self, schedule_id: str) -> str:
        """A reader changes nothing."""
        raise self._reads_only("trigger schedules")

    async def _schedules(self) -> list[ScheduleStatus]:
        return await schedule_statuses(await self._hub(), self._now_us())

    def _now_us(self) -> int:
        """The time at which something is asked for, in microseconds since the epoch."""
        return time.time_ns() // 1_000

    @staticmethod
    def _reads_only(purpose: str) -> ConfigurationError:
        return ConfigurationError(f"This hub was opened to read: use ray_durable.connect to {purpose}")

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
            pacing = Pacing(patience_s=STORE_PATIENCE_S)
            self._opened = await OpenHub.open(self.address, pacing=pacing, who=f"a client of {self.address.hub!r}")
        return self._opened

    async def _wait_for_end(self, instance_id: str, poll_s: float, left_s: float | None) -> bool:
        """Wait until the end may have come; whether there is reason to think so."""
        await asyncio.sleep(poll_s)
        return False

    async def _look_for_end(self, instance_id: str, deadline_s: float | None) -> ExecutionCompleted | None:
        """The end, if it is there; also None if the store does not answer, which an instance outlives."""
        limit_s = None if deadline_s is None else _LOOK_S + max(0.0, deadline_s - time.monotonic())
        try:
            return await self._within(limit_s, (await self._hub()).end(instance_id))
        except StoreUnavailableError:
            return None

    async def _within(self, limit_s: float | None, question: Coroutine[Any, Any, T]) -> T:
        """The answer to a question to the store. StoreUnavailableError if there is none after `limit_s`."""
        task = asyncio.ensure_future(question)
        try:
            await asyncio.wait({task}, timeout=limit_s)
            if task.done():
                return task.result()
            store = (await self._hub()).store
            raise StoreUnavailableError(store.problem or f"{store.url} does not answer", url=store.url)
        finally:
            task.cancel()

    async def _raise_timeout(self, instance_id: str, timeout_s: float | None) -> None:
        try:
            status = await self._within(_LOOK_S, self.status(instance_id))
        except StoreUnavailableError as error:
            raise TimeoutError(
                f"Instance {instance_id!r} is not known to have ended after {timeout_s} s ({error}). It goes on; ask "
                "again"
            ) from error
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
            # The open set knows better, and the later execution: a summary is left behind for a moment when an instance
            # begins anew.
            for ended in map(InstanceStatus.from_summary, page.summaries):
                known = found.get(ended.instance_id)
                if known is None or known.execution < ended.execution:
                    found[ended.instance_id] = ended
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


def address_of(
    root: str | os.PathLike[str] | None,
    hub: str,
    storage_options: Mapping[str, Any] | str | None,
    signing_key: bytes | str | None,
) -> tuple[HubAddress, dict[str, str]]:
    """The hub's address, and the environment variables that must hold the secrets which were given as values.

    Raises:
        ConfigurationError: the signing key is too short. A source is looked at when it is read.
    """
    url = os.fspath(default_root() if root is None else root)
    if "://" not in url:
        url = str(Path(url).expanduser().absolute())
    digest = HubAddress(root=url, hub=hub).digest.upper()
    secrets: dict[str, str] = {}
    options_source, key_source = None, default_key_source()
    if isinstance(storage_options, str):
        options_source = storage_options
    elif storage_options is not None:
        variable = f"{OPTIONS_VARIABLE}_{digest}"
        secrets[variable], options_source = json.dumps(storage_options), f"env:{variable}"
    if isinstance(signing_key, str):
        key_source = signing_key
    elif signing_key is not None:
        variable = f"{KEY_VARIABLE}_{digest}"
        secrets[variable], key_source = _text_of_key(signing_key), f"env:{variable}"
    return HubAddress(root=url, hub=hub, options_source=options_source, key_source=key_source), secrets


def _text_of_key(key: bytes) -> str:
    Signer([key])  # refuses what is no key
    return Signer.text_of(key)


def _status(given: RuntimeStatus | str) -> RuntimeStatus:
    try:
        return RuntimeStatus(given)
    except ValueError:
        known = ", ".join(repr(str(one.value)) for one in RuntimeStatus)
        raise ConfigurationError(f"There is no status {given!r}: use one of {known}") from None
