"""Code that does something else than its history: expected, actual, position and line, exactly."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ray_durable.engine import Event, Execution, TaskCompleted, TaskScheduled, TimerCreated, source
from ray_durable.errors import ActivityError, CorruptLogError, NonDeterminismError
from ray_durable.payload import Payload

from .kit import Context, Orchestrator, begin, completed, decode, encode, failed, fired, main_of, retries, started


async def original(ctx: Context, value: Any) -> Any:
    first = await ctx.call("load", "x")
    both = await asyncio.gather(ctx.call("left", first), ctx.call("right", first))
    await ctx.timer(5)
    ctx.status("almost")
    return both


def history_of_original() -> list[Event]:
    """1 started, 2 load, 3 completed, 4 left, 5 right, 6 and 7 completed, 8 timer, 9 fired, 10 status, 11 completed."""
    execution = Execution(main_of(original))
    inputs = [started(), completed(2, 7), completed(5, "r"), completed(4, "l"), fired(8, 5)]
    return execution.apply(inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A changed orchestrator. `marker` is in the line that the error must name."""

    code: Orchestrator
    position: int
    expected: str
    actual: str
    marker: str = "HERE"


async def swapped(ctx: Context, value: Any) -> Any:
    first = await ctx.call("load", "x")
    return await asyncio.gather(
        ctx.call("right", first),  # HERE
        ctx.call("left", first),
    )


async def renamed(ctx: Context, value: Any) -> Any:
    return await ctx.call("load_all", "x")  # HERE


async def changed_input(ctx: Context, value: Any) -> Any:
    return await ctx.call("load", "y")  # HERE


async def changed_later_input(ctx: Context, value: Any) -> Any:
    first = await ctx.call("load", "x")
    return await asyncio.gather(
        ctx.call("left", first),
        ctx.call("right", first + 1),  # HERE
    )


async def extra_command(ctx: Context, value: Any) -> Any:
    first = await ctx.call("load", "x")
    return await asyncio.gather(
        ctx.call("left", first),
        ctx.call("right", first),
        ctx.call("middle", first),  # HERE
    )


async def missing_command(ctx: Context, value: Any) -> Any:
    first = await ctx.call("load", "x")
    return await ctx.call("left", first)  # HERE


async def another_kind(ctx: Context, value: Any) -> Any:
    await ctx.timer(5)  # HERE


async def another_time(ctx: Context, value: Any) -> Any:
    first = await ctx.call("load", "x")
    await asyncio.gather(ctx.call("left", first), ctx.call("right", first))
    await asyncio.sleep(6)  # HERE


async def early_return(ctx: Context, value: Any) -> Any:  # HERE
    return await ctx.call("load", "x")


async def immediate_return(ctx: Context, value: Any) -> Any:  # HERE
    return "nothing to do"


async def early_failure(ctx: Context, value: Any) -> Any:
    await ctx.call("load", "x")
    raise ValueError("no")  # HERE


async def another_result(ctx: Context, value: Any) -> Any:  # HERE
    await original(ctx, value)
    return "other"


async def another_status(ctx: Context, value: Any) -> Any:
    first = await ctx.call("load", "x")
    await asyncio.gather(ctx.call("left", first), ctx.call("right", first))
    await ctx.timer(5)
    ctx.status("done")  # HERE


async def waits_for_ever(ctx: Context, value: Any) -> Any:
    first = await ctx.call("load", "x")
    await asyncio.gather(ctx.call("left", first), ctx.call("right", first))
    await ctx.event("never")  # HERE


async def cancels(ctx: Context, value: Any) -> Any:
    first = await ctx.call("load", "x")
    ctx.call("left", first)
    ctx.call("right", first).cancel()  # HERE


