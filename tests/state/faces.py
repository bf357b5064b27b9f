"""The faces of a state document, read back by what reads them elsewhere."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

# label=value[unit][;warn[;crit[;min[;max]]]] of the Monitoring Plugins guidelines; labels here need no quotes.
DATUM = re.compile(r"(\w+)=(U|-?\d+(?:\.\d+)?)(s|%|B|)((?:;[-\d.:~@]*){0,4})")
LINE = re.compile(r"TRAINING (OK|WARNING|CRITICAL) - ([ -~]+?) \| ([ -~]+)")


class Figure(NamedTuple):
    """One performance datum; ``value`` is None where it says that it is not known."""

    value: float | None
    unit: str
    warn: str = ""
    crit: str = ""
    least: str = ""
    most: str = ""


class Status(NamedTuple):
    """A plugin's output."""

    state: str
    text: str
    figures: dict[str, Figure]


def read_nagios(line: str) -> Status:
    """A plugin's output as a monitor splits it; fails on anything that is not to the letter."""
    assert "\n" not in line
    match = LINE.fullmatch(line)
    assert match, line
    assert "|" not in match[2]
    figures = {}
    for datum in match[3].split(" "):
        parts = DATUM.fullmatch(datum)
        assert parts, datum
        assert parts[1] not in figures, datum
        value = None if parts[2] == "U" else float(parts[2])
        figures[parts[1]] = Figure(value, parts[3], *parts[4].split(";")[1:])
    return Status(match[1], match[2], figures)


def is_alarm(limit: str, value: float) -> bool:
    """Whether a limit of the guidelines alarms at ``value``: ``10:`` below 10, ``0`` above 0 or below it."""
    if not limit:
        return False
    least, colon, most = limit.partition(":")
    if not colon:
        least, most = "0", least
    return value < float(least) or (most != "" and value > float(most))


def read_metrics(text: str, base: Path | str) -> dict[str, list[Sample]]:
    """The samples of a metrics file by name; fails on duplicates, time stamps and whatever the collector refuses."""
    found: dict[str, list[Sample]] = {}
    seen = set()
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type == "gauge", family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in seen, key
            seen.add(key)
            assert sample.timestamp is None
            assert sample.labels["base_dir"] == str(base)
            labels = {name: value for name, value in sample.labels.items() if name != "base_dir"}
            found.setdefault(sample.name, []).append(sample._replace(labels=labels))
    return found


def read_report(lines: Iterable[str]) -> dict[str, dict[str, str]]:
    """The full report: what follows each section's name (under the empty label), its fields, and its other lines."""
    sections: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    for line in lines:
        if heading := re.fullmatch(r"([A-Z][A-Z ]+):(?: (.*))?", line):
            section = sections.setdefault(heading[1], {"": heading[2] or ""})
        elif field := re.fullmatch(r"   (?:[^\w\s] )?([A-Z][\w ]*): (.*)", line):
            section[field[1]] = field[2]
        elif line:
            section[line.strip()] = ""
    return sections
