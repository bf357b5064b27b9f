"""Healing in both directions: versions from backups, backups from versions, and either from its own kind.

Damaged bytes are kept in the trash. Everything here is called under the store lock.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.errors import DamagedStateError, GuardrailsError, IntegrityError
from guardrails.filesystem import can_reflink, copy_file, copy_tree, remove_tree, require_space, sync_filesystem
from guardrails.manifest import (
    FileEntry,
    KnownHashes,
    find_damage,
    hash_file,
    make_manifest,
    same_content,
    total_size,
)
from guardrails.paths import VERSION_ID, Paths
from guardrails.report.deep_record import forget
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, set_aside, utc_now, write_json
from guardrails.store.backups import (
    METADATA_KEYS,
    backups_folder,
    list_backup_ids,
    lock_of_backups,
    read_backup,
    verify_backup,
)
from guardrails.store.copies import Copies
from guardrails.store.immutable import lifted
from guardrails.store.trash import keep_damaged, put_in_trash, trash_of_backups
from guardrails.store.version_records import (
    is_kept,
    list_version_ids,
    read_index,
    read_metadata,
    remember_versions,
    summarize,
)
from guardrails.store.versions import (
    FILE_MODE,
    LIVE_FILE_MODE,
    LIVE_FOLDER_MODE,
    put_version_back,
    replaceable,
    unlocked,
    write_metadata,
)

# For the estimate only: a durable copy on one common disk.
COPY_BYTES_PER_SECOND = 500e6
# What tells a version from another base dir's of the same name.
IDENTITY = ("created_at", "run_id", "description", "size", "trained_on")
HOW_TO_GO_ON = "model_versioner.py list shows other versions, backup_manager.py list the backups"


class Repair(NamedTuple):
    """What was wrong with a version or backup, and what still is."""

    id: str
    found: list[str]
    left: list[str]


def verify_version(paths: Paths, version_id: str, hash_of: KnownHashes) -> list[str]:
    """What is damaged in a version, read from the disk, its metadata included; empty when all is as saved."""
    try:
        files = read_metadata(paths, version_id)["files"]
    except DamagedStateError as error:
        return [error.message]
    return find_damage(paths.version(version_id) / "model", files, hash_of=hash_of)


def find_backup_damage(folder: Path, backup_id: str) -> list[str]:
    """What is damaged in a backup, read from the disk, its metadata included; empty when all is as saved."""
    try:
        return verify_backup(folder, backup_id)
    except DamagedStateError as error:
        return [error.message]


def repair_version(paths: Paths, version_id: str, copies: Copies, hash_of: KnownHashes) -> Repair:
    """Give a version back the bytes, metadata and modes that it was saved with, as far as a good copy has them."""
    model = paths.version(version_id) / "model"
    found = verify_version(paths, version_id, hash_of)
    if not found and not (found := _find_writable(model)):
        return Repair(version_id, [], [])
    try:
        put_metadata_back(paths, version_id)
        _undo_edit_of_metadata(paths, version_id, hash_of)
        files = read_metadata(paths, version_id)["files"]
        with unlocked(paths.version(version_id)) as staging:
            heal_tree(model, files, copies, staging, paths.trash, version_id, share_from=paths.versions)
    except GuardrailsError as error:
        return Repair(version_id, found, [error.message])
    return Repair(version_id, found, verify_version(paths, version_id, hash_of))


def _find_writable(model: Path) -> list[str]:
    """Whether the tree of a version or backup lost its read-only modes."""
    for folder, _, names in os.walk(model):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            if os.lstat(path).st_mode & 0o222:
                return [f"{path} is not read-only"]
    return []


def repair_backup(paths: Paths, folder: Path, backup_id: str, copies: Copies) -> Repair:
    """Likewise for a backup, whose files are always written anew."""
    model = folder / backup_id / "model"
    found = find_backup_damage(folder, backup_id)
    if not found and not (found := _find_writable(model)):
        return Repair(backup_id, [], [])
    try:
        files = read_backup(folder, backup_id)["files"]
    except DamagedStateError as error:
        if not _rebuild_record(paths, folder, backup_id):
            return Repair(backup_id, found, [error.message])
        return Repair(backup_id, found, find_backup_damage(folder, backup_id))
    try:
        with lock_of_backups(folder).hold(f"repairing {backup_id}"), unlocked(folder / backup_id) as staging:
            heal_tree(model, files, copies, staging, trash_of_backups(paths, folder), backup_id)
    except GuardrailsError as error:
        return Repair(backup_id, found, [error.message])
    return Repair(backup_id, found, find_backup_damage(folder, backup_id))


def repair_gone_version(paths: Paths, version_id: str) -> Repair | None:
    """Make a version again whose very folder is gone, from the newest good backup of it; None if it has no backup.

    Of removed versions the folder stays, with their metadata, so nobody removed it by a command of ours.
    """
    folder, row = backups_folder(paths), read_index(paths).get(version_id)
    found, left = [f"{paths.version(version_id)} is missing"], []
    for backup_id in reversed(list_backup_ids(folder)):
        try:
            backup = read_backup(folder, backup_id)
        except DamagedStateError:
            continue
        known = backup["version_metadata"]
        # A folder that other base dirs may share holds their versions of the same name, too.
        if backup["version"] != version_id or not known or not is_own(paths, folder, known, row):
            continue
        left = find_damage(folder / backup_id / "model", backup["files"], hash_of=KnownHashes())
        if not left:
            put_version_back(paths, known, folder / backup_id / "model")
            return Repair(version_id, found, [])
    return Repair(version_id, found, left) if left else None


def is_own(paths: Paths, folder: Path, known: dict[str, Any], row: dict[str, Any] | None) -> bool:
    """Whether what a backup in ``folder`` knows of a version is of this base dir's; ``row`` is what the index has."""
    return _is_same(known, row) if row else folder == paths.backups


