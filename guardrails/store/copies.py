"""Where the same bytes lie: what heals a damaged file, and what must stay when something is removed."""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.errors import DamagedStateError
from guardrails.manifest import FileEntry, KnownHashes
from guardrails.paths import Paths
from guardrails.state_io import read_json
from guardrails.store.backups import backups_folder, list_backup_ids, read_backup
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata

# Owners that are no version or backup.
LIVE, RETIRED = "current_model/", "models/retired/"


class Copy(NamedTuple):
    """A file that is recorded with certain bytes; ``owner`` is its version or backup, or one of those above."""

    owner: str
    path: Path


class Copies:
    """Every file of every version and backup by the hash that it is recorded with, the newest versions first.

    What is said to be good was read from the disk by this very process.

    Raises:
        DamagedStateError: metadata cannot be read, with ``strict``: where something is about to be removed, what is not
            known may be the copy that is needed.
    """

    def __init__(self, paths: Paths, *, strict: bool) -> None:
        self._by_hash: dict[str, list[Copy]] = {}
        self._hash_of = KnownHashes()
        self._forgotten: set[str] = set()
        folder = backups_folder(paths)
        kept = (version_id for version_id in reversed(list_version_ids(paths)) if is_kept(paths, version_id))
        for version_id in kept:
            self._add(version_id, paths.version(version_id) / "model", lambda v: read_metadata(paths, v), strict)
        for backup_id in reversed(list_backup_ids(folder)):
            self._add(backup_id, folder / backup_id / "model", lambda b: read_backup(folder, b), strict)
        self._add_trees_in_use(paths)

    def _add_trees_in_use(self, paths: Paths) -> None:
        """Trees that others may write to: good enough to heal from, but no copies to rely on."""
        head = _read_lightly(paths.head)
        for owner, root, version_id in (
            (LIVE, paths.current_model, head.get("version")),
            (RETIRED, paths.retired_model, (head.get("retired") or {}).get("version")),
        ):
            if isinstance(version_id, str) and paths.version(version_id).is_dir():
                self._add(owner, root, lambda _, v=version_id: read_metadata(paths, v), False)

    def _add(self, owner: str, root: Path, read: Any, strict: bool) -> None:
        try:
            files = read(owner)["files"]
        except DamagedStateError:
            if strict:
                raise
            return
        for entry in files:
            self._by_hash.setdefault(entry["blake3"], []).append(Copy(owner, root / entry["path"]))

    def good(self, entry: FileEntry, without: Set[str] = frozenset()) -> Iterator[Path]:
        """Files with the bytes of ``entry`` that do not belong to an owner in ``without``."""
        for copy in self._by_hash.get(entry["blake3"], []):
            if copy.owner not in without | self._forgotten and self._is_good(copy.path, entry["blake3"]):
                yield copy.path

    def _is_good(self, path: Path, blake3: str) -> bool:
        try:
            return self._hash_of(path) == blake3
        except OSError:
            return False

    def lacking(self, files: list[FileEntry], without: Set[str] = frozenset()) -> str | None:
        """The first file that has no good copy but those of the owners in ``without``; None if all have one.

        Only versions and backups count: others write to the rest.
        """
        without = {*without, LIVE, RETIRED}
        return next((entry["path"] for entry in files if next(self.good(entry, without), None) is None), None)

    def forget(self, owner: str) -> None:
        """What belongs to ``owner`` counts no more: it was removed."""
        self._forgotten.add(owner)


def _read_lightly(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) or {}
    except DamagedStateError:
        return {}
