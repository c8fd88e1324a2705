"""Objects in S3, Google Cloud Storage, Azure Blob Storage, or whatever else an asynchronous fsspec file system serves.

fsspec's exclusive create is a promise of the file system behind it: whoever opens a root probes it (`store.probe`).
File systems that cannot make the promise at all, because they work synchronously or know no `mode`, are refused here.

Nothing is retried for long: clients' own retries are turned off where they can be, and every request has a deadline, so
that the caller decides when the same bytes are sent again. Large objects are read in parts, each with a deadline of its
own, so that a slow line reads them too. Connections are bounded. Nothing is cached. The secret is only in the file
system: not in `url`, and struck out of errors. A store must not cross to another process; give it the URL and a
credential source.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
from collections.abc import Awaitable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import AsyncFileSystem

from ray_durable.errors import ConfigurationError, StoreError, StoreUnavailableError, UnsupportedStoreError
from ray_durable.storage.store import OBJECT_BYTES_MAX, too_large

__all__ = ["RemoteStore"]

T = TypeVar("T")

_DEADLINE_S = 20.0
_SLOWEST_BYTES_PER_S = 250_000
_PART_BYTES = 16 * 1024 * 1024
_DELETES_AT_ONCE = 1_000
_REQUESTS_AT_ONCE = 32
_LISTED_AT_ONCE = 100
"""A page has up to 1,000 entries, and those of one come at once."""

_S3_CLIENT = {
    "retries": {"total_max_attempts": 1},
    "connect_timeout": 10,
    "read_timeout": _DEADLINE_S,
    "max_pool_connections": _REQUESTS_AT_ONCE,
}
"""botocore's settings: it sends each request once."""

_SECRET_WORDS = ("secret", "token", "password", "credential", "connection", "key", "sas")
_PASSING_STATUS = frozenset({408, 409, 425, 429})
_NO_CONTAINER_CODES = frozenset({"NoSuchBucket", "ContainerNotFound"})
_PASSING_CODES = frozenset({"RequestTimeout", "SlowDown", "OperationAborted", "ConditionalRequestConflict"})
_PASSING_ERRORS = frozenset(
    {
        # Of botocore, aiohttp, azure and google: the request or its answer was lost. By name, so that none is imported.
        "HTTPClientError",
        "ConnectionError",
        "ResponseParserError",
        "ClientConnectionError",
        "ClientPayloadError",
        "IncompleteReadError",
        "ServiceRequestError",
        "ServiceResponseError",
        "ServerDisconnectedError",
        "TransportError",
        # Of botocore: the bytes that came are not those that the store has.
        "FlexibleChecksumError",
    }
)


