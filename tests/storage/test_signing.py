"""Signed objects: what nobody without the key can make, change, move or copy to another place."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import pickle
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from ray_durable.errors import ConfigurationError, CorruptLogError
from ray_durable.storage import (
    HubKeys,
    ObjectStore,
    OpenEntry,
    Retired,
    RunLog,
    SegmentHeader,
    Signer,
    add_open,
    bury,
    claim_hub_epoch,
    create_execution,
    create_hub,
    current_hub_epoch,
    decode_segment,
    encode_segment,
    find_open,
    free_hub_epoch,
    list_ended,
    list_executions,
    list_open,
    list_retired,
    open_store,
    read_hub_epoch,
    read_lease,
    read_settings,
    record_ended,
    remove_retired,
    retire,
    write_lease,
)
from tests.support.segments import chained, rechecked

T = TypeVar("T")

KEY = b"0123456789abcdef0123456789abcdef"
OTHER_KEY = b"f" * 32
RUN, OTHER_RUN = "0123456789abcdef" * 2, "f" * 32
SIGNED = HubKeys("hub", Signer([KEY]))
UNSIGNED = HubKeys("hub")
FORGED = HubKeys("hub", Signer([OTHER_KEY]))
PLACE = SIGNED.segment(RUN, 7)


def sample(signer: Signer | None = SIGNED.signer, *, place: str = PLACE, seq: int = 7) -> bytes:
    """A segment with text, a section, and all fields."""
    header = SegmentHeader(
        run=RUN,
        instance="Größe",
        execution=1,
        seq=seq,
        epoch=2,
        hub_epoch=3,
        nonce="0123456789abcdef",
        first=9,
        count=2,
        written_us=1,
        status={"custom_status": 'a "text"\n'},
        claim=True,
        previous="f" * 64,
    )
    return encode_segment(place, header, [b'{"n":9}', b'{"n":10}'], [b"\n\n\x00\xff", b""], signer=signer)[0]


def refuse(data: bytes, *, place: str = PLACE, says: str = "not authentic") -> None:
    with pytest.raises(CorruptLogError, match=says) as refused:
        decode_segment(place, data, signer=SIGNED.signer)
    assert refused.value.key == place


def in_store(test: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(test)


async def new_store() -> ObjectStore:
    return await open_store(f"memory://signing-{next(_numbers)}")


_numbers = iter(range(10**6))


class TestKeys:
    """What is a key, and that it stays where it is."""

    def test_a_key_has_32_bytes_at_least(self) -> None:
        """And the error does not show it."""
        Signer([b"x" * 32])
        with pytest.raises(ConfigurationError, match=r"32 bytes.*openssl") as refused:
            Signer([b"secret" * 5])
        assert "secret" not in str(refused.value)

    def test_a_text_holds_keys_and_comments(self) -> None:
        """One a line; any bytes as hex digits."""
        text = f"# the new one\n{'n' * 40}\n\nhex:{KEY.hex()}\n"
        assert Signer.from_text(text).key_ids == Signer([b"n" * 40, KEY]).key_ids
        assert Signer.from_text(Signer.text_of(KEY)).key_ids == Signer([KEY]).key_ids

    @pytest.mark.parametrize("text", ["", "# nothing\n", "hex:secret", "secret", f"{'k' * 40}\nsecret\n"])
    def test_a_text_without_keys_is_refused_and_not_shown(self, text: str) -> None:
        """Not by its causes either."""
        with pytest.raises(ConfigurationError) as refused:
            Signer.from_text(text)
        assert "secret" not in str(refused.value)
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__ or refused.value.__context__ is None

    def test_a_key_does_not_travel(self) -> None:
        """It is in no repr, and cannot be pickled by accident."""
        keys = HubKeys("hub", Signer([KEY]))
        assert KEY.decode() not in repr(keys)
        assert KEY.hex() not in repr(keys)
        with pytest.raises(TypeError, match="does not travel"):
            pickle.dumps(keys)

    def test_the_first_key_signs_and_all_verify(self) -> None:
        """So that keys can be changed: the new one is put in front of the old one."""
        old, both = Signer([KEY]), Signer([OTHER_KEY, KEY])
        assert decode_segment(PLACE, sample(old), signer=both).header.seq == 7
        assert decode_segment(PLACE, sample(both), signer=Signer([OTHER_KEY])).header.seq == 7
        refuse(sample(both), says=f"{both.key_id}, which is not among those that were given .{old.key_id}")


class TestSegments:
    """The log."""

    def test_the_mac_is_what_the_format_says(self) -> None:
        """Made here again from FORMAT.md, with hmac alone."""
        data = sample()
        head, _, body = data.partition(b"\n")
        fields = json.loads(head)
        assert list(fields)[-2:] == ["mac", "sha256"]
        key_id, digits = fields["mac"].split(".")
        assert key_id == hmac.digest(KEY, b"ray_durable key id", "sha256").hex()[:8]
        blank = head.replace(digits.encode(), b"0" * 64).replace(fields["sha256"].encode(), b"0" * 64)
        text = b"ray_durable 1\n" + PLACE.encode() + b"\n" + blank + b"\n" + body
        assert digits == hmac.digest(KEY, text, "sha256").hex()
        blank = data.replace(fields["sha256"].encode(), b"0" * 64)
        assert fields["sha256"] == hashlib.sha256(blank).hexdigest()

    def test_what_was_signed_is_read_with_the_key_and_without(self) -> None:
        """A reader without the key sees the same segment; nobody vouches for it."""
        signed = decode_segment(PLACE, sample(), signer=SIGNED.signer)
        assert signed == decode_segment(PLACE, sample())
        unsigned = decode_segment(PLACE, sample(None))
        assert (signed.header, signed.lines, signed.sections) == (unsigned.header, unsigned.lines, unsigned.sections)

    def test_every_flipped_bit_is_refused_also_under_a_right_checksum(self) -> None:
        """All bits of all bytes; whoever changes an object can compute its checksum again."""
        data = sample()
        for position in range(len(data)):
            for bit in range(8):
                damaged = bytearray(data)
                damaged[position] ^= 1 << bit
                for forged in (bytes(damaged), rechecked(bytes(damaged))):
                    if forged != data:
                        with pytest.raises(CorruptLogError):
                            decode_segment(PLACE, forged, signer=SIGNED.signer)

    def test_every_truncation_is_refused_also_under_a_right_checksum(self) -> None:
        """Of any length, and what is longer too."""
        data = sample()
        for forged in [*(data[:size] for size in range(len(data))), data + b"\n", data + b"x", data * 2]:
            for one in (forged, rechecked(forged)):
                with pytest.raises(CorruptLogError):
                    decode_segment(PLACE, one, signer=SIGNED.signer)

    @pytest.mark.parametrize(
        "place",
        [
            SIGNED.segment(RUN, 8),
            SIGNED.segment(OTHER_RUN, 7),
            SIGNED.execution("Größe", 1),
            HubKeys("other-hub").segment(RUN, 7),
        ],
    )
    def test_a_segment_is_right_in_one_place_only(self, place: str) -> None:
        """Another number, run, instance or hub under the same key is another place."""
        refuse(sample(), place=place, says="not for these bytes at this place")

    def test_without_its_mac_it_is_refused(self) -> None:
        """Removed, or never made: a hub that is signed has no other segments."""
        refuse(sample(None), says="not signed, and this hub is")
        fields = json.loads(sample().partition(b"\n")[0])
        assert rechecked(sample().replace(f',"mac":"{fields["mac"]}"'.encode(), b"")) == sample(None)

    def test_another_key_makes_no_mac(self) -> None:
        """Under its own id, or under ours."""
        ours, theirs = Signer([KEY]), Signer([OTHER_KEY])
        refuse(sample(theirs), says="is not among those that were given")
        forged = sample(theirs).replace(theirs.key_id.encode(), ours.key_id.encode())
        refuse(rechecked(forged), says="not for these bytes")

    def test_a_mac_elsewhere_in_the_header_counts_for_nothing(self) -> None:
        """Only where the format has it."""
        mac = json.loads(sample().partition(b"\n")[0])["mac"]
        forged = sample(None).replace(b'{"v":1', b'{"mac":"%b","v":1' % mac.encode(), 1)
        refuse(rechecked(forged), says="not signed")

    def test_a_log_whose_middle_was_exchanged_is_refused(self) -> None:
        """Swapped with its neighbour, or with the same number of another run; and with an unsigned one that fits."""

        async def attack() -> None:
            for keys, swaps in ((SIGNED, True), (UNSIGNED, False)):
                store = await new_store()
                await write_log(store, keys, "one", RUN)
                await write_log(store, keys, "two", OTHER_RUN)
                own = [await store.get(keys.segment(RUN, seq)) for seq in (1, 2, 3)]
                others = await store.get(keys.segment(OTHER_RUN, 2))
                forgery = chained(own[0] or b"", own[1] or b"", changes={"nonce": "0" * 16})
                for forged in ([own[0], own[2], own[1]], [own[0], others, own[2]], [own[0], forgery, own[2]]):
                    for seq, data in enumerate(forged, start=1):
                        await store.put(keys.segment(RUN, seq), data or b"")
                    with pytest.raises(CorruptLogError):
                        await RunLog.read(store, keys, "one", 1)
                assert swaps is (keys is SIGNED)

        in_store(attack())

    def test_without_a_key_a_forger_can_write_history_and_with_one_not(self) -> None:
        """The attack works on an unsigned hub: that it fails on a signed one is the signature's doing."""

        async def attack(keys: HubKeys) -> list[bytes]:
            store = await new_store()
            await write_log(store, keys, "one", RUN)
            previous, last = await store.get(keys.segment(RUN, 2)), await store.get(keys.segment(RUN, 3))
            forged = chained(previous or b"", last or b"", lines=[b'{"n":4,"forged":true}'])
            await store.put(keys.segment(RUN, 3), forged)
            return list((await RunLog.read(store, keys, "one", 1)).tail.lines)

        assert in_store(attack(UNSIGNED)) == [b'{"n":4,"forged":true}']
        with pytest.raises(CorruptLogError, match=r"not signed, and this hub is|not for these bytes"):
            in_store(attack(SIGNED))

    def test_a_start_does_not_take_a_forged_one_for_its_own(self) -> None:
        """One with the same request id, which a reader of the bucket knows."""

        async def attack() -> None:
            store = await new_store()
            await write_start(store, UNSIGNED, "one", OTHER_RUN, request_id="r")
            with pytest.raises(CorruptLogError, match="not signed"):
                await write_start(store, SIGNED, "one", RUN, request_id="r")

        in_store(attack())


