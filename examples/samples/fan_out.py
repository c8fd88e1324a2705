"""Fan-out and fan-in: the files of a site are copied all at once, and their sizes added up."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import ray_durable as durable
from samples import journal


@durable.activity
def get_file_list(directory: str) -> list[str]:
    """The files below a directory, relative to it, in order."""
    journal.note("list")
    return sorted(str(path.relative_to(directory)) for path in Path(directory).rglob("*") if path.is_file())


@durable.activity
def copy_file(directory: str, name: str, store: str) -> int:
    """Copy one file into the store; how many bytes it has. Done twice, it leaves the same file."""
    journal.note(name)
    target = Path(store) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(directory) / name, target)
    return target.stat().st_size


@durable.orchestrator
async def backup_site_content(ctx: durable.OrchestrationContext, directory: str, store: str) -> int:
    """Copy all files of `directory` side by side; the bytes in all."""
    if not directory:
        raise ValueError("A directory path is required as input")
    names = await ctx.call_activity(get_file_list, directory)
    return sum(await asyncio.gather(*(ctx.call_activity(copy_file, directory, name, store) for name in names)))


@durable.orchestrator
def backup_by_generator(ctx: durable.OrchestrationContext, directory: str, store: str) -> Generator[Any, Any, int]:
    """The same with `task_all`."""
    names = yield ctx.call_activity(get_file_list, directory)
    sizes = yield ctx.task_all([ctx.call_activity(copy_file, directory, name, store) for name in names])
    return sum(sizes)