def _is_same(known: dict[str, Any], row: dict[str, Any]) -> bool:
    summary = summarize(known)
    return all(summary.get(key) == row.get(key) for key in IDENTITY)


def list_gone_versions(paths: Paths) -> list[str]:
    """Versions without a folder that the index or a backup knows, oldest first."""
    folder = backups_folder(paths)
    known = set(read_index(paths))
    for backup_id in list_backup_ids(folder):
        with contextlib.suppress(DamagedStateError):
            known.add(read_backup(folder, backup_id)["version"] or "")
    return sorted(known - {"", *list_version_ids(paths)}, key=lambda name: (len(name), name))


def repair_everything(paths: Paths, only: Collection[str] = ()) -> list[Repair]:
    """All versions and backups, or those in ``only``, read from the disk and healed.

    Those that were sound have nothing ``found``. Versions that are gone are made again if they have a backup.
    """
    folder = backups_folder(paths)
    gone = list_gone_versions(paths) if not only else [name for name in only if _is_gone(paths, name)]
    made = [repair for version_id in gone if (repair := repair_gone_version(paths, version_id))]
    copies = Copies(paths, strict=False)
    hash_of = KnownHashes()
    versions = [version_id for version_id in list_version_ids(paths) if _should_have_model(paths, version_id)]
    backups = list_backup_ids(folder)
    again = {repair.id for repair in made}
    chosen = [name for name in (*versions, *backups) if (not only or name in only) and name not in again]
    for name in chosen:
        if name in versions:
            made.append(repair_version(paths, name, copies, hash_of))
        else:
            made.append(repair_backup(paths, folder, name, copies))
    remember_versions(paths)
    forget(paths, {repair.id for repair in made if not repair.left})
    return made


def _is_gone(paths: Paths, name: str) -> bool:
    return VERSION_ID.fullmatch(name) is not None and not paths.version(name).exists()


def _should_have_model(paths: Paths, version_id: str) -> bool:
    """Whether it is no tombstone."""
    with contextlib.suppress(GuardrailsError):
        return is_kept(paths, version_id) or "removed_at" not in read_metadata(paths, version_id)
    return True


