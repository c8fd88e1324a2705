"""One Ray for all tests that need no other, and an account of every process and folder at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from samples.journal import JOURNAL_VARIABLE
from tests.cluster.flows import LEDGERS_VARIABLE, go_path
from tests.cluster.harness import Terminal, wait_until
from tests.support.processes import is_alive, kill, processes_below
from tests.support.s3_server import S3Server, seaweedfs

_REPOSITORY = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts a real Ray."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


class Processes:
    """The processes of the clusters that tests started."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def end_all(self) -> None:
        """Wait until they have ended; those that Ray forgot when its driver was killed are ended by id."""
        for pid in self.seen:
            if is_alive(pid):
                kill(pid)
        wait_until(lambda: not any(map(is_alive, self.seen)), f"the processes {self.seen} have ended")


@pytest.fixture(scope="package")
def processes() -> Iterator[Processes]:
    """Holds every test to account for the processes that it caused."""
    processes = Processes()
    yield processes
    processes.end_all()
    assert not processes_below(os.getpid()) & processes.seen


@pytest.fixture(scope="package")
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sessions: below a short path, since the names of sockets are limited."""
    folder = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)
    assert not folder.exists()


@pytest.fixture(scope="package")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the ledgers, known to all processes that start from here."""
    folder = tmp_path_factory.mktemp("ledgers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LEDGERS_VARIABLE, str(folder))
        patch.setenv(JOURNAL_VARIABLE, str(folder))
        # The samples are modules of the folder of examples; a test may write others beside the ledgers.
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, [_REPOSITORY, _REPOSITORY / "examples", folder])))
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="package")
def ray_init(ray_folder: Path) -> dict[str, Any]:
    """Arguments of `ray.init` for a small local Ray."""
    return {
        "num_cpus": 2,
        "object_store_memory": 100_000_000,
        "_temp_dir": str(ray_folder),
        # By default, workers come last wherever another process wants the processor: on a busy machine the tests would
        # wait for them in vain.
        "_system_config": {"worker_niceness": 0},
    }


@pytest.fixture(scope="package")
def hub(
    tmp_path_factory: pytest.TempPathFactory, ledgers: Path, processes: Processes, ray_init: dict[str, Any]
) -> Iterator[durable.Hub]:
    """A hub on a private local root, held by a Ray that this process started."""
    root = tmp_path_factory.mktemp("root")
    # Other tests in this process may have left a helper of the standard library, which lives as long as it does.
    others = processes_below(os.getpid())
    with durable.connect(root, ray_init=ray_init) as hub:
        before = processes_below(os.getpid())
        yield hub
        ours = (before | processes_below(os.getpid())) - others
    wait_until(lambda: not any(map(is_alive, ours)), "the processes of Ray have ended with its driver")
    shutil.rmtree(root)


@pytest.fixture(scope="package")
def server(hub: durable.Hub) -> Iterator[S3Server]:
    """SeaweedFS, which checks credentials. It ends before the hub, which accounts for all processes below this one."""
    with seaweedfs() as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root of the test's own."""
    folder = tmp_path / "root"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def terminals(tmp_path: Path, ledgers: Path, processes: Processes) -> Iterator[Callable[..., Terminal]]:
    """Makes terminals, by name; all have ended after the test, with their Ray."""
    made: list[Terminal] = []

    def make(name: str, **environment: str) -> Terminal:
        made.append(Terminal(tmp_path, name, environment=environment))
        return made[-1]

    yield make
    for terminal in made:
        processes.seen |= terminal.end()
    processes.end_all()


@pytest.fixture
def instance_id(request: pytest.FixtureRequest) -> str:
    """An id for the test's one instance: the test's name."""
    return str(request.node.name)


@pytest.fixture
def go(ledgers: Path) -> Callable[[str], None]:
    """Lets the activities `waits_for_go` of an instance end."""
    return lambda instance_id: go_path(instance_id).touch()
