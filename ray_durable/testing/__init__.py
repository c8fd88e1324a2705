"""Tests of orchestrations: an environment without Ray, whose time never waits.

Importing it imports neither Ray nor pytest.
"""

from ray_durable.testing.doubles import ActivityCall
from ray_durable.testing.environment import Environment
from ray_durable.testing.in_process import StuckError
from ray_durable.testing.stage import Operation

__all__ = ["ActivityCall", "Environment", "Operation", "StuckError"]
