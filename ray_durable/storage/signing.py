"""The signing key of a hub: proof that an object was written by somebody who has it, for the place where it lies.

A mac is HMAC-SHA256 over the object's key and all of its bytes, so that nothing can be changed, moved or copied to
another place unnoticed. storage/FORMAT.md, section 12, is the norm. The key never leaves this object: its `repr` shows
ids, it does not pickle.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import NoReturn

from ray_durable.errors import ConfigurationError

__all__ = ["KEY_BYTES_MIN", "MAC_CHARS", "Signer"]

KEY_BYTES_MIN = 32
MAC_CHARS = 8 + 1 + 64
"""Key id, a dot, and the digits."""

_DOMAIN = b"ray_durable 1\n"
_ID_TEXT = b"ray_durable key id"
_HEX_PREFIX = "hex:"


class Signer:
    """The keys of one hub: the first one signs, all of them verify. Threads may share it."""

    __slots__ = ("_keys", "key_ids")

    def __init__(self, keys: Sequence[bytes]) -> None:
        """ConfigurationError if there is no key, or one is too short to be one."""
        if not keys:
            raise ConfigurationError("There is no signing key: give at least one, such as `openssl rand -hex 32` makes")
        if any(len(key) < KEY_BYTES_MIN for key in keys):
            raise ConfigurationError(
                f"A signing key is shorter than {KEY_BYTES_MIN} bytes: make one with `openssl rand -hex 32`"
            )
        self._keys = {_key_id(key): hmac.new(key, digestmod=hashlib.sha256) for key in keys}
        self.key_ids = tuple(self._keys)

    @classmethod
    def from_text(cls, text: str) -> Signer:
        """The keys of a text: one a line, `#` begins a comment line, `hex:` before the digits of any bytes.

        Raises:
            ConfigurationError: a line is no key. Nothing of the text is shown.
        """
        lines = [line.strip() for line in text.splitlines()]
        return cls([_key_of(line) for line in lines if line and not line.startswith("#")])

    @staticmethod
    def text_of(key: bytes) -> str:
        """The text from which `from_text` makes this one key."""
        return f"{_HEX_PREFIX}{key.hex()}"

    @property
    def key_id(self) -> str:
        """The name of the key that signs."""
        return self.key_ids[0]

    def sign(self, place: str, *parts: bytes) -> str:
        """The 64 digits that authenticate `parts` at `place`, under the key that signs."""
        return self._digits(self.key_id, place, parts)

    def verifies(self, key_id: str, digits: str, place: str, *parts: bytes) -> bool:
        """Whether `digits` authenticate `parts` at `place`, under the key of that name."""
        if key_id not in self._keys:
            return False
        return hmac.compare_digest(self._digits(key_id, place, parts).encode(), digits.encode())

    def _digits(self, key_id: str, place: str, parts: Sequence[bytes]) -> str:
        mac = self._keys[key_id].copy()
        mac.update(b"%b%b\n" % (_DOMAIN, place.encode()))
        for part in parts:
            mac.update(part)
        return mac.hexdigest()

    def __repr__(self) -> str:
        return f"<Signer {', '.join(self.key_ids)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A signing key does not travel: each process reads it from its source")


def _key_id(key: bytes) -> str:
    return hmac.digest(key, _ID_TEXT, "sha256").hex()[:8]


def _key_of(line: str) -> bytes:
    if not line.startswith(_HEX_PREFIX):
        return line.encode()
    try:
        return bytes.fromhex(line.removeprefix(_HEX_PREFIX))
    except ValueError:
        # The text is a secret, and its cause would show a part of it.
        raise ConfigurationError("A signing key begins with hex: and does not go on with hex digits") from None
