"""How data files get into the queue: from the inbox, straight into a folder of the queue, or by ``add``.

A file is taken when it is at rest: the same on two looks some time apart, and open for writing nowhere
as far as the kernel can tell. One process takes files at a time, under ``.locks/intake.lock``.
"""

import math
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from guardrails.errors import OperationError
from guardrails.filesystem import is_being_written, remove_staged, stage_copy, unlink_unchanged
from guardrails.locks import FileLock
from guardrails.manifest import hash_file
from guardrails.paths import PRIORITIES, QUEUE_STATES, Paths
from guardrails.queue import hold_queue, register, reserve_arrivals, synchronize
from guardrails.queue_records import (
    ContentIndex,
    Record,
    TrainedIn,
    find_duplicate,
    is_data_name,
    list_names,
    printable,
    read_record,
    record_path,
)
from guardrails.state_io import remove_temporary_files

REST_SECONDS = 0.5
# Long enough that two changes of a folder within one stamp of the file system's clock are seen.
RACY_SECONDS = 2.0
UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".download", ".filepart", ".swp", "~")
# How long a command waits for another that takes files in; a large one takes a while.
BUSY_SECONDS = 60.0
STATES_BY_HAND = (*PRIORITIES, "processing")


class Stamp(NamedTuple):
    """What changes when a file is written to or replaced."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


class LeftFile(NamedTuple):
    """Something that was not taken: its path as shown to people, and why."""

    path: str
    why: str


@dataclass(slots=True)
class Intake:
    """What one look did: records of files that wait now, of duplicates, and what was left and why."""

    queued: list[Record] = field(default_factory=list)
    skipped: list[Record] = field(default_factory=list)
    left: list[LeftFile] = field(default_factory=list)
    # Files that may be at rest soon; look again then.
    resting: int = 0


class Watch:
    """What earlier looks saw. Keep one per base dir for as long as you look; it holds no resource."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.seen: dict[Path, tuple[Stamp, float]] = {}
        self.settled_folders: dict[str, tuple[int, int]] = {}

    def is_at_rest(self, path: Path, stamp: Stamp) -> bool:
        """Whether the file has been the same for ``REST_SECONDS``; remembers this look."""
        before, since = self.seen.get(path, (None, 0.0))
        if before != stamp:
            self.seen[path] = (stamp, self.now())
            return False
        return self.now() - since >= REST_SECONDS

    def forget_missing(self, present: set[Path]) -> None:
        for path in self.seen.keys() - present:
            del self.seen[path]


class Candidate(NamedTuple):
    """A data file without a record: in the inbox (``state`` None), or put into a folder of the queue by hand."""

    path: Path
    stamp: Stamp
    original_name: str
    state: str | None

    def describe(self) -> str:
        return f"inbox/{self.original_name}" if self.state is None else f"put into queue/{self.state} by hand"


def look(paths: Paths, watch: Watch, trained_in: TrainedIn, *, budget_seconds: float = math.inf) -> Intake:
    """Take every file that is at rest, in order of arrival; duplicates go to ``skipped/``.

    Also brings the records in line with what a person moved by hand. Nothing is ever overwritten, and a
    file that cannot be taken stays where it is and is told of. Costs next to nothing when nothing changed.
    After ``budget_seconds`` no further file is begun; ``resting`` says then that the next look goes on, as
    it does when another process is taking files just now.
    """
    if _is_quiet(paths, watch):
        # Taking the lock writes to the disk, which would never rest.
        return Intake()
    lock = FileLock(paths.locks / "intake.lock")
    if not lock.try_acquire("taking data files in"):
        return Intake(resting=1)
    try:
        return _look(paths, watch, trained_in, time.monotonic() + budget_seconds)
    finally:
        lock.release()


def process_inbox(paths: Paths, trained_in: TrainedIn) -> Intake:
    """Look twice, so that all that is at rest now is taken.

    Raises:
        BusyError: another process has been taking files for a minute.
    """
    watch = Watch()
    with FileLock(paths.locks / "intake.lock").hold("taking data files in", BUSY_SECONDS):
        result = _look(paths, watch, trained_in, math.inf)
        if result.resting:
            time.sleep(REST_SECONDS)
            result = _look(paths, watch, trained_in, math.inf)
    return result


