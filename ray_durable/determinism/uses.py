"""The walk through a function's code that finds what cannot be replayed.

Nested functions, lambdas and comprehensions are part of the function; what is handed to `ctx.side_effect` is not, for
its result is recorded. A function of the same module that is called is looked into once, not those that it calls.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType

from ray_durable.determinism.names import Meaning, Names, Scope, scope_of
from ray_durable.determinism.rules import (
    CALLED_ACTIVITY,
    GLOBAL_STATE,
    SET_ORDER,
    advice_for_call,
    advice_for_method,
    advice_for_read,
)
from ray_durable.determinism.sources import FunctionNode, Source, children, source_of

__all__ = ["Use", "find_uses"]

_HELPERS_MAX = 50
_TELLING = frozenset(
    (
        *(ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp),
        *(ast.GeneratorExp, ast.Call, ast.Name, ast.Attribute, ast.Global, ast.AnnAssign, ast.For, ast.Starred),
    )
)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_ORDER_KEEPERS = frozenset({"list", "tuple", "enumerate", "iter", "zip", "map", "filter"})
_ORDER_BREAKERS = frozenset({"sorted", "set", "frozenset", "min", "max", "any", "all", "len"})
_SET_METHODS = frozenset({"union", "intersection", "difference", "symmetric_difference", "copy"})
_FANS = frozenset({"map", "map_unordered"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One use of what cannot be replayed: where it stands, what it is, and the advice.

    `helper` is the function that it stands in, when that is not the orchestrator itself.
    """

    file: str
    line: int
    what: str
    advice: str
    helper: str | None = None


def find_uses(function: FunctionType, is_activity: Callable[[object], bool]) -> list[Use]:
    """Everything in `function`, and in the functions of its module that it calls, that cannot be replayed.

    In the order of the code, one for each line and name; what the line's comment allows is left out. Empty when the
    source is not available. `is_activity` tells activities, which are not to be called directly.
    """
    source = source_of(function)
    if source is None:
        return []
    finder = _Finder(function, source, is_activity, helper=None)
    found = finder.find()
    for helper in list(finder.helpers.values())[:_HELPERS_MAX]:
        helper_source = source_of(helper)
        if helper_source is not None:
            found += _Finder(helper, helper_source, is_activity, helper=helper.__name__).find()
    return found


