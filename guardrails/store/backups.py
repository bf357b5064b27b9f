"""Second copies: independent trees that count only once they were read back from the disk and matched.

Everything that writes here is called under the store lock (``.locks/store.lock``).
"""

import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

from guardrails.config import parse_config
from guardrails.errors import ConfigError, DamagedStateError, IntegrityError, OperationError
from guardrails.filesystem import copy_file, copy_tree, remove_tree, rename_noreplace, require_space, sync_filesystem
from guardrails.locks import FileLock
from guardrails.manifest import FileEntry, KnownHashes, find_damage, same_content, total_size
from guardrails.paths import BACKUP_ID, STAGE_PREFIX, Paths
from guardrails.shapes import find_wrong_key_of_backup, is_path_text
from guardrails.signature import Signature, take_signature
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, read_json, remove_temporary_files, utc_now, write_json
from guardrails.store.versions import FILE_MODE, FOLDER_MODE, UNLOCKED_PREFIX, lock_again

METADATA_KEYS = {
    **dict.fromkeys(("id", "type", "source", "created_at"), str),
    "reason": str | None,
    "version": str | None,
    "version_metadata": dict | None,
    "single_file": bool,
    "size": int,
    "files": list,
}
# What this toolkit makes there; a backup_dir may hold other things, too.
RECORD = "metadata.json"
STAGE, UNLOCKED = (re.compile(rf"{re.escape(prefix)}b\d{{3,}}") for prefix in (STAGE_PREFIX, UNLOCKED_PREFIX))
LEFTOVER = re.compile(rf"{STAGE.pattern}|{UNLOCKED.pattern}|{re.escape(RECORD)}\.tmp-.*")
LOCK_SECONDS = 600.0
BackupType = Literal["after_training", "manual", "emergency", "pre_consolidation", "pre_deletion"]
MANUAL_TYPES = tuple(name for name in get_args(BackupType) if name != "after_training")


def backups_folder(paths: Paths) -> Path:
    """Where backups lie: ``backup_dir`` of the config, else ``models/backups/``.

    Works with a config that is otherwise broken, for a restore must not depend on it.
    """
    try:
        setting = parse_config(paths.config.read_text(encoding="utf-8"), paths.config).get("backup_dir")
    except (OSError, UnicodeDecodeError, ConfigError):
        setting = None
    if isinstance(setting, str) and setting and is_path_text(setting):
        return paths.resolve(setting)
    return paths.backups


