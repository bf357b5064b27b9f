"""Bytes against what was recorded of them: versions, backups, the live model, the base model, trained data files.

Each function returns what is wrong now. What every report sees by names and sizes is left to the report.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guardrails.errors import DamagedStateError, OperationError
from guardrails.manifest import FileEntry, KnownHashes
from guardrails.paths import Paths
from guardrails.queue_records import read_record
from guardrails.report.adapter_check import CONFIG, WEIGHTS, find_adapter_problems
from guardrails.report.deep_record import Identity, Problem, identify
from guardrails.signature import take_signature
from guardrails.state_io import read_json, utc_now
from guardrails.store.backups import read_backup
from guardrails.store.head import read_lock
from guardrails.store.version_records import is_kept, read_metadata

MODEL, BASE_MODEL, DATA = "current_model", "base_model", "data:"
# A reader can meet a writer between two of its steps; looking again settles it.
LOOKS = 3


class Reader(KnownHashes):
    """Hashes of files as the disk holds them, each inode read once, and how many bytes that were."""

    def __init__(self) -> None:
        super().__init__()
        self.read_bytes = 0

    def __call__(self, path: Path) -> str:
        known = len(self._by_inode)
        digest = super().__call__(path)
        if len(self._by_inode) > known:
            self.read_bytes += path.stat().st_size
        return digest

    def find_damage(self, path: Path, blake3: str) -> str | None:
        """What is wrong with a file's bytes, in words; None if nothing is, or if it is gone.

        Raises:
            PermissionError: it is closed to this user, which says nothing of its bytes.
        """
        try:
            return None if self(path) == blake3 else "has other bytes than were saved"
        except FileNotFoundError:
            return None
        except PermissionError:
            raise
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"


def make_problem(
    paths: Paths,
    check: str,
    finding: str,
    words: str,
    present: Iterable[Path] = (),
    absent: Iterable[Path] = (),
    subject: str = "",
) -> Problem:
    """A problem that stands as long as these files lie where they lie now, and those nowhere."""
    known: dict[str, Identity] = {}
    for path in present:
        # Of a link what it leads to: a hub cache is made of them.
        identity = identify(os.path.realpath(path))
        if identity is not None:
            known[paths.relative(Path(os.path.realpath(path)))] = identity
    return Problem(check, finding, subject, words, utc_now(), known, [paths.relative(path) for path in absent])


def examine_version(paths: Paths, version_id: str, reader: Reader) -> list[Problem]:
    folder, finding = paths.version(version_id), "version-bytes-damaged"
    try:
        files = read_metadata(paths, version_id)["files"]
    except OperationError:
        return []
    except DamagedStateError as error:
        return _judge_record(paths, version_id, finding, folder / "metadata.json", error)
    found = _examine_tree(paths, version_id, finding, folder / "model", files, reader)
    # Removed meanwhile, it has no bytes to be wrong.
    return found if is_kept(paths, version_id) else []


def examine_backup(paths: Paths, folder: Path, backup_id: str, reader: Reader) -> list[Problem]:
    finding = "backup-bytes-damaged"
    try:
        files = read_backup(folder, backup_id)["files"]
    except OperationError:
        return []
    except DamagedStateError as error:
        return _judge_record(paths, backup_id, finding, folder / backup_id / "metadata.json", error)
    found = _examine_tree(paths, backup_id, finding, folder / backup_id / "model", files, reader)
    return found if (folder / backup_id).is_dir() else []


def _judge_record(paths: Paths, name: str, finding: str, path: Path, error: DamagedStateError) -> list[Problem]:
    """Metadata of a wrong shape; what is no JSON at all every report sees."""
    try:
        if read_json(path) is None:
            return []
    except DamagedStateError:
        return []
    words = error.message.replace(f"{path}", path.name)
    return [make_problem(paths, name, finding, words, [path], subject=name)]


def _examine_tree(
    paths: Paths, name: str, finding: str, root: Path, files: list[FileEntry], reader: Reader
) -> list[Problem]:
    found = []
    for entry in files:
        path = root / entry["path"]
        identity = identify(path)
        if identity is None or identity[0] != entry["size"]:
            continue
        wrong = reader.find_damage(path, entry["blake3"])
        if wrong is not None:
            words = f"{root.name}/{entry['path']} {wrong}"
            found.append(make_problem(paths, name, finding, words, [path], subject=name))
    return found


def find_base_model(paths: Paths) -> tuple[Path, list[FileEntry]] | None:
    """The locked base model's folder and files; None where none is locked, or the lock cannot be read."""
    try:
        lock = read_lock(paths)
    except DamagedStateError:
        return None
    setting = lock["locked"].get("base_model") if lock else None
    files = lock["base_model_fingerprint"].get("files") if lock else None
    if not isinstance(setting, str) or not isinstance(files, list):
        return None
    return (paths.resolve(setting), files) if all(map(_is_entry, files)) else None


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    return all(isinstance(entry.get(key), kind) for key, kind in (("path", str), ("size", int), ("blake3", str)))


