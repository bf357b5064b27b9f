"""What the files of a base dir say at one moment. Pure reading: nothing is changed, started or waited for.

Every report starts here, so this imports no library beyond the standard one's light parts, and reads
whatever lies in the files, however odd: what cannot be read is named in ``Facts.unreadable``.
"""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from guardrails.errors import DamagedStateError
from guardrails.locks import read_holder
from guardrails.paths import BACKUP_ID, QUEUE_STATES, STAGE_PREFIX, VERSION_ID, Paths
from guardrails.signature import Signature, take_model_signature, take_signature
from guardrails.state_io import format_utc, read_json

GIB = 1 << 30
# As in guardrails.config, which imports too much for a report; a test holds them equal.
LOCKED_DEFAULTS: dict[str, object] = {"max_length": 2048, "base_model": None, "model_name": "model"}
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")

STATUSES = ("idle", "training", "paused", "stopping", "stopped", "error")
# What training_status.json may only say while a daemon or a worker lives.
LIVE_STATUSES = ("training", "paused", "stopping")
# For a status file that is missing or unusable: what the daemon's own state means.
STATUS_OF_DAEMON = {"training": "training", "publishing": "training", "paused": "paused", "stopping": "stopping"}
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
NVIDIA_DRIVER = "/proc/driver/nvidia"
# A reader can meet a writer between two of its steps; looking again settles it.
LOOKS = 3

Json = dict[str, Any]


class SavedTree:
    """One version or backup as it lies on the disk; ``problems`` is empty when it is as its manifest says."""

    __slots__ = ("device", "folder", "id", "metadata", "problems", "removed", "sizes")

    def __init__(self, identifier: str, folder: Path) -> None:
        self.id = identifier
        self.folder = folder
        self.metadata: Json = {}
        self.problems: list[str] = []
        self.removed = False
        # relative path -> (bytes, inode)
        self.sizes: dict[str, tuple[int, int]] = {}
        self.device = 0

    @property
    def size_bytes(self) -> int:
        """Apparent bytes of the tree, files that share an inode counted once."""
        return sum({inode: size for size, inode in self.sizes.values()}.values())

    def created_at(self) -> str:
        """When it was made: as recorded, else by the stamp of its folder."""
        recorded = timestamp(self.metadata.get("created_at"))
        if recorded is not None:
            return recorded
        try:
            return format_utc(os.stat(self.folder).st_mtime)
        except OSError:
            return format_utc(0)


class Facts:
    """All that one report is made of: the document's sections and what the findings look at besides."""

    def __init__(self, paths: Paths, now: float) -> None:
        self.paths = paths
        self.now = now
        # relative path -> (message, hint)
        self.unreadable: dict[str, tuple[str, str]] = {}

        self.config: Json = {}
        self.config_exists = False
        self.config_problem: str | None = None
        self.lock: Json = {}

        self.versions: list[SavedTree] = []
        self.backups: list[SavedTree] = []
        self.backup_folder = paths.backups
        self.trash_bytes = 0

        self.head: Json = {}
        self.head_known = True
        self.model_signature: Signature | None = None
        self.trainer_steps = 0
        # False while a change goes on so fast that head and folder were never seen at one moment
        self.model_settled = True

        self.intent: Json | None = None
        self.store_holder: str | None = None
        self.stages: list[str] = []

        self.training: Json = {}
        self.daemon: Json = {}
        self.daemon_running = False
        self.worker_running = False
        self.outcome: Json | None = None
        self.queue: dict[str, int] = {}
        self.processing: list[str] = []

        self.base_model: Path | None = None
        self.base_model_signature: Signature | None = None
        self.base_model_cache: Json = {}

        self.available_bytes = 0
        self.used_bytes = 0
        self.total_bytes = 0
        self.gpu: Json | None = None

    def read(self, path: Path) -> Json | None:
        """A state document; None if it is missing, and also if it is unusable, which is then noted."""
        try:
            return read_json(path)
        except DamagedStateError as error:
            self.unreadable[self.paths.relative(path)] = (error.message, error.hint)
            return None

    def note_unreadable(self, path: Path, error: OSError | ValueError) -> None:
        message = f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        self.unreadable[self.paths.relative(path)] = (message, "check the permissions and the disk")

    @property
    def died(self) -> bool:
        """A file is being worked on, and neither a daemon nor a word of goodbye from one is there."""
        return bool(self.processing) and not self.daemon_running and self.daemon.get("state") != "stopped"

    def version(self, identifier: object) -> SavedTree | None:
        return next((version for version in self.versions if version.id == identifier), None)

    @property
    def head_version(self) -> SavedTree | None:
        """The version that ``current_model/`` came from, if it is known and still there."""
        return self.version(self.head.get("version"))

    @property
    def head_metadata(self) -> Json:
        """What is known of the version that ``current_model/`` is, from its second copy if its own record is lost."""
        head = self.head_version
        if head is None or head.metadata:
            return head.metadata if head else {}
        records = (b.metadata.get("version_metadata") for b in self.backups if b.metadata.get("version") == head.id)
        return next((record for record in records if isinstance(record, dict)), {})

    @property
    def kept_versions(self) -> list[SavedTree]:
        return [version for version in self.versions if not version.removed]


