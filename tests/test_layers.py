"""Who may import whom: read from the syntax tree of every module, so that no import hides in a branch or a function.

    base  <-  engine | storage | codec  <-  authoring, context, ...  <-  runtime  <-  client, handle  <-  faces

An arrow points from what is imported to what imports it, and may skip layers. The rules are data (`LAYERS` and the
constants after it); a module of the package that no layer names fails the test, so that it gets its place on purpose.
The checker is itself tested on made-up packages with one wrong import each.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "ray_durable"
PACKAGE_DIR = Path(__file__).parents[1] / PACKAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Top-level names of the package that stand side by side.

    `siblings`: members may import each other. `sees`: the only names importable (None: every lower layer).
    """

    members: frozenset[str]
    siblings: bool
    sees: frozenset[str] | None = None


BASE = frozenset({"errors", "failure", "payload", "reference", "retry"})
ENDS = frozenset({"client", "handle", "reader", "schedule", "starts"})

AUTHORING = frozenset(
    {"function", "authoring", "determinism", "registry", "capture", "target", "context", "replay_logger"}
    | {"activity_context", "arrivals", "callees", "calling", "event_name", "reason"}
)

# From the bottom to the top. `__init__` is the package itself: it collects the public names and nobody imports it.
LAYERS = (
    Layer(members=BASE, siblings=True),
    Layer(members=frozenset({"engine", "storage", "codec"}), siblings=False),
    Layer(members=AUTHORING, siblings=True),
    Layer(members=frozenset({"runtime"}), siblings=True),
    Layer(members=ENDS | {"command"}, siblings=True),
    Layer(members=frozenset({"web", "cli", "notebook"}), siblings=False, sees=BASE | ENDS),
    Layer(members=frozenset({"testing"}), siblings=False),
    Layer(members=frozenset({"__init__"}), siblings=False),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.members}

STANDARD_LIBRARY_ONLY = BASE | {"engine"}
RAY_MODULE = f"{PACKAGE}.runtime.actors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module or name. `lazy`: not executed with the importing module (in a function, or for types)."""

    target: str
    line: int
    lazy: bool


def module_name(path: Path, package_dir: Path) -> str:
    """The dotted name of a module file; a package's own name for its `__init__.py`."""
    parts = path.relative_to(package_dir.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, package_dir: Path) -> Iterator[Import]:
    """Every import statement of a file, and every `import_module` or `__import__` of a literal name.

    `from x import y` yields `x.y`, since y may be a module; whoever compares does it by leading parts.
    """
    name = module_name(path, package_dir)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for target in _targets(node, package):
            yield Import(target=target, line=getattr(node, "lineno", 0), lazy=lazy)
        inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(node)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inner)

    yield from walk(ast.parse(path.read_bytes()), False)


def _targets(node: ast.AST, package: str) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            parents = package.split(".")[: len(package.split(".")) - (level - 1)] if level else []
            prefix = ".".join([*parents, *([module] if module else [])])
            return [f"{prefix}.{alias.name}" for alias in names]
        case ast.Call(
            func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(target)), *_]
        ):
            return [target] if called in {"import_module", "__import__"} else []
    return []


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def violations(package_dir: Path) -> list[str]:
    """Every broken rule of a package folder, one line each; empty when all arrows are right."""
    found = []
    for path in sorted(package_dir.rglob("*.py")):
        name = module_name(path, package_dir)
        place = path.relative_to(package_dir).as_posix()
        if path.stem in sys.stdlib_module_names and path.stem != "__init__":
            found.append(f"{place}: named like the standard library's {path.stem}")
        if _top(name) not in RANK:
            found.append(f"{place}: '{_top(name)}' has no layer, name it in LAYERS")
            continue
        for imported in imports_of(path, package_dir):
            found += [f"{place}:{imported.line}: {reason}" for reason in _reasons(name, imported)]
    return found


def _reasons(name: str, imported: Import) -> Iterator[str]:
    source, target = _top(name), imported.target
    if target.split(".")[0] != PACKAGE:
        yield from _foreign_reasons(name, target)
        return
    aim = _top(target)
    if aim != source:
        if any(part.startswith("_") and not part.endswith("__") for part in target.split(".")):
            yield f"imports the private {target}"
        if not _allowed(source, aim):
            yield f"{source} imports {target}: wrong direction"
    if _within(target, RAY_MODULE) and not imported.lazy and not _within(name, RAY_MODULE):
        yield f"imports {RAY_MODULE} when it is itself imported: do it in the function that needs Ray"


def _foreign_reasons(name: str, target: str) -> Iterator[str]:
    if _within(target, "ray") and not _within(name, RAY_MODULE):
        yield f"imports {target}: only {RAY_MODULE} may"
    elif _top(name) in STANDARD_LIBRARY_ONLY and target.split(".")[0] not in sys.stdlib_module_names:
        yield f"imports {target}: {_top(name)} uses the standard library only"


