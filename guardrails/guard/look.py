"""A look at what is protected: how it is at one moment, told by stats and small files, at any number of versions."""

import fcntl
import json
import os
import re
import struct
import time
import zlib

from guardrails.guard.protected import CODE_DIR, LOCKED_KEYS, read_object
from guardrails.guard.protections import wirings
from guardrails.signature import FINE_GRANULARITY_NS, take_signature

# As in guardrails.settings, which imports too much here; a test holds them equal.
LOCKED_DEFAULTS: dict[str, object] = {"max_length": 2048, "base_model": None, "model_name": "model"}
# Of versions and backups, so many of the newest are looked into; of all others, whether they are there.
RECENT = 30
TREE_ID = re.compile(r"[vb]([0-9]{3,18})")
# struct flock of 64-bit Linux, as in guardrails.locks.
FLOCK = "hhqqi4x"

Json = dict[str, object]
# JSON as it is kept in status/guard.json; its keys are in docs/formats.md.
Look = dict[str, object]


def take_look(base: str, last: Look) -> Look | None:
    """How everything is now; None while a command of the toolkit is at work, or was cut short in the middle.

    ``last`` saves reading what cannot have changed since.

    Raises:
        OSError: a folder cannot be listed.
    """
    head = f"{base}/models/head.json"
    before = stat_of(head)
    if _is_at_work(base):
        return None
    settings, lock = _read_state(f"{base}/config.json"), _read_state(f"{base}/.config_lock.json")
    locked = as_dict(as_dict(lock).get("locked"))
    versions = _list_trees(f"{base}/models/versions", last.get("versions"))
    backups = _list_trees(f"{base}/models/backups", last.get("backups"))
    values = {key: settings.get(key, LOCKED_DEFAULTS[key]) for key in LOCKED_KEYS} if isinstance(settings, dict) else {}
    look: Look = {
        "config": settings if isinstance(settings, str) else "there",
        "settings": values,
        "lock": lock if isinstance(lock, str) else "there",
        "locked": {key: locked[key] for key in LOCKED_KEYS if key in locked},
        "fingerprint": as_dict(as_dict(lock).get("base_model_fingerprint")).get("blake3"),
        "model": _look_at_model(base),
        "versions": versions,
        "backups": backups,
        "trees": {
            **_look_into(f"{base}/models/versions", "v", versions),
            **_look_into(f"{base}/models/backups", "b", backups),
        },
        "of": _versions_of_backups(base, backups, as_dict(last.get("of"))),
        "base_models": _list_base_models(base, values.get("base_model"), locked.get("base_model")),
        "hooks": {wiring.name: wiring.problem() for wiring in wirings(base) if os.path.exists(wiring.path)},
        "code": _look_at_code(),
    }
    return look if before == stat_of(head) and not _is_at_work(base) else None


def as_dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def stat_of(path: str) -> list[int] | None:
    """Size, mtime and inode; None of what is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def is_held(path: str) -> bool:
    """Whether a process holds the lock, asked of the kernel."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        probe = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return bool(struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, probe))[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def _is_at_work(base: str) -> bool:
    return is_held(f"{base}/.locks/store.lock") or os.path.lexists(f"{base}/models/intent.json")


def _read_state(path: str) -> Json | str:
    if not os.path.lexists(path):
        return "missing"
    value = read_object(path)
    return "damaged" if value is None else value


def _look_at_model(base: str) -> list[str | None]:
    """``version``, ``changed`` or ``absent``, and the version that ``current_model/`` should be."""
    head = read_object(f"{base}/models/head.json") or {}
    version = head.get("version")
    try:
        signature = take_signature(f"{base}/current_model")
    except OSError:
        signature = {}
    condition = "absent"
    if signature:
        condition = "version" if version and signature == head.get("signature") else "changed"
    return [condition, version if isinstance(version, str) else None]


def _list_trees(folder: str, last: object) -> list[object]:
    """The folder's stamp, and the numbers in it as ranges; read only where the stamp tells of a change."""
    try:
        status = os.stat(folder)
    except OSError:
        return [0, []]
    stamp = status.st_mtime_ns
    if isinstance(last, list) and last[0] == stamp:
        return last
    ranges: list[list[int]] = []
    for number in sorted(int(match[1]) for name in os.listdir(folder) if (match := TREE_ID.fullmatch(name))):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    # A folder that was changed a moment ago may change again under the same stamp.
    return [stamp if time.time_ns() - stamp > FINE_GRANULARITY_NS else 0, ranges]


