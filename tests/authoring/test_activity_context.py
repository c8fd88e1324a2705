"""What a running activity learns about itself."""

from __future__ import annotations

import asyncio

import pytest

from ray_durable.activity_context import ActivityInfo, activity_scope, current_activity
from ray_durable.errors import DurableError


def info(task_id: str) -> ActivityInfo:
    return ActivityInfo(name="work", instance_id="i", task_id=task_id, attempt=1, idempotency_key=f"i:{task_id}")


def test_outside_an_activity_there_is_no_info() -> None:
    """The plain function called directly gets a clear error."""
    with pytest.raises(DurableError, match="inside a running activity only"):
        current_activity()


def test_the_scope_ends_with_the_activity() -> None:
    """Nested scopes restore the outer one; after the last there is none."""
    with activity_scope(info("1")):
        with activity_scope(info("2")):
            assert current_activity().task_id == "2"
        assert current_activity().task_id == "1"
    with pytest.raises(DurableError):
        current_activity()


def test_async_activities_that_run_together_see_their_own_info() -> None:
    """Items of one slice run concurrently and are not mixed up."""

    async def one(task_id: str) -> str:
        with activity_scope(info(task_id)):
            await asyncio.sleep(0)
            return current_activity().idempotency_key

    async def both() -> tuple[str, str]:
        first, second = await asyncio.gather(one("1"), one("2"))
        return first, second

    assert asyncio.run(both()) == ("i:1", "i:2")
