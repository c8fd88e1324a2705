"""A census of Python source code: a pipeline that survives kill -9.

`census` below is the whole of it: list the files, parse every one of them in parallel, gather the facts into a table.
Each step is remembered when it is done, so whatever dies, the run goes on from there.

    python examples/code_census.py                   the standard library and all installed packages
    python examples/code_census.py --root ~/src      another tree
    python examples/code_census.py --kill-halfway    SIGKILL the orchestrator half-way, and check that nothing is lost

Press Ctrl-C and run the same command again: it finds the unfinished run and goes on. The paths of sources and output
are those of the machine that runs the activities; on a cluster of several nodes they must be shared.
"""

import argparse
import ast
import hashlib
import json
import os
import shutil
import signal
import site
import socket
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import ray_durable as durable
from census_report import ExecutionCount, count_executions, show_executions, show_table

# ray_durable takes the types of stored values from annotations, and the functions of a script travel to the workers by
# value. So there is no `from __future__ import annotations` here: annotations have to be types, not names of types.


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file to parse, and the folder where its parsing is noted (see `note_execution`)."""

    path: str
    ledger: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is known of one file: a row of the table.

    `imports` are the top-level modules that it names, sorted, each once; relative imports are left out. Of equally long
    functions the first counts. A file that cannot be parsed has its number of lines, if it could be read, and `error`.
    """

    path: str
    lines: int = 0
    functions: int = 0
    classes: int = 0
    imports: tuple[str, ...] = ()
    longest_function: str | None = None
    longest_function_lines: int = 0
    error: str | None = None


# The pipeline. Activities do the work: they run as Ray tasks, at least once each, and may do whatever they like. The
# orchestrator only decides what comes next: it is run again from its log after a crash, so it must be deterministic.


@durable.activity
def list_files(roots: list[str], ledger: str) -> list[SourceFile]:
    """All Python files below the roots."""
    return [SourceFile(path=path, ledger=ledger) for path in find_files(roots)]


@durable.activity
def parse_file(file: SourceFile) -> FileFacts:
    """The facts of one file. A file that cannot be parsed is counted, not fatal."""
    note_execution(file)
    return read_facts(file.path)


@durable.activity
def write_table(facts: list[FileFacts], output: str) -> int:
    """Write the facts as a Parquet file and return the number of rows. Running twice does no harm."""
    temporary = f"{output}.{os.getpid()}.tmp"
    pq.write_table(make_table(facts), temporary)
    os.replace(temporary, output)
    return len(facts)


@durable.orchestrator
async def census(ctx: durable.OrchestrationContext, roots: list[str], output: str, ledger: str) -> int:
    """List, parse, gather. Returns the number of files."""
    ctx.set_custom_status("listing")
    files = await ctx.call_activity(list_files, roots, ledger)
    ctx.set_custom_status("parsing")
    facts = await ctx.map(parse_file, files)
    ctx.set_custom_status("writing")
    return await ctx.call_activity(write_table, facts, output)


# What the activities do, as plain functions.


def interpreter_roots() -> list[str]:
    """The folders of the running interpreter's standard library and installed packages."""
    folders = [sysconfig.get_path("stdlib"), *site.getsitepackages()]
    return sorted({os.path.realpath(folder) for folder in folders if os.path.isdir(folder)})


def find_files(roots: Iterable[str]) -> list[str]:
    """The real paths of all `.py` files below the roots, sorted, each once however many links lead to it.

    Installed packages inside a root (`site-packages`) are left out unless they are a root themselves. So are names that
    are not valid Unicode, which no JSON can hold.
    """
    found = set()
    for root in roots:
        for folder, folders, names in os.walk(os.path.realpath(root)):
            folders[:] = [name for name in folders if name not in ("site-packages", "dist-packages")]
            found |= {os.path.realpath(os.path.join(folder, name)) for name in names if name.endswith(".py")}
    return sorted(path for path in found if not any("\ud800" <= char <= "\udfff" for char in path))


def read_facts(path: str) -> FileFacts:
    """Read and parse one file."""
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        return FileFacts(path=path, error=f"{type(error).__name__}: {error.strerror}")
    return source_facts(path, source)


