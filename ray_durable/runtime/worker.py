"""What a worker does with a slice: load the function, run call after call until the time budget is spent, report.

No call fails the slice: what a call raises is its outcome, and so is what goes wrong with its arguments or its result.
An escape would look like a lost worker, and run its neighbours again. Results over the inline limit are stored as blobs
from here, so that the bytes never pass through the orchestrator. `watch` ends calls that take too long. No Ray here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any

from ray_durable import registry
from ray_durable.activity_context import ActivityCancelled, ActivityInfo, activity_scope
from ray_durable.authoring import Activity
from ray_durable.codec import Codec, open_batch
from ray_durable.errors import FunctionNotFoundError
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.runtime.messages import SliceReport, SliceWork
from ray_durable.runtime.running_call import Raised, RunningCall, Workshop, failure_of
from ray_durable.runtime.watch import Watch, withdrawn_failure

__all__ = ["Workshop", "run_activity", "run_slice"]

_ASYNC_CALLS_MAX = 100
"""How many calls of an async activity run at the same time in one slice."""


def run_slice(work: SliceWork, workshop: Workshop, watch: Watch | None = None) -> SliceReport:
    """Run calls of `work` in order until its budget is spent; at least one. Without a `watch` nothing ends a call."""
    started_s = time.perf_counter()
    try:
        if registry.is_stale(work.target.reference):
            return SliceReport(done=0, elapsed_s=0.0, is_stale=True)
        function = workshop.load(work.target.reference)
        if not isinstance(function, Activity):
            raise FunctionNotFoundError(f"{function!r} is no activity", name=work.target.reference.name)
    except (Exception, SystemExit) as error:
        # Loading runs the user's module.
        return SliceReport(done=0, elapsed_s=0.0, unresolved=Failure.from_exception(error, kind="system"))
    running = _RunningSlice(work, workshop, function, started_s, watch)
    if watch is not None:
        watch.begin(running)
    try:
        running.run()
    finally:
        if watch is not None:
            watch.end()
    return running.report()


def run_activity(
    function: Activity[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], info: ActivityInfo
) -> Any:
    """Run one call as the current activity, in this thread; async ones on a loop of their own."""
    with activity_scope(info):
        if function.is_async:
            return asyncio.run(function.function(*args, **kwargs))
        return function.function(*args, **kwargs)


_UNFINISHED: Any = object()
"""The outcome of a call that has none yet."""


class _RunningSlice:
    """The calls of a slice and what became of them. It is a `WatchedSlice`.

    `_outcomes` has, in order, for each call that has begun: a value, `Raised`, or `_UNFINISHED`. Values of single plain
    calls are encoded as they come, others in the report.
    """

    def __init__(
        self,
        work: SliceWork,
        workshop: Workshop,
        function: Activity[Any, Any],
        started_s: float,
        watch: Watch | None,
    ) -> None:
        self.current: RunningCall | None = None
        self.withdrawn: set[int] = set()
        self.grace_s = work.grace_s
        self._work = work
        self._workshop = workshop
        self._function = function
        self._started_s = started_s
        self._watch = watch
        self._outcomes: list[Any] = []
        # Calls of an async activity that are under way, by offset.
        self._beside: dict[int, RunningCall] = {}
        # What calls said of themselves, by offset.
        self._details: dict[int, Payload] = {}

    def run(self) -> None:
        """Run calls until the budget is spent."""
        deadline_s = self._started_s + self._work.budget_s
        if self._function.is_async:
            asyncio.run(self._run_beside_each_other(deadline_s))
            return
        for call in self._calls():
            outcome = self._run_call(call)
            call.is_over = True
            self._outcomes.append(outcome if self._work.batch is not None else self._encoded(outcome))
            if time.perf_counter() >= deadline_s:
                return

    def running(self) -> Iterable[RunningCall]:
        """See `WatchedSlice`."""
        current = self.current
        return list(self._beside.values()) if current is None else (current,)

    def report(self, condemned: Iterable[tuple[int, Failure]] = ()) -> SliceReport:
        """See `WatchedSlice`. The outcomes up to the first call that has none."""
        outcomes = list(self._outcomes)
        done = next((index for index, outcome in enumerate(outcomes) if outcome is _UNFINISHED), len(outcomes))
        del outcomes[done:]
        report = SliceReport(done=done, elapsed_s=0.0)
        if self._work.batch is None:
            if self._function.is_async:
                outcomes = [self._encoded(outcome) for outcome in outcomes]
            report.outcomes = [one.failure if isinstance(one, Raised) else one for one in outcomes]
            failed = {index for index, one in enumerate(outcomes) if isinstance(one, Raised)}
        else:
            failures = {index: one.failure for index, one in enumerate(outcomes) if isinstance(one, Raised)}
            values = [(index, one) for index, one in enumerate(outcomes) if not isinstance(one, Raised)]
            report.results = self._store_results(values, failures)
            report.failures = tuple(sorted(failures.items()))
            failed = set(failures)
        if self._details:
            unsuccessful = [index for index in self._details if index in failed or index >= done]
            report.heartbeats = {index: self._details[index] for index in unsuccessful}
        report.condemned = tuple(sorted((index, failure) for index, failure in condemned if index >= done))
        report.elapsed_s = time.perf_counter() - self._started_s
        return report

    def _calls(self) -> Iterator[RunningCall]:
        work = self._work
        items: Iterable[Any] = [None] * work.count if work.batch is None else self._items(work.batch)
        for index, item in enumerate(items):
            yield RunningCall(self._function, self._workshop, work, index, item, self._hear)

    def _hear(self, call: RunningCall) -> None:
        if call.details is not None:
            self._details[call.index] = call.details
        if self._watch is not None:
            self._watch.on_heartbeat(call)

    def _run_call(self, call: RunningCall) -> Any:
        """The outcome of one plain call. SystemExit and KeyboardInterrupt must not take the others with it."""
        if isinstance(call.item, Raised):
            return call.item
        if call.index in self.withdrawn:
            return Raised(withdrawn_failure())
        value: Any = _UNFINISHED
        error: BaseException | None = None
        try:
            try:
                args, kwargs = call.arguments()
                info = call.info()
                call.begin()
                # From here to where it is taken back, the watch may interrupt us at any instruction, but only once.
                self.current = call
                value = run_activity(self._function, args, kwargs, info)
                self._leave(call)
            except BaseException as raised:
                error = raised
                self._leave(call)
        except ActivityCancelled as late:
            # Outside of the user's code, on the way in or out.
            error = error or late
            self._leave(call)
        try:
            # What it returned counts, however late.
            return call.raised(error) if value is _UNFINISHED and error is not None else value
        finally:
            del error

    def _leave(self, call: RunningCall) -> None:
        self.current = None
        if call.ending is not None and self._watch is not None:
            self._watch.settle(call)

    async def _run_beside_each_other(self, deadline_s: float) -> None:
        """Run async calls side by side; none starts after the deadline, those that started are waited for."""
        running: set[asyncio.Task[None]] = set()
        for call in self._calls():
            if call.index and time.perf_counter() >= deadline_s:
                break
            self._outcomes.append(_UNFINISHED)
            running.add(asyncio.create_task(self._run_async_call(call)))
            await asyncio.sleep(0)
            while len(running) >= _ASYNC_CALLS_MAX:
                _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if running:
            await asyncio.wait(running)

    async def _run_async_call(self, call: RunningCall) -> None:
        try:
            outcome = await self._outcome_of(call)
        except BaseException as error:
            outcome = call.raised(error)
        call.is_over = True
        self._outcomes[call.index] = outcome
        self._beside.pop(call.index, None)

    async def _outcome_of(self, call: RunningCall) -> Any:
        if isinstance(call.item, Raised):
            return call.item
        if call.index in self.withdrawn:
            return Raised(withdrawn_failure())
        args, kwargs = call.arguments()
        call.task = asyncio.current_task()
        call.begin()
        self._beside[call.index] = call
        with activity_scope(call.info()):
            return await self._function.function(*args, **kwargs)

    def _encoded(self, outcome: Any) -> Any:
        if isinstance(outcome, Raised):
            return outcome
        function, workshop = self._function, self._workshop
        try:
            payload = workshop.codec.encode(outcome, function.result_annotation, where=_result_of(function))
            return workshop.offload(self._work.run, payload)
        except BaseException as error:
            return Raised(failure_of(error))

    def _items(self, batch: Payload) -> list[Any]:
        """The items of a map; `Raised` in the place of one that cannot be decoded, which says nothing of the others."""
        function = self._function
        annotation = next(iter(function.calls.annotations.values()), Any)

        def decode(part: Payload, first: int, count: int) -> list[Any]:
            what = "items" if count > 1 else f"item {first}"
            where = f"{what} of activity {function.name!r}"
            try:
                return self._workshop.codec.decode_batch(part, annotation, where=where)
            except BaseException as error:
                if count <= 1:
                    return [Raised(failure_of(error))] * count
                return halves(part, first, count, error)

        def halves(part: Payload, first: int, count: int, error: BaseException) -> list[Any]:
            try:
                opened, middle = open_batch(part), count // 2
                left, right = opened.slice(0, middle), opened.slice(middle, count)
            except BaseException:
                # Nothing of it can be told apart: none runs.
                return [Raised(failure_of(error))] * count
            return decode(left, first, middle) + decode(right, first + middle, count - middle)

        return decode(batch, self._work.first, self._work.count)

    def _store_results(self, values: list[tuple[int, Any]], failures: dict[int, Failure]) -> Payload:
        """All results as one batch; those that cannot be encoded or stored become failures of their own items."""
        function, codec = self._function, self._workshop.codec
        try:
            return self._workshop.offload(self._work.run, _encode_results(codec, function, values, failures))
        except BaseException as error:
            failure = failure_of(error)
            for index, _ in values:
                failures.setdefault(index, failure)
            return codec.encode_batch([], function.result_annotation, where=_result_of(function))


def _encode_results(
    codec: Codec, function: Activity[Any, Any], values: list[tuple[int, Any]], failures: dict[int, Failure]
) -> Payload:
    annotation, where = function.result_annotation, _result_of(function)
    try:
        return codec.encode_batch([value for _, value in values], annotation, where=where)
    except BaseException:
        kept: list[Any] = []
        for index, value in values:
            try:
                codec.encode(value, annotation, where=where)
                kept.append(value)
            except BaseException as error:
                failures[index] = failure_of(error)
        return codec.encode_batch(kept, annotation, where=where)


def _result_of(function: Activity[Any, Any]) -> str:
    return f"result of activity {function.name!r}"
