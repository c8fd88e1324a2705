"""Where a task hub is, in a form that may travel: never with a secret in it.

Storage options that hold credentials reach other processes by a source: the name of an environment variable or of a
file that each process reads for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_durable.errors import ConfigurationError

__all__ = ["OPTIONS_VARIABLE", "HubAddress"]

OPTIONS_VARIABLE = "RAY_DURABLE_STORAGE_OPTIONS"
"""Environment variable with storage options as JSON, read when an address names no other source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """A task hub: root URL and hub name, and where each process finds the storage options.

    `options_source` is "env:NAME" or "file:/path": JSON with the options of the file system (s3fs' `key`, `secret`,
    `endpoint_url`, ...). None means the variable RAY_DURABLE_STORAGE_OPTIONS if it is set, else the provider's own
    chain (environment, profile, instance role).
    """

    root: str
    hub: str
    options_source: str | None = None

    @property
    def digest(self) -> str:
        """Short name of the hub, for Ray's namespace."""
        return hashlib.sha256(f"{self.root}\n{self.hub}".encode()).hexdigest()[:16]

    @property
    def namespace(self) -> str:
        """The Ray namespace of the hub's actors."""
        return f"ray_durable:{self.digest}"

    def storage_options(self) -> dict[str, Any]:
        """Read the options from their source, in this process. ConfigurationError if that cannot be done."""
        source = self.options_source
        if source is None:
            text = os.environ.get(OPTIONS_VARIABLE)
            return {} if text is None else _parse(text, f"environment variable {OPTIONS_VARIABLE}")
        kind, _, name = source.partition(":")
        if kind == "env":
            text = os.environ.get(name)
            if text is None:
                raise ConfigurationError(
                    f"The environment variable {name} with the storage options is not set in this process: set it "
                    "where Ray is started, on every node"
                )
            return _parse(text, f"environment variable {name}")
        if kind == "file":
            try:
                return _parse(Path(name).read_text(), name)
            except OSError as error:
                raise ConfigurationError(f"The file with the storage options cannot be read: {error}") from error
        raise ConfigurationError(f"options source {source!r}: give 'env:NAME' or 'file:/path'")


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError:
        # The text may hold a secret: it is not shown.
        raise ConfigurationError(f"The storage options in {place} are not JSON") from None
    if not isinstance(options, dict):
        raise ConfigurationError(f"The storage options in {place} are no JSON object")
    return options
