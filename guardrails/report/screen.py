"""One state document, and what a live view needs besides, as lines that fit a screen.

Nothing is wrapped: what is too long is cut, and where rows are few the least important lines give way.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from guardrails.cli import show_name, symbol
from guardrails.report.findings import SEVERITIES
from guardrails.report.terminal_text import count_cells, cut, draw_bar, draw_curve
from guardrails.report.text import COLOURS, Style, plain_style
from guardrails.report.values import Json
from guardrails.report.words import group_digits, say_age, say_seconds

# The screen that everything is made for; larger ones show more of the curve, the warnings and the versions.
ROWS = 24
COLUMNS = 79
MOST_CURVE_ROWS = 12
ROWS_OF_A_WARNING = 2
HOW_TO_SEE_ALL = "python3 state_tracker.py --check"
# Statuses in which there is a run to show.
WITH_A_RUN = ("training", "paused", "stopping", "stopped", "error")

Piece = tuple[str, dict[str, Any]]


class Sight(NamedTuple):
    """What one look at a base dir saw; the document is as every other form shows it."""

    base: str
    document: Json
    now: float
    # the version that current_model/ came from, if any
    version: str | None
    data_name: str | None
    phase: str | None
    losses: Sequence[tuple[int, float]]


class Line(NamedTuple):
    """``weight`` tells which lines give way first: the heaviest."""

    pieces: list[Piece]
    weight: int


def draw_screen(
    sight: Sight, columns: int | None = None, rows: int | None = None, style: Style = plain_style
) -> list[str]:
    """The lines of a screen of that size, each at most ``columns`` cells wide; without a size, all of all."""
    warnings = sight.document["warning_details"]
    needed = 1 + ROWS_OF_A_WARNING if warnings and rows is not None and rows > ROWS_OF_A_WARNING else 0
    curve_rows = 1 if rows is None else min(MOST_CURVE_ROWS, max(1, (rows - ROWS) // 3))
    lines = list(_describe(sight, columns, curve_rows))
    if rows is not None:
        lines = _drop_heaviest(lines, max(rows - needed, 1))
    below = list(_list_warnings(warnings, None if rows is None else rows - len(lines)))
    if rows is not None and len(sight.document["versions"]) > 1:
        _add_versions(lines, sight.document["versions"], rows - len(lines) - len(below))
    return [_render(line.pieces, columns, style) for line in (*lines, *below)][:rows]


def _drop_heaviest(lines: list[Line], count: int) -> list[Line]:
    """At most ``count`` lines; of equal ones the last go first."""
    order = sorted(range(len(lines)), key=lambda index: (lines[index].weight, index))
    return [lines[index] for index in sorted(order[:count])]


def _render(pieces: list[Piece], columns: int | None, style: Style) -> str:
    """The pieces in their styles, cut where they are too wide together."""
    kept = cut("".join(text for text, _ in pieces), columns)
    shown, position = [], 0
    for index, (text, look) in enumerate(pieces):
        end = len(kept) if index == len(pieces) - 1 else position + len(text)
        if part := kept[position:end]:
            shown.append(style(part, **look) if look else part)
        position = end
    return "".join(shown)


def _heading(name: str, *rest: Piece | str) -> list[Piece]:
    return [(f"{name}:", {"bold": True}), *((one, {}) if isinstance(one, str) else one for one in rest)]


def _describe(sight: Sight, columns: int | None, curve_rows: int) -> Iterator[Line]:
    document = sight.document
    yield Line(_make_title(sight, columns), 3)
    counts = [sum(one["severity"] == severity for one in document["warning_details"]) for severity in SEVERITIES]
    found = ", ".join(f"{count} {name}" for count, name in zip(counts, SEVERITIES, strict=True) if count)
    found = found.replace(" warning", " warnings" if counts[1] > 1 else " warning")
    verdict = (document["verdict"], {"fg": COLOURS[document["verdict"]], "bold": True})
    yield Line(_heading("VERDICT", " ", verdict, f" ({found})" if found else ""), 0)
    yield Line([], 9)
    yield Line(_heading("MODEL", f" {_describe_model(sight)}"), 1)
    versions = document["versions"]
    newest = f", newest {_describe_version(versions[-1])}" if versions else ""
    yield Line(_heading("VERSIONS", f" {group_digits(len(versions))} saved{newest}"), 6)
    yield from _describe_training(sight, columns, curve_rows)
    waiting = {state: count for state, count in document["queue"].items() if count}
    queue = ", ".join(f"{group_digits(count)} {state}" for state, count in waiting.items()) or "empty"
    yield Line(_heading("QUEUE", f" {queue}"), 4)
    running = document["daemon_running"]
    state = ("Running", {"fg": "green"}) if running else ("Stopped", {"fg": "yellow"})
    yield Line(_heading("DAEMON", " ", state), 3)
    disk = document["disk_space"]
    share = f"{disk['used_percent']}% used"
    free = f"{group_digits(disk['available_gb'])} GB free of {group_digits(disk['total_gb'])} GB, {share}"
    yield Line(_heading("DISK", f" {free} ", (draw_bar(disk["used_percent"] / 100, 20), {})), 2)
    kept = ", ".join(f"{name.removesuffix('_gb')} {size:,.2f} GB" for name, size in document["storage"].items())
    yield Line(_heading("STORAGE", f" {kept}"), 8)
    if document["gpu"] is not None:
        yield Line(_heading("GPU", f" {_describe_gpu(document['gpu'])}"), 5)
    for pending in document["pending"][:2]:
        yield Line(_heading("PENDING", f" {show_name(pending)}"), 5)
    yield Line([], 9)
    yield Line(_heading("WARNINGS", f" {len(document['warning_details']) or 'none'}"), 1)


def _make_title(sight: Sight, columns: int | None) -> list[Piece]:
    name = sight.document["config"]["model_name"]
    left = show_name(f"{name} in {sight.base}" if name else sight.base)
    right = sight.document["last_updated"]
    if columns is None:
        return [(f"{right} {left}", {"bold": True})]
    room = columns - len(right) - 2
    if room < len(right):
        return [(right, {"bold": True})]
    left = cut(left, room)
    return [(left, {"bold": True}), (" " * (columns - count_cells(left) - len(right)) + right, {})]


def _describe_model(sight: Sight) -> str:
    model = sight.document["current_model"]
    if not model["exists"]:
        return f"none; it was {sight.version}" if sight.version else "none, a fresh start"
    parts = [
        sight.version or "no version",
        f"{group_digits(model['training_steps'])} steps",
        f"{model['size_gb']:.2f} GB",
        "" if model["has_adapter"] else "no adapter",
        f"trained {_tell_age(model['last_training'], sight.now)}" if model["last_training"] else "",
    ]
    return ", ".join(filter(None, parts))


def _tell_age(stamp: str, now: float) -> str:
    return say_age(stamp, now) or stamp


def _describe_version(version: Json) -> str:
    return f"{version['id']} {show_name(version['description']) or '(no description)'} ({version['date']})"


def _describe_training(sight: Sight, columns: int | None, curve_rows: int) -> Iterator[Line]:
    training = sight.document["training_status"]
    status = training["status"]
    has_run = status in WITH_A_RUN and training["run_total_steps"] > 0
    doing = f" {show_name(sight.data_name)}" if sight.data_name and status in WITH_A_RUN else ""
    doing += f" ({sight.phase})" if sight.phase and sight.phase != status else ""
    steps, evaluations = (
        f"{group_digits(training[key])} {name}{'' if training[key] == 1 else 's'}"
        for key, name in (("current_step", "step"), ("total_evals", "evaluation"))
    )
    age = f", {_tell_age(training['last_update'], sight.now)}" if training["last_update"] else ""
    colour = {"training": "green", "error": "red"}.get(status, "yellow" if status in WITH_A_RUN else None)
    told = f"{doing}, {steps}, {evaluations}{age}"
    yield Line(_heading("TRAINING", " ", (status, {"fg": colour} if colour else {}), told), 1)
    if has_run:
        done, total = training["run_step"], training["run_total_steps"]
        left = training["eta_seconds"]
        words = f" {group_digits(done)} of {group_digits(total)} steps, {100 * done // total}%"
        words += "" if left is None else f", {say_seconds(left)} left"
        bar = draw_bar(min(max(done, 0), total) / total, max(10, (columns or COLUMNS) - len(words) - 4))
        yield Line([("   ", {}), (bar, {"fg": "green"}), (words, {})], 1)
    loss = training["loss"]
    if not has_run and not sight.losses:
        return
    known = "not known yet" if loss is None else f"{loss:.4g}"
    if not has_run:
        known = f"of the last run, {sight.losses[-1][1]:.4g} at its end"
    label = f"   Loss: {known}"
    start = f" from {sight.losses[0][1]:.4g} at step {group_digits(sight.losses[0][0])}" if sight.losses else ""
    room = (columns or COLUMNS) - 4 - (0 if curve_rows > 1 else len(label) + len(start))
    curve = draw_curve([loss for _, loss in sight.losses], max(room, 8), curve_rows)
    if curve_rows == 1:
        drawn = [(f" {curve[0]}", {"fg": "cyan"})] if curve else []
        yield Line([(label + start, {}), *drawn], 2)
        return
    yield Line([(label + start, {})], 2)
    for row in curve:
        yield Line([("   ", {}), (row, {"fg": "cyan"})], 7)


def _describe_gpu(gpu: Json) -> str:
    memory = f"{gpu['memory_used_gb']} of {gpu['memory_total_gb']} GB"
    return f"{gpu['count']} x {show_name(gpu['name'])}, {memory}, {gpu['utilization_percent']}% busy"


def _list_warnings(warnings: Sequence[Json], rows: int | None) -> Iterator[Line]:
    """The worst ones, each with its command, and how many more there are."""
    most = len(warnings) if rows is None else max(rows, 0) // ROWS_OF_A_WARNING
    if most < len(warnings):
        most = max(((rows or 0) - 1) // ROWS_OF_A_WARNING, 0)
    bullet = symbol("•", "*")
    for warning in warnings[:most]:
        look = {"fg": COLOURS[warning["severity"]]}
        yield Line([(f"   {bullet} ", look), (show_name(f"[{warning['category']}] {warning['message']}"), {})], 0)
        yield Line([(show_name(f"     Fix: {warning['hint']}"), {})], 0)
    if most < len(warnings):
        yield Line([(f"   {len(warnings) - most} more: {HOW_TO_SEE_ALL}", {})], 0)


def _add_versions(lines: list[Line], versions: Sequence[Json], rows: int) -> None:
    """Fill free rows below the line of the versions with those before the newest."""
    place = next((index for index, line in enumerate(lines) if line.pieces and line.pieces[0][0] == "VERSIONS:"), None)
    if place is not None and rows > 0:
        older = versions[-2 : -2 - rows : -1]
        lines[place + 1 : place + 1] = [Line([(f"   {_describe_version(one)}", {})], 8) for one in older]
