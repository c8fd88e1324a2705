"""All that knows Ray: makes actors and tasks of the runtime's plain classes, and finds them by name.

All actors are detached, restarted by Ray without end, need no CPU, do no I/O in `__init__` and get nothing but the
hub's address, its epoch and an id. Their work runs on an event loop that they start themselves, so that no caller's
death can end it. Facts on Ray that decide this are in docs/architecture.md. Importing this package imports Ray, and no
other does: that is left to the functions that need it.
"""

from ray_durable.runtime.actors.cluster import Cluster
from ray_durable.runtime.actors.connection import Connection
from ray_durable.runtime.actors.hosts import DispatcherActor, OrchestrationActor, SupervisorActor

__all__ = ["Cluster", "Connection", "DispatcherActor", "OrchestrationActor", "SupervisorActor"]
