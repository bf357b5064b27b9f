"""A state document in parts that change one by one, and which of their changes deserve a row of the history.

A part is a section (``config``), a value at the top (``verdict``) or one entry of a list with ids (``versions/v001``).
Every report starts here, so this imports next to nothing.
"""

import json
from binascii import crc32
from typing import Any, NamedTuple

Json = dict[str, Any]
# name -> value; of a list with ids the parts ``LIST/ID``, and ``LIST`` itself, which says that there is such a list
Parts = dict[str, Any]

VERSIONS = "versions"
LISTS = (VERSIONS, "warning_details")
# in the order of the document
LINE_END = ",\n    "
VERSION_KEYS = ("id", "date", "description", "training_steps", "size_gb")
BY_ID = "by id"
BY_MESSAGE = "by message"
# Another in every report, or said by other parts.
LEFT_OUT = {"schema_version", "last_updated", "warnings"}
LEFT_OUT_OF_PARTS = {"id", "warning", "last_update", "eta_seconds", "since"}

# What is written down at once when it changes, beside the ids and severities of findings and training's status.
AT_ONCE = {"verdict", "version", "daemon_running", "current_model", "config", "queue"}
# All else, training's progress above all, is written down this often at most.
MOVING_SECONDS = 300
# What is never a reason for a row; the free space is one by its own rule.
RESTLESS = {"available_gb", "used_percent", "memory_used_gb", "utilization_percent"}
# The free space has moved when it differs by this much, or by this share of it where that is less.
FREE_STEP_GB = 1.0
FREE_STEP_SHARE = 0.05
LEAST_FREE_STEP_GB = 0.1
# A report that ends this long after a later one has seen the past; beyond that the clock was moved.
OVERTAKEN_SECONDS = 60


def split(document: Json) -> Parts:
    """The parts of a document, also of an old one that lacks sections; a guide's document has findings by message."""
    parts: Parts = {}
    for name, value in document.items():
        if name in LISTS:
            parts[name] = BY_ID
            for entry in value:
                parts[f"{name}/{entry['id']}"] = _without_noise(entry)
        elif name not in LEFT_OUT:
            parts[name] = _without_noise(value) if isinstance(value, dict) else value
    if "warnings" in document and "warning_details" not in document:
        parts["warnings"] = BY_MESSAGE
        parts.update((f"warnings/[{category}] {message}", {}) for category, message in document["warnings"])
    return parts


def _without_noise(section: Json) -> Json:
    return {key: value for key, value in section.items() if key not in LEFT_OUT_OF_PARTS}


def dump_parts(parts: Parts) -> dict[str, str]:
    """Each part as compact JSON, the same text for the same value."""
    encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
    return {name: encode(value) for name, value in parts.items()}


def load_part(text: str) -> Any:
    """The value of a part; its text where a damaged disk left no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class Rows(NamedTuple):
    """The entries of the versions as text, one a line, and what they are known by: there may be thousands to read."""

    text: str = ""
    checksum: str = f"{0:08x}"

    def read(self) -> list[Json]:
        """The entries, as they stand in the document."""
        entries: list[Json] = json.loads(f"[{self.text}]")
        return entries


def make_rows(lines: list[str]) -> Rows:
    """The list of these lines, each from ``make_line``."""
    # A sum, because the history does not keep them in order.
    return Rows(LINE_END.join(lines), f"{sum(crc32(line.encode()) for line in lines) & 0xFFFFFFFF:08x}")


def make_line(entry: Json) -> str:
    """One version's line: the same for the same entry, in whatever order its keys are."""
    known = {key: entry[key] for key in VERSION_KEYS if key in entry}
    return json.dumps(known | dict(sorted(entry.items())))


def _checksum_versions(parts: Parts) -> str:
    prefix = f"{VERSIONS}/"
    entries = {name[len(prefix) :]: value for name, value in parts.items() if name.startswith(prefix)}
    # A damaged disk leaves a part that is no object.
    lines = [make_line({"id": name, **(value if isinstance(value, dict) else {})}) for name, value in entries.items()]
    return make_rows(lines).checksum


class Sign:
    """What one report's parts amount to, for telling whether a later report needs a row of its own."""

    __slots__ = ("at", "free_gb", "moving", "settled")

    def __init__(self, at: int, settled: str, moving: str, free_gb: float) -> None:
        self.at = at
        self.settled = settled
        self.moving = moving
        self.free_gb = free_gb

    def is_covered_by(self, last: "Sign") -> bool:
        """Whether the row that ``last`` is the sign of stands for this report, too."""
        age_seconds = self.at - last.at
        if -OVERTAKEN_SECONDS <= age_seconds < 0:
            return True
        if self.settled != last.settled:
            return False
        if 0 <= age_seconds < MOVING_SECONDS:
            return True
        step = max(LEAST_FREE_STEP_GB, min(FREE_STEP_GB, FREE_STEP_SHARE * last.free_gb))
        return self.moving == last.moving and abs(self.free_gb - last.free_gb) < step


def sign(parts: Parts, at: int, rows: Rows | None = None) -> Sign:
    """The sign of a report made at ``at``, in seconds since the epoch; ``rows`` where the parts have no versions."""
    settled: Parts = {VERSIONS: rows.checksum if rows is not None else _checksum_versions(parts)}
    moving: Parts = {}
    for name, value in parts.items():
        if name.startswith(f"{VERSIONS}/"):
            continue
        if name in AT_ONCE:
            settled[name] = value
            continue
        moving[name] = value
        if isinstance(value, dict):
            if name.startswith("warning_details/"):
                settled[name] = value.get("severity")
            elif name == "training_status":
                settled[name] = value.get("status")
            moving[name] = {key: one for key, one in value.items() if key not in RESTLESS}
    disk = parts.get("disk_space")
    free_gb = disk.get("available_gb") if isinstance(disk, dict) else None
    return Sign(at, _checksum(settled), _checksum(moving), float(free_gb) if isinstance(free_gb, int | float) else 0.0)


def _checksum(value: object) -> str:
    return f"{crc32(json.dumps(value, sort_keys=True).encode()):08x}"
