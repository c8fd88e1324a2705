"""Values <-> payloads. See `Codec` for the order of encodings and the trust they need."""

from ray_durable.codec._calls import CallSignature
from ray_durable.codec._codec import Codec
from ray_durable.codec._fit import fits
from ray_durable.codec.batch import Batch, batch_length, concat_batches, open_batch, slice_batch
from ray_durable.codec.limits import Limits, Trust

__all__ = [
    "Batch",
    "CallSignature",
    "Codec",
    "Limits",
    "Trust",
    "batch_length",
    "concat_batches",
    "fits",
    "open_batch",
    "slice_batch",
]
