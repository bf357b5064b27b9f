"""Locks between processes that die with their holder.

Open file description locks (Linux ``F_OFD_SETLK``): they end when the last descriptor of that
opening is closed, which the kernel does at any death. Unlike POSIX record locks they do not vanish
when the same process opens and closes the file elsewhere. The holder's pid stands in the file for
messages only; whether a lock is held is always asked of the kernel.
"""

import fcntl
import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from guardrails.errors import BusyError

POLL_SECONDS = 0.05
# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid
FLOCK = "hhqqi4x"


class FileLock:
    """An exclusive lock on ``path``, held until ``release`` or the death of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None

    def try_acquire(self, purpose: str) -> bool:
        """Take the lock if nobody holds it. ``purpose`` is shown to whoever finds it held."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return False
        self.descriptor = descriptor
        holder = json.dumps({"pid": os.getpid(), "purpose": purpose, "since": time.time()}).encode()
        # For messages only: a full disk must not keep anybody from a lock.
        with suppress(OSError):
            os.pwrite(descriptor, holder, 0)
            os.ftruncate(descriptor, len(holder))
        return True

    def is_lost(self) -> bool:
        """Whether somebody removed the file of a held lock, so that another process could take it anew."""
        if self.descriptor is None:
            return True
        try:
            return os.fstat(self.descriptor).st_ino != self.path.stat().st_ino
        except FileNotFoundError:
            return True

    def acquire(self, purpose: str, wait_seconds: float = 10.0) -> None:
        """Take the lock, waiting up to ``wait_seconds``.

        Raises:
            BusyError: somebody else held it all the while; the message names who.
        """
        deadline = time.monotonic() + wait_seconds
        while not self.try_acquire(purpose):
            if time.monotonic() >= deadline:
                holder = read_holder(self.path)
                who = f"process {holder.pid} ({holder.purpose})" if holder else "another process"
                raise BusyError(
                    f"{self.path.name} is held by {who}", "wait until it is done, then run the command again"
                )
            time.sleep(POLL_SECONDS)

    def release(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    @contextmanager
    def hold(self, purpose: str, wait_seconds: float = 10.0) -> Iterator[None]:
        """Hold the lock for a ``with`` block; see ``acquire``."""
        self.acquire(purpose, wait_seconds)
        try:
            yield
        finally:
            self.release()


def share_lock(path: Path) -> None:
    """Hold ``path`` together with others, until this process and all that it becomes or starts have ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(descriptor, True)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))


class Holder:
    """Who holds a lock: pid, purpose in words, and since when (seconds since the epoch)."""

    __slots__ = ("pid", "purpose", "since")

    def __init__(self, pid: int, purpose: str, since: float) -> None:
        self.pid = pid
        self.purpose = purpose
        self.since = since


def read_holder(path: Path) -> Holder | None:
    """Who holds the lock at ``path``, or None if nobody does. Takes nothing and waits for nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        probe = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        if struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, probe))[0] == fcntl.F_UNLCK:
            return None
        content = os.pread(descriptor, 4096, 0)
    finally:
        os.close(descriptor)
    try:
        holder = json.loads(content)
        return Holder(int(holder["pid"]), str(holder["purpose"]), float(holder["since"]))
    except (ValueError, KeyError, TypeError):
        return Holder(0, "starting", time.time())


def check_platform() -> None:
    """Raises RuntimeError where the locks above do not exist."""
    if not hasattr(fcntl, "F_OFD_SETLK") or sys.maxsize < 2**32:
        raise RuntimeError("this toolkit needs 64-bit Linux")
