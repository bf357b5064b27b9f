"""The version store: each version a plain, read-only tree with its metadata, never changed again.

Everything that writes here is called under the store lock (``.locks/store.lock``).
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from guardrails.errors import GuardrailsError
from guardrails.filesystem import (
    apply_modes,
    can_reflink,
    copy_file,
    copy_tree,
    is_being_written,
    remove_tree,
    rename_noreplace,
    require_space,
    sync_filesystem,
)
from guardrails.locks import FileLock
from guardrails.manifest import FileEntry, hash_file, list_files, make_manifest, total_size
from guardrails.paths import STAGE_PREFIX, Paths
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, remove_temporary_files, utc_now, write_json
from guardrails.store.immutable import lift, lift_folders, lifted
from guardrails.store.version_records import read_metadata, remember_versions, version_name

FILE_MODE, FOLDER_MODE = 0o444, 0o555
LIVE_FILE_MODE, LIVE_FOLDER_MODE = 0o644, 0o755
# A folder beside a version or backup whose tree is writable for a moment.
UNLOCKED_PREFIX = f"{STAGE_PREFIX}unlocked-"
# A file in a version's stage that is about to take the place of another.
BESIDE = "beside"


def store_lock(paths: Paths) -> FileLock:
    """The lock of everything below ``models/`` and of ``current_model/``."""
    return FileLock(paths.locks / "store.lock")


def add_version(
    paths: Paths,
    number: int,
    source: Path,
    metadata: dict[str, Any],
    how: Literal["copy", "link", "move"],
    *,
    files: list[FileEntry] | None = None,
    untouched: Set[str] = frozenset(),
    check: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Save the tree ``source`` as version ``number``, complete and durable before its name exists; return its metadata.

    ``link`` shares the files of a finished run, which nothing writes to any more; ``move`` takes the files themselves
    and is for callers with an intent record. Files that the parent in ``metadata`` holds too are shared with it;
    ``untouched`` names those of which that is known without reading them, ``files`` is the manifest of a source that
    was just read. ``check`` may raise when all was copied: no
    version is made then. ``metadata`` lacks what is found out here: id, created_at, size and files.
    Going on after a kill: a version that is there already is returned as it is.
    """
    version_id = version_name(number)
    final, stage = paths.version(version_id), paths.versions / f"{STAGE_PREFIX}{version_id}"
    if final.is_dir():
        return read_metadata(paths, version_id)
    remember_versions(paths)
    model = stage / "model"
    parent = _SharedFiles(paths, metadata["parent"])
    if how == "move":
        stage.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(stage)
        _take_files(source, model)
        files = make_manifest(model)
    else:
        if stage.exists():
            remove_tree(stage)
        stage.mkdir(parents=True)
        try:
            untouched = parent.holds(untouched)
            if how == "link" and _link_tree(source, model):
                files = files or make_manifest(model)
            else:
                require_space(paths.versions, source, leave_out=untouched)
                files = copy_tree(source, model, file_mode=FILE_MODE, folder_mode=LIVE_FOLDER_MODE, leave_out=untouched)
            files = sorted([*files, *parent.put(untouched, model)], key=lambda entry: entry["path"])
            if check is not None:
                check()
        except BaseException:
            remove_tree(stage)
            raise
    parent.replace_equal(model, files)
    apply_modes(model, FILE_MODE, FOLDER_MODE)
    complete = {
        "schema_version": SCHEMA_VERSION,
        "id": version_id,
        "created_at": utc_now(),
        **metadata,
        "size": total_size(files),
        "files": files,
    }
    _remove_beside(model)
    write_json(stage / "metadata.json", complete)
    sync_filesystem(stage)
    rename_noreplace(stage, final)
    fsync_folder(paths.versions)
    return complete


class _SharedFiles:
    """The files of a version that the next one can share by hard link; none where it is gone or cannot be read."""

    def __init__(self, paths: Paths, version_id: str | None) -> None:
        self.model = paths.version(version_id or "") / "model"
        self.entries: dict[str, FileEntry] = {}
        if version_id is not None and self.model.is_dir():
            with contextlib.suppress(GuardrailsError):
                self.entries = {entry["path"]: entry for entry in read_metadata(paths, version_id)["files"]}

    def holds(self, names: Set[str]) -> set[str]:
        """Those of the names whose file has the bytes that it was saved with: no damage is ever passed on."""
        return {name for name in names & self.entries.keys() if self._is_good(name)}

    def _is_good(self, name: str) -> bool:
        try:
            size = (self.model / name).stat().st_size
            return size == self.entries[name]["size"] and hash_file(self.model / name) == self.entries[name]["blake3"]
        except OSError:
            return False

    def put(self, names: Set[str], model: Path) -> list[FileEntry]:
        """Add the named files to a tree that lacks them; their entries."""
        for name in names:
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            if not _try_link(self.model / name, model / name):
                copy_file(self.model / name, model / name, FILE_MODE)
        return [self.entries[name] for name in names]

    def replace_equal(self, model: Path, files: list[FileEntry]) -> None:
        """Share those files of a tree that turned out to have the same bytes."""
        for entry in files:
            mine, own = self.model / entry["path"], model / entry["path"]
            if self.entries.get(entry["path"]) != entry or not mine.exists() or own.samefile(mine):
                continue
            beside = _remove_beside(model)
            if not self._is_good(entry["path"]):
                continue
            if _try_link(mine, beside):
                with lifted(beside):
                    beside.rename(own)


