"""Orchestrators of many shapes, for laws that must hold of all of them. A new one needs the decorator `case` alone."""

from . import basics, cancelling, contexts, generating, groups, hosting, later, synchronizing, timing, waiting
from .cases import CORPUS, Case

__all__ = [
    "CORPUS",
    "Case",
    "basics",
    "cancelling",
    "contexts",
    "generating",
    "groups",
    "hosting",
    "later",
    "synchronizing",
    "timing",
    "waiting",
]
