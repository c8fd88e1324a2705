"""Where a hub is: what travels, what each process reads for itself, and that no secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_durable.errors import ConfigurationError
from ray_durable.runtime.address import OPTIONS_VARIABLE, HubAddress

SECRET = "hunter2"


def address(source: str | None = None) -> HubAddress:
    return HubAddress(root="s3://bucket/x", hub="hub", options_source=source)


def test_a_namespace_is_of_root_and_hub_alone() -> None:
    """Where the options come from does not make it another hub; another root or name does."""
    assert address().namespace == address("env:X").namespace
    others = {HubAddress(root="s3://bucket/x", hub="b").namespace, HubAddress(root="s3://bucket", hub="hub").namespace}
    assert len({address().namespace, *others}) == 3


def test_options_are_read_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that needs them."""
    monkeypatch.setenv("MY_OPTIONS", '{"key": "a"}')
    assert address("env:MY_OPTIONS").storage_options() == {"key": "a"}


def test_options_are_read_from_a_file(tmp_path: Path) -> None:
    """One that every node has."""
    (tmp_path / "options.json").write_text('{"key": "b"}')
    assert address(f"file:{tmp_path / 'options.json'}").storage_options() == {"key": "b"}


def test_without_a_source_the_common_variable_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And without that the provider's own chain."""
    monkeypatch.delenv(OPTIONS_VARIABLE, raising=False)
    assert address().storage_options() == {}
    monkeypatch.setenv(OPTIONS_VARIABLE, '{"key": "c"}')
    assert address().storage_options() == {"key": "c"}


@pytest.mark.parametrize("text", [f"{SECRET}", f'["{SECRET}"]', f'{{"key": "{SECRET}"'])
def test_options_that_cannot_be_read_are_not_shown(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The error names the place; the text may hold a secret, as may its cause."""
    monkeypatch.setenv("MY_OPTIONS", text)
    with pytest.raises(ConfigurationError, match="MY_OPTIONS") as caught:
        address("env:MY_OPTIONS").storage_options()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("source", ["env:NOT_SET_ANYWHERE", "file:/not/there", "vault:secret/x", ""])
def test_a_source_that_does_not_work_says_what_to_give(source: str) -> None:
    """A missing variable or file, an unknown kind."""
    with pytest.raises(ConfigurationError):
        address(source).storage_options()
