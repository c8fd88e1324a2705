"""A segment: one immutable object of the log, self-describing and checksummed. storage/FORMAT.md is the norm.

The first line is a JSON header; then one event a line, as the caller encoded them; then raw sections. The checksum in
the header covers the whole object, and is the name by which the next segment refers to this one. In a signed hub a mac
stands before it, which is checked before anything of the object is parsed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_durable.errors import CorruptLogError, PayloadTooLargeError
from ray_durable.storage.signing import MAC_CHARS, Signer

__all__ = ["FORMAT_VERSION", "SEGMENT_BYTES_MAX", "Segment", "SegmentHeader", "decode_segment", "encode_segment"]

FORMAT_VERSION = 1
SEGMENT_BYTES_MAX = 64 * 1024 * 1024
"""Below the size from which clients upload in parts, where a condition holds for the last request only."""

_ZEROS = b"0" * 64
_TAIL = b',"sha256":"' + _ZEROS + b'"}\n'
_MAC = b',"mac":"'
_MAC_END = re.compile(rb',"mac":"([0-9a-f]{8})\.([0-9a-f]{64})"\Z')

_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """What a segment says of itself.

    `previous` is the digest of the segment before (None for segment 0), `first` the number of the first event, `count`
    how many there are. `claim` marks the segment by which an owner began its epoch. `status` is the writer's summary,
    opaque here.
    """

    run: str
    instance: str
    execution: int
    seq: int
    epoch: int
    hub_epoch: int
    nonce: str
    first: int
    count: int
    written_us: int
    status: Mapping[str, Any]
    claim: bool = False
    previous: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A decoded segment. `digest` is its checksum, in hex; `key` where it lies."""

    key: str
    header: SegmentHeader
    lines: tuple[bytes, ...]
    sections: tuple[bytes, ...]
    digest: str


def encode_segment(
    key: str,
    header: SegmentHeader,
    lines: Sequence[bytes],
    sections: Sequence[bytes],
    *,
    signer: Signer | None = None,
) -> tuple[bytes, Segment]:
    """The bytes of a segment that is to lie at `key`, and the segment as a reader will see it.

    Raises:
        PayloadTooLargeError: it would be over the limit of one object.
    """
    fields: dict[str, Any] = {
        "v": FORMAT_VERSION,
        "run": header.run,
        "instance": header.instance,
        "execution": header.execution,
        "seq": header.seq,
        "epoch": header.epoch,
        "hub_epoch": header.hub_epoch,
        "nonce": header.nonce,
        "first": header.first,
        "count": header.count,
        "written_us": header.written_us,
    }
    if header.claim:
        fields["claim"] = True
    if header.previous is not None:
        fields["previous"] = header.previous
    fields["sections"] = [len(section) for section in sections]
    fields["status"] = header.status
    text = b"\n".join((*lines, b""))
    assert header.count == text.count(b"\n") == len(lines) >= 1, "an event is one line, and a segment counts its events"
    body = b"".join((text, *sections))
    # UTF-8 cannot hold lone surrogates; what Python writes for one is JSON's escape too.
    head = _text(fields)[:-1].encode("utf-8", "backslashreplace")
    size = len(head) + len(_TAIL) + len(body) + (0 if signer is None else len(_MAC) + MAC_CHARS + 1)
    if size > SEGMENT_BYTES_MAX:
        raise PayloadTooLargeError(
            f"One turn of instance {header.instance!r} caused {size} bytes of history, more than the "
            f"{SEGMENT_BYTES_MAX} of one object: use ctx.map instead of that many calls at once, or let activities "
            "exchange large values by reference",
            where=f"instance {header.instance!r}",
            size_bytes=size,
            limit_bytes=SEGMENT_BYTES_MAX,
        )
    if signer is not None:
        head += _MAC + signer.key_id.encode() + b"."
        head += signer.sign(key, head, _ZEROS, b'"', _TAIL, body).encode() + b'"'
    hashed = hashlib.sha256(head)
    hashed.update(_TAIL)
    hashed.update(body)
    digest = hashed.hexdigest()
    data = b"".join((head, _TAIL.replace(_ZEROS, digest.encode()), body))
    segment = Segment(key=key, header=header, lines=tuple(lines), sections=tuple(sections), digest=digest)
    return data, segment


