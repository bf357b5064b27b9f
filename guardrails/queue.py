"""Moving data files through the queue; see ``queue_records`` for what is known of them.

Two orders keep every kill harmless. ``claim`` and ``finish`` write the record first and then move the
file: a file in ``processing/`` has its run id, and the daemon does the step again where it finds the
file still there. All other moves are asked for by a person and move the file first: one found in another
folder than its record says counts as moved by hand, which comes to the same.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guardrails.errors import BusyError, DamagedStateError, OperationError
from guardrails.filesystem import move_file, rename_noreplace
from guardrails.locks import FileLock
from guardrails.manifest import hash_file
from guardrails.paths import PRIORITIES, QUEUE_STATES, Paths
from guardrails.queue_records import (
    ENDED,
    Record,
    all_records,
    as_found,
    find_states,
    free_name,
    printable,
    processing,
    read_record,
    record_path,
    write_record,
)
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, read_json, set_aside, utc_now, write_json

# Which of several files of one name keeps it when the record does not tell; the others are new.
NAME_RANK = (*ENDED, *PRIORITIES, "processing")


@contextmanager
def hold_queue(paths: Paths, purpose: str) -> Iterator[None]:
    """Hold the queue's lock; every function here that changes something takes it itself, unless it says so.

    Raises:
        BusyError: another process held it for 10 seconds.
    """
    with FileLock(paths.locks / "queue.lock").hold(purpose):
        for state in QUEUE_STATES:
            paths.queue_folder(state).mkdir(parents=True, exist_ok=True)
        paths.queue_records.mkdir(exist_ok=True)
        yield


def claim(paths: Paths, name: str, run_id: str) -> Record:
    """Move a waiting file to ``processing/`` as the file of run ``run_id``.

    Raises:
        OperationError: it does not wait, or another run is open.
    """
    with hold_queue(paths, "starting a run"):
        record = _require(paths, name)
        if record.state not in PRIORITIES:
            raise OperationError(f"{name} does not wait: it is in {record.state}", "training_queue.py list")
        other = processing(paths)
        if other is not None:
            raise OperationError(f"run {other.run_id} of {other.name} is open", "finish it first")
        record.run_id, record.reason, record.version, record.attempt_step = run_id, None, None, 0
        return _write_then_move(paths, record, "processing", "started", run_id)


def finish(
    paths: Paths,
    name: str,
    state: str,
    *,
    reason: str | None = None,
    version: str | None = None,
    rows: int | None = None,
    held_back: bool = False,
) -> Record:
    """Move a file to ``completed/``, ``failed/`` or ``skipped/`` from wherever it lies.

    ``held_back`` (with ``skipped``) keeps its content out of the queue until a person asks for it.
    Doing it again changes nothing; for a file that is gone only the record is changed.

    Raises:
        OperationError: neither the file nor a record of it is there.
    """
    assert state in ENDED, state
    with hold_queue(paths, "ending a run"):
        record = _settle(paths, name) or read_record(paths, name)
        if record is None:
            raise OperationError(f"there is no data file {name} in the queue", "training_queue.py list")
        record.reason, record.held_back = reason, held_back
        record.version = version or record.version if state == "completed" else None
        record.rows = record.rows if rows is None else rows
        return _write_then_move(paths, record, state, state, reason or version)


def count_attempt(paths: Paths, name: str, step: int) -> int:
    """Note durably that the file's run is about to start from ``step``; the attempts since it last got further."""
    with hold_queue(paths, "starting an attempt"):
        record = _require(paths, name)
        record.attempts = 1 if step > record.attempt_step else record.attempts + 1
        record.attempt_step = step
        record.note("attempt", f"{record.attempts}, from step {step}")
        write_record(paths, record)
        return record.attempts