def numbers_of(trees: object) -> set[int]:
    """All numbers in the ranges of ``_list_trees``."""
    ranges = trees[1] if isinstance(trees, list) else []
    return {number for first, end in ranges for number in range(first, end + 1)}


def _newest(trees: object) -> list[int]:
    found: list[int] = []
    for first, end in reversed(trees[1] if isinstance(trees, list) else []):
        found += range(end, max(first, end - RECENT + len(found) + 1) - 1, -1)
        if len(found) >= RECENT:
            break
    return found


def _look_into(folder: str, letter: str, trees: object) -> Json:
    """Of each of the newest: a checksum over names, sizes, stamps and modes, and the stat of its metadata.

    Without ``model/`` it is ``removed``, if its metadata say so, or ``gone``.
    """
    found: Json = {}
    for number in _newest(trees):
        name = f"{letter}{number:03d}"
        model, metadata = f"{folder}/{name}/model", f"{folder}/{name}/metadata.json"
        try:
            # Without ctime, which changes when another version shares a file.
            files = [(path, stat[0], stat[1], stat[3]) for path, stat in sorted(take_signature(model).items())]
            checksum = zlib.crc32(repr((os.stat(model).st_mode, files)).encode())
            found[name] = [checksum, stat_of(metadata)]
        except OSError:
            found[name] = "removed" if (read_object(metadata) or {}).get("removed_at") else "gone"
    return found


def _versions_of_backups(base: str, backups: object, known: Json) -> Json:
    """Which version each of the newest backups is of, so that one that goes can be made again."""
    found = {}
    for number in _newest(backups):
        name = f"b{number:03d}"
        metadata = {} if name in known else read_object(f"{base}/models/backups/{name}/metadata.json") or {}
        found[name] = known.get(name, metadata.get("version"))
    return found


def _list_base_models(base: str, *named: object) -> list[str]:
    """Base models that are there: the configured one, the locked one and the merged ones."""
    found = {os.path.join(base, os.path.expanduser(name)) for name in named if isinstance(name, str) and name}
    merged = f"{base}/consolidated_models"
    if os.path.isdir(merged):
        found.update(f"{merged}/{name}" for name in os.listdir(merged) if not name.startswith("."))
    return sorted(os.path.realpath(path) for path in found if os.path.exists(f"{path}/config.json"))


def _look_at_code() -> Json:
    folder = f"{CODE_DIR}/guardrails"
    names = ["agent_hook.py", *(f"guard/{name}" for name in os.listdir(f"{folder}/guard") if name.endswith(".py"))]
    return {name: stat_of(f"{folder}/{name}") for name in sorted(names)}


# What explains a change


def read_approvals(base: str) -> dict[str, Json]:
    """The last recorded change of each locked key."""
    try:
        with open(f"{base}/.config_approvals.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16)))
            lines = file.read().splitlines()
    except OSError:
        return {}
    found: dict[str, Json] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("key"), str):
            found[record["key"]] = record
    return found


def names_in_trash(base: str) -> set[object]:
    """The versions, backups and files that lie in the trash."""
    trash = f"{base}/models/trash"
    names = os.listdir(trash) if os.path.isdir(trash) else []
    return {(read_object(f"{trash}/{name}/entry.json") or {}).get("name") for name in names}


def is_training(base: str) -> bool:
    """Whether a daemon has a run open."""
    folder = f"{base}/queue/processing"
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return any(not name.startswith(".") for name in names) and is_held(f"{base}/.locks/daemon.lock")


def was_model_changed_since(base: str, mark: str) -> bool:
    """Whether the newest change in ``current_model/`` is as young as the file ``mark``; True where that is missing."""
    stamp = stat_of(mark)
    folder = f"{base}/current_model"
    try:
        changed = [os.stat(folder).st_ctime_ns, *(stat[2] for stat in take_signature(folder).values())]
    except OSError:
        return True
    return stamp is None or max(changed) >= stamp[1]
