"""What goes from one execution to the next: unread events, and the steps that a rewind takes over."""

from __future__ import annotations

from typing import Any

import ray_durable as durable
from ray_durable.engine import EventRaised, ExecutionCompleted, ExecutionRewound, MarkerRecorded, RuntimeStatus
from tests.support.skipping_loop import simulated
from tests.support.town import Town


@durable.orchestrator
async def passes_on(ctx: durable.OrchestrationContext, rounds: int) -> Any:
    """Takes what was raised only in the last of its rounds; the others end at once."""
    if rounds == 3:
        await ctx.wait_for_external_event("begin")
    if rounds:
        return ctx.continue_as_new(rounds - 1)
    return [await ctx.wait_for_external_event("item") for _ in range(3)]


@simulated
async def test_unread_events_outlast_rounds_that_end_before_they_are_delivered() -> None:
    """In order, once, and repetitions are known in each round."""
    town = Town()
    await town.start(passes_on, 3)
    for number in range(3):
        await town.raise_event("item", number, f"e{number}")
    await town.raise_event("begin", None, "begin")
    assert await town.result_of() == [0, 1, 2]
    raised = [event.event_id for event in await town.history_of() if isinstance(event, EventRaised)]
    assert raised == ["e0", "e1", "e2"]
    await town.close()


class Code:
    """What the orchestrator's code is today."""

    is_mended = False
    calls = 0


@durable.activity
def measured(value: int) -> int:
    Code.calls += 1
    return value


@durable.orchestrator
async def breaks(ctx: durable.OrchestrationContext) -> Any:
    drawn = ctx.side_effect(lambda: 7)
    first = await ctx.call_activity(measured, 1)
    if not Code.is_mended:
        raise ValueError("a mistake in the code")
    return [drawn, first, await ctx.call_activity(measured, 2)]


@simulated
async def test_mended_code_goes_on_from_the_step_in_which_it_failed() -> None:
    """Finished activities are not run again, nor is what a side effect gave asked for again."""
    Code.is_mended, before = False, Code.calls
    town = Town()
    await town.start(breaks)
    await town.ended()
    assert (await town.failure()).type_name == "ValueError"
    Code.is_mended = True
    await town.rewind()
    assert await town.result_of() == [7, 1, 2]
    assert Code.calls - before == 2
    history = await town.history_of()
    assert len([event for event in history if isinstance(event, MarkerRecorded)]) == 1
    assert len([event for event in history if isinstance(event, ExecutionRewound)]) == 1
    last = history[-1]
    assert isinstance(last, ExecutionCompleted)
    assert last.status is RuntimeStatus.COMPLETED
    await town.close()
