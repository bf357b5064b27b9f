"""What is known of the data files in the queue; nothing here changes anything but ``write_record``.

The folder a file lies in is its state. The record says where the queue functions last put it; the two
differ after a kill and after a person moved the file, and then the folder is right.
"""

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

from guardrails.errors import DamagedStateError
from guardrails.paths import PRIORITIES, QUEUE_STATES, Paths
from guardrails.state_io import SCHEMA_VERSION, read_json, utc_now, write_json

ENDED = ("completed", "failed", "skipped")
EXTENSION = ".jsonl"
# Leaves room for ".json" and a temporary suffix in the 255 bytes of a file name.
MAX_NAME_BYTES = 200
# A file that is retried for ever keeps a record of bounded size.
MAX_EVENTS = 200
NOT_UNICODE = re.compile("[\ud800-\udfff]")

# The version of the current model's ancestors that content (by BLAKE3) was trained into, if any.
TrainedIn = Callable[[str], str | None]


@dataclass(slots=True)
class Record:
    """One data file; docs/formats.md has the meaning of each field."""

    name: str
    original_name: str = ""
    # Running number; None for a file that was put into the queue by hand and not looked at yet.
    arrival: int | None = None
    added_at: str = ""
    priority: str = "normal"
    state: str = "normal"
    size: int = 0
    blake3: str = ""
    force: bool = False
    held_back: bool = False
    run_id: str | None = None
    attempts: int = 0
    # Where the last attempt started; one that starts further on got somewhere.
    attempt_step: int = 0
    version: str | None = None
    rows: int | None = None
    reason: str | None = None
    events: list[dict[str, str | None]] = field(default_factory=list)

    def note(self, event: str, detail: str | None) -> None:
        """Add a line to the file's history, unless it is the last one already."""
        last = self.events[-1] if self.events else {}
        if (last.get("event"), last.get("detail")) != (event, detail):
            self.events.append({"at": utc_now(), "event": event, "detail": detail})
            del self.events[:-MAX_EVENTS]

    def to_json(self) -> dict[str, object]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


class Duplicate(NamedTuple):
    """Content that the queue or the model has already: ``other`` names it, ``reason`` is a sentence."""

    kind: Literal["trained", "queued", "undone"]
    other: str
    reason: str


def is_data_name(name: str) -> bool:
    return name.lower().endswith(EXTENSION) and not name.startswith(".")


