"""Removing versions and backups: through the trash, and never the last good copy.

Whatever is removed, each of its files has a good copy elsewhere, read from the disk at that moment. Metadata that
cannot be read stops it all. Everything here is called under the store lock.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.errors import DamagedStateError, IntegrityError, LastCopyError, OperationError
from guardrails.filesystem import remove_tree
from guardrails.manifest import FileEntry, KnownHashes, find_damage, hash_file, make_manifest
from guardrails.paths import Paths
from guardrails.queue_records import processing
from guardrails.runs import read_job, run_of
from guardrails.state_io import utc_now
from guardrails.store.backups import backups_folder, list_backup_ids, read_backup
from guardrails.store.copies import Copies
from guardrails.store.head import read_head
from guardrails.store.immutable import lift_folders
from guardrails.store.retention import Policy, choose, parse_time
from guardrails.store.trash import Entry, find_version, list_entries, put_in_trash, trash_of_backups
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata, remember_versions
from guardrails.store.versions import put_model_back, put_version_back, unlocked, write_metadata


class Decision(NamedTuple):
    """What a prune, a cleanup or an emptying does with one thing, and why."""

    id: str
    removed: bool
    reason: str


def find_needed_versions(paths: Paths) -> dict[str, str]:
    """Versions that nothing removes, whatever it is asked, and why."""
    needed = {}
    record = processing(paths)
    job = read_job(paths, run_of(record)) if record else None
    if job and job["parent_version"]:
        needed[str(job["parent_version"])] = f"the run on {job['data_name']} starts from it"
    if head := read_head(paths)["version"]:
        needed[head] = "current_model/ is this version"
    return needed


def delete_version(paths: Paths, version_id: str, copies: Copies, reason: str) -> None:
    """Move a version's model to the trash; its metadata stays, with ``removed_at``.

    Raises:
        OperationError: it is pinned or needed, or removed already.
        LastCopyError: a file of it has no good copy elsewhere; nothing was changed.
    """
    metadata = read_metadata(paths, version_id)
    if not is_kept(paths, version_id):
        raise OperationError(f"{version_id} was removed already", "model_versioner.py trash list")
    if metadata.get("pinned"):
        raise OperationError(f"{version_id} is pinned", f"model_versioner.py unpin {version_id}, if it may go")
    if why := find_needed_versions(paths).get(version_id):
        raise OperationError(f"{version_id} is needed: {why}", "model_versioner.py restore another version first")
    if lacking := copies.lacking(metadata["files"], {version_id}):
        raise LastCopyError(
            f"{version_id} is the last good copy of its {lacking}",
            f"make another first: backup_manager.py backup models/versions/{version_id} --type pre_deletion",
        )
    # In this order: a version that has both its model and removed_at is a version still.
    write_metadata(paths, {**metadata, "removed_at": utc_now()})
    with unlocked(paths.version(version_id)):
        put_in_trash(paths.trash, paths.version(version_id) / "model", "version", version_id, reason, metadata)
    copies.forget(version_id)


def prune(paths: Paths, policy: Policy, *, execute: bool) -> list[Decision]:
    """What a retention policy removes and keeps, oldest first; carried out only with ``execute``."""
    metadata = {v: read_metadata(paths, v) for v in list_version_ids(paths) if is_kept(paths, v)}
    kept = choose([(version_id, parse_time(known["created_at"])) for version_id, known in metadata.items()], policy)
    needed = find_needed_versions(paths)
    copies = Copies(paths, strict=True)
    decisions = []
    for version_id, known in metadata.items():
        reasons = list(kept.get(version_id, []))
        if known.get("pinned"):
            reasons.append("pinned")
        if version_id in needed:
            reasons.append(needed[version_id])
        if not reasons and copies.lacking(known["files"], {version_id}):
            reasons.append("it is the last good copy")
        if not reasons:
            if execute:
                delete_version(paths, version_id, copies, "pruned")
            # Also in a dry run, or it would promise what the real one refuses.
            copies.forget(version_id)
        decisions.append(Decision(version_id, not reasons, ", ".join(reasons)))
    if execute:
        remember_versions(paths)
    return decisions


def clean_up_backups(paths: Paths, retention_days: int, *, execute: bool) -> list[Decision]:
    """Which backups older than ``retention_days`` go to the trash, oldest first; carried out only with ``execute``."""
    folder = backups_folder(paths)
    ids = list_backup_ids(folder)
    before = datetime.now(UTC) - timedelta(days=retention_days)
    copies = Copies(paths, strict=True)
    newest = find_newest_good(folder, ids)
    decisions = []
    for backup_id in ids:
        metadata = read_backup(folder, backup_id)
        reason = ""
        if parse_time(metadata["created_at"]) > before:
            reason = f"younger than {retention_days} days"
        elif backup_id == newest:
            reason = "the newest good backup"
        elif copies.lacking(metadata["files"], {backup_id}):
            reason = "it is the last good copy"
        if not reason:
            if execute:
                why = f"older than {retention_days} days"
                lift_folders(folder / backup_id)
                put_in_trash(trash_of_backups(paths, folder), folder / backup_id, "backup", backup_id, why, metadata)
            copies.forget(backup_id)
        decisions.append(Decision(backup_id, not reason, reason))
    return decisions


def find_newest_good(folder: Path, ids: Sequence[str]) -> str | None:
    """The newest backup of a version whose every byte is as saved."""
    hash_of = KnownHashes()
    for backup_id in reversed(ids):
        backup = read_backup(folder, backup_id)
        if backup["version"] and not find_damage(folder / backup_id / "model", backup["files"], hash_of=hash_of):
            return backup_id
    return None


def bring_back(paths: Paths, version_id: str) -> str:
    """Give a removed version its model back, from the trash or else from a backup; says from where.

    Raises:
        OperationError: neither has it.
        IntegrityError: what is there is damaged; nothing was changed.
    """
    entry = find_version(paths, version_id)
    metadata = read_metadata(paths, version_id)
    if entry is not None and not find_damage(entry.content, metadata["files"]):
        put_model_back(paths, _without_removal(metadata), entry.content)
        remove_tree(entry.folder)
        return "the trash"
    damaged = [f"what the trash holds of it ({entry.content})"] if entry is not None else []
    folder = backups_folder(paths)
    for backup_id in reversed(list_backup_ids(folder)):
        try:
            backup = read_backup(folder, backup_id)
        except DamagedStateError:
            continue
        if backup["files"] != metadata["files"]:
            continue
        if not find_damage(folder / backup_id / "model", backup["files"], hash_of=KnownHashes()):
            put_version_back(paths, metadata, folder / backup_id / "model")
            return backup_id
        damaged.append(backup_id)
    if damaged:
        raise IntegrityError(
            f"{version_id} cannot be brought back: {' and '.join(damaged)} is damaged",
            "model_versioner.py repair heals backups where another copy is good; then run this again",
        )
    raise OperationError(
        f"the model of {version_id} is gone; only its metadata is kept", "choose another: model_versioner.py list"
    )


def _without_removal(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key != "removed_at"}


def empty_trash(paths: Paths, days: float, *, execute: bool, unsaved: bool = False) -> list[Decision]:
    """Remove what has been in the trash for ``days`` and more, but no last good copy; only with ``execute``.

    ``unsaved``: also what no version and no backup holds, unless it was a version or backup itself.
    """
    copies = Copies(paths, strict=True)
    folder = backups_folder(paths)
    trashes = {paths.trash, trash_of_backups(paths, folder)}
    decisions = []
    for entry in (entry for trash in sorted(trashes) for entry in list_entries(trash)):
        reason = _reason_to_stay(entry, copies, days, unsaved)
        if not reason and execute:
            remove_tree(entry.folder)
        decisions.append(Decision(entry.folder.name, not reason, reason))
    return decisions


def _reason_to_stay(entry: Entry, copies: Copies, days: float, unsaved: bool) -> str:
    if entry.record is None:
        return "nothing tells what it was; look at it"
    if entry.age_seconds() < days * 86400:
        return f"removed less than {days:g} days ago"
    if entry.record["kind"] in ("version", "backup"):
        lacking = copies.lacking((entry.record["metadata"] or {}).get("files", []))
        return f"the last good copy of its {lacking}" if lacking else ""
    if entry.record["kind"] == "replaced" and not unsaved and (lacking := copies.lacking(_list_content(entry))):
        return f"no version and no backup has its {lacking}; --unsaved removes it all the same"
    return ""


def _list_content(entry: Entry) -> list[FileEntry]:
    """The files of an entry as a manifest; what is no regular file is in no version anyway."""
    if entry.content.is_dir() and not entry.content.is_symlink():
        try:
            return make_manifest(entry.content)
        except IntegrityError:
            return [{"path": entry.content.name, "size": 0, "blake3": ""}]
    if entry.content.is_file():
        return [{"path": "content", "size": entry.content.stat().st_size, "blake3": hash_file(entry.content)}]
    return []


def set_pinned(paths: Paths, version_id: str, pinned: bool) -> bool:
    """Pin a version, so that neither ``delete`` nor ``prune`` takes it, or unpin it; whether that changed anything."""
    metadata = read_metadata(paths, version_id)
    if bool(metadata.get("pinned")) == pinned:
        return False
    metadata.pop("pinned", None)
    write_metadata(paths, {**metadata, **({"pinned": True} if pinned else {})})
    return True
