"""Names of parametrised tests."""

from __future__ import annotations

import re

__all__ = ["named"]


def named(value: object) -> str:
    """`repr` (text as it is), without addresses: every process that collects the tests gives them the same names."""
    return re.sub(r" at 0x[0-9a-f]+", "", value if isinstance(value, str) else repr(value))
