"""The code census without Ray: what it finds, counts and tells."""

from __future__ import annotations

import ast
import io
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import census_report
import code_census
from census_report import ExecutionCount, count_executions
from code_census import FileFacts, SourceFile, find_files, make_table, source_facts

SAMPLE = b'''\
"""A module."""
import os.path, json
from collections.abc import Iterable
from . import sibling
from .sibling import name

class Shape:
    async def area(self):
        import json
        return (
            1
        )

def short(): pass
'''


def facts_of(source: bytes) -> FileFacts:
    return source_facts("module.py", source)


class TestFacts:
    def test_a_module_is_counted_exactly(self) -> None:
        """Methods and coroutines are functions; modules are named once, by their first part; relative ones are not."""
        assert facts_of(SAMPLE) == FileFacts(
            path="module.py",
            lines=14,
            functions=2,
            classes=1,
            imports=("collections", "json", "os"),
            longest_function="area",
            longest_function_lines=5,
        )

    def test_an_empty_file_has_nothing(self) -> None:
        """Zero everywhere, and no error."""
        assert facts_of(b"") == FileFacts(path="module.py")

    def test_of_equally_long_functions_the_first_counts(self) -> None:
        """The order of the source decides, not the names."""
        assert facts_of(b"def b(): pass\ndef a(): pass\n").longest_function == "b"

    def test_the_encoding_line_is_obeyed(self) -> None:
        """A source that is not UTF-8 parses when it says so."""
        facts = facts_of("# coding: latin-1\ndef é(): pass\n".encode("latin-1"))
        assert (facts.longest_function, facts.error) == ("é", None)

    @pytest.mark.filterwarnings("error")
    def test_old_escapes_raise_no_warning(self) -> None:
        """Invalid escapes, frequent in old code, neither warn nor count as an error."""
        assert facts_of(rb'PATTERN = "\d"').error is None

    @pytest.mark.parametrize(
        ("source", "kind"),
        [
            (b"print 'two'\n", "SyntaxError"),
            (b"def f(:\n", "SyntaxError"),
            (b"\tx = 1\n  y = 2\n", "IndentationError"),
            (b"x = '\xff'\n", ("SyntaxError", "ValueError")),
            (b"# coding: no-such-code\n", "SyntaxError"),
            (b"x = '\x00'\n", ("SyntaxError", "ValueError")),
            (b"(" * 500 + b")" * 500, ("SyntaxError", "MemoryError")),
            (b"x = " + b"-" * 50_000 + b"1", ("RecursionError", "MemoryError")),
        ],
        ids=["python2", "grammar", "indentation", "not-utf8", "codec", "null-byte", "parentheses", "depth"],
    )
    def test_an_unparsable_file_is_counted(self, source: bytes, kind: str | tuple[str, ...]) -> None:
        """It has its lines, no other facts, and the kind of the error."""
        facts = facts_of(source)
        assert facts.error is not None
        assert facts.error.startswith(kind)
        assert facts == FileFacts(path="module.py", lines=source.count(b"\n") or 1, error=facts.error)

    def test_an_unreadable_file_is_counted(self, tmp_path: Path) -> None:
        """A file that vanished after the listing is a row with an error."""
        facts = code_census.read_facts(str(tmp_path / "gone.py"))
        assert facts == FileFacts(path=str(tmp_path / "gone.py"), error="FileNotFoundError: No such file or directory")


class TestFiles:
    def test_files_are_found_once_and_in_order(self, tmp_path: Path) -> None:
        """Roots inside each other and links give each real file once."""
        (tmp_path / "inner").mkdir()
        for name in ("b.py", "inner/a.py", "notes.txt"):
            (tmp_path / name).touch()
        (tmp_path / "link.py").symlink_to(tmp_path / "b.py")
        found = find_files([str(tmp_path), str(tmp_path / "inner")])
        assert found == [str(tmp_path / "b.py"), str(tmp_path / "inner" / "a.py")]

    def test_installed_packages_count_only_as_a_root(self, tmp_path: Path) -> None:
        """The standard library's folder may hold the site-packages of another environment."""
        packages = tmp_path / "site-packages"
        packages.mkdir()
        (packages / "library.py").touch()
        assert find_files([str(tmp_path)]) == []
        assert find_files([str(tmp_path), str(packages)]) == [str(packages / "library.py")]

    def test_a_name_that_is_not_unicode_is_left_out(self, tmp_path: Path) -> None:
        """Such a path could not be stored as JSON; the other files are still found."""
        (tmp_path / "good.py").touch()
        with open(os.path.join(os.fsencode(tmp_path), b"bad-\xff.py"), "wb"):
            pass
        assert find_files([str(tmp_path)]) == [str(tmp_path / "good.py")]

    def test_the_interpreter_has_its_own_roots(self) -> None:
        """The default roots hold the standard library and the package that these tests run with."""
        found = find_files(code_census.interpreter_roots())
        assert os.path.realpath(ast.__file__) in found
        assert os.path.realpath(pytest.__file__) in found


def file_with(path: str, function: str, lines: int, *, imports: tuple[str, ...]) -> FileFacts:
    """A file of nine lines with one function."""
    return FileFacts(
        path=path,
        lines=9,
        functions=1,
        imports=imports,
        longest_function=function,
        longest_function_lines=lines,
    )