def gather(paths: Paths, now: float) -> Facts:
    """Everything about a base dir, at ``now`` (seconds since the epoch)."""
    facts = Facts(paths, now)
    _read_config(facts)
    # In this order: a version is there before the head names it, and its backup before the daemon is done publishing.
    _read_current_model(facts)
    _read_training(facts)
    facts.versions = _read_saved(facts, paths.versions, VERSION_ID)
    facts.backups = _read_saved(facts, facts.backup_folder, BACKUP_ID)
    facts.trash_bytes = sum(size for size, _ in list_sizes(paths.trash).values())
    _read_base_model(facts)
    disk = os.statvfs(paths.base)
    facts.available_bytes = disk.f_bavail * disk.f_frsize
    facts.used_bytes = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    facts.total_bytes = disk.f_blocks * disk.f_frsize
    if is_folder(NVIDIA_DRIVER):
        from guardrails.gpu import read_gpu

        facts.gpu = read_gpu()
    return facts


def timestamp(value: object) -> str | None:
    """``value`` if it is a time as this toolkit writes it."""
    return value if isinstance(value, str) and TIMESTAMP.fullmatch(value) else None


def integer(value: object) -> int:
    """``value`` if it is a whole number, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def number_or_none(value: object) -> float | None:
    """``value`` if it is a finite number; NaN and infinity have no place in strict JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text(value: object) -> str:
    """``value`` as a string that every JSON reader takes: lone surrogates are escaped, anything else is empty."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else ""


def is_folder(path: str | os.PathLike[str]) -> bool:
    return stat.S_ISDIR(_status(path)[0])


def _status(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Mode, inode and mtime_ns, links followed; zeros for whatever cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0, 0
    return status.st_mode, status.st_ino, status.st_mtime_ns


def list_sizes(root: str | os.PathLike[str]) -> dict[str, tuple[int, int]]:
    """Size and inode of every regular file below ``root``, by relative path; what cannot be listed is left out."""
    found: dict[str, tuple[int, int]] = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{folder}{entry.name}/")
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        found[f"{folder}{entry.name}"] = (status.st_size, status.st_ino)
        except OSError:
            # Gone since it was listed, or closed to us; the manifest says whether it should be there.
            continue
    return found


def _list_folder(facts: Facts, folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        facts.note_unreadable(folder, error)
        return []


def _read_config(facts: Facts) -> None:
    """The parts of config.json that a report needs, checked lightly: the daemon's pre-flight checks it all."""
    paths = facts.paths
    facts.lock = facts.read(paths.config_lock) or {}
    try:
        content = paths.config.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        facts.config_exists = True
        facts.config_problem = error.strerror or str(error)
        return
    facts.config_exists = True
    try:
        config = json.loads(content, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        facts.config_problem = str(error)
        return
    if not isinstance(config, dict):
        facts.config_problem = "not a JSON object"
        return
    for key, kind, allowed in (
        ("model_name", str, "a string"),
        ("base_model", str | None, "a string or null"),
        ("max_length", int, "a whole number"),
        ("backup_dir", str | None, "a string or null"),
    ):
        value = config.get(key)
        odd = isinstance(value, bool) or (isinstance(value, str) and "\0" in value)
        if key in config and (odd or not isinstance(value, kind)):
            facts.config_problem = f"{key} is {json.dumps(value)[:80]} instead of {allowed}"
            break
        value = value if key in config else LOCKED_DEFAULTS.get(key)
        facts.config[key] = text(value) if isinstance(value, str) else value
    facts.config["backup"] = config.get("backup", "after_each")
    facts.config["immutable_versions"] = config.get("immutable_versions") is True
    folder = facts.config.get("backup_dir")
    if folder:
        facts.backup_folder = _resolve(paths, folder)


def _unique_keys(pairs: list[tuple[str, Any]]) -> Json:
    settings = dict(pairs)
    if len(settings) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'key "{twice}" stands in it twice')
    return settings


