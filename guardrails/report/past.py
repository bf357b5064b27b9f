"""What the history tells: what changed row by row, since then, or since all was well."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from guardrails.cli import find_argument
from guardrails.errors import DamagedStateError, OperationError, UsageError
from guardrails.paths import Paths
from guardrails.report.diff import explain, find_differences, summarize
from guardrails.report.history import ask
from guardrails.report.moments import HOW_TO_SAY, parse_time
from guardrails.report.parts import Json, Parts, dump_parts, split
from guardrails.state_io import format_utc, read_json

if TYPE_CHECKING:
    from guardrails.report.database import Database, Row

ROW = re.compile(r"#?(\d{1,18})", re.ASCII)
NOW = "now"
# What a row of the listing shows beside what changed.
SHOWN = ("training_status", "disk_space")
FIRST_ROW = ["first row"]
# What only one of two rows has at all is not compared.
OTHER_KEYS = ["document of another release"]


class Entry(NamedTuple):
    """A row as it is listed; None where its document did not say."""

    row: "Row"
    steps: int | None
    free_gb: float | None
    used_gb: float | None
    changes: list[str]


class Side(NamedTuple):
    """One of two states that are compared: a row of the history, a file, or, where it is neither, the present."""

    at: str
    row: int | None
    file: str | None
    texts: dict[str, str]


def read_entries(paths: Paths, since: float | None) -> list[Entry]:
    """The rows since then, oldest first, each with what changed in it.

    Raises:
        DamagedStateError: the history is damaged.
        OSError: it cannot be read.
    """

    def read(database: "Database") -> list[Entry]:
        rows = database.read_rows()
        start = next((index for index, row in enumerate(rows) if since is None or row.at >= since), len(rows))
        # What changed in the first of them is told by the one before.
        steps = list(database.read_steps(rows[max(0, start - 1) :], SHOWN))
        entries = [_make_entry(step.row, step.parts, FIRST_ROW) for step in steps[:1] if not start]
        for step in steps[1:]:
            changes = summarize(explain(step.differences)) or OTHER_KEYS
            entries.append(_make_entry(step.row, step.parts, changes))
        return entries

    return ask(paths, read) or []


def _make_entry(row: "Row", parts: Parts, changes: list[str]) -> Entry:
    steps = _number(parts, "training_status", "current_step")
    free, total = _number(parts, "disk_space", "available_gb"), _number(parts, "disk_space", "total_gb")
    used = total - free if total is not None and free is not None else None
    return Entry(row, None if steps is None else int(steps), free, used, changes)


def _number(parts: Parts, name: str, key: str) -> float | None:
    section = parts.get(name)
    value: Any = section.get(key) if isinstance(section, dict) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def find_words_since_healthy(paths: Paths, document: Json) -> list[str]:
    """What has changed since the last row whose verdict was ok, in a few words each.

    Nothing if there is no such row, all is well now, or the history cannot be read: the report says that by itself.
    """
    if document["verdict"] == "ok":
        return []

    def read(database: "Database") -> dict[str, str] | None:
        healthy = database.read_last_row("ok")
        return database.read_texts(healthy) if healthy is not None else None

    before = None
    with suppress(DamagedStateError, OSError):
        before = ask(paths, read)
    if before is None:
        return []
    changes = explain(find_differences(before, _present(paths, document).texts))
    told = ("verdict", "warning_details", "warnings", "queue")
    return summarize(change for change in changes if change.list_name not in told)


def choose_sides(paths: Paths, document: Json, named: tuple[str, ...], now: float) -> tuple[Side, Side]:
    """The states that ``--diff [A [B]]`` compares. ``document`` is that of the present.

    Without B it is the present; without A the last row before the one that stands for the present.

    Raises:
        UsageError: what is named is no time, no row and no document, or there is no such row.
        OperationError: there is no history.
        DamagedStateError: the history is damaged, or a file is damaged or of a newer toolkit.
        OSError: the history cannot be read.
    """
    present = _present(paths, document)
    first = _find_side(paths, named[0], present, now) if named else _read_row(paths, lambda rows: rows[-2:][0])
    second = _find_side(paths, named[1], present, now) if len(named) > 1 else present
    return first, second


def _present(paths: Paths, document: Json) -> Side:
    try:
        version = (read_json(paths.head) or {}).get("version")
    except DamagedStateError:
        version = None
    return Side(document["last_updated"], None, None, dump_parts({**split(document), "version": version}))


def _find_side(paths: Paths, name: str, present: Side, now: float) -> Side:
    if name == NOW:
        return present
    if number := ROW.fullmatch(name):
        return _read_row(paths, lambda rows: _find_row(rows, int(number[1])))
    at = parse_time(name, now)
    if at is None:
        return _read_file(paths, name)
    # The last row by then held at that time. What was before the first one nobody knows; that has to do.
    return _read_row(paths, lambda rows: next((row for row in reversed(rows) if row.at <= at), rows[0]))


def _find_row(rows: "list[Row]", number: int) -> "Row":
    found = next((row for row in rows if row.id == number), None)
    if found is None:
        raise UsageError(
            f"the history has no row {number}; its first is {rows[0].id}, its last {rows[-1].id}",
            "python3 state_tracker.py --history lists them",
        )
    return found


def _read_row(paths: Paths, choose: "Callable[[list[Row]], Row]") -> Side:
    def read(database: "Database") -> Side | None:
        rows = database.read_rows()
        row = choose(rows) if rows else None
        return Side(format_utc(row.at), row.id, None, database.read_texts(row)) if row is not None else None

    side = ask(paths, read)
    if side is None:
        message = f"{paths.base} has no history yet"
        raise OperationError(message, "the first report on a config, a model or a version begins it")
    return side


def _read_file(paths: Paths, name: str) -> Side:
    try:
        path = find_argument(paths, name)
    except OperationError as error:
        hint = f"times are said as {HOW_TO_SAY}, rows as #12"
        raise UsageError(f"{name!r} is no time, no row and no file", hint) from error
    document = read_json(path) if path.is_file() else None
    texts = _parts_of_any(document)
    if document is None or texts is None:
        raise UsageError(f"{name!r} is no state document", "to save one: python3 state_tracker.py --json > FILE")
    return Side(str(document.get("last_updated")), None, name, texts)


def _parts_of_any(document: Json | None) -> dict[str, str] | None:
    """The parts of what may be a state document; None if it is not."""
    if document is None or not isinstance(document.get("current_model"), dict):
        return None
    try:
        return dump_parts(split(document))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
