"""The version store: each version a plain, read-only tree with its metadata, never changed again.

Everything that writes here is called under the store lock (``.locks/store.lock``).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from guardrails.errors import DamagedStateError, OperationError
from guardrails.filesystem import apply_modes, copy_tree, remove_tree, rename_noreplace, sync_filesystem
from guardrails.locks import FileLock
from guardrails.manifest import list_files, make_manifest, total_size
from guardrails.paths import STAGE_PREFIX, VERSION_ID, Paths
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, read_json, remove_temporary_files, utc_now, write_json

FILE_MODE, FOLDER_MODE = 0o444, 0o555
METADATA_KEYS = {
    **dict.fromkeys(("id", "kind", "description", "created_at"), str),
    **dict.fromkeys(("parent", "run_id"), str | None),
    **dict.fromkeys(("training_steps", "run_steps", "total_evals", "size"), int),
    **dict.fromkeys(("data", "files"), list),
}
LIVE_FILE_MODE, LIVE_FOLDER_MODE = 0o644, 0o755


def store_lock(paths: Paths) -> FileLock:
    """The lock of everything below ``models/`` and of ``current_model/``."""
    return FileLock(paths.locks / "store.lock")


def version_number(version_id: str) -> int:
    match = VERSION_ID.fullmatch(version_id)
    return int(match[1]) if match else 0


def version_name(number: int) -> str:
    return f"v{number:03d}"


def list_version_ids(paths: Paths) -> list[str]:
    """Ids of all versions, tombstones of removed ones included, oldest first."""
    try:
        names = os.listdir(paths.versions)
    except FileNotFoundError:
        return []
    return sorted((name for name in names if VERSION_ID.fullmatch(name)), key=version_number)


def is_kept(paths: Paths, version_id: str) -> bool:
    """Whether the version still has its model, that is, is no tombstone."""
    return (paths.version(version_id) / "model").is_dir()


def read_metadata(paths: Paths, version_id: str) -> dict[str, Any]:
    """The metadata of a version, tombstone or not.

    Raises:
        OperationError: there is no such version.
        DamagedStateError: its metadata is missing or unreadable.
    """
    metadata = read_json(paths.version(version_id) / "metadata.json", METADATA_KEYS)
    if metadata is not None:
        return metadata
    if VERSION_ID.fullmatch(version_id) and paths.version(version_id).is_dir():
        raise DamagedStateError(
            f"{paths.version(version_id) / 'metadata.json'} is missing",
            f"put it back from its backup: backup_manager.py list, then look for {version_id}",
        )
    raise OperationError(f"there is no version {version_id!r}", "model_versioner.py list shows what there is")


def parse_version_id(paths: Paths, text: str) -> str:
    """The id of an existing version as a person may write it: ``v003``, ``3`` or ``models/versions/v003/``.

    Raises:
        OperationError: there is no such version.
    """
    name = os.path.basename(text.rstrip("/"))
    if name.isdigit():
        name = version_name(int(name))
    if not VERSION_ID.fullmatch(name) or not paths.version(name).is_dir():
        raise OperationError(f"there is no version {text!r}", "model_versioner.py list shows what there is")
    return name


def lineage(paths: Paths, version_id: str | None) -> Iterator[dict[str, Any]]:
    """Metadata of the version and of its ancestors, newest first; removed ones as far as their metadata is kept.

    It ends before an ancestor whose very folder is gone.
    """
    seen: set[str] = set()
    while version_id is not None and version_id not in seen and paths.version(version_id).is_dir():
        seen.add(version_id)
        metadata = read_metadata(paths, version_id)
        yield metadata
        version_id = metadata["parent"]


def add_version(
    paths: Paths, number: int, source: Path, metadata: dict[str, Any], how: Literal["copy", "link", "move"]
) -> dict[str, Any]:
    """Save the tree ``source`` as version ``number``, complete and durable before its name exists; return its metadata.

    ``link`` shares the files of a finished run, which nothing writes to any more; ``move`` takes the tree itself and
    is for callers with an intent record. ``metadata`` lacks what is found out here: id, created_at, size and files.
    Going on after a kill: a version that is there already is returned as it is.
    """
    version_id = version_name(number)
    final, stage = paths.version(version_id), paths.versions / f"{STAGE_PREFIX}{version_id}"
    if final.is_dir():
        return read_metadata(paths, version_id)
    model = stage / "model"
    if how == "move":
        stage.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(stage)
        if not model.exists():
            source.rename(model)
    else:
        if stage.exists():
            remove_tree(stage)
        stage.mkdir(parents=True)
        if how == "copy" or not _link_tree(source, model):
            copy_tree(source, model, file_mode=FILE_MODE, folder_mode=FOLDER_MODE, independent=False)
    files = make_manifest(model)
    apply_modes(model, FILE_MODE, FOLDER_MODE)
    complete = {
        "schema_version": SCHEMA_VERSION,
        "id": version_id,
        "created_at": utc_now(),
        **metadata,
        "size": total_size(files),
        "files": files,
    }
    write_json(stage / "metadata.json", complete)
    sync_filesystem(stage)
    rename_noreplace(stage, final)
    fsync_folder(paths.versions)
    return complete


def put_version_back(paths: Paths, metadata: dict[str, Any], tree: Path) -> None:
    """Make a version that is gone again, from its metadata and a good copy of its tree; a tombstone gets its model."""
    final = paths.version(metadata["id"])
    stage = paths.versions / f"{STAGE_PREFIX}{metadata['id']}"
    if stage.exists():
        remove_tree(stage)
    stage.mkdir(parents=True)
    copy_tree(tree, stage / "model", file_mode=FILE_MODE, folder_mode=FOLDER_MODE, independent=False)
    write_json(stage / "metadata.json", metadata)
    sync_filesystem(stage)
    if final.is_dir():
        # A folder is moved to another parent only by who may write to it.
        (stage / "model").chmod(LIVE_FOLDER_MODE)
        rename_noreplace(stage / "model", final / "model")
        (final / "model").chmod(FOLDER_MODE)
        fsync_folder(final)
        remove_tree(stage)
    else:
        rename_noreplace(stage, final)
    fsync_folder(paths.versions)


def _link_tree(source: Path, target: Path) -> bool:
    """Whether ``target`` could be made of hard links to the files of ``source``."""
    target.mkdir()
    try:
        for path in list_files(source):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(source / path, target / path)
    except OSError:
        remove_tree(target)
        return False
    return True


def trained_contents(paths: Paths, version_id: str | None) -> dict[str, str]:
    """Which version in the ancestry of ``version_id``, itself included, was trained on which content (BLAKE3)."""
    return {data["blake3"]: metadata["id"] for metadata in lineage(paths, version_id) for data in metadata["data"]}
