"""What a check finds, and how bad it is.

*Damage* is what no program that follows FORMAT.md leaves behind, wherever it is stopped: objects that were lost,
changed or written against the rules. A *note* is what such a program may leave when it is stopped half-way, and what
the hub puts right by itself or can do without.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DamageError", "Finding", "Report"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`rule` names the kind of finding for programs, `key` the object below the hub, `instances` whom it concerns."""

    is_damage: bool
    rule: str
    key: str
    text: str
    instances: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        severity = "damage" if self.is_damage else "note"
        fields = {"severity": severity, "rule": self.rule, "key": self.key, "text": self.text}
        return fields | {"instances": list(self.instances)}


class DamageError(Exception):
    """Why a log cannot be followed any further."""

    def __init__(self, rule: str, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}")
        self.rule = rule
        self.key = key
        self.text = text


@dataclass(slots=True)
class Report:
    """All findings about one hub, and how much was looked at."""

    hub: str
    findings: list[Finding] = field(default_factory=list)
    instances: int = 0
    executions: int = 0
    segments: int = 0
    events: int = 0
    blobs: int = 0

    @property
    def damage(self) -> list[str]:
        """The damage, as texts that begin with the object's key."""
        return [str(finding) for finding in self.findings if finding.is_damage]

    @property
    def notes(self) -> list[str]:
        """The notes, as texts that begin with the object's key."""
        return [str(finding) for finding in self.findings if not finding.is_damage]

    def add_damage(self, rule: str, key: str, text: str, *instances: str) -> None:
        """Something is not as it can be."""
        self.findings.append(Finding(True, rule, key, text, instances))

    def add_note(self, rule: str, key: str, text: str, *instances: str) -> None:
        """Something is worth a look."""
        self.findings.append(Finding(False, rule, key, text, instances))

    def keep_only(self, others: Iterable[Finding]) -> None:
        """Forget what is not among `others`, found of the same hub a moment later: it changed while it was read."""
        still = {(finding.rule, finding.key) for finding in others}
        self.findings = [finding for finding in self.findings if (finding.rule, finding.key) in still]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        counts = {name: getattr(self, name) for name in ("instances", "executions", "segments", "events", "blobs")}
        return {"hub": self.hub, **counts, "findings": [finding.to_json() for finding in self.findings]}
