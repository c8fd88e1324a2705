"""Random numbers and unique ids that replay makes again: drawn from the id of a run, which is in the history."""

from __future__ import annotations

import random
import uuid

__all__ = ["Randomness", "next_run"]

_UUIDS = uuid.UUID("6f3c1f0e-8f0b-5d6e-9a55-1d7f4c2b9e10")
_RUNS = uuid.UUID("1b0f6a52-52cb-5f4e-8c1a-3e6a0f9d7c44")


class Randomness:
    """The draws of an execution. `user` serves the orchestrator, `retries` the jitter of waits.

    The user's numbers do not depend on how often something is retried.
    """

    __slots__ = ("_run", "_uuid_count", "retries", "user")

    def __init__(self) -> None:
        self.user = random.Random(0)
        self.retries = random.Random(0)
        self._run = ""
        self._uuid_count = 0

    def begin(self, run: str) -> None:
        """Draw what belongs to `run` from here on."""
        self._run = run
        self._uuid_count = 0
        self.user.seed(run)
        self.retries.seed(f"{run}/retry")

    def new_uuid(self) -> uuid.UUID:
        """The next unique id."""
        self._uuid_count += 1
        return uuid.uuid5(_UUIDS, f"{self._run}/{self._uuid_count}")


def next_run(run: str) -> str:
    """The id of the run that continues `run`. Whoever ends it makes the same one."""
    return uuid.uuid5(_RUNS, f"{run}/next").hex
