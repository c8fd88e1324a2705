"""Starting instances: at once, later, and by schedules. What a connected hub adds to that is in `client`."""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, ParamSpec, TypeVar, overload

from ray_durable import registry
from ray_durable.authoring import Orchestrator
from ray_durable.capture import capture_bundle
from ray_durable.errors import ConfigurationError, InvalidOrchestratorError, SerializationError
from ray_durable.function import DurableFunction
from ray_durable.handle import Handle
from ray_durable.payload import Payload
from ray_durable.reader import HubReader
from ray_durable.reason import check_reason
from ray_durable.reference import FunctionReference
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.lifecycle import Start, start_instance
from ray_durable.runtime.moments import due_us
from ray_durable.runtime.schedules import (
    Overlap,
    ScheduleOptions,
    check_schedule_id,
    define_schedule,
    delete_schedule,
    pause_schedule,
    resume_schedule,
    trigger_schedule,
)
from ray_durable.schedule import ScheduleHandle
from ray_durable.storage import check_instance_id

__all__ = ["HubStarts", "IdReuse"]

P = ParamSpec("P")
R = TypeVar("R")

CATCH_UP = timedelta(days=1)
"""How old the latest missed firing of a schedule may be to be made up for, unless it says otherwise."""

IdReuse = Literal["ended", "never"]
"""Which instances of an id may be followed by a new one: those that have ended, or none."""