def heal_tree(
    root: Path,
    files: list[FileEntry],
    copies: Copies,
    staging: Path,
    trash: Path,
    name: str,
    *,
    share_from: Path | None = None,
    mode: int = FILE_MODE,
) -> list[str]:
    """Replace each damaged file below ``root`` by a good copy, move what does not belong there to the trash.

    Good files are made in the folder ``staging`` first; one below ``share_from`` is linked instead of copied. Returns
    what stays damaged.

    Raises:
        OSError: the disk is full or cannot be written to; each file is the damaged or the good one in full.
    """
    expected = {entry["path"]: entry for entry in files}
    if root.is_symlink():
        put_in_trash(trash, root, "replaced", f"{name}: {root.name}", "it was a link, and no part of what was saved")
    root.mkdir(exist_ok=True)
    for path in _list_leniently(root):
        if path not in expected or not stat.S_ISREG((root / path).lstat().st_mode):
            with lifted(root / path):
                put_in_trash(trash, root / path, "replaced", f"{name}: {path}", "it was not part of what was saved")
    for path, entry in expected.items():
        target = root / path
        if _is_good(target, entry):
            continue
        if target.is_dir():
            put_in_trash(trash, target, "replaced", f"{name}: {path}", "it was not part of what was saved")
        target.parent.mkdir(parents=True, exist_ok=True)
        good = staging / "good"
        if _get_good_file(entry, copies, good, target, share_from=share_from, mode=mode):
            with lifted(target), lifted(good):
                if target.exists():
                    keep_damaged(trash, target, f"{name}: {path}")
                good.rename(target)
            fsync_folder(target.parent)
    sync_filesystem(root)
    return find_damage(root, files)


def _list_leniently(root: Path) -> list[str]:
    """Relative paths of everything below ``root`` but folders, links to folders included."""
    found = []
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in (*names, *links)]
    return found


def _is_good(file: Path, entry: FileEntry) -> bool:
    """Whether the disk holds the bytes of ``entry``; a sector that cannot be read is damage like any other."""
    try:
        return file.is_file() and hash_file(file, from_disk=True) == entry["blake3"]
    except OSError:
        return False


def _get_good_file(
    entry: FileEntry, copies: Copies, good: Path, target: Path, *, share_from: Path | None, mode: int
) -> bool:
    """Whether ``good`` could be made a file with the bytes of ``entry``."""
    for source in copies.good(entry):
        if source == target:
            continue
        if share_from in source.parents:
            with contextlib.suppress(OSError), lifted(source):
                os.link(source, good)
                return True
        if copy_file(source, good, mode) == entry["blake3"]:
            return True
        good.unlink()
    return False


def put_metadata_back(paths: Paths, version_id: str) -> None:
    """Replace a version's unreadable metadata by what a backup knows of it; the damaged file stays beside it.

    Raises:
        DamagedStateError: no backup knows this very version.
    """
    try:
        read_metadata(paths, version_id)
        return
    except DamagedStateError:
        known = _metadata_in_backups(paths, version_id)
        if known is None:
            raise
    _replace_metadata(paths, version_id, known)


def _undo_edit_of_metadata(paths: Paths, version_id: str, hash_of: KnownHashes) -> None:
    """Likewise for metadata that the files do not fit, while they fit what a backup knows of this version."""
    model, folder = paths.version(version_id) / "model", backups_folder(paths)
    metadata = read_metadata(paths, version_id)
    if not find_damage(model, metadata["files"], hash_of=hash_of):
        return
    for backup_id in reversed(list_backup_ids(folder)):
        with contextlib.suppress(DamagedStateError):
            known = read_backup(folder, backup_id)["version_metadata"] or {}
            if known.get("id") == version_id and not find_damage(model, known.get("files") or [], hash_of=hash_of):
                _replace_metadata(paths, version_id, {**known, "pinned": True} if metadata.get("pinned") else known)
                return


def _replace_metadata(paths: Paths, version_id: str, known: dict[str, Any]) -> None:
    path = paths.version(version_id) / "metadata.json"
    if path.exists():
        with replaceable(path):
            set_aside(path)
    write_metadata(paths, known)