def decode_segment(key: str, data: bytes, *, signer: Signer | None = None) -> Segment:
    """The segment in `data`, which was read from `key`. With a `signer`, one that it vouches for.

    Raises:
        CorruptLogError: the bytes are damaged, of an unknown version, no segment, or not authentic.
    """
    end = data.find(b"\n") + 1
    head, body = data[:end], data[end:]
    if end < len(_TAIL) or not (head.endswith(b'"}\n') and head[-len(_TAIL) :].startswith(b',"sha256":"')):
        raise _corrupt(key, "its first line is no header with a checksum")
    stored = head[-len(_TAIL) + 11 : -3].decode("ascii", "replace")
    hashed = hashlib.sha256(head[: -len(_TAIL)])
    hashed.update(_TAIL)
    hashed.update(body)
    if hashed.hexdigest() != stored:
        raise _corrupt(key, "its bytes do not match its checksum")
    if signer is not None:
        _authenticate(signer, key, head[: -len(_TAIL)], body)
    try:
        fields = json.loads(head)
        if fields["v"] != FORMAT_VERSION:
            raise _corrupt(
                key, f"its format version is {fields['v']!r}, and this ray_durable reads {FORMAT_VERSION}: upgrade"
            )
        _check_types(fields)
        header = SegmentHeader(
            run=fields["run"],
            instance=fields["instance"],
            execution=fields["execution"],
            seq=fields["seq"],
            epoch=fields["epoch"],
            hub_epoch=fields["hub_epoch"],
            nonce=fields["nonce"],
            first=fields["first"],
            count=fields["count"],
            written_us=fields["written_us"],
            status=fields["status"],
            claim=fields.get("claim", False),
            previous=fields.get("previous"),
        )
        lines, sections = _split(body, header.count, fields["sections"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _corrupt(key, f"its header is not understood ({type(error).__name__}: {error!s:.200})") from error
    return Segment(key=key, header=header, lines=lines, sections=sections, digest=stored)


def _authenticate(signer: Signer, key: str, head: bytes, body: bytes) -> None:
    """CorruptLogError unless the mac at the end of `head` is ours, for this place and these bytes."""
    found = _MAC_END.search(head, max(0, len(head) - len(_MAC) - MAC_CHARS - 1))
    if found is None:
        raise _refused(key, "it is not signed, and this hub is")
    key_id = found[1].decode()
    if key_id not in signer.key_ids:
        raise _refused(
            key,
            f"it is signed with the key {key_id}, which is not among those that were given "
            f"({', '.join(signer.key_ids)}). If that was a key of yours, add it to them",
        )
    if not signer.verifies(key_id, found[2].decode(), key, head[: found.start(2)], _ZEROS, b'"', _TAIL, body):
        raise _refused(key, "its signature is not for these bytes at this place: it was changed, moved or made up")


def _check_types(fields: Mapping[str, Any]) -> None:
    """What another program wrote may have a valid checksum and still be nonsense."""
    texts = [fields[name] for name in ("run", "instance", "nonce")]
    counts = [fields[name] for name in ("execution", "seq", "epoch", "hub_epoch", "first", "count")]
    if not all(type(text) is str for text in texts) or not all(type(count) is int for count in counts):
        raise TypeError("a field of another type")
    if min(counts) < 0 or fields["count"] == 0 or not isinstance(fields["status"], dict):
        raise ValueError("a field that cannot be")


def _split(body: bytes, count: int, sizes: Sequence[int]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    text_size = len(body) - sum(sizes)
    lines = body[: max(text_size, 0)].split(b"\n")
    if min(sizes, default=0) < 0 or text_size < 0 or lines.pop() != b"" or len(lines) != count:
        raise ValueError(f"{count} lines and sections of {list(sizes)} bytes do not make up {len(body)} bytes")
    sections: list[bytes] = []
    position = text_size
    for size in sizes:
        sections.append(body[position : position + size])
        position += size
    return tuple(lines), tuple(sections)


def _refused(key: str, reason: str) -> CorruptLogError:
    return CorruptLogError(
        f"{key} is not authentic: {reason}. Nothing of it is used. Restore the object from a version of the bucket, "
        "and find out who can write there",
        key=key,
    )


def _corrupt(key: str, reason: str) -> CorruptLogError:
    return CorruptLogError(
        f"{key} is damaged: {reason}. Nothing of it is used. Restore the object from a backup or a version of the "
        "bucket; storage/verify.py checks a whole root",
        key=key,
    )
