"""What people and the daemon do with backups of the model: make them, put them back."""

import contextlib
import os
import shlex
from pathlib import Path
from typing import Any, Literal

from guardrails.config import check_config, parse_config
from guardrails.errors import ConfigError, DamagedStateError, IntegrityError, OperationError
from guardrails.filesystem import copy_tree, remove_tree, rename_noreplace
from guardrails.manifest import KnownHashes, find_damage, same_content
from guardrails.paths import STAGE_PREFIX, Paths
from guardrails.state_io import format_utc, fsync_folder
from guardrails.store.backups import BackupType, add_backup, backups_folder, list_backup_ids, read_backup
from guardrails.store.change import Announce, changed_by_hand_metadata, open_store
from guardrails.store.head import condition_of_live_model, next_number, read_head
from guardrails.store.live_model import (
    Outcome,
    finish_completed_run,
    put_in_place,
    refuse_while_training,
)
from guardrails.store.removal import bring_back
from guardrails.store.repair import copy_version, put_metadata_back
from guardrails.store.trash import discard
from guardrails.store.version_records import is_kept, read_metadata
from guardrails.store.versions import LIVE_FILE_MODE, LIVE_FOLDER_MODE, add_version, put_version_back
from guardrails.store.writers import refuse_writers

# What a version that is made of a backup takes over from the version that the backup is of.
INHERITED = (
    *("training_steps", "total_evals", "evaluations", "loss", "eval_loss", "eval_loss_before", "data"),
    *("base_model", "base_model_fingerprint", "config", "libraries"),
)


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


def was_backed_up_since(paths: Paths, seconds: float) -> bool:
    """Whether a version of this base dir was backed up since then; other backups, and others' backups, do not count."""
    folder, since = backups_folder(paths), format_utc(seconds)
    for backup_id in reversed(list_backup_ids(folder)):
        with contextlib.suppress(DamagedStateError, OperationError):
            backup = read_backup(folder, backup_id)
            if backup["created_at"] <= since:
                return False
            version = backup["version"]
            if version is not None and same_content(backup["files"], read_metadata(paths, version)["files"]):
                return True
    return False