class TestHub:
    """Settings, leases and epochs."""

    def test_a_new_hub_says_that_it_is_signed(self) -> None:
        """Whoever connects without the key is told what to do; whoever has it goes on."""

        async def connect() -> None:
            store = await new_store()
            await create_hub(store, SIGNED, {"grace_s": 1})
            assert await create_hub(store, SIGNED, {}) == {"grace_s": 1, "signing": "hmac-sha256"}
            with pytest.raises(ConfigurationError, match=r"is signed.*signing_key='env:NAME'.*RAY_DURABLE_SIGNING_KEY"):
                await create_hub(store, UNSIGNED, {})
            assert await read_settings(store, UNSIGNED) == {"grace_s": 1, "signing": "hmac-sha256"}

        in_store(connect())

    def test_an_unsigned_hub_takes_no_key(self) -> None:
        """What lies there cannot be authenticated; the way out is another hub."""

        async def connect() -> None:
            store = await new_store()
            await create_hub(store, UNSIGNED, {})
            with pytest.raises(ConfigurationError, match=r"made without a signing key.*hub='another-name'"):
                await create_hub(store, SIGNED, {})

        in_store(connect())

    def test_the_key_decides_not_the_settings(self) -> None:
        """A hub.json that was replaced by an unsigned one, by one of another key, or changed."""

        async def attack(forged: bytes, says: str, error: type[Exception]) -> None:
            store = await new_store()
            await create_hub(store, SIGNED, {"grace_s": 86_400})
            await store.put(SIGNED.settings, forged)
            with pytest.raises(error, match=says):
                await read_settings(store, SIGNED)

        async def settings_of(keys: HubKeys) -> bytes:
            store = await new_store()
            await create_hub(store, keys, {"grace_s": 86_400})
            return await store.get(keys.settings) or b""

        ours = in_store(settings_of(SIGNED))
        in_store(attack(in_store(settings_of(UNSIGNED)), "made without a signing key.*replaced", ConfigurationError))
        in_store(attack(in_store(settings_of(FORGED)), "signed with the key", ConfigurationError))
        in_store(attack(ours.replace(b"86400", b"00000"), "not authentic", CorruptLogError))
        moved = in_store(settings_of(HubKeys("other", SIGNED.signer)))
        in_store(attack(moved, "not authentic", CorruptLogError))

    def test_a_forged_lease_names_no_cluster_to_join(self) -> None:
        """Nor does a forged claim topple the holder, or stand in the way of the next one."""

        async def attack() -> None:
            store = await new_store()
            assert await claim_hub_epoch(store, SIGNED, 1, {"epoch": 1, "cluster": "ours"})
            await write_lease(store, UNSIGNED, {"epoch": 9, "cluster": "theirs"})
            await claim_hub_epoch(store, UNSIGNED, 9, {"epoch": 9, "cluster": "theirs"})
            await store.put(SIGNED.hub_epoch(7), await store.get(SIGNED.hub_epoch(1)) or b"")
            assert await read_lease(store, SIGNED) is None
            assert await read_hub_epoch(store, SIGNED, 9) is None
            assert await current_hub_epoch(store, SIGNED) == 1
            assert await current_hub_epoch(store, SIGNED, known=1) == 1
            assert await current_hub_epoch(store, UNSIGNED) == 9
            epoch = await free_hub_epoch(store, SIGNED)
            assert epoch == 10
            assert await claim_hub_epoch(store, SIGNED, epoch, {"epoch": epoch})
            assert await current_hub_epoch(store, SIGNED) == 10

        in_store(attack())


