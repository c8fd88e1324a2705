"""Where a run keeps its hub: in a local folder, or in a bucket of a real S3 server that runs for it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.s3_server import S3Server, seaweedfs

__all__ = ["Root", "local_root", "s3_root"]

_OPTIONS_VARIABLE = "RAY_DURABLE_CHAOS_S3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A root, and how processes reach it. `copied` gives a local folder with what it holds."""

    url: str
    copied: Callable[[Path], Path]
    options_source: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def local_root(folder: Path) -> Iterator[Root]:
    """A folder below `folder`."""
    yield Root(url=str(folder / "root"), copied=lambda _: folder / "root")


@contextlib.contextmanager
def s3_root() -> Iterator[Root]:
    """A bucket of a SeaweedFS that ends with the context."""
    with seaweedfs() as server:
        bucket = server.create_bucket()
        yield Root(
            url=f"s3://{bucket}/root",
            copied=lambda folder: _copy(server, bucket, folder / "copy"),
            options_source=f"env:{_OPTIONS_VARIABLE}",
            environment={_OPTIONS_VARIABLE: json.dumps(server.storage_options)},
        )


def _copy(server: S3Server, bucket: str, folder: Path) -> Path:
    """All objects of a bucket as files."""
    client: Any = server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            path = folder / entry["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())
    return folder / "root"
