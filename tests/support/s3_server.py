"""Real S3 servers on this machine, for tests: SeaweedFS (its own process and disk) and moto (threads of this process).

Both listen on free ports of the loopback interface only, and keep what they store in a temporary folder or in memory.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

__all__ = ["S3Server", "moto", "seaweedfs"]

_START_S_MAX = 60.0
_PORTS_PER_SERVER = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A running server. `process_id` is None for one that runs in this process."""

    endpoint_url: str
    access_key: str
    secret: str = field(repr=False)
    process_id: int | None = None

    @property
    def storage_options(self) -> dict[str, Any]:
        """What `open_store` needs to reach it."""
        return {
            "endpoint_url": self.endpoint_url,
            "key": self.access_key,
            "secret": self.secret,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as variables of the environment, for processes that take their credentials from there."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> BaseClient:
        """A plain synchronous client, independent of fsspec."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10),
        )

    def create_bucket(self, name: str | None = None) -> str:
        """Make a bucket; its name."""
        bucket = name or f"bucket-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=bucket)
        return bucket


@contextlib.contextmanager
def moto() -> Iterator[S3Server]:
    """moto's server. It accepts every credential."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server(endpoint_url=f"http://{host}:{port}", access_key="moto", secret=secrets.token_hex(16))
    finally:
        server.stop()


@contextlib.contextmanager
def seaweedfs() -> Iterator[S3Server]:
    """A SeaweedFS of its own, which checks credentials. Ends, and its folder is removed, with the context."""
    folder = Path(tempfile.mkdtemp(prefix="ray-durable-seaweedfs-"))
    try:
        with _seaweedfs_process(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _seaweedfs_process(folder: Path) -> Iterator[S3Server]:
    access_key, secret = "tester", secrets.token_hex(16)
    config = folder / "s3.json"
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": access_key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    ports = _free_ports()
    log = folder / "weed.log"
    command = [
        str(Path(sys.executable).parent / "weed"),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={ports[0]}",
        f"-master.port.grpc={ports[1]}",
        f"-volume.port={ports[2]}",
        f"-volume.port.grpc={ports[3]}",
        f"-filer.port={ports[4]}",
        f"-filer.port.grpc={ports[5]}",
        "-s3",
        f"-s3.port={ports[6]}",
        f"-s3.port.grpc={ports[7]}",
        f"-s3.config={config}",
        f"-filer.localSocket={folder}/filer.sock",
        f"-s3.localSocket={folder}/s3.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=64",
        # Each bucket gets several volumes of its own, none of which takes room before it is written.
        "-volume.max=2000",
        "-master.volumePreallocate=false",
        "-master.telemetry=false",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
    try:
        server = S3Server(
            endpoint_url=f"http://127.0.0.1:{ports[6]}", access_key=access_key, secret=secret, process_id=process.pid
        )
        _wait_until_ready(server, process, log)
        yield server
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, port in zip(("master", "volume", "filer", "s3"), ports[1:8:2], strict=True):
            Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock").unlink(missing_ok=True)


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once an object can be written and read: the gateway answers before its volumes do."""
    deadline_s = time.monotonic() + _START_S_MAX
    client = server.client()
    while True:
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            client.get_object(Bucket="ready", Key="ready")["Body"].read()
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline_s:
                text = log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"SeaweedFS did not start ({error}):\n{text}") from error
            time.sleep(0.1)


def _free_ports() -> list[int]:
    """Ports that nobody listens on, all open at once so that none is given twice."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(_PORTS_PER_SERVER)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
