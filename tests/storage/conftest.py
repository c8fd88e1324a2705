"""Servers that all storage tests share. Each starts when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.s3_server import S3Server, moto, seaweedfs


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """moto, in this process."""
    with moto() as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs_server() -> Iterator[S3Server]:
    """A SeaweedFS of its own."""
    with seaweedfs() as server:
        yield server