def _resolve(paths: Paths, value: str) -> Path:
    try:
        return paths.resolve(value)
    except RuntimeError:  # "~" of a user who does not exist
        return paths.base / value


def _read_saved(facts: Facts, folder: Path, pattern: re.Pattern[str]) -> list[SavedTree]:
    """All versions or backups in ``folder``, oldest first; tombstones are marked ``removed``."""
    ids = [entry.name for entry in _list_folder(facts, folder) if pattern.fullmatch(entry.name) and entry.is_dir()]
    ids.sort(key=lambda identifier: int(identifier[1:]))
    found = []
    for identifier in ids:
        tree = _inspect(facts, identifier, folder / identifier)
        if tree.problems:
            # It may just have been removed or come into being.
            tree = _inspect(facts, identifier, folder / identifier)
            if not tree.folder.is_dir():
                continue
        found.append(tree)
    return found


def _inspect(facts: Facts, identifier: str, folder: Path) -> SavedTree:
    """Read the metadata of one tree and hold names and sizes of its files against it."""
    tree = SavedTree(identifier, folder)
    try:
        metadata = read_json(folder / "metadata.json")
    except DamagedStateError as error:
        tree.problems.append(error.message.replace(f"{facts.paths.base}/", ""))
        metadata = {}
    else:
        if metadata is None:
            tree.problems.append("metadata.json is missing")
    tree.sizes = list_sizes(folder)
    try:
        tree.device = os.stat(folder / "model").st_dev
    except OSError:
        if metadata and metadata.get("removed_at"):
            tree.removed = True
        else:
            tree.problems.append("its folder model/ is missing")
    if not metadata:
        return tree
    tree.metadata = metadata
    if metadata.get("id") != identifier:
        tree.problems.append(f"metadata.json is that of {text(metadata.get('id')) or 'something else'}")
    if tree.device:
        tree.problems += compare_sizes(tree.sizes, metadata.get("files"))
    return tree


def compare_sizes(present: dict[str, tuple[int, int]], files: object) -> list[str]:
    """What differs, by name and size alone, between a saved tree and the ``files`` of its metadata."""
    if not isinstance(files, list) or not all(isinstance(f, dict) and isinstance(f.get("path"), str) for f in files):
        return ["metadata.json has no list of files"]
    problems = []
    expected = {f"model/{entry['path']}": entry.get("size") for entry in files}
    for path, size in expected.items():
        if path not in present:
            problems.append(f"{text(path)} is missing")
        elif present[path][0] != size:
            problems.append(f"{text(path)} has {present[path][0]} bytes instead of {size}")
    extra = sorted(path for path in present if path.startswith("model/") and path not in expected)
    return problems + [f"{text(path)} is not part of it" for path in extra]


def _read_current_model(facts: Facts) -> None:
    """``current_model/`` and what is known about it, as of one moment between two changes of it."""
    paths = facts.paths
    # A change holds the store lock as long as its intent stands, so an intent that is the same before and after
    # nobody was seen holding the lock has lost its process.
    watched = (paths.current_model, paths.head, paths.intent)
    for _ in range(LOOKS):
        before = [_status(path) for path in watched]
        facts.head = facts.read(paths.head) or {}
        facts.head_known = paths.relative(paths.head) not in facts.unreadable
        facts.intent = facts.read(paths.intent)
        holder = _holder(facts, paths.locks / "store.lock")
        facts.store_holder = f"process {holder.pid} ({text(holder.purpose)})" if holder else None
        try:
            facts.model_signature = take_signature(paths.current_model)
        except (FileNotFoundError, NotADirectoryError):
            facts.model_signature = None
        except OSError as error:
            facts.note_unreadable(paths.current_model, error)
            facts.model_signature = {}
        vanished = facts.model_signature is None and is_folder(paths.current_model)
        facts.model_settled = not vanished and before == [_status(path) for path in watched]
        if facts.model_settled:
            break
    if facts.model_signature and "trainer_state.json" in facts.model_signature:
        facts.trainer_steps = integer(_read_lightly(paths.current_model / "trainer_state.json").get("global_step"))
    for folder in (paths.models, paths.versions, facts.backup_folder):
        facts.stages += [
            paths.relative(folder / entry.name)
            for entry in _list_folder(facts, folder)
            if entry.name.startswith(STAGE_PREFIX)
        ]
    facts.stages.sort()


