"""How a function is named so that another process can find it: by import, or by a stored copy of its code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["FunctionReference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionReference:
    """Where to find a registered function.

    `name` is its registered name. Importable functions have `module` and `qualname`, the SHA-256 `source` of the
    module's file, and `path`, the folder that was on `sys.path` when the module was imported (a hint for processes that
    do not have it). Functions of the running script or notebook have `code`, the digest of the stored bundle instead.
    """

    name: str
    module: str | None = None
    qualname: str | None = None
    source: str | None = None
    path: str | None = None
    code: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are set, for the log."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> FunctionReference:
        """Inverse of `to_json`; unknown fields are ignored."""
        known = {key: fields[key] for key in ("name", "module", "qualname", "source", "path", "code") if key in fields}
        return cls(**known)
