"""What a name in a function's code stands for, as far as that is certain.

A name is looked up like Python does: in the scopes of the code, in the function's closure, its globals, the builtins.
What the code binds more than once, or to something that cannot be told from the text, is unknown, and stays silent.
Nothing is imported and no user code runs: modules are asked for what they hold, not for attributes they would compute.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType

from ray_durable.determinism.rules import advice_for_call, has_rules, public_names
from ray_durable.determinism.sources import children

__all__ = ["Meaning", "Names", "Scope", "scope_of"]

_UNKNOWN = object()
# Where functions say that they were defined, and where everybody finds them.
_ALIASES = {
    "posixpath": "os.path",
    "ntpath": "os.path",
    "posix": "os",
    "_thread": "threading",
    "_socket": "socket",
    "_asyncio": "asyncio",
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_BINDING = frozenset(
    (
        *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.Import, ast.ImportFrom, ast.Global),
        *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.NamedExpr, ast.Assign, ast.AnnAssign),
        *(ast.Name, ast.ExceptHandler, ast.MatchAs, ast.MatchStar, ast.MatchMapping),
    )
)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What an expression stands for: a dotted name, with `()` after what was called, and the object if there is one."""

    path: str
    value: object = _UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """What one statement binds a name to: `value` an expression, `imported` a dotted name, neither if unknown."""

    value: ast.expr | None = None
    imported: str | None = None
    annotation: ast.expr | None = None


@dataclass(slots=True)
class Scope:
    """The names that a function, class or comprehension binds."""

    parent: Scope | None
    is_class: bool = False
    bound: dict[str, list[_Bound]] = field(default_factory=dict)
    global_names: set[str] = field(default_factory=set)

    def bind(self, name: str, bound: _Bound) -> None:
        """Note one more statement that binds `name`."""
        self.bound.setdefault(name, []).append(bound)


def scope_of(node: ast.AST, parent: Scope | None) -> Scope:
    """The scope that a function, lambda, class or comprehension opens."""
    scope = Scope(parent, is_class=isinstance(node, ast.ClassDef))
    if isinstance(node, _FUNCTIONS):
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            scope.bind(argument.arg, _Bound(annotation=argument.annotation))
        for rest in (arguments.vararg, arguments.kwarg):
            if rest is not None:
                scope.bind(rest.arg, _Bound())
    if isinstance(node, _COMPREHENSIONS):
        for generator in node.generators:
            _note(generator.target, scope)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        for statement in node.body:
            _note(statement, scope)
    return scope


def _note(node: ast.AST, scope: Scope) -> None:
    """Note what `node` binds in `scope`, without going into scopes below it."""
    if type(node) in _BINDING and not _note_binding(node, scope):
        return
    for child in children(node):
        _note(child, scope)


