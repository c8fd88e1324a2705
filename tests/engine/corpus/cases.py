"""What a case of the corpus is, and the corpus itself, which the modules of this package fill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray_durable.engine import RuntimeStatus

from ..kit import Context, Orchestrator

__all__ = ["CORPUS", "Case", "case", "fail", "twice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An orchestrator, its input, the external events it may get, how likely each input is a termination, how it ends
    otherwise, whether a history of it may be cut within a step, and how long after its start it is due."""

    name: str
    orchestrator: Orchestrator
    input: Any = None
    events: tuple[tuple[str, Any], ...] = ()
    termination: float = 0.0
    end: RuntimeStatus = RuntimeStatus.COMPLETED
    cut_in_steps: bool = True
    due_s: float | None = None


CORPUS: dict[str, Case] = {}


def case(**options: Any) -> Callable[[Orchestrator], Orchestrator]:
    """Add an orchestrator to the corpus, under the name of its function."""

    def register(orchestrator: Orchestrator) -> Orchestrator:
        name = orchestrator.__name__
        assert name not in CORPUS, name
        CORPUS[name] = Case(name=name, orchestrator=orchestrator, **options)
        return orchestrator

    return register


async def twice(ctx: Context, n: int) -> Any:
    """Two calls, one after the other."""
    return await ctx.call("double", await ctx.call("double", n))


async def fail(ctx: Context, what: object = "sibling") -> None:
    """A call that succeeds, and one that fails."""
    await ctx.call("echo")
    await ctx.call("fail", what)
