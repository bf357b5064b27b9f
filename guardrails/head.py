"""What ``current_model/`` is: which version, and whether anybody changed it since."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, Literal

from guardrails.errors import OperationError
from guardrails.manifest import find_damage, list_files
from guardrails.paths import Paths
from guardrails.signature import STAMP_GRANULARITY_NS, take_signature
from guardrails.state_io import SCHEMA_VERSION, read_json, write_json
from guardrails.versions import is_kept, list_version_ids, read_metadata, trained_contents, version_number

Condition = Literal["absent", "version", "changed"]
HEAD_KEYS = {
    "version": str | None,
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
        return {**EMPTY_HEAD, **(read_json(paths.head, HEAD_KEYS) or {})}
    ids = [version_id for version_id in reversed(list_version_ids(paths)) if is_kept(paths, version_id)]
    if not ids:
        return dict(EMPTY_HEAD)
    equal = (v for v in ids if not find_damage(paths.current_model, read_metadata(paths, v)["files"]))
    return {**EMPTY_HEAD, "version": next(equal, ids[0])}


def write_head(paths: Paths, head: dict[str, Any]) -> None:
    write_json(paths.head, {"schema_version": SCHEMA_VERSION, **head})


def next_number(paths: Paths, head: dict[str, Any]) -> int:
    """The number of the next version: never one that was used before."""
    ids = list_version_ids(paths)
    return max(int(head["last_number"]), version_number(ids[-1]) if ids else 0) + 1


def sign_live_model(paths: Paths) -> dict[str, Any]:
    """The part of a head that says how ``current_model/`` looks now, while it is known to be the version."""
    return {"signed_at_ns": time.time_ns(), "signature": take_signature(paths.current_model)}


def condition_of_live_model(paths: Paths, head: dict[str, Any]) -> Condition:
    """Whether ``current_model/`` is missing, is the head version byte for byte, or was changed by others.

    An unchanged stat signature is believed unless the files were stamped so shortly before it was taken that
    they may have changed again under the same stamp (git's racy rule). Else the bytes are read and, if they are
    the version's, the signature is renewed on disk and in ``head``. For writers, under the store lock.

    Raises:
        IntegrityError: it holds something that cannot be saved in a version (a link, a socket).
        OperationError: ``current_model`` itself is a link or a mount point.
    """
    check_live_folder(paths)
    if not paths.current_model.is_dir() or not list_files(paths.current_model):
        return "absent"
    if head["version"] is None:
        return "changed"
    now = sign_live_model(paths)
    newest_stamp = max(stat[2] for stat in now["signature"].values())
    if now["signature"] == head["signature"] and newest_stamp + STAMP_GRANULARITY_NS < head["signed_at_ns"]:
        return "version"
    if find_damage(paths.current_model, read_metadata(paths, head["version"])["files"]):
        return "changed"
    head.update(now)
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
    if paths.models.exists() and paths.models.stat().st_dev != paths.base.stat().st_dev:
        raise OperationError(
            f"{paths.models} is on another disk than {paths.base}; folders cannot be exchanged between disks",
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
