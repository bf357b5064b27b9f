"""What alerts remember from check to check: ``status/alerts.json``, or a file in RAM while that cannot be written.

A disk that is full, or that the kernel has mounted read-only, is what an alert is for.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from guardrails.alerts.messenger import MARGIN_SECONDS, SEND_SECONDS
from guardrails.errors import DamagedStateError
from guardrails.locks import FileLock
from guardrails.paths import Paths
from guardrails.report.values import timestamp
from guardrails.state_io import (
    SCHEMA_VERSION,
    dump_json,
    read_json,
    remove_temporary_files,
    set_aside,
    write_text,
)

RAM = Path("/dev/shm")  # noqa: S108 - names in it are this user's, and looked at before they are used
WAIT_SECONDS = SEND_SECONDS + MARGIN_SECONDS + 15
NEVER = "1970-01-01T00:00:00Z"

Json = dict[str, Any]


class Memory:
    """Counts, what was said, and what has not arrived yet; of one check at a time, by ``hold_memory``."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        # How often it was written: of two files the one with more is right.
        self.writes = 0
        # When the last report that was judged was made.
        self.report_at = NEVER
        # Finding -> in how many checks in a row it stood; what was never announced and is gone is forgotten.
        self.checks: dict[str, int] = {}
        # Finding -> category, severity and message as people last read them.
        self.told: dict[str, Json] = {}
        # When that was.
        self.told_at = NEVER
        self.day = ""
        # Made that day.
        self.messages = 0
        # Number of the address -> kind, title and body of what it has to get yet.
        self.waiting: dict[str, list[str]] = {}
        # The config's alerts when it could last be read.
        self.settings: Json | None = None

    def read(self) -> None:
        """Take up what the last check wrote. A damaged file is set aside as ``.damaged``; then everything is news."""
        kept, refuge = self._places()
        # Anybody may put a file there, but not one that is this user's.
        in_ram = _read(refuge) if _is_own_file(refuge) else None
        found = [document for document in (_read(kept), in_ram) if document is not None]
        if found:
            newest = max(found, key=lambda document: int(document["writes"]))
            for key in vars(self).keys() & newest.keys():
                setattr(self, key, newest[key])

    def write(self) -> None:
        """Keep it durably; readable by this user alone.

        Raises:
            OSError: neither the base dir nor RAM takes it.
        """
        self.writes += 1
        values = {key: value for key, value in vars(self).items() if key != "paths"}
        text = dump_json({"schema_version": SCHEMA_VERSION, **values}) + "\n"
        kept, refuge = self._places()
        try:
            kept.parent.mkdir(exist_ok=True)
            remove_temporary_files(kept.parent, of=kept)
            write_text(kept, text, 0o600)
        except OSError:
            # What others left there under such a name is not ours to remove.
            with suppress(OSError):
                remove_temporary_files(refuge.parent, of=refuge)
            write_text(refuge, text, 0o600)
        else:
            with suppress(OSError):
                refuge.unlink(missing_ok=True)

    def _places(self) -> tuple[Path, Path]:
        return self.paths.alerts, _refuge(self.paths, ".json")


def _refuge(paths: Paths, suffix: str) -> Path:
    # Another folder that later has the same name is another base dir.
    status = paths.base.stat()
    place = f"{paths.base}\0{status.st_dev}\0{status.st_ino}"
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()
    return RAM / f"guardrails-alerts-{os.geteuid()}-{digest[:16]}{suffix}"


SHAPE = {
    "writes": int,
    "report_at": str,
    "checks": dict,
    "told": dict,
    "told_at": str,
    "day": str,
    "messages": int,
    "waiting": dict,
    "settings": dict | None,
}


def _is_own_file(path: Path) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _read(path: Path) -> Json | None:
    try:
        document = read_json(path, SHAPE)
    except DamagedStateError:
        document, is_damaged = None, True
    else:
        is_damaged = document is not None and not _is_sound(document)
    if is_damaged:
        # Where that fails, writing fails, too.
        with suppress(OSError):
            set_aside(path)
        return None
    return document


def _is_sound(document: Json) -> bool:
    told = document["told"].values()
    return (
        timestamp(document["told_at"]) is not None
        and all(isinstance(count, int) for count in document["checks"].values())
        and all(isinstance(one, dict) and {"category", "severity", "message"} <= one.keys() for one in told)
        and all(isinstance(one, list) and len(one) == 3 for one in document["waiting"].values())
    )


@contextmanager
def hold_memory(paths: Paths) -> Iterator[Memory]:
    """The memory as the last check left it, for this process alone.

    Raises:
        BusyError: another check holds it for longer than messages can take.
        OSError: there is no place for the lock.
    """
    lock = FileLock(paths.locks / "alerts.lock")
    try:
        lock.acquire("alerts", WAIT_SECONDS)
    except OSError:
        lock = FileLock(_refuge(paths, ".lock"))
        lock.acquire("alerts", WAIT_SECONDS)
    try:
        memory = Memory(paths)
        memory.read()
        yield memory
    finally:
        lock.release()
