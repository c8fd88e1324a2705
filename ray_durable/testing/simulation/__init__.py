"""A whole hub in one thread, on virtual time, with everything going wrong that can, and all of it from one seed.

The engine, the log, the instances, dispatcher, supervisor, worker and client code are those of production. A
`Simulation` runs what clients do, under a `Weather` (what becomes of requests and messages) and a `Mischief` (what is
done to processes), watches what must never happen, and ends when everything has come to its end.
"""

from ray_durable.testing.simulation.clients import Client
from ray_durable.testing.simulation.mischief import Deaths, Havoc, Mischief, Takeover, Victim
from ray_durable.testing.simulation.model import model_outcome
from ray_durable.testing.simulation.scheduler import EndlessError
from ray_durable.testing.simulation.simulation import ClientCode, Simulation
from ray_durable.testing.simulation.watcher import Violation
from ray_durable.testing.simulation.weather import Fault, Storm, Weather

__all__ = [
    "Client",
    "ClientCode",
    "Deaths",
    "EndlessError",
    "Fault",
    "Havoc",
    "Mischief",
    "Simulation",
    "Storm",
    "Takeover",
    "Victim",
    "Violation",
    "Weather",
    "model_outcome",
]
