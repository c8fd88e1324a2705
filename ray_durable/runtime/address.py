"""Where a task hub is, in a form that may travel: never with a secret in it.

Storage options that hold credentials, and the signing key, reach other processes by a source: the name of an
environment variable or of a file that each process reads for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_durable.errors import ConfigurationError
from ray_durable.storage import Signer

__all__ = ["KEY_FILE_VARIABLE", "KEY_VARIABLE", "OPTIONS_VARIABLE", "HubAddress", "default_key_source"]

OPTIONS_VARIABLE = "RAY_DURABLE_STORAGE_OPTIONS"
"""Environment variable with storage options as JSON, read when an address names no other source."""

KEY_VARIABLE = "RAY_DURABLE_SIGNING_KEY"
"""Environment variable with the signing key: the source of clients that name none."""

KEY_FILE_VARIABLE = "RAY_DURABLE_SIGNING_KEY_FILE"
"""Environment variable with the path of the file that holds the signing key; counts if the other is not set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """A task hub: root URL and hub name, and where each process finds the storage options.

    `options_source` is "env:NAME" or "file:/path": JSON with the options of the file system (s3fs' `key`, `secret`,
    `endpoint_url`, ...). None means the variable RAY_DURABLE_STORAGE_OPTIONS if it is set, else the provider's own
    chain (environment, profile, instance role). `key_source` is such a source of the hub's signing key; None: the hub
    is not signed.
    """

    root: str
    hub: str
    options_source: str | None = None
    key_source: str | None = None

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
        return _parse(*_read(source, "storage options"))

    def signer(self) -> Signer | None:
        """Read the signing key from its source, in this process; None if the hub is not signed.

        Raises:
            ConfigurationError: that cannot be done, or what is there is no key. Nothing of it is shown.
        """
        if self.key_source is None:
            return None
        text, place = _read(self.key_source, "signing key")
        try:
            return Signer.from_text(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"The signing key in {place} cannot be used. {error}") from None


def default_key_source() -> str | None:
    """Where a client that names no source finds the signing key, by this process's environment; None: nowhere."""
    if KEY_VARIABLE in os.environ:
        return f"env:{KEY_VARIABLE}"
    path = os.environ.get(KEY_FILE_VARIABLE)
    return None if path is None else f"file:{path}"


def _read(source: str, what: str) -> tuple[str, str]:
    """The text at a source, and what to call the place in errors."""
    kind, _, name = source.partition(":")
    if kind == "env" and name:
        text = os.environ.get(name)
        if text is None:
            raise ConfigurationError(
                f"The environment variable {name} with the {what} is not set in this process: set it where Ray is "
                "started, on every node"
            )
        return text, f"environment variable {name}"
    if kind == "file" and name:
        try:
            return Path(name).expanduser().read_text(), name
        except UnicodeDecodeError:
            # It may be a secret, of which the cause would show a part.
            raise ConfigurationError(f"The file {name} with the {what} is no text") from None
        except OSError as error:
            raise ConfigurationError(f"The file with the {what} cannot be read: {error}") from error
    # What was given may be the secret itself: it is not shown.
    raise ConfigurationError(f"The source of the {what} is neither 'env:NAME' nor 'file:/path'")


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError:
        # The text may hold a secret: it is not shown.
        raise ConfigurationError(f"The storage options in {place} are not JSON") from None
    if not isinstance(options, dict):
        raise ConfigurationError(f"The storage options in {place} are no JSON object")
    return options
