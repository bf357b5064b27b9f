"""``status/saved_trees.cache``: what the last report found in thousands of versions and backups, for the next one.

A cache: it may be lost, torn or damaged at any time. What does not match its checksum is as if it were not there, and
so is what another state of the toolkit's code wrote.

A line with a CRC-32 of header and columns, and the lengths of both; the header, in JSON; the columns, which are what
every report needs of each shelf; and at the end a card for each tree, read only when somebody asks for that tree.
"""

import json
import os
from array import array
from binascii import crc32
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from guardrails.report.parts import Rows
from guardrails.state_io import SCHEMA_VERSION, replace_cache

FIRST_LINE = b"%08x %08x %08x\n"
FIRST_LINE_BYTES = 27


class Summary(NamedTuple):
    """What all trees of a shelf amount to."""

    kept: int
    bytes: int
    # indices
    damaged: list[int]
    # of kept versions
    rows: Rows


class Columns(NamedTuple):
    """One value a tree, oldest first."""

    ids: list[str]
    # what the stat of its metadata.json was known by
    marks: "array[int]"
    # the names of their sets of files, one after the other
    contents: str


class Cards(Protocol):
    """What is known of each tree; None where that is damaged."""

    def __getitem__(self, index: int) -> bytes | None: ...

    def read_all(self) -> Sequence[bytes | None]: ...


class StoredShelf(NamedTuple):
    """A shelf as a report found it; ``mark`` is what the stat of its folder was known by, None if that is not sure."""

    folder: str
    mark: int | None
    stages: list[str]
    # indices of trees that have to be looked at in any case, and of those whose model/ is no folder
    unsure: list[int]
    bare: list[int]
    columns: Columns
    summary: Summary
    cards: Cards


class PackedCards:
    """Cards that were made just now."""

    def __init__(self, cards: Sequence[bytes]) -> None:
        self._cards = cards

    def __getitem__(self, index: int) -> bytes:
        return self._cards[index]

    def read_all(self) -> Sequence[bytes]:
        return self._cards


class FiledCards:
    """Cards in the cache, which stays open for them: another report may replace it meanwhile."""

    def __init__(self, file: "OpenFile", start: int, ends: "array[int]") -> None:
        self._file = file
        self._start = start
        self._ends = ends

    def __getitem__(self, index: int) -> bytes | None:
        start = self._ends[index - 1] if index else 0
        return check(self._file.read(self._ends[index] - start, self._start + start))

    def read_all(self) -> Sequence[bytes | None]:
        content = self._file.read(self._ends[-1], self._start) if self._ends else b""
        starts = [0, *self._ends][:-1]
        return [check(content[start:end]) for start, end in zip(starts, self._ends, strict=True)]


class OpenFile:
    """A file for reading, closed when nobody needs it any more."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, length: int, start: int) -> bytes:
        """Up to ``length`` bytes; none if they cannot be read."""
        try:
            return os.pread(self._descriptor, length, start)
        except (OSError, ValueError, OverflowError):
            return b""


def check(card: bytes) -> bytes | None:
    """The card without its checksum, if that is right."""
    return card[8:] if card[:8] == b"%08x" % crc32(card[8:]) else None


def load_shelves(path: Path, stamp: str) -> dict[str, StoredShelf]:
    """The shelves by name; empty unless the cache is whole and has the same ``stamp``."""
    try:
        return _parse(OpenFile(path), stamp)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}


def _parse(file: OpenFile, stamp: str) -> dict[str, StoredShelf]:
    checksum, start, columns_bytes = (int(number, 16) for number in file.read(FIRST_LINE_BYTES, 0).split())
    content = file.read(start + columns_bytes, FIRST_LINE_BYTES)
    if crc32(content) != checksum:
        return {}
    header = json.loads(content[:start])
    if (header["version"], header["stamp"]) != (SCHEMA_VERSION, stamp):
        return {}
    shelves = {}
    cards_start = FIRST_LINE_BYTES + start + columns_bytes
    for name, entry in header["shelves"].items():
        parts = []
        for size in entry["sizes"]:
            parts.append(content[start : start + size])
            start += size
        ids, marks, contents, ends, rows = parts
        columns = Columns(ids.decode("ascii").split(), array("q", marks), contents.decode("ascii"))
        summary = Summary(rows=Rows(rows.decode("ascii"), entry["rows_checksum"]), **entry["summary"])
        cards = FiledCards(file, cards_start, array("q", ends))
        shelves[name] = StoredShelf(columns=columns, summary=summary, cards=cards, **entry["shelf"])
        cards_start += entry["cards_bytes"]
    return shelves


def save_shelves(path: Path, stamp: str, shelves: Mapping[str, StoredShelf]) -> None:
    """Replace the cache, in one step but not durably.

    Raises:
        OSError: it cannot be written.
    """
    columns: list[bytes] = []
    cards: list[bytes] = []
    entries: dict[str, Any] = {}
    for name, shelf in shelves.items():
        ends = array("q")
        position = 0
        for card in shelf.cards.read_all():
            # One that is damaged stays so, and is looked up on the disk again.
            cards.append(b"%08x%b" % (crc32(card), card) if card is not None else b"damaged")
            position += len(cards[-1])
            ends.append(position)
        summary = shelf.summary._asdict()
        rows = summary.pop("rows")
        texts = (" ".join(shelf.columns.ids), shelf.columns.contents, rows.text)
        ids, contents, lines = (text.encode("ascii") for text in texts)
        parts = [ids, shelf.columns.marks.tobytes(), contents, ends.tobytes(), lines]
        columns += parts
        entries[name] = {
            "shelf": {key: getattr(shelf, key) for key in ("folder", "mark", "stages", "unsure", "bare")},
            "summary": summary,
            "rows_checksum": rows.checksum,
            "sizes": [len(part) for part in parts],
            "cards_bytes": position,
        }
    header = json.dumps({"version": SCHEMA_VERSION, "stamp": stamp, "shelves": entries}).encode("ascii")
    checked = b"".join([header, *columns])
    first_line = FIRST_LINE % (crc32(checked), len(header), len(checked) - len(header))
    replace_cache(path, b"".join([first_line, checked, *cards]))
