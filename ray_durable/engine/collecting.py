"""Whether the cyclic garbage collector is at work.

When it runs is chance: it depends on everything that the process has allocated. What it frees must not show in an
orchestrator, unlike what is freed because the last reference went, at a fixed place of the code.
"""

from __future__ import annotations

import gc

# The module below `threading`: nothing is started here, a thread is only told from others.
from _thread import get_ident
from typing import Any

__all__ = ["is_collecting"]

_collecting_thread: int | None = None


def _note(phase: str, info: dict[str, Any]) -> None:
    global _collecting_thread
    _collecting_thread = get_ident() if phase == "start" else None


gc.callbacks.append(_note)


def is_collecting() -> bool:
    """Whether the present code is called by the cyclic garbage collector."""
    return _collecting_thread == get_ident()
