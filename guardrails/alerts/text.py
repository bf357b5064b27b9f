"""What an alert says: plain text that reads in a mail and on a phone, each finding with the command that helps."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.alerts.messenger import Kind, Message
from guardrails.paths import CODE_DIR
from guardrails.report.findings import quote

KINDS: dict[str, Kind] = {"critical": "failure", "warning": "warning", "ok": "success"}
# Of each kind of line; a thousand damaged versions are one message, too.
MOST_LINES = 20
MOST_TITLE = 200
MOST_BODY = 16_000

Json = dict[str, Any]


class Change(NamedTuple):
    """What a check found: findings that are new or got worse, told ones that are gone, and told ones that stand."""

    new: Sequence[Json]
    cleared: Sequence[Json]
    standing: Sequence[Json]


def make_message(document: Json, change: Change, base: Path) -> Message:
    """What changed, and what stands besides; only the latter in a reminder."""
    if change.new:
        headline = _headline([detail["message"] for detail in change.new])
    elif change.cleared:
        headline = f"cleared: {_headline([told['message'] for told in change.cleared])}"
    else:
        headline = f"still: {_headline([detail['message'] for detail in change.standing])}"
    sections = [
        ("NEW:", [line for detail in change.new[:MOST_LINES] for line in _finding_lines(detail)], len(change.new)),
        ("CLEARED:", [_line(told) for told in change.cleared[:MOST_LINES]], len(change.cleared)),
        (
            "STILL STANDING:",
            [line for detail in change.standing[:MOST_LINES] for line in _finding_lines(detail)],
            len(change.standing),
        ),
    ]
    lines = []
    for name, found, count in sections:
        if count:
            more = [f"  and {count - MOST_LINES} more"] if count > MOST_LINES else []
            lines += [name, *found, *more, ""]
    return _message(document, headline, lines, base)


def make_withheld_message(document: Json, most: int, base: Path) -> Message:
    """The last one of a day on which too much changed."""
    headline = f"{most} alerts today, more are withheld until tomorrow (UTC)"
    lines = ["What still stands then comes in one message. max_per_day in the config's alerts sets the cap.", ""]
    return _message(document, headline, lines, base)


def make_test_message(document: Json, base: Path) -> Message:
    """What somebody sees who tries whether alerts arrive."""
    lines = ["This is a test: alerts of this base dir arrive here. Nothing has changed.", ""]
    return _message(document, "test", lines, base)._replace(kind="info")


def read_message(fields: Sequence[str]) -> Message:
    """A message as it was kept."""
    kind, title, body = fields
    return Message(next((known for known in KINDS.values() if known == kind), "info"), title, body)


def merge(message: Message, waiting: Sequence[str] | None) -> Message:
    """A message with what its address did not get before; what is too old for it is cut off."""
    if waiting is None:
        return message
    _, title, body = waiting
    return message._replace(body=_cut(f"{message.body}\n\nNOT DELIVERED BEFORE: {title}\n\n{body}"))


def _cut(body: str) -> str:
    return body if len(body) <= MOST_BODY else f"{body[:MOST_BODY]}\n…"


def _message(document: Json, headline: str, lines: list[str], base: Path) -> Message:
    host, place = one_line(os.uname().nodename), one_line(str(base))
    title = f"Training {document['verdict'].upper()} on {host} {place}: {headline}"
    if len(title) > MOST_TITLE:
        title = f"{title[: MOST_TITLE - 1]}…"
    lines = [
        *lines,
        f"{host} {place}, {document['last_updated']}, verdict {document['verdict']}",
        f"Commands are for the folder {one_line(str(CODE_DIR))}; the whole report:",
        "python3 state_tracker.py --check" + ("" if base == CODE_DIR else f" --base-dir {quote(place)}"),
    ]
    return Message(KINDS[document["verdict"]], title, _cut("\n".join(lines)))


def _headline(messages: Sequence[str]) -> str:
    return one_line(messages[0]) + (f" (and {len(messages) - 1} more)" if len(messages) > 1 else "")


def _finding_lines(detail: Json) -> Iterator[str]:
    worse = f", was {detail['was']}" if "was" in detail else ""
    about = f"{detail['severity']}{worse}, since {detail['since']}, {one_line(detail['id'])}"
    yield f"{_line(detail)} ({about})"
    yield f"    Fix: {one_line(detail['hint'])}"


def _line(detail: Json) -> str:
    return f"  [{detail['category']}] {one_line(detail['message'])}"


def one_line(text: str) -> str:
    """``text`` without what could end a line or a header, or no mail could carry."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
