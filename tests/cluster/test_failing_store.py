"""Instances whose store fails: a server behind a network that loses everything, and a disk that fills.

No process is lost here, so every activity runs exactly once: whatever runs twice was doubled by the store's trouble.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.util

import ray_durable as durable
from ray_durable import command, reader
from ray_durable.errors import StoreError, StoreUnavailableError
from tests.cluster import flows
from tests.cluster.harness import executions, recorded_keys, repeated, wait_until
from tests.support.disks import disk, fill, relieve, remount
from tests.support.fault_proxy import Mishap, Seen, drawn, fault_proxy
from tests.support.s3_server import S3Server

_VERIFY = Path(__file__).parents[2] / "storage" / "verify.py"

_STALE_S = 16.0
"""After so long without a renewal a lease is nobody's."""

_PATIENCE_S = 10.0

_MISHAPS = (
    *(Mishap.SLOW_DOWN, Mishap.FAILED, Mishap.CONFLICT, Mishap.CUT, Mishap.LATE, Mishap.TWICE),
    *(Mishap.APPLIED_FAILED, Mishap.APPLIED_CUT, Mishap.DRIPPING, Mishap.BROKEN_BODY, Mishap.CUT_SHORT),
)

Connect = Callable[..., durable.Hub]


@pytest.fixture
def connect(hub: durable.Hub) -> Iterator[Connect]:
    """Connects further hubs, on the Ray that is there; what they run ends with the test."""
    connected: list[durable.Hub] = []

    def connect(root: str | Path, **options: Any) -> durable.Hub:
        connected.append(durable.connect(root, **options))
        return connected[-1]

    yield connect
    for one in connected:
        one.close()
        while names := _actors(one):
            # The supervisor first: it would make the others again.
            for name in sorted(names, key=lambda name: name != "supervisor"):
                try:
                    ray.kill(ray.get_actor(name, namespace=one.address.namespace))
                except ValueError:
                    continue


def _actors(hub: durable.Hub) -> list[str]:
    listed = ray.util.list_named_actors(all_namespaces=True)
    return [entry["name"] for entry in listed if entry["namespace"] == hub.address.namespace]


def start_all(hub: durable.Hub, prefix: str) -> dict[str, tuple[durable.Handle[Any], Any]]:
    """An instance of each kind, by kind, with the result that it must have."""
    return {
        "chain": (hub.start(flows.marches_past_a_gate, 8, instance_id=f"{prefix}-chain"), 16),
        "gather": (hub.start(flows.spread, 40, instance_id=f"{prefix}-gather"), 40 * 39),
        "map": (hub.start(flows.spread_by_map, 200, instance_id=f"{prefix}-map"), 200 * 199),
        "timer": (hub.start(flows.naps, 4, instance_id=f"{prefix}-timer"), None),
        "event": (hub.start(flows.asks_approval, instance_id=f"{prefix}-event"), "yes"),
        "family": (hub.start(flows.family, 2, 1, instance_id=f"{prefix}-family"), [1, 1]),
    }


def raise_all(hub: durable.Hub, prefix: str) -> None:
    """The events that they wait for; raised before or after does not matter."""
    for instance_id, name, value in (
        (f"{prefix}-event", "Approval", "yes"),
        (f"{prefix}-family-0", "Next", None),
        (f"{prefix}-family-1", "Next", None),
    ):
        wait_until(lambda i=instance_id: any(one.instance_id == i for one in hub.instances()), instance_id)  # type: ignore[misc]
        hub.get(instance_id).raise_event(name, value, event_id=f"for {instance_id}")


def require_all(hub: durable.Hub, started: dict[str, tuple[durable.Handle[Any], Any]]) -> None:
    """Each has its result; each activity ran once, and is recorded."""
    for kind, (handle, expected) in started.items():
        result = handle.result(90)
        assert expected is None or result == expected, kind
        assert repeated(handle.instance_id) == {}, kind
        assert {one.key for one in executions(handle.instance_id)} == recorded_keys(hub, handle.instance_id), kind


