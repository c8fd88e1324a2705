"""What an orchestrator may call: activities and orchestrators, by function or by registered name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ray_durable import registry
from ray_durable.authoring import Activity, Orchestrator
from ray_durable.errors import FunctionNotFoundError
from ray_durable.function import DurableFunction
from ray_durable.reference import FunctionReference
from ray_durable.retry import RetryPolicy
from ray_durable.target import ActivityTarget

__all__ = ["Callees"]

_NO_POLICY = RetryPolicy()


class Callees:
    """Finds functions, and says how other processes find them.

    `functions` are those that came with the caller's captured code, by name; other names are looked up in the registry.
    `code` is the digest of that code: functions that cannot be imported are found in it.
    """

    def __init__(self, functions: Mapping[str, DurableFunction], code: str | None) -> None:
        self._functions = functions
        self._code = code
        # The function is kept beside what was made for it, so that its id stays its own.
        self._targets: dict[tuple[int, int], tuple[Activity[..., Any], ActivityTarget]] = {}
        self._references: dict[int, tuple[Orchestrator[..., Any], FunctionReference]] = {}

    def activity(self, activity: Activity[..., Any] | str) -> Activity[..., Any]:
        """The activity that is meant. FunctionNotFoundError if nothing, or something else, has the name."""
        found = self._find(activity)
        if isinstance(found, Activity):
            return found
        hint = "ctx.call_sub_orchestrator calls it" if isinstance(found, Orchestrator) else "decorate it with @activity"
        raise FunctionNotFoundError(f"{found!r} is no activity: {hint}", name=_name_of(found))

    def orchestrator(self, orchestrator: Orchestrator[..., Any] | str) -> Orchestrator[..., Any]:
        """The orchestrator that is meant. FunctionNotFoundError if nothing, or something else, has the name."""
        found = self._find(orchestrator)
        if isinstance(found, Orchestrator):
            return found
        hint = "ctx.call_activity calls it" if isinstance(found, Activity) else "decorate it with @orchestrator"
        raise FunctionNotFoundError(f"{found!r} is no orchestrator: {hint}", name=_name_of(found))

    def target(self, function: Activity[..., Any], retry: RetryPolicy | None = None) -> ActivityTarget:
        """What the dispatcher needs to run `function` under `retry`; made once for each limit on lost workers."""
        losses_max = (retry or _NO_POLICY).max_system_failures
        made = self._targets.get((id(function), losses_max))
        if made is None:
            made = self._targets[id(function), losses_max] = (function, self._make_target(function, losses_max))
        return made[1]

    def reference(self, function: Orchestrator[..., Any]) -> FunctionReference:
        """How the child's own process finds `function`; made once for each.

        Raises:
            ConfigurationError: it can neither be imported nor came with the caller's code.
        """
        made = self._references.get(id(function))
        if made is None:
            made = self._references[id(function)] = (function, registry.reference_of(function, self._code))
        return made[1]

    def _find(self, wanted: object) -> object:
        return (self._functions.get(wanted) or registry.lookup(wanted)) if isinstance(wanted, str) else wanted

    def _make_target(self, function: Activity[..., Any], losses_max: int) -> ActivityTarget:
        reference = registry.reference_of(function, self._code)
        options = dict(function.ray_options)
        if function.max_slice is not None:
            options["max_slice"] = function.max_slice
        limits = {
            "timeout_s": function.timeout_s,
            "heartbeat_timeout_s": function.heartbeat_timeout_s,
            "system_failures_max": losses_max,
        }
        text = json.dumps([reference.to_json(), options, limits], sort_keys=True, default=repr)
        return ActivityTarget(
            reference=reference,
            options=options,
            is_local=function.is_local,
            key=hashlib.sha256(text.encode()).hexdigest()[:16],
            timeout_s=function.timeout_s,
            heartbeat_timeout_s=function.heartbeat_timeout_s,
            system_failures_max=losses_max,
        )


def _name_of(found: object) -> str:
    return str(getattr(found, "name", None) or getattr(found, "__name__", repr(found)))
