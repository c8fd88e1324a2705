"""The machine: events in, what the log lacks out.

THEORY OF OPERATION

An execution is one life of an orchestrator, and its history decides everything about it. `apply` takes events in the
order of the log, one by one. There are two kinds:

- An *input* (a start, an outcome, a fired timer, an external event ...) is delivered: it resolves a future, and the
  coroutines run, on our event loop, until nothing more is ready. Whatever they ask for on the way becomes a *caused*
  event, numbered next after the input. Time does not pass meanwhile.
- A *caused* event comes only from a history. It is compared with what the code just asked for; code that asks for
  something else is not the code that made this history, and NonDeterminismError says where they part.

An input with a number comes from a history; one without is fresh. A fresh one gets its number and time, and is
returned, followed by what it caused. So loading a history and living on are the same call, and how events are batched
changes nothing: after each input the state is a function of the events so far. A history may end in the middle of what
an input caused (its log was cut there); the rest is returned as new.

    state      what happens                      next
    Pending    ExecutionStarted                  Running: main's coroutine begins
    Pending    ExecutionStarted, due later       Pending: main's coroutine begins with TimerFired of timer 1
    Pending    another input                     as if Running; nobody takes external events yet
    Running    an input                          Running, or an end if main is done with that
    Running    main returns                      Completed, or ContinuedAsNew if it asked for that
    Running    main raises                       Failed
    Running    ExecutionSuspended                Suspended
    Suspended  ExecutionResumed                  what it was before: what was held is delivered, in order
    Suspended  another input                     Suspended: recorded and held
    either     ExecutionTerminated               Terminated: no coroutine goes on
    either     OwnerClaimed, OutboxDelivered     the same: recorded, no matter of the code's
    either     ExecutionRewound                  the same: what is unfinished has all of its attempts again
    an end     a fresh input                     the same: it is dropped
    an end     OwnerClaimed, ExecutionRestarted  the same: recorded, as what follows is no matter of the code's

Fresh inputs that say nothing new are dropped, neither numbered nor returned: outcomes of what has one or was
cancelled, timers that are past, not yet due or cancelled, external events of an id that was seen, a suspension of what
is suspended. Held inputs are resumed after: what they cause follows ExecutionResumed. One that says nothing new any
more by then, because its task was cancelled, is skipped.

At an end the unfinished coroutines are closed. Their cleanup code runs, but cannot ask for anything: attempts raise
ExecutionClosed, a BaseException. What is outstanding then stays so: nobody cancels it, but a recursive termination the
instances that were called.

A history may be a copy: of the execution before (rewind) or of another instance (fork). Then it holds ExecutionRewound
where the copy ends, and random numbers are those of the copied run before, and others behind. A copy ends behind all
that an input caused, or before all of it: an input right before ExecutionRewound is delivered behind it.

A start may hand inputs on (`carried`). The caller gives them, as fresh ones, right behind the events that nobody has
run: the start, or in a copied history ExecutionRewound. An execution that continues as new before it took them all has
the others among its unread events, without a number.

An execution whose `apply` raised is dead. So is one whose returned events were not recorded: load the history anew.

It does no I/O, reads no clock, starts no thread and draws no randomness. It knows payloads, never values: the caller
gives a function to decode each outcome.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any
from zlib import crc32

from ray_durable.engine.commands import ExecutionCommands
from ray_durable.engine.events import (
    Caused,
    ContinueAsNew,
    Event,
    EventRaised,
    ExecutionCompleted,
    ExecutionRestarted,
    ExecutionResumed,
    ExecutionRewound,
    ExecutionStarted,
    ExecutionSuspended,
    ExecutionTerminated,
    Input,
    MapCompleted,
    OutboxDelivered,
    OwnerClaimed,
    RuntimeStatus,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceFailed,
    TaskCompleted,
    TaskFailed,
    TimerFired,
)
from ray_durable.engine.interrupts import ExecutionClosed
from ray_durable.engine.journal import Journal
from ray_durable.engine.loop import EventLoop
from ray_durable.engine.matching import describe_event
from ray_durable.engine.randomness import next_run
from ray_durable.engine.source import (
    Source,
    calling_source,
    entry_source,
    function_source,
    raising_source,
    waiting_source,
)
from ray_durable.errors import CorruptLogError, OrchestrationTerminatedError
from ray_durable.failure import Failure
from ray_durable.payload import Payload

__all__ = ["Execution", "Main"]

Main = Callable[["Execution", ExecutionStarted], Coroutine[Any, Any, Payload]]


class Execution(ExecutionCommands):
    """One execution of an orchestrator. See the module.

    `main(execution, started)` makes the orchestrator's coroutine, which asks through this object and returns its
    result, encoded. `main` may set `function` to the user's function that it wraps, for errors to name its line.
    """

    def __init__(self, main: Main) -> None:
        # Most of the loop's abstract methods are filled in when its module is loaded.
        loop = EventLoop(self._create_loop_timer, self._cancel_loop_timer)  # type: ignore[abstract]
        loop.find_origin = calling_source
        super().__init__(loop, Journal(self._idling))
        self._main = main
        # Not the caller's context: what happens to be set there is not in the history.
        self._context = Context()
        self._main_task: asyncio.Task[Payload] | None = None
        self._main_source: Source | None = None
        self._dead: BaseException | None = None
        self._applying = False
        self._postponed: Input | None = None
        self.function: Callable[..., object] | None = None

    def apply(self, events: Iterable[Event]) -> list[Event]:
        """Deliver `events`, in order, and return what the log lacks: fresh inputs, each followed by what it caused.

        Raises:
            NonDeterminismError: The code asks for something else than the history holds.
            CorruptLogError: The history has gaps, or events that cannot be.
            RuntimeError: An earlier call raised, `close` was called, or this call comes from within another.
        """
        if self._dead is not None:
            raise RuntimeError(
                "This execution was closed, or died of an earlier error: make a new one and load the history into it."
            ) from self._dead
        if self._applying:
            raise RuntimeError("Execution.apply was called from within itself.")
        self._applying = True
        try:
            return self._context.run(self._loop.run, self._apply, events)
        except BaseException as error:
            self._discard(error)
            raise
        finally:
            self._applying = False

    def close(self) -> None:
        """Discard an execution that shall not go on here (passivated, fenced): its coroutines are closed, quietly.

        Nothing is asked for or recorded by that. Without it, unfinished coroutines end when and where the garbage
        collector finds them.
        """
        if self._applying:
            raise RuntimeError("Execution.close was called from within apply.")
        if self._dead is None:
            self._discard(ExecutionClosed("The execution was closed."))

    def __del__(self) -> None:
        # Before the garbage collector ends the coroutines one by one, as if they were still to ask for something.
        if self._main_task is not None and self._dead is None and not self.ended:
            self.close()

    # Inside

    def _apply(self, events: Iterable[Event]) -> list[Event]:
        events = list(events)
        if not events:
            return self._journal.take_new()
        self._markers.read_ahead(events, events[0].number)
        for event, following in zip(events, [*events[1:], None], strict=True):
            if self.started is None and not isinstance(event, ExecutionStarted):
                raise CorruptLogError(
                    f"The first event is {describe_event(event)}: a history begins with ExecutionStarted.",
                    key=f"event {event.number}",
                )
            if isinstance(event, Input):
                self._take_input(event, following)
            elif isinstance(event, Caused) and event.number:
                self._journal.match(event)
            else:
                raise TypeError(f"{describe_event(event)} is no input: only a history has such events, numbered.")
        self._markers.read_ahead((), 0)
        return self._journal.take_new()

    def _take_input(self, event: Input, following: Event | None) -> None:
        is_recorded = event.number != 0
        if is_recorded:
            self._journal.replay(event)
            if not self._is_news(event):
                raise CorruptLogError(
                    f"The history of instance '{self.instance_id}' has {describe_event(event)} as event "
                    f"{event.number}, which cannot follow what is before it. Check the log's objects.",
                    key=f"event {event.number}",
                )
        elif self._is_news(event):
            event = self._journal.accept(event)
        else:
            return
        # A beginning is recorded before anybody runs it: with nothing behind it, the code runs for the first time.
        runs_first = isinstance(event, _BEGINNINGS) and (following is None or following.number == 0)
        self.is_replaying = is_recorded and not runs_first
        self._loop.now_us = self._journal.time_us
        if self._untaken:
            self._untaken.popleft()
        if self.status is RuntimeStatus.SUSPENDED and type(event) not in _NEVER_HELD:
            self._hold(event)
        elif type(following) is ExecutionRewound:
            if isinstance(event, ExecutionRewound):
                # Rewound once more before anything happened: what is postponed still is.
                self._prepare_rewound(event)
                return
            self._postponed = event
            if isinstance(event, ExecutionStarted):
                self._prepare(event)
        else:
            self._deliver(event)

    def _deliver(self, event: Input) -> None:
        _HANDLERS[type(event)][1](self, event)
        self._loop.run_until_quiet()
        if self._main_task is not None and self._main_task.done() and not self.ended:
            self._end_with(self._main_task)

    def _is_news(self, event: Input) -> bool:
        if self.ended and type(event) not in _TAKEN_AFTER_END:
            return False
        return _HANDLERS[type(event)][0](self, event)

    def _is_due(self, event: TimerFired) -> bool:
        due_us = self._timers.due_us.get(event.timer)
        return due_us is not None and due_us <= max(self.now_us, event.time_us)

    def _is_unknown(self, event: EventRaised) -> bool:
        # What is recorded was new when it came: the start of a copied history knows the ids of the copied events, too.
        return event.number != 0 or not self._events.is_known(event.event_id)

    def _may_turn(self, event: ExecutionSuspended | ExecutionResumed) -> bool:
        """Whether the status changes; a request that comes again, perhaps after the next one, changes nothing."""
        turns = (self.status is RuntimeStatus.SUSPENDED) == isinstance(event, ExecutionResumed)
        return turns and (event.number != 0 or not self._events.is_known(event.request_id))

    def _start(self, event: ExecutionStarted) -> None:
        if self.started is None:
            self._prepare(event)
        if event.due_us is None:
            self._begin(event)
        else:
            self._timers.expect(event.number, event.due_us, lambda: self._begin(event))

    def _begin(self, event: ExecutionStarted) -> None:
        self.status = RuntimeStatus.RUNNING
        self._main_task = self._loop.create_task(self._run_main(event), name="orchestrator")
        self._loop.run_until_quiet()
        if not self._main_task.done():
            # Once the coroutine is done, nothing tells any more which function it was.
            self._main_source = entry_source(self._main_task.get_coro())
        else:
            self._main_source = function_source(self.function or self._main)

    def _prepare(self, started: ExecutionStarted) -> None:
        """Everything about a start but running the code."""
        self.started = started
        self._journal.instance_id = started.instance_id
        self.status = RuntimeStatus.RUNNING if started.due_us is None else RuntimeStatus.PENDING
        # The ids of what is handed on are among the recent ones.
        carried = {_request_of(one) for one in started.carried}
        self._events.note_ids(one for one in started.recent if one not in carried)
        run = started.origin or started.run
        self._randomness.begin(run)
        self._loop.begin_order(crc32(run.encode()))
        if started.origin is None:
            self._untaken.extend(started.carried)

    def _raise(self, event: EventRaised) -> None:
        self._events.note_ids((event.event_id,))
        self._events.raised(event)

    def _suspend(self, event: ExecutionSuspended) -> None:
        self._events.note_ids((event.request_id,))
        self.status = RuntimeStatus.SUSPENDED

    def _hold(self, event: Input) -> None:
        if isinstance(event, EventRaised):
            self._events.note_ids((event.event_id,))
        self._suspension.hold(event)

    def _resume(self, event: ExecutionResumed) -> None:
        self._events.note_ids((event.request_id,))
        self.status = RuntimeStatus.PENDING if self._main_task is None else RuntimeStatus.RUNNING
        self._suspension.restore()
        while not self.ended and (held := self._suspension.take()) is not None:
            if isinstance(held, EventRaised) or self._is_news(held):
                self._deliver(held)
        self._suspension.end()

    def _rewind(self, event: ExecutionRewound) -> None:
        self._prepare_rewound(event)
        postponed, self._postponed = self._postponed, None
        if postponed is not None:
            self._deliver(postponed)

    def _prepare_rewound(self, event: ExecutionRewound) -> None:
        """Everything about a rewind but running the code."""
        assert self.started is not None
        # Copied rewinds give the same numbers again: nothing of it depends on who copied them.
        origin = self.started.origin or self.started.run
        self._randomness.begin(f"{origin}/{event.request_id}")
        self._untaken = deque(self.started.carried)
        self._tasks.rewound()
        self._maps.rewound()
        self._children.rewound()

    async def _run_main(self, started: ExecutionStarted) -> Payload:
        try:
            return await self._main(self, started)
        finally:
            # What other tasks would still do now is not asked for any more.
            self._loop.halt()

    def _end_with(self, main_task: asyncio.Task[Payload]) -> None:
        error: BaseException
        try:
            result = main_task.result()
        except asyncio.CancelledError as canceled:
            error, failure = canceled, Failure.from_exception(_beyond_engine(canceled), kind="cancelled")
        except BaseException as raised:
            error, failure = raised, Failure.from_exception(_beyond_engine(raised))
        else:
            if not isinstance(result, Payload):
                raise TypeError(f"The coroutine of an execution returns a Payload, not {type(result).__name__}.")
            if self._next_input is not None:
                self._continue(self._next_input)
            else:
                self._end(RuntimeStatus.COMPLETED, self._main_source, result=result)
            return
        self._end(RuntimeStatus.FAILED, raising_source(error) or self._main_source, failure=failure)

    def _continue(self, next_input: Payload) -> None:
        assert self.started is not None
        self.status, self.successor = RuntimeStatus.CONTINUED_AS_NEW, next_run(self.started.run)
        event = ContinueAsNew(
            number=self._journal.next_number(),
            time_us=self.now_us,
            input=next_input,
            run=self.successor,
            carried=tuple(unread.number for unread in self.unread_events if unread.number),
        )
        self._journal.record(event, self._main_source)
        self._close()

    def _terminate(self, event: ExecutionTerminated) -> None:
        if event.recursive:
            self._children.cancel_all()
        failure = Failure(kind="cancelled", type_name=OrchestrationTerminatedError.__name__, message=event.reason)
        self._end(RuntimeStatus.TERMINATED, None, failure=failure)

    def _end(
        self,
        status: RuntimeStatus,
        source: Source | None,
        *,
        result: Payload | None = None,
        failure: Failure | None = None,
    ) -> None:
        self.status, self.result, self.failure = status, result, failure
        number = self._journal.next_number()
        event = ExecutionCompleted(number=number, time_us=self.now_us, status=status, result=result, failure=failure)
        self._journal.record(event, source)
        self._close()

    def _follow(self, event: ExecutionRestarted) -> None:
        self.successor = event.run

    def _close(self) -> None:
        self._loop.shut_down()
        self._timers.clear()
        self._events.clear()

    def _discard(self, reason: BaseException) -> None:
        self._dead = reason
        self._context.run(self._loop.run, self._close)

    def _idling(self) -> tuple[str, Source | None]:
        if self.ended:
            return "nothing: the code has ended", self._main_source
        if self._main_task is None:
            return "nothing: the code has not begun, as it is not due", None
        return "nothing: the code waits", waiting_source(self._main_task.get_coro())

    def _create_loop_timer(self, due_us: int, callback: Callable[[], object]) -> int:
        self._require_open()
        # Of a task that is asyncio's from top to bottom, such as one of a bare asyncio.sleep, who created it says more.
        return self._timers.create(due_us, callback, calling_source() or self._loop.current_origin())

    def _cancel_loop_timer(self, number: int) -> None:
        self._timers.cancel(number)


def _beyond_engine(error: BaseException) -> BaseException:
    """The error with a traceback that begins where the engine's own frames end: at the caller's `main`."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return error.with_traceback(traceback)


