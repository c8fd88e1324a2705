"""What steers the engine through user code.

These derive from BaseException, so that `except Exception` in an orchestrator cannot swallow them. None of them ever
leaves `Execution.apply`.
"""

from __future__ import annotations

__all__ = ["ExecutionClosed"]


class ExecutionClosed(BaseException):
    """The execution has ended and its coroutines are being closed: cleanup code cannot ask for anything any more."""
