"""A store that does not answer is asked again, visibly and for as long as there is patience."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
from collections.abc import Awaitable, Callable

import pytest

from ray_durable.errors import StoreError, StoreUnavailableError
from ray_durable.storage import ObjectStore, Pacing, PatientStore, open_store
from ray_durable.testing.spy_store import SpyStore
from ray_durable.testing.virtual_time import simulated

_numbers = itertools.count()

OPERATIONS: dict[str, Callable[[ObjectStore], Awaitable[object]]] = {
    "put_if_absent": lambda store: store.put_if_absent("a/key", b"x"),
    "put": lambda store: store.put("a/key", b"x"),
    "get": lambda store: store.get("a/key"),
    "list": lambda store: store.list_folder("a/"),
    "delete": lambda store: store.delete_many(["a/key"]),
}


async def spy() -> SpyStore:
    """A store in memory that can fail."""
    return SpyStore(await open_store(f"memory://patience-{next(_numbers)}"))


class Outage:
    """A hook that fails every request for so many seconds of the loop."""

    def __init__(self, seconds: float, error: type[StoreError] = StoreUnavailableError) -> None:
        self.end_s = asyncio.get_running_loop().time() + seconds
        self.error = error

    async def __call__(self, operation: str, key: str) -> None:
        if asyncio.get_running_loop().time() < self.end_s:
            raise self.error(f"503 for {key}", url="memory://")


@simulated
async def test_every_request_outlasts_an_hour_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """All kinds wait side by side; the log has one line at the beginning and one at the end; then nothing is left."""
    inner = await spy()
    inner.before = Outage(3_600)
    store = PatientStore(inner, who="instance one")
    with caplog.at_level(logging.INFO, "ray_durable.storage.patience"):
        requests = [asyncio.ensure_future(operation(store)) for operation in OPERATIONS.values()]
        await asyncio.sleep(1_800)
        assert store.problem is not None
        assert "503 for a/" in store.problem
        assert not any(request.done() for request in requests)
        await asyncio.gather(*requests)
    assert store.problem is None
    first, last = [record.getMessage() for record in caplog.records]
    assert first.startswith("instance one waits for its store: 503")
    assert "instance one waited 36" in last
    # 3,600 s at 5 to 10 s apart, for each.
    assert len(inner.calls) < len(OPERATIONS) * 800


@simulated
async def test_a_hiccup_is_nobodys_business(caplog: pytest.LogCaptureFixture) -> None:
    """It is waited out, and not told."""
    inner = await spy()
    inner.before = Outage(0.5)
    store = PatientStore(inner)
    request = asyncio.ensure_future(store.put_if_absent("a/key", b"x"))
    await asyncio.sleep(0.4)
    assert store.problem is None
    assert await request is True
    assert len(inner.calls) > 2
    assert caplog.records == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_patience_has_an_end_where_it_is_given_one(name: str) -> None:
    """The error says for how long it was tried and what that means; whoever persists above does not begin anew."""

    @simulated
    async def scenario() -> None:
        inner = await spy()
        inner.before = Outage(3_600)
        store = PatientStore(inner, Pacing(patience_s=30))
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(StoreUnavailableError, match=r"503 .*given up here") as caught:
            await Pacing().persist(lambda: OPERATIONS[name](store))
        assert asyncio.get_running_loop().time() - began_s <= 30
        assert 15 <= (caught.value.waited_s or 0) <= 30
        assert pickle.loads(pickle.dumps(caught.value)).waited_s == caught.value.waited_s
        assert store.problem is None

    scenario()


@simulated
async def test_what_is_refused_for_good_passes_at_once() -> None:
    """Nobody waits for a missing right."""
    inner = await spy()
    inner.before = Outage(3_600, StoreError)
    store = PatientStore(inner)
    for operation in OPERATIONS.values():
        with pytest.raises(StoreError):
            await operation(store)
    assert len(inner.calls) == len(OPERATIONS)


@simulated
async def test_who_does_not_want_to_wait_any_more_leaves_nothing_behind() -> None:
    """A cancelled request is no problem of the store's."""
    inner = await spy()
    inner.before = Outage(3_600)
    store = PatientStore(inner)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(100):
            await store.get("a/key")
    assert store.problem is None
