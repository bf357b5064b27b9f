"""The history and a diff as lines for people, the same on a terminal and on a pipe, and as JSON."""

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from guardrails.cli import show_name, symbol
from guardrails.report.diff import Change, show_value
from guardrails.report.past import Entry, Side
from guardrails.report.text import COLOURS, Style, plain_style
from guardrails.state_io import format_utc

LEAST_WIDTH = 80
BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
SPARKS = 44
COLUMNS = ("row", "time (UTC)", "verdict", "model", "steps", "free GB")
LEFT_ALIGNED = ("time (UTC)", "verdict", "model")
NO_ROWS = "no rows"
NO_DIFFERENCES = "no differences"
MARKS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def history_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The rows as one JSON document."""
    return [
        {
            "row": entry.row.id,
            "at": format_utc(entry.row.at),
            "verdict": entry.row.verdict,
            "version": entry.row.version,
            "training_steps": entry.steps,
            "available_gb": entry.free_gb,
            "changes": entry.changes,
        }
        for entry in entries
    ]


def history_lines(entries: Sequence[Entry], style: Style = plain_style) -> Iterator[str]:
    """How disk use and steps went, then a line a row, as wide as the terminal and 80 columns anywhere else."""
    if not entries:
        yield NO_ROWS
        return
    width = max(LEAST_WIDTH, shutil.get_terminal_size((LEAST_WIDTH, 24)).columns)
    if len(entries) > 1:
        yield from _spark_line("disk use", [(entry.row.at, entry.used_gb) for entry in entries], 1, " GB")
        yield from _spark_line("steps", [(entry.row.at, entry.steps) for entry in entries], 0, "")
        yield ""
    cells = [COLUMNS, *(_cells(entry) for entry in entries)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(COLUMNS))]
    space = max(LEAST_WIDTH // 5, width - sum(widths) - len(widths))
    for entry, row in zip((None, *entries), cells, strict=True):
        fields = [
            text.ljust(widths[index]) if COLUMNS[index] in LEFT_ALIGNED else text.rjust(widths[index])
            for index, text in enumerate(row)
        ]
        if entry is None:
            yield style(" ".join([*fields, "what changed"]), bold=True)
            continue
        fields[2] = style(fields[2], fg=COLOURS.get(entry.row.verdict))
        yield " ".join([*fields, _fit(entry.changes, space)]).rstrip()


def _cells(entry: Entry) -> tuple[str, ...]:
    at = format_utc(entry.row.at)
    return (
        str(entry.row.id),
        f"{at[:10]} {at[11:16]}",
        show_name(entry.row.verdict),
        show_name(entry.row.version or "-"),
        "-" if entry.steps is None else str(entry.steps),
        "-" if entry.free_gb is None else f"{entry.free_gb:.1f}",
    )


def _fit(phrases: Sequence[str], width: int) -> str:
    """As many phrases as fit, and how many more there are."""
    # A setting is known by its name.
    phrases = [show_name(phrase).removeprefix("config ") for phrase in phrases]
    for count in range(len(phrases), 0, -1):
        rest = len(phrases) - count
        text = "; ".join(phrases[:count]) + (f" +{rest}" if rest else "")
        if len(text) <= width:
            return text
    dots = symbol("…", "...") + (f" +{len(phrases) - 1}" if len(phrases) > 1 else "")
    return phrases[0][: width - len(dots)] + dots


def _spark_line(name: str, points: Sequence[tuple[int, float | None]], places: int, unit: str) -> Iterator[str]:
    """One line that shows how a number went over the time of the rows, with its least and its largest value."""
    known = [(at, value) for at, value in points if value is not None]
    if known:
        least, largest = min(value for _, value in known), max(value for _, value in known)
        yield f"{name:<9} {sparkline(known, SPARKS)} {least:.{places}f} to {largest:.{places}f}{unit}"


def sparkline(points: Sequence[tuple[float, float]], width: int) -> str:
    """Values at points in time, oldest first, as ``width`` blocks: each shows what held at its end."""
    blocks = symbol(BLOCKS, PLAIN_BLOCKS)
    start, end = points[0][0], points[-1][0]
    least, largest = min(value for _, value in points), max(value for _, value in points)
    # What moves by less than a GB, or a step, hardly moves.
    scale = (len(blocks) - 1) / max(largest - least, 1.0)
    shown, position = [], 0
    for column in range(1, width + 1):
        limit = start + (end - start) * column / width
        while position + 1 < len(points) and points[position + 1][0] <= limit:
            position += 1
        shown.append(blocks[round((points[position][1] - least) * scale)])
    return "".join(shown)


def diff_document(first: Side, second: Side, changes: Sequence[Change]) -> dict[str, Any]:
    """A diff as one JSON document."""
    return {
        "from": {"at": first.at, "row": first.row, "file": first.file},
        "to": {"at": second.at, "row": second.row, "file": second.file},
        "changes": [
            {"change": change.kind, "path": change.path, "old": change.old, "new": change.new} for change in changes
        ],
    }


def diff_lines(first: Side, second: Side, changes: Sequence[Change], style: Style = plain_style) -> Iterator[str]:
    """What is compared, then a line a change: ``+`` what came, ``-`` what went, ``~`` what is another now."""
    yield f"from {_name_side(first)}"
    yield f"to   {_name_side(second)}"
    if not changes:
        yield NO_DIFFERENCES
    for change in changes:
        mark, colour = MARKS[change.kind]
        yield style(mark, fg=colour) + " " + show_name(f"{change.path}{_tell(change)}")


def _name_side(side: Side) -> str:
    name = f"row {side.row}" if side.row is not None else show_name(side.file) if side.file is not None else "now"
    return f"{name}, {show_name(side.at)}"


def _tell(change: Change) -> str:
    """What a line says after the path."""
    if change.kind == "changed":
        return f": {_in_line(change.old)} -> {_in_line(change.new)}{_by_how_much(change.old, change.new)}"
    value = change.new if change.kind == "added" else change.old
    if change.list_name == "versions" and isinstance(value, dict):
        size = value.get("size_gb")
        return f": {value.get('description')} ({value.get('date')}, {value.get('training_steps')} steps, {size} GB)"
    if change.list_name == "warning_details" and isinstance(value, dict):
        return f": [{value.get('category')}] {value.get('message')} ({value.get('severity')})"
    return "" if value == {} else f": {_in_line(value)}"


def _in_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {show_value(one)}" for key, one in value.items())
    return show_value(value)


def _by_how_much(old: Any, new: Any) -> str:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new)):
        return ""
    return f" ({round(new - old, 2):+})"
