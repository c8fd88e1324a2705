"""Where a hub is: what travels, what each process reads for itself, and that no secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_durable.errors import ConfigurationError
from ray_durable.reader import address_of
from ray_durable.runtime.address import KEY_FILE_VARIABLE, KEY_VARIABLE, OPTIONS_VARIABLE, HubAddress
from ray_durable.storage import Signer

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


class TestSigningKey:
    """The key is read by each process for itself, and shown by none."""

    @pytest.fixture(autouse=True)
    def no_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever the environment of the tests says."""
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)

    def test_a_key_is_read_where_the_address_says(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a file or a variable; none means that the hub is not signed."""
        (tmp_path / "key").write_text("k" * 32)
        monkeypatch.setenv("MY_KEY", "k" * 32)
        ids = Signer([b"k" * 32]).key_ids
        for source in (f"file:{tmp_path / 'key'}", "env:MY_KEY"):
            signer = HubAddress(root="r", hub="hub", key_source=source).signer()
            assert signer is not None
            assert signer.key_ids == ids
        assert address().signer() is None

    def test_the_common_variables_are_the_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Named in the address, so that a process without them says so instead of going on unsigned."""
        monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "key"))
        assert address_of("r", "hub", None, None)[0].key_source == f"file:{tmp_path / 'key'}"
        monkeypatch.setenv(KEY_VARIABLE, "k" * 32)
        assert address_of("r", "hub", None, None)[0].key_source == f"env:{KEY_VARIABLE}"
        assert address_of("r", "hub", None, "env:MINE")[0].key_source == "env:MINE"

    def test_a_key_given_as_bytes_is_not_in_the_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It goes into the environment, which a Ray that is started here inherits."""
        key = SECRET.encode() * 5
        given, secrets = address_of("r", "hub", None, key)
        assert SECRET not in repr(given)
        assert key.hex() not in repr(given)
        for name, text in secrets.items():
            monkeypatch.setenv(name, text)
        signer = given.signer()
        assert signer is not None
        assert signer.key_ids == Signer([key]).key_ids

    @pytest.mark.parametrize("given", [SECRET, f"key:{SECRET}", f"env:{SECRET}", SECRET.encode()])
    def test_what_is_no_key_or_source_is_not_shown(self, given: str | bytes) -> None:
        """Somebody may give the key itself where a source belongs. A name of a variable is one, and is."""
        with pytest.raises(ConfigurationError) as caught:
            address_of("r", "hub", None, given)[0].signer()
        assert (SECRET in str(caught.value)) is (given == f"env:{SECRET}")

    def test_a_file_that_holds_no_key_is_named(self, tmp_path: Path) -> None:
        """What is in it is not."""
        (tmp_path / "key").write_text(SECRET)
        with pytest.raises(ConfigurationError, match=r"key cannot be used\..*32 bytes") as caught:
            HubAddress(root="r", hub="hub", key_source=f"file:{tmp_path / 'key'}").signer()
        assert SECRET not in str(caught.value)
        (tmp_path / "key").write_bytes(b"\xff" * 40)
        with pytest.raises(ConfigurationError, match="is no text"):
            HubAddress(root="r", hub="hub", key_source=f"file:{tmp_path / 'key'}").signer()
