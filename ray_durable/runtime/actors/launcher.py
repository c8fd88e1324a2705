"""Slices as Ray tasks, owned by the dispatcher's process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import ray
import ray.exceptions

from ray_durable.failure import Failure
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.framing import Endpoint
from ray_durable.runtime.messages import SliceWork
from ray_durable.runtime.sessions import Session, SessionEnd, SessionServer, Tell, serve_session
from ray_durable.runtime.watch import watch_of_process
from ray_durable.runtime.worker import run_slice
from ray_durable.runtime.workshop import workshop_of
from ray_durable.target import ActivityTarget

__all__ = ["RayLauncher"]

_RESOURCES_AGE_S_MAX = 5.0
_CPUS_FREE_SLOTS = 32
"""Slices in flight of an activity that asks for no resource at all."""

_WORKER_LOST = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)


class RayLauncher:
    """`Launcher` over Ray tasks that the dispatcher's process owns."""

    def __init__(self, address: HubAddress) -> None:
        self._address = address
        self._sessions = SessionServer(self._restart)
        self._functions: dict[tuple[str, str | None], Any] = {}
        self._resources: dict[str, float] = {}
        self._resources_at_s = -_RESOURCES_AGE_S_MAX

    async def listen(self, host: str) -> None:
        """Take sessions' lines at `host`'s address. OSError if that cannot be done: then each slice is a task."""
        await self._sessions.listen(host)

    def launch(self, work: SliceWork, generation: str | None, tell: Tell) -> _RaySlice:
        """See `Launcher`. A worker that just ran the same function, and waits, gets it; else a new task."""
        key = (work.target.key, generation)
        session = self._sessions.send(key, work, tell)
        return _RaySlice(self._sessions, session if session is not None else self._start(key, work, tell), work)

    def _start(self, key: tuple[str, str | None], work: SliceWork, tell: Tell) -> Session:
        loop = asyncio.get_running_loop()
        session = self._sessions.begin(key, work, tell)
        job = (self._address, self._sessions.endpoint, session.number, work)
        reference = self._function(work.target, key[1]).remote(job)
        session.cancel = lambda: ray.cancel(reference, force=True)

        def finished(future: Any) -> None:
            error = future.exception()
            end = future.result() if error is None else _lost(error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self._sessions.ended, session, end)

        reference.future().add_done_callback(finished)
        return session

    def _restart(self, ended: Session, work: SliceWork, tell: Tell) -> None:
        ended.successor = self._start(ended.key, work, tell)

    def slots(self, target: ActivityTarget) -> int:
        wanted = {"CPU": float(target.options.get("num_cpus", 1)), "GPU": float(target.options.get("num_gpus", 0))}
        wanted |= {name: float(amount) for name, amount in target.options.get("resources", {}).items()}
        if "memory" in target.options:
            wanted["memory"] = float(target.options["memory"])
        fits = [self._total().get(name, 0.0) / amount for name, amount in wanted.items() if amount > 0]
        # One more than fit, so that a worker that ends finds the next slice waiting.
        return max(1, int(min(fits)) + 1) if fits else _CPUS_FREE_SLOTS

    def _total(self) -> dict[str, float]:
        now_s = time.monotonic()
        if now_s - self._resources_at_s > _RESOURCES_AGE_S_MAX:
            self._resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
            self._resources_at_s = now_s
        return self._resources

    def _function(self, target: ActivityTarget, generation: str | None) -> Any:
        key = (target.key, generation)
        made = self._functions.get(key)
        if made is None:
            options = {name: value for name, value in target.options.items() if name != "max_slice"}
            if generation is not None:
                # Another environment means other workers: those that hold an older source are never asked.
                runtime_env = dict(options.get("runtime_env", {}))
                variables = {**runtime_env.get("env_vars", {}), "RAY_DURABLE_SOURCE": generation}
                options["runtime_env"] = {**runtime_env, "env_vars": variables}
            # Attempts are counted in the log: Ray must not add its own.
            made = _slice_task.options(max_retries=0, enable_task_events=False, name=target.reference.name, **options)
            self._functions[key] = made
        return made


class _RaySlice:
    """A slice that a Ray worker has."""

    def __init__(self, sessions: SessionServer, session: Session, work: SliceWork) -> None:
        self._sessions = sessions
        self._session = session
        self._work = work

    def withdraw(self, calls: tuple[int, ...]) -> bool:
        """See `RunningSlice`."""
        return self._sessions.withdraw(self._holder(), self._work, calls)

    def cancel(self) -> None:
        """See `RunningSlice`."""
        self._holder().cancel()

    def _holder(self) -> Session:
        while self._session.successor is not None:
            self._session = self._session.successor
        return self._session


@ray.remote
def _slice_task(job: tuple[HubAddress, Endpoint | None, int, SliceWork]) -> SessionEnd:
    # One argument: Ray serialises each on its own.
    address, endpoint, number, first = job
    workshop, watch = workshop_of(address), watch_of_process()
    return serve_session(endpoint, number, first, lambda work: run_slice(work, workshop, watch), watch)


def _lost(error: BaseException) -> Failure:
    """Why a worker was lost, in words that tell what to do."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        advice = "The worker was killed for using too much memory: declare memory= on the activity, or use less"
    elif isinstance(error, ray.exceptions.TaskCancelledError):
        return Failure(kind="cancelled", type_name="CancelledError", message="The activity was cancelled")
    elif isinstance(error, _WORKER_LOST):
        advice = (
            "The worker process died each time it ran this call (it was killed, crashed in native code, or called "
            "os._exit): look into the worker's log for the last lines before that, and declare memory= on the activity "
            "if the machine ran out of it"
        )
    else:
        advice = f"Ray could not run it: {type(error).__name__}: {error}"
    return Failure(kind="system", type_name="WorkerLostError", message=advice, non_retryable=False)
