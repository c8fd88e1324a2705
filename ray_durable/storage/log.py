"""The log of one execution: dense, immutable segments with one owner at a time.

Append is create-if-absent of the next number. The store's word is not enough to know an append's fate: whatever it
answers, the same bytes are sent to the same key again until that key is read and found to hold them (success), or
another's (fenced). A new owner reads everything, then appends a claim with the next epoch into the first free slot.
Since every slot is written once and an older owner's next slot is at most that one, the older owner can append nothing
any more.

Invariants: one append in flight; a log that was fenced, or whose append was given up, refuses further use. The log
knows bytes, numbers and epochs, and nothing of orchestrations.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_durable.errors import (
    CorruptLogError,
    DurableError,
    FencedError,
    InstanceNotFoundError,
    StoreUnavailableError,
)
from ray_durable.storage.keys import SEGMENTS_PER_FOLDER, HubKeys, numbers
from ray_durable.storage.objects import is_authentic, is_there, read_bounded
from ray_durable.storage.pacing import Pacing, put_settled
from ray_durable.storage.segment import Segment, SegmentHeader, decode_segment, encode_segment
from ray_durable.storage.store import ObjectStore

__all__ = [
    "ClaimLostError",
    "Executions",
    "RunLog",
    "create_execution",
    "latest_execution",
    "list_executions",
    "read_start",
    "read_tail",
]

_READS_AT_ONCE = 32


class ClaimLostError(DurableError):
    """Another owner took the slot of the claim: read on, and claim after it. `key`."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Executions:
    """The executions of an instance that are in storage: `numbers`, ascending, without those that were purged; all up
    to `purged` were."""

    numbers: tuple[int, ...]
    purged: int

    @property
    def latest(self) -> int | None:
        """The newest one; None if there is none, or none any more."""
        return self.numbers[-1] if self.numbers else None

    @property
    def next(self) -> int:
        """The number that a new instance of this id begins with. Numbers never start again."""
        return max((self.purged, *self.numbers)) + 1


async def list_executions(store: ObjectStore, keys: HubKeys, instance_id: str) -> Executions:
    """Which executions of an instance there are."""
    names = [name for name in await store.list_folder(keys.executions(instance_id)) if not name.endswith("/")]
    tombstones = numbers((name.removeprefix("purged.") for name in names if name.startswith("purged.")), 6)
    while tombstones and not await _is_tombstone(store, keys, instance_id, tombstones[-1]):
        tombstones.pop()
    purged = tombstones[-1] if tombstones else 0
    return Executions(numbers=tuple(number for number in numbers(names, 6) if number > purged), purged=purged)


async def _is_tombstone(store: ObjectStore, keys: HubKeys, instance_id: str, through: int) -> bool:
    """Whether a listed tombstone counts: in a signed hub, one that somebody without the key made does not."""
    if keys.signer is None:
        return True
    key = keys.purged(instance_id, through)
    data = await read_bounded(store, key)
    return data is not None and is_authentic(keys, key, data)


async def latest_execution(store: ObjectStore, keys: HubKeys, instance_id: str) -> int | None:
    """The number of an instance's newest execution; None if there is no such instance."""
    return (await list_executions(store, keys, instance_id)).latest


async def create_execution(
    store: ObjectStore,
    keys: HubKeys,
    *,
    instance_id: str,
    execution: int,
    run: str,
    lines: Sequence[bytes],
    sections: Sequence[bytes],
    status: Mapping[str, Any],
    hub_epoch: int,
    pacing: Pacing | None = None,
) -> Segment | None:
    """Write segment 0 of an execution. None: it is ours. Otherwise the segment that was there before.

    A segment 0 whose status has our `request_id` counts as ours: it is the same start, sent twice.
    """
    pacing = pacing or Pacing()
    key = keys.execution(instance_id, execution)
    header = SegmentHeader(
        run=run,
        instance=instance_id,
        execution=execution,
        seq=0,
        epoch=0,
        hub_epoch=hub_epoch,
        nonce=secrets.token_hex(8),
        first=1,
        count=len(lines),
        written_us=pacing.now_us(),
        status=status,
    )
    data, _ = encode_segment(key, header, lines, sections, signer=keys.signer)
    found = await put_settled(store, key, data, pacing)
    if found is None:
        return None
    existing = decode_segment(key, found, signer=keys.signer)
    _check_place(existing, instance=instance_id, execution=execution, run=existing.header.run, seq=0)
    request_id = status.get("request_id")
    is_same = request_id is not None and existing.header.status.get("request_id") == request_id
    return None if is_same else existing


