"""What an orchestrator's code may ask for. What is recorded of it is a caused event: a command."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from typing import Any

from ray_durable.engine.events import CustomStatusSet, EventSent
from ray_durable.engine.interrupts import ExecutionClosed
from ray_durable.engine.source import calling_source
from ray_durable.engine.state import ExecutionState
from ray_durable.payload import Payload
from ray_durable.retry import RetryPolicy

__all__ = ["ExecutionCommands"]


class ExecutionCommands(ExecutionState):
    """The methods that ask. They work only while `apply` runs, from the orchestrator's own code.

    Each raises ExecutionClosed once the execution has ended.
    """

    @property
    def random(self) -> random.Random:
        """Random numbers that replay makes again."""
        return self._randomness.user

    @property
    def will_continue_as_new(self) -> bool:
        """Whether `continue_as_new` was called."""
        return self._next_input is not None

    def schedule_task(
        self,
        *,
        name: str,
        input: Payload,
        decode: Callable[[Payload], Any],
        retry: RetryPolicy | None = None,
        target: object = None,
    ) -> asyncio.Future[Any]:
        """Ask for an activity. The future gets `decode(result)`, what decoding raised, or ActivityError once `retry`
        gives up. Cancelling it cancels the activity."""
        self._require_open()
        return self._tasks.schedule(name, input, decode, retry, target, calling_source())

    def schedule_map(
        self,
        *,
        name: str,
        items: Payload,
        count: int,
        decode_results: Callable[[Payload], list[Any]],
        retry: RetryPolicy | None = None,
        target: object = None,
        return_exceptions: bool = False,
        tolerated_failures: int = 0,
        on_results: Callable[[int, list[Any]], None] | None = None,
    ) -> asyncio.Future[list[Any]]:
        """Ask for an activity for each of `count` items. The future gets the list of results, in the items' order.

        The first item that fails for good fails it with ActivityError, unless `return_exceptions` puts the error in the
        item's place, or no more than `tolerated_failures` items fail, which leave None. `on_results(start, outcomes)`
        hears of each range of items that is settled, before the future is.
        """
        self._require_open()
        return self._maps.schedule(
            name,
            items,
            count,
            decode_results,
            retry,
            target,
            calling_source(),
            return_exceptions=return_exceptions,
            tolerated_failures=tolerated_failures,
            on_results=on_results,
        )

    def schedule_child(
        self,
        *,
        name: str,
        input: Payload,
        decode: Callable[[Payload], Any],
        instance: str | None = None,
        reference: dict[str, Any] | None = None,
        version: str | None = None,
        retry: RetryPolicy | None = None,
    ) -> asyncio.Future[Any]:
        """Call an orchestrator, as an instance of its own: with the id `instance`, or one that is derived.

        The future gets `decode(result)`, what decoding raised, or SubOrchestrationError once `retry` gives up.
        Cancelling it terminates the instance.
        """
        self._require_open()
        return self._children.schedule(
            name,
            input,
            decode,
            instance=instance,
            reference=reference,
            version=version,
            retry=retry,
            source=calling_source(),
        )

    def send_event(self, instance: str, name: str, value: Payload) -> None:
        """Raise an external event for another instance. Whether that one exists is not known here."""
        self._require_open()
        number = self._journal.next_number()
        event = EventSent(number=number, time_us=self.now_us, instance=instance, name=name, value=value)
        self._journal.record(event, calling_source())

    def create_timer(self, due_us: int) -> asyncio.Future[None]:
        """A future that is done at `due_us`: at once, without a timer, if that is past."""
        self._require_open()
        return self._timers.wait(due_us, calling_source())

    def wait_for_external_event(self, name: str, decode: Callable[[Payload], Any]) -> asyncio.Future[Any]:
        """The next external event called `name`, decoded. Events that came before are handed out first.

        If decoding raises, the future gets the error, and the event is kept for the next wait.
        """
        self._require_open()
        return self._events.wait(name, decode, calling_source())

    def set_custom_status(self, value: Payload) -> None:
        """Show `value` as the instance's custom status."""
        self._require_open()
        self.custom_status = value
        number = self._journal.next_number()
        self._journal.record(CustomStatusSet(number=number, time_us=self.now_us, value=value), calling_source())

    def continue_as_new(self, input: Payload) -> None:
        """Once main returns, go on as the next execution, with `input`, instead of completing. The last call counts."""
        self._require_open()
        self._next_input = input

    def side_effect(self, make: Callable[[], Payload]) -> Payload:
        """What `make` returned when the code ran here for the first time.

        Raises:
            NotDeterministicError: `make` asked for something itself.
        """
        self._require_open()
        return self._markers.side_effect(make, calling_source())

    def patched(self, id: str) -> bool:
        """Whether the change `id` of the code is in force: not if this execution came by here before there was one."""
        self._require_open()
        return self._markers.is_patched(id, calling_source(), is_replaying=self.is_replaying)

    def new_uuid(self) -> uuid.UUID:
        """A UUID that replay makes again."""
        self._require_open()
        return self._randomness.new_uuid()

    def _require_open(self) -> None:
        if not self._loop.may_ask():
            raise ExecutionClosed("The execution has ended: nothing more can be asked for.")
