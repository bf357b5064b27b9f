"""The report as a person reads it on a terminal: aligned, with ages beside times, thousands apart, long lists folded.

What is here for the eye alone is not on a pipe: scripts find there what they found yesterday.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from guardrails.cli import show_name, symbol
from guardrails.report.terminal_text import DOTS, PLAIN_DOTS, count_cells, cut
from guardrails.report.text import COLOURS, Look, Style, describe_version
from guardrails.report.values import Json
from guardrails.report.words import group_digits, say_age, say_seconds

LEAST_COLUMNS = 40
# Of a longer list the oldest few, which everything began with, and the newest are shown.
MOST_VERSIONS = 40
OLDEST_VERSIONS = 3
SEE_ALL = "python3 state_tracker.py --check | less"
WIDEST_DESCRIPTION = 60
# Of a finding's second line, and of its command.
INDENT = 5


class TerminalLook(Look):
    """For a terminal ``columns`` wide, at ``now``."""

    def __init__(self, style: Style, columns: int | None = None, now: float | None = None) -> None:
        super().__init__(style)
        self.columns = max(LEAST_COLUMNS, _measure_terminal() if columns is None else columns)
        self.now = time.time() if now is None else now

    def number(self, value: int) -> str:
        return group_digits(value)

    def gigabytes(self, value: float) -> str:
        return f"{value:,.2f} GB"

    def time(self, stamp: str) -> str:
        age = say_age(stamp, self.now)
        return f"{stamp} ({age})" if age else stamp

    def seconds(self, value: float) -> str:
        return say_seconds(value)

    def fields(self, fields: Iterable[tuple[str, str]]) -> Iterator[str]:
        rows = list(fields)
        width = max(count_cells(label) for label, _ in rows)
        for label, value in rows:
            # To the right, so that label and value stay in one piece.
            yield f"   {' ' * (width - count_cells(label))}{label}: {value}"

    def versions(self, versions: Sequence[Json]) -> Iterator[str]:
        if len(versions) <= MOST_VERSIONS:
            yield from self._align(versions)
            return
        newest = MOST_VERSIONS - OLDEST_VERSIONS
        left_out = versions[OLDEST_VERSIONS:-newest]
        aligned = list(self._align([*versions[:OLDEST_VERSIONS], *versions[-newest:]]))
        yield from aligned[:OLDEST_VERSIONS]
        first, last = left_out[0]["id"], left_out[-1]["id"]
        count = group_digits(len(left_out))
        yield f"   {symbol(DOTS, PLAIN_DOTS)} {count} more, {first} to {last}: {SEE_ALL}"
        yield from aligned[OLDEST_VERSIONS:]

    def _align(self, versions: Sequence[Json]) -> Iterator[str]:
        ids = max((len(version["id"]) for version in versions), default=0)
        sizes = [self.gigabytes(version["size_gb"]) for version in versions]
        size_width = max(map(len, sizes), default=0)
        words = [describe_version(version) for version in versions]
        # Bullet, colon, date, brackets and what is between them.
        room = max(self.columns - ids - size_width - 23, 10)
        width = min(max(map(count_cells, words), default=0), WIDEST_DESCRIPTION, room)
        for version, size, described in zip(versions, sizes, words, strict=True):
            shown = cut(described, room)
            padding = " " * (ids - len(version["id"])), " " * (width - count_cells(shown))
            end = f"({version['date']}, {size:>{size_width}})"
            yield f"   {symbol('•', '*')} {version['id']}:{padding[0]} {shown}{padding[1]} {end}"

    def finding(self, detail: Json) -> Iterator[str]:
        """Wrapped between words; the command below is not, so that it can be copied in one piece."""
        look = {"fg": COLOURS[detail["severity"]]}
        severity, name = f"({detail['severity']},", show_name(detail["id"])
        stands = say_age(detail["since"], self.now).removesuffix(" ago")
        end = [f"{name},", f"for {stands})"] if stands and not stands.endswith(" s") else [f"{name})"]
        words = f"[{detail['category']}] {show_name(detail['message'])}".split(" ")
        for number, line in enumerate(_wrap([*words, severity, *end], self.columns - INDENT)):
            start = self.style(f"   {symbol('•', '*')} ", **look) if number == 0 else " " * INDENT
            before, found, after = line.rpartition(severity)
            shown = f"{before}({self.style(detail['severity'], **look)},{after}" if found else line
            yield f"{start}{shown}"


def _wrap(words: Sequence[str], columns: int) -> list[str]:
    """A word that is too long for a line stays whole."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and count_cells(longer) > columns:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _measure_terminal() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except OSError:
        return 80
