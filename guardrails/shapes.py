"""Whether the records of versions, backups and the trash have the shape that the code relies on.

Each function names the first key that is wrong, or None. What a person or a disk put there instead of what was written
ends as a damaged file then, not as a crash later; nothing in such a record leads out of its folder.
"""

import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from guardrails.paths import BACKUP_ID, VERSION_ID

Check = Callable[[Any], bool]
TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
# Counts and sizes stay below, so that they can be added up and shown.
LARGEST_COUNT = 2**63
LARGEST_NUMBER = 1e300


def is_path_text(text: str) -> bool:
    """Whether the system can be asked for a path of this name at all."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_text_or_none(value: object) -> bool:
    return value is None or type(value) is str


def _is_path_or_none(value: object) -> bool:
    return value is None or (type(value) is str and is_path_text(value))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST_COUNT


def _is_number_or_none(value: object) -> bool:
    # NaN is neither above nor below anything.
    return value is None or (type(value) in (int, float) and -LARGEST_NUMBER < value < LARGEST_NUMBER)  # type: ignore[operator]


def _is_timestamp(value: object) -> bool:
    if type(value) is not str or not TIMESTAMP.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_version_id(value: object) -> bool:
    return type(value) is str and VERSION_ID.fullmatch(value) is not None


def _is_version_id_or_none(value: object) -> bool:
    return value is None or _is_version_id(value)


def _is_object_or_none(value: object) -> bool:
    return value is None or type(value) is dict


def _is_file(entry: object) -> bool:
    if type(entry) is not dict:
        return False
    path = entry.get("path")
    return (
        type(path) is str
        # Neither absolute, nor empty, nor up and out.
        and not {"", ".", ".."} & set(path.split("/"))
        and is_path_text(path)
        and _is_count(entry.get("size"))
        and type(entry.get("blake3")) is str
    )


def _are_files(value: object) -> bool:
    return type(value) is list and all(map(_is_file, value)) and len({entry["path"] for entry in value}) == len(value)


def _is_data(entry: object) -> bool:
    return (
        type(entry) is dict
        and type(entry.get("name")) is str
        and type(entry.get("blake3")) is str
        and _is_count(entry.get("rows"))
        and _is_count(entry.get("trained"))
    )


def _are_data(value: object) -> bool:
    return type(value) is list and all(map(_is_data, value))


def _is_fingerprint_or_none(value: object) -> bool:
    return value is None or (
        type(value) is dict and type(value.get("blake3")) is str and _are_files(value.get("files"))
    )


VERSION: Mapping[str, Check] = {
    "id": _is_version_id,
    "created_at": _is_timestamp,
    "description": _is_text,
    "kind": _is_text,
    "parent": _is_version_id_or_none,
    "run_id": _is_path_or_none,
    **dict.fromkeys(("training_steps", "run_steps", "total_evals", "size"), _is_count),
    **dict.fromkeys(("loss", "eval_loss", "eval_loss_before"), _is_number_or_none),
    "data": _are_data,
    "base_model": _is_path_or_none,
    "files": _are_files,
    "config": _is_object_or_none,
    "libraries": _is_object_or_none,
    "base_model_fingerprint": _is_fingerprint_or_none,
}
BACKUP: Mapping[str, Check] = {
    "id": lambda value: type(value) is str and BACKUP_ID.fullmatch(value) is not None,
    **dict.fromkeys(("created_at", "verified_at"), _is_timestamp),
    "type": _is_text,
    "source": lambda value: type(value) is str and bool(value.strip("/")) and is_path_text(value),
    "reason": _is_text_or_none,
    "version": _is_version_id_or_none,
    "version_metadata": _is_object_or_none,
    "single_file": lambda value: type(value) is bool,
    "size": _is_count,
    "files": _are_files,
}


def find_wrong_key_of_version(metadata: Mapping[str, Any]) -> str | None:
    """For metadata of a version."""
    if "removed_at" in metadata and not _is_timestamp(metadata["removed_at"]):
        return "removed_at"
    return _find_wrong_key(metadata, VERSION)


def find_wrong_key_of_backup(metadata: Mapping[str, Any]) -> str | None:
    """For metadata of a backup, with those of its version in it."""
    if wrong := _find_wrong_key(metadata, BACKUP):
        return wrong
    if metadata["single_file"] and len(metadata["files"]) != 1:
        return "files"
    version = metadata["version_metadata"]
    if version is None:
        return None if metadata["version"] is None else "version_metadata"
    if wrong := find_wrong_key_of_version(version):
        return f"version_metadata.{wrong}"
    return None if version["id"] == metadata["version"] else "version"


def find_wrong_key_of_entry(record: Mapping[str, Any]) -> str | None:
    """For the record of something in the trash."""
    metadata = record["metadata"]
    return "metadata.files" if metadata is not None and not _are_files(metadata.get("files")) else None


def _find_wrong_key(document: Mapping[str, Any], keys: Mapping[str, Check]) -> str | None:
    return next((key for key, check in keys.items() if key not in document or not check(document[key])), None)