async def read_start(store: ObjectStore, keys: HubKeys, instance_id: str, execution: int) -> Segment:
    """Segment 0 of an execution. InstanceNotFoundError if there is none."""
    key = keys.execution(instance_id, execution)
    data = await store.get(key)
    if data is None:
        raise InstanceNotFoundError(
            f"There is no instance {instance_id!r} in this hub: check the id, the root and the hub's name",
            instance_id=instance_id,
        )
    segment = decode_segment(key, data, signer=keys.signer)
    _check_place(segment, instance=instance_id, execution=execution, run=segment.header.run, seq=0)
    return segment


def _check_place(segment: Segment, *, instance: str, execution: int, run: str, seq: int) -> None:
    header = segment.header
    told = (header.instance, header.execution, header.run, header.seq)
    if told != (instance, execution, run, seq):
        raise CorruptLogError(
            f"{segment.key} holds a segment of another place {told}: it was copied or renamed. Restore the right one",
            key=segment.key,
        )


async def read_tail(store: ObjectStore, keys: HubKeys, instance_id: str, execution: int) -> Segment:
    """The last segment of an execution, found by listing, without reading the others.

    Raises:
        InstanceNotFoundError: there is no such execution.
    """
    start = await read_start(store, keys, instance_id, execution)
    run = start.header.run
    seq = await _listed_end(store, keys, run)
    if seq == 0:
        return start
    data = await store.get(keys.segment(run, seq))
    if data is None:
        raise StoreUnavailableError(f"{keys.segment(run, seq)} is listed and cannot be read", url=store.url)
    segment = decode_segment(keys.segment(run, seq), data, signer=keys.signer)
    _check_place(segment, instance=instance_id, execution=execution, run=run, seq=seq)
    return segment


async def _listed_end(store: ObjectStore, keys: HubKeys, run: str) -> int:
    """The last listed segment; 0 if there is none."""
    # A folder may be empty: made by a writer that was lost before its segment.
    for folder in reversed(numbers(await store.list_folder(keys.log(run)), 9)):
        listed = numbers(await store.list_folder(keys.log_folder(run, folder * SEGMENTS_PER_FOLDER)), 12)
        if listed:
            return listed[-1]
    return 0


def _next_event(segment: Segment) -> int:
    return segment.header.first + segment.header.count