async def in_a_helper(ctx: Context, value: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        group.create_task(_helper(ctx))


async def _helper(ctx: Context) -> None:
    await ctx.call("helped")  # HERE in_a_helper


STARTED = "TaskScheduled(name='load', input=\"x\", attempt=1)"
COMPLETED = "ExecutionCompleted(status=<RuntimeStatus.COMPLETED: 'Completed'>, result="
DIVERGENCES = [
    Divergence(
        code=swapped,
        position=4,
        expected="TaskScheduled(name='left', input=7, attempt=1)",
        actual="TaskScheduled(name='right', input=7, attempt=1)",
    ),
    Divergence(
        code=renamed, position=2, expected=STARTED, actual="TaskScheduled(name='load_all', input=\"x\", attempt=1)"
    ),
    Divergence(
        code=changed_input, position=2, expected=STARTED, actual="TaskScheduled(name='load', input=\"y\", attempt=1)"
    ),
    Divergence(
        code=changed_later_input,
        position=5,
        expected="TaskScheduled(name='right', input=7, attempt=1)",
        actual="TaskScheduled(name='right', input=8, attempt=1)",
    ),
    Divergence(
        code=extra_command,
        position=6,
        expected='TaskCompleted(task=5, result="r", attempt=1)',
        actual="TaskScheduled(name='middle', input=7, attempt=1)",
    ),
    Divergence(
        code=missing_command,
        position=5,
        expected="TaskScheduled(name='right', input=7, attempt=1)",
        actual="nothing: the code waits",
    ),
    Divergence(code=another_kind, position=2, expected=STARTED, actual="TimerCreated(due_us=1700000005000000)"),
    Divergence(
        code=another_time,
        position=8,
        expected="TimerCreated(due_us=1700000005000000)",
        actual="TimerCreated(due_us=1700000006000000)",
    ),
    Divergence(
        code=early_return,
        position=4,
        expected="TaskScheduled(name='left', input=7, attempt=1)",
        actual=f"{COMPLETED}7)",
    ),
    Divergence(
        code=immediate_return,
        position=2,
        expected=STARTED,
        actual=f'{COMPLETED}"nothing to do")',
    ),
    Divergence(
        code=early_failure,
        position=4,
        expected="TaskScheduled(name='left', input=7, attempt=1)",
        actual="ExecutionCompleted(status=<RuntimeStatus.FAILED: 'Failed'>, failure=ValueError: no)",
    ),
    Divergence(code=another_result, position=11, expected=f'{COMPLETED}["l", "r"])', actual=f'{COMPLETED}"other")'),
    Divergence(
        code=another_status,
        position=10,
        expected='CustomStatusSet(value="almost")',
        actual='CustomStatusSet(value="done")',
    ),
    Divergence(
        code=waits_for_ever,
        position=8,
        expected="TimerCreated(due_us=1700000005000000)",
        actual="nothing: the code waits",
    ),
    Divergence(
        code=cancels, position=6, expected='TaskCompleted(task=5, result="r", attempt=1)', actual="TaskCanceled(task=5)"
    ),
    Divergence(
        code=in_a_helper,
        position=2,
        expected=STARTED,
        actual="TaskScheduled(name='helped', input=null, attempt=1)",
        marker="HERE in_a_helper",
    ),
]


def line_of(code: Callable[..., Any], marker: str) -> str:
    """ "file:line" of the line that ends with the marker, in the function or anywhere in this file."""
    lines, first = inspect.getsourcelines(code)
    if not any(line.rstrip().endswith(f"# {marker}") for line in lines):
        lines, first = Path(__file__).read_text().splitlines(), 1
    numbers = [number for number, line in enumerate(lines, first) if line.rstrip().endswith(f"# {marker}")]
    assert len(numbers) == 1, f"{marker!r} marks {len(numbers)} lines"
    return f"{__file__}:{numbers[0]}"


@pytest.fixture(autouse=True)
def kit_is_machinery(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kit's context stands for the library's, whose lines are never those that an error names."""
    monkeypatch.setattr(source, "_MACHINERY", (*source._MACHINERY, inspect.getfile(main_of)))
    source._is_machinery.cache_clear()
    yield
    source._is_machinery.cache_clear()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.code.__name__) for case in DIVERGENCES])
@pytest.mark.parametrize("batched", [True, False], ids=["at once", "one by one"])
def test_changed_code_is_told_where_it_parts_from_its_history(case: Divergence, batched: bool) -> None:
    """Expected, actual, position and line are exact, however the history is batched; the message has them all."""
    execution, history = Execution(main_of(case.code)), history_of_original()
    batches = [history] if batched else [[event] for event in history]

    with pytest.raises(NonDeterminismError) as caught:
        list(map(execution.apply, batches))

    error = caught.value
    assert (error.position, error.expected, error.actual) == (case.position, case.expected, case.actual)
    assert error.source == line_of(case.code, case.marker)
    for part in (error.expected, error.actual, error.source, f"event {error.position}"):
        assert part in str(error)
    assert pickle.loads(pickle.dumps(error)).source == error.source


def test_the_message_is_a_diff_behind_the_events_that_agree() -> None:
    """Three events of context, both sides, a mark below the first field that differs, and its values."""
    with pytest.raises(NonDeterminismError) as caught:
        Execution(main_of(changed_later_input)).apply(history_of_original())

    line = line_of(changed_later_input, "HERE")
    assert str(caught.value).splitlines()[:-1] == [
        f"Replay of instance 'instance' diverged from its history at event 5, at {line}.",
        "                2  TaskScheduled(name='load', input=\"x\", attempt=1)",
        "                3  TaskCompleted(task=2, result=7, attempt=1)",
        "                4  TaskScheduled(name='left', input=7, attempt=1)",
        "  - history:    5  TaskScheduled(name='right', input=7, attempt=1)",
        "  + code:       5  TaskScheduled(name='right', input=8, attempt=1)",
        "  ?                                            ^^^^^^^",
        "input: 7 in the history, 8 from the code.",
    ]
    assert "ctx.patched(id)" in str(caught.value).splitlines()[-1]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "input['a'][1]['b']: 2 in the history, 3 from the code."),
        ([1, 2], [1, 2, 3], "input: [1, 2] in the history, [1, 2, 3] from the code."),
        ({"a": {"x": 1}}, {"a": {"y": 1}}, "input['a']: {'x': 1} in the history, {'y': 1} from the code."),
        (["x" * 500, 1], ["x" * 500, 2], "input[1]: 1 in the history, 2 from the code."),
    ],
)
def test_the_message_leads_to_the_difference_within_a_value(old: Any, new: Any, said: str) -> None:
    """However large the values around it are."""

    def code(value: Any) -> Orchestrator:
        async def orchestrator(ctx: Context, _: Any) -> Any:
            await ctx.call("a", value)

        return orchestrator

    history = Execution(main_of(code(old))).apply([started()])
    with pytest.raises(NonDeterminismError) as caught:
        Execution(main_of(code(new))).apply(history)
    assert said in str(caught.value).splitlines()


def test_the_same_code_does_not_diverge() -> None:
    """The histories above are good ones."""
    assert Execution(main_of(original)).apply(history_of_original()) == []


def test_a_changed_retry_policy_is_divergence() -> None:
    """The wait before a retry is a command like others, at the line of the call."""

    def code(first_s: float) -> Orchestrator:
        async def orchestrator(ctx: Context, value: Any) -> Any:
            return await ctx.call("work", retry=retries(3, first_s))  # LINE OF RETRY

        return orchestrator

    execution, _ = begin(code(1))
    history = [*Execution(main_of(code(1))).apply([started()]), *execution.apply([failed(2)])]
    with pytest.raises(NonDeterminismError) as caught:
        Execution(main_of(code(2))).apply(history)
    assert (caught.value.position, caught.value.expected) == (4, "TimerCreated(due_us=1700000001000000)")
    assert caught.value.source == line_of(test_a_changed_retry_policy_is_divergence, "LINE OF RETRY")


def test_json_inputs_are_compared_as_values() -> None:
    """Spaces and the order of keys say nothing; another value does."""

    def code(text: bytes) -> Orchestrator:
        async def orchestrator(ctx: Context, value: Any) -> Any:
            payload = Payload.of("json", text)
            return await ctx.execution.schedule_task(name="a", input=payload, decode=decode)

        return orchestrator

    history = Execution(main_of(code(b'{"a": 1, "b": 2}'))).apply([started()])
    assert Execution(main_of(code(b'{"b":2,"a":1}'))).apply(history) == []
    with pytest.raises(NonDeterminismError):
        Execution(main_of(code(b'{"b":3,"a":1}'))).apply(history)


def test_other_encodings_and_unloaded_blobs_are_not_compared() -> None:
    """Pickle and Arrow need not give the same bytes twice, and a blob that was not loaded cannot be looked into."""

    def code(payload: Payload) -> Orchestrator:
        async def orchestrator(ctx: Context, value: Any) -> Any:
            return await ctx.execution.schedule_task(name="a", input=payload, decode=decode)

        return orchestrator

    history = Execution(main_of(code(Payload.of("pickle", b"one")))).apply([started()])
    assert Execution(main_of(code(Payload.of("pickle", b"two")))).apply(history) == []
    unloaded = Payload(encoding="json", data=None, size=3, blob="digest")
    recorded = TaskScheduled(number=2, time_us=history[0].time_us, name="a", input=unloaded)
    assert Execution(main_of(code(encode(1)))).apply([history[0], recorded]) == []


def test_an_execution_that_diverged_is_dead() -> None:
    """The next call says so, and names the cause."""
    execution = Execution(main_of(renamed))
    with pytest.raises(NonDeterminismError) as caught:
        execution.apply(history_of_original())
    with pytest.raises(RuntimeError, match="died") as again:
        execution.apply([])
    assert again.value.__cause__ is caught.value


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda history: history[:3] + history[4:], id="a command is missing"),
        pytest.param(lambda history: history[:2] + history[3:], id="an input is missing"),
        pytest.param(lambda history: history[:2] + history[1:], id="an event is there twice"),
        pytest.param(lambda history: history[1:], id="the start is missing"),
        pytest.param(lambda history: [*history[:5], completed(2).stamped(6, 0)], id="an outcome for what has one"),
        pytest.param(lambda history: [*history[:5], completed(99).stamped(6, 0)], id="an outcome for nothing"),
        pytest.param(lambda history: [*history[:8], fired(8, 1).stamped(9, 0)], id="a timer fired too early"),
        pytest.param(lambda history: [*history, completed(4).stamped(12, 0)], id="an outcome after the end"),
        pytest.param(lambda history: [*history[:2], started().stamped(3, 0)], id="two starts"),
    ],
)
def test_a_history_that_cannot_be_is_corrupt_not_divergent(change: Callable[[list[Event]], list[Event]]) -> None:
    """Gaps and impossible inputs are the log's fault, and the error says at which event."""
    with pytest.raises(CorruptLogError, match="event"):
        Execution(main_of(original)).apply(change(history_of_original()))


def test_commands_are_no_fresh_inputs() -> None:
    """Without a number, an event that code causes can only be a programmer's mistake."""
    execution, _ = begin(original)
    with pytest.raises(TypeError, match="no input"):
        execution.apply([TimerCreated(due_us=1)])


def test_the_line_of_an_outstanding_command_is_known() -> None:
    """Tasks and timers tell which line asked for them, also after a replay; finished ones do not."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        calling = ctx.call("a")  # LINE OF CALL
        await asyncio.sleep(5)  # LINE OF SLEEP
        return await calling

    live, caused = begin(orchestrator)
    replayed = Execution(main_of(orchestrator))
    replayed.apply([live.started, *caused] if live.started is not None else [])
    here = test_the_line_of_an_outstanding_command_is_known
    for execution in (live, replayed):
        assert execution.source_of(2) == line_of(here, "LINE OF CALL")
        assert execution.source_of(3) == line_of(here, "LINE OF SLEEP")
    live.apply([TaskCompleted(task=2, result=encode(None))])
    assert live.source_of(2) == ""


def test_a_failed_activity_is_an_exception_with_its_facts() -> None:
    """Code gets ActivityError with name, attempt and failure."""

    async def orchestrator(ctx: Context, value: Any) -> Any:
        try:
            await ctx.call("work")
        except ActivityError as error:
            return [error.name, error.attempt, error.failure.type_name, error.failure.message]

    execution, _ = begin(orchestrator)
    execution.apply([failed(2, "broken")])
    assert execution.result == encode(["work", 1, "ValueError", "broken"])
