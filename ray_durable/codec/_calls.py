"""Arguments bound to a function's signature."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

__all__ = ["CallSignature"]


class CallSignature:
    """How a function is called and what types its arguments and result have. One per function; it caches."""

    def __init__(
        self,
        *,
        name: str,
        kind: str,
        signature: inspect.Signature,
        annotations: Mapping[str, Any],
        result: Any = Any,
    ) -> None:
        self.name = name
        self.kind = kind
        self.signature = signature
        self.annotations = annotations
        self.result = result

    @classmethod
    def unknown(cls, name: str, kind: str = "activity") -> CallSignature:
        """For a function known by name only: any arguments, of any JSON type."""
        raise NotImplementedError

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """TypeError, naming the function, unless it can be called with these arguments."""
        raise NotImplementedError
