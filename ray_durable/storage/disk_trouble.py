"""What the errors of a disk mean for a root: what to do about them, and whether the work goes on by itself afterwards.

Passing trouble is what somebody mends outside, while everything waits: a full disk or quota, failing input or output, a
root that is gone from sight, a server of files that does not answer, a process without free descriptors or memory. It
is a StoreUnavailableError. Everything else is refused for good, as a StoreError, since waiting in silence would hide a
mistake: a root that is read-only or forbidden to this user, that is no folder, names or files that are too long.
Instances take up what was refused again, too, once it is mended; the difference is whether a call waits or fails.
"""

from __future__ import annotations

import errno

from ray_durable.errors import StoreError, StoreUnavailableError

__all__ = ["explain", "explain_gone"]

_PASSING = {
    errno.ENOSPC: "no space is left on its disk: free some",
    errno.EDQUOT: "its quota is used up: free some space, or have it raised",
    errno.EIO: "its disk fails to read or write: look into the system's log (dmesg)",
    errno.EMFILE: "this process has too many open files: raise its limit (ulimit -n)",
    errno.ENFILE: "this machine has too many open files: close some, or raise fs.file-max",
    errno.ENOMEM: "this machine has no memory left: free some",
    errno.ESTALE: "its file server has replaced it: see that it is mounted",
    errno.ENOTCONN: "its file server is gone: see that it is mounted",
    errno.ENODEV: "its disk is gone: see that it is mounted",
    errno.ENXIO: "its disk is gone: see that it is mounted",
    errno.ETIMEDOUT: "its file server does not answer",
    errno.EHOSTDOWN: "its file server does not answer",
    errno.EAGAIN: "it is busy",
    errno.EBUSY: "it is busy",
    errno.EINTR: "the request was interrupted",
}

_FINAL = {
    errno.EROFS: "it is read-only: mount it for writing (a disk that failed may be mounted so: see dmesg)",
    errno.EACCES: "this user may not use it: give it the right to write there, or choose another root",
    errno.EPERM: "this user may not use it: give it the right to write there, or choose another root",
    errno.EFBIG: "the file is larger than this process may write: raise its limit (ulimit -f)",
    errno.ENAMETOOLONG: "names may not be that long there: choose a shorter root",
    errno.ENOTDIR: "something in its path is no folder: choose another root",
    errno.ENOENT: "it does not exist: make it, or choose another root",
}


def explain(error: OSError, *, root: str, url: str, key: str) -> StoreError:
    """The error of a store for that of the disk, at `key` below `root`."""
    number = error.errno or 0
    place = f"The root {root} cannot be used (for {key or 'the root itself'}: {error.strerror})"
    passing = _PASSING.get(number)
    if passing is not None:
        return StoreUnavailableError(f"{place}: {passing}. The work goes on by itself then", url=url)
    return StoreError(f"{place}: {_FINAL.get(number, 'choose another root')}", url=url)


def explain_gone(*, root: str, url: str) -> StoreUnavailableError:
    """A root that was there is not any more, or is an empty folder now, as when its disk is not mounted."""
    return StoreUnavailableError(
        f"The root {root} is gone, or an empty folder lies in its place: bring it back (is its disk mounted?). The "
        "work goes on by itself then",
        url=url,
    )
