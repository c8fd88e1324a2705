"""The samples, with their processes killed between any two steps: the outcome is the same each time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from ray_durable.testing import Environment, crash_everywhere
from samples import chaining, eternal, fan_out, human, nesting, timers


def greets(env: Environment) -> Any:
    return env.start(chaining.hello_sequence).result()


def copies(env: Environment, folder: Path) -> Any:
    site, store = folder / "site", folder / "store"
    site.mkdir(exist_ok=True)
    for number in range(3):
        (site / f"{number}.txt").write_text("x" * number)
    size = env.start(fan_out.backup_site_content, str(site), str(store)).result()
    return size, sorted(path.name for path in store.iterdir())


def verifies(env: Environment) -> Any:
    env.replace(human.send_sms_challenge, lambda phone: "0042")
    handle = env.start(human.verify_phone, "+1 555")
    for code in ("1111", "0042"):
        env.advance(timedelta(seconds=30))
        handle.raise_event("SmsChallengeResponse", code, event_id=code)
    return handle.result()


def cleans_up(env: Environment) -> Any:
    handle = env.start(eternal.periodic_cleanup)
    env.advance(timedelta(hours=2, minutes=30))
    handle.terminate("enough")
    status = handle.status()
    return status.execution, str(status.runtime_status)


def calls_another(env: Environment) -> Any:
    return env.start(nesting.greet_through_another).result()


def bills(env: Environment) -> Any:
    began, handle = env.now, env.start(timers.issue_bills, 3600.0, 3)
    return len(handle.result()), env.now - began


@pytest.mark.parametrize("victim", ["owner", "dispatcher"])
@pytest.mark.parametrize("scenario", [greets, copies, verifies, cleans_up, calls_another, bills])
def test_a_death_between_any_two_steps_changes_nothing(
    scenario: Callable[..., Any], victim: Literal["owner", "dispatcher"], tmp_path: Path
) -> None:
    """And no activity whose result was recorded runs again."""
    points = crash_everywhere(
        lambda env: scenario(env, tmp_path) if scenario is copies else scenario(env), victims=(victim,)
    )
    assert len(points) > 10
