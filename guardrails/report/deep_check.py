"""The deep check: all that can be verified by reading, those first that nobody verified for longest.

It repairs nothing and writes nothing but its own two caches. Ended early, by Ctrl-C or ``timeout``, it has verified
what it got to, and the next one goes on with the rest.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from guardrails import progress
from guardrails.errors import BusyError
from guardrails.locks import FileLock, read_holder
from guardrails.paths import Paths
from guardrails.queue_records import list_names
from guardrails.report.deep_ledgers import (
    INDEX,
    LOCK,
    QUEUE,
    VERSIONS,
    examine_config_lock,
    examine_index,
    examine_queue,
    find_gone_versions,
)
from guardrails.report.deep_record import (
    Problem,
    limit_problems,
    read_problems,
    read_times,
    write_problems,
    write_times,
)
from guardrails.report.deep_trees import (
    BASE_MODEL,
    DATA,
    MODEL,
    Reader,
    examine_backup,
    examine_base_model,
    examine_data,
    examine_model,
    examine_version,
    find_base_model,
    make_problem,
)
from guardrails.state_io import utc_now
from guardrails.store.backups import backups_folder, list_backup_ids
from guardrails.store.version_records import is_kept, list_version_ids

# A check that is killed has verified for nothing what it read since, and damage that it found is known this soon.
FLUSH_SECONDS = 10.0
NEWS_SECONDS = 1.0


class Outcome(NamedTuple):
    """What a deep check did: how many of each kind it read in full, and what is wrong."""

    read: dict[str, int]
    read_bytes: int
    seconds: float
    problems: list[Problem]


class Check(NamedTuple):
    """One thing to look at. ``kind`` is empty where only small files are read; ``root`` is what is read in full."""

    name: str
    kind: str
    root: Path | None
    look: Callable[[], list[Problem]]


def check_deeply(paths: Paths) -> Outcome:
    """Verify everything; what is found is remembered for later reports, where ``status/`` can be written to.

    Raises:
        BusyError: another deep check of this base dir is at work.
    """
    started, reader = time.monotonic(), Reader()
    with _alone(paths):
        ledger = _Ledger(paths)
        read: dict[str, int] = {}
        try:
            for check in _plan(paths, reader, ledger.times):
                try:
                    found = check.look()
                except OSError as error:
                    ledger.settle_unread(check.name, error)
                    continue
                ledger.settle(check.name, found)
                if check.kind:
                    read[check.kind] = read.get(check.kind, 0) + 1
            ledger.drop_all_but({check.name for check in _list_checks(paths, reader)})
        finally:
            ledger.save()
    return Outcome(read, reader.read_bytes, time.monotonic() - started, ledger.problems)


@contextmanager
def _alone(paths: Paths) -> Iterator[None]:
    """One at a time; where no lock can be made nothing can be remembered either, and many may go at once."""
    lock, taken = FileLock(paths.locks / "deep_check.lock"), True
    with suppress(OSError):
        taken = not paths.locks.is_dir() or lock.try_acquire("deep check")
    if not taken:
        holder = read_holder(lock.path)
        who = f"process {holder.pid}" if holder else "another process"
        raise BusyError(f"{who} does a deep check of {paths.base}", "wait for it; later reports tell what it found")
    try:
        yield
    finally:
        lock.release()


class _Ledger:
    """What is known to be wrong, and when what was read; kept on the disk as it grows."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.found: dict[str, list[Problem]] = {}
        for problem in read_problems(paths):
            self.found.setdefault(problem.check, []).append(problem)
        self.times = read_times(paths)
        self.saved_at = time.monotonic()
        self.news_at: float | None = None

    @property
    def problems(self) -> list[Problem]:
        return limit_problems(problem for found in self.found.values() for problem in found)

    def settle(self, name: str, found: list[Problem]) -> None:
        """``found`` is all that is wrong with what the check ``name`` looked at."""
        self.times[name] = utc_now()
        self._replace(name, found)

    def settle_unread(self, name: str, error: OSError) -> None:
        """What was known of it stands, and it could not be read this time."""
        finding = "deep-check-incomplete"
        known = [problem for problem in self.found.get(name, []) if problem.finding != finding]
        words = f"{name}: {error.strerror or error}"
        self._replace(name, [*known, make_problem(self.paths, name, finding, words)])

    def drop_all_but(self, names: set[str]) -> None:
        """Forget what is not there to be checked any more."""
        self.times = {name: at for name, at in self.times.items() if name in names}
        self.found = {name: found for name, found in self.found.items() if name in names}

    def _replace(self, name: str, found: list[Problem]) -> None:
        now = time.monotonic()
        if found != self.found.get(name, []):
            self.news_at = self.news_at or now
        self.found[name] = found
        if now - self.saved_at > FLUSH_SECONDS or (self.news_at and now - self.news_at > NEWS_SECONDS):
            self.save()

    def save(self) -> None:
        """On a disk that takes nothing, nothing is remembered; that is a finding of the report."""
        # In a folder that is no base dir nothing is made.
        if self.paths.status.is_dir():
            with suppress(OSError):
                write_problems(self.paths, self.problems)
                write_times(self.paths, self.times)
        self.saved_at, self.news_at = time.monotonic(), None


def _plan(paths: Paths, reader: Reader, times: dict[str, str]) -> list[Check]:
    """The checks in their order: what costs little, then by age; of those never read the newest first."""
    checks = _list_checks(paths, reader)
    sizes = [size for check in checks if check.root is not None for size in _list_inodes(check.root)]
    progress.expect(sum(dict(sizes).values()))
    return sorted(checks, key=lambda check: (bool(check.kind), times.get(check.name, "")))


def _list_inodes(root: Path) -> Iterator[tuple[tuple[int, int], int]]:
    """Device and inode, and bytes, of every file at or below ``root``; as far as it can be listed."""
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(OSError):
                status = os.stat(os.path.join(folder, name))
                yield (status.st_dev, status.st_ino), status.st_size
    if root.is_file():
        status = root.stat()
        yield (status.st_dev, status.st_ino), status.st_size


def _list_checks(paths: Paths, reader: Reader) -> list[Check]:
    folder, base = backups_folder(paths), find_base_model(paths)
    checks = [
        Check(QUEUE, "", None, partial(examine_queue, paths)),
        Check(VERSIONS, "", None, partial(find_gone_versions, paths)),
        Check(INDEX, "", None, partial(examine_index, paths)),
        Check(LOCK, "", None, partial(examine_config_lock, paths)),
    ]
    if paths.current_model.is_dir():
        checks.append(Check(MODEL, "model", paths.current_model, partial(examine_model, paths, reader)))
    for name in reversed(list_version_ids(paths)):
        if is_kept(paths, name):
            root = paths.version(name) / "model"
            checks.append(Check(name, "version", root, partial(examine_version, paths, name, reader)))
    for name in reversed(list_backup_ids(folder)):
        root = folder / name / "model"
        checks.append(Check(name, "backup", root, partial(examine_backup, paths, folder, name, reader)))
    if base is not None:
        checks.append(Check(BASE_MODEL, "base model", base[0], partial(examine_base_model, paths, reader)))
    for name in list_names(paths, "completed"):
        file = paths.queue_folder("completed") / name
        checks.append(Check(f"{DATA}{name}", "data file", file, partial(examine_data, paths, name, reader)))
    return checks