def _allowed(source: str, aim: str) -> bool:
    layer = LAYERS[RANK[source]]
    if aim in layer.members:
        return layer.siblings
    if aim not in RANK or RANK[aim] > RANK[source]:
        return False
    return layer.sees is None or aim in layer.sees


def _top(name: str) -> str:
    """The part below the package that a layer names: `engine` of `ray_durable.engine.loop`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _within(target: str, module: str) -> bool:
    return target == module or target.startswith(module + ".")


def test_every_import_points_the_right_way() -> None:
    """The package as it is breaks no rule."""
    assert violations(PACKAGE_DIR) == []


def test_reading_needs_no_ray() -> None:
    """Importing the package does not import Ray: status and history are read without it."""
    script = "import ray_durable, sys; sys.exit('ray' in sys.modules)"
    completed = subprocess.run([sys.executable, "-c", script], cwd=PACKAGE_DIR.parent, check=False)
    assert completed.returncode == 0


def test_every_module_says_what_is_public() -> None:
    """Each module that holds more than its docstring assigns `__all__`."""
    silent = []
    for path in sorted(PACKAGE_DIR.rglob("*.py")):
        body = ast.parse(path.read_bytes()).body
        if len(body) > 1 and not any(ast.unparse(node).startswith("__all__") for node in body):
            silent.append(path.relative_to(PACKAGE_DIR).as_posix())
    assert silent == []


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("engine/loop.py", "import ray_durable.storage", "wrong direction"),
        ("engine/loop.py", "from ray_durable import codec", "wrong direction"),
        ("engine/loop.py", "from ..runtime import instance", "wrong direction"),
        ("storage/log.py", "from ray_durable.engine.events import Event", "wrong direction"),
        ("storage/log.py", "def f():\n    from ray_durable.client import connect", "wrong direction"),
        ("codec/values.py", "if TYPE_CHECKING:\n    from ray_durable.context import X", "wrong direction"),
        ("errors.py", "from ray_durable.engine import Execution", "wrong direction"),
        ("context.py", "from ray_durable.runtime.instance import Instance", "wrong direction"),
        ("runtime/turn.py", "import ray_durable.handle", "wrong direction"),
        ("runtime/turn.py", "import ray_durable", "wrong direction"),
        ("client.py", "from ray_durable import connect", "wrong direction"),
        ("cli.py", "from ray_durable.storage import Log", "wrong direction"),
        ("cli.py", "from ray_durable.web import serve", "wrong direction"),
        ("engine/loop.py", "import pyarrow", "standard library only"),
        ("retry.py", "from pydantic import BaseModel", "standard library only"),
        ("engine/loop.py", "import ray", "only ray_durable.runtime.actors may"),
        ("runtime/dispatcher.py", "from ray.util import state", "only ray_durable.runtime.actors may"),
        ("client.py", "def f():\n    import ray", "only ray_durable.runtime.actors may"),
        ("client.py", "def f():\n    importlib.import_module('ray.util')", "only ray_durable.runtime.actors may"),
        ("client.py", "from ray_durable.runtime import actors", "in the function that needs Ray"),
        ("runtime/__init__.py", "from .actors import start", "in the function that needs Ray"),
        ("client.py", "from ray_durable.storage.log import _tail", "imports the private"),
        ("client.py", "from ray_durable.storage._local import put", "imports the private"),
        ("helpers.py", "", "has no layer"),
        ("engine/queue.py", "", "named like the standard library's queue"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, path: str, source: str, reason: str) -> None:
    """Each rule, broken once in a package of one module, is reported once and with its reason."""
    found = violations(_made_up_package(tmp_path, path, source))
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine/loop.py", "import asyncio\nfrom ray_durable.failure import Failure\nfrom ._heap import push"),
        ("storage/log.py", "import fsspec\nfrom ray_durable.storage._local import put"),
        ("context.py", "from ray_durable import engine, registry"),
        ("runtime/actors.py", "import ray\nfrom ray_durable.runtime import instance"),
        ("client.py", "import rayon\ndef f():\n    from ray_durable.runtime import actors"),
        ("handle.py", "if TYPE_CHECKING:\n    from ray_durable.runtime.actors import Host"),
        ("cli.py", "from ray_durable.client import connect\nfrom ray_durable.errors import DurableError"),
        ("testing/simulator.py", "from ray_durable.runtime.instance import Instance"),
        ("__init__.py", "from ray_durable.client import connect\nfrom ray_durable.errors import *"),
    ],
)
def test_a_right_import_is_let_through(tmp_path: Path, path: str, source: str) -> None:
    """What the rules allow is not reported."""
    assert violations(_made_up_package(tmp_path, path, source)) == []


def _made_up_package(folder: Path, path: str, source: str) -> Path:
    module = folder / PACKAGE / path
    module.parent.mkdir(parents=True)
    module.write_text(source, encoding="utf-8")
    return folder / PACKAGE
