"""Events as lines of a segment: every type comes back equal, and what is no event is refused by name."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_durable.engine import (
    ContinueAsNew,
    CustomStatusSet,
    Event,
    EventRaised,
    EventSent,
    ExecutionCompleted,
    ExecutionRestarted,
    ExecutionResumed,
    ExecutionRewound,
    ExecutionStarted,
    ExecutionSuspended,
    ExecutionTerminated,
    MapCanceled,
    MapCompleted,
    MapItemsScheduled,
    MapScheduled,
    MarkerRecorded,
    OutboxDelivered,
    OwnerClaimed,
    RuntimeStatus,
    SubOrchestrationInstanceCanceled,
    SubOrchestrationInstanceCompleted,
    SubOrchestrationInstanceCreated,
    SubOrchestrationInstanceFailed,
    TaskCanceled,
    TaskCompleted,
    TaskFailed,
    TaskScheduled,
    TimerCanceled,
    TimerCreated,
    TimerFired,
)
from ray_durable.engine.events import Caused, Input
from ray_durable.errors import CorruptLogError
from ray_durable.failure import Failure
from ray_durable.payload import Payload
from ray_durable.runtime.records import decode_events, encode_events


def joined(text: str) -> str:
    """`text` with every surrogate pair as the one character that it means, which is how JSON reads it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


texts = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=20).map(joined)
numbers = st.integers(0, 2**53)
item_counts = st.integers(0, 10_000_000)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


def as_json(value: object) -> Payload:
    return Payload.of(
        "json", json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    )


