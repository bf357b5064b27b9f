"""What one report leaves to the next, so that it need not find it out again. All of it may be lost at any time.

``status/saved_trees.cache`` is written when a version or backup changed, ``status/report.cache`` by every report: a
CRC-32 in hex, a space, and JSON. Neither is durable.
"""

import json
import os
from binascii import crc32
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from time import time_ns
from typing import TypeVar

from guardrails import __version__
from guardrails.paths import CODE_DIR, Paths
from guardrails.report.shelf import Shelf, Turn
from guardrails.report.shelf_cache import StoredShelf, load_shelves, save_shelves
from guardrails.report.values import Json, integer
from guardrails.signature import is_settled
from guardrails.state_io import dump_json, remove_abandoned_files, replace_cache, take_stat

# What is remembered was found by these, so that an upgrade forgets it.
FINDERS = ("config", "settings", "report/parts", "report/saved_trees", "report/shelf", "report/shelf_cache")

Answer = TypeVar("Answer", int, str | None)


class ReportMemory:
    """What the last report knew, and what this one leaves."""

    def __init__(self, known: Json, stamp: str, shelves: dict[str, StoredShelf]) -> None:
        self._known = known
        self._stamp = stamp
        self.shelves = shelves
        self._answers: Json = {}

    def turn(self, shelf: str) -> Turn:
        """Where this report goes on to look at the trees of a shelf."""
        turn = _section(self._known, "turns").get(shelf)
        is_turn = isinstance(turn, list) and len(turn) == len(Turn())
        return Turn(*(max(0, integer(number)) for number in turn or ())) if is_turn else Turn()

    def ask(self, question: str, key: list[int] | str | None, find: Callable[[], Answer]) -> Answer:
        """What the last report found for the same ``key``, else what ``find`` does; without a key it is not kept."""
        known = _section(self._known, "answers").get(question)
        is_known = key is not None and isinstance(known, dict) and "answer" in known and known.get("key") == key
        answer: Answer = known["answer"] if is_known else find()  # type: ignore[index]
        if key is not None:
            self._answers[question] = {"key": key, "answer": answer}
        return answer

    def previous(self, paths: Paths) -> Json | None:
        """``last_updated`` and ``warning_details`` of the state file; None if it is not as the last report left it."""
        known = _section(self._known, "document")
        return known if known and known.get("stat") == _stat(paths.system_state) else None

    def leave(
        self, paths: Paths, shelves: Mapping[str, Shelf], document: Json, stat: list[int] | None, now: float
    ) -> None:
        """Write what the next report may use; ``stat`` is that of the state file with ``document`` in it."""
        details = [{"id": detail["id"], "since": detail["since"]} for detail in document["warning_details"]]
        left = {
            "stamp": self._stamp,
            "turns": {name: shelf.turn for name, shelf in shelves.items()},
            "answers": self._answers,
            "document": {"stat": stat, "last_updated": document["last_updated"], "warning_details": details},
        }
        # A folder that could not be listed may be as it was once it can.
        known = {name: shelf.stored for name, shelf in shelves.items() if shelf.ids or shelf.is_new}
        with suppress(OSError):
            if any(shelf.is_new for shelf in shelves.values()):
                save_shelves(paths.saved_trees, self._stamp, {**self.shelves, **known})
                remove_abandoned_files(paths.saved_trees, now)
            content = dump_json(left, indent=None).encode("ascii")
            replace_cache(paths.report_cache, b"%08x %b" % (crc32(content), content))
            remove_abandoned_files(paths.report_cache, now)


def recall(paths: Paths) -> ReportMemory:
    """What the last report left; nothing of what another state of the toolkit's code found out."""
    stamp = _stamp()
    known: Json = {}
    with suppress(OSError, ValueError, RecursionError):
        content = paths.report_cache.read_bytes()
        if content[:9] == b"%08x " % crc32(content[9:]):
            known = {"left": json.loads(content[9:])}
    left = _section(known, "left")
    return ReportMemory(left if left.get("stamp") == stamp else {}, stamp, load_shelves(paths.saved_trees, stamp))


def mark_folders(folders: Iterable[Path]) -> list[int] | None:
    """What folders are known by as long as nothing comes or goes in them; None if that could happen unseen just now.

    Raises:
        OSError: one of them cannot be looked at.
    """
    now_ns = time_ns()
    mark: list[int] = []
    is_sure = True
    for folder in folders:
        status = os.stat(folder)
        mark += [status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        is_sure &= is_settled(status.st_ctime_ns, now_ns)
    return mark if is_sure else None


def _section(known: Json, name: str) -> Json:
    section = known.get(name)
    return section if isinstance(section, dict) else {}


def _stat(path: Path) -> list[int] | None:
    try:
        return take_stat(os.lstat(path))
    except OSError:
        return None


def _stamp() -> str:
    stats = (_stat(CODE_DIR / "guardrails" / f"{name}.py") for name in FINDERS)
    return f"{__version__} {' '.join(str(hash(tuple(stat or ()))) for stat in stats)}"