def _holder(facts: Facts, path: Path) -> Any:
    try:
        return read_holder(path)
    except OSError as error:
        facts.note_unreadable(path, error)
        return None


def _read_training(facts: Facts) -> None:
    """Queue, daemon and run, as of one moment between two starts or ends of a daemon."""
    paths = facts.paths
    daemon_lock = paths.locks / "daemon.lock"
    for _ in range(LOOKS):
        running = _holder(facts, daemon_lock) is not None
        facts.training = facts.read(paths.training_status) or {}
        facts.daemon = facts.read(paths.daemon_status) or {}
        facts.queue = dict.fromkeys(QUEUE_STATES, 0)
        for state in QUEUE_STATES:
            names = [
                entry.name
                for entry in _list_folder(facts, paths.queue_folder(state))
                if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False)
            ]
            facts.queue[state] = len(names)
            if state == "processing":
                facts.processing = sorted(names)
        run_id = facts.daemon.get("run_id") or facts.training.get("run_id")
        facts.worker_running, facts.outcome = False, None
        if isinstance(run_id, str) and run_id not in ("", ".", "..") and "/" not in run_id and "\0" not in run_id:
            facts.worker_running = _holder(facts, paths.run(run_id) / ".lock") is not None
            facts.outcome = facts.read(paths.run(run_id) / "outcome.json")
        facts.daemon_running = _holder(facts, daemon_lock) is not None
        if running == facts.daemon_running:
            break


def _read_base_model(facts: Facts) -> None:
    """What tells whether the base model is still the locked one, without reading a byte of it."""
    setting = facts.config.get("base_model")
    if not setting:
        return
    facts.base_model = _resolve(facts.paths, setting)
    if stat.S_ISREG(_status(facts.base_model / "config.json")[0]):
        try:
            facts.base_model_signature = take_model_signature(facts.base_model)
        except OSError as error:
            facts.note_unreadable(facts.base_model, error)
    facts.base_model_cache = _read_lightly(facts.paths.base_model_stat)


def _read_lightly(path: Path) -> Json:
    """A JSON object that nothing depends on: a cache, or a file that is not ours. Empty if it is no use."""
    try:
        return read_json(path) or {}
    except DamagedStateError:
        return {}


def has_adapter(facts: Facts) -> bool:
    """Whether ``current_model/`` holds an adapter that can be loaded: its configuration and its weights."""
    names = facts.model_signature or {}
    return "adapter_config.json" in names and any(name in names for name in ADAPTER_WEIGHTS)


def training_steps(facts: Facts) -> int:
    """Steps of all time in ``current_model/``: from its version, else from the Trainer's own record in it."""
    if facts.model_signature is None:
        return 0
    known = facts.head_metadata
    return integer(known.get("training_steps")) if known else facts.trainer_steps


def true_status(facts: Facts) -> str:
    """One of ``STATUSES``: what the status file says, where a living process stands behind it.

    A file that says ``training`` while nothing lives is what a kill leaves. It is ``error`` when the
    daemon died in the run, else what the run's end and the daemon's last word make of it.
    """
    said = facts.training.get("status")
    if said not in STATUSES:
        state = facts.daemon.get("state")
        said = STATUS_OF_DAEMON.get(str(state), "idle") if facts.daemon_running else "idle"
        if facts.worker_running:
            said = "training"
    # A pause needs a daemon that waits for the resume, whatever the worker does.
    alive = facts.daemon_running or (facts.worker_running and said != "paused")
    if said == "stopped" and not facts.processing and not alive:
        # A rollback without a daemon dropped the run that had stopped.
        return "idle"
    if alive or (said not in LIVE_STATUSES and not facts.died):
        return str(said)
    if facts.outcome is None:
        return "error" if facts.died or facts.daemon.get("state") != "stopped" else "stopped"
    return "stopped" if facts.processing else "idle"