def _does_nothing(execution: Execution, event: Input) -> None:
    """The event is no matter of the code's."""


# For each kind of input: whether it says anything new, and what it does.
def _request_of(event: Input) -> str | None:
    """The id by which an event, a suspension or a resumption is known again; None for other inputs."""
    match event:
        case EventRaised():
            return event.event_id
        case ExecutionSuspended() | ExecutionResumed():
            return event.request_id
    return None


_HANDLERS: dict[type[Input], tuple[Callable[[Execution, Any], bool], Callable[[Execution, Any], None]]] = {
    ExecutionStarted: (lambda self, event: self.started is None, Execution._start),
    OwnerClaimed: (lambda self, event: True, _does_nothing),
    OutboxDelivered: (lambda self, event: True, _does_nothing),
    TaskCompleted: (
        lambda self, event: event.task in self._tasks.outstanding,
        lambda self, event: self._tasks.complete(event),
    ),
    TaskFailed: (
        lambda self, event: event.task in self._tasks.outstanding,
        lambda self, event: self._tasks.fail(event),
    ),
    MapCompleted: (
        lambda self, event: self._maps.awaits(event),
        lambda self, event: self._maps.complete(event),
    ),
    SubOrchestrationInstanceCompleted: (
        lambda self, event: event.task in self._children.outstanding,
        lambda self, event: self._children.complete(event),
    ),
    SubOrchestrationInstanceFailed: (
        lambda self, event: event.task in self._children.outstanding,
        lambda self, event: self._children.fail(event),
    ),
    TimerFired: (Execution._is_due, lambda self, event: self._timers.fire(event.timer)),
    EventRaised: (Execution._is_unknown, Execution._raise),
    ExecutionSuspended: (Execution._may_turn, Execution._suspend),
    ExecutionResumed: (Execution._may_turn, Execution._resume),
    ExecutionTerminated: (lambda self, event: True, Execution._terminate),
    ExecutionRewound: (lambda self, event: True, Execution._rewind),
    ExecutionRestarted: (lambda self, event: self.ended and self.successor is None, Execution._follow),
}
_BEGINNINGS = (ExecutionStarted, ExecutionRewound)
_NEVER_HELD = frozenset({ExecutionResumed, ExecutionTerminated, ExecutionRewound, OwnerClaimed, OutboxDelivered})
_TAKEN_AFTER_END = frozenset({OwnerClaimed, ExecutionRestarted})
