"""A worker process's way to its hub: functions and blobs, loaded once and kept for the next slice."""

from __future__ import annotations

from functools import cache

from ray_durable.function import DurableFunction
from ray_durable.payload import Payload
from ray_durable.reference import FunctionReference
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.hub import OpenHub
from ray_durable.runtime.loop_thread import LoopThread

__all__ = ["HubWorkshop", "workshop_of"]


class HubWorkshop:
    """`Workshop` over a hub's storage. Blocking; its loop runs on a thread beside the activities'."""

    def __init__(self, address: HubAddress) -> None:
        self._thread = LoopThread(name="storage")
        self._hub = self._thread.run(OpenHub.open(address, who="a worker of activities"))
        self._functions: dict[FunctionReference, DurableFunction] = {}
        self.codec = self._hub.codec

    def load(self, reference: FunctionReference) -> DurableFunction:
        """See `Workshop`."""
        function = self._functions.get(reference)
        if function is None:
            function = self._functions[reference] = self._thread.run(self._hub.load_function(reference))
        return function

    def fetch(self, run: str, payload: Payload) -> Payload:
        """See `Workshop`."""
        return payload if payload.data is not None else self._thread.run(self._hub.fetch(run, payload))

    def offload(self, run: str, payload: Payload) -> Payload:
        """See `Workshop`. What the orchestrator gets is the reference alone."""
        if payload.size <= self._hub.limits.inline_bytes_max:
            return payload
        stored = self._thread.run(self._hub.offload(run, payload))
        return Payload(encoding=stored.encoding, data=None, size=stored.size, blob=stored.blob)


@cache
def workshop_of(address: HubAddress) -> HubWorkshop:
    """The one workshop of this process for a hub."""
    return HubWorkshop(address)
