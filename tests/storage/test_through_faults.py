"""S3 through a network and servers that fail, in every way and at random: real requests to real servers, by a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from ray_durable.errors import CorruptLogError, StoreUnavailableError
from ray_durable.storage import ObjectStore, Pacing, PatientStore, open_store, probe
from ray_durable.storage.remote import RemoteStore
from tests.storage.log_kit import KEYS, RUN, Owner, contend, names, read, start
from tests.storage.store_contract import OpenRoot, StoreContract
from tests.support.fault_proxy import FaultProxy, Mishap, drawn, fault_proxy, in_turn
from tests.support.s3_server import S3Server

QUICKLY = Pacing(first_s=0.005, max_s=0.02)

REFUSED = (Mishap.SLOW_DOWN, Mishap.FAILED, Mishap.CONFLICT)
UNCLEAR = (Mishap.CUT, Mishap.APPLIED_FAILED, Mishap.APPLIED_CUT, Mishap.LATE, Mishap.TWICE)
BODIES = (Mishap.SLOW, Mishap.DRIPPING, Mishap.BROKEN_BODY, Mishap.CUT_SHORT)
SILENCES = (Mishap.SILENT, Mishap.APPLIED_SILENT)
ALL = (*REFUSED, *UNCLEAR, *BODIES, *SILENCES)

OPERATIONS: dict[str, Callable[[ObjectStore], Awaitable[object]]] = {
    "put_if_absent": lambda store: store.put_if_absent("a/new", b"x"),
    "put": lambda store: store.put("a/key", b"x"),
    "get": lambda store: store.get("a/key"),
    "list_folder": lambda store: store.list_folder("a/"),
    "delete_many": lambda store: store.delete_many(["a/other"]),
}


@pytest.fixture
def proxy(moto_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy before moto."""
    with fault_proxy(moto_server) as proxy:
        yield proxy


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines in which silence is noticed soon."""
    monkeypatch.setattr(RemoteStore, "deadline_s", 0.5)
    monkeypatch.setattr(RemoteStore, "slowest_bytes_per_s", 1_000_000_000)


@contextlib.contextmanager
def deadline(store: ObjectStore, seconds: float) -> Iterator[None]:
    """A store whose requests have this deadline for a while."""
    assert isinstance(store, RemoteStore)
    store.deadline_s, store.slowest_bytes_per_s = seconds, 1_000_000_000
    yield
    del store.deadline_s, store.slowest_bytes_per_s


def opener(proxy: FaultProxy) -> OpenRoot:
    """Opens one new root through the proxy, as often as it is called."""
    url = f"s3://{proxy.server.create_bucket()}/some/root"
    return lambda: open_store(url, storage_options=proxy.server.storage_options)


class TestS3ThroughFaults(StoreContract):
    """The contract through a store that is asked again: a third of all requests fails, is refused, slow or cut."""

    races = 2
    many = 51

    @pytest.fixture
    def root(self, proxy: FaultProxy) -> OpenRoot:
        once = opener(proxy)
        # What may have been carried out is another matter: `put_if_absent` then says that the object exists.
        proxy.plan = drawn(1, 0.33, (*REFUSED, Mishap.CUT, *BODIES[:2]))

        async def open_patiently() -> ObjectStore:
            return PatientStore(await once(), QUICKLY)

        return open_patiently


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mishap", ALL)
def test_an_append_is_settled_whatever_becomes_of_its_requests(proxy: FaultProxy, mishap: Mishap) -> None:
    """Claim, append and the reading that settles them meet it one after the other: each is in the log, once."""
    root = opener(proxy)

    async def main() -> None:
        store = await root()
        await start(store)
        proxy.plan = in_turn([mishap] * 2, of=lambda seen: seen.is_create)
        owner = await Owner.claimed(store, "claim")
        await owner.append("a")
        proxy.plan = in_turn([mishap] * 2, of=lambda seen: seen.method == "GET")
        # A late request of before meets what its successor wrote.
        await asyncio.sleep(0.4 if mishap is Mishap.LATE else 0)
        await owner.append("b")
        assert names((await read(store)).segments) == ["start", "claim", "a", "b"]
        proxy.plan = in_turn([])
        assert names((await read(store)).segments) == ["start", "claim", "a", "b"]
        assert proxy.met[mishap] >= 3
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("mishap", [Mishap.SLOW_DOWN, *UNCLEAR[:3], *SILENCES, Mishap.BROKEN_BODY])
def test_every_operation_tells_that_it_may_pass(proxy: FaultProxy, mishap: Mishap) -> None:
    """Also the deadline of a silent one: all are passing trouble, and the next try on the same store succeeds."""
    root = opener(proxy)

    async def main() -> None:
        store = await root()
        for key in ("a/key", "a/other"):
            await store.put(key, b"some more bytes")
        for name, operation in OPERATIONS.items():
            began_s = time.monotonic()
            with proxy.outage(mishap), deadline(store, 0.5), pytest.raises(StoreUnavailableError) as caught:
                await operation(store)
            assert "trying again" in str(caught.value)
            assert time.monotonic() - began_s < 10, name
        await probe(store, "probe/1")
        for operation in OPERATIONS.values():
            await operation(store)
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("impatient")
def test_contending_owners_leave_one_history(proxy: FaultProxy, seed: int) -> None:
    """Three owners, each with connections of its own, and a quarter of all requests in trouble of any kind."""
    _contend(proxy, seed)


def test_contending_owners_leave_one_history_on_another_server(
    seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that keeps state on disk and says nothing of conditions; silence takes too long there."""
    # It polls for locks, up to a second and more.
    monkeypatch.setattr(RemoteStore, "deadline_s", 10.0)
    with fault_proxy(seaweedfs_server) as proxy:
        _contend(proxy, 100, mishaps=(*REFUSED, *UNCLEAR, *BODIES))


