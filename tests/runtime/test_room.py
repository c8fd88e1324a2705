"""External events that nobody waits for are taken up to a limit: then they are refused, and nothing else changes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.engine import EventRaised, ExecutionStarted
from ray_durable.errors import ConfigurationError, FencedError, TooManyEventsError
from ray_durable.payload import Payload
from ray_durable.runtime.records import encode_events
from ray_durable.runtime.room import UNREAD_EVENTS_MAX, RoomMax
from tests.support.skipping_loop import simulated
from tests.support.town import Town
from tests.support.world import World

IDLE_S = 20.0


@durable.orchestrator
async def reads_when_told(ctx: durable.OrchestrationContext, count: int) -> list[Any]:
    """Takes nothing before it is told to."""
    await ctx.wait_for_external_event("Go")
    return [await ctx.wait_for_external_event("Item") for _ in range(count)]


@durable.orchestrator
async def reads_one_a_go(ctx: durable.OrchestrationContext, count: int) -> list[Any]:
    """Takes one whenever it is told to."""
    items = []
    for _ in range(count):
        await ctx.wait_for_external_event("Go")
        items.append(await ctx.wait_for_external_event("Item"))
    return items


@durable.orchestrator
async def reads_in_the_next_round(ctx: durable.OrchestrationContext, rounds: int, count: int) -> list[Any]:
    """Begins anew when told, and takes what waits in the last round."""
    await ctx.wait_for_external_event("Go")
    if rounds:
        ctx.continue_as_new(rounds - 1, count)
        return []
    return [await ctx.wait_for_external_event("Item") for _ in range(count)]


@durable.orchestrator
async def sends_items(ctx: durable.OrchestrationContext, receivers: list[str], count: int) -> str:
    """In one step: the items one after the other, each to all receivers."""
    for number in range(count):
        for receiver in receivers:
            ctx.send_event(receiver, "Item", number)
    return "sent"


@durable.orchestrator
async def waits_for_its_flooder(ctx: durable.OrchestrationContext, count: int) -> list[Any]:
    """Takes what the called instance sent when that has ended."""
    told = await ctx.call_sub_orchestrator(sends_items, [ctx.instance_id], count)
    return [told, *[await ctx.wait_for_external_event("Item") for _ in range(count)]]


@durable.orchestrator
async def gives_its_reader_up(ctx: durable.OrchestrationContext, count: int) -> str:
    """Sends more than its child has room for, and terminates it."""
    child = ctx.call_sub_orchestrator(reads_when_told, count, instance_id="reader")
    for number in range(count):
        ctx.send_event("reader", "Item", number)
    await ctx.wait_for_external_event("Stop")
    child.cancel()
    return "gave up"


def town_of(*, events: int = 3, value_bytes: int = 1_000_000, idle_s: float | None = None) -> Town:
    town = Town(idle_s=idle_s)
    town.room_max = RoomMax(events=events, value_bytes=value_bytes)
    return town


async def raised(town: Town) -> list[str]:
    """The ids of the events in the log."""
    return [event.event_id for event in await town.history_of() if isinstance(event, EventRaised)]


async def fill(town: Town, *, count: int = 3, instance_id: str = "one") -> None:
    for number in range(count):
        await town.raise_event("Item", number, f"item {number}", instance_id)


async def refused(town: Town, name: str = "Item", value: Any = None, event_id: str = "more") -> TooManyEventsError:
    with pytest.raises(TooManyEventsError) as caught:
        await town.raise_event(name, value, event_id)
    return caught.value


class TestFromOutside:
    """What clients raise."""

    @simulated
    async def test_what_there_is_no_room_for_is_refused_and_not_recorded(self) -> None:
        """The error tells how many wait; the instance reads what was taken, in order, and then takes more."""
        town = town_of()
        await town.start(reads_when_told, 4)
        await fill(town)
        error = await refused(town)
        assert (error.instance_id, error.name, error.count, error.size_bytes) == ("one", "Item", 3, 3)
        assert "Event 'Item' was not recorded: 3 external events" in str(error)
        assert await raised(town) == ["item 0", "item 1", "item 2"]
        # That is what the code waits for, whatever else is there.
        await town.raise_event("Go", None, "go")
        await town.raise_event("Item", 3, "more")
        assert await town.result_of() == [0, 1, 2, 3]
        await town.close()

    @simulated
    async def test_what_was_taken_makes_room_for_as_much(self) -> None:
        """Two of the three waited on before an owner was lost, and are taken after."""
        town = town_of()
        await town.start(reads_one_a_go, 5)
        await fill(town)
        for number in range(3, 5):
            await town.raise_event("Go", None, f"go {number}")
            await town.raise_event("Item", number, f"item {number}")
            await refused(town)
            await town.owners[-1].kill()
        for number in range(3):
            await town.raise_event("Go", None, f"last {number}")
        assert await town.result_of() == list(range(5))
        await town.close()

    @simulated
    async def test_a_repetition_of_what_was_taken_is_a_success(self) -> None:
        """Also for a new owner, which knows only the log."""
        town = town_of()
        await town.start(reads_when_told, 3)
        await fill(town)
        await fill(town)
        (owner,) = town.owners
        await owner.kill()
        await fill(town)
        assert len(town.owners) == 2
        assert await raised(town) == ["item 0", "item 1", "item 2"]
        await town.close()

    @simulated
    async def test_an_owner_that_was_replaced_refuses_nothing(self) -> None:
        """It does not know what the new one took: whoever asks it is told that the outcome is unknown."""
        world = World()
        world.room_max = RoomMax(events=1)
        await world.start(reads_when_told, 2)
        old = world.own()
        await old.instance.raise_event("Item", world.hub.codec.encode(1, where="test"), "first")
        new = world.own()
        await world.until(lambda: new.store.segments)
        with pytest.raises(FencedError):
            await old.instance.raise_event("Item", world.hub.codec.encode(2, where="test"), "second")
        with pytest.raises(TooManyEventsError):
            await new.instance.raise_event("Item", world.hub.codec.encode(2, where="test"), "second")
        await world.close()

    @pytest.mark.parametrize("loss", ["killed", "passivated"])
    @simulated
    async def test_the_room_follows_from_the_log(self, loss: str) -> None:
        """Whoever has the instance next refuses what the one before would have."""
        town = town_of(idle_s=IDLE_S)
        await town.start(reads_when_told, 4)
        await fill(town)
        if loss == "killed":
            await town.owners[-1].kill()
        else:
            await town.until(lambda: town.living("one") is None)
        assert (await refused(town)).count == 3
        assert len(town.owners) == 2
        await town.raise_event("Go", None, "go")
        await town.raise_event("Item", 3, "more")
        assert await town.result_of() == [0, 1, 2, 3]
        await town.close()

    @simulated
    async def test_what_comes_before_a_later_start_counts(self) -> None:
        """Nobody waits for anything before it is due, not even for what the code begins with."""
        town = town_of()
        await town.start(reads_when_told, 3, due_s=3_600)
        await fill(town)
        await refused(town, "Go")
        await asyncio.sleep(3_700)
        await town.raise_event("Go", None, "go")
        assert await town.result_of() == [0, 1, 2]
        await town.close()

    @simulated
    async def test_a_suspended_instance_has_no_more_room_than_another(self) -> None:
        """What it waits for counts, too, as it does not take it before it is resumed; control calls are taken."""
        town = town_of()
        await town.start(reads_when_told, 2)
        await town.command("one", "suspend", "a moment", "suspension")
        await town.raise_event("Go", None, "go")
        await fill(town, count=2)
        assert (await refused(town)).count == 3
        await town.owners[-1].kill()
        assert (await refused(town)).count == 3
        await town.command("one", "resume", "go on", "resumption")
        assert await town.result_of() == [0, 1]
        await town.close()

    @simulated
    async def test_what_the_next_execution_was_handed_on_counts(self) -> None:
        """Nothing of it is refused, however often it is handed on."""
        town = town_of()
        await town.start(reads_in_the_next_round, 2, 3)
        await fill(town)
        for number in range(2):
            await town.raise_event("Go", None, f"go {number}")
            assert (await refused(town)).count == 3
        await town.raise_event("Go", None, "go")
        assert await town.result_of() == [0, 1, 2]
        await town.close()

    @simulated
    async def test_bytes_count_too_and_one_alone_may_have_more(self) -> None:
        """Values count wherever they lie: these are blobs. One that nobody could ever raise would be of no use."""
        town = town_of(events=1_000, value_bytes=150_000)
        await town.start(reads_when_told, 3)
        await town.raise_event("Item", "a" * 200_000, "large")
        assert (await refused(town)).size_bytes > 150_000
        await town.raise_event("Go", None, "go")
        await town.raise_event("Item", "b" * 100_000, "second")
        await town.raise_event("Item", "c" * 100_000, "third")
        assert [text[0] for text in await town.result_of()] == ["a", "b", "c"]
        await town.close()

    @simulated
    async def test_a_flood_in_one_turn_is_taken_as_if_it_came_one_by_one(self) -> None:
        """Code that takes each at once takes all of many more than there is room for."""
        town = town_of(events=2)
        await town.start(reads_when_told, 50)
        await town.raise_event("Go", None, "go")
        await asyncio.gather(*(town.raise_event("Item", number, f"item {number}") for number in range(50)))
        assert await town.result_of() == list(range(50))
        await town.close()

    @simulated
    async def test_of_a_flood_as_many_are_taken_as_there_is_room_for(self) -> None:
        """In one turn, which is one segment; the others are told."""
        town = town_of(events=10)
        await town.start(reads_when_told, 10)
        owner = await town.activate("one")
        await town.until(lambda: owner.store.segments)
        events = [town.raise_event("Item", number, f"item {number}") for number in range(500)]
        told = await asyncio.gather(*events, return_exceptions=True)
        assert [type(one) for one in told] == [type(None)] * 10 + [TooManyEventsError] * 490
        assert len(owner.store.segments) == 2
        await town.close()

    @simulated
    async def test_refusing_costs_the_same_however_many_wait(self) -> None:
        """Nothing is counted anew: a flood of refusals at 10,000 waiting events is no slower than at ten."""
        took_s: dict[int, float] = {}
        for events in (10, UNREAD_EVENTS_MAX):
            town = town_of(events=events)
            await town.start(reads_when_told, events)
            owner = await town.activate("one")
            payload = town.encoded(0)

            def flood(count: int, prefix: str, owner: Any = owner, payload: Payload = payload) -> Any:
                calls = (owner.instance.raise_event("Item", payload, f"{prefix} {number}") for number in range(count))
                return asyncio.gather(*calls, return_exceptions=True)

            assert set(await flood(events, "item")) == {None}
            began_s = time.perf_counter()
            told = await flood(1_000, "more")
            took_s[events] = time.perf_counter() - began_s
            assert all(isinstance(one, TooManyEventsError) for one in told)
            await town.close()
        assert took_s[UNREAD_EVENTS_MAX] < 10 * took_s[10] + 0.1


class TestFromOtherInstances:
    """What instances send each other is never lost, and waits at the sender."""

    @simulated
    async def test_messages_wait_at_the_sender_and_hold_up_no_other_receiver(self) -> None:
        """The sender tells of it; when there is room, all arrive in order, each once."""
        town = town_of()
        await town.start(reads_when_told, 8, instance_id="full")
        await town.start(reads_when_told, 3, instance_id="other")
        await town.raise_event("Go", None, "go", "other")
        await town.start(sends_items, ["full", "other"], 8, instance_id="sender")
        assert await town.result_of("other") == [0, 1, 2]
        await asyncio.sleep(100)
        sender = town.living("sender")
        assert sender is not None
        assert sender.instance._mail.problem is not None
        assert "wait for instance 'full' to take them" in sender.instance._mail.problem
        await town.raise_event("Go", None, "go", "full")
        assert await town.result_of("full") == list(range(8))
        await town.settled()
        await town.close()

    @simulated
    async def test_a_sender_that_goes_on_says_what_it_cannot_bring(self) -> None:
        """Its status has the problem, and loses it once there is room."""
        town = town_of()
        await town.start(gives_its_reader_up, 5)
        await asyncio.sleep(100)
        problem = (await town.status("one")).problem
        assert problem is not None
        assert "Event 'Item' was not recorded" in problem
        await town.raise_event("Go", None, "go", "reader")
        assert await town.result_of("reader") == [0, 1, 2, 3, 4]
        await asyncio.sleep(100)
        assert (await town.status("one")).problem is None
        await town.raise_event("Stop", None, "stop")
        await town.settled()
        await town.close()

    @simulated
    async def test_a_new_owner_of_the_sender_brings_what_was_refused(self) -> None:
        """It is in the sender's log until that notes that it arrived."""
        town = town_of()
        await town.start(gives_its_reader_up, 5)
        await asyncio.sleep(10)
        await town.owners[0].kill()
        await town.raise_event("Go", None, "go", "reader")
        await town.ended("reader")
        await town.raise_event("Stop", None, "stop")
        await town.settled()
        items = [event for event in await town.history_of("reader") if isinstance(event, EventRaised)]
        assert [event.value.bytes for event in items if event.name == "Item"] == [b"0", b"1", b"2", b"3", b"4"]
        await town.close()

    @simulated
    async def test_the_end_of_a_child_passes_the_events_that_its_parent_has_no_room_for(self) -> None:
        """Else the parent would wait for the child for ever, and the child for room at its parent."""
        town = town_of()
        await town.start(waits_for_its_flooder, 12)
        async with asyncio.timeout(1_000):
            assert await town.result_of() == ["sent", *range(12)]
        await town.settled()
        await town.close()

    @simulated
    async def test_a_termination_passes_the_events_that_a_child_has_no_room_for(self) -> None:
        """Whom nobody waits for any more does not stay because of them."""
        town = town_of()
        await town.start(gives_its_reader_up, 5)
        await asyncio.sleep(10)
        await town.raise_event("Stop", None, "stop")
        async with asyncio.timeout(1_000):
            await town.settled()
        assert (await town.status("reader")).runtime_status is durable.RuntimeStatus.TERMINATED
        await town.close()

    @simulated
    async def test_a_refused_message_is_not_read_from_its_senders_run(self) -> None:
        """A large value is loaded once there is room for it."""
        town = town_of(events=1)
        await town.start(reads_when_told, 2)
        await fill(town, count=1)
        owner = town.living("one")
        assert owner is not None
        await town.start(sends_large, instance_id="sender")
        await asyncio.sleep(60)
        assert not [call for call in owner.store.calls if call[0] == "get" and "/blobs/" in call[1]]
        await town.raise_event("Go", None, "go")
        assert await town.result_of() == [0, "x" * 100_000]
        await town.close()