def require_whole(root: Path) -> None:
    """The independent checker finds nothing."""
    checked = subprocess.run([sys.executable, str(_VERIFY), str(root)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def download(server: S3Server, bucket: str, folder: Path) -> None:
    """A bucket as a folder, by a client that knows nothing of us."""
    client: Any = server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page["Contents"]:
            path = folder / entry["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())


def lines_of_logs(folder: Path, text: str) -> list[str]:
    """Lines with this text that processes of Ray have written."""
    paths = [path for path in folder.rglob("*.err") if path.is_file()]
    return [line for path in paths for line in path.read_text(errors="replace").splitlines() if text in line]


@pytest.mark.timeout(240)
def test_instances_live_through_a_failing_network_and_an_outage(
    connect: Connect, server: S3Server, tmp_path: Path, ray_folder: Path, go: Callable[[str], None]
) -> None:
    """A tenth of all requests fails, and then all of them for longer than every timeout: they wait visibly and go on.

    No actor is lost, nobody takes the hub over, and the store is whole at the end.
    """
    prefix = "network"
    with fault_proxy(server) as proxy:
        bucket = server.create_bucket()
        options = tmp_path / "options.json"
        timeouts = {"config_kwargs": {"connect_timeout": 2, "read_timeout": 2}}
        options.write_text(json.dumps({**proxy.server.storage_options, **timeouts}))
        root = f"s3://{bucket}/root"
        hub = connect(root, storage_options=f"file:{options}")
        proxy.plan = trouble = drawn(7, 0.1, _MISHAPS)
        started = start_all(hub, prefix)
        chain = started["chain"][0]
        wait_until(lambda: len(executions(chain.instance_id)) == 9, "the chain is at its gate")
        owner = chain.owner()
        with proxy.outage(Mishap.SILENT):
            began_s = time.monotonic()
            go(chain.instance_id)
            wait_until(
                lambda: "waits for the store" in (chain.status().problem or ""), "the status tells", timeout_s=40
            )
            assert "waits for the store" in str(chain.explain())
            with pytest.raises(TimeoutError, match="waits for the store"):
                chain.result(0.5)
            wait_until(lambda: time.monotonic() - began_s > _STALE_S, "the lease is stale")
            assert len(executions(chain.instance_id)) == 9, "nothing goes on that is not stored"
            proxy.plan = lambda seen: Mishap.FAILED if _is_renewal(seen) else trouble(seen)
        # The lease is as old as the outage, and its holder is alive.
        second = connect(root, storage_options=f"file:{options}")
        proxy.plan = trouble
        raise_all(second, prefix)
        require_all(second, started)
        assert chain.owner() == owner
        assert sum(proxy.met[mishap] for mishap in _MISHAPS) > 10
        assert all(met > 0 for met in (proxy.met[Mishap.SILENT], proxy.met[Mishap.APPLIED_CUT], proxy.met[Mishap.LATE]))
        told = lines_of_logs(ray_folder, f"instance {chain.instance_id} waits for its store")
        assert 1 <= len(told) <= 3, "once for each outage, not for each try"
        proxy.plan = drawn(7, 0, _MISHAPS)
        wait_until(lambda: not _open_entries(server, bucket), "all have left the open set")
        copy = tmp_path / "copy"
        download(server, bucket, copy)
    assert [path.name for path in (copy / "root/default/lease/epochs").iterdir()] == [f"{1:012}"]
    require_whole(copy / "root")


def _is_renewal(seen: Seen) -> bool:
    return seen.method == "PUT" and seen.path.endswith("/lease/holder")


def _open_entries(server: S3Server, bucket: str) -> list[str]:
    client: Any = server.client()
    listed = client.list_objects_v2(Bucket=bucket, Prefix="root/default/index/open/")
    return [entry["Key"] for entry in listed.get("Contents", [])]


@pytest.mark.timeout(240)
def test_instances_live_through_a_full_and_a_read_only_disk(
    connect: Connect, tmp_path: Path, go: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls end with a clear error in bounded time, nothing is acknowledged, and all goes on once there is space."""
    prefix = "disk"
    # Of calls, which are this process's. What runs has no end to its patience.
    for module in (command, reader):
        monkeypatch.setattr(module, "STORE_PATIENCE_S", _PATIENCE_S)
    with disk(tmp_path / "disk", size="8m") as folder:
        root = folder / "root"
        hub = connect(root)
        started = start_all(hub, prefix)
        chain, event = started["chain"][0], started["event"][0]
        wait_until(lambda: len(executions(chain.instance_id)) == 9, "the chain is at its gate")
        wait_until(lambda: event.owner() is not None, "there is somebody to take the event")
        owner = chain.owner()
        fill(folder)
        began_s = time.monotonic()
        go(chain.instance_id)
        with ThreadPoolExecutor(3) as pool:
            starting = pool.submit(hub.start, flows.march, 1, instance_id=f"{prefix}-late")
            raising = pool.submit(event.raise_event, "Approval", "yes", event_id=f"for {event.instance_id}")
            wait_until(lambda: "no space is left" in (chain.status().problem or ""), "the status tells")
            # Whatever was being written gave its space back.
            fill(folder)
            told = str(chain.explain())
            assert "no space is left on its disk: free some" in told
            assert str(root) in told
            for call in (starting, raising):
                with pytest.raises(StoreUnavailableError, match=r"no space is left") as caught:
                    call.result(80)
                assert str(root) in str(caught.value)
                assert "unknown" in str(caught.value)
        assert time.monotonic() - began_s < 60
        assert len(executions(chain.instance_id)) == 9, "nothing goes on that is not stored"
        relieve(folder)
        # Those that were given up may have happened since.
        raise_all(hub, prefix)
        started["late"] = hub.start(flows.march, 1, instance_id=f"{prefix}-late"), 1
        require_all(hub, started)
        assert chain.owner() == owner

        second = hub.start(flows.asks_approval, instance_id=f"{prefix}-second")
        wait_until(lambda: second.owner() is not None, "it has begun")
        remount(folder, "ro")
        with pytest.raises(StoreError, match="read-only: mount it for writing") as refused:
            hub.start(flows.march, 1, instance_id=f"{prefix}-never")
        assert not isinstance(refused.value, StoreUnavailableError), "nobody waits for that in silence"
        with pytest.raises(StoreUnavailableError, match=r"Outcome unknown.*read-only"):
            second.raise_event("Approval", "yes", event_id="second")
        wait_until(lambda: "read-only" in (second.status().problem or ""), "the status tells")
        remount(folder, "rw")
        second.raise_event("Approval", "yes", event_id="second")
        assert second.result(60) == "yes"
        wait_until(lambda: not any((root / "default/index/open").iterdir()), "all have left the open set")
        assert not [path for path in root.rglob(".*") if path.is_file()], "no unfinished file is left"
        assert [path.name for path in (root / "default/lease/epochs").iterdir()] == [f"{1:012}"]
        require_whole(root)
