"""The hub's own objects: its settings, its epochs, and the lease that its holder renews."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray_durable.errors import ConfigurationError, CorruptLogError
from ray_durable.storage.keys import HubKeys, numbers
from ray_durable.storage.segment import FORMAT_VERSION
from ray_durable.storage.store import ObjectStore

__all__ = [
    "claim_hub_epoch",
    "create_hub",
    "current_hub_epoch",
    "read_hub_epoch",
    "read_lease",
    "read_settings",
    "write_lease",
]


async def create_hub(store: ObjectStore, keys: HubKeys, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The hub's settings: those given if it is new, else those it was created with.

    Raises:
        ConfigurationError: the hub has a format that this version does not read.
    """
    body = {"v": FORMAT_VERSION, "hub": keys.hub, "settings": dict(settings)}
    await store.put_if_absent(keys.settings, json.dumps(body).encode())
    found = await read_settings(store, keys)
    assert found is not None, "what exists can be read"
    return found


async def read_settings(store: ObjectStore, keys: HubKeys) -> Mapping[str, Any] | None:
    """The hub's settings; None if there is no hub of this name below the root."""
    data = await store.get(keys.settings)
    if data is None:
        return None
    body = _object(data, keys.settings)
    if body.get("v") != FORMAT_VERSION:
        raise ConfigurationError(
            f"The hub at {store.url}/{keys.hub} has format version {body.get('v')!r}, and this ray_durable reads "
            f"{FORMAT_VERSION}: upgrade ray_durable"
        )
    settings = body.get("settings", {})
    return settings if isinstance(settings, dict) else {}


async def current_hub_epoch(store: ObjectStore, keys: HubKeys) -> int:
    """The newest claimed epoch; 0 if nobody held the hub yet."""
    return max(numbers(await store.list_folder(keys.hub_epochs), 12), default=0)


async def claim_hub_epoch(store: ObjectStore, keys: HubKeys, epoch: int, holder: Mapping[str, Any]) -> bool:
    """Claim an epoch for `holder`; whether this call got it. Whoever holds a lower one must stand down."""
    data = json.dumps(dict(holder)).encode()
    key = keys.hub_epoch(epoch)
    return await store.put_if_absent(key, data) or await store.get(key) == data


async def read_hub_epoch(store: ObjectStore, keys: HubKeys, epoch: int) -> Mapping[str, Any] | None:
    """What the claimant of an epoch wrote; None if it was never claimed."""
    data = await store.get(keys.hub_epoch(epoch))
    return None if data is None else _object(data, keys.hub_epoch(epoch))


async def write_lease(store: ObjectStore, keys: HubKeys, lease: Mapping[str, Any]) -> None:
    """Renew the lease."""
    await store.put(keys.lease, json.dumps(dict(lease)).encode())


async def read_lease(store: ObjectStore, keys: HubKeys) -> Mapping[str, Any] | None:
    """The lease as it was last renewed; None if there never was one."""
    data = await store.get(keys.lease)
    return None if data is None else _object(data, keys.lease)


def _object(data: bytes, key: str) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError as error:
        raise CorruptLogError(f"{key} is damaged: restore it, or remove it if nothing runs", key=key) from error
    if not isinstance(body, dict):
        raise CorruptLogError(f"{key} is damaged: it holds no JSON object", key=key)
    return body
