"""Second copies: independent trees that count only once they were read back from the disk and matched.

Everything that writes here is called under the store lock (``.locks/store.lock``).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from guardrails.config import parse_config
from guardrails.errors import ConfigError, DamagedStateError, IntegrityError, OperationError
from guardrails.filesystem import copy_file, copy_tree, remove_tree, rename_noreplace, sync_filesystem
from guardrails.manifest import FileEntry, find_damage, same_content, total_size
from guardrails.paths import BACKUP_ID, STAGE_PREFIX, Paths
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, read_json, utc_now, write_json
from guardrails.versions import (
    FILE_MODE,
    FOLDER_MODE,
    is_kept,
    list_version_ids,
    read_metadata,
)

METADATA_KEYS = {
    **dict.fromkeys(("id", "type", "source", "created_at"), str),
    "reason": str | None,
    "version": str | None,
    "version_metadata": dict | None,
    "single_file": bool,
    "size": int,
    "files": list,
}
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
    return paths.resolve(setting) if isinstance(setting, str) and setting else paths.backups


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
    metadata = read_json(folder / backup_id / "metadata.json", METADATA_KEYS)
    if metadata is not None:
        return metadata
    if BACKUP_ID.fullmatch(backup_id) and (folder / backup_id).is_dir():
        raise DamagedStateError(
            f"{folder / backup_id / 'metadata.json'} is missing", "use another backup: backup_manager.py list"
        )
    raise OperationError(f"there is no backup {backup_id!r}", "backup_manager.py list shows what there is")


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
    ids = list_backup_ids(folder)
    backup_id = f"b{int(ids[-1][1:]) + 1 if ids else 1:03d}"
    stage = folder / f"{STAGE_PREFIX}{backup_id}"
    if stage.exists():
        remove_tree(stage)
    stage.mkdir()
    try:
        files = _copy(tree, stage / "model")
        if version_metadata is not None and (problems := find_damage(stage / "model", version_metadata["files"])):
            raise IntegrityError(
                f"{tree} is not {version_metadata['id']} any more: {problems[0]}",
                "model_versioner.py list shows the versions, backup_manager.py list their second copies",
            )
        sync_filesystem(stage)
        if problems := find_damage(stage / "model", files, from_disk=True):
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
        write_json(stage / "metadata.json", metadata)
        fsync_folder(stage)
        rename_noreplace(stage, folder / backup_id)
    except BaseException:
        if stage.exists():
            remove_tree(stage)
        raise
    fsync_folder(folder)
    return metadata


def _copy(tree: Path, target: Path) -> list[FileEntry]:
    if not tree.is_file():
        return copy_tree(tree, target, file_mode=FILE_MODE, folder_mode=FOLDER_MODE, independent=True)
    target.mkdir()
    digest = copy_file(tree, target / tree.name, FILE_MODE)
    return [{"path": tree.name, "size": (target / tree.name).stat().st_size, "blake3": digest}]


def verify_backup(folder: Path, backup_id: str) -> list[str]:
    """What is damaged in a backup, read from the disk; empty when all is as saved."""
    return find_damage(folder / backup_id / "model", read_backup(folder, backup_id)["files"], from_disk=True)


def find_file_copies(paths: Paths, entry: FileEntry) -> Iterator[Path]:
    """Files in versions and backups that are recorded with the same bytes as ``entry``, newest versions first."""
    for version_id in reversed(list_version_ids(paths)):
        if is_kept(paths, version_id):
            yield from _matching(paths.version(version_id), entry, lambda v=version_id: read_metadata(paths, v))
    folder = backups_folder(paths)
    for backup_id in reversed(list_backup_ids(folder)):
        yield from _matching(folder / backup_id, entry, lambda b=backup_id: read_backup(folder, b))


def _matching(folder: Path, entry: FileEntry, read: Any) -> Iterator[Path]:
    try:
        files = read()["files"]
    except DamagedStateError:
        return
    for candidate in files:
        if candidate["blake3"] == entry["blake3"] and (folder / "model" / candidate["path"]).is_file():
            yield folder / "model" / candidate["path"]
