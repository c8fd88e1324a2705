"""Recorded histories against the code of today."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import ray_durable as durable
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.hub import OpenHub
from ray_durable.storage.memory import MemoryStore
from ray_durable.testing import (
    Environment,
    Replayer,
    ReplayError,
    check_history,
    check_hub,
    export_history,
    read_history,
)
from tests.testing import flows


@pytest.fixture
def env() -> Iterator[Environment]:
    with Environment() as environment:
        environment.replace(flows.send_mail, lambda to: f"mail to {to}")
        yield environment


def on_disk(env: Environment, root: Path) -> Path:
    """The hub of an environment as a root on disk, as production would have left it."""
    store = MemoryStore.open(env.hub.address.root)

    async def copy() -> None:
        hub = await OpenHub.open(HubAddress(root=str(root), hub=env.hub.address.hub))
        await hub.create()

        async def walk(folder: str) -> None:
            for name in await store.list_folder(folder):
                if name.endswith("/"):
                    await walk(f"{folder}{name}")
                    continue
                data = await store.get(f"{folder}{name}")
                assert data is not None
                await hub.store.put(f"{folder}{name}", data)

        await walk("")
        await hub.close()

    asyncio.run(copy())
    return root


@durable.orchestrator
async def vet_that_prices_first(ctx: durable.OrchestrationContext, applicant: str) -> str:
    await ctx.call_activity(flows.price, applicant)
    return "changed"


def run_all_kinds(env: Environment) -> None:
    """One instance for each way in which a history can look."""
    env.start(flows.vet, "ann", instance_id="waits")
    env.start(flows.basket, ["pen"], instance_id="done").result()
    env.start(flows.round_robin, 2, instance_id="rounds")
    env.advance(timedelta(hours=1, minutes=30))
    env.start(flows.vet, "bob", instance_id="ended").terminate()
    env.start(flows.vet, "eve", instance_id="again").terminate()
    env.get("again").restart()
    env.start(flows.vet, "kim", instance_id="forked").fork("fork")
    env.start(flows.checkout, ["lee"], instance_id="calls").suspend()
    env.replace(flows.send_mail, lambda to: 1 / 0)
    env.start(flows.vet, "sam", instance_id="rewound")
    env.replace(flows.send_mail, lambda to: "mended")
    env.get("rewound").rewind()


def test_every_history_of_a_hub_is_replayed(env: Environment, tmp_path: Path) -> None:
    """Open and ended, continued, restarted, rewound, forked and suspended ones, from storage alone."""
    run_all_kinds(env)
    calls = len(env.calls())
    root = on_disk(env, tmp_path)
    report = check_hub(root, hub="hub", only_open=False)
    assert report, str(report)
    assert {one.instance_id for one in report} >= {"waits", "done", "rounds", "ended", "again", "fork", "rewound"}
    assert len(env.calls()) == calls


def test_only_open_instances_matter_before_a_deploy(env: Environment) -> None:
    """What has ended is never replayed again."""
    env.start(flows.vet, "ann", instance_id="open")
    env.start(flows.basket, ["pen"], instance_id="ended").result()
    assert [one.instance_id for one in check_hub(env.hub)] == ["open"]


def test_changed_code_is_found_with_the_difference(env: Environment) -> None:
    """The replay is false, and tells what the history has and what the code asks for."""
    env.start(flows.vet, "ann", instance_id="a")
    with Replayer(env.hub) as replayer:
        assert replayer.check("a")
        found = replayer.check("a", vet_that_prices_first)
    assert not found
    assert found.outcome == "diverged"
    assert "send_mail" in str(found)
    assert "price" in str(found)
    with pytest.raises(durable.NonDeterminismError):
        found.raise_if_failed()


def test_code_that_is_gone_is_told_from_code_that_changed(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names the function that is missing, and the others are checked all the same."""
    env.start(flows.vet, "ann", instance_id="gone")
    env.start(flows.round_robin, 1, instance_id="there")
    monkeypatch.delattr(flows, "vet")
    report = check_hub(env.hub)
    assert not report
    assert [(one.instance_id, one.outcome) for one in report.failed] == [("gone", "not loaded")]
    with pytest.raises(ReplayError, match=r"1 of 2 histories(?s:.*)vet"):
        report.raise_if_failed()


