"""Ids and the names made of them: none leaves its place, no two meet."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ray_durable.errors import InvalidIdError
from ray_durable.storage import HubKeys, check_hub_name, check_instance_id
from ray_durable.storage.keys import encode_id, escape, numbers

KEYS = HubKeys("hub")
FORBIDDEN = "/\\#?"

allowed_ids = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters=FORBIDDEN), min_size=1, max_size=256
).filter(lambda text: text[0] != "@" and ".." not in text and text != ".")
# Few different characters, so that ids which differ by case, by an escape or by their end are drawn often.
close_ids = st.text(st.sampled_from("aA%é6.0-ǅ"), min_size=1, max_size=60).filter(lambda text: ".." not in text)
long_ids = st.builds(lambda text, times: (text * times)[:256], close_ids, st.integers(10, 200))


class TestAllowedIds:
    """Which ids a user may give."""

    @pytest.mark.parametrize(
        "instance_id", ["a", "nightly-42", "Order 1", "ä", "日本", "a.b", ".a", "a@b", "x" * 256, "%"]
    )
    def test_it_is_allowed(self, instance_id: str) -> None:
        """Most text is."""
        check_instance_id(instance_id)

    @pytest.mark.parametrize(
        "instance_id",
        [
            *("", "x" * 257, "x" * 300, "a/b", "/", "..", "a..b", "../x", ".", "@x", "a#b", "a?b", "a\\b"),
            *("a\nb", "a\x00b", "\x7f", "\x85", "a\ud800b"),
            *(None, 7, b"bytes"),
        ],
        ids=ascii,
    )
    def test_it_is_refused(self, instance_id: str) -> None:
        """The error is a ValueError, shows the id and says what is allowed."""
        with pytest.raises(InvalidIdError, match="1 to 256 characters") as refused:
            check_instance_id(instance_id)
        assert isinstance(refused.value, ValueError)
        assert len(str(refused.value)) < 400

    @given(st.text(max_size=300))
    def test_the_rule_has_no_exception(self, text: str) -> None:
        """Allowed or refused by exactly the rule of the format."""
        is_allowed = (
            1 <= len(text) <= 256
            and not set(text) & set(FORBIDDEN)
            and not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
            and text[0] != "@"
            and ".." not in text
            and text != "."
        )
        try:
            check_instance_id(text)
        except InvalidIdError:
            assert not is_allowed
        else:
            assert is_allowed

    @pytest.mark.parametrize("hub", ["a", "default", "team-1_x", "0", "x" * 100])
    def test_a_hub_name_is_allowed(self, hub: str) -> None:
        """Names that are the same in every store."""
        check_hub_name(hub)

    @pytest.mark.parametrize("hub", ["", "A", "a b", "a/b", "..", "-a", "_a", "ä", "x" * 101, "a.b"])
    def test_a_hub_name_is_refused(self, hub: str) -> None:
        """The error says what is allowed."""
        with pytest.raises(InvalidIdError, match="a-z 0-9"):
            check_hub_name(hub)


class TestNames:
    """Ids as parts of keys."""

    @given(allowed_ids | close_ids | long_ids)
    @example("x" * 256)
    @example("日" * 256)
    def test_a_name_stays_in_its_place(self, instance_id: str) -> None:
        """One part of a path, of few plain characters, short enough for every file system."""
        name = encode_id(instance_id)
        assert 1 <= len(name) <= 150
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_%")
        for key in (KEYS.execution(instance_id, 1), KEYS.open_entry(instance_id)):
            assert len(PurePosixPath(key).parts) == len(key.split("/"))
            assert key.startswith("hub/")

    @given(close_ids | long_ids | allowed_ids, close_ids | long_ids | allowed_ids)
    @example("a", "A")
    @example("%41", "A")
    @example("x" * 200 + "a", "x" * 200 + "b")
    @example("é", "é")
    def test_no_two_ids_share_a_name(self, one: str, other: str) -> None:
        """Also where names ignore case."""
        assume(one != other)
        assert encode_id(one).casefold() != encode_id(other).casefold()

    @given(close_ids, close_ids)
    def test_a_beginning_stays_a_beginning(self, beginning: str, text: str) -> None:
        """So listings can filter by it without reading objects."""
        assert escape(beginning + text).startswith(escape(beginning))
        assert text.startswith(beginning) == escape(text).startswith(escape(beginning))

    def test_names_do_not_change(self) -> None:
        """What is stored must be found by every later version."""
        assert KEYS.execution("nightly-42", 1) == "hub/instances/6c/nightly-42/000001"
        assert KEYS.segment("5f1c0b7e9a3d4c2e8b6f7a1d0c9e8f7a", 1_234) == (
            "hub/runs/ee/5f1c0b7e9a3d4c2e8b6f7a1d0c9e8f7a/log/000000001/000000001234"
        )
        assert encode_id("Ä b") == "%c3%84%20b"
        assert encode_id("A" * 100) == "%41" * 26 + "%%d82c6aa133a0fc25b087f46ad7ed2a3042772e612e015571e61753ff55ba6da8"
        assert KEYS.ended_entry("a", 1_764_000_000_123_456, "ContinuedAsNew") == (
            "hub/index/ended/20251124/1764000000123.continuedasnew.a"
        )

    def test_listed_numbers_are_told_from_other_names(self) -> None:
        """Foreign objects, also with digits of other scripts, are skipped; a number may outgrow its zeros."""
        names = [
            "000002",
            "000010",
            "1",
            "x",
            "², not",
            "²²²²²²",
            "\u0660\u0660\u0660\u0660\u0660\u0661",
            "1000000",
            "0000004",
            "000003/",
            "-00001",
            "00000_1",
        ]
        assert numbers(names, 6) == [2, 3, 10, 1_000_000]