def list_backup_ids(folder: Path) -> list[str]:
    """Ids of all backups in ``folder``, oldest first."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted((name for name in names if BACKUP_ID.fullmatch(name)), key=lambda name: int(name[1:]))


def read_backup(folder: Path, backup_id: str) -> dict[str, Any]:
    """The metadata of one backup.

    Raises:
        OperationError: there is no such backup.
        DamagedStateError: its metadata is missing or unreadable.
    """
    if not BACKUP_ID.fullmatch(backup_id) or not os.path.isdir(folder / backup_id):
        raise OperationError(f"there is no backup {backup_id[:80]!r}", "backup_manager.py list shows what there is")
    path = folder / backup_id / RECORD
    metadata = read_json(path, METADATA_KEYS)
    if metadata is None:
        raise DamagedStateError(f"{path} is missing", "use another backup: backup_manager.py list")
    if wrong := find_wrong_key_of_backup(metadata):
        raise DamagedStateError(f"{path} is damaged: {wrong} is wrong", "use another backup: backup_manager.py list")
    return metadata


def backup_of_version(folder: Path, version: dict[str, Any]) -> str | None:
    """The newest backup with the very files of a version, or None.

    The id alone does not tell: another base dir may keep its backups in the same folder. Backups with unreadable
    metadata count for nothing.
    """
    for backup_id in reversed(list_backup_ids(folder)):
        try:
            backup = read_backup(folder, backup_id)
            if backup["version"] == version["id"] and same_content(backup["files"], version["files"]):
                return backup_id
        except DamagedStateError:
            continue
    return None


def lock_of_backups(folder: Path) -> FileLock:
    """The lock of making and healing backups in ``folder``, for all base dirs that use it."""
    return FileLock(folder / ".lock")


def remove_leftovers(folder: Path) -> None:
    """Remove what kills left of backups. Nothing while another process makes one there, or while the disk is broken."""
    lock = lock_of_backups(folder)
    try:
        if not _list_leftovers(folder) or not lock.try_acquire("cleaning up"):
            return
        # Looked at again: whoever had the lock may have finished them meanwhile.
        remove_temporary_files(folder, folder / RECORD)
        for name in _list_leftovers(folder):
            if UNLOCKED.fullmatch(name):
                lock_again(folder / name)
            elif STAGE.fullmatch(name):
                remove_tree(folder / name)
    except OSError:
        pass
    finally:
        lock.release()


def _list_leftovers(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [name for name in names if LEFTOVER.fullmatch(name)]


def add_backup(
    folder: Path,
    tree: Path,
    source: str,
    backup_type: BackupType,
    reason: str | None,
    version_metadata: dict[str, Any] | None,
) -> dict[str, Any]:
    """Copy ``tree`` (a folder, or a single file) into a new backup, read it back from the disk, return its metadata.

    ``source`` is where a restore puts it by default. ``version_metadata``: the version that the tree must equal.

    Raises:
        IntegrityError: the tree is not the version, or what was read back is not what was written; no backup is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, tree)
    # Several base dirs may keep their backups in one folder.
    with lock_of_backups(folder).hold(f"backing up {tree}", LOCK_SECONDS):
        ids = list_backup_ids(folder)
        backup_id = f"b{int(ids[-1][1:]) + 1 if ids else 1:03d}"
        stage = folder / f"{STAGE_PREFIX}{backup_id}"
        if stage.exists():
            remove_tree(stage)
        stage.mkdir()
        try:
            before = _sign(tree)
            files = _copy(tree, stage / "model")
            if version_metadata is not None and not same_content(files, version_metadata["files"]):
                raise IntegrityError(
                    f"{tree} is not {version_metadata['id']} any more",
                    "model_versioner.py repair heals a damaged version from its second copies",
                )
            if version_metadata is None and _sign(tree) != before:
                raise IntegrityError(
                    f"{tree} was written to while it was copied; no backup was made", "wait until that is done"
                )
            sync_filesystem(stage)
            if problems := find_damage(stage / "model", files, hash_of=KnownHashes()):
                raise IntegrityError(
                    f"the backup was not written as it should be: {problems[0]}", f"check the disk of {folder}"
                )
            metadata = {
                "schema_version": SCHEMA_VERSION,
                "id": backup_id,
                "created_at": utc_now(),
                "type": backup_type,
                "reason": reason,
                "source": source,
                "single_file": tree.is_file(),
                "version": version_metadata["id"] if version_metadata else None,
                "version_metadata": version_metadata,
                "size": total_size(files),
                "files": files,
                "verified_at": utc_now(),
            }
            write_json(stage / RECORD, metadata)
            fsync_folder(stage)
            rename_noreplace(stage, folder / backup_id)
        except BaseException:
            if stage.exists():
                remove_tree(stage)
            raise
        fsync_folder(folder)
    return metadata


def _sign(tree: Path) -> Signature:
    if tree.is_dir():
        return take_signature(tree)
    status = tree.stat()
    return {tree.name: [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]}


def _copy(tree: Path, target: Path) -> list[FileEntry]:
    if not tree.is_file():
        return copy_tree(tree, target, file_mode=FILE_MODE, folder_mode=FOLDER_MODE, independent=True)
    target.mkdir()
    digest = copy_file(tree, target / tree.name, FILE_MODE)
    target.chmod(FOLDER_MODE)
    return [{"path": tree.name, "size": (target / tree.name).stat().st_size, "blake3": digest}]


def verify_backup(folder: Path, backup_id: str) -> list[str]:
    """What is damaged in a backup, read from the disk; empty when all is as saved."""
    return find_damage(folder / backup_id / "model", read_backup(folder, backup_id)["files"], hash_of=KnownHashes())
