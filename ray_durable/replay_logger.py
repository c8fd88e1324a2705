"""A logger for orchestrators: silent while replaying, and heard only once the turn that logged is durable."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ReplaySafeLogger"]


class ReplaySafeLogger(logging.LoggerAdapter[logging.Logger]):
    """Holds records until `release`, and drops those of code that runs again.

    A line that was heard describes a step that nothing can undo; each line is heard once, however often its code is
    replayed (a loss of the process between the append and the line may swallow it).
    """

    def __init__(self, logger: logging.Logger, is_replaying: Callable[[], bool]) -> None:
        super().__init__(logger, {})
        self._is_replaying = is_replaying
        self._held: list[logging.LogRecord] = []

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Hold one record, unless the code is replayed."""
        if self._is_replaying() or not self.logger.isEnabledFor(level):
            return
        exc_info = kwargs.get("exc_info")
        if exc_info is True:
            exc_info = sys.exc_info()
        elif isinstance(exc_info, BaseException):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        extra: Mapping[str, object] | None = kwargs.get("extra")
        file, line, function, stack = self.logger.findCaller(
            kwargs.get("stack_info", False), kwargs.get("stacklevel", 1) + 1
        )
        name = self.logger.name
        record = self.logger.makeRecord(name, level, file, line, msg, args, exc_info or None, function, extra, stack)
        self._held.append(record)

    def release(self) -> None:
        """Hand the held records to the logger: their turn is durable."""
        held, self._held = self._held, []
        for record in held:
            self.logger.handle(record)
