"""The sample orchestrations of Durable Functions (examples/samples), each held to its expected result."""

from __future__ import annotations

import importlib
import re
import time
from collections import Counter
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.engine import (
    ExecutionCompleted,
    ExecutionStarted,
    SubOrchestrationInstanceCompleted,
    TaskCompleted,
    TimerCanceled,
    TimerFired,
)
from samples import chaining, eternal, failures, fan_out, human, monitor, nesting, timers
from samples.journal import let_pass, noted
from tests.cluster.harness import executed, failure_of, kill_owner, wait_for_new_owner, wait_until

GREETINGS = ["Hello Tokyo!", "Hello Seattle!", "Hello London!"]
CHAINS = [chaining.hello_sequence, chaining.hello_sequence_by_generator]
BACKUPS = [fan_out.backup_site_content, fan_out.backup_by_generator]
VERIFICATIONS = [human.verify_phone, human.verify_phone_by_generator]


def count(handle: durable.Handle[Any], kind: type) -> int:
    """How many events of a kind the history has."""
    return sum(isinstance(event, kind) for event in handle.history())


def kill_at_each_step(handle: durable.Handle[Any], steps: int) -> None:
    """SIGKILL the instance's process while each of its activities runs, and let them go on one by one. Every second
    one ends while the instance has no owner."""
    killed = None
    for step in range(1, steps + 1):
        executed(handle.instance_id, step)
        killed = kill_owner(handle, after=killed)
        if step % 2:
            wait_for_new_owner(handle, after=killed)
        let_pass(handle.instance_id, step)


# Function chaining


@pytest.mark.parametrize("orchestrator", CHAINS)
def test_chaining(hub: durable.Hub, instance_id: str, orchestrator: durable.Orchestrator[[], list[str]]) -> None:
    """Three greetings in order, each made once; the history is a start, three results and an end."""
    handle = hub.start(orchestrator, instance_id=instance_id)
    assert handle.result(60) == GREETINGS
    assert noted(instance_id) == ["Tokyo", "Seattle", "London"]
    history = handle.history()
    assert isinstance(history[0], ExecutionStarted)
    assert isinstance(history[-1], ExecutionCompleted)
    assert count(handle, TaskCompleted) == 3


@pytest.mark.parametrize("orchestrator", CHAINS)
def test_chaining_through_kills(
    hub: durable.Hub, instance_id: str, orchestrator: durable.Orchestrator[[], list[str]]
) -> None:
    """The same though its process is killed during each step; no greeting is made twice."""
    let_pass(instance_id, 0)
    handle = hub.start(orchestrator, instance_id=instance_id)
    kill_at_each_step(handle, 3)
    assert handle.result(60) == GREETINGS
    assert noted(instance_id) == ["Tokyo", "Seattle", "London"]


def test_chaining_with_custom_status(hub: durable.Hub, instance_id: str) -> None:
    """The custom status is the city that was greeted last."""
    let_pass(instance_id, 1)
    handle = hub.start(chaining.hello_with_status, instance_id=instance_id)
    for passed, city in enumerate(["Tokyo", "Seattle"], start=2):
        executed(instance_id, passed)
        assert wait_until(lambda: handle.status().custom_status, "it is set") == city
        let_pass(instance_id, passed)
    assert handle.result(60) == GREETINGS
    assert handle.status().custom_status == "London"


def test_counting_with_custom_status(hub: durable.Hub, instance_id: str) -> None:
    """The custom status draws the chain as it grows."""
    let_pass(instance_id, 1)
    handle = hub.start(chaining.count_with_status, instance_id=instance_id)
    for passed, drawn in enumerate(["1 ->", "1 -> 2 ->"], start=2):
        executed(instance_id, passed)
        assert wait_until(lambda: handle.status().custom_status, "it is set") == drawn
        let_pass(instance_id, passed)
    assert handle.result(60) == 3
    assert handle.status().custom_status == "1 -> 2 -> 3"


# Fan-out and fan-in


@pytest.fixture
def site(tmp_path: Path) -> tuple[str, str, int]:
    """A site of six files, a store for it, and the site's bytes."""
    sizes = {"index.html": 300, "style.css": 50, "img/a.png": 9_000, "img/b.png": 0, "img/icons/c.png": 70, "x": 1}
    for name, size in sizes.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return str(tmp_path / "site"), str(tmp_path / "store"), sum(sizes.values())