def source_facts(path: str, source: bytes) -> FileFacts:
    """The facts of a source text. Pure."""
    lines = len(source.splitlines())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Old code is full of invalid escapes, and they are not the census' business.
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # Bad syntax, bad encoding, null bytes; the last two are how CPython refuses code that is nested too deeply.
        return FileFacts(path=path, lines=lines, error=f"{type(error).__name__}: {error}")
    functions, classes, imports, longest = 0, 0, set[str](), ("", 0)
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                functions += 1
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                longest = max(longest, (node.name, length), key=lambda named: named[1])
            case ast.ClassDef():
                classes += 1
            case ast.Import():
                imports |= {alias.name.partition(".")[0] for alias in node.names}
            case ast.ImportFrom(module=str(module), level=0):
                imports.add(module.partition(".")[0])
    return FileFacts(
        path=path,
        lines=lines,
        functions=functions,
        classes=classes,
        imports=tuple(sorted(imports)),
        longest_function=longest[0] or None,
        longest_function_lines=longest[1],
    )


def make_table(facts: list[FileFacts]) -> pa.Table:
    """One row a file, in the order given."""
    schema = pa.schema(
        {
            "path": pa.string(),
            "lines": pa.int64(),
            "functions": pa.int64(),
            "classes": pa.int64(),
            "imports": pa.list_(pa.string()),
            "longest_function": pa.string(),
            "longest_function_lines": pa.int64(),
            "error": pa.string(),
        }
    )
    return pa.table({name: [getattr(row, name) for row in facts] for name in schema.names}, schema=schema)


def note_execution(file: SourceFile) -> None:
    """Note in the ledger that a file is being parsed: what really ran, outside of everything ray_durable knows.

    Each process appends to a file of its own, a line at once and unbuffered, so that a kill cannot take it back.
    """
    os.makedirs(file.ledger, exist_ok=True)
    with open(os.path.join(file.ledger, f"{socket.gethostname()}-{os.getpid()}"), "ab", buffering=0) as notes:
        notes.write(json.dumps(file.path).encode() + b"\n")


# The script: start or find the run, follow it, show and check what came out.

ENDED = ("Completed", "Failed", "Terminated")


def attach(hub: durable.Hub, roots: list[str], output: str) -> tuple[durable.Handle[int], bool]:
    """The unfinished run of these options, or a new one; and whether it was there before.

    The id comes from the options and a counter, so the same command finds its run again without keeping notes.
    """
    digest = hashlib.sha256(json.dumps([roots, output]).encode()).hexdigest()
    prefix = f"census-{digest[:10]}-"
    last = 0
    for status in hub.instances(prefix=prefix):
        if status.runtime_status not in ENDED:
            return hub.get(status.instance_id), True
        last = max(last, int(status.instance_id.removeprefix(prefix)))
    instance_id = f"{prefix}{last + 1:04}"
    try:
        return hub.start(census, roots, output, ledger_of(output, instance_id), instance_id=instance_id), False
    except durable.InstanceExistsError:  # Another terminal was quicker.
        return hub.get(instance_id), True


def ledger_of(output: str, instance_id: str) -> str:
    """The ledger's folder: beside the output, one for each run."""
    return os.path.join(f"{output}.ledger", instance_id)


class Killer:
    """Sends SIGKILL to the orchestrator's process once half the work is done, and notices who goes on with it."""

    def __init__(self, handle: durable.Handle[int], console: Console) -> None:
        self.killed_pid: int | None = None
        self._handle = handle
        self._console = console
        self._killed_at_s = 0.0
        self._resumed = False

    def look(self, progress: durable.Progress) -> None:
        """Called with every new status."""
        # Before the files are listed, the listing is all there is to do: that is not the half-way that was meant.
        if self._resumed or progress.total < 2 or progress.done * 2 < progress.total:
            return
        owner = self._handle.owner()
        if owner is None or owner.pid == self.killed_pid:
            return
        if self.killed_pid is not None:
            self._resumed = True
            waited_s = time.monotonic() - self._killed_at_s
            self._console.print(f"Process {owner.pid} has read the log and goes on, {waited_s:.1f} s later.")
        elif owner.host == socket.gethostname():
            os.kill(owner.pid, signal.SIGKILL)
            self.killed_pid, self._killed_at_s = owner.pid, time.monotonic()
            step = f"step {progress.done:,} of {progress.total:,}"
            self._console.print(f"Killed the orchestrator, process {owner.pid}, with SIGKILL at {step}.")


