"""What becomes of requests to the store and of messages: how long they take, and which of them go wrong.

`Weather` is calm. `Storm` draws everything from a seed, as bad as the contracts allow: a write may be lost, be carried
out with its answer lost, be carried out late, or be sent twice by the client itself; messages overtake one another,
and their outcome may be unknown. An answer to a read is never older than the request, but for listings, and for those
only with `has_late_listings`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["Fate", "Fault", "Passage", "Storm", "Weather"]


class Fault(Enum):
    """What becomes of a request to the store."""

    NONE = auto()
    """It is carried out and answered."""
    LOST = auto()
    """It never arrives; the caller times out."""
    ANSWER_LOST = auto()
    """It is carried out; the caller times out."""
    LATE = auto()
    """The caller times out; it is carried out after other things have happened."""
    RESENT = auto()
    """It is carried out twice by the client itself, which reports what the second try met."""


@dataclass(frozen=True, slots=True)
class Fate:
    """Of one request to the store. `there_s` later it takes effect, `back_s` after that the caller knows; a caller that
    is told nothing gives up `patience_s` after it asked. `lag_s`: how late a listing is."""

    fault: Fault = Fault.NONE
    there_s: float = 0.001
    back_s: float = 0.001
    patience_s: float = 5.0
    lag_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Passage:
    """Of one message and its answer: how long each takes, and whether one is lost. A sender that gets no answer is told
    so `patience_s` after it sent."""

    there_s: float = 0.001
    back_s: float = 0.001
    is_request_lost: bool = False
    is_answer_lost: bool = False
    patience_s: float = 1.0


_READS = ("get", "list", "tree")

# Hours cost a thousand requests that fail: few are enough.
_OUTAGES_S = [*(9 * [2.0, 20.0, 60.0, 120.0]), 600.0, 600.0, 3_600.0, 7_200.0]

_CALM_FATE = Fate()
_CALM_PASSAGE = Passage()


class Weather:
    """Nothing goes wrong, and everything takes its moment."""

    is_calm = True

    def of_operation(self, now_s: float, operation: str, key: str) -> Fate:
        """What becomes of an operation of the store."""
        return _CALM_FATE

    def of_message(self, now_s: float) -> Passage:
        """What becomes of a message."""
        return _CALM_PASSAGE

    def start_s(self) -> float:
        """How long a process takes to begin."""
        return 0.3

    def has_direct_line(self) -> bool:
        """Whether an owner has a line of its own to the dispatcher's process, or speaks to it by its name."""
        return True

    def slice_s(self) -> float:
        """How long a slice of activities takes."""
        return 0.01

    def loses_worker(self) -> str | None:
        """Whether a worker dies with its slice: "before" or "after" it ran, or not at all."""
        return None


class Storm(Weather):
    """See the module. Each seed has a temper of its own, so that some are bad in one way and some in another."""

    is_calm = False

    def __init__(self, seed: int | str, *, has_late_listings: bool = False) -> None:
        rng = self._random = random.Random(f"weather {seed}")
        # How many times the calm's delays; a wide spread lets anything overtake anything.
        self._spread = rng.choice([1.0, 5.0, 50.0, 500.0])
        self._fault_rate = rng.choice([0.0, 0.0, 0.02, 0.05, 0.15, 0.3])
        self._faults = rng.choice(
            [
                (Fault.LOST, Fault.ANSWER_LOST, Fault.LATE, Fault.RESENT),
                (Fault.ANSWER_LOST, Fault.LATE),
                (Fault.LATE,),
                (Fault.RESENT, Fault.ANSWER_LOST),
            ]
        )
        self._late_s_max = rng.choice([0.5, 6.0, 30.0])
        # How often the index is changed by what was given up: such changes are few in a run, and matter most.
        self._late_index_rate = rng.choice([0.0, 0.0, 0.0, 0.5])
        self._loss_rate = rng.choice([0.0, 0.0, 0.02, 0.1])
        self._worker_loss_rate = rng.choice([0.0, 0.0, 0.05, 0.2])
        self._lag_s_max = rng.choice([0.5, 5.0]) if has_late_listings else 0.0
        self._outages: list[tuple[float, float]] = []
        if rng.random() < 0.25:
            start_s = rng.uniform(0, 20)
            self._outages.append((start_s, start_s + rng.choice(_OUTAGES_S)))
        self._slice_s_max = rng.choice([0.01, 0.5, 5.0])
        self._start_s_max = rng.choice([0.5, 2.0, 8.0])

    def of_operation(self, now_s: float, operation: str, key: str) -> Fate:
        """See `Weather`."""
        rng, spread = self._random, self._spread
        there_s, back_s = 0.001 * spread ** rng.random(), 0.001 * spread ** rng.random()
        if self._outages and any(start_s <= now_s < end_s for start_s, end_s in self._outages):
            patience_s = rng.choice([0.05, 1.0, 10.0])
            if operation in _READS or rng.random() < 0.8:
                return Fate(Fault.LOST, there_s, back_s, patience_s)
            return Fate(Fault.ANSWER_LOST, there_s, back_s, patience_s)
        changes_index = operation in ("put", "delete") and "/index/" in key
        if changes_index and self._late_index_rate and rng.random() < self._late_index_rate:
            return Fate(Fault.LATE, rng.uniform(0, 2 * self._late_s_max), back_s, rng.choice([0.05, 1.0]))
        if self._fault_rate and rng.random() < self._fault_rate:
            fault = rng.choice(self._faults)
            if operation in _READS:
                fault = Fault.LOST
            elif operation != "create" and fault is Fault.RESENT:
                fault = Fault.NONE
            if fault is Fault.LATE:
                there_s = rng.uniform(0, self._late_s_max)
            return Fate(fault, there_s, back_s, rng.choice([0.05, 1.0, 5.0]))
        lag_s = rng.uniform(0, self._lag_s_max) if self._lag_s_max and operation in ("list", "tree") else 0.0
        return Fate(Fault.NONE, there_s, back_s, lag_s=lag_s)

    def of_message(self, now_s: float) -> Passage:
        """See `Weather`."""
        rng, spread = self._random, self._spread
        there_s, back_s = 0.001 * spread ** rng.random(), 0.001 * spread ** rng.random()
        lost = rng.random() if self._loss_rate else 1.0
        return Passage(
            there_s,
            back_s,
            is_request_lost=lost < self._loss_rate / 2,
            is_answer_lost=self._loss_rate / 2 <= lost < self._loss_rate,
            patience_s=rng.choice([0.1, 1.0]),
        )

    def start_s(self) -> float:
        """See `Weather`."""
        return self._random.uniform(0.1, self._start_s_max)

    def has_direct_line(self) -> bool:
        """See `Weather`."""
        return self._random.random() < 0.7

    def slice_s(self) -> float:
        """See `Weather`."""
        return self._random.uniform(0.001, self._slice_s_max)

    def loses_worker(self) -> str | None:
        """See `Weather`."""
        if self._worker_loss_rate and self._random.random() < self._worker_loss_rate:
            return self._random.choice(["before", "after"])
        return None
