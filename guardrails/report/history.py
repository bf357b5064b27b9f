"""The history of the state document: a row of ``status/state_history.db`` whenever something changed that matters.

What matters is for ``guardrails.report.parts`` to say. The database is opened only for a row that is to be written or
read: ``status/state_history_last.json`` holds the sign of the last row, so that a report without news costs one look.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from guardrails.errors import BusyError, DamagedStateError
from guardrails.locks import FileLock
from guardrails.paths import Paths
from guardrails.report.parts import VERSIONS, Json, Rows, Sign, dump_parts, sign, split
from guardrails.state_io import SCHEMA_VERSION, read_json, remove_temporary_files, write_json

if TYPE_CHECKING:
    from guardrails.report.database import Database

WAIT_SECONDS = 5.0
LAST_KEYS = {"stat": list, "at": int, "settled": str, "moving": str, "free_gb": float}

Answer = TypeVar("Answer")


def history_lock(paths: Paths) -> FileLock:
    """Held while the database is open, by writers and, where they can take it, by readers."""
    return FileLock(paths.locks / "state_history.lock")


def record(paths: Paths, document: Json, version: str | None, now: float, rows: Rows | None = None) -> None:
    """A row for ``document`` unless the last one stands for it; ``version`` is what ``current_model/`` is.

    ``rows`` is the list of versions where the document has none.

    Any number of reports at once each write theirs, and a kill leaves all rows or all but the one under way. A folder
    that is no base dir gets no history.

    Raises:
        DamagedStateError: the database was damaged and is set aside; called again, this begins it anew.
        OSError: it cannot be written.
        BusyError: another process has held it all the while; the next report writes the row.
    """
    parts = {**split(document), "version": version}
    new = sign(parts, int(now), rows)
    last = _read_last(paths)
    if last is not None and new.is_covered_by(last):
        return
    if not paths.status.is_dir():
        is_fresh = not (document[VERSIONS] or (rows and rows.text))
        if is_fresh and not (document["config"]["exists"] or document["current_model"]["exists"]):
            return
        paths.status.mkdir(exist_ok=True)
    with history_lock(paths).hold("state history", WAIT_SECONDS):
        last = _read_last(paths)
        if last is not None and new.is_covered_by(last):
            return
        with _with_sqlite():
            from guardrails.report.database import open_to_write
        with open_to_write(paths.state_history) as database:
            # Without the cache, after a kill above all, the last row itself says what it was.
            last = last or database.read_last_sign()
            if last is None or not new.is_covered_by(last):
                if rows is not None:
                    parts |= split({VERSIONS: rows.read()})
                database.add(new.at, str(parts["verdict"]), version, dump_parts(parts), now)
                last = new
        _write_last(paths, last)


def ask(paths: Paths, question: "Callable[[Database], Answer]") -> Answer | None:
    """The answer of the database; None if there is none.

    Raises:
        DamagedStateError: it was damaged and is set aside, so that the next report begins it anew; or it cannot be set
            aside, or is of a newer toolkit, and is as it was.
        OSError: it cannot be read.
    """
    if not os.path.lexists(paths.state_history):
        return None
    with _with_sqlite():
        from guardrails.report.database import open_to_read
    lock = history_lock(paths)
    # On a disk that cannot be written to, and beside a report that hangs, it is read all the same.
    with suppress(OSError, BusyError):
        lock.acquire("reading the state history", WAIT_SECONDS)
    try:
        with open_to_read(paths.state_history, may_set_aside=lock.descriptor is not None) as database:
            return question(database) if database is not None else None
    finally:
        lock.release()


@contextmanager
def _with_sqlite() -> Iterator[None]:
    """For the import of ``guardrails.report.database``, which costs a tenth of a report.

    Raises:
        OSError: Python was built without sqlite3.
    """
    try:
        yield
    except ImportError as error:
        raise OSError(errno.ENOSYS, f"this Python has no sqlite3: {error}") from error


def _stat_database(paths: Paths) -> list[list[int]]:
    """What tells whether the database was written to: inode, size and mtime_ns of it and of its log."""
    found = []
    for path in (paths.state_history, Path(f"{paths.state_history}-wal")):
        try:
            status = os.stat(path)
            found.append([status.st_ino, status.st_size, status.st_mtime_ns])
        except OSError:
            found.append([])
    return found


def _read_last(paths: Paths) -> Sign | None:
    """The sign of the last row, if the database is as it was when that was written."""
    try:
        last = read_json(paths.state_history_last, LAST_KEYS)
    except DamagedStateError:
        return None
    stat = _stat_database(paths)
    if last is None or not stat[0] or last["stat"] != stat:
        return None
    return Sign(last["at"], last["settled"], last["moving"], last["free_gb"])


def _write_last(paths: Paths, last: Sign) -> None:
    remove_temporary_files(paths.status, of=paths.state_history_last)
    values = {"at": last.at, "settled": last.settled, "moving": last.moving, "free_gb": last.free_gb}
    write_json(paths.state_history_last, {"schema_version": SCHEMA_VERSION, "stat": _stat_database(paths), **values})
