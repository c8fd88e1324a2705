"""What keeps an instance from going on: said in the log of its host, and in the open set, for its status."""

from __future__ import annotations

import logging

from ray_durable.errors import DurableError
from ray_durable.failure import Failure
from ray_durable.runtime.hub import OpenHub

__all__ = ["Problems"]

logger = logging.getLogger(__name__)


class Problems:
    """The present problem of one instance. `problem` is None while there is none."""

    def __init__(self, hub: OpenHub, instance_id: str) -> None:
        self.problem: str | None = None
        self._hub = hub
        self._instance_id = instance_id
        # What the open set says of a problem; at first, whatever an earlier owner left there.
        self._noted: str | None = ""

    async def report(self, problem: str | None) -> None:
        """This is the problem now; None: it goes on."""
        if problem != self.problem:
            self.problem = problem
            logger.log(logging.WARNING if problem else logging.INFO, "%s: %s", self._instance_id, problem or "goes on")
        if problem != self._noted:
            await self._hub.note_problem(self._instance_id, problem)
            self._noted = problem

    async def report_error(self, error: BaseException) -> None:
        """Say why it does not go on. An error that is not ours has a traceback worth reading."""
        failure = Failure.from_exception(error)
        problem = failure.describe()
        if not isinstance(error, DurableError):
            problem += " (a bug in ray_durable or a damaged environment: see the log of the instance's host)"
            logger.error("%s cannot go on, and tries again:\n%s", self._instance_id, failure.traceback)
        try:
            await self.report(problem)
        except Exception as unnoted:
            logger.warning("%s: its problem cannot be noted in the store: %s", self._instance_id, unnoted)

    def report_store_trouble(self, error: Exception, waited_s: float) -> None:
        """The store does not take the log, so neither can it take a note."""
        logger.warning("%s: the store does not take the log (%.0f s so far): %s", self._instance_id, waited_s, error)
        self.problem = f"the store does not answer: {error}"
