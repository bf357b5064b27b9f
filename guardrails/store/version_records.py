"""What is known of the versions: their metadata, their ancestry, and a summary of all of them at once.

Reading only, but for the index: a cache of what the metadata of each version says in short, so that a list of
thousands need not parse thousands of files. Writers keep it up; whoever reads it looks at the stat of each
``metadata.json``, so that an edited one shows at once.
"""

import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from guardrails.errors import DamagedStateError, OperationError
from guardrails.paths import VERSION_ID, Paths
from guardrails.shapes import find_wrong_key_of_version
from guardrails.signature import settles_at
from guardrails.state_io import open_at_once, read_file, read_json

METADATA_KEYS = {
    **dict.fromkeys(("id", "kind", "description", "created_at"), str),
    **dict.fromkeys(("parent", "run_id"), str | None),
    **dict.fromkeys(("training_steps", "run_steps", "total_evals", "size"), int),
    **dict.fromkeys(("data", "files"), list),
}
# A number without the v; no version has a longer one.
SHORT_NUMBER = re.compile(r"[0-9]{1,18}")
HOW_TO_REPAIR = "model_versioner.py repair puts it back from a backup"
# What a summary has of the metadata, where they have it.
SUMMARIZED = (
    *("id", "created_at", "kind", "description", "parent", "run_id", "training_steps", "run_steps"),
    *("loss", "eval_loss", "size", "pinned", "removed_at"),
)


class Summaries(NamedTuple):
    """The metadata of every version, tombstones included, in short (``summarize``); and why others cannot be read."""

    rows: dict[str, dict[str, Any]]
    damaged: list[str]


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
    # By number: of two lengths the shorter is the smaller.
    return sorted(sorted(filter(VERSION_ID.fullmatch, names)), key=len)


def is_kept(paths: Paths, version_id: str) -> bool:
    """Whether the version still has its model, that is, is no tombstone."""
    return os.path.isdir(f"{paths.versions}/{version_id}/model")


def read_metadata(paths: Paths, version_id: str) -> dict[str, Any]:
    """The metadata of a version, tombstone or not.

    Raises:
        OperationError: there is no such version.
        DamagedStateError: its metadata is missing or unreadable.
    """
    if not VERSION_ID.fullmatch(version_id):
        raise _no_such_version(version_id)
    path = paths.version(version_id) / "metadata.json"
    metadata = read_json(path, METADATA_KEYS)
    if metadata is None and not os.path.isdir(path.parent):
        raise _no_such_version(version_id)
    if metadata is None:
        raise DamagedStateError(f"{path} is missing", HOW_TO_REPAIR)
    if metadata["id"] != version_id:
        raise DamagedStateError(f"{path} is that of {metadata['id']}", HOW_TO_REPAIR)
    if wrong := find_wrong_key_of_version(metadata):
        raise DamagedStateError(f"{path} is damaged: {wrong} is wrong", HOW_TO_REPAIR)
    return metadata


def _no_such_version(name: str) -> OperationError:
    return OperationError(f"there is no version {name[:80]!r}", "model_versioner.py list shows what there is")


def parse_version_id(paths: Paths, text: str) -> str:
    """The id of an existing version as a person may write it: ``v003``, ``3`` or ``models/versions/v003/``.

    A path is relative to the current folder, else to the base dir; one of another base dir names no version of this.

    Raises:
        OperationError: there is no such version.
    """
    folder, _, name = text.rstrip("/").rpartition("/")
    if SHORT_NUMBER.fullmatch(name):
        name = version_name(int(name))
    is_elsewhere = "/" in text.rstrip("/") and not _is_versions_folder(paths, folder or "/")
    if is_elsewhere or not VERSION_ID.fullmatch(name) or not os.path.isdir(paths.version(name)):
        raise _no_such_version(text)
    return name


def _is_versions_folder(paths: Paths, folder: str) -> bool:
    for root in (os.curdir, paths.base):
        if os.path.isdir(os.path.join(root, folder)):
            return os.path.realpath(os.path.join(root, folder)) == os.path.realpath(paths.versions)
    return False


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