def clear_attempts(paths: Paths, name: str) -> None:
    """An attempt that a person ended was none; a file that is gone is nobody's any more."""
    with hold_queue(paths, "ending an attempt"):
        record = _settle(paths, name)
        if record is not None:
            record.attempts = 0
            write_record(paths, record)


def refresh(paths: Paths, name: str) -> Record:
    """The record of a file with size and hash of its bytes as they are now; a person may have changed them.

    Raises:
        OperationError: the file is gone.
    """
    with hold_queue(paths, "reading a data file"):
        record = _require(paths, name)
    path = paths.queue_folder(record.state) / name
    # Not under the lock: reading a large file takes long.
    content, size = hash_file(path), path.stat().st_size
    if (content, size) == (record.blake3, record.size):
        return record
    with hold_queue(paths, "recording changed data"):
        record = _require(paths, name)
        record.note("changed", f"the content is {content} now, it was {record.blake3}")
        record.blake3, record.size = content, size
        write_record(paths, record)
    return record


def requeue(paths: Paths, name: str, detail: str | None = None) -> Record:
    """Put a file back to wait, in its old place of the order; its run is over, its attempts still count."""
    with hold_queue(paths, "putting a file back"):
        record = _require(paths, name)
        _move(paths, record, record.priority)
        record.run_id = record.reason = None
        return _write_moved(paths, record, record.priority, "requeued", detail)


def set_priority(paths: Paths, name: str, priority: str) -> Record:
    """Move a waiting file to the folder of ``priority``; it keeps its arrival.

    Raises:
        BusyError: it is being trained.
        OperationError: it does not wait.
    """
    with hold_queue(paths, "changing a priority"):
        record = _require(paths, name)
        _refuse(record, PRIORITIES, f"put it back first: training_queue.py retry {shlex.quote(name)}")
        if record.state == priority:
            return record
        _move(paths, record, priority)
        record.priority = priority
        return _write_moved(paths, record, priority, "priority", priority)


def remove(paths: Paths, name: str) -> Record:
    """Move a waiting or failed file to ``skipped/``; nothing is deleted.

    Raises:
        BusyError: it is being trained.
        OperationError: it is completed or skipped already.
    """
    with hold_queue(paths, "removing a file"):
        record = _require(paths, name)
        _refuse(record, (*PRIORITIES, "failed"), "only waiting and failed files can be removed")
        _move(paths, record, "skipped")
        record.reason = "removed by hand"
        return _write_moved(paths, record, "skipped", "removed", None)


def retry(paths: Paths, name: str) -> Record:
    """Put a failed or skipped file back to wait, last in its priority, with no attempts counted.

    It will be trained even if its content was trained, or undone, before.

    Raises:
        BusyError: it is being trained.
        OperationError: it is waiting or completed.
    """
    with hold_queue(paths, "retrying a file"):
        record = _require(paths, name)
        _refuse(record, ("failed", "skipped"), "to train a completed file again: training_queue.py add FILE --force")
        detail = record.reason
        _move(paths, record, record.priority)
        record = as_found(record, record.priority)
        record.arrival = reserve_arrivals(paths, 1)
        return _write_moved(paths, record, record.priority, "retried", detail)


def synchronize(paths: Paths, name: str) -> Record | None:
    """Bring a record in line with where the file lies, and give two files of one name two names.

    A file lying in ``processing/`` of no run goes back to wait. None if no file of that name is in the
    queue, or the one that is waits without a record.
    """
    with hold_queue(paths, "looking at the queue"):
        record = _settle(paths, name)
        if record is None or record.state != "processing" or record.run_id:
            return record
        _move(paths, record, record.priority)
        return _write_moved(paths, record, record.priority, "found", "in processing, without a run")


