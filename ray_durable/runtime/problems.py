"""What keeps an instance from going on: said in the log of its host, and in the open set, for its status."""

from __future__ import annotations

import logging

from ray_durable.errors import DurableError, StoreError
from ray_durable.failure import Failure
from ray_durable.runtime.hub import OpenHub

__all__ = ["Problems"]

logger = logging.getLogger(__name__)


class Problems:
    """The present problem of one instance. `problem` is None while there is none.

    That the store does not answer is none of these: whoever waits for it writes nothing there (`PatientStore.problem`).
    """

    def __init__(self, hub: OpenHub, instance_id: str) -> None:
        self.problem: str | None = None
        self.is_of_store = False
        """Whether the problem is that the store refuses."""
        self._hub = hub
        self._instance_id = instance_id
        # What the open set says of a problem; at first, whatever an earlier owner left there.
        self._noted: str | None = ""

    async def report(self, problem: str | None) -> None:
        """This is the problem now; None: it goes on."""
        self.is_of_store = False
        await self._report(problem)

    async def report_error(self, error: BaseException) -> None:
        """Say why it does not go on. An error that is not ours has a traceback worth reading."""
        failure = Failure.from_exception(error)
        problem = failure.describe()
        if not isinstance(error, DurableError):
            problem += " (a bug in ray_durable or a damaged environment: see the log of the instance's host)"
            logger.error("%s cannot go on, and tries again:\n%s", self._instance_id, failure.traceback)
        is_new = problem != self.problem
        self.is_of_store = isinstance(error, StoreError)
        try:
            await self._report(problem)
        except Exception as unnoted:
            if is_new:
                logger.warning("%s: its problem cannot be noted in the store: %s", self._instance_id, unnoted)

    async def _report(self, problem: str | None) -> None:
        if problem != self.problem:
            self.problem = problem
            logger.log(logging.WARNING if problem else logging.INFO, "%s: %s", self._instance_id, problem or "goes on")
        if problem != self._noted:
            await self._hub.note_problem(self._instance_id, problem)
            self._noted = problem