def files_below(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("orchestrator", BACKUPS)
def test_fan_out(
    hub: durable.Hub,
    instance_id: str,
    site: tuple[str, str, int],
    orchestrator: durable.Orchestrator[[str, str], int],
) -> None:
    """All files are in the store, each copied once; the result is their bytes."""
    directory, store, size_bytes = site
    assert hub.start(orchestrator, directory, store, instance_id=instance_id).result(60) == size_bytes
    assert files_below(store) == files_below(directory)
    assert Counter(noted(instance_id)) == Counter(["list", *files_below(directory)])


@pytest.mark.parametrize("orchestrator", BACKUPS)
def test_fan_out_through_kills(
    hub: durable.Hub,
    instance_id: str,
    site: tuple[str, str, int],
    orchestrator: durable.Orchestrator[[str, str], int],
) -> None:
    """The same though its process is killed while the files are listed, and while they are copied."""
    directory, store, size_bytes = site
    let_pass(instance_id, 0)
    handle = hub.start(orchestrator, directory, store, instance_id=instance_id)
    kill_at_each_step(handle, 4)
    let_pass(instance_id, None)
    assert handle.result(60) == size_bytes
    assert files_below(store) == files_below(directory)
    assert Counter(noted(instance_id)) == Counter(["list", *files_below(directory)])


def test_fan_out_without_directory(hub: durable.Hub, instance_id: str) -> None:
    """It fails, and says what it needs."""
    handle = hub.start(fan_out.backup_site_content, "", "store", instance_id=instance_id)
    assert "A directory path is required as input" in failure_of(handle)
    assert handle.status().runtime_status == "Failed"


def test_fan_out_over_nothing(hub: durable.Hub, instance_id: str, tmp_path: Path) -> None:
    """No files are no bytes."""
    handle = hub.start(fan_out.backup_site_content, str(tmp_path), str(tmp_path / "store"), instance_id=instance_id)
    assert handle.result(60) == 0


# Monitor


def test_monitor_alerts_once(hub: durable.Hub, instance_id: str, tmp_path: Path) -> None:
    """The third poll finds too many issues: three polls, two timers, one alert."""
    handle = hub.start(monitor.monitor_issues, str(tmp_path), "+1", 60, 0.2, instance_id=instance_id)
    assert handle.result(60) == "Monitor completed!"
    assert noted(instance_id) == ["poll"] * 3 + ["alert +1"]
    assert count(handle, TimerFired) == 2


def test_monitor_gives_up(hub: durable.Hub, instance_id: str, tmp_path: Path) -> None:
    """Where nothing happens it ends when it is too late, and alerts nobody."""
    quiet, for_s, every_s = str(tmp_path / "quiet"), 3.0, 0.5
    handle = hub.start(monitor.monitor_issues, quiet, "+1", for_s, every_s, instance_id=instance_id)
    assert handle.result(60) == "Monitor completed!"
    assert 1 <= len(noted(instance_id)) <= for_s / every_s
    assert set(noted(instance_id)) == {"poll"}
    history = handle.history()
    assert history[-1].time_us - history[0].time_us >= for_s * 1_000_000


# Human interaction


def code_sent(instance_id: str) -> str:
    """The code in the message to the phone."""
    return executed(instance_id, 1)[0].rpartition(" ")[2]


def another(code: str) -> str:
    return f"{(int(code) + 1) % 10_000:04}"


@pytest.mark.parametrize("orchestrator", VERIFICATIONS)
def test_phone_is_verified(
    hub: durable.Hub, instance_id: str, orchestrator: durable.Orchestrator[[str, float], bool]
) -> None:
    """By the right code in the third try, through kills; one message is sent, and the timer is withdrawn."""
    handle = hub.start(orchestrator, "+1 555", 180, instance_id=instance_id)
    code = code_sent(instance_id)
    for response in (another(code), another(code), code):
        kill_owner(handle)
        handle.raise_event("SmsChallengeResponse", response)
    assert handle.result(60) is True
    assert noted(instance_id) == [f"to +1 555: your code is {code}"]
    assert (count(handle, TimerCanceled), count(handle, TimerFired)) == (1, 0)


def test_phone_is_not_verified_by_three_wrong_codes(hub: durable.Hub, instance_id: str) -> None:
    """The fourth answer comes too late."""
    handle = hub.start(human.verify_phone, "+1 555", instance_id=instance_id)
    code = code_sent(instance_id)
    for _ in range(human.TRIES):
        handle.raise_event("SmsChallengeResponse", another(code))
    assert handle.result(60) is False
    with pytest.raises(durable.InstanceEndedError):
        handle.raise_event("SmsChallengeResponse", code)


@pytest.mark.parametrize("orchestrator", VERIFICATIONS)
def test_phone_is_not_verified_in_time(
    hub: durable.Hub, instance_id: str, orchestrator: durable.Orchestrator[[str, float], bool]
) -> None:
    """Nobody answers: the timer decides, though its process is killed meanwhile."""
    handle = hub.start(orchestrator, "+1 555", 3.0, instance_id=instance_id)
    code_sent(instance_id)
    kill_owner(handle)
    assert handle.result(60) is False
    assert count(handle, TimerFired) == 1


def test_phone_without_country_code(hub: durable.Hub, instance_id: str) -> None:
    """It fails with the activity's reason."""
    assert "'555' needs its country code" in failure_of(hub.start(human.verify_phone, "555", instance_id=instance_id))


@pytest.mark.parametrize(("answer", "decision"), [(True, "approved"), (False, "denied"), (None, "escalated")])
def test_approval(hub: durable.Hub, instance_id: str, answer: bool | None, decision: str) -> None:
    """One branch alone is taken; after the end no answer is accepted."""
    wait_s = 0.5 if answer is None else 60
    handle = hub.start(human.budget_approval, 100, wait_s, instance_id=instance_id)
    if answer is not None:
        handle.raise_event("Approval", answer)
    assert handle.result(60) == decision
    assert noted(instance_id) == [decision]
    with pytest.raises(durable.InstanceEndedError):
        handle.raise_event("Approval", True)


def test_first_of_several_events(hub: durable.Hub, instance_id: str) -> None:
    """The first that comes wins."""
    handle = hub.start(human.first_event, instance_id=instance_id)
    handle.raise_event("Event2")
    assert handle.result(60) == "Event2"


def test_all_of_several_events(hub: durable.Hub, instance_id: str) -> None:
    """The permit comes after all three answers, in whatever order, early ones included."""
    handle = hub.start(human.building_permit, "a shed", instance_id=instance_id)
    for office in ("BuildingDeptApproval", "CityPlanningApproval"):
        handle.raise_event(office)
    with pytest.raises(TimeoutError):
        handle.result(0.5)
    assert not noted(instance_id)
    handle.raise_event("FireDeptApproval")
    assert handle.result(60) == "permit for a shed"


# Eternal orchestrations and singletons


def test_eternal_orchestration(hub: durable.Hub, instance_id: str) -> None:
    """It goes round and round under one id, through a kill, each round once; its history stays short; it ends by
    termination alone."""
    rounds = 30
    handle = hub.start(eternal.periodic_cleanup, 0.02, instance_id=instance_id)
    executed(instance_id, rounds // 2)
    kill_owner(handle)
    executed(instance_id, rounds)
    status = handle.status()
    assert status.runtime_status == "Running"
    assert status.execution >= rounds - 1
    assert len(handle.history()) < 12
    handle.terminate("swept enough")
    with pytest.raises(durable.OrchestrationTerminatedError, match="swept enough") as caught:
        handle.result(60)
    assert caught.value.reason == "swept enough"
    assert handle.status().runtime_status == "Terminated"
    assert len(noted(instance_id)) in (handle.status().execution, handle.status().execution - 1)


def test_singleton(hub: durable.Hub, instance_id: str) -> None:
    """While it runs it is not started again; after its end it is."""
    handle, is_new = eternal.start_singleton(hub, instance_id)
    assert is_new
    executed(instance_id, 1)
    assert eternal.start_singleton(hub, instance_id)[1] is False
    with pytest.raises(
        durable.InstanceExistsError, match=re.escape(f"An instance with ID '{instance_id}' already exists")
    ):
        hub.start(eternal.periodic_cleanup, instance_id=instance_id)
    handle.terminate()
    handle, is_new = eternal.start_singleton(hub, instance_id)
    assert is_new
    executed(instance_id, 2)
    assert handle.status().execution == 2
    handle.terminate()


# Sub-orchestrations


def test_sub_orchestration(hub: durable.Hub, instance_id: str) -> None:
    """The result of an orchestrator that another one called."""
    handle = hub.start(nesting.greet_through_another, instance_id=instance_id)
    assert handle.result(60) == "Hello Seattle!"
    assert count(handle, SubOrchestrationInstanceCompleted) == 1


# Failures


def test_error_that_nobody_catches(hub: durable.Hub, instance_id: str) -> None:
    """The instance fails with the names of orchestrator and activity, and the activity's words."""
    text = failure_of(hub.start(failures.rethrow_activity_exception, instance_id=instance_id))
    assert text.startswith(
        "Orchestrator function 'rethrow_activity_exception' failed: Activity function 'raise_exception' failed: "
    )
    assert "This activity failed" in text


def test_error_that_is_caught(hub: durable.Hub, instance_id: str) -> None:
    """It is an exception like any other."""
    text = hub.start(failures.catch_activity_exception, instance_id=instance_id).result(60)
    assert text.startswith("Caught exception: Activity function 'raise_exception' failed: ")
    assert "This activity failed" in text


@pytest.fixture
def accounts(tmp_path: Path) -> tuple[Path, Path]:
    """An account with 100, and one that is empty."""
    for name in ("mine", "yours"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "opening").write_text("100")
    return tmp_path / "mine", tmp_path / "yours"


def test_transfer(hub: durable.Hub, instance_id: str, accounts: tuple[Path, Path]) -> None:
    """Debit and credit, each once."""
    mine, yours = map(str, accounts)
    transfer = failures.Transfer(mine, yours, 30)
    assert hub.start(failures.transfer_funds, transfer, instance_id=instance_id).result(60) == "transferred"
    assert (failures.balance(mine), failures.balance(yours)) == (70, 30)


def test_compensation(hub: durable.Hub, instance_id: str, accounts: tuple[Path, Path]) -> None:
    """The destination is broken: the source gets its money back, through a kill in each step."""
    mine, gone = str(accounts[0]), str(accounts[0].with_name("gone"))
    let_pass(instance_id, 0)
    handle = hub.start(failures.transfer_funds, failures.Transfer(mine, gone, 30), instance_id=instance_id)
    kill_at_each_step(handle, 3)
    assert handle.result(60) == "returned"
    assert failures.balance(mine) == 100
    assert noted(instance_id) == ["debit mine", "credit gone", "credit mine"]


# Timers and determinism


def test_billing(hub: durable.Hub, instance_id: str) -> None:
    """So many bills, none early, also over the loss of the process."""
    every_s, bills = 0.4, 5
    began_s = time.time()
    handle = hub.start(timers.issue_bills, every_s, bills, instance_id=instance_id)
    executed(instance_id, 2)
    kill_owner(handle)
    sent = handle.result(60)
    assert noted(instance_id) == [f"bill {number}" for number in range(bills)]
    assert sent[0].timestamp() - began_s >= every_s
    assert all(later - earlier >= timedelta(seconds=every_s) for earlier, later in pairwise(sent))


def test_determinism(hub: durable.Hub, ray_folder: Path, instance_id: str) -> None:
    """Ids and times are those of the first run in every replay, and each line is heard once."""
    word = "replay-safe"
    let_pass(instance_id, 0)
    handle = hub.start(timers.replay_safe, word, instance_id=instance_id)
    shown: list[list[str]] = []
    for step in range(1, 4):
        executed(instance_id, step)
        shown.append(handle.status().custom_status)
        killed = kill_owner(handle)
        wait_for_new_owner(handle, after=killed)
        let_pass(instance_id, step)
    moments = handle.result(60)
    assert shown == [[str(moment.id) for moment in moments[:step]] for step in range(1, 4)]
    assert len({moment.id for moment in moments}) == 3
    assert [moment.at for moment in moments] == sorted(moment.at for moment in moments)

    def heard(text: str) -> int:
        logs = (ray_folder / "session_latest" / "logs").glob("worker-*")
        return sum(log.read_text(errors="replace").count(f"{word} {text}.") for log in logs)

    wait_until(lambda: heard("logged 2"), "the last line is heard")
    assert [heard(f"{way} {step}") for way in ("logged", "printed") for step in range(3)] == [1] * 6


_SWAPPED = """
import ray_durable as durable
from samples import chaining, timers

@durable.orchestrator
async def changing(ctx: durable.OrchestrationContext) -> None:
    await ctx.call_activity({first})
    await ctx.call_activity({second})
"""


def test_code_that_no_longer_fits_its_history(
    hub: durable.Hub, instance_id: str, ledgers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two activities change places under a running instance: it fails, and shows what was and what is asked for."""
    hello, step, module = "chaining.say_hello, 'Ada'", "timers.take_step, 1", ledgers / "changing_code.py"
    module.write_text(_SWAPPED.format(first=hello, second=step))
    monkeypatch.syspath_prepend(str(ledgers))
    let_pass(instance_id, 0)
    handle = hub.start(importlib.import_module("changing_code").changing, instance_id=instance_id)
    executed(instance_id, 1)
    module.write_text("# The other way round.\n" + _SWAPPED.format(first=step, second=hello))
    kill_owner(handle)
    text = failure_of(handle)
    let_pass(instance_id, None)
    for part in ("NonDeterminismError", "say_hello", "take_step", "changing_code.py:8"):
        assert part in text
    assert "changing_code" in "".join(handle.status().warnings)
