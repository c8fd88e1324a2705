"""Values to payloads and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_durable.codec._calls import CallSignature
from ray_durable.codec.limits import Limits, Trust
from ray_durable.payload import Payload

__all__ = ["Codec"]


class Codec:
    """Encodes and decodes values under one trust and one set of limits. Stateless apart from caches; thread-safe."""

    def __init__(self, *, trust: Trust = Trust.NONE, limits: Limits | None = None) -> None:
        self.trust = trust
        self.limits = limits or Limits()

    def encode(self, value: Any, annotation: Any = Any, *, where: str) -> Payload:
        """`value` as a payload. `where` names the place for errors, such as "result of activity 'score'"."""
        raise NotImplementedError

    def decode(self, payload: Payload, annotation: Any = Any, *, where: str) -> Any:
        """The value of `payload`, of the type that `annotation` says."""
        raise NotImplementedError

    def encode_call(
        self, call: CallSignature, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, where: str
    ) -> Payload:
        """The arguments of a call. TypeError if the function cannot be called with them."""
        raise NotImplementedError

    def decode_call(
        self, call: CallSignature, payload: Payload, *, where: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inverse of `encode_call`: positional and keyword arguments."""
        raise NotImplementedError

    def encode_batch(self, values: Sequence[Any], annotation: Any = Any, *, where: str) -> Payload:
        """Many values of one annotation as one columnar payload."""
        raise NotImplementedError

    def decode_batch(self, payload: Payload, annotation: Any = Any, *, where: str) -> list[Any]:
        """The values of a batch."""
        raise NotImplementedError