payloads = st.one_of(
    documents.map(as_json),
    st.builds(
        Payload.of,
        st.sampled_from(["pickle", "arrow", "ndarray", "multipart", "batch", "json-as-is"]),
        st.binary(max_size=2_000),
    ),
    st.builds(lambda size: Payload(encoding="arrow", data=None, size=size, blob="ab" * 32), numbers),
)
failures = st.recursive(
    st.builds(
        Failure,
        kind=st.sampled_from(["application", "system", "cancelled", "timeout"]),
        type_name=texts,
        message=texts,
        traceback=texts,
        non_retryable=st.booleans(),
        bases=st.lists(texts, max_size=2).map(tuple),
    ),
    lambda cause: st.builds(Failure, kind=st.just("application"), type_name=texts, message=texts, cause=cause),
    max_leaves=3,
)
place = {"number": numbers, "time_us": numbers}
control = {**place, "reason": texts, "request_id": texts}
references = st.none() | st.dictionaries(texts, texts, max_size=3)
versions = st.none() | texts
numbers_in_a_row = st.lists(numbers, max_size=4).map(tuple)
STRATEGIES: dict[type[Event], st.SearchStrategy[Event]] = {
    ExecutionStarted: st.builds(
        ExecutionStarted,
        **place,
        instance_id=texts,
        run=texts,
        execution=numbers,
        name=texts,
        input=payloads,
        request_id=texts,
        reference=references,
        version=versions,
        parent=st.none() | st.tuples(texts, numbers, numbers),
        depth=numbers,
        due_us=st.none() | numbers,
        previous=st.none() | st.tuples(texts, numbers, texts),
        owes=st.booleans(),
        carried=st.lists(
            st.builds(EventRaised, **place, name=texts, value=payloads, event_id=texts)
            | st.builds(TaskCompleted, **place, task=numbers, result=payloads),
            max_size=2,
        ).map(tuple),
        recent=st.lists(texts, max_size=3).map(tuple),
        origin=st.none() | texts,
        lineage=st.lists(st.tuples(numbers, numbers, texts), max_size=2).map(tuple),
        foreign=numbers,
    ),
    OwnerClaimed: st.builds(
        OwnerClaimed,
        **place,
        epoch=numbers,
        hub_epoch=numbers,
        host=texts,
        pid=numbers,
        attempts=st.lists(st.tuples(numbers, numbers), max_size=4).map(tuple),
        python=texts,
    ),
    TaskScheduled: st.builds(
        TaskScheduled, **place, name=texts, input=payloads, attempt=numbers, retry_of=st.none() | numbers
    ),
    TaskCompleted: st.builds(TaskCompleted, **place, task=numbers, result=payloads, attempt=numbers),
    TaskFailed: st.builds(
        TaskFailed, **place, task=numbers, failure=failures, attempt=numbers, heartbeat=st.none() | payloads
    ),
    TaskCanceled: st.builds(TaskCanceled, **place, task=numbers),
    MapScheduled: st.builds(MapScheduled, **place, name=texts, items=payloads, count=item_counts),
    MapItemsScheduled: st.builds(
        MapItemsScheduled, **place, map=numbers, attempt=numbers, items=st.lists(numbers, max_size=5).map(tuple)
    ),
    MapCompleted: st.builds(
        MapCompleted,
        **place,
        map=numbers,
        start=numbers,
        count=item_counts,
        results=payloads,
        failures=st.lists(st.tuples(numbers, failures), max_size=3).map(tuple),
        heartbeats=st.lists(st.tuples(numbers, payloads), max_size=3).map(tuple),
    ),
    MapCanceled: st.builds(MapCanceled, **place, map=numbers),
    TimerCreated: st.builds(TimerCreated, **place, due_us=numbers),
    TimerFired: st.builds(TimerFired, **place, timer=numbers),
    TimerCanceled: st.builds(TimerCanceled, **place, timer=numbers),
    EventRaised: st.builds(EventRaised, **place, name=texts, value=payloads, event_id=texts),
    CustomStatusSet: st.builds(CustomStatusSet, **place, value=documents.map(as_json)),
    ExecutionTerminated: st.builds(ExecutionTerminated, **control, recursive=st.booleans()),
    ExecutionSuspended: st.builds(ExecutionSuspended, **control),
    ExecutionResumed: st.builds(ExecutionResumed, **control),
    ExecutionRewound: st.builds(ExecutionRewound, **control),
    ExecutionRestarted: st.builds(
        ExecutionRestarted,
        **control,
        kind=st.sampled_from(["restart", "rewind", "start"]),
        run=texts,
        name=versions,
        input=st.none() | payloads,
        reference=references,
        version=versions,
        parent=st.none() | st.tuples(texts, numbers, numbers),
        depth=numbers,
        due_us=st.none() | numbers,
        through=numbers,
        kept=numbers_in_a_row,
    ),
    ContinueAsNew: st.builds(ContinueAsNew, **place, input=payloads, run=texts, carried=numbers_in_a_row),
    SubOrchestrationInstanceCreated: st.builds(
        SubOrchestrationInstanceCreated,
        **place,
        name=texts,
        input=payloads,
        instance=versions,
        attempt=numbers,
        retry_of=st.none() | numbers,
        reference=references,
        version=versions,
    ),
    SubOrchestrationInstanceCanceled: st.builds(SubOrchestrationInstanceCanceled, **place, task=numbers),
    SubOrchestrationInstanceCompleted: st.builds(
        SubOrchestrationInstanceCompleted, **place, task=numbers, result=payloads, message=texts
    ),
    SubOrchestrationInstanceFailed: st.builds(
        SubOrchestrationInstanceFailed, **place, task=numbers, failure=failures, message=texts, instance=texts
    ),
    EventSent: st.builds(EventSent, **place, instance=texts, name=texts, value=payloads),
    OutboxDelivered: st.builds(OutboxDelivered, **place, messages=numbers_in_a_row),
    MarkerRecorded: st.builds(
        MarkerRecorded,
        **place,
        kind=st.sampled_from(["side_effect", "patch"]),
        id=texts,
        value=st.none() | payloads,
    ),
    ExecutionCompleted: st.builds(
        ExecutionCompleted,
        **place,
        status=st.sampled_from(RuntimeStatus),
        result=st.none() | payloads,
        failure=st.none() | failures,
    ),
}


