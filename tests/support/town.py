"""A world of many instances with a supervisor, in which any owner may die at any operation of the store.

Operations of all owners' stores are counted together, so that a run can be repeated with a death at each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from ray_durable.engine import Event
from ray_durable.errors import ClusterConnectionError, FencedError, InstanceEndedError
from ray_durable.payload import Payload
from ray_durable.runtime.chores import RemoveRetired
from ray_durable.runtime.hub import GRACE_S_DEFAULT
from ray_durable.runtime.lease import Lease, LeaseKeeper
from ray_durable.runtime.lifecycle import restart_instance, rewind_instance
from ray_durable.runtime.supervisor import Supervisor
from ray_durable.storage import claim_hub_epoch, list_open
from ray_durable.testing.workers import finish
from tests.support.world import Owner, SpyStore, World, never

__all__ = ["Town"]

_ROUND_S = 2.0
_PATIENCE_S = 200_000.0


class Town(World):
    """See the module. `deaths` are operations, counted from 1, at which the owner that does it dies: (number, whether
    the operation takes effect)."""

    def __init__(
        self,
        *,
        deaths: Iterable[tuple[int, bool]] = (),
        grace_s: float = GRACE_S_DEFAULT,
        idle_s: float | None = None,
        live_max: int = 1_000,
    ) -> None:
        super().__init__(idle_s=idle_s)
        self.hub._settings = {"grace_s": grace_s}
        self.grace_s = grace_s
        self.deaths = dict(deaths)
        self.operations = 0
        self.died = 0
        self._admitting: set[asyncio.Task[None]] = set()
        self._live_max = live_max
        self.start_supervisor()

    def start_supervisor(self) -> None:
        """A new life of the supervisor: it knows nothing."""
        self.supervisor_store = SpyStore(self.objects)
        hub = self.open_hub(self.supervisor_store)
        lease = Lease(epoch=1, cluster="here", host="here", boot="", pid=0)
        finish(claim_hub_epoch(self.objects, self.hub.keys, lease.epoch, lease.to_json()))
        self.supervisor = Supervisor(
            LeaseKeeper(hub, lease, self.clock),
            _Owners(self),
            self.clock,
            live_max=self._live_max,
            interval_s=_ROUND_S,
            chores=[RemoveRetired(hub, self.clock)],
        )
        self._supervising = asyncio.get_running_loop().create_task(self.supervisor.run())

    def lose_supervisor(self) -> None:
        """Its process dies; there is a new one at once."""
        self._supervising.cancel()
        self.start_supervisor()

    def admit(self, instance_id: str) -> None:
        admitting = asyncio.get_running_loop().create_task(self.supervisor.admit(instance_id))
        self._admitting.add(admitting)
        admitting.add_done_callback(self._admitting.discard)

    async def activate(self, instance_id: str) -> Owner:
        if self.living(instance_id) is None:
            await self.supervisor.activate(instance_id)
        owner = self.living(instance_id)
        if owner is None:
            raise ClusterConnectionError("it has no owner yet")
        return owner

    def own(self, instance_id: str = "one", *, store: SpyStore | None = None, epoch: int = 1) -> Owner:
        spy = store or SpyStore(self.objects)
        owner = super().own(instance_id, store=spy, epoch=epoch)
        owner.instance._hub._settings = {"grace_s": self.grace_s}

        async def before(operation: str, key: str) -> None:
            self.operations += 1
            number = self.operations
            if self.deaths.get(number) is False:
                await self._die(owner)
            marks.append(number)

        async def after(operation: str, key: str) -> None:
            if self.deaths.get(marks.pop(0)) is True:
                await self._die(owner)

        marks: list[int] = []
        spy.before, spy.after = before, after
        return owner

    async def _die(self, owner: Owner) -> None:
        if not owner.task.done():
            self.died += 1
            owner.instance._discard()
            owner.task.cancel()
        await never()

    async def settled(self) -> None:
        """Wait until no instance is open any more."""
        async with asyncio.timeout(_PATIENCE_S):
            while await list_open(self.objects, self.hub.keys):
                await asyncio.sleep(1)

    async def result_of(self, instance_id: str = "one") -> Any:
        """Wait for an instance's end, and return its result."""
        await self.ended(instance_id)
        return await self.result(instance_id)

    async def ended(self, instance_id: str = "one") -> None:
        """Wait for an instance's end."""
        async with asyncio.timeout(_PATIENCE_S):
            while await self.hub.end(instance_id) is None:
                await asyncio.sleep(0.5)

    async def command(self, instance_id: str, method: str, *args: Any) -> None:
        """What a client does: ask the owner, whoever that is, until there is an answer.

        Raises:
            InstanceEndedError: there is nobody any more.
        """
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                if (await self.status(instance_id)).is_ended:
                    raise InstanceEndedError("it has ended", instance_id=instance_id, runtime_status="")
                owner = await self.activate(instance_id)
                asked = asyncio.ensure_future(getattr(owner.instance, method)(*args))
                await asyncio.wait({asked, owner.task}, return_when=asyncio.FIRST_COMPLETED)
                if asked.done():
                    # Like a client, which asks again while the outcome is unknown.
                    with contextlib.suppress(ClusterConnectionError, FencedError, InstanceEndedError):
                        asked.result()
                        return
                asked.cancel()
                await asyncio.sleep(0.1)

    async def raise_event(self, name: str, value: Any, event_id: str, instance_id: str = "one") -> None:
        """An external event, as a client raises it."""
        await self.command(instance_id, "raise_event", name, self.encoded(value), event_id)

    async def rewind(self, instance_id: str = "one", request_id: str = "") -> None:
        """Rewind, as a client does."""
        request = request_id or uuid.uuid4().hex
        await rewind_instance(self.hub, instance_id, request, reason="mended", now_us=self.clock.now_us())

    async def restart(self, instance_id: str = "one", request_id: str = "") -> None:
        """Restart, as a client does."""
        request = request_id or uuid.uuid4().hex
        await restart_instance(self.hub, instance_id, request, reason="again", now_us=self.clock.now_us())

    async def history_of(self, instance_id: str = "one", execution: int | None = None) -> Sequence[Event]:
        """The events of an execution."""
        return await self.hub.history(instance_id, execution)

    def encoded(self, value: Any) -> Payload:
        """A value as a client would send it."""
        return self.hub.codec.encode(value, where="test")

    async def close(self) -> None:
        for admitting in self._admitting:
            admitting.cancel()
        self._supervising.cancel()
        await super().close()


class _Owners:
    """`ActorDirectory` of a town."""

    def __init__(self, town: Town) -> None:
        self._town = town

    async def live(self) -> set[str]:
        await asyncio.sleep(0)
        return {owner.instance.instance_id for owner in self._town.owners if not owner.task.done()}

    async def keep_dispatcher(self) -> None:
        await asyncio.sleep(0)

    async def create(self, instance_ids: Sequence[str]) -> None:
        for instance_id in instance_ids:
            await asyncio.sleep(0)
            if self._town.living(instance_id) is None:
                self._town.own(instance_id)
