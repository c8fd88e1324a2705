"""The replayer: do recorded histories still fit the code of today? Asked before a deploy, and in tests.

Reads storage only. No activity runs, nothing is written, and no Ray is needed. It runs in the calling process, so what
it checks is the code that this process imports.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from ray_durable.authoring import Orchestrator
from ray_durable.codec import Codec, Trust
from ray_durable.context import Orchestration
from ray_durable.engine import Event, ExecutionStarted, RuntimeStatus
from ray_durable.errors import ConfigurationError, DurableError
from ray_durable.handle import Handle
from ray_durable.reader import HubReader, browse
from ray_durable.testing.history_file import read_history, write_history
from ray_durable.testing.replay import Replay, ReplayReport, orchestration_of, replay

__all__ = ["Replayer", "check_history", "check_hub", "export_history"]

_OPEN = (RuntimeStatus.PENDING, RuntimeStatus.RUNNING, RuntimeStatus.SUSPENDED)

History = Sequence[Event] | str | os.PathLike[str]


class Replayer:
    """Checks the histories of one hub: one that is open already, or the one at `root`. A context manager.

    `root`, `hub` and `storage_options` are those of `browse`.
    """

    def __init__(
        self,
        root: HubReader | str | os.PathLike[str] | None = None,
        *,
        hub: str = "default",
        storage_options: Mapping[str, Any] | str | None = None,
    ) -> None:
        self._is_own = not isinstance(root, HubReader)
        self._reader = root if isinstance(root, HubReader) else browse(root, hub=hub, storage_options=storage_options)

    def check(
        self, instance_id: str, orchestrator: Orchestrator[..., Any] | None = None, *, execution: int | None = None
    ) -> Replay:
        """Replay an execution of an instance (default: the newest) by the function that its start names, or by
        `orchestrator`. What cannot be loaded is an outcome, too.

        Raises:
            InstanceNotFoundError: there is no such instance, or no such execution.
        """
        status = self._reader.get(instance_id).status()
        try:
            history = self.history(instance_id, execution=execution)
            orchestration = self._reader.run(self._load(history, orchestrator))
        except Exception as error:
            return Replay(
                instance_id=instance_id,
                name=status.name,
                execution=execution or status.execution,
                event_count=0,
                outcome="not loaded",
                error=error,
            )
        return replay(history, orchestration)

    def check_all(self, *, only_open: bool = True, prefix: str = "", name: str | None = None) -> ReplayReport:
        """Replay all instances that have not ended (or simply all), of a beginning of their ids, of an orchestrator."""
        found = self._reader.instances(status=_OPEN if only_open else None, prefix=prefix, name=name)
        return ReplayReport(tuple(self.check(status.instance_id) for status in found))

    def history(self, instance_id: str, *, execution: int | None = None) -> list[Event]:
        """The events of an execution (default: the newest), with all of their payloads."""
        return self._reader.run(self._history(instance_id, execution))

    def export(self, instance_id: str, path: str | os.PathLike[str], *, execution: int | None = None) -> None:
        """Write the history of an execution (default: the newest) to a file, for `check_history`."""
        write_history(path, self.history(instance_id, execution=execution))

    def close(self) -> None:
        """Give connections back, unless the hub was open before."""
        if self._is_own:
            self._reader.close()

    def __enter__(self) -> Replayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _history(self, instance_id: str, execution: int | None) -> list[Event]:
        hub = await self._reader._hub()
        log, history = await hub.read_log(instance_id, execution)
        await hub.load_blobs(log.run, history)
        return [hub.detached(event) for event in history]

    async def _load(self, history: Sequence[Event], orchestrator: Orchestrator[..., Any] | None) -> Orchestration:
        hub, started = await self._reader._hub(), _started(history)
        if orchestrator is None:
            return await hub.load_orchestration(started)
        return orchestration_of(started, hub.codec, orchestrator)


def check_hub(
    root: HubReader | str | os.PathLike[str] | None = None,
    *,
    hub: str = "default",
    storage_options: Mapping[str, Any] | str | None = None,
    only_open: bool = True,
) -> ReplayReport:
    """Replay all instances of a hub that have not ended (or simply all) with the code of this process.

    Before a deploy, in the new version's environment: exit unless the report is true, and print it.
    """
    with Replayer(root, hub=hub, storage_options=storage_options) as replayer:
        return replayer.check_all(only_open=only_open)


def check_history(
    history: History, orchestrator: Orchestrator[..., Any] | None = None, *, allows_pickle: bool = False
) -> Replay:
    """Replay a history, a list of events or a file of `export_history`, by the function that its start names, or by
    `orchestrator`. `allows_pickle` lets pickled values be loaded: only for files that are as trusted as the code.

    Raises:
        CorruptLogError: it is no history.
    """
    events = read_history(history) if isinstance(history, str | os.PathLike) else history
    started = _started(events)
    codec = Codec(trust=Trust.PRIVATE_LOCAL_ROOT if allows_pickle else Trust.NONE)
    try:
        orchestration = orchestration_of(started, codec, orchestrator)
    except DurableError as error:
        return Replay(
            instance_id=started.instance_id,
            name=started.name,
            execution=started.execution,
            event_count=len(events),
            outcome="not loaded",
            error=error,
        )
    return replay(events, orchestration)


def export_history(handle: Handle[Any], path: str | os.PathLike[str], *, execution: int | None = None) -> None:
    """Write the history of an instance (default: its newest execution) to a file, for `check_history`.

    It holds arguments and results as they are: mind what they say before you commit it.
    """
    reader = handle._client
    if not isinstance(reader, HubReader):
        raise ConfigurationError(f"{handle!r} belongs to no hub: get it from one with hub.get(instance_id)")
    with Replayer(reader) as replayer:
        replayer.export(handle.instance_id, path, execution=execution)


def _started(history: Sequence[Event]) -> ExecutionStarted:
    if not history or not isinstance(history[0], ExecutionStarted):
        raise ConfigurationError("This is no history: it does not begin with ExecutionStarted")
    return history[0]