class _Finder:
    def __init__(
        self, function: FunctionType, source: Source, is_activity: Callable[[object], bool], *, helper: str | None
    ) -> None:
        self.helpers: dict[int, FunctionType] = {}
        self._function = function
        self._source = source
        self._is_activity = is_activity
        self._helper = helper
        self._names = Names(function)
        self._found: dict[tuple[int, str], Use] = {}
        mentions_side_effects = any("side_effect" in line for line in source.lines)
        self._recorded = set(_names_recorded(source.node)) if mentions_side_effects else set()

    def find(self) -> list[Use]:
        node = self._source.node
        scope = scope_of(node, None)
        for statement in node.body:
            self._visit(statement, scope)
        return sorted(self._found.values(), key=lambda use: use.line)

    def _visit(self, node: ast.AST, scope: Scope) -> None:
        if type(node) not in _TELLING:
            self._visit_children(node, scope)
            return
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                self._visit_function(node, scope)
            case ast.ClassDef():
                inner = scope_of(node, scope)
                for statement in node.body:
                    self._visit(statement, inner)
            case ast.Call():
                self._visit_call(node, scope)
            case ast.Name(ctx=ast.Load()) | ast.Attribute():
                self._visit_read(node, scope)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                self._visit_comprehension(node, scope, ordered=not isinstance(node, ast.SetComp))
            case ast.Global(names=names):
                self._report(node, f"declares global {', '.join(names)}", GLOBAL_STATE)
            case ast.AnnAssign(target=target, value=value):
                for part in (target, value):
                    if part is not None:
                        self._visit(part, scope)
            case ast.For(iter=iterated) | ast.Starred(value=iterated, ctx=ast.Load()):
                self._check_order(iterated, scope)
                self._visit_children(node, scope)
            case _:
                self._visit_children(node, scope)

    def _visit_children(self, node: ast.AST, scope: Scope) -> None:
        for child in children(node):
            self._visit(child, scope)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, scope: Scope) -> None:
        inner = scope_of(node, scope)
        for default in (*node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)):
            self._visit(default, scope)
        if isinstance(node, ast.Lambda):
            self._visit(node.body, inner)
        elif node.name not in self._recorded:
            for decorator in node.decorator_list:
                self._visit(decorator, scope)
            for statement in node.body:
                self._visit(statement, inner)

    def _visit_comprehension(self, node: ast.AST, scope: Scope, *, ordered: bool) -> None:
        assert isinstance(node, _COMPREHENSIONS)
        inner = scope_of(node, scope)
        for generator in node.generators:
            if ordered:
                self._check_order(generator.iter, scope)
        self._visit(node.generators[0].iter, scope)
        for place, generator in enumerate(node.generators):
            if place:
                self._visit(generator.iter, inner)
            for condition in generator.ifs:
                self._visit(condition, inner)
        for element in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self._visit(element, inner)

    def _visit_call(self, node: ast.Call, scope: Scope) -> None:
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == "side_effect":
            self._visit(called.value, scope)
            return
        meaning = self._names.meaning(called, scope)
        advice = self._advice(node, meaning, scope)
        if advice is not None:
            self._report(called, f"calls {_described(called, meaning)}", advice)
        else:
            self._visit(called, scope)
        self._check_order_of_arguments(node, meaning, scope)
        breaks_order = meaning is not None and meaning.path.removeprefix("builtins.") in _ORDER_BREAKERS
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            if breaks_order and isinstance(argument, ast.GeneratorExp | ast.ListComp):
                self._visit_comprehension(argument, scope, ordered=False)
            else:
                self._visit(argument, scope)

    def _advice(self, node: ast.Call, meaning: Meaning | None, scope: Scope) -> str | None:
        if meaning is None or "asyncio" in meaning.path.partition(".")[0]:
            # An object that the text does not tell, or an event loop: the method's name has to say enough.
            by_method = advice_for_method(node.func.attr) if isinstance(node.func, ast.Attribute) else None
            if by_method is not None or meaning is None:
                return by_method
        value = meaning.value
        if self._is_activity(value):
            return CALLED_ACTIVITY.format(name=ast.unparse(node.func))
        if isinstance(value, FunctionType) and self._is_helper(value) and not self._is_allowed(node.func):
            self.helpers.setdefault(id(value), value)
        if isinstance(value, type) and issubclass(value, BaseException):
            return None
        if meaning.path == "builtins.hash" and node.args and _is_number(node.args[0]):
            return None
        return advice_for_call(meaning.path, argument_count=len(node.args) + len(node.keywords))

    def _is_helper(self, function: FunctionType) -> bool:
        return function.__globals__ is self._function.__globals__ and function is not self._function

    def _visit_read(self, node: ast.Name | ast.Attribute, scope: Scope) -> None:
        meaning = self._names.meaning(node, scope)
        advice = advice_for_read(meaning.path) if meaning is not None else None
        if meaning is not None and advice is not None:
            self._report(node, f"uses {ast.unparse(node)}", advice)
        elif isinstance(node, ast.Attribute):
            self._visit(node.value, scope)

    def _check_order_of_arguments(self, node: ast.Call, meaning: Meaning | None, scope: Scope) -> None:
        if meaning is not None and meaning.path.removeprefix("builtins.") in _ORDER_KEEPERS:
            for argument in node.args:
                self._check_order(argument, scope)
        elif isinstance(node.func, ast.Attribute):
            owner, method = node.func.value, node.func.attr
            if method == "join" and isinstance(owner, ast.Constant) and node.args:
                self._check_order(node.args[0], scope)
            elif method in _FANS and len(node.args) > 1:
                self._check_order(node.args[1], scope)
            elif method == "pop" and not node.args:
                self._check_order(owner, scope)

    def _check_order(self, iterated: ast.expr, scope: Scope) -> None:
        if self._is_unordered(iterated, scope):
            self._report(iterated, "takes the elements of a set in its order", SET_ORDER)

    def _is_unordered(self, node: ast.expr | None, scope: Scope, depth: int = 0) -> bool:
        """Whether `node` is a set whose order depends on the process. Sets of numbers, and of the futures and tasks of
        an orchestrator, have the same order everywhere."""
        if node is None or depth > 5:
            return False
        match node:
            case ast.Set(elts=elements):
                return not all(self._hashes_alike(element, scope) for element in elements)
            case ast.SetComp(elt=element):
                return not self._hashes_alike(element, scope_of(node, scope))
            case ast.Call(func=ast.Attribute(value=owner, attr=method)) if method in _SET_METHODS:
                return self._is_unordered(owner, scope, depth + 1)
            case ast.Call(args=[elements]):
                meaning = self._names.meaning(node.func, scope)
                is_set = meaning is not None and meaning.path in ("builtins.set", "builtins.frozenset")
                return is_set and not self._element_hashes_alike(elements, scope)
            case ast.BinOp(left=left, op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor(), right=right):
                return any(self._is_unordered(side, scope, depth + 1) for side in (left, right))
            case ast.Name(id=name):
                found = self._names.binding(name, scope)
                if found is None:
                    return False
                bound, place = found
                return self._is_unordered(bound.value, place, depth + 1) or _is_set_of_text(bound.annotation)
        return False

    def _element_hashes_alike(self, elements: ast.expr, scope: Scope) -> bool:
        """The same of what an iterable gives, where that shows."""
        match elements:
            case ast.List(elts=listed) | ast.Tuple(elts=listed) | ast.Set(elts=listed):
                return all(self._hashes_alike(element, scope) for element in listed)
            case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element) | ast.SetComp(elt=element):
                return self._hashes_alike(element, scope_of(elements, scope))
            case ast.Call():
                meaning = self._names.meaning(elements.func, scope)
                return meaning is not None and meaning.path == "builtins.range"
        return False

    def _hashes_alike(self, element: ast.expr, scope: Scope) -> bool:
        if isinstance(element, ast.Call):
            meaning = self._names.meaning(element.func, scope)
            if meaning is not None:
                return meaning.path.startswith("asyncio.")
            return isinstance(element.func, ast.Attribute)
        return _is_number(element)

    def _report(self, node: ast.expr | ast.stmt, what: str, advice: str) -> None:
        # The last line of a chain of attributes is where the name stands that matters.
        line = node.end_lineno or node.lineno
        if self._is_allowed(node):
            return
        use = Use(
            file=self._source.file, line=self._source.line_in_file(line), what=what, advice=advice, helper=self._helper
        )
        self._found.setdefault((use.line, what), use)

    def _is_allowed(self, node: ast.expr | ast.stmt) -> bool:
        return any(self._source.is_allowed(line) for line in {node.lineno, node.end_lineno or node.lineno})


def _names_recorded(node: FunctionNode) -> Iterator[str]:
    """Nested functions whose results are recorded, for they are handed to `ctx.side_effect`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr == "side_effect":
            yield from (argument.id for argument in inner.args if isinstance(argument, ast.Name))


def _described(called: ast.expr, meaning: Meaning | None) -> str:
    """A call as it is written, and the public name of what is called where that is another."""
    written = ast.unparse(called)
    name = written if meaning is None else meaning.path.removeprefix("builtins.").replace("()", "")
    is_public = name.partition(".")[0] in sys.stdlib_module_names
    return f"{written}() ({name})" if is_public and name != written else f"{written}()"


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float | complex)


def _is_set_of_text(annotation: ast.expr | None) -> bool:
    match annotation:
        case ast.Constant(value=str(text)):
            return text in ("set[str]", "frozenset[str]", "set[bytes]", "frozenset[bytes]")
        case ast.Subscript(value=ast.Name(id="set" | "frozenset"), slice=ast.Name(id="str" | "bytes")):
            return True
    return False