def _note_binding(node: ast.AST, scope: Scope) -> bool:
    """Note what `node` itself binds; whether nodes below it may bind more."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            scope.bind(node.name, _Bound())
            return False
        case ast.Lambda():
            return False
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            # A walrus in a comprehension binds in the function around it.
            for inner in ast.walk(node):
                if isinstance(inner, ast.NamedExpr):
                    scope.bind(inner.target.id, _Bound())
            return False
        case ast.Import(names=names):
            for alias in names:
                name = alias.asname or alias.name.split(".")[0]
                scope.bind(name, _Bound(imported=alias.name if alias.asname else name))
        case ast.ImportFrom(module=module, names=names, level=level):
            for alias in names:
                imported = f"{module}.{alias.name}" if module and not level else None
                scope.bind(alias.asname or alias.name, _Bound(imported=imported))
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.NamedExpr(target=ast.Name(id=name), value=value)
        ):
            scope.bind(name, _Bound(value=value))
            _note(value, scope)
            return False
        case ast.AnnAssign(target=ast.Name(id=name), value=assigned, annotation=annotation):
            scope.bind(name, _Bound(value=assigned, annotation=annotation))
            if assigned is not None:
                _note(assigned, scope)
            return False
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            scope.bind(name, _Bound())
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            scope.bind(name, _Bound())
        case ast.MatchMapping(rest=str(name)):
            scope.bind(name, _Bound())
        case ast.Global(names=declared):
            scope.global_names.update(declared)
    return True


class Names:
    """Looks up the names of one function."""

    def __init__(self, function: FunctionType) -> None:
        self._globals: Mapping[str, object] = function.__globals__
        self._closure = dict(_closure_of(function))
        self._public = public_names()
        self._resolving: set[int] = set()

    def meaning(self, expression: ast.expr, scope: Scope) -> Meaning | None:
        """What `expression`, read in `scope`, stands for; None if that is not certain."""
        match expression:
            case ast.Name(id=name):
                return self._meaning_of_name(name, scope)
            case ast.Attribute(value=owner, attr=attribute):
                base = self.meaning(owner, scope)
                return None if base is None else self._attribute(base, attribute)
            case ast.Call(func=called):
                base = self.meaning(called, scope)
                count = len(expression.args) + len(expression.keywords)
                # What a wrong call returns is no second mistake.
                if base is None or advice_for_call(base.path, argument_count=count) is not None:
                    return None
                return Meaning(path=f"{base.path}()")
            case ast.BinOp(left=left, op=ast.Div()):
                base = self.meaning(left, scope)
                return base if base is not None and base.path == "pathlib.Path()" else None
            case ast.NamedExpr(value=value):
                return self.meaning(value, scope)
        return None

    def binding(self, name: str, scope: Scope) -> tuple[_Bound, Scope] | None:
        """The one statement of the code that binds `name`, and its scope. None if there is none, or several."""
        found = _find(name, scope)
        if found is None or len(found.bound[name]) != 1:
            return None
        return found.bound[name][0], found

    def _meaning_of_name(self, name: str, scope: Scope) -> Meaning | None:
        found = _find(name, scope)
        if found is None:
            return self._outer(name, is_global=_is_declared_global(name, scope))
        bound = found.bound[name]
        first = bound[0]
        if any(other.imported != first.imported or other.imported is None for other in bound[1:]):
            return None
        if first.imported is not None:
            return self._imported(first.imported)
        if first.value is not None:
            return self._followed(first.value, found)
        if first.annotation is not None:
            kind = self._followed(first.annotation, found)
            return Meaning(path="pathlib.Path()") if kind is not None and kind.path == "pathlib.Path" else None
        return None

    def _followed(self, expression: ast.expr, scope: Scope) -> Meaning | None:
        """The meaning of what a name is bound to; None where names lead in a circle."""
        if id(expression) in self._resolving:
            return None
        self._resolving.add(id(expression))
        try:
            return self.meaning(expression, scope)
        finally:
            self._resolving.discard(id(expression))

    def _outer(self, name: str, *, is_global: bool) -> Meaning | None:
        spaces: list[Mapping[str, object]] = [self._globals, vars(builtins)]
        if not is_global:
            spaces.insert(0, self._closure)
        for space in spaces:
            if name in space:
                return self._meaning_of_value(space[name])
        return None

    def _imported(self, dotted: str) -> Meaning:
        module = sys.modules.get(dotted)
        if module is not None:
            return self._meaning_of_value(module)
        parent, _, attribute = dotted.rpartition(".")
        holder = sys.modules.get(parent)
        if holder is not None:
            return self._attribute(self._meaning_of_value(holder), attribute)
        return Meaning(path=dotted)

    def _attribute(self, base: Meaning, attribute: str) -> Meaning:
        if isinstance(base.value, ModuleType):
            value = vars(base.value).get(attribute, _UNKNOWN)
            if value is not _UNKNOWN:
                path = f"{base.path}.{attribute}"
                # The name by which a ruled package offers it says more than the place it was defined at.
                return Meaning(path=path, value=value) if has_rules(path) else self._meaning_of_value(value)
        return Meaning(path=f"{base.path}.{attribute}")

    def _meaning_of_value(self, value: object) -> Meaning:
        if isinstance(value, ModuleType):
            return Meaning(path=_ALIASES.get(value.__name__, value.__name__), value=value)
        known = self._public.get(id(value))
        if known is not None:
            return Meaning(path=known, value=value)
        if isinstance(value, type):
            return Meaning(path=self._class_path(value), value=value)
        module, qualname = _own_name(value)
        if module is not None and qualname is not None:
            return Meaning(path=_joined(module, qualname), value=value)
        return Meaning(path=f"{self._class_path(type(value))}()", value=value)

    def _class_path(self, cls: type) -> str:
        """The name of the class, or of the base class that has rules. Exceptions have none."""
        bases = () if issubclass(cls, BaseException) else cls.__mro__
        for base in bases:
            path = self._public.get(id(base)) or _joined(base.__module__, base.__qualname__)
            if has_rules(path):
                return path
        return _joined(cls.__module__, cls.__qualname__)


def _find(name: str, scope: Scope) -> Scope | None:
    """The scope of the code that binds `name`, seen from `scope`; None if it is global or from outside."""
    current: Scope | None = scope
    while current is not None:
        if name in current.global_names:
            return None
        if name in current.bound and (current is scope or not current.is_class):
            return current
        current = current.parent
    return None


def _is_declared_global(name: str, scope: Scope | None) -> bool:
    while scope is not None:
        if name in scope.global_names:
            return True
        scope = scope.parent
    return False


def _closure_of(function: FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            # Not assigned yet: it may become anything.
            yield name, _UNKNOWN


def _joined(module: str, qualname: str) -> str:
    return f"{_ALIASES.get(module, module)}.{qualname}"


def _own_name(value: object) -> tuple[str | None, str | None]:
    """Module and qualified name of a function, from its own attributes; objects may compute others."""
    if not callable(value) or type(value).__module__ not in ("builtins", "functools"):
        return None, None
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return (
        module if isinstance(module, str) else None,
        qualname if isinstance(qualname, str) else None,
    )