def measure_storage(paths: Paths, version_id: str) -> dict[str, Any]:
    """How many bytes of a version are its own, how many it shares with others, and whether copies share blocks here."""
    model = paths.version(version_id) / "model"
    files = [model / entry["path"] for entry in read_metadata(paths, version_id)["files"]]
    status = [file.stat() for file in files]
    shared_bytes = sum(one.st_size for one in status if one.st_nlink > 1)
    return {
        "own_bytes": sum(one.st_size for one in status) - shared_bytes,
        "shared_bytes": shared_bytes,
        "reflink": bool(files) and can_reflink(files[0], paths.models),
    }


def _try_link(source: Path, target: Path) -> bool:
    """Whether ``target`` could be made another name of ``source``."""
    try:
        with lifted(source):
            os.link(source, target)
    except OSError as error:
        # Too many links, no links here, files of another user, or immutable to this one.
        if error.errno in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV):
            return False
        raise
    return True


def _take_files(source: Path, model: Path) -> None:
    """Move the files of ``source`` into ``model``; going on after a kill.

    What a process still writes to, or has under another name, is copied: only the copy's bytes stay as they are.
    """
    model.mkdir(exist_ok=True)
    # A kill may have come when the tree was read-only already.
    for folder, _, _ in os.walk(model):
        os.chmod(folder, LIVE_FOLDER_MODE)
    for path in list_files(source):
        (model / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).rename(model / path)
    # Only now, when nobody finds them under their old names any more.
    for path in list_files(model):
        file = model / path
        if file.stat().st_nlink > 1 or is_being_written(file):
            beside = _remove_beside(model)
            copy_file(file, beside, FILE_MODE)
            with lifted(file):
                beside.rename(file)


def _remove_beside(model: Path) -> Path:
    """Where a file is made that takes the place of one in a stage; what a kill left there is removed."""
    beside = model.with_name(BESIDE)
    with lifted(beside):
        beside.unlink(missing_ok=True)
    return beside


def put_version_back(paths: Paths, metadata: dict[str, Any], tree: Path) -> None:
    """Make a version that is gone again, from its metadata and a good copy of its tree; a tombstone gets its model."""
    metadata = {key: value for key, value in metadata.items() if key != "removed_at"}
    final = paths.version(metadata["id"])
    stage = paths.versions / f"{STAGE_PREFIX}{metadata['id']}"
    if stage.exists():
        remove_tree(stage)
    stage.mkdir(parents=True)
    require_space(paths.versions, tree)
    copy_tree(tree, stage / "model", file_mode=FILE_MODE, folder_mode=FOLDER_MODE)
    write_json(stage / "metadata.json", metadata)
    sync_filesystem(stage)
    if final.is_dir():
        put_model_back(paths, metadata, stage / "model")
        remove_tree(stage)
    else:
        rename_noreplace(stage, final)
    fsync_folder(paths.versions)


def adopt_version(paths: Paths, metadata: dict[str, Any], folder: Path) -> None:
    """Give a version its name: ``folder`` holds metadata and model, whole and durable; a tombstone gets its model."""
    if paths.version(metadata["id"]).is_dir():
        put_model_back(paths, metadata, folder / "model")
    else:
        paths.versions.mkdir(exist_ok=True)
        rename_noreplace(folder, paths.version(metadata["id"]))
    fsync_folder(paths.versions)


def put_model_back(paths: Paths, metadata: dict[str, Any], tree: Path) -> None:
    """Move ``tree`` to where a tombstone lacks its model."""
    final = paths.version(metadata["id"])
    with unlocked(final):
        # A folder is moved to another parent only by who may write to it.
        tree.chmod(LIVE_FOLDER_MODE)
        rename_noreplace(tree, final / "model")
    write_metadata(paths, metadata)


def write_metadata(paths: Paths, metadata: dict[str, Any]) -> None:
    """Replace the metadata of a version that is there."""
    path = paths.version(metadata["id"]) / "metadata.json"
    with replaceable(path):
        write_json(path, metadata, through=paths.versions)


@contextmanager
def replaceable(record: Path) -> Iterator[None]:
    """The record of an immutable version or backup can be replaced meanwhile; the end of the change seals it again."""
    lift(record.parent)
    with lifted(record):
        yield


@contextmanager
def unlocked(saved: Path) -> Iterator[Path]:
    """The read-only tree of a version or backup can be written to meanwhile; yields a folder to make files in.

    Its files stay immutable if they are. After a kill the next writing command locks it again.
    """
    staging = saved.with_name(f"{UNLOCKED_PREFIX}{saved.name}")
    staging.mkdir(exist_ok=True)
    fsync_folder(staging.parent)
    try:
        lift_folders(saved)
        for folder, _, _ in os.walk(saved / "model"):
            os.chmod(folder, LIVE_FOLDER_MODE)
        yield staging
    finally:
        lock_again(staging)


def lock_again(staging: Path) -> None:
    """End what ``unlocked`` began."""
    model = staging.with_name(staging.name.removeprefix(UNLOCKED_PREFIX)) / "model"
    if model.is_dir():
        apply_modes(model, FILE_MODE, FOLDER_MODE)
        fsync_folder(model.parent)
    remove_tree(staging)


def _link_tree(source: Path, target: Path) -> bool:
    """Whether ``target`` could be made of hard links to the files of ``source``."""
    target.mkdir()
    for path in list_files(source):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        if not _try_link(source / path, target / path):
            remove_tree(target)
            return False
    return True
