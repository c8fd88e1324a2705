"""Roots that were recorded once are read for ever: storage/golden/README.md says what they are."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import verify
from golden import flows, record
from ray_durable.reader import browse
from ray_durable.testing import check_hub
from verify_lib.segments import EVENT_TYPES

GOLDEN = Path(record.__file__).parent
ROOTS = sorted(path.parent.name for path in GOLDEN.glob("*/expected.json"))

# The event that each unfinished instance waits for, None where it came already; the others wait for time alone.
WAITING: dict[str, dict[str, str | None]] = {
    "features": {
        "waiting": "Go",
        "long " + "name " * 40: "Go",
        "named child": "Go",
        "suspended": None,
        "takes back": "Go",
        "later": "Go",
        "begun later": "Go",
    },
    "ray": {"waiting": "Go"},
}
UNLOADABLE = "code is gone"


def expected(name: str) -> dict[str, Any]:
    """What was told when the root was recorded."""
    fields: dict[str, Any] = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))
    return fields


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a recorded root: nothing is to change what lies here."""
    name: str = request.param
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    return folder


every_root = pytest.mark.parametrize("root", ROOTS, indirect=True)


def test_each_root_is_described() -> None:
    """The table names what lies there, and nothing else."""
    text = (GOLDEN / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")]
    assert sorted(rows) == ROOTS
    assert ROOTS


def test_no_root_tells_on_what_machine_it_was_recorded() -> None:
    """The paths of code that histories hold are those of one place."""
    code = re.compile(rb"(/[^\s\"\\]*?)/(?:storage/golden|ray_durable)/[a-z_/]*\.py|\"path\":\"([^\"]*?)/storage\"")
    files = [path for name in ROOTS for path in (GOLDEN / name).rglob("*") if path.is_file()]
    places = {first or second for path in files for first, second in code.findall(path.read_bytes())}
    assert places == {str(record.PLACE).encode()}


def test_every_type_of_event_is_recorded() -> None:
    """No reader of one can be lost unnoticed."""
    found: set[str] = set()
    for path in GOLDEN.glob("*/hub/**/*"):
        if path.is_file() and not path.name.startswith("purged") and {"instances", "log"} & set(path.parts):
            lines = path.read_bytes().split(b"\n")
            found |= {json.loads(line)["type"] for line in lines[1 : 1 + json.loads(lines[0])["count"]]}
    assert found == EVENT_TYPES


def test_hints_are_recorded() -> None:
    """Owners have left what waits: for a timer, and for an event."""
    entries = [json.loads(path.read_bytes()) for path in (GOLDEN / "features" / "hub" / "index" / "open").iterdir()]
    hints = {entry["instance"]: entry["wake"] for entry in entries if "wake" in entry}
    assert {"sleeper", "waiting", "later"} <= hints.keys()
    assert "due_us" in hints["sleeper"]
    assert "due_us" not in hints["waiting"]
    assert any("problem" in entry for entry in entries)


@every_root
def test_the_checker_finds_no_damage(root: Path) -> None:
    """What was sound then is sound by today's checks."""
    report = verify.verify_hub(root / record.HUB)
    assert report.damage == []
    assert {one.rule for one in report.findings} <= {"orphan"}
    assert report.executions >= len(expected(root.name))


@every_root
def test_statuses_results_and_listings_are_read(root: Path) -> None:
    """Today's code tells what the code of then told."""
    assert record.summarize_root(root) == expected(root.name)
    with browse(root, hub=record.HUB) as hub:
        for name, fields in expected(root.name).items():
            status = hub.get(name).status()
            assert str(status.runtime_status) == fields["status"]
            history = hub.get(name).history()
            assert len(history) > 0
            found = hub.instances(prefix=name, status=fields["status"])
            assert name in [one.instance_id for one in found]


@every_root
def test_histories_replay(root: Path) -> None:
    """Today's engine takes each history's steps again, of ended instances too."""
    report = check_hub(root, hub=record.HUB, only_open=False)
    wrong = [one for one in report.replays if one.error is not None and one.instance_id != UNLOADABLE]
    assert wrong == []
    assert len(report.replays) == len(expected(root.name))


@every_root
def test_what_has_not_ended_goes_on_to_its_end(root: Path, tmp_path: Path) -> None:
    """Today's runtime takes the instances over, as it would after an upgrade, and leaves a sound root."""
    flows.broken.clear()
    continued = tmp_path / "continued"
    record.finish_open(root, WAITING[root.name]).write(continued)
    statuses = {name: fields["status"] for name, fields in record.summarize_root(continued).items()}
    unfinished = {name for name, status in statuses.items() if status in ("Pending", "Running", "Suspended")}
    assert unfinished <= {UNLOADABLE}
    before = {name: fields["status"] for name, fields in expected(root.name).items()}
    assert {name for name, status in statuses.items() if status == "Failed"} == {
        name for name, status in before.items() if status == "Failed"
    }
    report = verify.verify_hub(continued / record.HUB)
    assert report.damage == []
    assert {one.rule for one in report.findings} <= {"orphan", "removal"}