def _look(paths: Paths, watch: Watch, trained_in: TrainedIn, deadline: float) -> Intake:
    """See ``look``; the caller holds the intake's lock. ``deadline`` is a time of ``time.monotonic``."""
    result = Intake()
    candidates = _find_in_inbox(paths, result.left)
    for state in STATES_BY_HAND:
        candidates += _find_in_queue(paths, watch, state)
    watch.forget_missing({candidate.path for candidate in candidates})
    ready = [candidate for candidate in candidates if _is_ready(paths, watch, candidate, result)]
    if ready:
        ready.sort(key=lambda candidate: (candidate.stamp.ctime_ns, candidate.path))
        _take(paths, ready, trained_in, deadline, result)
    return result


def inspect_inbox(paths: Paths) -> list[LeftFile]:
    """What lies in the inbox and why, without changing anything."""
    left: list[LeftFile] = []
    for candidate in _find_in_inbox(paths, left):
        left.append(LeftFile(_shown(paths, candidate.path), _why_waiting(candidate.path)))
    return sorted(left)


def add_file(paths: Paths, source: Path, priority: str, trained_in: TrainedIn, *, force: bool = False) -> Record:
    """Put a durable copy of ``source`` into the queue; the original stays as it is.

    The record's state is ``skipped`` if the content is a duplicate and ``force`` was not given.

    Raises:
        OperationError: not a data file, lies in the queue already, or is being written.
        BusyError: another process is taking files.
    """
    shown = printable(str(source))
    source = Path(os.path.realpath(source))
    try:
        before = source.stat()
    except OSError as error:
        raise OperationError(f"cannot read {shown}: {error.strerror}", "check the path and its permissions") from error
    if not stat.S_ISREG(before.st_mode) or not is_data_name(source.name):
        raise OperationError(f"{shown} is not a .jsonl file", "add files whose names end in .jsonl")
    if source.is_relative_to(paths.queue):
        raise OperationError(f"{shown} is in the queue already", "training_queue.py list")
    if is_being_written(source):
        raise OperationError(f"{shown} is still being written by another process", "add it when that is done")
    with FileLock(paths.locks / "intake.lock").hold("taking data files in", BUSY_SECONDS):
        with hold_queue(paths, "adding a file"):
            _remove_leftovers(paths)
        copy, content = stage_copy(source, paths.queue_folder(priority))
        try:
            if _stamp(source.stat()) != _stamp(before):
                raise OperationError(f"{shown} was changed while it was copied", "add it again when it is complete")
            with hold_queue(paths, "adding a file"):
                duplicate = None if force else find_duplicate(paths, content, trained_in)
                return register(
                    paths,
                    copy,
                    "skipped" if duplicate else priority,
                    original_name=source.name,
                    arrival=reserve_arrivals(paths, 1),
                    blake3=content,
                    size=before.st_size,
                    detail=f"copied from {source}",
                    priority=priority,
                    force=force,
                    reason=duplicate.reason if duplicate else None,
                )
        finally:
            copy.unlink(missing_ok=True)


def _is_quiet(paths: Paths, watch: Watch) -> bool:
    """Whether nothing lies in the inbox, and nothing changed in the queue since it was found in order."""
    try:
        with os.scandir(paths.inbox) as entries:
            if watch.seen or next(entries, None) is not None:
                return False
        stats = {state: paths.queue_folder(state).stat() for state in STATES_BY_HAND}
    except OSError:
        return False
    return all(watch.settled_folders.get(state) == (one.st_ino, one.st_mtime_ns) for state, one in stats.items())


def _find_in_inbox(paths: Paths, left: list[LeftFile]) -> list[Candidate]:
    """The inbox's data files; whatever else lies there is added to ``left``."""
    found: list[Candidate] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(paths.inbox / folder) as entries:
                listed = list(entries)
        except OSError as error:
            if folder or not isinstance(error, FileNotFoundError):
                left.append(LeftFile(_shown(paths, paths.inbox / folder), f"cannot be read: {error.strerror}"))
            continue
        for entry in listed:
            relative = f"{folder}{entry.name}"
            why = _why_left(entry)
            if why:
                left.append(LeftFile(_shown(paths, paths.inbox / relative), why))
            elif entry.is_dir(follow_symlinks=False):
                pending.append(f"{relative}/")
            else:
                _append_candidate(found, paths.inbox / relative, relative, None)
    return found


def _why_left(entry: os.DirEntry[str]) -> str | None:
    """Why an entry of the inbox is never taken; None for folders and data files."""
    if entry.is_symlink():
        return "is a symbolic link; only regular files are taken"
    if entry.name.startswith("."):
        return "is hidden"
    if entry.is_dir(follow_symlinks=False):
        return None
    if not entry.is_file(follow_symlinks=False):
        return "is not a regular file"
    if entry.name.lower().endswith(UNFINISHED):
        return "looks like an unfinished download"
    return None if is_data_name(entry.name) else "is not a .jsonl file"


