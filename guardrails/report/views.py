"""The forms of a report that look back, ``--history`` and ``--diff``: each as one JSON document and as lines."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from guardrails.cli import print_json, show_name
from guardrails.errors import DamagedStateError, UsageError
from guardrails.paths import Paths
from guardrails.report.diff import explain, find_differences
from guardrails.report.document import update_document
from guardrails.report.faces import print_lines
from guardrails.report.history_text import diff_document, diff_lines, history_lines, history_rows
from guardrails.report.moments import parse_since
from guardrails.report.parts import Json
from guardrails.report.past import choose_sides, read_entries
from guardrails.report.text import Style

MOST_SIDES = 2


class Request(NamedTuple):
    """What was asked for: the form, from when on, and what is to be compared."""

    form: str
    since: float | None
    sides: tuple[str, ...]
    now: float


class View(NamedTuple):
    """What a form shows, for programs and for people."""

    document: object
    lines: Iterable[str]


def make_request(form: str | None, since: str | None, sides: tuple[str, ...]) -> Request:
    """What a command line asks for, wrong in itself or not; nothing else is looked at.

    Raises:
        UsageError: ``since`` is no time, something belongs to another form, or there are too many sides.
    """
    if since is not None and form != "history":
        raise UsageError("--since is for --history", "python3 state_tracker.py --history --since 7d")
    if sides and form != "diff":
        raise UsageError(f"unexpected argument {sides[0]!r}", "python3 state_tracker.py --help")
    if len(sides) > MOST_SIDES:
        raise UsageError(f"--diff compares two, not {len(sides)}", "python3 state_tracker.py --diff A B")
    now = time.time()
    return Request(str(form), parse_since(since, now) if since is not None else None, sides, now)


def print_past(request: Request, paths: Paths, document: Json, style: Style, *, as_json: bool) -> Json:
    """Print the form. The report's document, which is a new one where the history turned out to be damaged.

    Raises:
        UsageError: a side is no time, no row and no document.
        OperationError: there is no history.
        DamagedStateError: the history is of a newer toolkit, or it is damaged and cannot be set aside.
        OSError: the history cannot be read.
    """
    make = VIEWS[request.form]
    try:
        view = make(request, paths, document, style)
    except DamagedStateError:
        # It was set aside by that, and the next report begins it anew.
        document = update_document(paths)
        view = make(request, paths, document, style)
    for detail in document["warning_details"]:
        # What a look back should not be read without.
        if detail["id"] in ("history-damaged", "history-unwritable"):
            sys.stderr.write(f"note: {show_name(detail['message'])}\n")
    if as_json:
        print_json(view.document)
    else:
        print_lines(view.lines)
    return document


def _history(request: Request, paths: Paths, _: Json, style: Style) -> View:
    entries = read_entries(paths, request.since)
    return View(history_rows(entries), history_lines(entries, style))


def _diff(request: Request, paths: Paths, document: Json, style: Style) -> View:
    first, second = choose_sides(paths, document, request.sides, request.now)
    changes = explain(find_differences(first.texts, second.texts))
    return View(diff_document(first, second, changes), diff_lines(first, second, changes, style))


VIEWS: dict[str, Callable[[Request, Paths, Json, Style], View]] = {"history": _history, "diff": _diff}
