"""The config lock: what must stay as it was at the first training, and proof of the base model.

Locked are the keys in ``config.LOCKED_KEYS`` and the bytes of the base model: the same path with another
model in it is another base model. Only a person changes a locked value (``training_controller.py config
approve``); ``restore``, ``rollback`` and ``consolidate`` move the lock along by themselves.

An approval is of one change: from the value that was locked to the one that was shown. It moves the lock there, so
there is nothing that could be used again, and it stands in ``.config_approvals.jsonl`` before the lock moves.
"""

import json
import os
import pwd
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from blake3 import blake3

from guardrails.config import LOCKED_KEYS
from guardrails.errors import ConfigError, ConfigLockError, DamagedStateError, name_some
from guardrails.manifest import FileEntry, hash_file
from guardrails.paths import Paths
from guardrails.signature import settles_at, take_model_signature
from guardrails.state_io import SCHEMA_VERSION, append_lines, dump_json, read_json, utc_now, write_json

if TYPE_CHECKING:
    from guardrails.settings import Config


class Fingerprint(TypedDict):
    """A base model's files and one hash over their names, sizes and hashes."""

    blake3: str
    files: list[FileEntry]


def base_model_folder(paths: Paths, config: "Config") -> Path:
    """The folder of the configured base model.

    Raises:
        ConfigError: none is configured, or there is no model in that folder.
    """
    if config.base_model is None:
        raise ConfigError(
            f"{paths.config}: base_model is null",
            "set it to a local model folder: training_controller.py config set base_model /path/to/model"
            " (or try things on a tiny one: training_daemon.py --init --tiny)",
        )
    folder = paths.resolve(config.base_model)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"base_model {config.base_model} is not a model folder: {folder / 'config.json'} is missing",
            "check that the disk is mounted and the path is right; a hub model must be downloaded to a folder first",
        )
    return folder


def fingerprint_base_model(paths: Paths, folder: Path, *, remember: bool = True) -> Fingerprint:
    """The fingerprint of the model in ``folder``, reading only files whose stat changed since last time.

    ``remember=False`` is for reading commands, which write no cache.
    """
    cache = _read_stat_cache(paths, folder)
    files: dict[str, dict[str, Any]] = {}
    for path, stat in take_model_signature(folder).items():
        known = cache.get(path)
        if known is None or known["stat"] != stat or known["hashed_at"] < settles_at(stat):
            hashed_at = time.time_ns()
            known = {"stat": stat, "blake3": hash_file(folder / path), "hashed_at": hashed_at}
        files[path] = known
    if files != cache and remember:
        write_json(paths.base_model_stat, {"schema_version": SCHEMA_VERSION, "folder": str(folder), "files": files})
    entries: list[FileEntry] = [
        {"path": path, "size": known["stat"][0], "blake3": known["blake3"]} for path, known in files.items()
    ]
    return {"blake3": combine_hashes(entries), "files": entries}


def _read_stat_cache(paths: Paths, folder: Path) -> dict[str, dict[str, Any]]:
    """What is known of each file of ``folder``; empty where nothing is. A cache may be lost at any time."""
    try:
        document = json.loads(paths.base_model_stat.read_bytes())
        return dict(document["files"]) if document["folder"] == str(folder) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def combine_hashes(entries: list[FileEntry]) -> str:
    """One hash over names, sizes and hashes of files, independent of their order."""
    hasher = blake3()
    for entry in sorted(entries, key=lambda entry: entry["path"]):
        hasher.update(json.dumps([entry["path"], entry["size"], entry["blake3"]]).encode() + b"\n")
    return hasher.hexdigest()


def locked_values(config: "Config") -> dict[str, Any]:
    return {key: getattr(config, key) for key in LOCKED_KEYS}


def make_lock(config: "Config", fingerprint: Fingerprint, approved_by: str) -> dict[str, Any]:
    """The lock document for ``config`` as it is, where there was none."""
    return move_lock({}, locked_values(config), fingerprint, approved_by)