def back_up(paths: Paths, source: Path, backup_type: BackupType, reason: str | None) -> dict[str, Any]:
    """Make a backup of a folder or file; ``current_model/`` and versions are known as what they are.

    Raises:
        OperationError: it is empty, or lies in the backups itself.
        BusyError: a process writes into the model; no backup is made.
        IntegrityError: it changed while it was copied, or is damaged; no backup is made.
    """
    folder = require_backups_folder(paths)
    source = real_source(source)
    if source == folder or folder in source.parents or source in folder.parents:
        raise OperationError(f"{source} and the backups in {folder} contain each other", "back up one folder at a time")
    with open_store(paths, f"backing up {source}"):
        tree, version = source, None
        if source == paths.current_model:
            refuse_writers(source)
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
        OperationError: no such backup, the target exists, or its place is the toolkit's own.
        ConfigError: it is a config.json that cannot be trained with; nothing was changed.
        IntegrityError: the backup is damaged; nothing was changed.
    """
    folder = backups_folder(paths)
    metadata = read_backup(folder, backup_id)
    tree = folder / backup_id / "model"
    source = real_source(paths.base / metadata["source"].rstrip("/"))
    is_version = source.parent == paths.versions and metadata["version"] == source.name
    if target is not None:
        target = check_target(paths, target)
    elif source == paths.current_model:
        finish_completed_run(paths, announce)
    elif not is_version and is_own_place(paths, source):
        raise OperationError(
            f"{metadata['source']} is a part of a model or of the toolkit's own state",
            how_to_restore_elsewhere(backup_id),
        )
    with open_store(paths, f"restoring {backup_id}", announce):
        if problems := find_damage(tree, metadata["files"], hash_of=KnownHashes()):
            raise IntegrityError(f"{backup_id} is damaged: {problems[0]}", "backup_manager.py list shows the others")
        if target is not None:
            if os.path.lexists(target):
                raise OperationError(f"{target} exists", "name a folder that does not exist yet")
            put_copy(paths, metadata, tree, target)
            return Outcome(f"copied {backup_id} to {target}", None, None)
        if source == paths.current_model:
            return _restore_model_backup(paths, metadata, tree, announce)
        if is_version:
            return _restore_version_backup(paths, metadata, tree, announce)
        if source == paths.config:
            _check_config_of_backup(backup_id, tree / source.name)
        put_copy(paths, metadata, tree, source)
        return Outcome(
            f"put {paths.relative(source)} back from {backup_id}; what was there is in models/trash/", None, None
        )


def _check_config_of_backup(backup_id: str, file: Path) -> None:
    try:
        check_config(parse_config(file.read_text(encoding="utf-8", errors="replace"), file), file)
    except ConfigError as error:
        raise ConfigError(f"not put back: {error.message}", how_to_restore_elsewhere(backup_id)) from error


def real_source(path: Path) -> Path:
    """A path without links on the way to it, so that what is a model is known as one."""
    return Path(os.path.realpath(path.parent)) / path.name


def is_own_place(paths: Paths, path: Path) -> bool:
    """Whether the path is, lies in or holds what the toolkit keeps itself: it changes by its own commands only."""
    own = (
        paths.current_model,
        paths.models,
        paths.queue,
        paths.runs,
        paths.inbox,
        paths.control,
        paths.status,
        paths.locks,
        paths.config_lock,
        paths.approvals,
        paths.system_state,
        backups_folder(paths),
    )
    return any(path == one or one in path.parents or path in one.parents for one in own)


def how_to_restore_elsewhere(backup_id: str) -> str:
    return f"put it into a new folder: backup_manager.py restore {backup_id} TARGET"


def check_target(paths: Paths, target: Path) -> Path:
    """The full path of a new folder that a person named for a copy, or of an empty one.

    Raises:
        OperationError: something is there, or it is no place for a copy.
    """
    full = Path(os.path.abspath(target))
    is_new = not os.path.lexists(full) or (full.is_dir() and not full.is_symlink() and not os.listdir(full))
    if not is_new or os.path.realpath(full) == os.getcwd():
        raise OperationError(
            f"{full} exists and is not an empty folder elsewhere", "name a folder that does not exist yet"
        )
    if is_own_place(paths, real_source(full)):
        raise OperationError(f"{full} is a place of the toolkit's own", "name a folder elsewhere")
    return full


def copy_version_elsewhere(paths: Paths, version_id: str, target: Path, announce: Announce) -> Path:
    """Put a checked, writable copy of a version into the new folder ``target``; its full path.

    Raises:
        OperationError: the target exists and is not empty, or is no place for a copy.
        IntegrityError: the version is damaged beyond healing; there is no target.
    """
    target = check_target(paths, target)
    stage = target.with_name(f"{STAGE_PREFIX}{version_id}")
    with open_store(paths, f"copying {version_id}", announce):
        if not is_kept(paths, version_id):
            announce(f"{version_id} was removed; brought back from {bring_back(paths, version_id)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            copy_version(paths, version_id, stage, announce)
            if target.exists():
                target.rmdir()
            rename_noreplace(stage, target)
        finally:
            remove_tree(stage)
        fsync_folder(target.parent)
    return target


def _restore_model_backup(paths: Paths, metadata: dict[str, Any], tree: Path, announce: Announce) -> Outcome:
    refuse_while_training(paths)
    version, state = metadata["version"], "other"
    if version is not None:
        was_readable = _is_readable(paths, version)
        state = _compare_with_version(paths, metadata, announce)
        if state == "same" and not was_readable:
            return Outcome(f"put the metadata of {version} back; current_model/ is as it was", None, version)
        if state == "gone":
            _put_version_back(paths, metadata, tree)
            announce(f"{version} was gone; made again from {metadata['id']}")
        if state == "other":
            announce(f"{version} is another model here; {metadata['id']} becomes a version of its own")
    if state == "other":
        version = _add_version_of_backup(paths, metadata, tree)
    return put_in_place(paths, version, announce)


def _restore_version_backup(paths: Paths, metadata: dict[str, Any], tree: Path, announce: Announce) -> Outcome:
    version = metadata["version"]
    state = _compare_with_version(paths, metadata, announce)
    if state == "other":
        hint = how_to_restore_elsewhere(metadata["id"])
        raise OperationError(f"{version} is there with other files than {metadata['id']}", hint)
    if state == "same":
        raise OperationError(f"{version} is there already", f"model_versioner.py restore {version}")
    _put_version_back(paths, metadata, tree)
    return Outcome(f"put {version} back from {metadata['id']}", None, version)


def _is_readable(paths: Paths, version: str) -> bool:
    try:
        read_metadata(paths, version)
    except (DamagedStateError, OperationError):
        return False
    return True


def _compare_with_version(paths: Paths, backup: dict[str, Any], announce: Announce) -> Literal["gone", "same", "other"]:
    """What the version of a backup's id is here: the id alone does not tell, for another base dir may have made it.

    Lost metadata are put back first, if a backup has them. "gone" may be a tombstone.
    """
    version = backup["version"]
    if not os.path.isdir(paths.version(version)):
        return "gone"
    try:
        if not _is_readable(paths, version):
            put_metadata_back(paths, version)
            announce(f"{version}: metadata.json put back from {backup['id']}")
        if not same_content(read_metadata(paths, version)["files"], backup["files"]):
            return "other"
    except DamagedStateError:
        return "other"
    return "same" if is_kept(paths, version) else "gone"


def _put_version_back(paths: Paths, backup: dict[str, Any], tree: Path) -> None:
    own = read_metadata(paths, backup["version"]) if paths.version(backup["version"]).is_dir() else None
    put_version_back(paths, own or backup["version_metadata"], tree)


def _add_version_of_backup(paths: Paths, backup: dict[str, Any], tree: Path) -> str:
    """Make a new version, the head's child, of a backup's tree, with what is known of how it was trained."""
    head = read_head(paths)
    what = changed_by_hand_metadata(paths, head, f"restored from {backup['id']}", "snapshot")
    known = backup["version_metadata"] or {}
    what.update({key: known[key] for key in INHERITED if key in known})
    return str(add_version(paths, next_number(paths, head), tree, what, "copy")["id"])


def put_copy(paths: Paths, metadata: dict[str, Any], tree: Path, target: Path) -> None:
    """Put a backup's tree, or its single file, at ``target`` in one step; what was there goes to the trash.

    Raises:
        OperationError: what is there is on another disk than the trash; nothing was changed.
    """
    if os.path.lexists(target) and os.lstat(target).st_dev != paths.base.stat().st_dev:
        raise OperationError(
            f"{target} is on another disk than {paths.trash}, so what is there cannot be kept",
            how_to_restore_elsewhere(metadata["id"]),
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = target.with_name(f"{STAGE_PREFIX}{metadata['id']}")
    remove_tree(stage)
    try:
        copy_tree(tree, stage, file_mode=LIVE_FILE_MODE, folder_mode=LIVE_FOLDER_MODE)
        complete = stage / tree_file(metadata) if metadata["single_file"] else stage
        if os.path.lexists(target):
            discard(paths, target, f"{metadata['id']} was put in its place")
        rename_noreplace(complete, target)
    finally:
        remove_tree(stage)
    fsync_folder(target.parent)


def tree_file(metadata: dict[str, Any]) -> str:
    """The name of the only file of a single-file backup."""
    return str(metadata["files"][0]["path"])
