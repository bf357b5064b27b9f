"""What people and the daemon do with backups of the model: make them, put them back."""

import os
import shlex
from pathlib import Path
from typing import Any

from guardrails.backups import BackupType, add_backup, backups_folder, read_backup
from guardrails.change import Announce, changed_by_hand_metadata, open_store
from guardrails.errors import DamagedStateError, IntegrityError, OperationError
from guardrails.filesystem import copy_tree, remove_tree, rename_noreplace
from guardrails.head import condition_of_live_model, next_number, read_head
from guardrails.live_model import Outcome, finish_completed_run, put_in_place, refuse_while_training
from guardrails.manifest import KnownHashes, find_damage
from guardrails.paths import STAGE_PREFIX, Paths
from guardrails.state_io import fsync_folder, set_aside, write_json
from guardrails.trash import discard
from guardrails.version_records import is_kept, read_metadata
from guardrails.versions import LIVE_FILE_MODE, LIVE_FOLDER_MODE, add_version, put_version_back


def require_backups_folder(paths: Paths) -> Path:
    """The folder of the backups; a configured one is never made here, for its disk may not be mounted.

    Raises:
        OperationError: it is not there.
    """
    folder = backups_folder(paths)
    if folder == paths.backups:
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        hint = f"mount its disk, or make it: mkdir -p {shlex.quote(str(folder))}"
        raise OperationError(f"backup_dir {folder} is not there", hint)
    return folder


def back_up_version(paths: Paths, version_id: str) -> dict[str, Any]:
    """Make the second copy of a version, as what ``current_model/`` was; return the backup's metadata."""
    with open_store(paths, f"backing up {version_id}"):
        return add_backup(
            require_backups_folder(paths),
            paths.version(version_id) / "model",
            "current_model/",
            "after_training",
            None,
            read_metadata(paths, version_id),
        )


def back_up(paths: Paths, source: Path, backup_type: BackupType, reason: str | None) -> dict[str, Any]:
    """Make a backup of a folder or file; ``current_model/`` and versions are known as what they are.

    Raises:
        OperationError: it is empty, or lies in the backups itself.
        IntegrityError: it changed while it was copied, or is damaged; no backup is made.
    """
    folder = require_backups_folder(paths)
    source = real_source(source)
    if source == folder or folder in source.parents or source in folder.parents:
        raise OperationError(f"{source} and the backups in {folder} contain each other", "back up one folder at a time")
    with open_store(paths, f"backing up {source}"):
        tree, version = source, None
        if source == paths.current_model:
            head = read_head(paths)
            condition = condition_of_live_model(paths, head)
            if condition == "absent":
                raise OperationError("there is no model in current_model/", "model_versioner.py list")
            version = head["version"] if condition == "version" else None
        elif source.parent == paths.versions:
            version, tree = source.name, source / "model"
        name = f"{paths.relative(source)}{'/' if source.is_dir() else ''}"
        metadata = read_metadata(paths, version) if version else None
        return add_backup(folder, tree, name, backup_type, reason, metadata)