def read_summaries(paths: Paths) -> Summaries:
    """Every version's metadata in short, oldest first."""
    index, versions = _read_index(paths), str(paths.versions)
    rows, damaged = {}, []
    for version_id in list_version_ids(paths):
        row = index.get(version_id)
        if row is None or row.pop("stat") != _stat(versions, version_id):
            try:
                row = summarize(read_metadata(paths, version_id))
            except DamagedStateError as error:
                damaged.append(error.message)
                continue
        rows[version_id] = row
    return Summaries(rows, damaged)


def remember_versions(paths: Paths) -> None:
    """Bring the index up to date with versions that were added or edited. For writers, under the store lock."""
    index, versions = _read_index(paths), str(paths.versions)
    lines = []
    for version_id in list_version_ids(paths):
        stat = _stat(versions, version_id)
        if stat is None or settles_at(stat) >= time.time_ns() or index.get(version_id, {}).get("stat") == stat:
            continue
        try:
            row = summarize(read_metadata(paths, version_id))
        except DamagedStateError:
            continue
        text = json.dumps({**row, "stat": stat}).encode("ascii")
        lines.append(b"%b %b\n" % (_checksum(text), text))
    if lines:
        # Not durable and not in one step: a torn line counts for nothing. Nobody's work depends on a cache.
        with suppress(OSError), open(paths.version_index, "ab", opener=open_at_once) as file:
            file.write(b"\n" + b"".join(lines))


def read_index(paths: Paths) -> dict[str, dict[str, Any]]:
    """What was last known of each version in short, whatever its metadata say now."""
    index = _read_index(paths)
    for row in index.values():
        del row["stat"]
    return index


def find_wrong_rows(paths: Paths) -> list[str]:
    """Versions of which the index says something else than their metadata, although their stat is the one it knows."""
    found = []
    for version_id, row in _read_index(paths).items():
        if row.pop("stat") != _stat(str(paths.versions), version_id):
            continue
        with suppress(DamagedStateError):
            if row != summarize(read_metadata(paths, version_id)):
                found.append(version_id)
    return found


def summarize(metadata: dict[str, Any]) -> dict[str, Any]:
    """A version's metadata in short: ``SUMMARIZED``, and the contents (BLAKE3) that it was ``trained_on``."""
    row = {key: metadata[key] for key in SUMMARIZED if key in metadata}
    row["trained_on"] = [data["blake3"] for data in metadata["data"]]
    return row


def _stat(versions: str, version_id: str) -> list[int] | None:
    """What the version's metadata in the folder ``versions`` are known by; None if there are none."""
    try:
        status = os.stat(f"{versions}/{version_id}/metadata.json")
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read_index(paths: Paths) -> dict[str, dict[str, Any]]:
    """What the index holds by version id, with the ``stat``; the last line of each. A cache may be lost or torn.

    Only lines that are as they were written count, so nothing in them need be looked at again.
    """
    try:
        lines = read_file(paths.version_index).split(b"\n")
        texts = [text for line in lines if line[:8] == _checksum(text := line[9:])]
        # Those that an earlier toolkit wrote have another form.
        return {row["id"]: row for row in json.loads(b"[%b]" % b",".join(texts)) if "trained_on" in row}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def trained_contents(paths: Paths, version_id: str | None) -> dict[str, str]:
    """Which version in the ancestry of ``version_id``, itself included, was trained on which content (BLAKE3).

    Raises:
        DamagedStateError: the metadata of one of them cannot be read.
    """
    rows = read_summaries(paths).rows
    found: dict[str, str] = {}
    seen: set[str] = set()
    while version_id is not None and version_id not in seen and paths.version(version_id).is_dir():
        seen.add(version_id)
        row = rows.get(version_id) or summarize(read_metadata(paths, version_id))
        # Of two that were trained on the same the older counts.
        found.update(dict.fromkeys(row["trained_on"], version_id))
        version_id = row["parent"]
    return found