def register(
    paths: Paths,
    source: Path,
    state: str,
    *,
    original_name: str,
    arrival: int,
    blake3: str,
    size: int,
    detail: str,
    priority: str = "normal",
    force: bool = False,
    reason: str | None = None,
) -> Record:
    """Move a file from outside, or one put into the queue by hand, to ``state`` under a name of its own.

    The caller holds the queue's lock. Record first: should a kill leave it without a file, the same
    content takes it over when it is found again.

    Raises:
        FileNotFoundError: ``source`` has gone; nothing was changed.
    """
    folder = paths.queue_folder(state)
    name = free_name(paths, original_name, blake3, source)
    record = Record(name, printable(original_name), arrival, utc_now(), priority, state, size, blake3, force)
    record.reason = reason
    record.note("added", printable(detail))
    if reason:
        record.note(state, reason)
    write_record(paths, record)
    try:
        move_file(source, folder / name)
    except FileNotFoundError:
        record_path(paths, name).unlink(missing_ok=True)
        raise
    return record


def reserve_arrivals(paths: Paths, count: int) -> int:
    """The first of ``count`` running numbers that nobody else gets; the caller holds the queue's lock."""
    path = paths.queue_records / ".arrival.json"
    try:
        last = (read_json(path) or {}).get("last")
    except DamagedStateError:
        set_aside(path)
        last = None
    if not isinstance(last, int):
        last = max((record.arrival or 0 for record in all_records(paths)), default=0)
    write_json(path, {"schema_version": SCHEMA_VERSION, "last": last + count})
    return last + 1


def _settle(paths: Paths, name: str) -> Record | None:
    """One file of that name and its record in line with where it lies; the caller holds the lock.

    None if there is no file, or it waits without a record: that is for the next intake.
    """
    states = find_states(paths, name)
    if not states:
        return None
    record = read_record(paths, name)
    kept = record.state if record and record.state in states else min(states, key=NAME_RANK.index)
    for state in states:
        if state != kept:
            folder = paths.queue_folder(state)
            rename_noreplace(folder / name, folder / free_name(paths, name, ""))
            fsync_folder(folder)
    if record is None:
        if kept not in ENDED:
            return None
        path = paths.queue_folder(kept) / name
        return register(
            paths,
            path,
            kept,
            original_name=name,
            arrival=reserve_arrivals(paths, 1),
            blake3=hash_file(path),
            size=path.stat().st_size,
            detail=f"found in {paths.relative(path.parent)}",
        )
    if record.state == kept:
        return record
    found = as_found(record, kept)
    if record.state in ENDED and kept in PRIORITIES:
        found.arrival = reserve_arrivals(paths, 1)
    found.note("found", f"in {kept}, was in {record.state}")
    write_record(paths, found)
    return found


def _require(paths: Paths, name: str) -> Record:
    record = _settle(paths, name)
    if record is not None:
        return record
    if find_states(paths, name):
        raise OperationError(f"{name} was put there by hand and not looked at yet", "training_queue.py process-inbox")
    raise OperationError(f"there is no data file {name} in the queue", "see what there is: training_queue.py list")


def _refuse(record: Record, allowed: tuple[str, ...], hint: str) -> None:
    """Raise unless the record's state is one of ``allowed``."""
    if record.state == "processing":
        raise BusyError(f"{record.name} is being trained in run {record.run_id}", "training_controller.py skip")
    if record.state not in allowed:
        raise OperationError(f"{record.name} is in {record.state}; nothing was changed", hint)


def _write_then_move(paths: Paths, record: Record, state: str, event: str, detail: str | None) -> Record:
    source = paths.queue_folder(record.state) / record.name
    _write_moved(paths, record, state, event, detail)
    if os.path.lexists(source):
        move_file(source, paths.queue_folder(state) / record.name)
    return record


def _write_moved(paths: Paths, record: Record, state: str, event: str, detail: str | None) -> Record:
    record.state = state
    record.note(event, detail)
    write_record(paths, record)
    return record


def _move(paths: Paths, record: Record, state: str) -> None:
    move_file(paths.queue_folder(record.state) / record.name, paths.queue_folder(state) / record.name)
