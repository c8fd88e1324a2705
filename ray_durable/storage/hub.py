"""The hub's own objects: its settings, its epochs, and the lease that its holder renews.

In a signed hub all of them are signed: a lease says which cluster to join, a setting how soon something is removed.
Epochs and leases of somebody without the key count for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray_durable.errors import ConfigurationError, CorruptLogError
from ray_durable.storage.keys import HubKeys, numbers
from ray_durable.storage.objects import SMALL_BYTES_MAX, is_authentic, mac_of, pack_object, read_bounded
from ray_durable.storage.segment import FORMAT_VERSION
from ray_durable.storage.store import ObjectStore

__all__ = [
    "claim_hub_epoch",
    "create_hub",
    "current_hub_epoch",
    "free_hub_epoch",
    "is_signed",
    "read_hub_epoch",
    "read_lease",
    "read_settings",
    "write_lease",
]

_SIGNING, _ALGORITHM = "signing", "hmac-sha256"


async def create_hub(store: ObjectStore, keys: HubKeys, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The hub's settings: those given if it is new, else those it was created with.

    Raises:
        ConfigurationError: the hub has a format that this version does not read, or is signed and this process has no
            key, or has a key and the hub is not signed with it.
    """
    signing = {} if keys.signer is None else {_SIGNING: _ALGORITHM}
    fields = {"v": FORMAT_VERSION, "hub": keys.hub, "settings": {**settings, **signing}}
    await store.put_if_absent(keys.settings, pack_object(keys, keys.settings, fields))
    found = await read_settings(store, keys)
    assert found is not None, "what exists can be read"
    if keys.signer is None and is_signed(found):
        raise ConfigurationError(
            f"The hub at {store.url}/{keys.hub} is signed, so what this process writes without its key would be "
            "refused: give signing_key='env:NAME' or 'file:/path', or set RAY_DURABLE_SIGNING_KEY. "
            "ray_durable.browse shows statuses without the key"
        )
    return found


async def read_settings(store: ObjectStore, keys: HubKeys) -> Mapping[str, Any] | None:
    """The hub's settings; None if there is no hub of this name below the root.

    Raises:
        ConfigurationError: the hub has a format that this version does not read, or is not signed with the key that
            this process has.
        CorruptLogError: they are damaged, or were changed by somebody without the key.
    """
    data = await store.get(keys.settings, SMALL_BYTES_MAX)
    if data is None:
        return None
    _authenticate_settings(store, keys, data)
    body = _object(data, keys.settings)
    if body.get("v") != FORMAT_VERSION:
        raise ConfigurationError(
            f"The hub at {store.url}/{keys.hub} has format version {body.get('v')!r:.80}, and this ray_durable reads "
            f"{FORMAT_VERSION}: upgrade ray_durable"
        )
    settings = body.get("settings", {})
    return settings if isinstance(settings, dict) else {}


def is_signed(settings: Mapping[str, Any]) -> bool:
    """Whether the hub of these settings says that it is signed."""
    return _SIGNING in settings


def _authenticate_settings(store: ObjectStore, keys: HubKeys, data: bytes) -> None:
    """The key that this process has decides, not what the object says of itself."""
    if keys.signer is None or is_authentic(keys, keys.settings, data):
        return
    place, mac, given = f"{store.url}/{keys.hub}", mac_of(data), ", ".join(keys.signer.key_ids)
    if mac is None:
        raise ConfigurationError(
            f"The hub at {place} was made without a signing key, so nothing in it can be authenticated, and a signing "
            "key was given. Give a hub of its own to what is to be signed (hub='another-name'), and finish here "
            "without a key: unset RAY_DURABLE_SIGNING_KEY. If this hub was signed, somebody has replaced its hub.json"
        )
    if mac[0] not in keys.signer.key_ids:
        raise ConfigurationError(
            f"The hub at {place} is signed with the key {mac[0]!r}, and the signing key that was given is {given}: "
            "give the hub's own, or, after a change of keys, both, the new one first"
        )
    raise CorruptLogError(
        f"{keys.settings} is not authentic: it was changed, or is of another place. Restore it from a version of the "
        "bucket, and find out who can write there",
        key=keys.settings,
    )


async def current_hub_epoch(store: ObjectStore, keys: HubKeys, *, known: int = 0) -> int:
    """The newest claimed epoch; 0 if nobody held the hub yet. `known` is one that need not be authenticated again."""
    for epoch in reversed(numbers(await store.list_folder(keys.hub_epochs), 12)):
        if epoch <= known or keys.signer is None:
            return epoch
        data = await read_bounded(store, keys.hub_epoch(epoch))
        if data is not None and is_authentic(keys, keys.hub_epoch(epoch), data):
            return epoch
    return 0


async def free_hub_epoch(store: ObjectStore, keys: HubKeys) -> int:
    """The first epoch above all that anybody claimed."""
    return 1 + max(numbers(await store.list_folder(keys.hub_epochs), 12), default=0)


async def claim_hub_epoch(store: ObjectStore, keys: HubKeys, epoch: int, holder: Mapping[str, Any]) -> bool:
    """Claim an epoch for `holder`; whether this call got it. Whoever holds a lower one must stand down."""
    key = keys.hub_epoch(epoch)
    data = pack_object(keys, key, holder)
    return await store.put_if_absent(key, data) or await read_bounded(store, key) == data


async def read_hub_epoch(store: ObjectStore, keys: HubKeys, epoch: int) -> Mapping[str, Any] | None:
    """What the claimant of an epoch wrote; None if it was never claimed."""
    return await _read(store, keys, keys.hub_epoch(epoch))


async def write_lease(store: ObjectStore, keys: HubKeys, lease: Mapping[str, Any]) -> None:
    """Renew the lease."""
    await store.put(keys.lease, pack_object(keys, keys.lease, lease))


async def read_lease(store: ObjectStore, keys: HubKeys) -> Mapping[str, Any] | None:
    """The lease as it was last renewed; None if there never was one."""
    return await _read(store, keys, keys.lease)


async def _read(store: ObjectStore, keys: HubKeys, key: str) -> Mapping[str, Any] | None:
    data = await read_bounded(store, key)
    return None if data is None or not is_authentic(keys, key, data) else _object(data, key)


def _object(data: bytes, key: str) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptLogError(f"{key} is damaged: restore it, or remove it if nothing runs", key=key) from error
    if not isinstance(body, dict):
        raise CorruptLogError(f"{key} is damaged: it holds no JSON object", key=key)
    return body