def examine_base_model(paths: Paths, reader: Reader) -> list[Problem]:
    base = find_base_model(paths)
    if base is None:
        return []
    folder, files = base
    found = []
    for entry in files:
        path = folder / entry["path"]
        identity = identify(os.path.realpath(path))
        if identity is None or identity[0] != entry["size"]:
            continue
        wrong = reader.find_damage(path, entry["blake3"])
        if wrong is not None:
            words = f"{entry['path']} in {folder} {wrong.replace('saved', 'locked')}"
            found.append(make_problem(paths, BASE_MODEL, "base-model-bytes-changed", words, [path]))
    return found


def examine_model(paths: Paths, reader: Reader) -> list[Problem]:
    """``current_model/`` between two changes of it: its bytes where its stamps vouch for them, and its adapter."""
    watched = (paths.current_model, paths.head, paths.intent)
    for _ in range(LOOKS):
        before = [identify(path) for path in watched]
        try:
            found = _examine_model(paths, reader)
        except (FileNotFoundError, NotADirectoryError):
            found = []
        if before == [identify(path) for path in watched]:
            return found
    return []


def _examine_model(paths: Paths, reader: Reader) -> list[Problem]:
    root = paths.current_model
    signature = take_signature(root)
    try:
        head: dict[str, Any] = read_json(paths.head) or {}
        version = head.get("version")
        files = read_metadata(paths, version)["files"] if isinstance(version, str) else []
    except (DamagedStateError, OperationError):
        head, files = {}, []
    signed = head.get("signature")
    known = signed if isinstance(signed, dict) else {}
    found = []
    for entry in files:
        stat = signature.get(entry["path"])
        # What its stamps do not vouch for, the report calls changed.
        if stat is None or stat != known.get(entry["path"]) or stat[0] != entry["size"]:
            continue
        wrong = reader.find_damage(root / entry["path"], entry["blake3"])
        if wrong is not None:
            words = f"{entry['path']} {wrong}"
            found.append(make_problem(paths, MODEL, "model-bytes-damaged", words, [root / entry["path"]]))
    if found or CONFIG not in signature:
        return found
    base = find_base_model(paths)
    parts = [root / name for name in (CONFIG, WEIGHTS) if name in signature]
    wrongs = find_adapter_problems(root, base[0] if base else None)
    return [make_problem(paths, MODEL, "model-adapter-broken", words, parts) for words in wrongs]


def examine_data(paths: Paths, name: str, reader: Reader) -> list[Problem]:
    """A completed data file against what was trained."""
    try:
        record = read_record(paths, name)
    except DamagedStateError:
        return []
    path = paths.queue_folder("completed") / name
    identity = identify(path)
    if record is None or not record.version or not record.blake3 or identity is None:
        return []
    if identity[0] == record.size and reader.find_damage(path, record.blake3) is None:
        return []
    return [make_problem(paths, f"{DATA}{name}", "queue-data-changed", name, [path])]