def _metadata_in_backups(paths: Paths, version_id: str) -> dict[str, Any] | None:
    """What the newest backup says of this very version; another base dir may keep its backups in the same folder."""
    folder, row = backups_folder(paths), read_index(paths).get(version_id)
    for backup_id in reversed(list_backup_ids(folder)):
        with contextlib.suppress(DamagedStateError):
            known: dict[str, Any] | None = read_backup(folder, backup_id)["version_metadata"]
            if known and known.get("id") == version_id and _is_of_version(paths, known, row):
                return {**known, "pinned": True} if row and row.get("pinned") else known
    return None


def _is_of_version(paths: Paths, known: dict[str, Any], row: dict[str, Any] | None) -> bool:
    """Whether metadata are this version's own: as the index has them, else by the bytes of its largest file."""
    if row is not None:
        return _is_same(known, row)
    largest = max(known["files"], key=lambda entry: int(entry["size"]), default=None)
    return largest is not None and _is_good(paths.version(known["id"]) / "model" / largest["path"], largest)


def _rebuild_record(paths: Paths, folder: Path, backup_id: str) -> bool:
    """Write the lost metadata of a backup anew, if its bytes are those of a version."""
    try:
        files = make_manifest(folder / backup_id / "model")
    except (OSError, IntegrityError):
        return False
    for version_id in reversed(list_version_ids(paths)):
        try:
            version = read_metadata(paths, version_id)
        except DamagedStateError:
            continue
        if same_content(version["files"], files):
            path = folder / backup_id / "metadata.json"
            with replaceable(path):
                if path.exists():
                    set_aside(path)
                write_json(path, _new_record(backup_id, version), through=folder)
            return True
    return False


def _new_record(backup_id: str, version: dict[str, Any]) -> dict[str, Any]:
    record = {
        "id": backup_id,
        "created_at": utc_now(),
        "type": "manual",
        "reason": "its record was lost and written anew by repair",
        "source": "current_model/",
        "single_file": False,
        "version": version["id"],
        "version_metadata": version,
        "size": version["size"],
        "files": version["files"],
        "verified_at": utc_now(),
    }
    assert record.keys() == METADATA_KEYS.keys() | {"verified_at"}
    return {"schema_version": SCHEMA_VERSION, **record}


def copy_version(paths: Paths, version_id: str, target: Path, announce: Callable[[str], None]) -> None:
    """Make ``target`` a durable, writable copy of a version, healing the version first if it is damaged.

    What lies at ``target`` is replaced; how much will be copied and for about how long is announced beforehand.

    Raises:
        IntegrityError: no good copy of some file is left; ``target`` is not there.
    """
    files = read_metadata(paths, version_id)["files"]
    announce(_describe_copy(paths, version_id, files))
    if _copy_is_good(paths, version_id, target, files):
        return
    announce(f"{version_id} is damaged on the disk")
    left = repair_version(paths, version_id, Copies(paths, strict=False), KnownHashes()).left
    if left or not _copy_is_good(paths, version_id, target, files):
        remove_tree(target)
        raise IntegrityError(
            f"{version_id} is damaged and no second copy heals it: {(left or ['it changes'])[0]}", HOW_TO_GO_ON
        )
    announce(f"{version_id} was healed from a second copy")


def _describe_copy(paths: Paths, version_id: str, files: list[FileEntry]) -> str:
    size_bytes = total_size(files)
    file = paths.version(version_id) / "model" / (files[0]["path"] if files else "")
    if file.is_file() and can_reflink(file, paths.models):
        return f"copying {version_id}: {size_bytes / (1 << 20):.1f} MiB, which share the version's blocks (reflink)"
    seconds = max(1, round(size_bytes / COPY_BYTES_PER_SECOND))
    return f"copying {version_id}: {size_bytes / (1 << 20):.1f} MiB, about {seconds} s"


def _copy_is_good(paths: Paths, version_id: str, target: Path, files: list[FileEntry]) -> bool:
    remove_tree(target)
    model = paths.version(version_id) / "model"
    try:
        require_space(target.parent, model)
        copied = copy_tree(model, target, file_mode=LIVE_FILE_MODE, folder_mode=LIVE_FOLDER_MODE)
    except IntegrityError:
        return False
    except OSError as error:
        failed = Path(error.filename or "")
        if model not in (failed, *failed.parents):
            # No fault of the version.
            remove_tree(target)
            raise
        return False
    return same_content(copied, files)