def test_an_unknown_instance_is_no_outcome(env: Environment) -> None:
    """It is a mistake of the caller's."""
    with Replayer(env.hub) as replayer, pytest.raises(durable.InstanceNotFoundError):
        replayer.check("nobody")


def test_a_history_is_kept_as_a_file(env: Environment, tmp_path: Path) -> None:
    """Exported, it is text, holds the same events, and is replayed without its hub."""
    handle = env.start(flows.vet, "ann")
    file = tmp_path / "vet.jsonl"
    export_history(handle, file)
    assert file.read_text(encoding="ascii").count("\n") == 1 + len(handle.history())
    with Replayer(env.hub) as replayer:
        assert read_history(file) == replayer.history(handle.instance_id)
    assert check_history(file)
    assert check_history(file, flows.vet)
    assert not check_history(file, vet_that_prices_first)


def test_large_and_binary_payloads_go_into_the_file(env: Environment, tmp_path: Path) -> None:
    """Blobs too: the file is whole."""
    texts = [chr(65 + n % 26) * 9_000 for n in range(40)]
    handle = env.start(flows.basket, texts)
    assert handle.result() == 360_000
    file = tmp_path / "basket.jsonl"
    export_history(handle, file)
    assert check_history(file)
    whole = read_history(file)
    assert [event.number for event in whole] == [event.number for event in handle.history()]


def test_earlier_executions_can_be_checked(env: Environment) -> None:
    """Before a continue-as-new, the log ends with the link to the next."""
    handle = env.start(flows.round_robin, 2, instance_id="r")
    handle.result()
    with Replayer(env.hub) as replayer:
        assert [replayer.check("r", execution=number).outcome for number in (1, 2, 3)] == ["ok"] * 3


def test_an_instance_that_failed_by_divergence_is_judged_by_the_mended_code(env: Environment) -> None:
    """What was recorded when the code could not go on says nothing of the code."""
    behaviour: dict[str, Callable[[Any], Any]] = {"now": lambda ctx: ctx.create_timer(timedelta(hours=1))}

    @durable.orchestrator
    async def moody(ctx: durable.OrchestrationContext) -> None:
        await behaviour["now"](ctx)
        await ctx.wait_for_external_event("More")

    handle = env.start(moody, instance_id="m")
    behaviour["now"] = lambda ctx: ctx.call_activity(flows.price, "pen")
    env.lose_owner(handle)
    assert handle.status().runtime_status == "Failed"
    with Replayer(env.hub) as replayer:
        assert not replayer.check("m")
        behaviour["now"] = lambda ctx: ctx.create_timer(timedelta(hours=1))
        assert replayer.check("m")


def test_what_nobody_ran_yet_is_not_run_by_the_check(env: Environment) -> None:
    """A history of the start alone shows only whether code and arguments can be loaded."""
    ran: list[str] = []

    @durable.orchestrator
    async def eager(ctx: durable.OrchestrationContext) -> None:
        ran.append("it")
        await ctx.wait_for_external_event("More")

    history = env.start(eager).history()[:1]
    del ran[:]
    assert check_history(history, eager)
    assert ran == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"some": "json"}\n', "is no history"),
        (b"text\n", "is no history"),
        (b'{"kind": "ray_durable history", "v": 9, "count": 0}\n', "format version 9"),
        (b'{"kind": "ray_durable history", "v": 1, "count": 2}\n', "cut off"),
    ],
)
def test_what_is_no_history_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """With the file's name, and what to do."""
    file = tmp_path / "history.jsonl"
    file.write_bytes(content)
    with pytest.raises(durable.CorruptLogError, match=reason):
        check_history(file)


def test_pickled_values_are_loaded_only_on_request(env: Environment, tmp_path: Path) -> None:
    """A file may come from anywhere."""

    @durable.orchestrator
    async def takes(ctx: durable.OrchestrationContext, value: object) -> str:
        return str(await ctx.wait_for_external_event("More"))

    handle = env.start(takes, complex(1, 2))
    file = tmp_path / "takes.jsonl"
    export_history(handle, file)
    refused = check_history(file, takes)
    assert refused.outcome != "ok"
    assert check_history(file, takes, allows_pickle=True)