class RemoteStore:
    """`ObjectStore` over an asynchronous fsspec file system. Made by `open`."""

    private_path: Path | None = None
    deadline_s = _DEADLINE_S
    slowest_bytes_per_s = _SLOWEST_BYTES_PER_S
    part_bytes = _PART_BYTES

    def __init__(self, scheme: str, root: str, filesystem: AsyncFileSystem, client: object, secrets: list[str]) -> None:
        self.url = f"{scheme}://{root}"
        self._scheme = scheme
        self._root = root
        self._filesystem = filesystem
        self._client = client
        self._secrets = secrets
        self._is_s3 = scheme in ("s3", "s3a")

    @classmethod
    async def open(cls, url: str, storage_options: Mapping[str, Any]) -> RemoteStore:
        """The store below `url`, whose file system gets `storage_options`. Sends no request.

        Raises:
            ImportError: the file system's package is not installed.
            ValueError: fsspec knows no such scheme.
            ConfigurationError: the URL names no bucket, or carries what belongs into `storage_options`.
            UnsupportedStoreError: the file system has no conditional create.
        """
        scheme, root = _split_url(url)
        options = {**storage_options, "asynchronous": True, "use_listings_cache": False, "skip_instance_cache": True}
        if scheme in ("s3", "s3a"):
            options["config_kwargs"] = {**_S3_CLIENT, **options.get("config_kwargs", {})}
        filesystem_class = fsspec.get_filesystem_class(scheme)
        _require_conditional_create(filesystem_class, f"{scheme}://{root}")
        filesystem = filesystem_class(**options)
        filesystem.retries = 1
        connect = getattr(filesystem, "set_session", None) or getattr(filesystem, "_set_session", None)
        # adlfs makes its client by itself, and closes it for synchronous use only.
        client = await connect() if connect is not None else getattr(filesystem, "service_client", None)
        return cls(scheme, root, filesystem, client, list(_secrets_in(storage_options)))

    def __repr__(self) -> str:
        return f"RemoteStore({self.url!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a store holds a secret and connections: pass its URL, and open it where it is used")

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `ObjectStore`."""
        assert data, "an object is never empty"
        try:
            await self._within(self._filesystem._pipe_file(self._path(key), data, mode="create"), len(data))
        except FileExistsError:
            return False
        except Exception as error:
            # Many servers leave out which condition failed, and s3fs then calls the conflict an invalid argument.
            if _status(error) == 412:
                return False
            raise self._explain(error, key) from error
        return True

    async def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore`."""
        assert data, "an object is never empty"
        try:
            await self._within(self._filesystem._pipe_file(self._path(key), data), len(data))
        except Exception as error:
            raise self._explain(error, key) from error

    async def get(self, key: str, bytes_max: int = OBJECT_BYTES_MAX) -> bytes | None:
        """See `ObjectStore`."""
        parts: list[bytes] = []
        # One that is written while it is read is small enough for one part.
        while not parts or len(parts[-1]) == self.part_bytes:
            start = len(parts) * self.part_bytes
            # One byte more than there may be tells of all that there are.
            part = await self._get_part(key, start, min(start + self.part_bytes, bytes_max + 1))
            if part is None:
                break
            parts.append(part)
            if start + len(part) > bytes_max:
                raise too_large(key, bytes_max)
        return b"".join(parts) if parts else None

    async def _get_part(self, key: str, start: int, end: int) -> bytes | None:
        """Bytes of an object from `start` on; None if there are none."""
        request = self._filesystem._cat_file(self._path(key), start=start, end=end)
        try:
            return bytes(await self._within(request, end - start))
        except FileNotFoundError as error:
            if _is_container_missing(error):
                raise self._explain(error, key) from error
            return None
        except Exception as error:
            if _status(error) == 416:
                # There is nothing from there on: of an empty object, from the beginning.
                return None if start else b""
            raise self._explain(error, key) from error

    async def list_folder(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        found = await self._list(folder, is_deep=False)
        return sorted(name.rstrip("/") + ("/" if is_folder else "") for name, is_folder in found)

    async def list_tree(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        found = await self._list(folder, is_deep=True)
        return sorted(name for name, is_folder in found if not is_folder and not name.endswith("/"))

    async def _list(self, folder: str, *, is_deep: bool) -> list[tuple[str, bool]]:
        """Names relative to `folder`, and whether each is a folder: what lies directly in it, or at any depth."""
        path = self._path(folder).rstrip("/")
        try:
            entries = await (self._list_pages if self._is_s3 else self._list_whole)(path, is_deep=is_deep)
        except FileNotFoundError as error:
            if _is_container_missing(error):
                raise self._explain(error, folder) from error
            return []
        except Exception as error:
            raise self._explain(error, folder) from error
        return [
            (name[len(path) + 1 :], is_folder)
            for name, is_folder in entries
            # Consoles mark folders by empty objects named like them.
            if name.rstrip("/").startswith(f"{path}/")
        ]

    async def _list_whole(self, path: str, *, is_deep: bool) -> list[tuple[str, bool]]:
        """What lies below: its path, and whether it is a folder."""
        if is_deep:
            entries = list((await self._within(self._filesystem._find(path, detail=True))).values())
        else:
            entries = await self._within(self._filesystem._ls(path, detail=True))
        return [(entry["name"], entry["type"] == "directory") for entry in entries]

    async def _list_pages(self, path: str, *, is_deep: bool) -> list[tuple[str, bool]]:
        """The same of S3, each page with a deadline of its own: a folder may have any number of objects.

        s3fs's `_ls` would list the parent too where it finds nothing.
        """
        bucket, key, _ = self._filesystem.split_path(path)
        prefix, delimiter = f"{key}/" if key else "", "" if is_deep else "/"
        entries: list[tuple[str, bool]] = []
        now_s = asyncio.get_running_loop().time
        async with asyncio.timeout(self.deadline_s) as deadline:
            async for entry in self._filesystem._iterdir(bucket, prefix=prefix, delimiter=delimiter):
                if not len(entries) % _LISTED_AT_ONCE:
                    deadline.reschedule(now_s() + self.deadline_s)
                entries.append((entry["name"], entry["type"] == "directory"))
        return entries

    async def delete_many(self, keys: list[str]) -> None:
        """See `ObjectStore`. Folders are but the beginnings of names."""
        keys = [key for key in keys if not key.endswith("/")]
        size = _DELETES_AT_ONCE if self._is_s3 else _REQUESTS_AT_ONCE
        for begin in range(0, len(keys), size):
            paths = [self._path(key) for key in keys[begin : begin + size]]
            try:
                await self._within(self._delete_in_bulk(paths) if self._is_s3 else self._delete_singly(paths))
            except Exception as error:
                raise self._explain(error, keys[begin]) from error

    async def close(self) -> None:
        """See `ObjectStore`."""
        close = getattr(self._client, "close", None)
        if close is not None:
            closing = close()
            if inspect.isawaitable(closing):
                await closing

    def _path(self, key: str) -> str:
        assert not key.startswith("/"), f"key {key!r} leaves the root"
        assert ".." not in key.split("/"), f"key {key!r} leaves the root"
        return f"{self._root}/{key}"

    async def _within(self, request: Awaitable[T], size_bytes: int = 0) -> T:
        """`request`, with the deadline of one that carries so many bytes."""
        async with asyncio.timeout(self.deadline_s + size_bytes / self.slowest_bytes_per_s):
            return await request

    async def _delete_in_bulk(self, paths: list[str]) -> None:
        bucket = self._filesystem.split_path(paths[0])[0]
        objects = [{"Key": self._filesystem.split_path(path)[1]} for path in paths]
        # s3fs's own bulk deletion keeps silent about what was refused.
        answer = await self._filesystem._call_s3(
            "delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True}
        )
        refused = [item for item in answer.get("Errors", []) if item.get("Code") != "NoSuchKey"]
        if refused:
            code, message = refused[0].get("Code", ""), refused[0].get("Message", "")
            fault = errno.EACCES if code == "AccessDenied" else errno.EIO
            raise OSError(fault, f"{len(refused)} of {len(paths)} objects were not deleted: {code} {message}")

    async def _delete_singly(self, paths: list[str]) -> None:
        outcomes = await asyncio.gather(*map(self._filesystem._rm_file, paths), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, FileNotFoundError):
                raise outcome

    def _explain(self, error: Exception, key: str) -> StoreError:
        reason = str(error).rstrip(".") or type(error).__name__
        text = self._redact(f"{self.url}/{key}: {reason}")
        status, code = _status(error), _code(error)
        if _is_container_missing(error) or isinstance(error, FileNotFoundError):
            advice = "the bucket or container does not exist: create it, or correct the root's URL"
        elif _is_cut_off(error):
            return StoreUnavailableError(f"{text}; trying again may succeed", url=self.url)
        elif isinstance(error, PermissionError) or status in (401, 403):
            advice = (
                "the store refuses these credentials: check them, and that they may get, put, list and delete objects "
                "below the root"
            )
        elif status in (301, 307):
            advice = "the bucket is in another region: give that region or its endpoint in the storage options"
        elif _is_passing(error, status, code):
            return StoreUnavailableError(f"{text}; trying again may succeed", url=self.url)
        elif type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            advice = f"{self._scheme}:// got no credentials: set them in the environment or the storage options"
        else:
            advice = "the store refused the request for good: correct the root's URL or the storage options"
        return StoreError(f"{text}; {advice}", url=self.url)

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _split_url(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    is_azure = parts.scheme in ("abfs", "abfss")
    # What is wrong is not repeated: it may be a secret.
    if parts.password is not None or (parts.username is not None and not is_azure) or parts.query:
        raise ConfigurationError(
            f"A {parts.scheme}:// root must not carry credentials or options in its URL: give scheme://bucket/folder, "
            "and the rest as storage options or through the environment"
        )
    root = f"{parts.netloc}{parts.path}".strip("/")
    if not parts.netloc or "//" in root or "#" in url:
        raise ConfigurationError(
            f"A {parts.scheme}:// root is {parts.scheme}://bucket or {parts.scheme}://bucket/folder"
        )
    return parts.scheme, root


def _require_conditional_create(filesystem_class: type, url: str) -> None:
    create = getattr(filesystem_class, "_pipe_file", None)
    is_asynchronous = getattr(filesystem_class, "async_impl", False)
    # adlfs takes `mode` among others, and names only `overwrite`. The probe finds out who takes it and does not care.
    known = set() if create is None else set(inspect.signature(create).parameters)
    if not is_asynchronous or not known & {"mode", "overwrite"}:
        raise UnsupportedStoreError(
            f"{url} cannot be a root: {filesystem_class.__name__} cannot create an object only if it is absent, in one "
            "step. Use a local root, S3 or a compatible store that honours If-None-Match, GCS or Azure",
            url=url,
        )


def _secrets_in(options: object, name: str = "") -> Iterator[str]:
    """The texts among storage options that may be secrets, longest first where one contains another."""
    if isinstance(options, Mapping):
        found = {secret for key, value in options.items() for secret in _secrets_in(value, str(key).lower())}
        yield from sorted(found, key=len, reverse=True)
    elif isinstance(options, str) and options and any(word in name for word in _SECRET_WORDS):
        yield options


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error of any of the clients."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = (
                getattr(cause, "status_code", None) or getattr(cause, "status", None) or getattr(cause, "code", None)
            )
        if isinstance(status, int):
            return status
    return None


def _code(error: BaseException) -> str:
    """The store's own name of what went wrong, if it gave one."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        code = (
            response.get("Error", {}).get("Code") if isinstance(response, Mapping) else getattr(cause, "error_code", "")
        )
        if code:
            return str(code)
    return ""


def _is_container_missing(error: BaseException) -> bool:
    return _code(error) in _NO_CONTAINER_CODES or "bucket does not exist" in str(error)


def _is_cut_off(error: BaseException) -> bool:
    """Whether the request or its answer was lost on the way. A status says nothing then: the half of an answer has one,
    and aiohttp gives one of its own making."""
    return any(kind.__name__ in _PASSING_ERRORS for cause in _causes(error) for kind in type(cause).__mro__)


def _is_passing(error: Exception, status: int | None, code: str) -> bool:
    """Whether the request may have been carried out, or may be if it is sent again."""
    if status is None:
        return isinstance(error, OSError | TimeoutError)
    return status >= 500 or status in _PASSING_STATUS or code in _PASSING_CODES
