"""The syntax tree of a function, from the file or cell that it was defined in."""

from __future__ import annotations

import ast
import contextlib
import inspect
import linecache
import re
import warnings
from dataclasses import dataclass
from types import CodeType, FunctionType

__all__ = ["FunctionNode", "Source", "children", "source_of"]

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

_FIELDS: dict[type[ast.AST], tuple[str, ...]] = {}
_ALLOWED = re.compile(r"#\s*durable:\s*ok\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A function's tree, and the lines that it was made of. The tree's line 1 is `first_line` of `file`."""

    node: FunctionNode
    lines: list[str]
    file: str
    first_line: int

    def line_in_file(self, line: int) -> int:
        """The line of the file that is `line` of the tree."""
        return self.first_line + line - 1

    def is_allowed(self, line: int) -> bool:
        """Whether a comment `# durable: ok` stands on `line` of the tree."""
        return 1 <= line <= len(self.lines) and _ALLOWED.search(self.lines[line - 1]) is not None


def source_of(function: FunctionType) -> Source | None:
    """The source of `function`, or None where there is none, or another one than the function was made of."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    rest = linecache.getlines(code.co_filename, function.__globals__)[code.co_firstlineno - 1 :]
    if not rest:
        return None
    lines = rest[: _last_line(code) - code.co_firstlineno + 1]
    node = _parse(lines)
    if node is None:
        # What leaves no trace in the code may stand at the end; finding the end in the text takes longer.
        lines = inspect.getblock(rest)
        node = _parse(lines)
    if node is None or node.name != code.co_name:
        return None
    return Source(node=node, lines=lines, file=code.co_filename, first_line=code.co_firstlineno)


def _last_line(code: CodeType) -> int:
    """The last line that left a trace in the code."""
    last = max((end for _, end, _, _ in code.co_positions() if end is not None), default=code.co_firstlineno)
    return max(last, *(_last_line(inner) for inner in code.co_consts if isinstance(inner, CodeType)), 0)


def _parse(lines: list[str]) -> FunctionNode | None:
    text = "".join(lines)
    is_indented = text[:1].isspace()
    # A doubtful escape was warned of when the module was compiled. Only then: changing the filters, even for a moment,
    # makes Python forget which warnings it has shown.
    with warnings.catch_warnings(action="ignore") if "\\" in text else contextlib.nullcontext():
        try:
            tree = ast.parse(f"if 1:\n{text}" if is_indented else text)
        except SyntaxError:
            return None
    node = tree.body[0] if tree.body else None
    if is_indented and isinstance(node, ast.If):
        ast.increment_lineno(node, -1)
        node = node.body[0]
    return node if isinstance(node, FunctionNode) else None


def children(node: ast.AST) -> list[ast.AST]:
    """The nodes below `node`, in the order of the code; not those that only say how a name is used or which operator
    stands there. (`ast.iter_child_nodes` gives those too, and takes three times as long.)"""
    kind = type(node)
    fields = _FIELDS.get(kind)
    if fields is None:
        fields = _FIELDS[kind] = tuple(name for name in kind._fields if name not in ("ctx", "op", "ops"))
    found: list[ast.AST] = []
    for name in fields:
        value = getattr(node, name, None)
        if isinstance(value, list):
            found += [item for item in value if isinstance(item, ast.AST)]
        elif isinstance(value, ast.AST):
            found.append(value)
    return found
