"""Names, references, and the way back from a reference to the function."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ray_durable import registry
from ray_durable.authoring import activity
from ray_durable.capture import capture_bundle, load_bundle
from ray_durable.codec import Trust
from ray_durable.errors import ConfigurationError, FunctionNotFoundError
from ray_durable.function import DurableFunction
from ray_durable.reference import FunctionReference

SOURCE = """
from ray_durable.authoring import activity

@activity
def {name}(x: int) -> int:
    return x + {value}

def plain(x: int) -> int:
    return x

renamed = activity(name="{module}.renamed")(plain)
"""


class Modules:
    """Writes modules into a folder and forgets them afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def write(self, name: str, *, function: str | None = None, value: int = 1) -> Path:
        file = self.folder / f"{name}.py"
        file.write_text(SOURCE.format(name=function or f"{name}_add", value=value, module=name), encoding="utf-8")
        # Two versions of one second and one size would share their byte code.
        os.utime(file, (value, value))
        importlib.invalidate_caches()
        self.names.append(name)
        return file

    def load(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture
def modules(tmp_path: Path) -> Iterator[Modules]:
    made = Modules(tmp_path)
    path = list(sys.path)
    sys.path.append(str(tmp_path))
    registered = registry.registered()
    yield made
    sys.path[:] = path
    for name in made.names:
        sys.modules.pop(name, None)
    for name in set(registry.registered()) - set(registered):
        registry._functions.pop(name)


def no_bundle(digest: str) -> dict[str, DurableFunction]:
    raise AssertionError(f"no bundle is needed, {digest} least of all")


def test_a_decorated_function_is_found_by_its_name(modules: Modules) -> None:
    """Importing a module registers what it defines."""
    modules.write("plants")
    plants = modules.load("plants")
    assert registry.lookup("plants_add") is plants.plants_add
    assert registry.lookup("plants.renamed") is plants.renamed


def test_an_unknown_name_suggests_close_ones(modules: Modules) -> None:
    """A typing mistake is answered with what there is."""
    modules.write("plants")
    modules.load("plants")
    with pytest.raises(FunctionNotFoundError, match="Did you mean 'plants_add'") as caught:
        registry.lookup("plant_add")
    assert caught.value.name == "plant_add"


def test_a_definition_run_again_replaces_the_older_one(modules: Modules) -> None:
    """A reloaded module, like a notebook cell, is not in its own way."""
    modules.write("plants")
    first = modules.load("plants").plants_add
    modules.write("plants", value=5)
    second = importlib.reload(sys.modules["plants"]).plants_add
    assert registry.lookup("plants_add") is second is not first
    assert second.function(1) == 6


def test_two_modules_cannot_hold_one_name(modules: Modules) -> None:
    """The error names both and says how to tell them apart."""
    modules.write("plants", function="grow")
    modules.write("animals", function="grow")
    modules.load("plants")
    with pytest.raises(ConfigurationError) as caught:
        modules.load("animals")
    for words in ("plants.grow", "animals.grow", "name='animals.grow'"):
        assert words in str(caught.value)


def test_a_name_of_a_function_that_is_gone_is_free(modules: Modules) -> None:
    """Functions made inside functions, and modules taken out, hold no name for ever."""

    @activity(name="grow")
    def inner() -> None: ...

    modules.write("plants", function="grow")
    assert registry.lookup("grow") is inner
    plants = modules.load("plants")
    assert registry.lookup("grow") is plants.grow


def test_a_script_that_is_also_imported_is_one_definition(modules: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    """`__main__` and the module of the same file do not fight for their names."""
    file = modules.write("script")
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(file.read_text(), str(file), "exec"), main.__dict__)
    imported = modules.load("script")
    assert registry.lookup("script_add") is imported.script_add is not main.script_add


def test_a_reference_leads_back_to_the_function(modules: Modules) -> None:
    """By module and qualified name, through JSON, with digest and folder of the source."""
    file = modules.write("plants")
    plants = modules.load("plants")
    for function in (plants.plants_add, plants.renamed):
        reference = registry.reference_of(function)
        assert reference.source == hashlib.sha256(file.read_bytes()).hexdigest()
        assert reference.path == str(modules.folder)
        restored = FunctionReference.from_json(reference.to_json())
        assert registry.resolve(restored, no_bundle) is function


def test_modules_of_packages_refer_to_the_folder_of_the_package(modules: Modules) -> None:
    """What `sys.path` needs is the folder that holds the top package."""
    package = modules.folder / "garden"
    package.mkdir()
    (package / "__init__.py").touch()
    Modules(package).write("plants")
    modules.names += ["garden", "garden.plants"]
    plants = modules.load("garden.plants")
    reference = registry.reference_of(plants.plants_add)
    assert (reference.module, reference.path) == ("garden.plants", str(modules.folder))


def test_the_folder_joins_the_path_only_if_the_import_needs_it(modules: Modules) -> None:
    """A process that has the module does not change its path."""
    modules.write("plants")
    reference = registry.reference_of(modules.load("plants").plants_add)
    before = list(sys.path)
    registry.resolve(reference, no_bundle)
    assert sys.path == before
    sys.modules.pop("plants")
    sys.path.remove(str(modules.folder))
    found = registry.resolve(reference, no_bundle)
    assert found.function(1) == 2
    assert sys.path[-1] == str(modules.folder)


def test_a_module_that_is_nowhere_says_what_to_do(modules: Modules) -> None:
    """The error names module, reason and folder; the path stays as it was."""
    reference = FunctionReference(name="grow", module="no_such_module", qualname="grow", path="/nowhere")
    before = list(sys.path)
    with pytest.raises(FunctionNotFoundError, match=r"'no_such_module' raised ModuleNotFound.*/nowhere.*PYTHONPATH"):
        registry.resolve(reference, no_bundle)
    assert sys.path == before


def test_a_module_that_fails_on_import_says_why(modules: Modules) -> None:
    """The module's own exception is in the message and the cause."""
    (modules.folder / "broken.py").write_text("1 / 0", encoding="utf-8")
    reference = FunctionReference(name="grow", module="broken", qualname="grow")
    with pytest.raises(FunctionNotFoundError, match="ZeroDivisionError") as caught:
        registry.resolve(reference, no_bundle)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("qualname", ["gone", "plain.inner", "os.system"])
def test_only_activities_and_orchestrators_are_resolved(modules: Modules, qualname: str) -> None:
    """A reference is no way to arbitrary attributes."""
    modules.write("plants")
    modules.load("plants")
    with pytest.raises(FunctionNotFoundError, match="no activity or orchestrator"):
        registry.resolve(FunctionReference(name="x", module="plants", qualname=qualname), no_bundle)


def test_a_function_that_cannot_be_imported_needs_its_bundle() -> None:
    """Without a digest there is an error that says what to do; with one the bundle is asked."""

    @activity(name="tests.registry.inner")
    def inner() -> None: ...

    with pytest.raises(ConfigurationError, match="private local root"):
        registry.reference_of(inner)
    reference = registry.reference_of(inner, "d1")
    assert reference == FunctionReference(name="tests.registry.inner", code="d1")
    asked: list[str] = []

    def load(digest: str) -> dict[str, Any]:
        asked.append(digest)
        return {"tests.registry.inner": inner}

    assert registry.resolve(reference, load) is inner
    assert asked == ["d1"]
    with pytest.raises(FunctionNotFoundError, match="the captured code holds nothing"):
        registry.resolve(reference, lambda digest: {})


def test_a_name_alone_is_looked_up() -> None:
    """References by name find what the process has registered."""
    with pytest.raises(FunctionNotFoundError, match="No activity or orchestrator is registered as 'nobody'"):
        registry.resolve(FunctionReference(name="nobody"), no_bundle)


def test_an_edited_module_is_stale_until_it_is_loaded_again(modules: Modules) -> None:
    """The process runs the old source, the reference wants the new one, and the new one is on disk."""
    modules.write("plants")
    old = registry.reference_of(modules.load("plants").plants_add)
    assert not registry.is_stale(old)
    file = modules.write("plants", value=7)
    new = FunctionReference.from_json({**old.to_json(), "source": hashlib.sha256(file.read_bytes()).hexdigest()})
    assert registry.is_stale(new)
    # The old source is what is loaded; a third is neither loaded nor on disk, so a fresh process would not help.
    assert not registry.is_stale(old)
    assert not registry.is_stale(FunctionReference.from_json({**old.to_json(), "source": "0" * 64}))
    importlib.reload(sys.modules["plants"])
    assert not registry.is_stale(new)
    assert registry.reference_of(sys.modules["plants"].plants_add) == new


def test_a_function_defined_later_does_not_hide_that_the_module_is_stale(modules: Modules) -> None:
    """Digests are those of the loaded source, not of the moment in which one asks."""
    modules.write("plants")
    old = registry.reference_of(modules.load("plants").plants_add)
    modules.write("plants", value=7)
    late: dict[str, Any] = {"__name__": "plants", "activity": activity}
    exec("def f():\n    @activity(name='plants.late')\n    def late(): ...\n    return late\nf()", late)
    assert registry.source_digest("plants") == old.source


def test_importable_functions_pickle_by_reference(modules: Modules) -> None:
    """The bytes are a name, and loading them gives the very object."""
    modules.write("plants")
    plants = modules.load("plants")
    for function in (plants.plants_add, plants.renamed):
        data = pickle.dumps(function)
        assert len(data) < 120
        assert pickle.loads(data) is function


def test_a_changed_source_is_told_of(modules: Modules) -> None:
    """The text names the module and both digests; the same source, and what cannot be compared, give none."""
    modules.write("plants")
    old = registry.reference_of(modules.load("plants").plants_add)
    assert registry.changed_source(old) is None
    file = modules.write("plants", value=7)
    # What runs is what was loaded, whatever lies on disk.
    assert registry.changed_source(old) is None
    importlib.reload(sys.modules["plants"])
    text = registry.changed_source(old)
    assert text is not None
    assert old.source is not None
    for words in ("'plants'", old.source[:12], hashlib.sha256(file.read_bytes()).hexdigest()[:12], "ctx.patched"):
        assert words in text
    sys.modules.pop("plants")
    assert registry.changed_source(old) is None
    assert "plants" not in sys.modules
    assert registry.changed_source(FunctionReference(name="captured", code="d1")) is None
    assert registry.changed_source(FunctionReference(name="os", module="os", qualname="x")) is None


def test_a_notebook_cell_run_again_replaces_what_it_defined(modules: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activities and orchestrators alike; what is started, called by name and captured is the latest."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    cell = """
from ray_durable.authoring import activity, orchestrator

@activity
def cell_activity():
    return {value}

@orchestrator
async def cell_orchestrator(ctx):
    return cell_activity()
"""
    for value in (1, 2):
        exec(compile(cell.format(value=value), f"<cell {value}>", "exec"), main.__dict__)
    captured = load_bundle(capture_bundle(main.cell_orchestrator), trust=Trust.PRIVATE_LOCAL_ROOT)
    for name in ("cell_activity", "cell_orchestrator"):
        assert registry.lookup(name) is getattr(main, name)
    again = captured["cell_orchestrator"].function(None)
    with pytest.raises(StopIteration) as stopped:
        again.send(None)
    assert stopped.value.value == 2