def _contend(proxy: FaultProxy, seed: int, mishaps: tuple[Mishap, ...] = ALL) -> None:
    root, chance = opener(proxy), random.Random(seed)

    async def main() -> None:
        store = await root()
        ways = [await root() for _ in range(3)]
        # Segments are small and quickly written: trouble is to meet all of them.
        proxy.plan = drawn(seed, 0.25, mishaps)
        await contend(ways, store, lambda: asyncio.sleep(chance.random() * 0.3))
        await store.close()

    asyncio.run(main())
    assert sum(count for mishap, count in proxy.met.items() if mishap is not Mishap.NONE) > 5


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mishap", [Mishap.SILENT, Mishap.CUT, Mishap.SLOW_DOWN])
def test_an_outage_of_several_deadlines_is_survived(proxy: FaultProxy, mishap: Mishap) -> None:
    """The owner waits, says so, keeps few connections and sends few requests; afterwards it goes on by itself."""
    root = opener(proxy)

    async def main() -> None:
        store = PatientStore(await root(), Pacing(max_s=0.5))
        await start(store)
        owner = await Owner.claimed(store, "claim")
        before = len(proxy.requests)
        with proxy.outage(mishap):
            appending = asyncio.ensure_future(owner.append("a"))
            await asyncio.sleep(2.5)
            assert not appending.done()
            assert store.problem is not None
            assert "waits for the store" in store.problem
            assert proxy.connections <= 2
            assert len(proxy.requests) - before < 30
        await asyncio.wait_for(appending, 10)
        assert store.problem is None
        assert names((await read(store)).segments) == ["start", "claim", "a"]
        await store.close()

    asyncio.run(main())


def test_connections_are_bounded_and_given_back(proxy: FaultProxy) -> None:
    """Two hundred requests at once, slowly answered, share 32 connections; a closed store has none."""
    root = opener(proxy)

    async def main() -> None:
        store = await root()
        await store.put("a/key", b"x" * 1_000)
        proxy.plan = drawn(1, 0.5, (Mishap.DRIPPING,))
        assert await asyncio.gather(*(store.get("a/key") for _ in range(200))) == [b"x" * 1_000] * 200
        assert 2 <= proxy.connections_peak <= 32
        await store.close()
        await asyncio.sleep(0.1)
        assert proxy.connections == 0

    asyncio.run(main())


def test_connections_of_silent_requests_are_given_up(proxy: FaultProxy) -> None:
    """What was abandoned at its deadline is closed, and does not count against the requests that come after."""
    root = opener(proxy)

    async def main() -> None:
        store = await root()
        await store.put("a/key", b"x")
        with proxy.outage(Mishap.SILENT), deadline(store, 0.5):
            given_up = await asyncio.gather(*(store.get("a/key") for _ in range(40)), return_exceptions=True)
        assert {type(error) for error in given_up} == {StoreUnavailableError}
        assert await asyncio.gather(*(store.get("a/key") for _ in range(40))) == [b"x"] * 40
        assert proxy.connections_peak <= 64
        assert proxy.connections <= 32
        await store.close()

    asyncio.run(main())


def test_a_body_that_lost_bytes_unnoticed_is_no_history(proxy: FaultProxy) -> None:
    """Where nothing on the way tells that half is missing, the checksum does; a good answer later is read."""
    root = opener(proxy)

    async def main() -> None:
        store = await root()
        await start(store)
        await Owner.claimed(store, "claim")
        proxy.plan = in_turn(
            [Mishap.SHORTENED] * 2, of=lambda seen: "/log/" in seen.path and "list-type" not in seen.path
        )
        with pytest.raises(CorruptLogError, match="/log/"):
            await read(store)
        proxy.plan = in_turn([])
        assert names((await read(store)).segments) == ["start", "claim"]
        await store.close()

    asyncio.run(main())


def test_a_body_whose_checksum_tells_of_a_fault_is_asked_for_again(proxy: FaultProxy) -> None:
    """It is the way that garbled it, not the store."""
    root = opener(proxy)

    async def main() -> None:
        store = await root()
        await start(store)
        await Owner.claimed(store, "claim")
        proxy.plan = in_turn([Mishap.GARBLED] * 3, of=lambda seen: seen.path.endswith("/000000000001"))
        with pytest.raises(StoreUnavailableError, match="checksum"):
            await store.get(KEYS.segment(RUN, 1))
        assert names((await read(store)).segments) == ["start", "claim"]
        assert proxy.met[Mishap.GARBLED] == 3
        await store.close()

    asyncio.run(main())


def test_the_proxy_changes_nothing_by_itself(seaweedfs_server: S3Server) -> None:
    """A server that checks signatures takes what comes through it; the secret of somebody else does not get in."""
    with fault_proxy(seaweedfs_server) as proxy:
        root = opener(proxy)

        async def main(options: dict[str, Any]) -> object:
            store = await open_store((await root()).url, storage_options=options)
            try:
                await store.put("a/Ä b+c&d=%20", b"x")
                return await store.list_folder("a/")
            finally:
                await store.close()

        assert asyncio.run(main(proxy.server.storage_options)) == ["Ä b+c&d=%20"]
        with pytest.raises(OSError, match="credentials"):
            asyncio.run(main(proxy.server.storage_options | {"secret": "wrong"}))
        assert set(proxy.met) == {Mishap.NONE}