def _find_in_queue(paths: Paths, watch: Watch, state: str) -> list[Candidate]:
    """Data files without a record in one folder of the queue, once all others there are synchronized.

    A folder that has not changed since it was found in order is not read again.
    """
    folder = paths.queue_folder(state)
    try:
        status = folder.stat()
    except FileNotFoundError:
        return []
    key = (status.st_ino, status.st_mtime_ns)
    if watch.settled_folders.get(state) == key:
        return []
    elsewhere = {name for other in QUEUE_STATES if other != state for name in list_names(paths, other)}
    for name in list_names(paths, state):
        record = read_record(paths, name)
        if name in elsewhere or (record and (record.state != state or (state == "processing" and not record.run_id))):
            synchronize(paths, name)
    found: list[Candidate] = []
    for name in list_names(paths, state):
        if not os.path.lexists(record_path(paths, name)):
            _append_candidate(found, folder / name, name, state)
    if not found and time.time() - status.st_mtime > RACY_SECONDS:
        watch.settled_folders[state] = key
    return found


def _append_candidate(found: list[Candidate], path: Path, original_name: str, state: str | None) -> None:
    try:
        status = path.lstat()
    except OSError:
        return
    found.append(Candidate(path, _stamp(status), original_name, state))


def _is_ready(paths: Paths, watch: Watch, candidate: Candidate, result: Intake) -> bool:
    if watch.is_at_rest(candidate.path, candidate.stamp):
        why = _why_unreadable(candidate.path)
        if why is None:
            return True
    else:
        why = "its size has to rest first"
        result.resting += 1
    result.left.append(LeftFile(_shown(paths, candidate.path), why))
    return False


def _why_unreadable(path: Path) -> str | None:
    """Why a file at rest cannot be taken just now, if so."""
    try:
        return "is still being written" if is_being_written(path) else None
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _why_waiting(path: Path) -> str:
    return _why_unreadable(path) or "waits to be taken by the daemon or process-inbox"


def _take(paths: Paths, ready: list[Candidate], trained_in: TrainedIn, deadline: float, result: Intake) -> None:
    with hold_queue(paths, "taking data files in"):
        _remove_leftovers(paths)
        arrival = reserve_arrivals(paths, len(ready))
    # Others may change the queue meanwhile; the daemon asks again before it trains a file.
    index = ContentIndex(paths)
    for number, candidate in enumerate(ready, arrival):
        if number > arrival and time.monotonic() > deadline:
            result.resting += len(ready) - (number - arrival)
            break
        try:
            record = _take_one(paths, candidate, number, index, trained_in)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                why = f"cannot be taken: {error.strerror}"
                result.left.append(LeftFile(_shown(paths, candidate.path), why))
            continue
        if record is None:
            result.left.append(LeftFile(_shown(paths, candidate.path), "is still being written"))
        elif record.state == "skipped":
            result.skipped.append(record)
        else:
            index.add(record)
            result.queued.append(record)


def _take_one(
    paths: Paths, candidate: Candidate, arrival: int, index: ContentIndex, trained_in: TrainedIn
) -> Record | None:
    """Take one file, unless it changed since it was looked at."""
    priority = candidate.state if candidate.state in PRIORITIES else "normal"
    folder = paths.queue_folder(priority)
    source = candidate.path
    if candidate.stamp.device == folder.stat().st_dev:
        content = hash_file(source)
    else:
        # Copied before the queue is locked, since that takes long.
        source, content = stage_copy(candidate.path, folder)
    try:
        duplicate = index.find(content, trained_in)
        with hold_queue(paths, "taking data files in"):
            before = candidate.path.lstat()
            if _stamp(before) != candidate.stamp or is_being_written(candidate.path):
                return None
            record = register(
                paths,
                source,
                "skipped" if duplicate else priority,
                original_name=candidate.original_name,
                arrival=arrival,
                blake3=content,
                size=candidate.stamp.size,
                detail=candidate.describe(),
                priority=priority,
                reason=duplicate.reason if duplicate else None,
            )
            if source != candidate.path:
                unlink_unchanged(candidate.path, before)
            return record
    finally:
        if source != candidate.path:
            source.unlink(missing_ok=True)


def _remove_leftovers(paths: Paths) -> None:
    """Remove partial copies of killed commands; the caller holds both locks, so that no one else makes any."""
    for state in QUEUE_STATES:
        remove_staged(paths.queue_folder(state))
    remove_temporary_files(paths.queue_records)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


def _shown(paths: Paths, path: Path) -> str:
    return printable(paths.relative(path))
