"""Tests of orchestrations: an environment without Ray, whose time never waits, and replays of recorded histories.

Importing it imports neither Ray nor pytest.
"""

from ray_durable.testing.crashes import CrashError, CrashPoint, crash_everywhere
from ray_durable.testing.doubles import ActivityCall
from ray_durable.testing.environment import Environment
from ray_durable.testing.history_file import read_history
from ray_durable.testing.in_process import StuckError
from ray_durable.testing.replay import Replay, ReplayError, ReplayOutcome, ReplayReport
from ray_durable.testing.replayer import Replayer, check_history, check_hub, export_history
from ray_durable.testing.stage import Operation

__all__ = [
    "ActivityCall",
    "CrashError",
    "CrashPoint",
    "Environment",
    "Operation",
    "Replay",
    "ReplayError",
    "ReplayOutcome",
    "ReplayReport",
    "Replayer",
    "StuckError",
    "check_history",
    "check_hub",
    "crash_everywhere",
    "export_history",
    "read_history",
]
