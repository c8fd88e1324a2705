"""A Ray cluster of several nodes, and a client of the hub on it, in a process of its own.

The command drives it by requests, one JSON line each; they run side by side, and answers carry the request's number.
All processes of the cluster descend from this one, so that the command can kill the whole of it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import ray
import ray.exceptions
from ray.cluster_utils import Cluster

import ray_durable as durable
import tests.chaos.flows  # noqa: F401  # it registers what is started by name

_THREADS = 64
_IDLE = timedelta(seconds=2)
"""How long an instance has a process that it does not need."""

_SYSTEM = {
    # By default, workers come last wherever another process wants the processor.
    "worker_niceness": 0,
    # A node that is gone, or stopped, is known to be after about three seconds instead of fifteen and more.
    "health_check_initial_delay_ms": 2_000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2_000,
    "health_check_failure_threshold": 4,
}


class _Bare:
    """An actor that does nothing: what its restart takes is Ray's own share."""

    def pid(self) -> int:
        return os.getpid()


class Host:
    """The requests, by name."""

    def __init__(self) -> None:
        self._cluster: Any = None
        self._nodes: dict[str, Any] = {}
        self._node_arguments: dict[str, Any] = {}
        self._hub: durable.Hub
        self._bare: Any = None
        self._measuring = threading.Lock()
        self._node_count = 0
        threading.Thread(target=self._reap, daemon=True).start()

    def up(self, nodes: int, cpus: int) -> str:
        """Start a head and so many other nodes; the cluster's address."""
        self._node_arguments = {"num_cpus": cpus, "object_store_memory": 80_000_000, "include_dashboard": False}
        head = {**self._node_arguments, "_system_config": _SYSTEM}
        self._cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        for _ in range(nodes):
            self.add_node()
        return str(self._cluster.address)

    def add_node(self) -> str:
        """Start another node; its name."""
        self._node_count += 1
        name = f"node {self._node_count}"
        self._nodes[name] = self._cluster.add_node(**self._node_arguments)
        return name

    def nodes(self) -> dict[str, int]:
        """The process ids of the raylets of all nodes but the head, by the names of the nodes."""
        return {name: node.all_processes["raylet"][0].process.pid for name, node in self._nodes.items()}

    def remove_node(self, name: str) -> None:
        """Clear away what is left of a node."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def _reap(self) -> None:
        """Ask after the raylets: workers take one that has ended, and was not asked after, for alive."""
        while True:
            for node in list(self._nodes.values()):
                node.all_processes["raylet"][0].process.poll()
            time.sleep(0.05)

    def connect(self, root: str, storage_options: str | None, takeover: bool) -> None:
        """Take or join the hub."""
        self._hub = durable.connect(
            root, storage_options=storage_options, shared=True, takeover=takeover, idle_timeout=_IDLE
        )

    def start(self, name: str, args: list[Any], instance_id: str) -> None:
        """Start an instance."""
        self._hub.start(name, *args, instance_id=instance_id)

    def raise_event(self, instance_id: str, value: int, event_id: str) -> None:
        """Tell an instance the next number."""
        self._hub.get(instance_id).raise_event("Number", value, event_id=event_id)

    def nudge(self, instance_id: str) -> None:
        """Tell an instance something that it does not wait for."""
        self._hub.get(instance_id).raise_event("Nudge")

    def explain(self, instance_id: str) -> str:
        """What it waits for."""
        return str(self._hub.get(instance_id).explain())

    def actors(self) -> list[str]:
        """The names of the hub's actors."""
        listed = ray.util.list_named_actors(all_namespaces=True)
        return [entry["name"] for entry in listed if entry["namespace"] == self._hub.address.namespace]

    def restart_bare_actor(self) -> float:
        """Kill the process of an actor that does nothing; the seconds until it answers again."""
        # Requests run side by side: the one must not kill what the other is measuring.
        with self._measuring:
            if self._bare is None:
                bare = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(_Bare)
                self._bare = bare.options(lifetime="detached", name="bare", namespace="chaos").remote()
            killed = self._pid_of_bare_actor()
            os.kill(killed, signal.SIGKILL)
            began_s = time.monotonic()
            while self._pid_of_bare_actor() == killed:
                pass
            return time.monotonic() - began_s

    def _pid_of_bare_actor(self) -> int:
        while True:
            try:
                return int(ray.get(self._bare.pid.remote(), timeout=60))
            except ray.exceptions.RayError:
                time.sleep(0.005)

    def down(self) -> None:
        """End the cluster in an orderly way."""
        self._hub.close()
        ray.shutdown()
        self._cluster.shutdown()


def main() -> None:
    """Answer until there are no more requests."""
    host, lock = Host(), threading.Lock()
    with os.fdopen(int(sys.argv[1]), "w") as answers, ThreadPoolExecutor(_THREADS) as pool:

        def answer(number: int, request: str, arguments: dict[str, Any]) -> None:
            try:
                told = {"value": getattr(host, request)(**arguments)}
            except Exception as error:
                told = {"error": type(error).__name__, "text": str(error)}
            with lock:
                print(json.dumps({"number": number, **told}), file=answers, flush=True)

        for line in sys.stdin:
            asked = json.loads(line)
            pool.submit(answer, asked["number"], asked["request"], asked["arguments"])


if __name__ == "__main__":
    main()
