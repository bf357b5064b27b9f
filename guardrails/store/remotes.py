"""Copies elsewhere: push versions to a remote, pull them into any base dir, prove that a restore works.

Files travel as pieces named by their hash, so that only what is missing travels and what was killed goes on where it
was. The document that names a version's pieces is written after all of them; nothing at a remote is ever changed or
removed. The layout is in docs/formats.md.
"""

import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from blake3 import blake3

from guardrails.errors import DamagedStateError, DiskSpaceError, GuardrailsError, IntegrityError, OperationError
from guardrails.filesystem import apply_modes, copy_tree, free_bytes, remove_tree, rename_noreplace, sync_filesystem
from guardrails.locks import FileLock
from guardrails.manifest import FileEntry, KnownHashes, find_damage, hash_file, same_content, total_size
from guardrails.paths import VERSION_ID, Paths
from guardrails.preflight import check_safetensors
from guardrails.signature import take_signature
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, read_json, utc_now, write_json, write_text
from guardrails.store.backups import backups_folder, list_backup_ids, read_backup
from guardrails.store.change import Announce, open_store
from guardrails.store.head import read_head
from guardrails.store.remote_files import PIECES, Remote, damaged_there, normalize_url, open_remote
from guardrails.store.version_records import (
    METADATA_KEYS,
    is_kept,
    list_version_ids,
    read_metadata,
    version_name,
    version_number,
)
from guardrails.store.versions import FILE_MODE, FOLDER_MODE, LIVE_FILE_MODE, LIVE_FOLDER_MODE, adopt_version

# Few requests, little memory, and little that is sent again after a kill.
PIECE_BYTES = 8 << 20
# Metadata and folders beside the bytes that a pull brings.
SPARE_BYTES = 32 << 20
VERSIONS, TOMBSTONES, BASE_MODELS, BOXES = "versions", "tombstones", "consolidated", "boxes"
HASH = re.compile(r"[0-9a-f]{64}")


class Tree(NamedTuple):
    """A version or base model as its document says; ``pieces`` by path in pieces of ``piece_bytes``, none removed."""

    name: str
    metadata: dict[str, Any]
    pieces: dict[str, list[str]]
    piece_bytes: int
    seal: str

    @property
    def files(self) -> list[FileEntry]:
        """None of a tombstone, whatever its metadata say."""
        return [entry for entry in self.metadata["files"] if entry["path"] in self.pieces]

    @property
    def id(self) -> str:
        return str(self.metadata["id"])


def read_remotes(paths: Paths) -> dict[str, dict[str, Any]]:
    """The remotes that this base dir was pushed to: by URL, when last and which versions are there.

    Raises:
        DamagedStateError: the record cannot be read.
    """
    document = read_json(paths.remotes, {"remotes": dict})
    return dict(document["remotes"]) if document else {}


def push(paths: Paths, url: str, announce: Announce) -> dict[str, Any]:
    """Send every version that the remote lacks, the base models they need, and what sets up an empty machine.

    The store lock is not held: versions do not change, and one that is removed meanwhile is skipped.

    Raises:
        OperationError: the remote cannot be used, or holds versions of another base dir; nothing was sent.
        IntegrityError: a version here, or a file there, is damaged; all others were sent.
    """
    url = normalize_url(url)
    with _one_at_a_time(paths, f"pushing to {url}"), open_remote(url) as remote:
        known = read_remotes(paths)
        versions, problems = _read_versions(paths)
        there = {name: _read_tree(remote, name) for name in _list_documents(remote)}
        trees = [*_base_models(paths, versions), *_versions(paths, versions)]
        for name, _, metadata in trees:
            others = (tree for tree in there.values() if _stem(tree.name) == _stem(name))
            if not all(same_content(other.metadata["files"], metadata["files"]) for other in others):
                raise OperationError(
                    f"{url} holds another {metadata['id']}: another base dir is pushed there",
                    "give each base dir a remote of its own, such as a folder below that one",
                )
        upload = _Upload(remote)
        sent = []
        for name, root, metadata in trees:
            try:
                if upload.send_tree(name, root, metadata, there.get(name)):
                    sent.append(metadata["id"])
                    announce(f"sent {metadata['id']}{', which was removed here' if TOMBSTONES in name else ''}")
            except FileNotFoundError as error:
                if not name.startswith(BASE_MODELS) and _is_gone(paths, metadata["id"]):
                    announce(f"{metadata['id']} was removed meanwhile; skipped")
                else:
                    problems.append(_damaged_here(f"{error.filename} is missing"))
            except IntegrityError as error:
                problems.append(error)
        _push_box(paths, remote)
        ids = sorted(_stems(remote, VERSIONS), key=version_number)
        known[url] = {"pushed_at": utc_now(), "versions": ids}
        paths.status.mkdir(parents=True, exist_ok=True)
        write_json(paths.remotes, {"schema_version": SCHEMA_VERSION, "remotes": known})
    _raise_first(problems)
    return {"remote": url, "sent": sent, "versions": ids, "bytes_sent": remote.sent_bytes}


