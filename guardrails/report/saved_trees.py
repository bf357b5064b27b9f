"""A version or a backup as it lies on the disk: what its metadata say, and whether its files are as they say.

Names and sizes are compared, never bytes. ``look`` keeps the stat of every file and folder that the answer came from,
so that a later report can tell by stats alone that it would find the same.
"""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from guardrails.errors import DamagedStateError
from guardrails.report.digest import digest
from guardrails.report.values import Json, integer, text, timestamp, to_gb
from guardrails.signature import is_settled
from guardrails.state_io import format_utc, read_json

RECORD = "metadata.json"
# Of the metadata a report needs these; the rest is long.
KEPT_KEYS = (
    "created_at",
    "description",
    "kind",
    "parent",
    "removed_at",
    "total_evals",
    "training_steps",
    "verified_at",
    "version",
)
# What tells whether something is as it was. Of the record size, mtime_ns, ctime_ns and inode; of a folder the same but
# the size; of any other file size and inode, which is all that a report has of it, and its ctime changes when another
# version is linked to it.
Seen = dict[str, list[int]]


class SavedTree:
    """One version or backup; ``problems`` is empty when it is as its metadata say.

    ``metadata`` is in short (``KEPT_KEYS``) and empty where none can be read. ``seen`` has what each file and folder
    below ``folder`` is known by, by relative path, folders with a slash at the end. ``is_sure`` is False where the next
    report has to look at everything again, because something could not be read or was changed just now.
    """

    __slots__ = ("card", "content", "id", "is_sure", "line", "metadata", "parent", "problems", "removed", "seen")

    def __init__(self, identifier: str, parent: Path) -> None:
        self.id = identifier
        self.parent = parent
        self.metadata: Json = {}
        # Stands for the set of paths and hashes in the metadata.
        self.content = ""
        self.problems: list[str] = []
        self.removed = False
        self.seen: Seen = {}
        self.is_sure = False
        # Its entry in the state document, as text.
        self.line = ""
        # All this as the cache has it, once it was asked for.
        self.card: bytes | None = None

    @property
    def folder(self) -> Path:
        return self.parent / self.id

    def list_files(self) -> Iterator[tuple[str, int, int]]:
        """Path, bytes and inode of each of its files."""
        return ((path, known[0], known[-1]) for path, known in self.seen.items() if not is_folder_name(path))

    @property
    def is_verified(self) -> bool:
        """Whether it was read back from the disk when it was made, as a backup is."""
        return timestamp(self.metadata.get("verified_at")) is not None

    def read_metadata(self) -> Json:
        """All of its metadata, as they are now; empty where they cannot be read."""
        try:
            return read_json(self.folder / RECORD) or {}
        except DamagedStateError:
            return {}

    def find_device(self) -> int:
        """The file system that the files are on; 0 if they are gone."""
        try:
            return os.stat(self.folder / "model").st_dev
        except OSError:
            return 0

    def created_at(self) -> str:
        """When it was made: as recorded, else by the stamp of its folder."""
        recorded = timestamp(self.metadata.get("created_at"))
        if recorded is not None:
            return recorded
        try:
            return format_utc(os.stat(self.folder).st_mtime)
        except OSError:
            return format_utc(0)


