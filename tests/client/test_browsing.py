"""Browsing a hub: where there is none, and with arguments that cannot work."""

from __future__ import annotations

import asyncio
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

import ray_durable as durable
from ray_durable.runtime.address import HubAddress
from ray_durable.runtime.hub import OpenHub
from tests.client.roots import make_hub


def test_a_root_that_does_not_exist_is_named_and_not_made(tmp_path: Path) -> None:
    """A typing error in the path is told at once, and leaves no folders."""
    with pytest.raises(durable.ConfigurationError, match=r"There is no hub 'default' at .*missing"):
        durable.browse(tmp_path / "missing" / "root")
    assert not list(tmp_path.iterdir())


def test_a_hub_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """The root is there, the hub is not."""
    root = make_hub(tmp_path, instance_id="one", hub="this")
    with pytest.raises(durable.ConfigurationError, match="There is no hub 'that'"):
        durable.browse(root, hub="that")


def test_creating_a_hub_makes_its_root_for_the_owner_only(tmp_path: Path) -> None:
    """And what was captured by value is trusted there from the start."""
    root = tmp_path / "new" / "root"

    async def create() -> OpenHub:
        hub = await OpenHub.open(HubAddress(root=str(root), hub="default"))
        assert not hub.codec.trust.allows_pickle
        await hub.create()
        await hub.close()
        return hub

    hub = asyncio.run(create())
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert hub.codec.trust.allows_pickle


def test_an_unknown_status_is_refused_with_those_there_are(tmp_path: Path) -> None:
    """Alone or among others."""
    with durable.browse(make_hub(tmp_path, instance_id="one")) as reader:
        for status in ("bogus", ["Pending", "bogus"]):
            with pytest.raises(durable.ConfigurationError, match=r"'bogus'.*'Pending'.*'Completed'"):
                reader.instances(status=status)
        assert [one.instance_id for one in reader.instances(status="Pending")] == ["one"]


def test_a_moment_without_time_zone_is_refused(tmp_path: Path) -> None:
    """Whose midnight it would be is anybody's guess."""
    with durable.browse(make_hub(tmp_path, instance_id="one")) as reader:
        naive = datetime(2020, 1, 1)
        with pytest.raises(durable.ConfigurationError, match=r"created_from.*time zone"):
            reader.instances(created_from=naive)
        with pytest.raises(durable.ConfigurationError, match=r"created_to.*time zone"):
            reader.instances(created_to=naive)
        assert len(reader.instances(created_from=datetime(2020, 1, 1, tzinfo=UTC))) == 1