def test_every_type_of_event_is_covered_here() -> None:
    """A new event must be written, read and tested."""
    known = {kind.__name__ for base in (Input, Caused) for kind in base.__subclasses__()}
    assert known == {kind.__name__ for kind in STRATEGIES}


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
def test_an_event_comes_back_equal(kind: type[Event]) -> None:
    """Alone or among others, whatever its payloads are made of."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(STRATEGIES[kind], min_size=1, max_size=3))
    def check(events: list[Event]) -> None:
        lines, sections = encode_events(events)
        assert len(lines) == len(events)
        assert not any(b"\n" in line for line in lines)
        decoded = decode_events(lines, sections, key="k")
        assert decoded == events
        assert [getattr(one, "reference", None) for one in decoded] == [
            getattr(one, "reference", None) for one in events
        ]

    check()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(*STRATEGIES.values()), max_size=8))
def test_events_of_all_kinds_share_sections(events: list[Event]) -> None:
    """Sections are counted through, in the order of the lines."""
    lines, sections = encode_events(events)
    assert decode_events(lines, sections, key="k") == events


def test_a_surrogate_that_stands_alone_is_escaped_and_the_rest_stays_readable() -> None:
    """The line is UTF-8, for every reader of JSON; a pair of halves comes back as the character it means."""
    (line,), _ = encode_events(
        [ExecutionTerminated(number=1, time_us=2, reason="ü \\\udc80", request_id="\ud83d\ude00")]
    )
    assert '"reason":"ü \\\\\\udc80"' in line.decode()
    (event,) = decode_events([line], [], key="k")
    assert isinstance(event, ExecutionTerminated)
    assert (event.reason, event.request_id) == ("ü \\\udc80", "😀")


def test_json_payloads_can_be_read_in_the_line() -> None:
    """A person with jq sees the values; small binaries are base64; larger ones and blobs are referred to."""
    events = [
        TaskCompleted(number=1, time_us=2, task=3, result=as_json({"a": [1, "ü"]})),
        TaskCompleted(number=2, time_us=2, task=4, result=Payload.of("pickle", b"12345")),
        TaskCompleted(number=3, time_us=2, task=5, result=Payload.of("pickle", b"x" * 513)),
        TaskCompleted(number=4, time_us=2, task=6, result=Payload.of("arrow", b"y").as_blob()),
    ]
    lines, sections = encode_events(events)
    shown = [json.loads(line) for line in lines]
    assert shown[0] == {
        "n": 1,
        "t": 2,
        "type": "TaskCompleted",
        "task": 3,
        "attempt": 1,
        "result": {"json": {"a": [1, "ü"]}},
    }
    assert shown[1]["result"] == {"pickle": "MTIzNDU="}
    assert shown[2]["result"] == {"encoding": "pickle", "section": 0, "size": 513}
    assert shown[3]["result"].keys() == {"encoding", "blob", "size"}
    assert sections == [b"x" * 513]


def test_the_bytes_of_a_blob_are_not_in_the_segment() -> None:
    """Loaded or not, it is referred to; a reader gets it without its bytes."""
    event = TaskCompleted(number=1, time_us=2, task=3, result=Payload.of("arrow", b"secret-bytes").as_blob())
    lines, sections = encode_events([event])
    assert sections == []
    assert b"secret" not in lines[0]
    (decoded,) = decode_events(lines, sections, key="k")
    assert isinstance(decoded, TaskCompleted)
    assert decoded.result.data is None
    assert decoded.result.digest() == event.result.digest()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"TaskCanceled"',
        b'{"n":1,"t":2}',
        b'{"n":1,"t":2,"type":"TaskCanceled"}',
        b'{"n":1,"t":2,"type":["TaskCanceled"],"task":1}',
        b'{"n":1,"t":2,"type":"TaskCompleted","task":1,"attempt":1,"result":{}}',
        b'{"n":1,"t":2,"type":"TaskCompleted","task":1,"attempt":1,"result":null}',
        b'{"n":1,"t":2,"type":"TaskCompleted","task":1,"attempt":1,"result":{"encoding":"x","section":9,"size":1}}',
        b'{"n":1,"t":2,"type":"TaskCompleted","task":1,"attempt":1,"result":{"pickle":"not base64!"}}',
        b'{"n":1,"t":2,"type":"ExecutionCompleted","status":"Sleeping"}',
        b'{"n":1,"t":2,"type":"OwnerClaimed","epoch":1,"hub_epoch":1,"host":"h","pid":1,"attempts":[1]}',
        b'\xff{"n":1}',
        b"[" * 100_000,
    ],
    ids=lambda line: line[:40].decode("latin-1"),
)
def test_a_line_that_is_no_event_is_refused_by_the_name_of_its_object(line: bytes) -> None:
    """Never a guess, never another kind of error."""
    with pytest.raises(CorruptLogError) as caught:
        decode_events([line], [], key="runs/ab/cd/log/7")
    assert caught.value.key == "runs/ab/cd/log/7"
    assert "runs/ab/cd/log/7" in str(caught.value)


def test_an_event_of_a_later_version_says_what_to_do() -> None:
    """It is not skipped: what it means is not known here."""
    with pytest.raises(CorruptLogError, match=r"EntityLocked.*upgrade ray_durable"):
        decode_events([b'{"n":1,"t":2,"type":"EntityLocked"}'], [], key="k")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_an_event_or_a_corrupt_log(line: bytes) -> None:
    """Nothing else can come out of reading."""
    with contextlib.suppress(CorruptLogError):
        decode_events([line], [], key="k")
