"""What callers see while the store does not answer: bounded waits, clear errors, and results that are waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

import ray_durable as durable
from ray_durable import command as command_module
from ray_durable import reader as reader_module
from ray_durable.client import Hub
from ray_durable.errors import ClusterConnectionError, InstanceEndedError, StoreUnavailableError
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.explanation import Explanation
from ray_durable.runtime.hub import OpenHub
from ray_durable.storage import Pacing, open_store
from ray_durable.testing import Environment
from ray_durable.testing.spy_store import SpyStore
from tests.client.roots import make_hub
from tests.runtime import flows

PATIENCE_S = 1.2


class Owner:
    """A connection to the owner of an instance that waits for its store, too."""

    def __init__(self) -> None:
        self.told: Explanation | None = None
        self.asked = 0
        self.problem = "waits for the store, 12 s so far: 503"

    async def explain(self, instance_id: str) -> Explanation | None:
        return self.told

    async def describe(self, instance_id: str) -> Mapping[str, Any]:
        return {"problem": self.problem, "store": "file:///root", "store_problem": self.problem}

    async def ask_instance(self, instance_id: str, call: object) -> None:
        self.asked += 1
        raise ClusterConnectionError("No answer after 15 s")

    async def wait_ended(self, instance_id: str, timeout_s: float) -> bool:
        raise ClusterConnectionError("No answer after 15 s")

    async def admit(self, instance_id: str) -> None:
        raise ClusterConnectionError("No answer after 15 s")

    async def repair(self) -> None:
        """Nothing to repair."""

    def close(self) -> None:
        """Nothing was opened."""


class Trouble:
    """A hub whose store answers with 503 while `is_down`; all reads and writes, or writes alone."""

    def __init__(self, root: Path) -> None:
        self.is_down = self.is_full = False
        self.owner = Owner()
        address = HubAddress(root=str(root), hub="default")
        self.hub = Hub(address)
        self.hub._connection = cast(Any, self.owner)
        self.hub._opened = self.hub.run(self._open(address))

    async def _open(self, address: HubAddress) -> OpenHub:
        spy = SpyStore(await open_store(address.root))

        async def fail(operation: str, key: str) -> None:
            if self.is_down or (self.is_full and operation.startswith("put")):
                raise StoreUnavailableError("503 Slow Down", url=spy.url)

        spy.before = fail
        return OpenHub(address, spy, pacing=Pacing(patience_s=PATIENCE_S, max_s=0.1))


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    """A hub with the instance `one`, which is Pending."""
    monkeypatch.setattr(command_module, "STORE_PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr(reader_module, "_LOOK_S", 2 * PATIENCE_S)
    trouble = Trouble(make_hub(tmp_path, instance_id="one"))
    yield trouble
    trouble.is_down = trouble.is_full = False
    trouble.hub.close()


def test_a_start_that_cannot_be_stored_is_given_up_and_its_outcome_unknown(trouble: Trouble) -> None:
    """In bounded time, with the store's own words; repeated later, it is done."""
    for kind in ("is_down", "is_full"):
        setattr(trouble, kind, True)
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"503 Slow Down.*tried for.*unknown"):
            trouble.hub.start(flows.chain, 1, instance_id="two")
        assert time.monotonic() - began_s < 15
        setattr(trouble, kind, False)
    trouble.hub.start(flows.chain, 1, instance_id="two")
    assert trouble.hub.get("two").history()[0].time_us > 0


def test_an_event_that_cannot_be_recorded_is_given_up_with_the_owners_reason(trouble: Trouble) -> None:
    """The disk is full for the owner, and the log can be read: what keeps it is not in the store."""
    trouble.is_full = True
    with pytest.raises(StoreUnavailableError, match=r"'one' has not recorded this.*unknown.*503") as caught:
        trouble.hub.get("one").raise_event("Approval", "yes")
    assert (caught.value.waited_s or 0) >= PATIENCE_S
    assert caught.value.url == "file:///root"
    assert trouble.owner.asked > 1


def test_the_status_tells_what_the_owner_cannot_write(trouble: Trouble) -> None:
    """From the owner where storage has been silent for a while, and wholly from it where storage does not answer."""
    handle = trouble.hub.get("one")
    assert handle.status().problem is None, "it was started a moment ago"
    deadline_s = time.monotonic() + 10
    while handle.status().problem is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert "503" in (handle.status().problem or "")
    known = handle.status()
    trouble.is_down = True
    with pytest.raises(StoreUnavailableError, match="503"):
        handle.status()
    trouble.owner.told = Explanation(status=known)
    assert handle.status() == known
    assert handle.explain() == trouble.owner.told


def test_a_result_is_waited_for_through_an_outage(trouble: Trouble) -> None:
    """With a timeout, it says what is in the way; without one, an outage of many patiences is outlived."""
    handle = trouble.hub.get("one")
    trouble.is_down = True
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match=r"'one' is not known to have ended after 0.3 s.*503"):
        handle.result(0.3)
    assert time.monotonic() - began_s < 15
    results: list[object] = []

    def wait() -> None:
        try:
            results.append(handle.result())
        except durable.DurableError as error:
            results.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(3 * PATIENCE_S)
    assert waiting.is_alive(), results
    trouble.is_down = False
    # Nobody runs it: closing the client ends the wait, as always.
    trouble.hub.close()
    waiting.join(10)
    assert [type(result) for result in results] == [durable.ClosedError]


def test_a_reader_gives_up_too(tmp_path: Path) -> None:
    """A listing at the first trouble is waited for, and at the last it raises."""
    trouble = Trouble(make_hub(tmp_path, instance_id="one"))
    trouble.is_down = True
    with pytest.raises(StoreUnavailableError, match="503"):
        trouble.hub.instances()
    threading.Timer(0.2, lambda: setattr(trouble, "is_down", False)).start()
    assert [one.instance_id for one in trouble.hub.instances()] == ["one"]
    trouble.hub.close()


@durable.orchestrator
async def awaits_go_once(ctx: durable.OrchestrationContext) -> Any:
    return await ctx.wait_for_external_event("Go")


def test_an_event_that_ended_its_instance_may_be_raised_again_by_its_id() -> None:
    """Whoever did not learn of the outcome repeats it; another event, or one without an id, comes too late."""
    with Environment() as env:
        handle = env.start(awaits_go_once)
        handle.raise_event("Go", "on", event_id="first")
        assert handle.result() == "on"
        handle.raise_event("Go", "on", event_id="first")
        for event_id in ("second", None):
            with pytest.raises(InstanceEndedError):
                handle.raise_event("Go", "on", event_id=event_id)