@dataclass(slots=True)
class RunLog:
    """An execution's log, read to its end; see the module. Made by `read`.

    `segments` are all of them, from segment 0, in order; after an append or claim, only the last one. `epoch` is the
    highest claimed so far: our own after `claim`.
    """

    instance_id: str
    execution: int
    run: str
    segments: list[Segment]
    epoch: int
    _store: ObjectStore
    _keys: HubKeys
    _pacing: Pacing
    _nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    _is_usable: bool = True

    @classmethod
    async def read(
        cls, store: ObjectStore, keys: HubKeys, instance_id: str, execution: int, *, pacing: Pacing | None = None
    ) -> RunLog:
        """Read all segments, in order, to the end.

        Raises:
            InstanceNotFoundError: there is no such execution.
            CorruptLogError: a segment is damaged, missing or out of place.
        """
        pacing = pacing or Pacing()
        start = await pacing.persist(lambda: read_start(store, keys, instance_id, execution))
        log = cls(instance_id, execution, start.header.run, [start], start.header.epoch, store, keys, pacing)
        await log.refresh()
        return log

    @property
    def next_seq(self) -> int:
        """The number of the next segment."""
        return self.segments[-1].header.seq + 1

    @property
    def tail(self) -> Segment:
        """The last segment."""
        return self.segments[-1]

    async def refresh(self) -> list[Segment]:
        """Read what was appended since; returns it. The end is where the next number is absent."""
        known = len(self.segments)
        end = await self._pacing.persist(lambda: _listed_end(self._store, self._keys, self.run))
        for begin in range(self.next_seq, end + 1, _READS_AT_ONCE):
            seqs = range(begin, min(begin + _READS_AT_ONCE, end + 1))
            for seq, data in zip(seqs, await asyncio.gather(*map(self._get, seqs)), strict=True):
                if data is None:
                    key = self._keys.segment(self.run, seq)
                    raise CorruptLogError(f"{key} is missing, and later segments exist: restore the object", key=key)
                self._take(seq, data)
        # Listings may lag behind on some stores; the slot itself does not.
        while (data := await self._get(self.next_seq)) is not None:
            self._take(self.next_seq, data)
        return self.segments[known:]

    async def claim(
        self,
        lines: Sequence[bytes],
        sections: Sequence[bytes],
        *,
        first: int,
        status: Mapping[str, Any],
        hub_epoch: int,
    ) -> Segment:
        """Take the log over: append a segment with the next epoch.

        Raises:
            ClaimLostError: another owner was quicker; this log may be read again and claimed after it.
        """
        return await self._append(lines, sections, first, status, hub_epoch, epoch=self.epoch + 1)

    async def append(
        self,
        lines: Sequence[bytes],
        sections: Sequence[bytes],
        *,
        first: int,
        status: Mapping[str, Any],
        hub_epoch: int,
    ) -> Segment:
        """Append a segment of our epoch. It is durable when this returns.

        Raises:
            FencedError: a newer owner's segment lies there. What was to be appended is not in the log.
            PayloadTooLargeError: the segment is too large; nothing was written.
        """
        assert self.epoch > 0, "claim the log before appending to it"
        return await self._append(lines, sections, first, status, hub_epoch, epoch=None)

    async def verify_ownership(self) -> None:
        """FencedError unless the next slot is still free."""
        if not await self.is_at_end():
            self._is_usable = False
            raise self._fenced(self._keys.segment(self.run, self.next_seq))

    async def is_at_end(self) -> bool:
        """Whether the next slot is still free."""
        key = self._keys.segment(self.run, self.next_seq)
        return not await self._pacing.persist(lambda: is_there(self._store, key))

    async def _append(
        self,
        lines: Sequence[bytes],
        sections: Sequence[bytes],
        first: int,
        status: Mapping[str, Any],
        hub_epoch: int,
        *,
        epoch: int | None,
    ) -> Segment:
        assert self._is_usable, "a fenced or abandoned log is not used again"
        assert first == _next_event(self.tail), "events are numbered without gaps"
        key = self._keys.segment(self.run, self.next_seq)
        header = SegmentHeader(
            run=self.run,
            instance=self.instance_id,
            execution=self.execution,
            seq=self.next_seq,
            epoch=self.epoch if epoch is None else epoch,
            hub_epoch=hub_epoch,
            nonce=self._nonce,
            first=first,
            count=len(lines),
            written_us=self._pacing.now_us(),
            status=status,
            claim=epoch is not None,
            previous=self.tail.digest,
        )
        data, segment = encode_segment(key, header, lines, sections, signer=self._keys.signer)
        # Whoever is interrupted here does not know the append's fate.
        self._is_usable = False
        found = await put_settled(self._store, key, data, self._pacing)
        if found is not None:
            if epoch is not None:
                self._is_usable = True
                raise ClaimLostError(f"Another owner took {key}", key=key)
            raise self._fenced(key)
        self._is_usable = True
        self.epoch = header.epoch
        # What was read has been replayed by now; an owner of years must not keep it.
        self.segments = [segment]
        return segment

    def _fenced(self, key: str) -> FencedError:
        return FencedError(
            f"A newer owner has the log of instance {self.instance_id!r}: this one stands down, and what it had in "
            "flight has an unknown outcome",
            key=key,
        )

    async def _get_raw(self, seq: int) -> bytes | None:
        return await self._store.get(self._keys.segment(self.run, seq))

    async def _get(self, seq: int) -> bytes | None:
        return await self._pacing.persist(lambda: self._get_raw(seq))

    def _take(self, seq: int, data: bytes) -> None:
        """Check a segment's place and enter it."""
        segment = decode_segment(self._keys.segment(self.run, seq), data, signer=self._keys.signer)
        _check_place(segment, instance=self.instance_id, execution=self.execution, run=self.run, seq=seq)
        fault = self._misfit(segment.header)
        if fault is not None:
            raise CorruptLogError(
                f"{segment.key} cannot follow the segment before it: {fault}. Restore the right objects; "
                "storage/verify.py checks a whole root",
                key=segment.key,
            )
        self.epoch = segment.header.epoch
        self.segments.append(segment)

    def _misfit(self, header: SegmentHeader) -> str | None:
        """Why a segment is not what an owner of this log can have written after the present tail; None if it is."""
        before = self.tail.header
        if header.previous != self.tail.digest:
            return "it names another one, so one of the two was replaced"
        # Slots are written once, so an owner of a lower epoch cannot come after a claim; if it is there, it is no log.
        if header.epoch != self.epoch + header.claim or header.epoch == 0:
            return f"it is of epoch {header.epoch}, after {self.epoch}"
        if not header.claim and header.nonce != before.nonce:
            return "its writer never claimed the log"
        if header.first != _next_event(self.tail):
            return f"it begins with event {header.first} instead of {_next_event(self.tail)}"
        return None
