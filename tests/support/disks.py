"""Disks that fail, real ones: file systems of their own that are small, can be made read-only, or lose their device.

They need root and the right to mount, as continuous integration has it; `require` skips a test where that is missing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["BALLAST", "disk", "fill", "is_mounting_possible", "relieve", "remount"]

BALLAST = "ballast"
"""The file that takes the space of a full disk."""


def is_mounting_possible() -> bool:
    """Whether this process may mount a file system here."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        mounted = _run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder)
        if mounted.returncode == 0:
            _run("umount", folder)
        return mounted.returncode == 0


@contextlib.contextmanager
def disk(folder: Path, *, size: str = "2m") -> Iterator[Path]:
    """A file system of that size in memory, mounted at `folder`, which is made."""
    if not is_mounting_possible():
        pytest.skip("mounting a file system needs root and the right to mount")
    folder.mkdir()
    mounted = _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    assert mounted.returncode == 0, mounted.stderr
    try:
        yield folder
    finally:
        # Processes that have files open there may end a moment later.
        _run("umount", "--lazy", str(folder))
        folder.rmdir()


def remount(folder: Path, options: str) -> None:
    """Change the options of a mounted file system, such as `ro` and `rw`."""
    done = _run("mount", "-o", f"remount,{options}", str(folder))
    assert done.returncode == 0, done.stderr


def fill(folder: Path) -> None:
    """Leave no space on the disk."""
    with open(folder / BALLAST, "ab", buffering=0) as ballast, contextlib.suppress(OSError):
        for size in (65_536, 4_096, 1):
            with contextlib.suppress(OSError):
                while ballast.write(bytes(size)) == size:
                    pass


def relieve(folder: Path) -> None:
    """Free the space again."""
    (folder / BALLAST).unlink()


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