class TestTable:
    FACTS = (
        file_with("/r/a.py", "f", 4, imports=("os", "re")),
        FileFacts(path="/r/b.py", lines=1, error="SyntaxError: invalid syntax"),
        file_with("/r/c.py", "g", 7, imports=("os",)),
        file_with("/r/d.py", "h", 4, imports=("abc",)),
    )

    @pytest.fixture
    def table(self) -> pa.Table:
        return make_table(list(self.FACTS))

    def test_every_fact_is_a_column(self, table: pa.Table) -> None:
        """The rows of the table are the facts, in order."""
        rows = [FileFacts(**{**row, "imports": tuple(row["imports"])}) for row in table.to_pylist()]
        assert rows == list(self.FACTS)

    def test_no_files_make_an_empty_table_of_the_same_columns(self, table: pa.Table) -> None:
        """The schema does not depend on the rows."""
        assert make_table([]).schema == table.schema

    def test_the_table_is_written_whole_or_not_at_all(self, table: pa.Table, tmp_path: Path) -> None:
        """An older table is replaced, and no temporary file is left."""
        output = tmp_path / "census.parquet"
        output.write_bytes(b"an older table")
        assert code_census.write_table(list(self.FACTS), str(output)) == 4
        assert pq.read_table(output).equals(table)
        assert list(tmp_path.iterdir()) == [output]

    def test_longest_functions_come_first(self, table: pa.Table) -> None:
        """Longest first, ties by path, files without a function never."""
        assert [row["longest_function"] for row in census_report.longest_functions(table, 10)] == ["g", "f", "h"]
        assert [row["longest_function"] for row in census_report.longest_functions(table, 1)] == ["g"]

    def test_modules_are_ranked_by_importing_files(self, table: pa.Table) -> None:
        """Most files first, ties by name."""
        assert census_report.most_imported(table, 2) == [("os", 2), ("abc", 1)]

    def test_the_top_list_shows_totals_and_short_paths(self, table: pa.Table) -> None:
        """Totals, unparsable files, and paths below the innermost root."""
        screen = io.StringIO()
        census_report.show_table(table, ["/", "/r"], Console(file=screen, width=120))
        text = screen.getvalue()
        assert "4 files: 28 lines, 3 functions, 0 classes; 1 could not be parsed" in text
        assert " c.py " in text
        assert "/r/c.py" not in text

    def test_the_plain_computation_gives_the_same_table(self, tmp_path: Path) -> None:
        """It lists and parses by itself, in processes of its own."""
        (tmp_path / "sample.py").write_bytes(SAMPLE)
        (tmp_path / "broken.py").write_bytes(b"(")
        expected = make_table([code_census.read_facts(path) for path in find_files([str(tmp_path)])])
        assert code_census.compute_plainly([str(tmp_path)]).equals(expected)


class TestLedger:
    def test_every_execution_is_counted(self, tmp_path: Path) -> None:
        """Parsing twice counts twice, whatever the path contains."""
        ledger = str(tmp_path / "ledger")
        for path in ("/a.py", "/b\n.py", "/a.py"):
            code_census.note_execution(SourceFile(path=path, ledger=ledger))
        assert count_executions(ledger) == {"/a.py": 2, "/b\n.py": 1}

    def test_the_notes_of_several_processes_add_up(self, tmp_path: Path) -> None:
        """Each process has its own file."""
        (tmp_path / "host-1").write_text('"/a.py"\n"/b.py"\n')
        (tmp_path / "host-2").write_text('"/a.py"\n')
        assert count_executions(str(tmp_path)) == {"/a.py": 2, "/b.py": 1}

    def test_parsing_is_noted(self, tmp_path: Path) -> None:
        """The activity, called as a plain function, leaves a note and returns the facts."""
        source = tmp_path / "sample.py"
        source.write_bytes(SAMPLE)
        facts = code_census.parse_file(SourceFile(path=str(source), ledger=str(tmp_path / "ledger")))
        assert facts.functions == 2
        assert count_executions(str(tmp_path / "ledger")) == {str(source): 1}

    @pytest.mark.parametrize(
        ("executions", "text", "keeps", "keeps_resumed"),
        [
            ({"/a": 1, "/b": 1}, "2 files, 2 executions, 0 parsed twice", True, True),
            ({"/a": 1, "/b": 3}, "2 files, 4 executions, 1 parsed twice", False, True),
            ({"/a": 1}, "2 files, 1 executions, 0 parsed twice, 1 missing in the ledger", False, False),
            ({}, "2 files, 0 executions, 0 parsed twice, 2 missing in the ledger", False, False),
        ],
    )
    def test_the_count_tells_what_happened(
        self, executions: dict[str, int], text: str, keeps: bool, keeps_resumed: bool
    ) -> None:
        """Repeats are right only after the workers died; a file that nobody parsed never is."""
        count = ExecutionCount.of(["/a", "/b"], Counter(executions))
        assert str(count) == text
        assert count.keeps_promise(resumed=False) is keeps
        assert count.keeps_promise(resumed=True) is keeps_resumed
