"""What ``current_model/`` is: which version, and whether anybody changed it since."""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from guardrails.config import LOCKED_KEYS
from guardrails.config_lock import read_lock_file
from guardrails.errors import DamagedStateError, IntegrityError, OperationError
from guardrails.manifest import hash_file, list_files, make_manifest, same_content
from guardrails.paths import Paths
from guardrails.signature import FINE_GRANULARITY_NS, Signature, settles_at, take_signature
from guardrails.state_io import SCHEMA_VERSION, read_json, write_json
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata, trained_contents, version_number

Condition = Literal["absent", "version", "changed"]
HEAD_KEYS = {
    "version": str | None,
    "signed_at_ns": int,
    "signature": dict,
    "restores": list,
    "last_number": int,
    "retired": dict | None,
}
EMPTY_HEAD: dict[str, Any] = {
    "version": None,
    "changed_at": None,
    "operation": None,
    "signed_at_ns": 0,
    "signature": {},
    "restores": [],
    "last_number": 0,
    "retired": None,
}


def read_head(paths: Paths) -> dict[str, Any]:
    """What ``current_model/`` is; the empty head of a fresh start if nothing was ever recorded.

    Where the record is lost and versions are there, it is found out anew: the newest version that the model equals,
    else the newest there is, so that nothing ever starts afresh beside them.

    Raises:
        DamagedStateError: the record, or a version's metadata, cannot be read.
    """
    document = read_json(paths.head)
    if document is not None and "version" in document:
        head = {**EMPTY_HEAD, **(read_json(paths.head, HEAD_KEYS) or {})}
        remembered = all(isinstance(one, dict) and {"at", "over"} <= one.keys() for one in head["restores"])
        retired = head["retired"] is None or {"version", "signature"} <= head["retired"].keys()
        if not (remembered and retired):
            raise DamagedStateError(
                f"{paths.head} is damaged: restores or retired", "docs/recovery.md says what to do about it"
            )
        return head
    ids = [version_id for version_id in reversed(list_version_ids(paths)) if is_kept(paths, version_id)]
    if not ids:
        return dict(EMPTY_HEAD)
    try:
        live = make_manifest(paths.current_model)
    except (OSError, IntegrityError):
        live = []
    equal = (version_id for version_id in ids if same_content(read_metadata(paths, version_id)["files"], live))
    return {**EMPTY_HEAD, "version": next(equal, ids[0])}


def read_lock(paths: Paths) -> dict[str, Any] | None:
    """The config lock; where its file is gone, what the head version was trained with. None before any training.

    Raises:
        DamagedStateError: the lock, the head or its version cannot be read.
    """
    lock = read_lock_file(paths)
    head = read_head(paths)["version"] if lock is None else None
    if head is None or not paths.version(head).is_dir():
        return lock
    metadata = read_metadata(paths, head)
    config, fingerprint = metadata.get("config"), metadata.get("base_model_fingerprint")
    if not config or not fingerprint:
        return None
    return {"locked": {key: config.get(key) for key in LOCKED_KEYS}, "base_model_fingerprint": fingerprint}


def write_head(paths: Paths, head: dict[str, Any]) -> None:
    write_json(paths.head, {"schema_version": SCHEMA_VERSION, **head})


def next_number(paths: Paths, head: dict[str, Any]) -> int:
    """The number of the next version: never one that was used before."""
    ids = list_version_ids(paths)
    return max(int(head["last_number"]), version_number(ids[-1]) if ids else 0) + 1


def sign(tree: Path) -> dict[str, Any]:
    """The part of a head that says how ``current_model/`` looks: of a tree while it is known to be the version.

    Waits until the stamps of files written just now have settled, unless the file system stamps in whole seconds.
    """
    signature = take_signature(tree)
    unsettled_ns = max((settles_at(stat) for stat in signature.values()), default=0) - time.time_ns()
    if 0 <= unsettled_ns <= FINE_GRANULARITY_NS:
        time.sleep((unsettled_ns + 1) / 1e9)
        signature = take_signature(tree)
    return {"signed_at_ns": time.time_ns(), "signature": signature}


def untouched_files(head: dict[str, Any], signature: Signature) -> set[str]:
    """The files that are what they were when the head was signed, as their stat tells."""
    known, signed_at_ns = head["signature"], head["signed_at_ns"]
    return {path for path, stat in signature.items() if known.get(path) == stat and settles_at(stat) < signed_at_ns}


def condition_of_live_model(paths: Paths, head: dict[str, Any]) -> Condition:
    """Whether ``current_model/`` is missing, is the head version byte for byte, or was changed by others.

    Only files whose stat does not vouch for them are read. If they are the version's all the same, the signature is
    renewed on disk and in ``head``. For writers, under the store lock.

    Raises:
        IntegrityError: it holds something that cannot be saved in a version (a link, a socket).
        OperationError: ``current_model`` itself is a link or a mount point.
    """
    check_live_folder(paths)
    if not paths.current_model.is_dir() or not list_files(paths.current_model):
        return "absent"
    if head["version"] is None or not paths.version(head["version"]).is_dir():
        return "changed"
    signed = sign(paths.current_model)
    touched = signed["signature"].keys() - untouched_files(head, signed["signature"])
    if not touched and signed["signature"].keys() == head["signature"].keys():
        return "version"
    files = {entry["path"]: entry for entry in read_metadata(paths, head["version"])["files"]}
    sizes = {path: stat[0] for path, stat in signed["signature"].items()}
    if sizes != {path: entry["size"] for path, entry in files.items()}:
        return "changed"
    if any(hash_file(paths.current_model / path) != files[path]["blake3"] for path in sorted(touched)):
        return "changed"
    head.update(signed)
    write_head(paths, head)
    return "version"


def check_live_folder(paths: Paths) -> None:
    """Raises OperationError if ``current_model`` cannot be exchanged as a folder."""
    if paths.current_model.is_symlink():
        raise OperationError(
            f"{paths.current_model} is a symbolic link", "move the folder that it points to here, in the link's place"
        )
    if os.path.ismount(paths.current_model):
        raise OperationError(
            f"{paths.current_model} is a mount point", "mount the disk as the whole base dir, not as current_model/"
        )
    device = paths.base.stat().st_dev
    for folder in (paths.models, paths.versions, paths.retired, paths.trash):
        if folder.exists() and folder.stat().st_dev != device:
            raise OperationError(
                f"{folder} is on another disk than {paths.base}; folders cannot be exchanged between disks",
                "put the whole base dir on that disk; only backups may be elsewhere (backup_dir)",
            )


def trained_lookup(paths: Paths) -> Callable[[str], str | None]:
    """Tells which version of ``current_model/``'s ancestry was trained on a content (BLAKE3).

    The ancestry is read once, when first asked.
    """

    @functools.cache
    def read() -> dict[str, str]:
        return trained_contents(paths, read_head(paths)["version"])

    return lambda data_blake3: read().get(data_blake3)
