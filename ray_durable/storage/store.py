"""What the log needs of an object store: a small asynchronous interface, and how to open one by URL.

The one demanding operation is `put_if_absent`: of any number of writers of a key, in any processes, exactly one gets
True, and a reader sees either nothing or all of its bytes. When that returns, the object is durable.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from ray_durable.errors import ConfigurationError, CorruptLogError, UnsupportedStoreError

__all__ = ["OBJECT_BYTES_MAX", "ObjectStore", "open_store", "probe", "too_large"]

OBJECT_BYTES_MAX = 64 * 1024 * 1024
"""More than the log's objects ever have. Whoever finds more has not found one of them, and does not read it."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}


@runtime_checkable
class ObjectStore(Protocol):
    """An object store below one root. Keys are relative, with `/` between names.

    Every method raises StoreUnavailableError when the outcome is unclear or may be better next time, StoreError when
    the store refuses for good. A store belongs to the event loop that opened it.
    """

    url: str
    """Where it is; holds no secret."""

    private_path: Path | None
    """The local folder that is the root; None for stores that are not on this machine's disk."""

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object. True: it was created by this call for certain. False: the key exists. `data` not empty."""

    async def put(self, key: str, data: bytes) -> None:
        """Create or replace an object, atomically."""

    async def get(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """The object's bytes; None if there is none.

        Raises:
            CorruptLogError: it is larger than `bytes_max`. No more than that was read.
        """

    async def list_folder(self, folder: str) -> list[str]:
        """Names directly below `folder` (which ends with a slash), sorted; folders among them end with a slash."""

    async def list_tree(self, folder: str) -> list[str]:
        """Names of all objects below `folder` (which ends with a slash), at any depth, relative to it, sorted."""

    async def delete_many(self, keys: list[str]) -> None:
        """Remove objects; missing ones are no error. A key that ends with a slash is a folder: it goes if empty."""

    async def close(self) -> None:
        """Give connections back."""


def too_large(key: str, bytes_max: int) -> CorruptLogError:
    """The error of an object that is larger than what may lie at its key."""
    return CorruptLogError(
        f"{key} is damaged: it has more than the {bytes_max:,} bytes that may lie there, so it was not read. Restore "
        "the object from a backup or a version of the bucket, and find out who can write there",
        key=key,
    )


async def open_store(url: str, *, storage_options: dict[str, Any] | None = None) -> ObjectStore:
    """Open the store at `url`: a path, file://, memory://, or what an installed fsspec file system serves (s3://, ...).

    Raises:
        ConfigurationError: an unknown scheme, one whose package is not installed, or a URL that names no root.
        UnsupportedStoreError: a store that is known to have no atomic create-if-absent.
        StoreError: the root cannot be used.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("", "file") or len(scheme) == 1:
        from ray_durable.storage.local import LocalStore

        return LocalStore.open(url)
    if scheme == "memory":
        from ray_durable.storage.memory import MemoryStore

        return MemoryStore.open(url)
    from ray_durable.storage.remote import RemoteStore

    try:
        return await RemoteStore.open(url, storage_options or {})
    except ConfigurationError:
        raise
    except ImportError as missing:
        extra = _EXTRAS.get(scheme)
        advice = f"pip install 'ray_durable[{extra}]'" if extra else f"install the package that serves {scheme}://"
        raise ConfigurationError(
            f"{scheme}:// needs a package that is not installed ({missing}): {advice}"
        ) from missing
    except ValueError as unknown:
        # The URL is not repeated: it may hold a secret in the wrong place.
        raise ConfigurationError(
            f"A {scheme}:// root cannot be opened ({unknown}): use a local path, s3://, gs:// or az://"
        ) from unknown


async def probe(store: ObjectStore, key: str) -> None:
    """Find out whether `store` has an atomic create-if-absent: write one object twice; the second must be refused.

    `key` must be new. A store that loses races only cannot be found out this way.

    Raises:
        UnsupportedStoreError: the second write was taken, or the first one is not there.
        StoreError: the root cannot be written.
    """
    first, second = secrets.token_bytes(32), secrets.token_bytes(32)
    await store.put_if_absent(key, first)
    created_again = await store.put_if_absent(key, second)
    found = await store.get(key)
    await store.delete_many([key])
    if found is None:
        raise UnsupportedStoreError(
            f"{store.url} took an object and does not give it back: use a store with read-after-write", url=store.url
        )
    # A first write that was resent by the client reports a conflict with itself; its bytes tell.
    if created_again or found != first:
        raise UnsupportedStoreError(
            f"{store.url} overwrote an object that was to be created only if absent, so two owners of a log could "
            "overwrite each other: use a local root, S3 or a compatible store that honours If-None-Match, GCS or Azure",
            url=store.url,
        )
