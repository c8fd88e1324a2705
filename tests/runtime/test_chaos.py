"""Random programs of instances that call each other, with everything that clients can do, and owners dying meanwhile.

Whatever happens, at the end all is over, what was acknowledged has happened, nothing was lost or done twice, and
storage holds what its format says. A failure names its seed: `CHAOS_SEED=n` runs that one alone. `CHAOS_RUNS=n` runs n
seeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import verify
from ray_durable import registry
from ray_durable.engine import (
    Event,
    EventSent,
    ExecutionRewound,
    ExecutionStarted,
    OwnerClaimed,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
)
from ray_durable.errors import DurableError, InstanceEndedError, InstanceNotFoundError
from ray_durable.runtime.lifecycle import (
    Start,
    fork_instance,
    purge_instance,
    restart_instance,
    rewind_instance,
    start_instance,
)
from ray_durable.storage import create_hub, list_executions, list_open
from ray_durable.storage.memory import MemoryStore
from tests.runtime import chaos
from tests.support.skipping_loop import simulate
from tests.support.town import Town
from tests.support.world import SpyStore, never

RUNS = int(os.environ.get("CHAOS_RUNS", "60"))
SEEDS = [int(os.environ["CHAOS_SEED"])] if "CHAOS_SEED" in os.environ else range(RUNS)
BATCH = 20

ROOTS = ["a", "b", "c"]
NAMED = ["n1", "n2"]
WORKS = ["w1", "w2", "w3", "w4"]
DEEDS = ["start", "restart", "rewind", "rewind", "purge", "fork", "terminate", "suspend", "resume", "raise", "break"]
DEEDS += ["owner", "dispatcher"]
GRACE_LONG_S, GRACE_SHORT_S = 10_000_000.0, 30.0
LIFE_S = 300.0


def rounds_of(rng: random.Random, depth: int) -> list[chaos.Plan]:
    return [plan_of(rng, depth) for _ in range(rng.choice([1, 1, 1, 2, 3]))]


def plan_of(rng: random.Random, depth: int) -> chaos.Plan:
    return [step_of(rng, depth) for _ in range(rng.randint(1, 3))]


def step_of(rng: random.Random, depth: int) -> list[Any]:
    kinds = ["work", "work", "map", "sleep", "hear", "tell", "tell"]
    if depth:
        kinds += ["child", "child", "leave", "brief", "try", "gather", "group"]
    kind = rng.choice(kinds)
    match kind:
        case "work":
            return [kind, rng.choice(WORKS)]
        case "map":
            return [kind, [rng.choice(WORKS) for _ in range(rng.randint(1, 5))]]
        case "sleep":
            return [kind, rng.choice([1, 10, 40])]
        case "child" | "leave":
            return [kind, rounds_of(rng, depth - 1), rng.choice([None, None, *NAMED])]
        case "brief":
            return [kind, rounds_of(rng, depth - 1), rng.choice([1, 20])]
        case "try":
            return [kind, plan_of(rng, depth - 1)]
        case "gather" | "group":
            return [kind, plan_of(rng, depth - 1), plan_of(rng, depth - 1)]
        case "hear":
            return [kind, "Note", rng.choice([1, 30])]
        case _:
            return ["tell", *rng.choice([(chaos.LEDGER, "Entry"), (rng.choice([*ROOTS, *NAMED]), "Note")])]


class Chaos:
    """One run. `done` are the request ids of what was acknowledged, by instance."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.is_long = rng.random() < 0.7
        deaths = {rng.randint(1, 1_500): rng.random() < 0.5 for _ in range(rng.choice([0, 3, 10, 40]))}
        self.town = Town(deaths=deaths.items(), grace_s=GRACE_LONG_S if self.is_long else GRACE_SHORT_S)
        self.done: list[tuple[str, str]] = []
        self.told: set[str] = set()
        self.unclear: set[str] = set()
        self.is_dispatcher_kept = True

    async def run(self, folder: Path) -> None:
        town, rng = self.town, self.rng
        chaos.runs.clear()
        chaos.broken.clear()
        chaos.broken.update(rng.sample(WORKS, rng.choice([0, 1, 2])))
        await create_hub(town.objects, town.hub.keys, {"grace_s": town.grace_s})
        await town.start(chaos.keeps_ledger, [], instance_id=chaos.LEDGER)
        for root in ROOTS:
            await self._start(root, town.objects)
        await asyncio.gather(*(self._client() for _ in range(rng.choice([1, 3]))))
        chaos.broken.clear()
        await self._come_to_an_end()
        await self._check()
        self._check_format(folder)
        await town.close()
        assert isinstance(town.objects, MemoryStore)
        town.objects._objects.clear()

    async def _client(self) -> None:
        """Does one thing after the other, without a care."""
        rng, loop = self.rng, asyncio.get_running_loop()
        end_s = loop.time() + rng.choice([20, LIFE_S])
        while loop.time() < end_s:
            await asyncio.sleep(rng.choice([0, 0, 0.1, 2, 15]))
            for _ in range(rng.choice([0, 0, 5, 40])):
                await asyncio.sleep(0)
            with contextlib.suppress(DurableError, TimeoutError):
                await asyncio.wait_for(self._do_something(), 200)

    async def _do_something(self) -> None:
        town, rng = self.town, self.rng
        target = rng.choice([*ROOTS, *NAMED, *await self._known()])
        if target == chaos.LEDGER:
            await self._tell_ledger()
            return
        kind = rng.choice(DEEDS)
        store = self._store_of_client()
        request, now_us, hub = uuid.UUID(int=rng.getrandbits(128)).hex, town.clock.now_us(), town.open_hub(store)
        match kind:
            case "start":
                await self._start(target, store)
            case "restart":
                await restart_instance(hub, target, request, reason="", now_us=now_us)
                self.done.append((target, request))
            case "rewind":
                await rewind_instance(hub, target, request, reason="", now_us=now_us)
                self.done.append((target, request))
            case "purge":
                hub._settings = {"grace_s": town.grace_s}
                await purge_instance(hub, target, now_us=now_us)
            case "fork":
                through = rng.choice([None, None, 1, 3, 6])
                new_id = f"fork{len(self.done)}"
                await fork_instance(hub, target, new_id, request, through=through, now_us=now_us)
                self.done.append((new_id, request))
            case "terminate":
                await town.command(target, "terminate", "chaos", request, rng.random() < 0.7)
                self.done.append((target, request))
            case "suspend" | "resume":
                await town.command(target, kind, "chaos", request)
            case "raise":
                await town.raise_event("Note", request, request, target)
            case "break":
                chaos.broken ^= {rng.choice(WORKS)}
            case "owner":
                await self._another_owner(target)
            case _:
                self.is_dispatcher_kept = False
                town.lose_dispatcher()
                town.start_dispatcher()

    async def _start(self, instance_id: str, store: Any) -> None:
        town, request = self.town, uuid.UUID(int=self.rng.getrandbits(128)).hex
        plan = rounds_of(self.rng, 2)
        start = Start(
            instance_id=instance_id,
            name=chaos.plays.name,
            input=town.hub.codec.encode_call(chaos.plays.calls, (plan,), {}, where="test"),
            request_id=request,
            reference=registry.reference_of(chaos.plays).to_json(),
        )
        await start_instance(town.open_hub(store), start, now_us=town.clock.now_us())
        self.done.append((instance_id, request))

    async def _tell_ledger(self) -> None:
        """Twice, as a client that got no answer does."""
        entry = f"client{self.rng.getrandbits(64)}"
        self.unclear.add(entry)
        for _ in range(2):
            await self.town.raise_event("Entry", entry, entry, chaos.LEDGER)
        self.told.add(entry)

    async def _another_owner(self, instance_id: str) -> None:
        """Two actors of one instance live for a moment; the older one is known to nobody."""
        await self.town.hub.started(instance_id)
        old = self.town.living(instance_id)
        self.town.own(instance_id)
        await asyncio.sleep(self.rng.choice([0, 5]))
        if old is not None:
            await old.kill()

    def _store_of_client(self) -> SpyStore:
        """A client may die, too."""
        store = SpyStore(self.town.objects)
        if self.rng.random() < 0.2:
            last = self.rng.randint(1, 20)

            async def before(operation: str, key: str) -> None:
                if len(store.calls) >= last:
                    await never()

            store.before = before
        return store

    async def _known(self) -> list[str]:
        return [entry.instance_id for entry in await list_open(self.town.objects, self.town.hub.keys)]

    async def _come_to_an_end(self) -> None:
        """Everybody resumes, nothing fails any more; then the ledger is closed."""
        town = self.town
        async with asyncio.timeout(50_000):
            while others := [one for one in await self._known() if one != chaos.LEDGER and await self._exists(one)]:
                for instance_id in others:
                    with contextlib.suppress(DurableError, TimeoutError):
                        if (await town.status(instance_id)).runtime_status == "Suspended":
                            await asyncio.wait_for(town.command(instance_id, "resume", "", uuid.uuid4().hex), 100)
                await asyncio.sleep(5)
            with contextlib.suppress(InstanceEndedError):
                # Recorded, it may be, by an owner that died before its answer.
                await town.raise_event("Entry", "over", "over", chaos.LEDGER)
            await town.ended(chaos.LEDGER)
            while [one for one in await self._known() if await self._exists(one)]:
                await asyncio.sleep(5)

    async def _exists(self, instance_id: str) -> bool:
        """Not so for a start whose client died between its two writes."""
        return (await list_executions(self.town.objects, self.town.hub.keys, instance_id)).latest is not None

    async def _check(self) -> None:
        histories = await self._histories()
        if self.is_long:
            requests = {
                (instance_id, getattr(event, "request_id", ""))
                for (instance_id, _), history in histories.items()
                for event in history
            }
            assert set(self.done) <= requests, "acknowledged, and not recorded"
        self._check_entries(histories, await self.town.result(chaos.LEDGER))
        for history in histories.values():
            self._check_activities(history)

    async def _histories(self) -> dict[tuple[str, int], list[Event]]:
        """Of all executions that are in storage, purged ones too."""
        hub, found = self.town.hub, {}
        prefix = f"{hub.keys.hub}/instances/"
        assert isinstance(self.town.objects, MemoryStore)
        for key in [key for key in self.town.objects._objects if key.startswith(prefix)]:
            if not key.rpartition("/")[2].isdigit():
                continue
            data = await self.town.objects.get(key)
            if data is None:
                continue  # removed just now
            instance_id = json.loads(data.split(b"\n")[0])["instance"]
            number = int(key.rpartition("/")[2])
            with contextlib.suppress(InstanceNotFoundError):
                found[instance_id, number] = (await hub.read_log(instance_id, number))[1]
        return found

    def _check_entries(self, histories: dict[tuple[str, int], list[Event]], entries: list[str]) -> None:
        """What was sent to the ledger has arrived once."""
        doubled = [entry for entry, count in Counter(entries).items() if count > 1]
        assert not doubled, f"taken twice: {doubled}"
        assert self.told <= set(entries), "acknowledged, and lost"
        sent = {
            event.value.bytes.decode().strip('"')
            for history in histories.values()
            for event in own_part(history)
            if isinstance(event, EventSent) and event.instance == chaos.LEDGER
        }
        lost = sent - set(entries)
        assert not lost, f"sent, and lost: {lost}"
        if self.is_long:
            assert set(entries) <= sent | self.unclear, "from nobody"

    def _check_activities(self, history: list[Event]) -> None:
        """Each call was executed once, unless its owner had to submit it again."""
        started = history[0]
        assert isinstance(started, ExecutionStarted)
        submitted = Counter(
            task for event in own_part(history) if isinstance(event, OwnerClaimed) for task, _ in event.attempts
        )
        finished = {event.task for event in own_part(history) if isinstance(event, TaskCompleted | TaskFailed)}
        for event in history:
            if not isinstance(event, TaskScheduled):
                continue
            count = chaos.runs[f"{started.run}:{event.number}"]
            is_own = started.author_of(event.number)[1] == started.run and event in own_part(history)
            assert count <= is_own + submitted[event.number], f"{event} was executed {count} times"
            if event.number in finished and is_own:
                assert count >= 1

    def _check_format(self, folder: Path) -> None:
        assert isinstance(self.town.objects, MemoryStore)
        for key, data in self.town.objects._objects.items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        report = verify.verify_hub(folder / "hub", now_us=self.town.clock.now_us())
        # A client may have died in a start, and the hub was stopped in the middle of whatever it removes.
        findings = [str(one) for one in report.findings if one.rule not in ("orphan", "removal", "run")]
        assert not findings, findings


def own_part(history: list[Event]) -> list[Event]:
    """What the execution made itself, not what it copied."""
    copied = [place for place, event in enumerate(history) if isinstance(event, ExecutionRewound)]
    return history[copied[-1] :] if copied else history


@pytest.mark.parametrize("batch", range(0, len(SEEDS), BATCH))
def test_whatever_happens_nothing_is_lost(batch: int, tmp_path: Path) -> None:
    """All is over in the end, and what was acknowledged has happened, once."""
    for seed in SEEDS[batch : batch + BATCH]:

        async def run(seed: int = seed) -> None:
            town_run = Chaos(seed)
            await town_run.run(tmp_path / str(seed))

        try:
            simulate(run())
        except BaseException:
            print(f"CHAOS_SEED={seed}")
            raise
