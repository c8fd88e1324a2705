"""How a cluster keeps the instances of a hub: what `connect` says when it makes the hub's supervisor."""

from __future__ import annotations

from dataclasses import dataclass

from ray_durable.runtime.room import RoomMax

__all__ = ["IDLE_S_DEFAULT", "Upkeep"]

IDLE_S_DEFAULT = 30.0
"""Holding a process of 70 MB for so long weighs about as much as starting one and reading a log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """At most `live_max` instances have an actor, for each depth of calls. An actor whose instance has been idle for
    `idle_s` leaves. One that has not answered for `silence_s` is ended, and made anew. No more external events than
    `room_max` wait for one instance."""

    live_max: int
    idle_s: float
    silence_s: float
    room_max: RoomMax
