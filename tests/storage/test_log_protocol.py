"""One history, whoever believes to own the log, and whatever becomes of requests and their answers.

Laws (storage/FORMAT.md section 6): what was acknowledged is in the history once and in order; a fenced writer adds
nothing; the history is one chain of segments with dense event numbers and rising epochs.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_durable.errors import FencedError, InstanceNotFoundError, PayloadTooLargeError, StoreError
from ray_durable.storage import (
    ClaimLostError,
    Pacing,
    RunLog,
    latest_execution,
    open_store,
    read_tail,
)
from ray_durable.storage.segment import SEGMENT_BYTES_MAX
from tests.storage.log_kit import KEYS, RUN, Owner, Patience, contend, line, names, read, start
from tests.support.faults import Fault, FaultyStore

T = TypeVar("T")

_memory_names = itertools.count()


@pytest.fixture(params=["memory", "local"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty root."""
    return str(tmp_path) if request.param == "local" else f"memory://log-protocol-{next(_memory_names)}"


def run(test: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine on a loop of its own."""
    return asyncio.run(test)


def pacing_until(turn: asyncio.Event) -> Pacing:
    """A pacing that tries again when `turn` is set."""

    async def sleep(_: float) -> None:
        await turn.wait()

    return Pacing(sleep=sleep)


TIMEOUTS = (Fault.LOST, Fault.ANSWER_LOST, Fault.LATE, Fault.RESENT, Fault.HIDDEN)


@pytest.mark.parametrize(
    "plan", [plan for size in (1, 2) for plan in itertools.product(TIMEOUTS, repeat=size)], ids=str
)
def test_an_append_of_unclear_fate_is_settled(root: str, plan: tuple[Fault, ...]) -> None:
    """Whatever is lost on the way, the append ends as a success and lies in the log once."""

    async def test() -> None:
        store = await open_store(root)
        await start(store)
        faulty = FaultyStore(store, [Fault.NONE, *plan])
        owner = await Owner.claimed(faulty, "claim")
        segment = await owner.append("a")
        await faulty.close()
        log = await read(store)
        assert names(log.segments) == ["start", "claim", "a"]
        assert log.tail == segment
        await owner.append("b")
        assert names((await read(store)).segments) == ["start", "claim", "a", "b"]

    run(test())


def test_trouble_is_told_while_it_lasts(root: str) -> None:
    """Each try that failed is reported with its error, and a good append reports none."""

    async def test() -> None:
        store, patience = await open_store(root), Patience()
        await start(store)
        faulty = FaultyStore(store, [Fault.NONE, Fault.LOST, Fault.LOST, Fault.LOST])
        owner = await Owner.claimed(faulty, "claim", patience)
        assert patience.troubles == []
        await owner.append("a")
        assert patience.troubles == ["no answer came"] * 3
        await owner.append("b")
        assert len(patience.troubles) == 3

    run(test())


def test_an_older_owner_is_fenced_and_adds_nothing(root: str) -> None:
    """After another's claim the older owner's append fails, and it may not try again."""

    async def test() -> None:
        store = await open_store(root)
        await start(store)
        older = await Owner.claimed(store, "older")
        newer = await Owner.claimed(store, "newer")
        with pytest.raises(FencedError) as fenced:
            await older.append("too late")
        assert fenced.value.key == KEYS.segment(RUN, 2)
        await newer.append("a")
        with pytest.raises((FencedError, AssertionError)):
            await older.append("again")
        assert names((await read(store)).segments) == ["start", "older", "newer", "a"]

    run(test())


def test_a_write_that_was_lost_meets_the_claim_and_is_fenced(root: str) -> None:
    """The resend of a lost append finds the newer claim in its slot."""

    async def test() -> None:
        store = await open_store(root)
        await start(store)
        turn = asyncio.Event()
        blocking = pacing_until(turn)
        log = await RunLog.read(FaultyStore(store, [Fault.NONE, Fault.LOST]), KEYS, "i", 1, pacing=blocking)
        older = Owner(log)
        await older.claim("older")
        appending = asyncio.ensure_future(older.append("lost"))
        await asyncio.sleep(0)
        await Owner.claimed(store, "newer")
        turn.set()
        with pytest.raises(FencedError):
            await appending
        assert names((await read(store)).segments) == ["start", "older", "newer"]

    run(test())


def test_a_write_that_was_done_before_the_claim_counts_for_both(root: str) -> None:
    """The newer owner has read it; the older learns of its success by its own bytes, and is fenced at the next."""

    async def test() -> None:
        store = await open_store(root)
        await start(store)
        turn = asyncio.Event()
        blocking = pacing_until(turn)
        log = await RunLog.read(FaultyStore(store, [Fault.NONE, Fault.ANSWER_LOST]), KEYS, "i", 1, pacing=blocking)
        older = Owner(log)
        await older.claim("older")
        appending = asyncio.ensure_future(older.append("done"))
        await asyncio.sleep(0)
        newer = Owner(await read(store))
        assert names(newer.log.segments) == ["start", "older", "done"]
        await newer.claim("newer")
        turn.set()
        assert (await appending).header.seq == 2
        with pytest.raises(FencedError):
            await older.append("too late")

    run(test())


def test_a_claimant_beaten_to_the_slot_reads_on_and_claims_behind(root: str) -> None:
    """Both claims stand, in order, with epochs one apart."""

    async def test() -> None:
        store = await open_store(root)
        await start(store)
        one, two = Owner(await read(store)), Owner(await read(store))
        await one.claim("one")
        with pytest.raises(ClaimLostError):
            await two.claim("two")
        assert names(await two.log.refresh()) == ["one"]
        two.next_event += 1
        claim = await two.claim("two")
        assert (claim.header.epoch, claim.header.seq, two.log.epoch) == (2, 2, 2)
        with pytest.raises(FencedError):
            await one.append("too late")

    run(test())


def test_ownership_is_verified_by_the_next_slot(root: str) -> None:
    """It holds until another has written there."""

    async def test() -> None:
        store = await open_store(root)
        await start(store)
        owner = await Owner.claimed(store, "claim")
        await owner.log.verify_ownership()
        await Owner.claimed(store, "newer")
        with pytest.raises(FencedError):
            await owner.log.verify_ownership()

    run(test())


def test_a_lasting_refusal_is_raised_and_ends_the_log(root: str) -> None:
    """Its outcome is unknown to the log, which is of no more use."""

    async def test() -> None:
        store = await open_store(root)
        await start(store)
        owner = await Owner.claimed(FaultyStore(store, [Fault.NONE, Fault.REFUSED]), "claim")
        with pytest.raises(StoreError, match="withdrawn"):
            await owner.append("a")
        with pytest.raises((FencedError, AssertionError)):
            await owner.append("b")

    run(test())


def test_an_interrupted_append_ends_the_log(root: str) -> None:
    """Who cancels an append does not know its fate, and must read the log again."""

    async def test() -> None:
        store = await open_store(root)
        await start(store)
        never = pacing_until(asyncio.Event())
        log = await RunLog.read(FaultyStore(store, [Fault.NONE, Fault.ANSWER_LOST]), KEYS, "i", 1, pacing=never)
        owner = Owner(log)
        await owner.claim("claim")
        appending = asyncio.ensure_future(owner.append("a"))
        await asyncio.sleep(0)
        appending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await appending
        with pytest.raises((FencedError, AssertionError)):
            await owner.append("b")
        assert names((await read(store)).segments) == ["start", "claim", "a"]

    run(test())


def test_a_segment_over_the_limit_is_refused_before_anything_is_written(root: str) -> None:
    """The error tells the size, the limit and the way out; the owner goes on."""

    async def test() -> None:
        store = await open_store(root)
        await start(store)
        owner = await Owner.claimed(store, "claim")
        with pytest.raises(PayloadTooLargeError, match=r"ctx\.map") as refused:
            await owner.log.append([line(3, "big")], [bytes(SEGMENT_BYTES_MAX)], first=3, status={}, hub_epoch=1)
        assert refused.value.size_bytes > refused.value.limit_bytes == SEGMENT_BYTES_MAX
        await owner.append("small")
        assert names((await read(store)).segments) == ["start", "claim", "small"]

    run(test())


@pytest.mark.parametrize("fault", [Fault.NONE, *TIMEOUTS])
def test_a_start_is_one_whatever_is_lost(root: str, fault: Fault) -> None:
    """The start is ours when its bytes lie there, and when the same request is sent once more."""

    async def test() -> None:
        store = await open_store(root)
        faulty = FaultyStore(store, [fault])
        assert await start(faulty) is None
        assert await start(store, name="the same request, other bytes") is None
        taken = await start(store, request_id="another request")
        assert taken is not None
        assert taken.header.status == {"request_id": "r"}
        assert names((await read(store)).segments) == ["start"]

    run(test())


def test_the_newest_execution_is_found_by_number(root: str) -> None:
    """No instance is no execution; a log that does not exist says so."""

    async def test() -> None:
        store = await open_store(root)
        assert await latest_execution(store, KEYS, "i") is None
        with pytest.raises(InstanceNotFoundError):
            await read(store)
        with pytest.raises(InstanceNotFoundError):
            await read_tail(store, KEYS, "i", 1)
        await start(store)
        assert await latest_execution(store, KEYS, "i") == 1

    run(test())


def test_the_tail_is_found_without_reading_the_log() -> None:
    """Five requests, on both sides of a folder's end; reading all gives the same tail."""

    async def test() -> None:
        store = await open_store(f"memory://log-protocol-{next(_memory_names)}")
        await start(store)
        owner = await Owner.claimed(store, "claim")
        for seq in range(2, 1_003):
            segment = await owner.append(str(seq))
            if seq in (2, 998, 999, 1_000, 1_002):
                counting = FaultyStore(store)
                assert await read_tail(counting, KEYS, "i", 1) == segment
                assert counting.calls.total() <= 5
        log = await read(store)
        assert [one.header.seq for one in log.segments] == list(range(1_003))

    run(test())


def test_an_owner_keeps_no_history_in_memory(root: str) -> None:
    """From the first append on, only the newest segment is held."""

    async def test() -> None:
        store = await open_store(root)
        await start(store)
        owner = await Owner.claimed(store, "claim")
        for number in range(5):
            await owner.append(str(number))
        assert names(owner.log.segments) == ["4"]

    run(test())


async def _contend(seed: int) -> None:
    """Three owners in turn claim and append through faulty stores, in an order drawn from `seed`."""
    chance = random.Random(seed)
    store = await open_store(f"memory://log-protocol-{next(_memory_names)}")
    faulty = [
        FaultyStore(
            store,
            iter(lambda: chance.choice((Fault.NONE, Fault.NONE, Fault.NONE, *TIMEOUTS)), None),
            pause=lambda: chance.randrange(4),
        )
        for _ in range(3)
    ]

    async def pause() -> None:
        for _ in range(chance.randrange(30)):
            await asyncio.sleep(0)

    await contend(faulty, store, pause)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(min_value=0, max_value=2**32))
def test_contending_owners_leave_one_history(seed: int) -> None:
    """Three owners in any order, with lost, late and doubled requests: nothing acknowledged is lost or doubled."""
    run(_contend(seed))