def look(identifier: str, parent: Path, base: Path) -> SavedTree:
    """Read the metadata of one tree in ``parent`` and hold names and sizes of its files against it."""
    tree = SavedTree(identifier, parent)
    folder = tree.folder
    now_ns = time.time_ns()
    # The stats before what they stand for, so that whatever changes meanwhile shows in the next ones.
    tree.seen, is_whole = _take_stats(folder)
    try:
        metadata = read_json(folder / RECORD)
    except DamagedStateError as error:
        tree.problems.append(error.message.replace(f"{base}/", ""))
        metadata = {}
        # Another user, or the next try, may be able to read it.
        is_whole &= not isinstance(error.__cause__, OSError)
    else:
        if metadata is None:
            tree.problems.append(f"{RECORD} is missing")
    has_model = tree.find_device() != 0
    if not has_model and metadata and metadata.get("removed_at"):
        tree.removed = True
    elif not has_model:
        tree.problems.append("its folder model/ is missing")
    if metadata is not None:
        tree.metadata = {key: metadata[key] for key in KEPT_KEYS if isinstance(metadata.get(key), str | int)}
        tree.content = name_content(metadata.get("files"))
        if metadata.get("id") != identifier:
            tree.problems.append(f"{RECORD} is that of {text(metadata.get('id')) or 'something else'}")
        if has_model:
            tree.problems += compare_sizes(tree, metadata.get("files"))
    ctimes = (known[-2] for path, known in tree.seen.items() if is_folder_name(path) or path == RECORD)
    tree.is_sure = is_whole and all(is_settled(ctime, now_ns) for ctime in ctimes)
    return tree


def is_folder_name(path: str) -> bool:
    return path.endswith("/") or not path


def _take_stats(root: Path) -> tuple[Seen, bool]:
    """What every regular file and folder below ``root`` is known by, and whether all of it could be looked at."""
    seen: Seen = {}
    is_whole = True
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            seen[folder] = know(folder, os.stat(os.path.join(root, folder)))
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    path = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{path}/")
                    elif entry.is_file(follow_symlinks=False):
                        seen[path] = know(path, entry.stat(follow_symlinks=False))
        except OSError:
            # Gone since it was listed, or closed to us; the metadata say whether it should be there.
            is_whole = False
    return seen, is_whole


def know(path: str, status: os.stat_result) -> list[int]:
    """What the file or folder at ``path`` within a tree is known by; see ``Seen``."""
    if is_folder_name(path):
        return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    if path == RECORD:
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return [status.st_size, status.st_ino]


def looks_the_same(tree: SavedTree, descriptor: int) -> bool:
    """Whether every stat below the tree is as it was, so that ``look`` would find the same.

    ``descriptor`` is that of the open folder it lies in, which saves a fifth of the time.
    """
    try:
        for path, known in tree.seen.items():
            if know(path, os.stat(f"{tree.id}/{path}", dir_fd=descriptor)) != known:
                return False
        return True
    except OSError:
        return False


def compare_sizes(tree: SavedTree, files: object) -> list[str]:
    """What differs, by name and size alone, between a saved tree and the ``files`` of its metadata."""
    if not isinstance(files, list) or not all(isinstance(f, dict) and isinstance(f.get("path"), str) for f in files):
        return [f"{RECORD} has no list of files"]
    problems = []
    present = {path: size for path, size, _ in tree.list_files()}
    expected = {f"model/{entry['path']}": entry.get("size") for entry in files}
    for path, size in expected.items():
        if path not in present:
            problems.append(f"{text(path)} is missing")
        elif present[path] != size:
            problems.append(f"{text(path)} has {present[path]} bytes instead of {size}")
    extra = sorted(path for path in present if path.startswith("model/") and path not in expected)
    return problems + [f"{text(path)} is not part of it" for path in extra]


def name_content(files: object) -> str:
    """A short name for the set of paths and hashes in the ``files`` of some metadata."""
    entries = [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    pairs = {(text(entry.get("path")), text(entry.get("blake3"))) for entry in entries}
    return digest(repr(sorted(pairs)).encode())


def describe(version: SavedTree) -> Json:
    """The entry of a version in the state document."""
    return {
        "id": version.id,
        "date": version.created_at()[:10],
        "description": text(version.metadata.get("description")),
        "training_steps": integer(version.metadata.get("training_steps")),
        "size_gb": to_gb(total_bytes([version])),
    }


def total_bytes(trees: Iterable[SavedTree]) -> int:
    """What the trees take together; a file that several share by hard link counts once."""
    return sum({inode: size for tree in trees for _, size, inode in tree.list_files()}.values())
