"""The trash: what was taken out of the way, each in a folder of its own that says what it was and why it went.

An entry is ``entry.json`` and ``content`` (a tree or a file). Nothing leaves the trash by itself.
"""

import errno
import os
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from guardrails.errors import DamagedStateError
from guardrails.filesystem import remove_tree
from guardrails.paths import Paths
from guardrails.shapes import find_wrong_key_of_entry
from guardrails.signature import take_signature
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, read_json, utc_now, write_json

# version, backup: deleted by a person; replaced: what stood in the place of something; damaged: healed elsewhere.
Kind = Literal["version", "backup", "replaced", "damaged"]
ENTRY_KEYS = {
    **dict.fromkeys(("kind", "name", "reason", "removed_at"), str),
    "metadata": dict | None,
}


class Entry(NamedTuple):
    """One thing in the trash; ``record`` is None where nothing tells what it was."""

    folder: Path
    record: dict[str, Any] | None

    @property
    def content(self) -> Path:
        return self.folder / "content"

    def describe(self) -> dict[str, Any]:
        """What it is, for a list."""
        record = self.record or {"kind": "-", "name": "-", "removed_at": "-", "reason": "its record is damaged"}
        keys = ("kind", "name", "removed_at", "reason")
        return {"id": self.folder.name, **{key: record[key] for key in keys}, "size": self.size_bytes()}

    def size_bytes(self) -> int:
        """Apparent bytes of the content."""
        if not self.content.is_dir():
            return self.content.stat().st_size if self.content.exists() else 0
        return sum(stat[0] for stat in take_signature(self.content).values())

    def age_seconds(self) -> float:
        """How long it has been in the trash."""
        return time.time() - self.folder.stat().st_mtime


def trash_of_backups(paths: Paths, folder: Path) -> Path:
    """The trash that backups in ``folder`` can be renamed into, which may be on another disk."""
    return paths.trash if folder == paths.backups else folder / ".trash"


def put_in_trash(
    trash: Path, tree: Path, kind: Kind, name: str, reason: str, metadata: dict[str, Any] | None = None
) -> Path:
    """Move a tree or file into the trash, on its own file system; the entry's folder."""
    entry = _make_entry(trash, kind, name, reason, metadata)
    tree.rename(entry / "content")
    fsync_folder(entry)
    return entry


def keep_damaged(trash: Path, file: Path, name: str) -> None:
    """Put a damaged file's bytes into the trash while it keeps its place until the good ones take it."""
    entry = _make_entry(trash, "damaged", name, "its bytes were not those that were saved", None)
    try:
        os.link(file, entry / "content")
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        file.rename(entry / "content")
    fsync_folder(entry)


def _make_entry(trash: Path, kind: Kind, name: str, reason: str, metadata: dict[str, Any] | None) -> Path:
    entry = trash / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(4).hex()}"
    entry.mkdir(parents=True)
    record = {"kind": kind, "name": name, "reason": reason, "removed_at": utc_now(), "metadata": metadata}
    write_json(entry / "entry.json", {"schema_version": SCHEMA_VERSION, **record})
    fsync_folder(trash)
    return entry


def remove_unfinished_entries(trash: Path) -> None:
    """Remove entries that a kill left without content."""
    if trash.is_dir():
        for name in os.listdir(trash):
            if (trash / name).is_dir() and not os.path.lexists(trash / name / "content"):
                remove_tree(trash / name)


def discard(paths: Paths, tree: Path, reason: str) -> None:
    """Remove an empty tree; keep a file, or a tree that holds anything, in the trash."""
    if tree.is_dir() and not take_signature(tree):
        remove_tree(tree)
    else:
        put_in_trash(paths.trash, tree, "replaced", paths.relative(tree), reason)


def list_entries(trash: Path) -> list[Entry]:
    """What lies in the trash, oldest first; entries that a kill left without content are not listed."""
    if not trash.is_dir():
        return []
    return [
        Entry(trash / name, _read_record(trash / name))
        for name in sorted(os.listdir(trash))
        if not name.startswith(".") and os.path.lexists(trash / name / "content")
    ]


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = read_json(folder / "entry.json", ENTRY_KEYS)
    except DamagedStateError:
        return None
    return None if record is None or find_wrong_key_of_entry(record) else record


def find_version(paths: Paths, version_id: str) -> Entry | None:
    """The newest entry that is the model of a deleted version."""
    found: Entry | None = None
    for entry in list_entries(paths.trash):
        record = entry.record or {}
        if (record.get("kind"), record.get("name")) == ("version", version_id):
            found = entry
    return found
