"""The checks at the end of a chaos run find what they are for: real histories, against ledgers that were altered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ray_durable.testing import Environment
from tests.chaos import flows
from tests.chaos.audit import Audit
from tests.chaos.flows import LEDGER_VARIABLE, Run, read_ledger
from tests.chaos.load import Job

CHAIN = Job(instance="chain", name="chain", args=[3, 0], result=3, is_started=True)
COLLECTS = Job(instance="collects", name="collects", args=[1], result=[0], is_started=True, acknowledged=["event 0"])
JOBS = [CHAIN, COLLECTS]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """With a chain, a map and an instance that was told a number, all of which have ended."""
    monkeypatch.setenv(LEDGER_VARIABLE, str(tmp_path / "ledger"))
    # The ledger is written by the clock of the machine; the logs are to be later.
    with Environment(start_time=datetime.now(UTC) + timedelta(days=1)) as environment:
        environment.start(flows.chain, *CHAIN.args, instance_id="chain").result()
        environment.start(flows.mapped, 4, instance_id="map").result()
        collects = environment.start(flows.collects, 1, instance_id="collects")
        collects.raise_event("Number", 0, event_id="event 0")
        collects.result()
        yield environment


@pytest.fixture
def runs(environment: Environment, tmp_path: Path) -> list[Run]:
    """What really ran."""
    return read_ledger(tmp_path / "ledger")


def audited(
    environment: Environment, runs: Sequence[Run], *, jobs: Sequence[Job] = JOBS, killed: frozenset[int] = frozenset()
) -> Audit:
    audit = Audit(jobs=jobs, runs=runs, killed=set(killed))
    audit.check(environment.hub)
    return audit


def found(audit: Audit) -> list[str]:
    return [violation.what for violation in audit.violations]


def test_what_went_well_is_let_through(environment: Environment, runs: list[Run]) -> None:
    """Ledger and logs agree."""
    audit = audited(environment, runs)
    assert not audit.violations
    assert (audit.executions, audit.outcomes, audit.events, len(runs)) == (3, 8, 1, 8)


@pytest.mark.parametrize("which", [0, 4])
def test_an_outcome_without_a_run_is_found(environment: Environment, runs: list[Run], which: int) -> None:
    """A call, and an item of a map."""
    del runs[which]
    assert found(audited(environment, runs)) == ["an outcome of what never ran"]


def test_a_run_that_nobody_asked_for_is_found(environment: Environment, runs: list[Run]) -> None:
    """An activity is started once it is in the log, and never before."""
    runs.append(replace(runs[0], key="unheard-of"))
    assert found(audited(environment, runs)) == ["it ran, and no log asked for it"]


@pytest.mark.parametrize("which", [0, 4])
def test_a_run_too_many_is_found(environment: Environment, runs: list[Run], which: int) -> None:
    """Unless its process was killed: then only the dispatcher had counted it, and was lost, too."""
    again = replace(runs[which], pid=99)
    assert found(audited(environment, [*runs, again])) == ["it ran more often than the log counts"]
    audit = audited(environment, [*runs, again], killed=frozenset({99}))
    assert not audit.violations
    assert (audit.repeated, audit.uncounted) == (1, 1)


def test_a_run_after_its_outcome_is_found(environment: Environment, runs: list[Run]) -> None:
    """Even one that would be counted."""
    late_us = runs[0].began_us + int(timedelta(days=2).total_seconds()) * 1_000_000
    again = replace(runs[0], pid=99, began_us=late_us)
    audit = audited(environment, [*runs, again], killed=frozenset({99}))
    assert found(audit) == ["it ran after its outcome was recorded"]


def test_what_was_acknowledged_and_is_not_there_is_found(environment: Environment, runs: list[Run]) -> None:
    """A start, and an event."""
    lost = Job(instance="lost", name="chain", args=[], result=0, is_started=True)
    untold = replace(COLLECTS, acknowledged=["event 0", "event 1"])
    audit = audited(environment, runs, jobs=[CHAIN, untold, lost])
    assert sorted(found(audit)) == ["an acknowledged event is lost", "an acknowledged start is lost"]
