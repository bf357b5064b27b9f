"""What a tree of files holds: sizes, BLAKE3 hashes, and stat signatures that spare reading them again."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypedDict

from blake3 import blake3

from guardrails import progress
from guardrails.errors import IntegrityError
from guardrails.signature import Signature, take_signature

__all__ = [
    "FileEntry",
    "KnownHashes",
    "Signature",
    "find_damage",
    "hash_file",
    "list_files",
    "make_manifest",
    "same_content",
    "take_signature",
    "total_size",
]

# Large enough to keep two cores busy, small enough to keep memory flat at any file size.
BLOCK_BYTES = 8 << 20


class FileEntry(TypedDict):
    """One file of a manifest; ``path`` is relative to the tree, with ``/``."""

    path: str
    size: int
    blake3: str


def hash_file(path: Path, *, from_disk: bool = False) -> str:
    """BLAKE3 of a file's bytes in hex.

    Read in blocks, never mapped: the file may be cut short by others meanwhile. ``from_disk`` drops
    the file's pages from the page cache first, so that what is hashed is what the disk holds.
    """
    hasher = blake3(max_threads=blake3.AUTO)
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with open(path, "rb", buffering=0) as file:
        if from_disk:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            progress.advance(count)
    return hasher.hexdigest()


def list_files(root: Path) -> list[str]:
    """Relative paths of all regular files below ``root``, sorted.

    Raises:
        IntegrityError: something in it is neither a regular file nor a folder (a link, a socket):
            a model with one cannot be saved whole.
    """
    found: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                relative = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{relative}/")
                elif entry.is_file(follow_symlinks=False):
                    found.append(relative)
                else:
                    raise IntegrityError(
                        f"{root / relative} is not a regular file", "replace it by the file that it stands for"
                    )
    return sorted(found)


def make_manifest(root: Path) -> list[FileEntry]:
    """Path, size and hash of every file below ``root``, sorted by path."""
    return [
        {"path": path, "size": (root / path).stat().st_size, "blake3": hash_file(root / path)}
        for path in list_files(root)
    ]


class KnownHashes:
    """BLAKE3 of files as the disk holds them, each inode read once: versions share unchanged files."""

    def __init__(self) -> None:
        self._by_inode: dict[tuple[int, int, int, int], str] = {}

    def __call__(self, path: Path) -> str:
        status = path.stat()
        key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if key not in self._by_inode:
            self._by_inode[key] = hash_file(path, from_disk=True)
        return self._by_inode[key]


def find_damage(root: Path, files: Iterable[FileEntry], *, hash_of: Callable[[Path], str] = hash_file) -> list[str]:
    """What in ``root`` differs from its manifest, one sentence a file; empty when all is as recorded.

    Files that the manifest does not name count.
    """
    problems: list[str] = []
    expected = {entry["path"]: entry for entry in files}
    if root.is_symlink():
        return [f"{root} is a symbolic link"]
    try:
        present = set(list_files(root))
    except (FileNotFoundError, NotADirectoryError):
        return [f"{root} is missing"]
    except IntegrityError as error:
        return [error.message]
    for path, entry in expected.items():
        if path not in present:
            problems.append(f"{root / path} is missing")
            continue
        try:
            size = (root / path).stat().st_size
            if size != entry["size"]:
                problems.append(f"{root / path} has {size} bytes instead of {entry['size']}")
            elif hash_of(root / path) != entry["blake3"]:
                problems.append(f"{root / path} has other bytes than were saved")
        except OSError as error:
            problems.append(f"{root / path} cannot be read: {error.strerror}")
    problems.extend(f"{root / path} is not part of it" for path in sorted(present - expected.keys()))
    return problems


def total_size(files: Iterable[FileEntry]) -> int:
    """Bytes of all files together."""
    return sum(entry["size"] for entry in files)


def same_content(one: Iterable[FileEntry], other: Iterable[FileEntry]) -> bool:
    """Whether two manifests name the same files with the same bytes."""
    return {(e["path"], e["size"], e["blake3"]) for e in one} == {(e["path"], e["size"], e["blake3"]) for e in other}