class HubStarts(HubReader):
    """The part of a connected hub that starts instances. See the module."""

    @overload
    def start(self, orchestrator: Orchestrator[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    # A checked signature and a keyword beside it cannot both be said: with an id or a time, only the result is typed.
    @overload
    def start(
        self,
        orchestrator: Orchestrator[..., R],
        /,
        *args: Any,
        instance_id: str | None,
        reuse: IdReuse = "ended",
        at: datetime | timedelta | None = None,
        **kwargs: Any,
    ) -> Handle[R]: ...
    @overload
    def start(
        self,
        orchestrator: Orchestrator[..., R],
        /,
        *args: Any,
        at: datetime | timedelta | None,
        **kwargs: Any,
    ) -> Handle[R]: ...
    @overload
    def start(
        self,
        orchestrator: str,
        /,
        *args: Any,
        instance_id: str | None = None,
        reuse: IdReuse = "ended",
        at: datetime | timedelta | None = None,
        **kwargs: Any,
    ) -> Handle[Any]: ...
    def start(  # type: ignore[misc]  # No orchestrator has parameters of these names; the decorator refuses them.
        self,
        orchestrator: Any,
        /,
        *args: Any,
        instance_id: str | None = None,
        reuse: IdReuse = "ended",
        at: datetime | timedelta | None = None,
        **kwargs: Any,
    ) -> Handle[Any]:
        """Start an instance; returns when the start is durable. Arguments are those of the orchestrator.

        `instance_id` (default: a random one) names the instance. An id whose instance has ended may be used again: the
        new one follows it as its next execution. `reuse="never"` refuses that, too. `at` is when its code is to begin:
        an aware datetime, or a timedelta from now (what is past begins at once). Until then the instance is Pending and
        needs no process; it takes events, which are kept for its code, and control calls like any other.

        Raises:
            InstanceExistsError: the id is taken. `hub.get(id)` is the instance that has it.
            InvalidIdError: the id is not allowed.
            TypeError, SerializationError, PayloadTooLargeError: the arguments do not fit, or cannot be encoded.
            InvalidOrchestratorError, FunctionNotFoundError: what is to be started is no orchestrator.
            ConfigurationError: `at` has no time zone, or is over a hundred years ahead.
            StoreUnavailableError: the store did not answer for half a minute, so whether it was started is unknown.
        """
        function = _orchestrator(orchestrator)
        wanted_id = uuid.uuid4().hex if instance_id is None else instance_id
        check_instance_id(wanted_id)
        if reuse not in ("ended", "never"):
            raise ConfigurationError(f"reuse is {reuse!r}: give 'ended' or 'never'")
        self.run(self._start(function, args, kwargs, wanted_id, reuses_ended=reuse == "ended", at=at))
        return Handle(self, wanted_id)

    @overload
    def schedule(
        self, schedule_id: str, cron: str, orchestrator: Orchestrator[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> ScheduleHandle[R]: ...
    # As for `start`: with options, only the result is typed.
    @overload
    def schedule(
        self,
        schedule_id: str,
        cron: str,
        orchestrator: Orchestrator[..., R],
        /,
        *args: Any,
        timezone: str,
        overlap: Overlap = "skip",
        catch_up: timedelta = CATCH_UP,
        **kwargs: Any,
    ) -> ScheduleHandle[R]: ...
    @overload
    def schedule(
        self,
        schedule_id: str,
        cron: str,
        orchestrator: Orchestrator[..., R],
        /,
        *args: Any,
        overlap: Overlap,
        catch_up: timedelta = CATCH_UP,
        **kwargs: Any,
    ) -> ScheduleHandle[R]: ...
    @overload
    def schedule(
        self,
        schedule_id: str,
        cron: str,
        orchestrator: Orchestrator[..., R],
        /,
        *args: Any,
        catch_up: timedelta,
        **kwargs: Any,
    ) -> ScheduleHandle[R]: ...
    @overload
    def schedule(
        self,
        schedule_id: str,
        cron: str,
        orchestrator: str,
        /,
        *args: Any,
        timezone: str = "UTC",
        overlap: Overlap = "skip",
        catch_up: timedelta = CATCH_UP,
        **kwargs: Any,
    ) -> ScheduleHandle[Any]: ...
    def schedule(  # type: ignore[misc]  # An orchestrator with parameters of these names is refused.
        self,
        schedule_id: str,
        cron: str,
        orchestrator: Any,
        /,
        *args: Any,
        timezone: str = "UTC",
        overlap: Overlap = "skip",
        catch_up: timedelta = CATCH_UP,
        **kwargs: Any,
    ) -> ScheduleHandle[Any]:
        """Start an instance at each time of a cron expression, from now on; durable when this returns.

        `cron` has five fields (minute, hour, day of the month, month, day of the week), or six with the second first,
        and is read in `timezone`, a name such as "Europe/Berlin". `overlap` is what becomes of a firing while the
        instance of the one before has not ended: "skip" it; "allow" both; "cancel_previous" terminates the other;
        "buffer_one" starts one of them when the other ends. After a time in which no cluster held the hub, of all the
        firings that were missed the latest is made up for, if it is no older than `catch_up` (default: a day).

        A schedule of the same id is replaced: so a deployment may define its schedules each time. Its past stays, and
        so does that it is paused. Other arguments are the orchestrator's.

        Raises:
            ConfigurationError: the times, the zone or an option cannot work; the text says why.
            InvalidIdError: the id is not allowed; it is like an instance's, with at most 200 characters.
            TypeError, SerializationError, PayloadTooLargeError: the arguments do not fit, or cannot be encoded.
            InvalidOrchestratorError, FunctionNotFoundError: what is to be started is no orchestrator.
        """
        function = _orchestrator(orchestrator)
        options = ScheduleOptions(cron=cron, timezone=timezone, overlap=overlap, catch_up=catch_up)
        options.check_for(function)
        check_schedule_id(schedule_id)
        self.run(self._schedule(schedule_id, options, function, args, kwargs))
        return ScheduleHandle(self, schedule_id)

    async def pause_schedule(self, schedule_id: str, note: str) -> None:
        """See `ScheduleHandle.pause`."""
        check_reason(note)
        await pause_schedule(await self._hub(), schedule_id, note)

    async def resume_schedule(self, schedule_id: str) -> None:
        """See `ScheduleHandle.resume`."""
        await resume_schedule(await self._hub(), schedule_id, self._now_us())

    async def delete_schedule(self, schedule_id: str) -> None:
        """See `ScheduleHandle.delete`."""
        await delete_schedule(await self._hub(), schedule_id)

    async def trigger_schedule(self, schedule_id: str) -> str:
        """See `ScheduleHandle.trigger`; the id of the instance."""
        instance_id = await trigger_schedule(await self._hub(), schedule_id, self._now_us())
        await self._admit(instance_id)
        return instance_id

    async def _start(
        self,
        function: Orchestrator[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        instance_id: str,
        *,
        reuses_ended: bool,
        at: datetime | timedelta | None,
    ) -> str:
        now_us = self._now_us()
        begins_us = due_us(at, now_us)
        hub = await self._hub()
        start = Start(
            instance_id=instance_id,
            name=function.name,
            input=self._encoded_call(hub, function, args, kwargs),
            request_id=uuid.uuid4().hex,
            reference=(await self._reference(function)).to_json(),
            version=function.version,
            due_us=begins_us,
        )
        await start_instance(hub, start, now_us=now_us, reuses_ended=reuses_ended)
        if begins_us is None:
            await self._admit(instance_id)
        return instance_id

    async def _schedule(
        self,
        schedule_id: str,
        options: ScheduleOptions,
        function: Orchestrator[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        hub = await self._hub()
        encoded = self._encoded_call(hub, function, args, kwargs)
        reference = (await self._reference(function)).to_json()
        await define_schedule(hub, options.schedule(schedule_id, function, encoded, reference, self._now_us()))

    @staticmethod
    def _encoded_call(
        hub: OpenHub, function: Orchestrator[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Payload:
        where = f"arguments of orchestrator {function.name!r}"
        return hub.codec.encode_call(function.calls, args, kwargs, where=where)

    async def _reference(self, function: Orchestrator[..., Any]) -> FunctionReference:
        """How other processes find `function`; its code is stored where they cannot import it."""
        if function.is_importable:
            return registry.reference_of(function)
        hub = await self._hub()
        if not hub.codec.trust.allows_pickle:
            raise SerializationError(
                f"Orchestrator {function.name!r} is defined in the running script or notebook, so its code would "
                f"have to be stored by value, which needs a private local root or a signing key, and {hub.store.url} "
                "has neither. Move it to a module that every node can import, or give connect a signing_key",
                where=f"code of orchestrator {function.name!r}",
                type_name="function",
            )
        return registry.reference_of(function, await hub.store_code(capture_bundle(function)))

    @abstractmethod
    async def _admit(self, instance_id: str) -> None:
        """Tell the supervisor; should that fail, it finds the instance by itself."""


def _orchestrator(given: object) -> Orchestrator[..., Any]:
    found = registry.lookup(given) if isinstance(given, str) else given
    if isinstance(found, Orchestrator):
        return found
    if isinstance(found, DurableFunction):
        raise InvalidOrchestratorError(f"{found!r} is no orchestrator: call it from one")
    raise InvalidOrchestratorError(
        f"{given!r} is no orchestrator: decorate an `async def` or generator function with @orchestrator"
    )
