"""The example settings of a bucket: what they forbid is what the format writes once, and nothing that it overwrites."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from ray_durable.storage import HubKeys

FOLDER = Path(__file__).parents[2] / "storage" / "s3"
KEYS = HubKeys("prod")
RUN, DIGEST = "5f1c0b7e9a3d4c2e8b6f7a1d0c9e8f7a", "ab" * 32
IDS = ("nightly-42", "a", "b" * 150, "日本" * 60)


def statement(file: str, sid: str) -> dict[str, object]:
    policy = json.loads((FOLDER / file).read_text())
    (found,) = [one for one in policy["Statement"] if one["Sid"] == sid]
    assert isinstance(found, dict)
    return found


def is_named(patterns: list[str], key: str) -> bool:
    arn = f"arn:aws:s3:::BUCKET/ROOT/{key}"
    return any(fnmatchcase(arn, pattern) for pattern in patterns)


@pytest.fixture
def protected() -> list[str]:
    patterns = statement("bucket-policy.json", "LogsAreNeverOverwritten")["Resource"]
    assert isinstance(patterns, list)
    return patterns


@pytest.mark.parametrize("instance_id", IDS)
def test_what_is_written_once_is_protected(protected: list[str], instance_id: str) -> None:
    for key in (
        KEYS.segment(RUN, 1),
        KEYS.segment(RUN, 123_456),
        KEYS.blob(RUN, DIGEST),
        KEYS.execution(instance_id, 1),
        KEYS.hub_epoch(3),
    ):
        assert is_named(protected, key), key


@pytest.mark.parametrize("instance_id", IDS)
def test_what_is_overwritten_is_not(protected: list[str], instance_id: str) -> None:
    """A tombstone may have to replace one that somebody without the hub's key made."""
    for key in (
        KEYS.open_entry(instance_id),
        KEYS.ended_entry(instance_id, 1_764_000_000_000_000, "Completed"),
        KEYS.retired_entry(instance_id, 1_764_000_000_000_000),
        KEYS.purged(instance_id, 1),
        KEYS.lease,
        KEYS.probe("00"),
    ):
        assert not is_named(protected, key), key


def test_no_rule_expires_objects() -> None:
    """Only versions and uploads that nobody sees any more."""
    rules = json.loads((FOLDER / "lifecycle.json").read_text())["Rules"]
    for rule in rules:
        assert rule["Filter"] == {"Prefix": "ROOT/"}
        assert set(rule.get("Expiration", {})) <= {"ExpiredObjectDeleteMarker"}
        assert "Transitions" not in rule
