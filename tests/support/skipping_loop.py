"""Virtual time, as our own tests call it."""

from ray_durable.testing.virtual_time import Deadlock, SkippingLoop, simulate, simulated

__all__ = ["Deadlock", "SkippingLoop", "simulate", "simulated"]
