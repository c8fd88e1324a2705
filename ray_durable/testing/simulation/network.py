"""Messages between processes, as Ray carries calls between actors: unordered, and with outcomes that may be unknown.

A call is carried out by the other process, whether its sender still lives or not. The sender gets the answer, or
`UnreachableError` when the other one dies, does not answer in time, or the answer is lost: then nobody knows whether
the call was carried out. What crosses is pickled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from ray_durable.testing.simulation.scheduler import Process, Scheduler
from ray_durable.testing.simulation.weather import Weather
from ray_durable.testing.workers import through_process_boundary

__all__ = ["Network", "UnreachableError"]

T = TypeVar("T")

_DEATH_S = 0.02
"""So long after a process died, whoever waits for it is told."""


class UnreachableError(Exception):
    """The other process died or did not answer. Whether the call had an effect is unknown."""


class Network:
    """See the module. `before` is told of each message that arrives: of a call, and of an answer."""

    def __init__(self, scheduler: Scheduler, weather: Weather) -> None:
        self.weather = weather
        self.before: Callable[[Process, str], None] = lambda process, what: None
        self._scheduler = scheduler

    def call(
        self,
        caller: Process,
        callee: Process | None,
        make: Callable[[], Coroutine[Any, Any, T]],
        what: str,
        *,
        timeout_s: float | None = None,
    ) -> Awaitable[T]:
        """Have `callee` run the coroutine that `make` makes there."""
        scheduler, answer = self._scheduler, caller.create_future()
        passage = self.weather.of_message(scheduler.now_s)
        scheduler.trace.append((scheduler.now_s, f"{caller.name} calls {callee and callee.name} {what}"))

        def fail(reason: str) -> None:
            if caller.is_alive and not answer.done():
                answer.set_exception(UnreachableError(f"{what}: {reason}"))

        def reply(result: Any, error: BaseException | None) -> None:
            self.before(caller, f"answer {what}")
            if caller.is_alive and not answer.done():
                if error is None:
                    answer.set_result(through_process_boundary(result))
                else:
                    answer.set_exception(through_process_boundary(error))

        def arrive() -> None:
            assert callee is not None
            if callee.is_alive:
                self.before(callee, what)
            if callee.is_alive:
                callee.on_death.append(told_of_death)
                callee.call_soon(carry_out)
            else:
                scheduler.after(_DEATH_S, lambda: fail("its process died"))

        def told_of_death() -> None:
            scheduler.after(_DEATH_S, lambda: fail("its process died"))

        def carry_out() -> None:
            assert callee is not None
            task = callee.create_task(make())
            task.add_done_callback(carried_out)

        def carried_out(task: Any) -> None:
            assert callee is not None
            if not callee.is_alive:
                return
            callee.on_death.remove(told_of_death)
            if task.cancelled():
                scheduler.after(passage.back_s, lambda: fail("it was given up"))
                return
            error = task.exception()
            result = None if error is not None else task.result()
            if not passage.is_answer_lost:
                scheduler.after(passage.back_s, lambda: reply(result, error))

        if callee is None or not callee.is_alive:
            scheduler.after(passage.there_s, lambda: fail("there is no such process"))
            return answer
        if not passage.is_request_lost:
            scheduler.after(passage.there_s, arrive)
        if passage.is_request_lost or passage.is_answer_lost:
            scheduler.after(passage.there_s + passage.patience_s, lambda: fail("no answer came"))
        if timeout_s is not None:
            scheduler.after(timeout_s, lambda: fail("no answer came in time"))
        return answer
