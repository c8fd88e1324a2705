"""An instance's line to the dispatcher: what to start and to drop goes out, outcomes come in.

One exchange is parked while activities are outstanding; a sequential step so costs one call. The line keeps what it has
not sent; once the dispatcher is lost, everything that was sent is unknown and the instance must attach again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

from ray_durable.errors import FencedError
from ray_durable.runtime.messages import Attachment, Exchange, ExchangeReply, MapRequest, TaskRequest
from ray_durable.runtime.ports import DispatcherLostError, DispatcherPort

__all__ = ["DispatcherLink"]


class DispatcherLink:
    """See the module. `on_reply` gets every reply that brings something, `on_lost` the error that cut the line."""

    def __init__(
        self,
        port: DispatcherPort,
        *,
        run: str,
        instance_id: str,
        hub_epoch: int,
        on_reply: Callable[[ExchangeReply], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        self._port = port
        self._run = run
        self._instance_id = instance_id
        self._hub_epoch = hub_epoch
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._epoch = 0
        self._incarnation = ""
        self._is_fresh = True
        self._tasks: list[TaskRequest] = []
        self._maps: list[MapRequest] = []
        self._cancel: list[int] = []
        self._settled: list[int] = []
        self._calls: set[asyncio.Task[None]] = set()
        # Whether the dispatcher may know of the run.
        self._is_known = True

    def follow(self, before: DispatcherLink) -> Attachment:
        """What the dispatcher holds of a run that nobody has owned yet: nothing, so it need not be asked.

        `before` is the line of the execution before, on which it was asked.
        """
        self._incarnation, self._is_known = before._incarnation, False
        return Attachment(incarnation=self._incarnation, tasks=frozenset(), maps={})

    async def attach(self) -> Attachment:
        """What the dispatcher holds of this run. Raises DispatcherLostError."""
        attachment = await self._port.attach(self._run, self._instance_id)
        if attachment.incarnation != self._incarnation:
            # Another dispatcher numbers its outcomes anew.
            self._settled = []
        self._incarnation = attachment.incarnation
        return attachment

    def open(self, epoch: int) -> None:
        """Speak for the owner of `epoch` from now on; outcomes that were delivered to others come again.

        What becomes of earlier calls says nothing any more: whoever opens has asked what they left behind.
        """
        self._hang_up()
        self._epoch = epoch
        self._is_fresh = True

    def submit(self, tasks: Iterable[TaskRequest] = (), maps: Iterable[MapRequest] = ()) -> None:
        """Start these with the next flush."""
        self._tasks.extend(tasks)
        self._maps.extend(maps)

    def cancel(self, numbers: Iterable[int]) -> None:
        """Drop these tasks and maps with the next flush."""
        self._cancel.extend(numbers)

    def settle(self, outcome_ids: Iterable[int]) -> None:
        """The log holds these outcomes."""
        self._settled.extend(outcome_ids)

    def flush(self, *, is_waiting: bool) -> None:
        """Send what is new; without news, keep one exchange parked while `is_waiting` for outcomes.

        Outcomes that the log holds can be forgotten: that goes along with the next exchange, and with one of its own
        when none is to follow.
        """
        has_news = bool(self._tasks or self._maps or self._cancel)
        if has_news or ((is_waiting or self._settled) and not self._calls):
            call = asyncio.get_running_loop().create_task(self._exchange(self._request()))
            self._calls.add(call)

    async def leave(self) -> None:
        """The instance has ended: the dispatcher forgets the run. A lost dispatcher has forgotten it already."""
        self.close()
        if not self._is_known:
            return
        try:
            if not self._incarnation:
                await self.attach()
            request = self._request()
            request.is_leaving = True
            await self._port.exchange(request)
        except DispatcherLostError:
            return

    def close(self) -> None:
        """Send nothing more and hear nothing more."""
        self._hang_up()
        self._tasks, self._maps, self._cancel, self._settled = [], [], [], []

    def _hang_up(self) -> None:
        for call in list(self._calls):
            call.cancel()
        self._calls.clear()

    def _request(self) -> Exchange:
        self._is_known = True
        request = Exchange(
            run=self._run,
            instance_id=self._instance_id,
            epoch=self._epoch,
            hub_epoch=self._hub_epoch,
            incarnation=self._incarnation,
            is_fresh=self._is_fresh,
            tasks=self._tasks,
            maps=self._maps,
            cancel=self._cancel,
            settled=self._settled,
        )
        self._tasks, self._maps, self._cancel, self._settled = [], [], [], []
        self._is_fresh = False
        return request

    async def _exchange(self, request: Exchange) -> None:
        try:
            reply = await self._port.exchange(request)
        except Exception as error:
            # Also what should not happen: nobody else would hear of it.
            self._on_lost(error)
            return
        finally:
            # Before anybody hears of it: the turn that it causes may want to park the next one.
            self._calls.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        if reply.is_superseded:
            self._on_lost(FencedError("A newer owner of the instance is attached to the dispatcher", key=self._run))
        elif reply.is_detached:
            self._on_lost(DispatcherLostError("The dispatcher was restarted"))
        else:
            self._on_reply(reply)