def follow(handle: durable.Handle[int], killer: Killer | None, console: Console) -> None:
    """Show a progress bar until the run has ended. Raises if it failed."""
    columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("waiting", total=None)
        ended = False
        while not ended:
            try:
                handle.result(timeout=0.2)
                ended = True
            except TimeoutError:
                pass
            status = handle.status()
            progress = status.progress
            bars.update(
                bar,
                description="done" if ended else str(status.custom_status or "waiting"),
                completed=progress.done + progress.failed,
                total=progress.total or None,
            )
            if killer and not ended:
                killer.look(progress)


def compute_plainly(roots: list[str]) -> pa.Table:
    """The same table without ray_durable, to compare with."""
    # The terminal sends Ctrl-C to these processes too; the script alone decides what it means.
    with ProcessPoolExecutor(
        mp_context=get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        return make_table(list(pool.map(read_facts, find_files(roots), chunksize=64)))


def run(roots: list[str], output: str, *, kill_halfway: bool, console: Console) -> int:
    """Run or resume the census, show and check it. Returns the exit code."""
    try:
        with closing(durable.connect(ray_init={"log_to_driver": False})) as hub:
            handle, resumed = attach(hub, roots, output)
            begun = "Going on with" if resumed else "Started"
            console.print(f"{begun} {handle.instance_id}: {', '.join(roots)}", soft_wrap=True)
            killer = Killer(handle, console) if kill_halfway else None
            follow(handle, killer, console)
    except KeyboardInterrupt:
        console.print("\nInterrupted, not lost: run the same command again and it goes on from where it was.")
        return 130
    table = pq.read_table(output)
    show_table(table, roots, console)
    console.print(f"Table: {output}\n", soft_wrap=True)
    right = killer is None or check_table(table, roots, killer, console)
    return 0 if check_ledger(table, ledger_of(output, handle.instance_id), resumed, console) and right else 1


def check_table(table: pa.Table, roots: list[str], killer: Killer, console: Console) -> bool:
    """Whether the orchestrator was killed, and the table is nevertheless the one that a plain computation gives."""
    if killer.killed_pid is None:
        console.print(
            "Nothing was killed: the run was too short, or its orchestrator is on another machine.", style="red"
        )
        return False
    with console.status("Computing the same table plainly, without ray_durable"):
        same: bool = table.equals(compute_plainly(roots))
    if same:
        console.print("A plain computation without ray_durable gives the same table.")
    else:
        console.print("A plain computation gives another table: did files change meanwhile?", style="red")
    return same


def check_ledger(table: pa.Table, ledger: str, resumed: bool, console: Console) -> bool:
    """Whether each file was parsed as often as promised. If so, the ledger has served and is removed."""
    count = ExecutionCount.of(table["path"].to_pylist(), count_executions(ledger))
    show_executions(count, resumed=resumed, console=console)
    if not count.keeps_promise(resumed=resumed):
        console.print(f"The ledger is in {ledger}", style="red", soft_wrap=True)
        return False
    shutil.rmtree(ledger, ignore_errors=True)
    with suppress(OSError):  # The folder of all ledgers goes with the last one.
        os.rmdir(os.path.dirname(ledger))
    return True


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="A census of Python source code that survives kill -9.")
    parser.add_argument("--root", action="append", metavar="DIR", help="a tree to count (default: this interpreter's)")
    parser.add_argument("--output", default="census.parquet", metavar="FILE", help="the table (default: %(default)s)")
    parser.add_argument("--kill-halfway", action="store_true", help="SIGKILL the orchestrator half-way, then check")
    options = parser.parse_args()
    roots = sorted({os.path.realpath(root) for root in options.root}) if options.root else interpreter_roots()
    for root in roots:
        if not os.path.isdir(root):
            parser.error(f"--root: {root} is not a folder")
    output = os.path.realpath(options.output)
    os.makedirs(os.path.dirname(output), exist_ok=True)
    # Paths may hold anything: nothing printed is read as markup.
    console = Console(highlight=False, markup=False)
    try:
        return run(roots, output, kill_halfway=options.kill_halfway, console=console)
    except durable.DurableError as error:
        console.print(f"{type(error).__name__}: {error}", style="red")
        return 1


if __name__ == "__main__":
    sys.exit(main())
