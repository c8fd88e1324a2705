"""The log, blobs and catalog on an object store. Knows bytes, keys and epochs; knows nothing of orchestrations.

storage/FORMAT.md, beside the package, is the norm for what is written.
"""

from ray_durable.storage.blobs import get_blob, put_blob
from ray_durable.storage.catalog import (
    EndedPage,
    OpenEntry,
    WakeHint,
    add_open,
    ended_key,
    ended_names,
    find_ended,
    find_open,
    forget_ended,
    list_ended,
    list_open,
    record_ended,
    remove_ended,
    remove_open,
)
from ray_durable.storage.hub import (
    claim_hub_epoch,
    create_hub,
    current_hub_epoch,
    free_hub_epoch,
    is_signed,
    read_hub_epoch,
    read_lease,
    read_settings,
    write_lease,
)
from ray_durable.storage.instances import InstanceNames, find_instance_id, list_instances
from ray_durable.storage.keys import HubKeys, check_hub_name, check_instance_id
from ray_durable.storage.log import (
    ClaimLostError,
    Executions,
    RunLog,
    create_execution,
    latest_execution,
    list_executions,
    read_start,
    read_tail,
)
from ray_durable.storage.objects import is_there, read_bounded
from ray_durable.storage.pacing import Pacing, persist
from ray_durable.storage.patience import PatientStore
from ray_durable.storage.removal import (
    Retired,
    bury,
    list_queued,
    list_retired,
    remove_execution,
    remove_retired,
    retire,
)
from ray_durable.storage.schedules import (
    ScheduleRecord,
    create_schedule_revision,
    find_schedule,
    list_schedules,
)
from ray_durable.storage.segment import FORMAT_VERSION, Segment, SegmentHeader, decode_segment, encode_segment
from ray_durable.storage.signing import Signer
from ray_durable.storage.store import OBJECT_BYTES_MAX, ObjectStore, open_store, probe

__all__ = [
    "FORMAT_VERSION",
    "OBJECT_BYTES_MAX",
    "ClaimLostError",
    "EndedPage",
    "Executions",
    "HubKeys",
    "InstanceNames",
    "ObjectStore",
    "OpenEntry",
    "Pacing",
    "PatientStore",
    "Retired",
    "RunLog",
    "ScheduleRecord",
    "Segment",
    "SegmentHeader",
    "Signer",
    "WakeHint",
    "add_open",
    "bury",
    "check_hub_name",
    "check_instance_id",
    "claim_hub_epoch",
    "create_execution",
    "create_hub",
    "create_schedule_revision",
    "current_hub_epoch",
    "decode_segment",
    "encode_segment",
    "ended_key",
    "ended_names",
    "find_ended",
    "find_instance_id",
    "find_open",
    "find_schedule",
    "forget_ended",
    "free_hub_epoch",
    "get_blob",
    "is_signed",
    "is_there",
    "latest_execution",
    "list_ended",
    "list_executions",
    "list_instances",
    "list_open",
    "list_queued",
    "list_retired",
    "list_schedules",
    "open_store",
    "persist",
    "probe",
    "put_blob",
    "read_bounded",
    "read_hub_epoch",
    "read_lease",
    "read_settings",
    "read_start",
    "read_tail",
    "record_ended",
    "remove_ended",
    "remove_execution",
    "remove_open",
    "remove_retired",
    "retire",
    "write_lease",
]
