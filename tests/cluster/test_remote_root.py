"""A root on a real S3 server: end to end, with kills, and without a trace of the secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from tests.cluster.harness import Terminal, TerminalError, executions, kill, recorded_keys, repeated, wait_until
from tests.support.s3_server import S3Server

OPTIONS_VARIABLE = "RAY_DURABLE_TEST_S3"


@pytest.mark.parametrize("way", ["options", "environment"])
def test_pipeline_on_s3(
    way: str,
    server: S3Server,
    terminals: Callable[..., Terminal],
    ray_init: dict[str, Any],
    ray_folder: Path,
    instance_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Instances run, are killed and go on; code of a script is refused with the ways out; the secret stays secret.

    The credentials are storage options, or what the provider's own chain finds in the environment.
    """
    bucket = server.create_bucket()
    root = f"s3://{bucket}/hub"
    monkeypatch.setenv(OPTIONS_VARIABLE, json.dumps(server.storage_options))
    options = server.storage_options if way == "options" else None
    terminal = terminals("terminal", **({} if way == "options" else server.environment))
    terminal.ask("connect", root=root, storage_options=options, ray_init=ray_init)
    with durable.browse(root, storage_options=f"env:{OPTIONS_VARIABLE}") as reader:
        handle = reader.get(instance_id)
        terminal.ask("start", name="steps_then_approval", args=[60], instance_id=instance_id)
        wait_until(lambda: len(executions(instance_id)) > 20, "it is on its way")
        owner = handle.owner()
        assert owner is not None
        kill(owner.pid)
        terminal.ask("raise_event", instance_id=instance_id, name="Approval", value="yes")
        assert terminal.ask("result", instance_id=instance_id) == "yes after 60"
        assert sum(repeated(instance_id).values()) <= 2, "one step was in flight"
        assert len(recorded_keys(reader, instance_id)) == 60
        terminal.ask("start", name="spread_by_map", args=[500], instance_id=f"{instance_id}-map")
        assert terminal.ask("result", instance_id=f"{instance_id}-map") == 500 * 499

    with pytest.raises(TerminalError) as caught:
        terminal.ask("buy", item="lamp", count=1, instance_id=f"{instance_id}-buy")
    assert caught.value.name == "SerializationError"
    assert "private local root" in caught.value.text
    assert "module" in caught.value.text

    secret = server.storage_options["secret"].encode()
    for pid in terminal.look():
        assert secret not in _command_line(pid)
    assert not [str(path) for path in ray_folder.rglob("*") if path.is_file() and secret in path.read_bytes()]
    client: Any = server.client()
    keys = [
        entry["Key"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        for entry in page["Contents"]
    ]
    assert any("/log/" in key for key in keys)
    assert not [key for key in keys if secret in client.get_object(Bucket=bucket, Key=key)["Body"].read()]
    assert secret not in terminal.output.read_bytes()


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
