"""The contract on stores that only their owners can reach: real services, with credentials from the environment.

Each variable names a root, such as `RAY_DURABLE_TEST_GCS_ROOT=gs://bucket/folder`; one of the same name with OPTIONS
for ROOT may hold storage options as JSON. Without the variable its tests are skipped. Each works in a new folder below
the root, and removes what it wrote.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Iterator

import pytest

from ray_durable.storage import ObjectStore, open_store
from tests.storage.store_contract import OpenRoot, StoreContract


class OwnStoreContract(StoreContract):
    """The contract below the root that the variable `root_variable` names."""

    races = 2
    root_variable: str

    @pytest.fixture
    def root(self) -> Iterator[OpenRoot]:
        url = os.environ.get(self.root_variable)
        if url is None:
            pytest.skip(f"{self.root_variable} names no root")
        options = json.loads(os.environ.get(self.root_variable.replace("_ROOT", "_OPTIONS"), "{}"))
        folder = f"{url.rstrip('/')}/contract-{secrets.token_hex(6)}"

        async def open_root() -> ObjectStore:
            return await open_store(folder, storage_options=options)

        yield open_root
        asyncio.run(_remove_all(open_root))


class TestOwnS3(OwnStoreContract):
    """Amazon S3, or a service that speaks its language."""

    root_variable = "RAY_DURABLE_TEST_S3_ROOT"


class TestOwnGCS(OwnStoreContract):
    """Google Cloud Storage."""

    root_variable = "RAY_DURABLE_TEST_GCS_ROOT"


class TestOwnAzure(OwnStoreContract):
    """Azure Blob Storage."""

    root_variable = "RAY_DURABLE_TEST_AZURE_ROOT"


async def _remove_all(open_root: OpenRoot) -> None:
    store = await open_root()

    async def remove(folder: str) -> None:
        names = await store.list_folder(folder)
        await store.delete_many([f"{folder}{name}" for name in names if not name.endswith("/")])
        for name in names:
            if name.endswith("/"):
                await remove(f"{folder}{name}")

    # The contract's own folders; a root itself cannot be listed.
    for folder in ("a/", "f/", "f0/", "ff/", "flat/", "folder/", "hub/", "many/", "race/"):
        await remove(folder)
    await store.delete_many(["f0", "g"])
    await store.close()
