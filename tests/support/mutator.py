"""Bytes as they must never be believed: seeded changes to good ones, some blind, some that know JSON."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

__all__ = ["Mutator"]

_HOSTILE_NUMBERS: list[Any] = [-1, 2**31, 2**63, 2**64, 10**30, -(2**70), 0.5, float("inf"), float("nan"), 10**4000]
_HOSTILE_TEXTS: list[Any] = ["", "../../x", "\ud800", "\x00", "pickle", "a" * 300, "1" * 64, "json", "__reduce__"]
_HOSTILE: list[Any] = [*_HOSTILE_NUMBERS, *_HOSTILE_TEXTS, None, True, [], {}, [[]], {"json": None}, [1, 2, 3]]
_NAMES = ["json", "pickle", "blob", "section", "encoding", "size", "n", "t", "type", "carried", "failure", "v", "mac"]


class Mutator:
    """Changes samples; the same seed, the same changes."""

    def __init__(self, seed: int, samples: Sequence[bytes]) -> None:
        self.random = random.Random(seed)
        self._samples = samples

    def sample(self) -> bytes:
        """One of the good ones."""
        return self.random.choice(self._samples)

    def blind(self, data: bytes) -> bytes:
        """Some bytes flipped, removed, doubled, exchanged, or taken from another sample."""
        mutated = bytearray(data)
        for _ in range(self.random.choice([1, 1, 1, 2, 5])):
            self._change(mutated)
        return bytes(mutated)

    def _change(self, data: bytearray) -> None:
        start = self.random.randrange(len(data) + 1)
        stop = min(len(data), start + self.random.choice([1, 1, 2, 8, 64]))
        match self.random.randrange(7):
            case 0 if stop > start:
                data[start] ^= 1 << self.random.randrange(8)
            case 1:
                data[start:stop] = self.random.randbytes(stop - start)
            case 2:
                del data[start:stop]
            case 3:
                data[start:start] = data[start:stop]
            case 4:
                other = self.sample()
                begin = self.random.randrange(len(other))
                data[start:stop] = other[begin : begin + self.random.choice([1, 8, 64, 512])]
            case 5:
                del data[start:]
            case _:
                digits = b'0123456789-.eE[]{}",:'
                data[start:stop] = bytes(self.random.choice(digits) for _ in range(stop - start))

    def json(self, value: Any) -> Any:
        """A copy of a JSON value, one of whose parts is another."""
        changed = copy.deepcopy(value)
        for _ in range(self.random.choice([1, 1, 2, 4])):
            holder, key = self._part(changed)
            if holder is None:
                continue
            match self.random.randrange(4):
                case 0 if isinstance(holder, dict):
                    holder[self.random.choice(_NAMES)] = holder.pop(key)
                case 1:
                    del holder[key]
                case 2:
                    other, place = self._part(changed)
                    holder[key] = copy.deepcopy(other[place]) if other is not None else None
                case _:
                    holder[key] = copy.deepcopy(self.random.choice(_HOSTILE))
        return changed

    def _part(self, value: Any) -> tuple[Any, Any]:
        """A container below `value` and one of its keys, wherever."""
        holder: Any = None
        key: Any = None
        while isinstance(value, dict | list) and value:
            key = self.random.choice(list(value)) if isinstance(value, dict) else self.random.randrange(len(value))
            holder, value = value, value[key]
            if self.random.random() < 0.3:
                break
        return holder, key

    def json_text(self, value: Any) -> bytes:
        """JSON of such a value; sometimes nested deeper than any parser goes."""
        text = json.dumps(self.json(value), ensure_ascii=False).encode("utf-8", "backslashreplace")
        if self.random.random() < 0.02:
            depth = self.random.choice([200, 2_000, 100_000])
            text = text.replace(b":", b":" + b"[" * depth + b"]" * depth + b',"x":', 1)
        return text
