"""A whole hub: its own objects (FORMAT.md, section 9), then every instance, then what is between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from verify_lib import names
from verify_lib.findings import Report
from verify_lib.index import check_orphans, check_retired, enter_retired, read_object
from verify_lib.instances import Scope, check_instance
from verify_lib.ledger import Ledger
from verify_lib.logs import note_stray
from verify_lib.messages import check_messages
from verify_lib.roots import CONTENT_BYTES_MAX, OBJECT_BYTES_MAX, SMALL_BYTES_MAX, Root
from verify_lib.segments import VERSION
from verify_lib.signatures import check_signatures

__all__ = ["HubCheck", "hub_names"]

_GRACE_S_DEFAULT = 24 * 3_600


@dataclass(slots=True)
class HubCheck:
    """Checks one hub, or one instance of it; again as often as wanted. `progress` hears how many instances are done.

    With `keys`, by id, every object must be signed with one of them.
    """

    root: Root
    name: str
    now_us: int
    only: str | None = None
    progress: Callable[[int], None] = lambda count: None
    keys: Mapping[str, bytes] | None = None
    _ledger: Ledger = field(default_factory=Ledger)

    def close(self) -> None:
        """Forget everything."""
        self._ledger.close()

    def run(self, again: set[str] | None = None) -> Report:
        """Look at everything; the second time only at the instances `again` and at those that are new."""
        report = Report(self.name)
        grace_us = self._check_settings(report)
        if grace_us is None:
            return report
        scope = Scope(root=self.root, report=report, ledger=self._ledger, now_us=self.now_us, grace_us=grace_us)
        self._ledger.clear("retired", "remains")
        enter_retired(self.root, report, self._ledger)
        for folder, found in self._instances():
            if again is None or self._is_wanted(folder, again):
                check_instance(scope, folder, found)
                self.progress(report.instances)
        if self.only is None:
            self._check_around(report)
        return report

    def _check_around(self, report: Report) -> None:
        """Everything that is no instance's own."""
        if self.keys is not None:
            check_signatures(self.root, self.name, self.keys, report)
        self._check_epochs(report)
        self._check_code(report)
        self._check_runs(report)
        self._check_schedules(report)
        check_orphans(self.root, report, self._ledger, self.now_us)
        check_retired(report, self._ledger)
        check_messages(report, self._ledger)
        for name in self.root.names(""):
            if name != "hub.json" and name not in names.KNOWN_FOLDERS:
                note_stray(report, name)
        for name in self.root.walk("probe/"):
            report.add_note(
                "probe", f"probe/{name}", "what a connecting process tried the store with; it may be deleted"
            )

    def _check_settings(self, report: Report) -> int | None:
        """The grace period, in microseconds; None if the hub is not of this version."""
        try:
            body = json.loads(self.root.read("hub.json", SMALL_BYTES_MAX) or b"")
            if body["v"] != VERSION:
                text = f"format version {body['v']!r}, this checker knows {VERSION}"
                report.add_damage("version", "hub.json", text)
                return None
            if body["hub"] != self.name:
                report.add_damage("hub", "hub.json", f"it is of the hub {body['hub']!r}")
            return round(float(body["settings"].get("grace_s", _GRACE_S_DEFAULT)) * 1_000_000)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            report.add_damage("hub", "hub.json", f"not readable ({error!r})")
            return _GRACE_S_DEFAULT * 1_000_000

    def _instances(self) -> Iterator[tuple[str, list[str]]]:
        """The folder of each instance, and the names in it."""
        if self.only is not None:
            folder = names.execution_folder(self.only)
            yield folder, self.root.names(folder)
            return
        for place in self.root.names("instances/"):
            for folder, found in groupby(self.root.walk(f"instances/{place}"), lambda name: name.rpartition("/")[0]):
                yield f"instances/{place}{folder}/", [name.rpartition("/")[2] for name in found]

    def _is_wanted(self, folder: str, again: set[str]) -> bool:
        is_again = any(names.execution_folder(instance) == folder for instance in again)
        return is_again or not self._ledger.has("instances", key=folder)

    def _check_epochs(self, report: Report) -> None:
        """Claims of the hub have no gaps, and its lease is of one of them."""
        listed = [name for name in self.root.names("lease/epochs/") if name.isdecimal() and len(name) >= 12]
        epochs = sorted(map(int, listed))
        for place, epoch in enumerate(epochs, start=1):
            key = f"lease/epochs/{epoch:012}"
            if epoch != place:
                report.add_damage("hub-epoch", key, f"the claim of epoch {place} is missing before it")
                break
            try:
                claimed = json.loads(self.root.read(key, SMALL_BYTES_MAX) or b"")["epoch"]
            except (KeyError, TypeError, ValueError):
                claimed = None
            if claimed != epoch:
                report.add_damage("hub-epoch", key, f"it claims epoch {claimed!r}")
        lease = self.root.read("lease/holder", SMALL_BYTES_MAX)
        if lease is None:
            return
        try:
            held, _ = (json.loads(lease)[name] + 0 for name in ("epoch", "renewed_us"))
        except (KeyError, TypeError, ValueError):
            report.add_damage("lease", "lease/holder", "no lease")
            return
        if held > max(epochs, default=0):
            report.add_damage("lease", "lease/holder", f"it is of hub epoch {held}, which nobody claimed")

    def _check_code(self, report: Report) -> None:
        """Functions captured by value are what their names say; those that are referred to are there."""
        stored: set[str] = set()
        for name in self.root.names("code/"):
            key = f"code/{name}"
            if not names.DIGEST.fullmatch(name):
                note_stray(report, key)
                continue
            stored.add(name)
            if hashlib.sha256(self.root.read(key, CONTENT_BYTES_MAX) or b"").hexdigest() != name:
                report.add_damage("code", key, "its bytes are not those that it was named for")
        for digest, instance in self._ledger.ask("SELECT digest, MIN(instance) FROM code GROUP BY digest"):
            if digest not in stored:
                report.add_damage("code", f"code/{digest}", f"missing, and {instance!r} was started with it", instance)

    def _check_schedules(self, report: Report) -> None:
        """Each revision of a schedule says what its name says; what cannot be read would be taken for none."""
        for name in self.root.names("schedules/"):
            key, found = f"schedules/{name}", names.SCHEDULE.fullmatch(name)
            if found is None:
                note_stray(report, key)
                continue
            fields = read_object(self.root, key, OBJECT_BYTES_MAX) or {}
            schedule = fields.get("schedule")
            is_right = isinstance(schedule, str) and names.encode_id(schedule) == found["id"]
            if not is_right or fields.get("revision") != int(found["revision"]):
                report.add_damage("schedule", key, "the schedule does not say what its name says")

    def _check_runs(self, report: Report) -> None:
        for place in self.root.names("runs/"):
            for name in self.root.names(f"runs/{place}"):
                key, run = f"runs/{place}{name}", name.rstrip("/")
                if not names.RUN.fullmatch(run) or names.spread(run) != place.rstrip("/"):
                    note_stray(report, key)
                elif not self._ledger.has("runs", run=run) and not self._is_of_damaged(key):
                    text = "belongs to no execution: a start was lost behind its payloads, or a removal half-way"
                    report.add_note("run", key, text)

    def _is_of_damaged(self, folder: str) -> bool:
        """Whether a run belongs to an instance whose segment 0 cannot be read any more."""
        for name in self.root.walk(folder):
            try:
                header = json.loads((self.root.read(f"{folder}{name}") or b"").split(b"\n", 1)[0])
                return self._ledger.has("instances", id=header["instance"], is_sound=False)
            except (KeyError, TypeError, ValueError):
                continue
        return False


def hub_names(root: Root) -> list[str]:
    """The hubs below a root."""
    folders = [name for name in root.names("") if name.endswith("/")]
    return [name.rstrip("/") for name in folders if root.read(f"{name}hub.json") is not None]