def _read_versions(paths: Paths) -> tuple[list[dict[str, Any]], list[GuardrailsError]]:
    """The metadata of every version, oldest first; what cannot be read must not keep the others from being sent."""
    found: list[dict[str, Any]] = []
    problems: list[GuardrailsError] = []
    for version_id in list_version_ids(paths):
        try:
            found.append(read_metadata(paths, version_id))
        except DamagedStateError as error:
            problems.append(error)
    return found, problems


def _versions(paths: Paths, versions: list[dict[str, Any]]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Document, tree and metadata of each version; of removed ones the metadata, so that a lineage stays whole."""
    for metadata in versions:
        folder = TOMBSTONES if _is_removed(paths, metadata) else VERSIONS
        kept = {key: value for key, value in metadata.items() if folder == TOMBSTONES or key != "removed_at"}
        yield f"{folder}/{metadata['id']}.json", paths.version(metadata["id"]) / "model", kept


def _base_models(paths: Paths, versions: list[dict[str, Any]]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Likewise of each consolidated base model that a version needs."""
    for name, metadata in {_base_name(paths, m): m for m in versions if not _is_removed(paths, m)}.items():
        if name is not None:
            files = metadata["base_model_fingerprint"]["files"]
            yield f"{BASE_MODELS}/{name}.json", paths.consolidated_models / name, {"id": name, "files": files}


def _base_name(paths: Paths, metadata: dict[str, Any]) -> str | None:
    """The name of the base model that a version was trained on, if a consolidation made that."""
    folder = paths.resolve(metadata.get("base_model") or "")
    is_ours = folder.parent == paths.consolidated_models and metadata.get("base_model_fingerprint")
    return folder.name if is_ours else None


class _Upload:
    """Sends what is not there yet, as one listing at the beginning tells."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.there = {name.rpartition("/")[2]: size for name, size in remote.list_files(PIECES).items()}

    def send_tree(self, name: str, root: Path, metadata: dict[str, Any], there: Tree | None) -> bool:
        """Send the pieces that are missing, then the document; whether there was anything to send.

        Raises:
            FileNotFoundError: a file of the tree is not here.
            IntegrityError: a file here is not what was saved, or a piece there is not what was sent.
        """
        if there is not None and all(self._has(piece, size) for piece, size in _pieces(there)):
            return False
        files = [] if name.startswith(TOMBSTONES) else metadata["files"]
        pieces = {entry["path"]: list(self._send_file(root / entry["path"], entry)) for entry in files}
        if there is None:
            document = {"metadata": metadata, "piece_bytes": PIECE_BYTES, "pieces": pieces}
            _send_document(self.remote, name, document)
        return True

    def _send_file(self, path: Path, entry: FileEntry) -> Iterator[str]:
        # Before anything is sent: what is damaged must not get there, where it would stay.
        if hash_file(path) != entry["blake3"]:
            raise _damaged_here(f"{path} has other bytes than were saved")
        with open(path, "rb") as file:
            while content := file.read(PIECE_BYTES):
                piece = _hash(content)
                if not self._has(piece, len(content)):
                    self.remote.write_new(_piece_name(piece), content)
                    self.there[piece] = len(content)
                yield piece

    def _has(self, piece: str, size: int) -> bool:
        found = self.there.get(piece, size)
        if found != size:
            raise damaged_there(self.remote.url, f"{_piece_name(piece)} has {found} bytes instead of {size}")
        return piece in self.there


def _pieces(tree: Tree) -> Iterator[tuple[str, int]]:
    """Name and size of each piece of a tree."""
    for entry in tree.files:
        for index, piece in enumerate(tree.pieces[entry["path"]]):
            yield piece, min(tree.piece_bytes, entry["size"] - index * tree.piece_bytes)


def _piece_name(piece: str) -> str:
    return f"{PIECES}/{piece[:2]}/{piece}"


def _hash(content: bytes) -> str:
    return blake3(content, max_threads=blake3.AUTO).hexdigest()


def _damaged_here(problem: str) -> IntegrityError:
    return IntegrityError(
        f"not pushed: {problem}", "model_versioner.py repair heals it from a second copy; then push again"
    )


def _is_gone(paths: Paths, version_id: str) -> bool:
    return not paths.version(version_id).is_dir() or _is_removed(paths, read_metadata(paths, version_id))


def _is_removed(paths: Paths, metadata: dict[str, Any]) -> bool:
    """Whether a version is a tombstone; one without its model that nobody removed is damaged."""
    return "removed_at" in metadata and not is_kept(paths, metadata["id"])


def _push_box(paths: Paths, remote: Remote) -> None:
    """Send config, lock and head, unless the newest that were sent say the same."""
    texts = {"config": paths.config, "config_lock": paths.config_lock}
    box = {key: path.read_text(encoding="utf-8") if path.exists() else None for key, path in texts.items()}
    box["head"] = read_head(paths)["version"]
    last = _read_box(remote)
    if last is None or any(last.get(key) != box[key] for key in box):
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        # Some bytes at random, for two within a second.
        _send_document(remote, f"{BOXES}/{stamp}-{os.urandom(2).hex()}.json", {"pushed_at": utc_now(), **box})


def _read_box(remote: Remote) -> dict[str, Any] | None:
    names = sorted(remote.list_files(BOXES))
    return _read_document(remote, names[-1]) if names else None


def _list_documents(remote: Remote) -> list[str]:
    return [name for folder in (BASE_MODELS, VERSIONS, TOMBSTONES) for name in remote.list_files(folder)]


def _stems(remote: Remote, folder: str) -> list[str]:
    return [_stem(name) for name in remote.list_files(folder)]


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _send_document(remote: Remote, name: str, content: dict[str, Any]) -> None:
    document = {"schema_version": SCHEMA_VERSION, **content}
    text = json.dumps({**document, "blake3": _seal(document)}, allow_nan=False)
    if not remote.write_new(name, text.encode("ascii")):
        raise OperationError(f"{remote.url}/{name} was written by another push meanwhile", "run the command again")


def _seal(document: dict[str, Any]) -> str:
    return _hash(json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii"))


def _read_document(remote: Remote, name: str) -> dict[str, Any]:
    """A document that is as it was sent, its own hash in ``blake3``.

    Raises:
        DamagedStateError: it was written by a newer toolkit.
        IntegrityError: it is not as it was sent.
    """
    content = remote.read(name)
    try:
        document = json.loads(content)
        seal = document.pop("blake3")
        if document["schema_version"] > SCHEMA_VERSION:
            raise DamagedStateError(f"{remote.url}/{name} was written by a newer toolkit", "update the toolkit")
        if seal != _seal(document):
            raise ValueError("it does not match its own hash")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged_there(remote.url, f"{name} is damaged: {error}") from error
    return {**document, "blake3": seal}


def _read_tree(remote: Remote, name: str) -> Tree:
    """The document of a version or base model; nothing in it leads out of its folder."""
    document = _read_document(remote, name)
    is_version = not name.startswith(BASE_MODELS)
    try:
        tree = Tree(name, *(document[key] for key in ("metadata", "pieces", "piece_bytes", "blake3")))
        kinds = METADATA_KEYS if is_version else {"id": str, "files": list}
        if wrong := [key for key, kind in kinds.items() if not isinstance(tree.metadata.get(key), kind)]:
            raise ValueError(f"{', '.join(wrong)} missing or of a wrong type")
        if tree.id != _stem(name) or (is_version and not VERSION_ID.fullmatch(tree.id)):
            raise ValueError(f"it is of {tree.id!r}")
        for entry in tree.metadata["files"]:
            path = PurePosixPath(entry["path"])
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in entry["path"]:
                raise ValueError(f"{entry['path']!r} leads out of it")
            pieces = tree.pieces.get(entry["path"], [])
            if name.startswith(TOMBSTONES) == (entry["path"] in tree.pieces):
                raise ValueError(f"pieces of {entry['path']} missing")
            if tree.pieces and len(pieces) != -(-entry["size"] // tree.piece_bytes):
                raise ValueError(f"{len(pieces)} pieces of {entry['path']}")
            if not all(HASH.fullmatch(piece) for piece in pieces):
                raise ValueError(f"pieces of {entry['path']} that are no hashes")
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise damaged_there(remote.url, f"{name} is damaged: {error}") from error
    return tree


def pull(paths: Paths, url: str, wanted: Sequence[str], announce: Announce) -> dict[str, Any]:
    """Bring the versions that are missing here, or those that are named, and the base models they need.

    A version gets its name when every byte of it was read back from the disk; ``current_model/`` is not touched. What
    a kill leaves is gone on with. Where there is no config, the one that was pushed last is put there with its lock.

    Raises:
        OperationError: the remote cannot be used, or holds other versions of the same names; nothing was changed.
        DiskSpaceError: too little room; nothing was changed.
        IntegrityError: something at the remote is damaged; whatever is not was brought.
    """
    url = normalize_url(url)
    problems: list[GuardrailsError] = []
    with _one_at_a_time(paths, f"pulling from {url}"), open_remote(url) as remote:
        trees = [_read_tree(remote, name) for name in _choose(remote, wanted)]
        missing = [tree for tree in trees if _is_missing(paths, url, tree, is_named=bool(wanted))]
        missing = [*_missing_base_models(paths, remote, missing), *missing]
        _require_space(paths.base, sum(_missing_bytes(tree, _stage(paths, tree)) for tree in missing))
        brought = []
        for tree in missing:
            try:
                _bring(paths, remote, tree, announce)
                brought.append(tree.id)
            except IntegrityError as error:
                problems.append(error)
        if not wanted and not problems:
            remove_tree(paths.incoming)
        box = _read_box(remote) or {}
        _write_config(paths, box, announce)
    _raise_first(problems)
    kept = [version_id for version_id in list_version_ids(paths) if is_kept(paths, version_id)]
    head = box.get("head") if box.get("head") in kept else kept[-1] if kept else None
    return {"remote": url, "brought": brought, "head": head, "bytes_received": remote.received_bytes}


def _choose(remote: Remote, wanted: Sequence[str]) -> list[str]:
    """The documents of all versions at the remote, or of the named ones; a tombstone where nothing else is there."""
    there = {
        version_id: f"{folder}/{version_id}.json"
        for folder in (TOMBSTONES, VERSIONS)
        for version_id in _stems(remote, folder)
    }
    if not there:
        raise OperationError(f"{remote.url} holds no versions", "check the URL; backup_manager.py push fills a remote")
    named = [version_name(int(text)) if text.isdigit() else text for text in wanted]
    if unknown := [version_id for version_id in named if version_id not in there]:
        newest = max(there, key=version_number)
        raise OperationError(
            f"{remote.url} has no {', '.join(unknown)}", f"it has {len(there)} versions up to {newest}"
        )
    return [there[version_id] for version_id in sorted(set(named) or there, key=version_number)]


def _is_missing(paths: Paths, url: str, tree: Tree, *, is_named: bool) -> bool:
    """Whether a version is to be brought; one that was removed here comes back only by name."""
    if not paths.version(tree.id).is_dir():
        return True
    if not same_content(read_metadata(paths, tree.id)["files"], tree.metadata["files"]):
        raise OperationError(
            f"{url} holds another {tree.id} than this base dir", "pull into an empty one: --base-dir DIR"
        )
    return is_named and bool(tree.files) and not is_kept(paths, tree.id)


def _missing_base_models(paths: Paths, remote: Remote, trees: list[Tree]) -> list[Tree]:
    needed = {_base_name(paths, tree.metadata) for tree in trees if tree.files} & {*_stems(remote, BASE_MODELS)}
    names = [name for name in needed if name and not (paths.consolidated_models / name).exists()]
    return [_read_tree(remote, f"{BASE_MODELS}/{name}.json") for name in sorted(names)]


def _stage(paths: Paths, tree: Tree) -> Path:
    """Where a tree is put together: a name that the next writing command leaves alone, and of these bytes only."""
    name = f"{tree.id}-{tree.seal[:8]}"
    # Base models may lie on another disk.
    return (
        paths.consolidated_models / f".incoming-{name}" if tree.name.startswith(BASE_MODELS) else paths.incoming / name
    )


def _missing_bytes(tree: Tree, stage: Path) -> int:
    staged = sum(stat[0] for stat in take_signature(stage).values()) if stage.exists() else 0
    return max(0, total_size(tree.files) - staged)


def _require_space(folder: Path, needed: int) -> None:
    if (free := free_bytes(folder)) < needed + SPARE_BYTES:
        raise DiskSpaceError(
            f"{free >> 20} MiB are free on the disk of {folder}, this needs {(needed + SPARE_BYTES) >> 20} MiB",
            "free some space, then run the command again",
        )


def _bring(paths: Paths, remote: Remote, tree: Tree, announce: Announce) -> None:
    """Fetch a version or base model, and give it its name when it is whole, checked and durable."""
    stage = _stage(paths, tree)
    stage.mkdir(parents=True, exist_ok=True)
    if tree.files:
        _fetch_tree(remote, tree, stage / "model")
    if tree.name.startswith(BASE_MODELS):
        apply_modes(stage / "model", FILE_MODE, LIVE_FOLDER_MODE)
        sync_filesystem(stage)
        rename_noreplace(stage / "model", paths.consolidated_models / tree.id)
        # Only now: a folder is moved to another parent only by who may write to it.
        (paths.consolidated_models / tree.id).chmod(FOLDER_MODE)
        fsync_folder(paths.consolidated_models)
    else:
        if tree.files:
            apply_modes(stage / "model", FILE_MODE, FOLDER_MODE)
        write_json(stage / "metadata.json", tree.metadata)
        sync_filesystem(stage)
        with open_store(paths, f"adding {tree.id} from a remote", announce):
            if _is_missing(paths, remote.url, tree, is_named=True):
                adopt_version(paths, tree.metadata, stage)
    remove_tree(stage)
    announce(f"brought {tree.id}")


def _fetch_tree(remote: Remote, tree: Tree, root: Path) -> None:
    """Make ``root`` the tree, every byte read back from the disk; good pieces that are there need not come again.

    Raises:
        IntegrityError: a piece is missing or damaged; the others stay for another try.
    """
    for entry in tree.files:
        target, pieces, good = root / entry["path"], tree.pieces[entry["path"]], 0
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            with open(target, "rb") as file:
                while good < len(pieces) and _hash(file.read(tree.piece_bytes)) == pieces[good]:
                    good += 1
        if pieces and good == len(pieces):
            continue
        with open(target, "ab") as file:
            file.truncate(good * tree.piece_bytes)
            for piece in pieces[good:]:
                content = remote.read(_piece_name(piece))
                if _hash(content) != piece:
                    raise damaged_there(remote.url, f"{_piece_name(piece)} is damaged")
                file.write(content)
    if problems := find_damage(root, tree.files, hash_of=KnownHashes()):
        remove_tree(root)
        raise IntegrityError(f"what was brought is not what was sent: {problems[0]}", "check the disk, then try again")


def _write_config(paths: Paths, box: dict[str, Any], announce: Announce) -> None:
    """Put the config there if none is, and the lock with it."""
    if box.get("config") is None or paths.config.exists():
        return
    with open_store(paths, "writing config.json"):
        if box["config_lock"] is not None and not paths.config_lock.exists():
            write_text(paths.config_lock, box["config_lock"])
        write_text(paths.config, box["config"])
    announce(f"config.json is the one that was pushed at {box['pushed_at']}")


def drill(paths: Paths, url: str | None) -> dict[str, Any]:
    """Restore the newest backup, or the newest version of a remote, into a folder that is removed again.

    Every byte is read back from the disk; safetensors files must be as long as their headers say.

    Raises:
        OperationError: there is nothing to restore.
        IntegrityError: it could not be restored as it was saved.
    """
    url = normalize_url(url) if url is not None else None
    stage = paths.incoming / "drill"
    with _one_at_a_time(paths, "drilling"):
        started = time.monotonic()
        try:
            remove_tree(stage)
            stage.mkdir(parents=True)
            source, files = _drill_backup(paths, stage) if url is None else _drill_remote(paths, url, stage)
            for entry in files:
                if entry["path"].endswith(".safetensors"):
                    check_safetensors(stage / "model" / entry["path"])
        finally:
            remove_tree(stage)
    seconds = round(time.monotonic() - started, 3)
    return {"source": source, "files": len(files), "bytes": total_size(files), "seconds": seconds}


def _drill_backup(paths: Paths, stage: Path) -> tuple[str, list[FileEntry]]:
    folder = backups_folder(paths)
    ids = list_backup_ids(folder)
    if not ids:
        raise OperationError(f"there are no backups in {folder}", "backup_manager.py backup current_model/ makes one")
    files: list[FileEntry] = read_backup(folder, ids[-1])["files"]
    _require_space(paths.base, total_size(files))
    tree, copy = folder / ids[-1] / "model", stage / "model"
    copy_tree(tree, copy, file_mode=LIVE_FILE_MODE, folder_mode=LIVE_FOLDER_MODE, independent=True)
    if problems := find_damage(copy, files, hash_of=KnownHashes()):
        raise IntegrityError(f"{ids[-1]} cannot be restored: {problems[0]}", "backup_manager.py verify --all")
    return ids[-1], files


def _drill_remote(paths: Paths, url: str, stage: Path) -> tuple[str, list[FileEntry]]:
    with open_remote(url) as remote:
        ids = _stems(remote, VERSIONS)
        if not ids:
            raise OperationError(f"{url} holds no versions", f"backup_manager.py push {shlex.quote(url)}")
        tree = _read_tree(remote, f"{VERSIONS}/{max(ids, key=version_number)}.json")
        _require_space(paths.base, total_size(tree.files))
        _fetch_tree(remote, tree, stage / "model")
    return f"{tree.id} from {url}", tree.files


def _one_at_a_time(paths: Paths, purpose: str) -> AbstractContextManager[None]:
    """A base dir's pushes, pulls and drills share a record and a stage."""
    return FileLock(paths.locks / "remotes.lock").hold(purpose, wait_seconds=0.0)


def _raise_first(problems: list[GuardrailsError]) -> None:
    """Raise the first problem, with the number of the others."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise type(problems[0])(f"{problems[0].message}{more}", problems[0].hint)
