"""A signed hub on a store that others can write: code of a script runs there, and nothing that others wrote."""

from __future__ import annotations

import json
import pickle
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.storage import HubKeys
from tests.cluster.harness import Terminal, executions, wait_for_executions, wait_until
from tests.support.s3_server import moto
from tests.support.segments import parts_of, remade

OPTIONS_VARIABLE = "RAY_DURABLE_TEST_S3"


def test_functions_of_a_script_run_on_a_signed_root(
    terminals: Callable[..., Terminal],
    ray_init: dict[str, Any],
    ray_folder: Path,
    instance_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Orchestrator, closure and types of `__main__` work on S3 with a key, over the death of script and cluster; an
    instance whose log somebody else wrote waits and says why; the key is nowhere but in its file."""
    key, key_file, forged_id = secrets.token_hex(32), tmp_path / "key", f"{instance_id}-forged"
    key_file.write_text(f"# of the test\n{key}\n")
    with moto() as server:
        bucket = server.create_bucket()
        client: Any = server.client()
        monkeypatch.setenv(OPTIONS_VARIABLE, json.dumps(server.storage_options))
        hub = {
            "root": f"s3://{bucket}/hub",
            "storage_options": f"env:{OPTIONS_VARIABLE}",
            "signing_key": f"file:{key_file}",
        }
        first = terminals("first")
        first.ask("connect", **hub, ray_init=ray_init)
        for one in (instance_id, forged_id):
            first.ask("buy", item="lamp", count=2, instance_id=one)
        for one in (instance_id, forged_id):
            wait_for_executions(one, 1)
        processes = first.look()
        assert not [pid for pid in processes if key.encode() in _told_of(pid)]
        first.kill()

        place = f"hub/{HubKeys('default').execution(forged_id, 1)}"
        header, lines, sections = parts_of(client.get_object(Bucket=bucket, Key=place)["Body"].read())
        header.pop("mac")
        client.put_object(Bucket=bucket, Key=place, Body=remade(header, lines, sections))

        second = terminals("second")
        second.ask("connect", **hub, ray_init=ray_init)
        second.ask("approve", item="bulb", count=1, instance_id=instance_id)
        assert second.ask("receipt", instance_id=instance_id) == [True, "lamp+bulb", 3 * 7 * 3]
        assert len(executions(instance_id)) == 2

        with durable.browse(hub["root"], storage_options=hub["storage_options"]) as reader:
            assert reader.get(instance_id).status().runtime_status == "Completed"
            problem = wait_until(lambda: reader.get(forged_id).status().problem, "the forged log is refused")
            assert "not signed, and this hub is" in problem
        assert len(executions(forged_id)) == 1
        with durable.browse(**hub) as reader:
            with pytest.raises(durable.CorruptLogError, match="not signed"):
                reader.get(forged_id).history()
            assert key not in repr(reader) + repr(reader.address) + str(pickle.dumps(reader.address))

        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        stored = [client.get_object(Bucket=bucket, Key=one["Key"]) for page in pages for one in page["Contents"]]
        assert not [one for one in stored if key.encode() in one["Body"].read()]
    told = [path for path in ray_folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert not told, "the key is in Ray's files"
    assert not [one for one in (first, second) if key.encode() in one.output.read_bytes()]


def _told_of(pid: int) -> bytes:
    """What anybody on the machine, or of the user, sees of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
