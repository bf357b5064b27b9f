"""``status/state_history.db``: what it holds, who may be in it, and what is thinned out.

A row of ``history`` is one report: time, verdict, version. The parts of its document are in ``parts``, each once for
as long as it stayed the same: from the row ``added`` to the one before ``removed``. So what does not change costs
nothing, however long the list of versions is, and any row gives the whole document again.
"""

import errno
import json
import os
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.errors import DamagedStateError
from guardrails.report.parts import Parts, Sign, load_part, sign

SCHEMA_VERSION = 1
# For whoever else looks into it, with the sqlite3 shell for one; among reports .locks/state_history.lock decides.
BUSY_SECONDS = 2.0
TABLES = """
CREATE TABLE history
    (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, verdict TEXT NOT NULL, version TEXT, tier INTEGER NOT NULL);
CREATE INDEX history_to_thin ON history (tier, at) WHERE tier < 2;
CREATE TABLE parts (name TEXT NOT NULL, text TEXT NOT NULL, added INTEGER NOT NULL, removed INTEGER);
CREATE INDEX parts_by_end ON parts (removed, name);
"""
# Columns of their own in history.
IN_ROW = ("verdict", "version")

# All rows of a week, the last of each hour for a quarter, the last of each day for ever. Rows in which the verdict,
# the version that current_model/ is, the list of versions or the config changed are never thinned out.
THINNING = ((0, 7 * 86400, 3600), (1, 90 * 86400, 86400))
NEWS = 3
# Only beyond this size, which years of a verdict that flickers could reach, the oldest of those go as well.
MOST_BYTES = 40 << 20
LEAST_ROWS = 1000
# The year 10000.
END_OF_TIME = 253402300800


class Row(NamedTuple):
    """One row; ``at`` is seconds since the epoch, ``version`` what ``current_model/`` was."""

    id: int
    at: int
    verdict: str
    version: str | None


class Step(NamedTuple):
    """A row, some parts as they are in it, and what differs from the row before: name -> (old, new), None if absent."""

    row: Row
    parts: Parts
    differences: dict[str, tuple[str | None, str | None]]


@contextmanager
def open_to_write(path: Path) -> "Iterator[Database]":
    """The database, made if there is none. All that is done in the block is there afterwards, or nothing of it.

    The caller holds the lock of the history.

    Raises:
        DamagedStateError: it was damaged and is set aside, or it is of a newer toolkit and left as it is.
        OSError: it cannot be written.
    """
    with _translated(path, may_set_aside=True), closing(_connect(path, "rwc")) as connection:
        # Of the settings only this one is kept in the file; with it readers never wait for writers.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        if _read_schema_version(connection, path) == 0:
            for statement in TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        yield Database(connection)
        connection.execute("COMMIT")


@contextmanager
def open_to_read(path: Path, *, may_set_aside: bool) -> "Iterator[Database | None]":
    """The database as it is now; None if nothing was ever written to it.

    Raises:
        DamagedStateError: it is damaged, and was set aside if it may be, or it is of a newer toolkit.
        OSError: it cannot be read.
    """
    with _translated(path, may_set_aside=may_set_aside), closing(_connect_to_read(path)) as connection:
        connection.execute("BEGIN")
        yield Database(connection) if _read_schema_version(connection, path) else None


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def _connect_to_read(path: Path) -> sqlite3.Connection:
    connection = _connect(path, "rw")
    try:
        connection.execute("PRAGMA user_version").fetchone()
        return connection
    except sqlite3.OperationalError as error:
        connection.close()
        unwritable = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
        if _code(error) not in unwritable or not path.is_file():
            raise
    # The log of a database cannot be followed on a full or a read-only disk; but nobody writes to it there.
    return _connect(path, "ro&immutable=1")


