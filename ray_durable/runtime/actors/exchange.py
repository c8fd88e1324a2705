"""An instance's way to the dispatcher's actor."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
import ray.exceptions

from ray_durable.runtime.actors.cluster import DISPATCHER
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.channel import ExchangeChannel
from ray_durable.runtime.messages import Attachment, CallState, Exchange, ExchangeReply
from ray_durable.runtime.ports import DispatcherLostError

__all__ = ["DispatcherHandle"]

logger = logging.getLogger(__name__)


class DispatcherHandle:
    """`DispatcherPort` over the direct line to the dispatcher, or over its actor where there is none."""

    def __init__(self, address: HubAddress) -> None:
        self._address = address
        self._handle: Any = None
        self._channel: ExchangeChannel | None = None

    async def attach(self, run: str, instance_id: str) -> Attachment:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        attachment, endpoint = await self._call("attach", run, instance_id)
        if endpoint is not None:
            try:
                self._channel = await ExchangeChannel.connect(endpoint)
            except (OSError, TimeoutError) as error:
                logger.warning("no direct line to %r (%s): exchanging over Ray, which is slower", endpoint, error)
        return attachment  # type: ignore[no-any-return]

    async def exchange(self, request: Exchange) -> ExchangeReply:
        if self._channel is not None:
            return await self._channel.exchange(request)
        return await self._call("exchange", request)  # type: ignore[no-any-return]

    async def explain(self, run: str) -> list[CallState]:
        return await self._call("explain", run)  # type: ignore[no-any-return]

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(ray.get_actor, DISPATCHER, namespace=self._address.namespace)
            return await getattr(self._handle, method).remote(*args)
        except (ray.exceptions.RayError, ValueError) as error:
            self._handle = None
            raise DispatcherLostError(f"The dispatcher did not answer ({type(error).__name__})") from error