def restore_backup(paths: Paths, backup_id: str, target: Path | None, announce: Announce) -> Outcome:
    """Put a backup back where it came from, or into the new folder ``target``; nothing there is lost.

    A backup of the model goes by way of its version, which is made again if it is gone; of anything else, what
    stands in its place goes to the trash.

    Raises:
        BusyError: a run trains.
        OperationError: no such backup, or the target exists.
        IntegrityError: the backup is damaged; nothing was changed.
    """
    folder = backups_folder(paths)
    metadata = read_backup(folder, backup_id)
    tree = folder / backup_id / "model"
    source = real_source(paths.base / metadata["source"].rstrip("/"))
    if target is None and source == paths.current_model:
        finish_completed_run(paths, announce)
    elif target is None and source.parent != paths.versions and is_model_part(paths, source):
        raise OperationError(
            f"{metadata['source']} is a part of a model",
            f"put it into a new folder: backup_manager.py restore {backup_id} TARGET",
        )
    with open_store(paths, f"restoring {backup_id}", announce):
        if problems := find_damage(tree, metadata["files"], hash_of=KnownHashes()):
            raise IntegrityError(f"{backup_id} is damaged: {problems[0]}", "backup_manager.py list shows the others")
        if target is not None:
            if target.exists():
                raise OperationError(f"{target} exists", "name a folder that does not exist yet")
            put_copy(paths, metadata, tree, target)
            return Outcome(f"copied {backup_id} to {target}", None, None)
        if source == paths.current_model:
            return _restore_model_backup(paths, metadata, tree, announce)
        if source.parent == paths.versions:
            if is_kept(paths, metadata["version"]):
                raise OperationError(
                    f"{metadata['version']} is there already", f"model_versioner.py restore {metadata['version']}"
                )
            put_version_back(paths, metadata["version_metadata"], tree)
            return Outcome(f"put {metadata['version']} back from {backup_id}", None, metadata["version"])
        put_copy(paths, metadata, tree, source)
        return Outcome(
            f"put {paths.relative(source)} back from {backup_id}; what was there is in models/trash/", None, None
        )


def real_source(path: Path) -> Path:
    """A path without links on the way to it, so that what is a model is known as one."""
    return Path(os.path.realpath(path.parent)) / path.name


def is_model_part(paths: Paths, path: Path) -> bool:
    """Whether the path lies in ``current_model/`` or below ``models/``, which change as a whole only."""
    return paths.current_model in path.parents or path == paths.models or paths.models in path.parents


def _restore_model_backup(paths: Paths, metadata: dict[str, Any], tree: Path, announce: Announce) -> Outcome:
    refuse_while_training(paths)
    version = metadata["version"]
    if version is None:
        head = read_head(paths)
        known = {"version": head["version"]}
        what = changed_by_hand_metadata(paths, known, f"restored from {metadata['id']}", "snapshot")
        version = add_version(paths, next_number(paths, head), tree, what, "copy")["id"]
    else:
        was_kept = is_kept(paths, version)
        if not was_kept:
            put_version_back(paths, metadata["version_metadata"], tree)
            announce(f"{version} was gone; made again from {metadata['id']}")
        if _put_metadata_back(paths, metadata, announce) and was_kept:
            return Outcome(f"put the metadata of {version} back; current_model/ is as it was", None, version)
    return put_in_place(paths, version, announce)


def _put_metadata_back(paths: Paths, backup: dict[str, Any], announce: Announce) -> bool:
    """Whether a version's metadata was damaged and replaced by the backup's; the damaged file stays beside it."""
    path = paths.version(backup["version"]) / "metadata.json"
    try:
        read_metadata(paths, backup["version"])
    except DamagedStateError:
        if path.exists():
            set_aside(path)
        write_json(path, backup["version_metadata"])
        announce(f"{backup['version']}: metadata.json put back from {backup['id']}")
        return True
    return False


def put_copy(paths: Paths, metadata: dict[str, Any], tree: Path, target: Path) -> None:
    """Put a backup's tree, or its single file, at ``target`` in one step; what was there goes to the trash."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = target.with_name(f"{STAGE_PREFIX}{metadata['id']}")
    if stage.exists():
        remove_tree(stage)
    copy_tree(tree, stage, file_mode=LIVE_FILE_MODE, folder_mode=LIVE_FOLDER_MODE)
    complete = stage / tree_file(metadata) if metadata["single_file"] else stage
    if target.exists():
        discard(paths, target, f"{metadata['id']} was put in its place")
    rename_noreplace(complete, target)
    if stage.exists():
        remove_tree(stage)
    fsync_folder(target.parent)


def tree_file(metadata: dict[str, Any]) -> str:
    """The name of the only file of a single-file backup."""
    return str(metadata["files"][0]["path"])