@durable.orchestrator
async def sends_large(ctx: durable.OrchestrationContext) -> None:
    ctx.send_event("one", "Item", "x" * 100_000)


class TestTheLimit:
    """What it may be."""

    @pytest.mark.parametrize("limit", [{"events": 0}, {"events": UNREAD_EVENTS_MAX + 1}, {"value_bytes": 0}])
    def test_a_limit_that_cannot_work_is_refused(self, limit: dict[str, int]) -> None:
        with pytest.raises(ConfigurationError, match="unread_"):
            RoomMax(**limit)

    @simulated
    async def test_as_many_as_may_wait_fit_into_the_next_execution(self) -> None:
        """Of the longest names and ids, with values as large as they come: one segment holds what is handed on."""
        world = World()
        name, value = "\U0001f5bc" * 256, Payload.of("json", b'"' + b"v" * (64 * 1024 - 2) + b'"')
        few = [EventRaised(name=name, event_id=name, value=value)] * 300
        # As many as are stored apart weigh as little as these; the largest that stay are of 4 KiB.
        (stored,) = await world.hub.store_payloads("0" * 32, [_started(few)])
        assert isinstance(stored, ExecutionStarted)
        assert all(isinstance(one, EventRaised) and one.value.blob is not None for one in stored.carried)
        largest = Payload.of("json", b'"' + b"v" * (4 * 1024 - 2) + b'"')
        many = [EventRaised(name=name, event_id=name, value=largest)] * UNREAD_EVENTS_MAX
        (stored,) = await world.hub.store_payloads("0" * 32, [_started(many)])
        (line,), sections = encode_events([stored])
        assert len(line) + sum(map(len, sections)) < 63 * 1024 * 1024
        await world.close()


def _started(carried: list[EventRaised]) -> ExecutionStarted:
    return ExecutionStarted(
        number=1,
        instance_id="one",
        run="0" * 32,
        execution=2,
        name="tests",
        input=Payload.of("json", b"[]"),
        request_id="",
        carried=tuple(carried),
        recent=tuple(["\U0001f5bc" * 256] * 1_000),
    )