def list_names(paths: Paths, state: str) -> list[str]:
    """Names of the data files in one folder of the queue, sorted."""
    try:
        with os.scandir(paths.queue_folder(state)) as entries:
            return sorted(e.name for e in entries if is_data_name(e.name) and e.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return []


def counts(paths: Paths) -> dict[str, int]:
    """How many data files lie in each folder of the queue."""
    return {state: len(list_names(paths, state)) for state in QUEUE_STATES}


def find_states(paths: Paths, name: str) -> list[str]:
    """The folders in which a file of that name lies; more than one only if a person put it there."""
    return [state for state in QUEUE_STATES if os.path.lexists(paths.queue_folder(state) / name)]


def record_path(paths: Paths, name: str) -> Path:
    return paths.queue_records / f"{name}.json"


def read_record(paths: Paths, name: str) -> Record | None:
    """The record as it was last written, wherever the file lies now.

    Raises:
        DamagedStateError: it cannot be read; it is left as it is.
    """
    path = record_path(paths, name)
    # A longer name was given by hand; it is made shorter before it gets a record.
    document = read_json(path) if len(os.fsencode(name)) <= MAX_NAME_BYTES else None
    if document is None:
        return None
    known = {item.name for item in fields(Record)}
    record = Record(**{key: value for key, value in document.items() if key in known and key != "name"}, name=name)
    for key, valid in (
        ("arrival", isinstance(record.arrival, int)),
        ("state", record.state in QUEUE_STATES),
        ("priority", record.priority in PRIORITIES),
        ("attempts", isinstance(record.attempts, int)),
        ("events", isinstance(record.events, list)),
    ):
        if not valid:
            raise DamagedStateError(
                f"{path}: {key} is {getattr(record, key)!r}",
                f"correct it, or move the file away and the data file gets a new one: mv '{path}' '{path}.damaged'",
            )
    return record


def write_record(paths: Paths, record: Record) -> None:
    """Replace the record durably; the caller holds the queue's lock."""
    write_json(record_path(paths, record.name), record.to_json())


def as_found(record: Record, state: str) -> Record:
    """The record of a file that lies in ``state``, whatever it says itself."""
    before = record.state
    if before == state:
        return record
    found = replace(record, state=state)
    if state in PRIORITIES:
        found.priority = state
        found.run_id = None
        if before in ENDED:
            # Put back by hand, or by a retry that was killed: a person wants it trained.
            found = replace(found, attempts=0, attempt_step=0, force=True, held_back=False, reason=None, version=None)
    elif state in ENDED and before not in ENDED:
        found.reason = f"moved here by hand from {before}"
    return found


def records(paths: Paths, state: str) -> list[Record]:
    """The records of the files in one folder, in order of arrival; files not looked at yet come last."""
    found = []
    for name in list_names(paths, state):
        record = read_record(paths, name)
        if record is None:
            try:
                size = (paths.queue_folder(state) / name).lstat().st_size
            except FileNotFoundError:
                continue
            priority = state if state in PRIORITIES else "normal"
            record = Record(name, printable(name), size=size, priority=priority, state=state)
        found.append(as_found(record, state))
    return sorted(found, key=_by_arrival)


def all_records(paths: Paths) -> list[Record]:
    """Every record there is, of files that are gone too, in order of arrival."""
    try:
        names = [name.removesuffix(".json") for name in os.listdir(paths.queue_records) if is_record_name(name)]
    except FileNotFoundError:
        return []
    return sorted((record for name in names if (record := read_record(paths, name))), key=_by_arrival)


def is_record_name(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")


def next_file(paths: Paths) -> Record | None:
    """The file to train next: by priority, then by arrival. None when nothing waits."""
    for priority in PRIORITIES:
        for record in records(paths, priority):
            if record.arrival is not None:
                return record
    return None


def processing(paths: Paths) -> Record | None:
    """The file of the open run; None when no run is open."""
    return next((record for record in records(paths, "processing") if record.run_id), None)


class ContentIndex:
    """Which content waits, is being trained or is held back, as of now; built once for many questions."""

    def __init__(self, paths: Paths) -> None:
        waiting = [record for state in ("processing", *PRIORITIES) for record in records(paths, state)]
        self.queued: dict[str, set[str]] = {}
        for record in waiting:
            self.add(record)
        self.held_back = {record.blake3: record for record in records(paths, "skipped") if record.held_back}

    def add(self, record: Record) -> None:
        if record.blake3:
            self.queued.setdefault(record.blake3, set()).add(record.name)

    def find(self, blake3: str, trained_in: TrainedIn, own_name: str | None = None) -> Duplicate | None:
        """What has this content already, other than the file ``own_name`` itself."""
        for other in sorted(self.queued.get(blake3, set()) - {own_name}):
            return Duplicate("queued", other, f"same content as {other}, which is in the queue")
        version = trained_in(blake3)
        if version is not None:
            return Duplicate("trained", version, f"same content was already trained into {version}")
        held = self.held_back.get(blake3)
        if held is not None and held.name != own_name:
            run = held.run_id or "an earlier run"
            return Duplicate("undone", run, f"same content as {held.name} of the undone run {run}")
        return None


def find_duplicate(paths: Paths, blake3: str, trained_in: TrainedIn, own_name: str | None = None) -> Duplicate | None:
    """What has this content already: a file in the queue, a version, or an undone run's file.

    Not to be asked for a record with ``force``.
    """
    return ContentIndex(paths).find(blake3, trained_in, own_name)


def printable(text: str) -> str:
    """``text`` with bytes that are no UTF-8 replaced by ``_``."""
    return NOT_UNICODE.sub("_", text)


def make_name(original: str, number: int) -> str:
    """The ``number``-th name to try for a data file: short, valid UTF-8, from 2 on with ``-N``."""
    name = printable(original.rpartition("/")[2])
    end = ("" if number == 1 else f"-{number}") + name[-len(EXTENSION) :]
    stem = name[: -len(EXTENSION)].encode()[: MAX_NAME_BYTES - len(end)]
    return stem.decode(errors="ignore") + end


def free_name(paths: Paths, original: str, blake3: str, own: Path | None = None) -> str:
    """A name that no file of the queue has, but for ``own``, and no record of other content."""
    number = 1
    while True:
        name = make_name(original, number)
        if all(paths.queue_folder(state) / name == own for state in find_states(paths, name)):
            record = read_record(paths, name)
            # Otherwise it is one that a kill left without its file.
            if record is None or (record.blake3 == blake3 and not record.run_id and not record.version):
                return name
        number += 1


def _by_arrival(record: Record) -> tuple[bool, int, str]:
    return record.arrival is None, record.arrival or 0, record.name
