"""What the code census shows and checks when its run has ended. Nothing here needs ray_durable or runs in a worker."""

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

__all__ = ["ExecutionCount", "count_executions", "longest_functions", "most_imported", "show_executions", "show_table"]


def longest_functions(table: pa.Table, count: int) -> list[dict[str, Any]]:
    """The rows with the longest functions, one a file: longest first, then by path."""
    order = [("longest_function_lines", "descending"), ("path", "ascending")]
    rows: list[dict[str, Any]] = table.sort_by(order).slice(0, count).to_pylist()
    return [row for row in rows if row["longest_function"] is not None]


def most_imported(table: pa.Table, count: int) -> list[tuple[str, int]]:
    """The modules that most files import, with the number of these files; then by name."""
    files = Counter(module for modules in table["imports"].to_pylist() for module in modules)
    return sorted(files.items(), key=lambda item: (-item[1], item[0]))[:count]


def show_table(table: pa.Table, roots: list[str], console: Console) -> None:
    """Print the totals, the longest functions and the modules imported most."""
    unparsable = len(table) - table["error"].null_count
    totals = ", ".join(f"{sum(table[name].to_pylist()):,} {name}" for name in ("lines", "functions", "classes"))
    console.print(f"\n{len(table):,} files: {totals}; {unparsable:,} could not be parsed\n", style="bold")

    console.print("Longest functions")
    longest = Table("lines", "function", "file", box=SIMPLE)
    for row in longest_functions(table, 10):
        longest.add_row(f"{row['longest_function_lines']:,}", row["longest_function"], _shorten(row["path"], roots))
    console.print(longest)

    console.print("Modules imported by most files")
    imported = Table("files", "module", box=SIMPLE)
    for module, files in most_imported(table, 10):
        imported.add_row(f"{files:,}", module)
    console.print(imported)


def _shorten(path: str, roots: list[str]) -> str:
    """The path below the innermost root that holds it."""
    inside = [root for root in roots if Path(path).is_relative_to(root)]
    return os.path.relpath(path, max(inside, key=len)) if inside else path


def count_executions(ledger: str) -> Counter[str]:
    """How often each file was parsed, by the notes that the activities left in the ledger's folder."""
    if not os.path.isdir(ledger):
        return Counter()
    return Counter(json.loads(line) for notes in Path(ledger).iterdir() for line in notes.read_bytes().splitlines())


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionCount:
    """The files of the table against the ledger. `repeated` were parsed more than once, `unseen` never."""

    files: int
    executions: int
    repeated: int
    unseen: int

    @classmethod
    def of(cls, paths: list[str], executions: Counter[str]) -> "ExecutionCount":
        """Compare the paths of the table with how often each was parsed."""
        return cls(
            files=len(paths),
            executions=executions.total(),
            repeated=sum(count > 1 for count in executions.values()),
            unseen=sum(path not in executions for path in paths),
        )

    def keeps_promise(self, *, resumed: bool) -> bool:
        """Whether this is what ray_durable promises, when no worker died, or when `resumed` tells that they all did."""
        return not self.unseen and (resumed or not self.repeated)

    def __str__(self) -> str:
        text = f"{self.files:,} files, {self.executions:,} executions, {self.repeated:,} parsed twice"
        return f"{text}, {self.unseen:,} missing in the ledger" if self.unseen else text


def show_executions(count: ExecutionCount, *, resumed: bool, console: Console) -> None:
    """Print the count, and what a number that is not zero means."""
    console.print(f"{count}.", style="bold")
    if count.repeated and resumed:
        console.print("Those were in flight when the earlier script ended, and its local Ray with it.")
    elif count.repeated:
        console.print("Unless a worker died, that must not be.", style="red")
    console.print("Activities run at least once: what is in flight when its worker dies runs again.")
    console.print("The death of an orchestrator repeats nothing: its activities go on without it.")