def move_lock(
    lock: dict[str, Any], values: dict[str, Any], fingerprint: Fingerprint, approved_by: str
) -> dict[str, Any]:
    """The document of ``lock`` with other ``values`` and base model; what changes and who did it stand in it.

    Whatever else the document holds stays.
    """
    before = lock.get("locked", {})
    old = lock.get("base_model_fingerprint", {}).get("blake3")
    now = {**before, **values}
    changes = []
    for key in LOCKED_KEYS:
        models = {"old_fingerprint": old, "new_fingerprint": fingerprint["blake3"]} if key == "base_model" else {}
        if key not in before or before[key] != now[key] or (models and old != fingerprint["blake3"]):
            changes.append({"key": key, "old": before.get(key), "new": now[key], **models})
    return {
        **lock,
        "schema_version": SCHEMA_VERSION,
        "locked": now,
        "base_model_fingerprint": fingerprint,
        "locked_at": utc_now(),
        "approved_by": approved_by,
        "approval": {"changes": changes, **_who()},
    }


def _who() -> dict[str, Any]:
    """The user that this process runs as, and the terminal that it was told on, if any."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    try:
        terminal = os.ttyname(0)
    except OSError:
        terminal = None
    return {"uid": uid, "user": user, "tty": terminal}


def write_lock(paths: Paths, lock: dict[str, Any]) -> None:
    """Replace the lock; before that, what it changes stands in the log of approvals. Needs the store lock.

    Going on after a kill: a change that was logged is not logged again.
    """
    approval = lock.get("approval", {})
    who = {"how": lock.get("approved_by"), **{key: approval.get(key) for key in ("uid", "user", "tty")}}
    lines = [dump_json({"at": lock.get("locked_at"), **one, **who}, indent=None) for one in approval.get("changes", [])]
    if lines:
        paths.logs.mkdir(exist_ok=True)
        append_lines(paths.approvals, "".join(f"{line}\n" for line in lines))
    write_json(paths.config_lock, lock)


def read_approvals(paths: Paths) -> list[dict[str, Any]]:
    """Every recorded change of a locked value, oldest first; a line that is torn is left out."""
    try:
        lines = paths.approvals.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("key"), str):
            found.append(record)
    return found


def read_lock_file(paths: Paths) -> dict[str, Any] | None:
    """The lock, or None without one.

    Raises:
        DamagedStateError: it cannot be read.
    """
    lock = read_json(paths.config_lock, {"locked": dict, "base_model_fingerprint": dict})
    if lock is not None and not {"blake3", "files"} <= lock["base_model_fingerprint"].keys():
        raise DamagedStateError(
            f"{paths.config_lock} is damaged: it has no fingerprint",
            "it was left as it is; put your own copy back",
        )
    return lock


def check_lock(paths: Paths, config: "Config", fingerprint: Fingerprint, lock: dict[str, Any]) -> None:
    """That nothing in the lock is violated.

    Raises:
        ConfigLockError: a locked value or the base model's bytes differ; old and new are named.
    """
    for key, new in locked_values(config).items():
        old = lock["locked"].get(key)
        if old != new:
            raise ConfigLockError(
                f"locked {key} was {json.dumps(old)} and is now {json.dumps(new)} in {paths.config}",
                f"put it back: training_controller.py config set {key} {_as_argument(old)}"
                f" (or, as a person, accept it: training_controller.py config approve)",
            )
    if lock["base_model_fingerprint"]["blake3"] != fingerprint["blake3"]:
        raise ConfigLockError(
            f"the base model in {config.base_model} is not the one that was locked:"
            f" {describe_difference(lock['base_model_fingerprint'], fingerprint)}",
            "put the locked base model back there"
            " (or, as a person, accept the new one: training_controller.py config approve)",
        )


def describe_difference(old: Fingerprint, new: Fingerprint) -> str:
    """The first few files in which two base models differ, in words."""
    before = {entry["path"]: entry["blake3"] for entry in old["files"]}
    after = {entry["path"]: entry["blake3"] for entry in new["files"]}
    changes = [f"{path} is missing" for path in before.keys() - after.keys()]
    changes += [f"{path} is new" for path in after.keys() - before.keys()]
    changes += [f"{path} has other bytes" for path in before.keys() & after.keys() if before[path] != after[path]]
    return name_some(sorted(changes), 3)


def _as_argument(value: object) -> str:
    """A value as ``config set`` takes it on a shell's command line: JSON, or a string that reads as no other JSON."""
    text = json.dumps(value)
    if isinstance(value, str) and value.isprintable():
        with suppress(ValueError):
            json.loads(value)
            return shlex.quote(text)
        text = value
    return shlex.quote(text)
