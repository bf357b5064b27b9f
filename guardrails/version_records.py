"""What is known of the versions: their metadata, their ancestry, and a summary of all of them at once.

Reading only, but for the index: a cache of what the metadata of each version says in short, so that a list of
thousands need not parse thousands of files. Writers keep it up; whoever reads it looks at the stat of each
``metadata.json``, so that an edited one shows at once.
"""

import json
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from guardrails.errors import DamagedStateError, OperationError
from guardrails.paths import VERSION_ID, Paths
from guardrails.signature import settles_at
from guardrails.state_io import read_json

METADATA_KEYS = {
    **dict.fromkeys(("id", "kind", "description", "created_at"), str),
    **dict.fromkeys(("parent", "run_id"), str | None),
    **dict.fromkeys(("training_steps", "run_steps", "total_evals", "size"), int),
    **dict.fromkeys(("data", "files"), list),
}
# What makes metadata long and no list needs.
LEFT_OUT = {"schema_version", "base_model_fingerprint", "config", "files", "libraries"}


class Summaries(NamedTuple):
    """The metadata of every version, tombstones included, without its long parts; and why others cannot be read."""

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
    return sorted((name for name in names if VERSION_ID.fullmatch(name)), key=version_number)


def is_kept(paths: Paths, version_id: str) -> bool:
    """Whether the version still has its model, that is, is no tombstone."""
    return os.path.isdir(f"{paths.versions}/{version_id}/model")


def read_metadata(paths: Paths, version_id: str) -> dict[str, Any]:
    """The metadata of a version, tombstone or not.

    Raises:
        OperationError: there is no such version.
        DamagedStateError: its metadata is missing or unreadable.
    """
    path = paths.version(version_id) / "metadata.json"
    metadata = read_json(path, METADATA_KEYS)
    if metadata is not None and metadata["id"] == version_id:
        return metadata
    if metadata is not None:
        raise DamagedStateError(
            f"{path} is that of {metadata['id']}", "model_versioner.py repair puts it back from a backup"
        )
    if VERSION_ID.fullmatch(version_id) and paths.version(version_id).is_dir():
        raise DamagedStateError(f"{path} is missing", "model_versioner.py repair puts it back from a backup")
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


def read_summaries(paths: Paths) -> Summaries:
    """Every version's metadata in short, oldest first."""
    index = _read_index(paths)
    rows, damaged = {}, []
    for version_id in list_version_ids(paths):
        known = index.get(version_id)
        if known is None or known["stat"] != _stat(paths, version_id):
            try:
                rows[version_id] = _summarize(read_metadata(paths, version_id))
            except DamagedStateError as error:
                damaged.append(error.message)
        else:
            rows[version_id] = known["row"]
    return Summaries(rows, damaged)


def remember_versions(paths: Paths) -> None:
    """Bring the index up to date with versions that were added or edited. For writers, under the store lock."""
    index = _read_index(paths)
    lines = []
    for version_id in list_version_ids(paths):
        stat = _stat(paths, version_id)
        if stat is None or settles_at(stat) >= time.time_ns() or index.get(version_id, {}).get("stat") == stat:
            continue
        try:
            row = _summarize(read_metadata(paths, version_id))
        except DamagedStateError:
            continue
        lines.append(json.dumps({"id": version_id, "stat": stat, "row": row}) + "\n")
    if lines:
        # Not durable and not in one step: a torn line counts for nothing.
        with open(paths.version_index, "a", encoding="ascii") as file:
            file.write("\n" + "".join(lines))


def _summarize(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in LEFT_OUT}


def _stat(paths: Paths, version_id: str) -> list[int] | None:
    try:
        status = os.stat(f"{paths.versions}/{version_id}/metadata.json")
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read_index(paths: Paths) -> dict[str, dict[str, Any]]:
    """What the index holds by version id, the last line of each; a cache may be lost or torn at any time."""
    try:
        with open(paths.version_index, encoding="ascii") as file:
            lines = [line for line in file if line.startswith("{") and line.endswith("}\n")]
        return {entry["id"]: entry for entry in json.loads(f"[{','.join(lines)}]")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


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
        metadata = rows.get(version_id) or read_metadata(paths, version_id)
        # Of two that were trained on the same the older counts.
        found.update({data["blake3"]: version_id for data in metadata["data"]})
        version_id = metadata["parent"]
    return found