class TestIndex:
    """What is derived from the logs, and what asks for removal."""

    def test_forged_entries_are_no_entries(self) -> None:
        """Neither in the open set nor among what has ended, made up or copied to another name."""

        async def attack() -> None:
            store = await new_store()
            await add_open(store, SIGNED, entry("ours"))
            await add_open(store, UNSIGNED, entry("forged"))
            await store.put(SIGNED.open_entry("copied"), await store.get(SIGNED.open_entry("ours")) or b"")
            assert [one.instance_id for one in await list_open(store, SIGNED)] == ["ours"]
            assert await find_open(store, SIGNED, "forged") is None
            await record_ended(store, SIGNED, summary("ours"))
            await record_ended(store, UNSIGNED, summary("forged"))
            assert [one["instance"] for one in (await list_ended(store, SIGNED)).summaries] == ["ours"]

        in_store(attack())

    def test_entries_of_another_place_are_no_entries_without_a_key_either(self) -> None:
        """A copy under another name says what it was, and is not believed."""

        async def attack() -> None:
            store = await new_store()
            await add_open(store, UNSIGNED, entry("ours"))
            await store.put(UNSIGNED.open_entry("copied"), await store.get(UNSIGNED.open_entry("ours")) or b"")
            assert [one.instance_id for one in await list_open(store, UNSIGNED)] == ["ours"]
            await retire(store, UNSIGNED, Retired(instance_id="ours", through=1, due_us=1_000))
            name = UNSIGNED.retired_entry("copied", 1_000)
            await store.put(name, await store.get(UNSIGNED.retired_entry("ours", 1_000)) or b"")
            assert [one.instance_id for _, one in await list_retired(store, UNSIGNED, 10_000)] == ["ours"]

        in_store(attack())

    def test_nobody_without_the_key_has_a_living_log_removed(self) -> None:
        """A forged tombstone with a forged entry of the queue: whoever may write but not delete would have us do it."""

        async def attack(keys: HubKeys) -> bool:
            store = await new_store()
            await write_log(store, keys, "one", RUN)
            await bury(store, UNSIGNED, "one", 1)
            await retire(store, UNSIGNED, Retired(instance_id="one", through=1, due_us=1_000))
            for key, retired in await list_retired(store, keys, 10_000):
                await remove_retired(store, keys, key, retired)
            return await store.get(keys.segment(RUN, 1)) is not None

        assert in_store(attack(UNSIGNED)) is False, "the attack works where nothing is signed"
        assert in_store(attack(SIGNED)) is True

    def test_a_forged_tombstone_buries_nobody_and_does_not_stand_in_the_way(self) -> None:
        """The instance is there as before; its own tombstone counts at once."""

        async def attack() -> None:
            store = await new_store()
            await write_log(store, SIGNED, "one", RUN)
            for through in (1, 5):
                await bury(store, UNSIGNED, "one", through)
            executions = await list_executions(store, SIGNED, "one")
            assert (executions.latest, executions.purged, executions.next) == (1, 0, 2)
            await bury(store, SIGNED, "one", 1)
            executions = await list_executions(store, SIGNED, "one")
            assert (executions.latest, executions.purged, executions.next) == (None, 1, 2)

        in_store(attack())


def entry(instance_id: str) -> OpenEntry:
    return OpenEntry(instance_id=instance_id, name="f", request_id="r", entered_us=1)


def summary(instance_id: str) -> dict[str, Any]:
    return {"instance": instance_id, "runtime_status": "Completed", "created_us": 1_000, "execution": 1}


async def write_start(store: ObjectStore, keys: HubKeys, instance_id: str, run: str, *, request_id: str = "") -> None:
    await create_execution(
        store,
        keys,
        instance_id=instance_id,
        execution=1,
        run=run,
        lines=[b'{"n":1}'],
        sections=[],
        status={"request_id": request_id or run},
        hub_epoch=0,
    )


async def write_log(store: ObjectStore, keys: HubKeys, instance_id: str, run: str) -> None:
    """Segments 0 to 3."""
    await write_start(store, keys, instance_id, run)
    log = await RunLog.read(store, keys, instance_id, 1)
    await log.claim([b'{"n":2}'], [], first=2, status={}, hub_epoch=0)
    for number in (3, 4):
        await log.append([b'{"n":%d}' % number], [], first=number, status={}, hub_epoch=0)