def _read_schema_version(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise DamagedStateError(
            f"{path} has schema_version {version}; this toolkit reads up to {SCHEMA_VERSION}",
            "update the toolkit; the file was left untouched",
        )
    return version


def _code(error: Exception) -> int:
    """The primary result code; that of a damaged file where sqlite3 gives none, as for text that is no UTF-8."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)) & 0xFF


@contextmanager
def _translated(path: Path, *, may_set_aside: bool) -> Iterator[None]:
    """Errors of sqlite3 as errors of this toolkit; a bug in a statement shows as a damaged file in the tests."""
    damage = (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
    )
    try:
        yield
    except (sqlite3.InterfaceError, sqlite3.ProgrammingError):
        raise
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # The latter for a message of sqlite that quotes what is damaged.
        is_folder = path.is_dir() and not path.is_symlink()
        if _code(error) not in damage and not is_folder:
            number = errno.ENOSPC if _code(error) == sqlite3.SQLITE_FULL else errno.EIO
            raise OSError(number, str(error), str(path)) from error
        if not may_set_aside:
            raise DamagedStateError(f"{path} is damaged: {error}", "it was left as it is; look at its disk") from error
        aside = _set_aside(path)
        raise DamagedStateError(
            f"{path} was damaged: {error}; it was set aside as {aside.name}", "the next report begins it anew"
        ) from error


def _set_aside(path: Path) -> Path:
    """Move the database to ``NAME.damaged``, where the sqlite3 shell can still look for rows in it."""
    aside = path.with_name(f"{path.name}.damaged")
    # The log first: beside a new database it would be taken for that one's.
    for suffix in ("-wal", ""):
        if os.path.lexists(f"{path}{suffix}"):
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
    Path(f"{path}-shm").unlink(missing_ok=True)
    return aside


class Database:
    """Rows and parts, within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute

    def add(self, at: int, verdict: str, version: str | None, parts: Mapping[str, str], now: float) -> None:
        """A row whose document has these parts, as JSON texts; what has grown too old for its detail goes."""
        known = _check_texts(self._execute("SELECT name, text FROM parts WHERE removed IS NULL"))
        wanted = {name: text for name, text in parts.items() if name not in IN_ROW}
        gone = [name for name, text in known.items() if wanted.get(name) != text]
        new = {name: text for name, text in wanted.items() if known.get(name) != text}
        self.add_changes(at, verdict, version, gone, new, now)

    def add_changes(
        self, at: int, verdict: str, version: str | None, gone: Iterable[str], new: Mapping[str, str], now: float
    ) -> None:
        """A row in which the parts ``gone`` are not there any more, or not as they were, and ``new`` ones are."""
        gone = list(gone)
        before = self.read_last_row()
        is_news = before is None or (before.verdict, before.version) != (verdict, version)
        is_news |= any(name == "config" or name.startswith("versions/") for name in (*gone, *new))
        number = before.id + 1 if before else 1
        self._execute(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?)", (number, at, verdict, version, NEWS if is_news else 0)
        )
        self._connection.executemany(
            "UPDATE parts SET removed = ? WHERE removed IS NULL AND name = ?", ((number, name) for name in gone)
        )
        self._connection.executemany(
            "INSERT INTO parts VALUES (?, ?, ?, NULL)", ((name, text, number) for name, text in new.items())
        )
        self._thin(int(now))

    def _thin(self, now: int) -> None:
        for tier, keep_seconds, bucket_seconds in THINNING:
            # Whole buckets only, and each once, so that it costs as much as was written in one of them.
            end = (now - keep_seconds) // bucket_seconds * bucket_seconds
            values = {"tier": tier, "end": end, "bucket": bucket_seconds}
            # What is said twice lets sqlite see that the index, which has no rows of other tiers, is enough.
            low, high = self._execute(
                "SELECT min(id), max(id) FROM history WHERE tier < 2 AND tier = :tier AND at < :end", values
            ).fetchone()
            if low is None:
                continue
            self._execute(
                "DELETE FROM history WHERE tier < 2 AND tier = :tier AND at < :end AND id NOT IN"
                " (SELECT max(id) FROM history WHERE tier < 2 AND tier = :tier AND at < :end GROUP BY at / :bucket)",
                values,
            )
            self._execute("UPDATE history SET tier = tier + 1 WHERE tier < 2 AND tier = :tier AND at < :end", values)
            self._forget_parts(low, high)
        if self.count_bytes() > MOST_BYTES:
            self._shrink()

    def count_bytes(self) -> int:
        """What the file needs; pages that thinning freed are written to again before it grows."""
        pages, free, page_bytes = (
            self._execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page_bytes)

    def _shrink(self) -> None:
        """Drop the oldest eighth of all rows: of those that are not the last of their day, and only then of all."""
        count = self._execute("SELECT count(*) FROM history").fetchone()[0]
        # What is so large then is no history: it is what there is now.
        count = count // 8 if count > LEAST_ROWS else 0
        dropped = self._execute(
            "DELETE FROM history WHERE id IN (SELECT id FROM history WHERE id NOT IN"
            " (SELECT max(id) FROM history GROUP BY at / 86400) ORDER BY id LIMIT ?)",
            (count,),
        ).rowcount
        self._execute(
            "DELETE FROM history WHERE id IN (SELECT id FROM history ORDER BY id LIMIT ?)", (count - dropped,)
        )
        self._forget_parts(0, self._execute("SELECT max(id) FROM history").fetchone()[0])

    def _forget_parts(self, low: int, high: int) -> None:
        """Remove the parts that no row has any more, after rows from ``low`` to ``high`` went."""
        self._execute(
            "DELETE FROM parts WHERE removed > :low"
            " AND removed <= (SELECT ifnull(min(id), :high + 1) FROM history WHERE id > :high)"
            " AND NOT EXISTS (SELECT 1 FROM history WHERE id >= added AND id < removed)",
            {"low": low, "high": high},
        )

    def read_rows(self) -> list[Row]:
        """All rows, oldest first."""
        rows = self._execute("SELECT id, at, verdict, version FROM history ORDER BY id")
        return [_check_row(row) for row in rows]

    def read_last_row(self, verdict: str | None = None) -> Row | None:
        """The last row, or the last with that verdict."""
        found = self._execute(
            "SELECT id, at, verdict, version FROM history WHERE verdict = ifnull(?, verdict) ORDER BY id DESC LIMIT 1",
            (verdict,),
        )
        return next((_check_row(values) for values in found), None)

    def read_texts(self, row: Row) -> dict[str, str]:
        """The parts of a row's document, as JSON texts."""
        found = self._execute(
            "SELECT name, text FROM parts WHERE added <= :id AND (removed IS NULL OR removed > :id)", {"id": row.id}
        )
        return {**_check_texts(found), "verdict": json.dumps(row.verdict), "version": json.dumps(row.version)}

    def read_last_sign(self) -> Sign | None:
        """The sign of the last row, from all of its parts."""
        row = self.read_last_row()
        if row is None:
            return None
        return sign({name: load_part(text) for name, text in self.read_texts(row).items()}, row.at)

    def read_steps(self, rows: list[Row], shown: Iterable[str]) -> Iterator[Step]:
        """Each of some consecutive rows with what changed in it, and with the parts ``shown``.

        The first one's differences are from nothing.
        """
        ids = [row.id for row in rows]
        if not ids:
            return
        appearing: list[dict[str, str]] = [{} for _ in ids]
        vanishing: list[dict[str, str]] = [{} for _ in ids]
        found = self._execute(
            "SELECT name, text, added, removed FROM parts WHERE added <= ? AND (removed IS NULL OR removed > ?)",
            (ids[-1], ids[0]),
        )
        for name, text, added, removed in found:
            _check_texts([(name, text)])
            # The rows from added to removed may have been thinned out; what is left of them shows it.
            first = bisect_left(ids, added)
            end = len(ids) if removed is None else bisect_left(ids, removed)
            if first < end:
                appearing[first][name] = text
                if end < len(ids):
                    vanishing[end][name] = text
        state: Parts = {}
        before: Row | None = None
        wanted = set(shown)
        for row, new, gone in zip(rows, appearing, vanishing, strict=True):
            differences: dict[str, tuple[str | None, str | None]] = {
                name: (gone.get(name), new.get(name)) for name in (*gone, *(name for name in new if name not in gone))
            }
            for column in IN_ROW:
                old = json.dumps(getattr(before, column)) if before else None
                if (text := json.dumps(getattr(row, column))) != old:
                    differences[column] = (old, text)
            state |= {name: load_part(text) for name, text in new.items() if name in wanted}
            yield Step(row, dict(state), differences)
            before = row


def _check_row(values: tuple[Any, ...]) -> Row:
    """Raises sqlite3.DatabaseError for what this toolkit did not write: sqlite3 takes any value in any column."""
    row = Row(*values)
    kinds = isinstance(row.id, int) and isinstance(row.at, int) and isinstance(row.verdict, str)
    if not kinds or not isinstance(row.version, str | None) or not 0 <= row.at < END_OF_TIME:
        raise sqlite3.DatabaseError(f"row {row.id!r} of history is none")
    return row


def _check_texts(parts: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """Raises sqlite3.DatabaseError likewise."""
    texts = dict(parts)
    for name, text in texts.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise sqlite3.DatabaseError(f"part {name!r} is none")
    return texts
