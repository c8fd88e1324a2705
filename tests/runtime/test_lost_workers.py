"""Workers that die with a call are counted, alone or in company, and the count reaches the log."""

from __future__ import annotations

from ray_durable.codec import Codec
from ray_durable.engine import MapCompleted, TaskCompleted
from ray_durable.failure import Failure
from ray_durable.reference import FunctionReference
from ray_durable.runtime.lanes import MapLane, SlicePolicy, TaskLane
from ray_durable.runtime.messages import MapRequest, SliceReport, TaskRequest
from ray_durable.runtime.records import decode_events, encode_events
from ray_durable.runtime.release import outcome_event
from ray_durable.target import ActivityTarget

CODEC = Codec()
TARGET = ActivityTarget(
    reference=FunctionReference(name="f", module="m", qualname="f"), options={}, is_local=False, key="k"
)
LOST = Failure(kind="system", type_name="WorkerLostError", message="lost")
ONE = CODEC.encode(1, where="test")


def request(task: int) -> TaskRequest:
    return TaskRequest(task=task, attempt=1, submission=1, origin=task, input=ONE, target=TARGET)


def test_a_call_that_lost_a_worker_in_company_and_one_alone_says_two() -> None:
    """Both runs may have happened, so both count; its neighbour lost one."""
    lane = TaskLane("run", "one", TARGET, SlicePolicy())
    lane.add([request(5), request(6)])
    lane.take(1, free_slots=1)
    assert lane.lose(1, LOST) == []
    lane.take(2, free_slots=1)
    assert lane.lose(2, LOST) == []
    outcomes = []
    for slice_id in (3, 4):
        lane.take(slice_id, free_slots=1)
        outcomes += lane.report(slice_id, SliceReport(done=1, elapsed_s=0.1, outcomes=[ONE]))
    events = [outcome_event(outcome) for outcome in outcomes]
    assert {event.task: event.lost_workers for event in events if isinstance(event, TaskCompleted)} == {5: 2, 6: 1}
    numbered = [event.stamped(number, 1) for number, event in enumerate(events, start=1)]
    lines, sections = encode_events(numbered)
    assert decode_events(lines, sections, key="log") == numbered


def test_a_call_that_lost_none_says_nothing() -> None:
    """The usual line is no longer for it."""
    lines, _ = encode_events([TaskCompleted(number=1, time_us=1, task=5, result=ONE)])
    assert b"lost_workers" not in lines[0]


def test_a_range_of_a_map_adds_up_what_its_items_lost() -> None:
    """Two items of four were with a worker that died."""
    items = CODEC.encode_batch([1, 2, 3, 4], where="test")
    wanted = MapRequest(map=7, attempt=1, submission=1, items=items, ranges=((0, 4),), target=TARGET)
    lane = MapLane("run", "one", wanted, SlicePolicy())
    lane.add(wanted)
    lane.take(1, free_slots=2)
    lane.lose(1, LOST)
    counted = 0
    slice_id = 1
    while lane.is_waiting:
        slice_id += 1
        work = lane.take(slice_id, free_slots=1)
        results = CODEC.encode_batch([0] * work.count, where="test")
        for outcome in lane.report(slice_id, SliceReport(done=work.count, elapsed_s=0.1, results=results)):
            event = outcome_event(outcome)
            assert isinstance(event, MapCompleted)
            counted += event.lost_workers
    assert counted == 2
