"""Stores behind fsspec: what their answers mean, what they refuse, and that they keep their secrets."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from ray_durable.errors import (
    ConfigurationError,
    CorruptLogError,
    DurableError,
    StoreError,
    StoreUnavailableError,
    UnsupportedStoreError,
)
from ray_durable.storage import ObjectStore, open_store, probe, remote
from ray_durable.storage.remote import RemoteStore
from tests.support.s3_server import S3Server
from tests.support.scripted_server import Answer, ScriptedServer, s3_error

T = TypeVar("T")

SECRET = "hush-do-not-tell-5150"

OPERATIONS: dict[str, Callable[[ObjectStore], Awaitable[object]]] = {
    "put_if_absent": lambda store: store.put_if_absent("a/key", b"x"),
    "put": lambda store: store.put("a/key", b"x"),
    "get": lambda store: store.get("a/key"),
    "list_folder": lambda store: store.list_folder("a/"),
    "list_tree": lambda store: store.list_tree("a/"),
    "delete_many": lambda store: store.delete_many(["a/key"]),
}


async def attempt(operation: Awaitable[T]) -> T | DurableError:
    """The result, or the error."""
    try:
        return await operation
    except DurableError as error:
        return error


def outcome(url: str, options: dict[str, Any], operation: Callable[[ObjectStore], Awaitable[object]]) -> object:
    """Open, do one thing, close: the result, or the error."""

    async def main() -> object:
        store = await attempt(open_store(url, storage_options=options))
        if isinstance(store, DurableError):
            return store
        try:
            return await attempt(operation(store))
        finally:
            await store.close()

    return asyncio.run(main())


def outcomes(url: str, options: dict[str, Any]) -> dict[str, object]:
    """Every operation once, on one open store: its result, or its error."""

    async def all_of(store: ObjectStore) -> dict[str, object]:
        return {name: await attempt(operation(store)) for name, operation in OPERATIONS.items()}

    found = outcome(url, options, all_of)
    assert isinstance(found, dict)
    return found


def texts_of(error: BaseException | None) -> Iterator[str]:
    """All that a log or a traceback would show of an error."""
    while error is not None:
        yield from (str(error), repr(error), repr(getattr(error, "__dict__", "")))
        error = error.__cause__ or error.__context__


def scripted(server: ScriptedServer) -> dict[str, Any]:
    """Storage options that reach a scripted server."""
    return {
        "endpoint_url": server.endpoint_url,
        "key": "somebody",
        "secret": SECRET,
        "client_kwargs": {"region_name": "us-east-1"},
    }


class TestAnswers:
    """What the store makes of answers that real servers give rarely."""

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(s3_error(412, "PreconditionFailed", condition="If-None-Match"), id="as AWS"),
            pytest.param(s3_error(412, "PreconditionFailed"), id="as SeaweedFS and Ceph"),
            pytest.param(Answer(status=412), id="without a body"),
        ],
    )
    def test_a_failed_condition_means_that_the_object_exists(self, answer: Answer) -> None:
        """However much the server says of it; and one request was sent, with the condition."""
        with ScriptedServer([answer]) as server:
            assert outcome("s3://bucket/root", scripted(server), OPERATIONS["put_if_absent"]) is False
            ((method, path, headers),) = server.requests
        assert (method, path, headers["If-None-Match"]) == ("PUT", "/bucket/root/a/key", "*")

    @pytest.mark.parametrize(
        "answer",
        [
            s3_error(409, "ConditionalRequestConflict"),
            s3_error(409, "OperationAborted"),
            s3_error(429, "TooManyRequests"),
            s3_error(500, "InternalError"),
            s3_error(501, "NotImplemented"),
            s3_error(503, "SlowDown", "Please reduce your request rate."),
            s3_error(400, "RequestTimeout"),
            Answer(status=502, body=b"<html>bad gateway</html>"),
            Answer(is_cut=True),
        ],
        ids=lambda answer: f"{answer.status} {answer.body[13:30].decode()}" if not answer.is_cut else "cut",
    )
    def test_what_may_pass_is_left_to_the_caller(self, answer: Answer) -> None:
        """Typed as passing, and not tried again by the client: whoever waits decides how long."""
        with ScriptedServer([answer]) as server:
            errors = outcomes("s3://bucket/root", scripted(server))
            # A client may resend on a connection that broke under it, which nothing can turn off.
            assert len(server.requests) <= len(OPERATIONS) * (2 if answer.is_cut else 1)
        assert {name: type(error) for name, error in errors.items()} == dict.fromkeys(OPERATIONS, StoreUnavailableError)
        assert all("trying again" in str(error) for error in errors.values())

    @pytest.mark.parametrize(
        ("answer", "advice"),
        [
            (s3_error(403, "AccessDenied"), "check them"),
            (s3_error(403, "SignatureDoesNotMatch"), "check them"),
            (s3_error(400, "ExpiredToken"), "check them"),
            (s3_error(404, "NoSuchBucket"), "create it"),
            (s3_error(400, "InvalidBucketName"), "correct the root"),
        ],
        ids=lambda value: value.body[13:30].decode() if isinstance(value, Answer) else None,
    )
    def test_what_will_not_pass_says_what_to_do(self, answer: Answer, advice: str) -> None:
        """Permissions and places do not mend themselves, so nobody waits for them."""
        with ScriptedServer([answer]) as server:
            errors = outcomes("s3://bucket/root", scripted(server))
            assert len(server.requests) == len(OPERATIONS)
        assert {name: type(error) for name, error in errors.items()} == dict.fromkeys(OPERATIONS, StoreError)
        assert all(advice in str(error) for error in errors.values())

    def test_silence_has_a_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that takes a request and never answers does not hold the caller for ever."""
        monkeypatch.setattr(RemoteStore, "deadline_s", 0.05)
        monkeypatch.setattr(RemoteStore, "slowest_bytes_per_s", 1_000_000_000)
        with ScriptedServer([Answer(is_silent=True)]) as server:
            errors = outcomes("s3://bucket/root", scripted(server))
        assert {name: type(error) for name, error in errors.items()} == dict.fromkeys(OPERATIONS, StoreUnavailableError)

    def test_a_server_that_is_not_there_may_come_back(self) -> None:
        """A refused connection is an outage."""
        with ScriptedServer([Answer()]) as server:
            options = scripted(server)
        errors = outcomes("s3://bucket/root", options)
        assert {name: type(error) for name, error in errors.items()} == dict.fromkeys(OPERATIONS, StoreUnavailableError)

    def test_a_read_is_one_request(self) -> None:
        """No question for the size comes first."""
        with ScriptedServer([Answer(body=b"data")]) as server:
            assert outcome("s3://bucket/root", scripted(server), OPERATIONS["get"]) == b"data"
            assert [method for method, _, _ in server.requests] == ["GET"]

    @pytest.mark.parametrize("size", [1, 9, 10, 11, 20, 25])
    def test_a_large_object_is_read_in_parts(
        self, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        """Each part has a deadline of its own; whether the object ends with a part or within one, it is read whole."""
        monkeypatch.setattr(RemoteStore, "part_bytes", 10)
        url, data = f"s3://{moto_server.create_bucket()}/root", bytes(range(size))

        async def write_and_read(store: ObjectStore) -> bytes | None:
            await store.put("a/key", data)
            assert await store.get("a/nothing") is None
            return await store.get("a/key")

        assert outcome(url, moto_server.storage_options, write_and_read) == data

    def test_a_listing_is_one_request(self) -> None:
        """Also when nothing is there: the folder above is not listed too."""
        with ScriptedServer([Answer(body=b"<ListBucketResult/>")]) as server:
            assert outcome("s3://bucket/root", scripted(server), OPERATIONS["list_folder"]) == []
            assert len(server.requests) == 1

    def test_a_deletion_that_was_refused_is_told(self) -> None:
        """The bulk answer is a success that lists what was not deleted."""
        refusal = b"<Error><Key>root/a/key</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
        with ScriptedServer([Answer(body=b"<DeleteResult>" + refusal + b"</DeleteResult>")]) as server:
            error = outcome("s3://bucket/root", scripted(server), OPERATIONS["delete_many"])
        assert type(error) is StoreError
        assert "1 of 1 objects were not deleted" in str(error)


class TestRefusals:
    """Roots that cannot be used, on real servers."""

    def test_a_missing_bucket_is_named(self, moto_server: S3Server) -> None:
        """The error says to create it or to correct the URL."""
        errors = outcomes("s3://no-such-bucket/root", moto_server.storage_options)
        assert {name: type(error) for name, error in errors.items()} == dict.fromkeys(OPERATIONS, StoreError)
        assert all("s3://no-such-bucket/root" in str(error) for error in errors.values())
        assert all("create it" in str(error) for error in errors.values())

    @pytest.mark.parametrize("wrong", [{"secret": SECRET}, {"key": "nobody", "secret": SECRET}], ids=["secret", "key"])
    def test_wrong_credentials_are_told_and_kept(self, seaweedfs_server: S3Server, wrong: dict[str, str]) -> None:
        """The server checks signatures; neither error nor its causes show the secret that was tried."""
        bucket = seaweedfs_server.create_bucket()
        errors = outcomes(f"s3://{bucket}/root", seaweedfs_server.storage_options | wrong)
        for error in errors.values():
            assert type(error) is StoreError
            assert "credentials" in str(error)
            assert not any(SECRET in text for text in texts_of(error))

    def test_credentials_may_come_from_the_environment(
        self, seaweedfs_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing but the URL is given; so workers get them, without anything secret among their arguments."""
        bucket = seaweedfs_server.create_bucket()
        for name, value in seaweedfs_server.environment.items():
            monkeypatch.setenv(name, value)
        assert outcome(f"s3://{bucket}/root", {}, OPERATIONS["put_if_absent"]) is True
        assert outcome(f"s3://{bucket}/root", {}, OPERATIONS["get"]) == b"x"

    def test_an_echo_of_the_secret_is_struck_out(self) -> None:
        """A server that repeats what it was sent, or a client that does, tells nobody."""
        with ScriptedServer([s3_error(400, "InvalidRequest", f"who would use {SECRET} today")]) as server:
            error = outcome("s3://bucket/root", scripted(server), OPERATIONS["put"])
        assert "who would use *** today" in str(error)
        assert SECRET not in str(pickle.loads(pickle.dumps(error)))

    @pytest.mark.parametrize(
        "url",
        [f"s3://somebody:{SECRET}@bucket/root", f"s3://{SECRET}@bucket/root", f"s3://bucket/root?secret={SECRET}"],
    )
    def test_credentials_in_the_url_are_refused(self, url: str) -> None:
        """The URL goes everywhere, so nothing secret may be in it; the error does not repeat it."""
        error = outcome(url, {}, OPERATIONS["get"])
        assert type(error) is ConfigurationError
        assert "storage options" in str(error)
        assert not any(SECRET in text for text in texts_of(error))

    @pytest.mark.parametrize("url", ["s3://", "s3:///root", "s3://bucket/a//b", "s3://bucket/a#b"])
    def test_a_url_without_a_bucket_or_with_odd_folders_is_refused(self, url: str) -> None:
        """The error shows the form."""
        error = outcome(url, {}, OPERATIONS["get"])
        assert type(error) is ConfigurationError
        assert "s3://bucket/folder" in str(error)

    def test_an_unknown_scheme_is_refused(self) -> None:
        """The error names the ones that go."""
        error = outcome("s4://bucket/root", {}, OPERATIONS["get"])
        assert type(error) is ConfigurationError
        assert "s3://" in str(error)

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error says what to install."""
        missing = {"class": "no_such_package.Files", "err": "Install no_such_package"}
        monkeypatch.setitem(known_implementations, "absent", missing)
        error = outcome("absent://bucket/root", {}, OPERATIONS["get"])
        assert type(error) is ConfigurationError
        assert "no_such_package" in str(error)

    def test_an_open_store_tells_no_secret_and_does_not_travel(self) -> None:
        """Neither its URL nor its representation has it, and pickling it fails."""

        async def main() -> None:
            options = {"key": "somebody", "secret": SECRET, "endpoint_url": "http://127.0.0.1:1"}
            store = await open_store("s3://bucket/root", storage_options=options)
            assert store.url == "s3://bucket/root"
            assert store.private_path is None
            assert SECRET not in repr(store)
            with pytest.raises(TypeError, match="pass its URL"):
                pickle.dumps(store)
            await store.close()

        asyncio.run(main())


class ClobberingFiles(AsyncFileSystem):  # type: ignore[misc] # fsspec ships no types
    """An asynchronous file system that takes a `mode` and overwrites, as obstore's adapter does."""

    protocol = "clobbering"
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.objects: dict[str, bytes] = {}

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self.objects[path] = value

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self.objects[path]

    async def _rm_file(self, path: str, **_: Any) -> None:
        self.objects.pop(path, None)


class TestFileSystems:
    """Not every fsspec file system can hold a log."""

    @pytest.fixture(autouse=True)
    def registered(self) -> None:
        fsspec.register_implementation("clobbering", ClobberingFiles, clobber=True)
        fsspec.register_implementation("synchronous", MemoryFileSystem, clobber=True)

    def test_one_that_checks_and_then_writes_is_refused(self) -> None:
        """fsspec's own synchronous ones have a `mode`, and lose races; nothing is opened."""
        error = outcome("synchronous://bucket/root", {}, OPERATIONS["get"])
        assert type(error) is UnsupportedStoreError
        assert "MemoryFileSystem" in str(error)
        assert "If-None-Match" in str(error)

    def test_one_that_ignores_the_condition_is_found_by_the_probe(self) -> None:
        """It opens, writes and reads; the second create gives it away."""
        error = outcome("clobbering://bucket/root", {}, lambda store: probe(store, "hub/probe/1"))
        assert type(error) is UnsupportedStoreError
        assert "overwrote" in str(error)


class TestForeignObjects:
    """What others may have put where objects of the hub are looked for."""

    def test_an_empty_object_is_read_as_no_bytes(self, moto_server: S3Server) -> None:
        """A range of it cannot be had, which is no error of the store's."""
        bucket = moto_server.create_bucket()
        moto_server.client().put_object(Bucket=bucket, Key="root/index/open/empty", Body=b"")
        url, options = f"s3://{bucket}/root", moto_server.storage_options
        assert outcome(url, options, lambda store: store.get("index/open/empty")) == b""

    def test_each_page_of_a_listing_has_its_own_deadline(
        self, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A folder with a flood of objects takes longer than one request may, and is listed all the same."""
        monkeypatch.setattr(RemoteStore, "deadline_s", 0.5)
        bucket, client = moto_server.create_bucket(), moto_server.client()
        for number in range(8):
            client.put_object(Bucket=bucket, Key=f"root/a/{number}", Body=b"x")
        url, options = f"s3://{bucket}/root", moto_server.storage_options
        requests = 0

        async def list_all(store: ObjectStore) -> object:
            assert isinstance(store, RemoteStore)
            call = store._filesystem._call_s3

            async def slow(method: str, *args: Any, **kwargs: Any) -> Any:
                nonlocal requests
                requests += 1
                await asyncio.sleep(0.2)
                return await call(method, *args, **{**kwargs, "MaxKeys": 2})

            monkeypatch.setattr(store._filesystem, "_call_s3", slow)
            return await store.list_folder("a/")

        monkeypatch.setattr(remote, "_LISTED_AT_ONCE", 2)
        assert outcome(url, options, list_all) == [str(number) for number in range(8)]
        assert requests == 4

    @pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
    def test_a_reader_sends_one_request_and_asks_for_no_more_than_may_be_there(
        self, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        """However large the object is. One that is larger costs the reader as much as one that is not."""
        bucket = moto_server.create_bucket()
        moto_server.client().put_object(Bucket=bucket, Key="root/a/x", Body=bytes(size))
        url, options = f"s3://{bucket}/root", moto_server.storage_options
        ranges: list[str] = []

        async def get(store: ObjectStore) -> object:
            assert isinstance(store, RemoteStore)
            call = store._filesystem._call_s3

            async def counted(method: str, *args: Any, **kwargs: Any) -> Any:
                ranges.append(f"{method} {kwargs.get('Range')}")
                return await call(method, *args, **kwargs)

            monkeypatch.setattr(store._filesystem, "_call_s3", counted)
            return await store.get("a/x", 100_000)

        found = outcome(url, options, get)
        assert len(found) == size if isinstance(found, bytes) else isinstance(found, CorruptLogError)
        assert isinstance(found, bytes) == (size <= 100_000)
        assert ranges == ["get_object bytes=0-100000"]
