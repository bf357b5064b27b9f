"""What the files of a base dir say at one moment. Pure reading: nothing is changed, started or waited for.

Every report starts here, so this imports no library beyond the standard one's light parts, and reads
whatever lies in the files, however odd: what cannot be read is named in ``Facts.unreadable``.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guardrails.errors import DamagedStateError
from guardrails.locks import read_holder
from guardrails.paths import BACKUP_ID, QUEUE_STATES, STAGE_PREFIX, VERSION_ID, Paths
from guardrails.report.digest import digest
from guardrails.report.memory import ReportMemory, mark_folders, recall
from guardrails.report.saved_trees import SavedTree, describe
from guardrails.report.shelf import Place, Shelf, empty_shelf, read_shelf
from guardrails.report.values import Json, integer, text
from guardrails.signature import Signature, take_model_signature, take_signature
from guardrails.state_io import NOTHING, read_file, read_json

LOCK_KEYS = {"locked": dict, "base_model_fingerprint": dict}
# As in guardrails.config, which imports too much for a report; a test holds them equal.
LOCKED_DEFAULTS: dict[str, object] = {"max_length": 2048, "base_model": None, "model_name": "model"}

STATUSES = ("idle", "training", "paused", "stopping", "stopped", "error")
# What training_status.json may only say while a daemon or a worker lives.
LIVE_STATUSES = ("training", "paused", "stopping")
# For a status file that is missing or unusable: what the daemon's own state means.
STATUS_OF_DAEMON = {"training": "training", "publishing": "training", "paused": "paused", "stopping": "stopping"}
# Why a file or folder cannot be read: it or its disk does not let us, it is torn, or it is a newer toolkit's.
TROUBLES = ("closed", "damaged", "newer")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
NVIDIA_DRIVER = "/proc/driver/nvidia"
# A reader can meet a writer between two of its steps; looking again settles it.
LOOKS = 3
# An entry of the trash gets its name first and its content after; of so many, the newest, that may be to come.
FRESH_ENTRIES = 16
# A report looks at the metadata.json of every version; at those of backups as long as all together are not more than
# these, and else at so many in turn, and at least at so many.
MOST_RECORDS = 9000
LEAST_RECORDS = 1000


class Facts:
    """All that one report is made of: the document's sections and what the findings look at besides."""

    def __init__(self, paths: Paths, now: float) -> None:
        self.paths = paths
        self.now = now
        self.memory = ReportMemory({}, "", {})
        # relative path -> (message, one of TROUBLES)
        self.unreadable: dict[str, tuple[str, str]] = {}

        self.config: Json = {}
        self.config_exists = False
        self.config_problem: str | None = None
        # Only a setting is wrong, not the file.
        self.config_parses = False
        self.lock: Json = {}

        self.versions = empty_shelf(Place(paths.versions, VERSION_ID, paths.base))
        self.backups = empty_shelf(Place(paths.backups, BACKUP_ID, paths.base))
        self.backup_folder = paths.backups
        # What lies in models/backups/ while backup_dir is another folder.
        self.other_backup_bytes = 0
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

    def read(self, path: Path, required: Mapping[str, Any] = NOTHING) -> Json | None:
        """A state document; None if it is missing, and also if it is unusable, which is then noted."""
        try:
            return read_json(path, required)
        except DamagedStateError as error:
            cause = error.__cause__
            trouble = "closed" if isinstance(cause, OSError) else "damaged" if cause is not None else "newer"
            self.unreadable[self.paths.relative(path)] = (error.message, trouble)
            return None

    def note_unreadable(self, path: Path, error: OSError | ValueError) -> None:
        message = f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        self.unreadable[self.paths.relative(path)] = (message, "closed")

    @property
    def died(self) -> bool:
        """A file is being worked on, and neither a daemon nor a word of goodbye from one is there."""
        return bool(self.processing) and not self.daemon_running and self.daemon.get("state") != "stopped"

    @property
    def head_version(self) -> SavedTree | None:
        """The version that ``current_model/`` came from, if it is known and still there."""
        return self.find_head(self.versions)

    def find_head(self, versions: Shelf) -> SavedTree | None:
        return versions.find(self.head.get("version"))

    @property
    def head_metadata(self) -> Json:
        """What is known in short of the version that ``current_model/`` is; of a lost record, what a backup says."""
        head = self.head_version
        if head is None or head.metadata:
            return head.metadata if head else {}
        return self.read_head_metadata()

    def read_head_metadata(self) -> Json:
        """All that is known of that version."""
        head = self.head_version
        if head is None or head.metadata:
            return head.read_metadata() if head else {}
        backups = (backup for backup in self.backups if backup.metadata.get("version") == head.id)
        records = (backup.read_metadata().get("version_metadata") for backup in backups)
        return next((record for record in records if isinstance(record, dict)), {})


def gather(paths: Paths, now: float) -> Facts:
    """Everything about a base dir, at ``now`` (seconds since the epoch)."""
    facts = Facts(paths, now)
    facts.memory = recall(paths)
    _read_config(facts)
    # In this order: a version is there before the head names it, and its backup before the daemon is done publishing.
    _read_current_model(facts)
    _read_training(facts)
    _read_saved(facts)
    _read_base_model(facts)
    disk = os.statvfs(paths.base)
    facts.available_bytes = disk.f_bavail * disk.f_frsize
    facts.used_bytes = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    facts.total_bytes = disk.f_blocks * disk.f_frsize
    if is_folder(NVIDIA_DRIVER):
        from guardrails.gpu import read_gpu

        facts.gpu = read_gpu()
    return facts


def is_folder(path: str | os.PathLike[str]) -> bool:
    return stat.S_ISDIR(_status(path)[0])


def _status(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Mode, inode and mtime_ns, links followed; zeros for whatever cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0, 0
    return status.st_mode, status.st_ino, status.st_mtime_ns


def _add_up(root: str | os.PathLike[str]) -> int:
    """Bytes of all regular files below ``root``, those that share an inode once; what cannot be listed is left out."""
    sizes: dict[int, int] = {}
    pending = [os.fspath(root)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        sizes[status.st_ino] = status.st_size
        except OSError:
            # Gone since it was listed, or closed to us.
            continue
    return sum(sizes.values())


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
    """The parts of config.json that a report needs, and what is wrong with it, as pre-flight would find it."""
    paths = facts.paths
    facts.lock = facts.read(paths.config_lock, LOCK_KEYS) or {}
    try:
        content = read_file(paths.config)
    except FileNotFoundError:
        return
    except OSError as error:
        facts.config_exists = True
        facts.config_problem = error.strerror or str(error)
        return
    facts.config_exists = True
    try:
        # As text: of bytes, json takes UTF-16 and a byte order mark, too, which no run does.
        config = json.loads(content.decode(), object_pairs_hook=_unique_keys)
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
    if facts.config_problem is None:
        # The full check imports more than a report costs; each new config is checked once.
        facts.config_problem = facts.memory.ask("config", digest(content), lambda: _check_config(config, paths.config))
        facts.config_parses = True


def _check_config(settings: Json, path: Path) -> str | None:
    """What is wrong with the settings, if anything is."""
    from guardrails.config import find_problem

    return find_problem(settings, path)


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


def _read_saved(facts: Facts) -> None:
    """Versions, backups and trash, as far as they are not as the last report knew them."""
    paths = facts.paths
    place = Place(paths.versions, VERSION_ID, paths.base, describe)
    facts.versions = _read_shelf(facts, "versions", place, watch=lambda shelf: [facts.find_head(shelf)])
    head = facts.head_version
    facts.backups = _read_shelf(
        facts,
        "backups",
        Place(facts.backup_folder, BACKUP_ID, paths.base),
        watch=lambda shelf: shelf.list_copies(head) if head else [],
        most_records=max(LEAST_RECORDS, MOST_RECORDS - len(facts.versions)),
    )
    names = [entry.name for entry in _list_folder(facts, paths.models) if entry.name.startswith(STAGE_PREFIX)]
    facts.stages = [paths.relative(paths.models / name) for name in names]
    for shelf in (facts.versions, facts.backups):
        facts.stages += [paths.relative(shelf.folder / name) for name in shelf.stored.stages]
    facts.stages.sort()
    if facts.backup_folder != paths.backups:
        facts.other_backup_bytes = _count_bytes(facts, paths.backups)
    facts.trash_bytes = _count_bytes(facts, paths.trash)


def _read_shelf(facts: Facts, name: str, place: Place, **how: Any) -> Shelf:
    try:
        return read_shelf(place, facts.memory.shelves.get(name), facts.memory.turn(name), **how)
    except OSError as error:
        facts.note_unreadable(place.folder, error)
        return empty_shelf(place)


def _count_bytes(facts: Facts, folder: Path) -> int:
    """What lies in a folder of things that do not change any more once they are there."""
    try:
        fresh = sorted(os.listdir(folder))[-FRESH_ENTRIES:]
        mark = mark_folders([folder, *(folder / name for name in fresh)])
    except OSError:
        mark = None
    return facts.memory.ask(facts.paths.relative(folder), mark, lambda: _add_up(folder))


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
            _read_queue(facts, state, paths.queue_folder(state))
        run_id = facts.daemon.get("run_id") or facts.training.get("run_id")
        facts.worker_running, facts.outcome = False, None
        if isinstance(run_id, str) and run_id not in ("", ".", "..") and "/" not in run_id and "\0" not in run_id:
            facts.worker_running = _holder(facts, paths.run(run_id) / ".lock") is not None
            facts.outcome = facts.read(paths.run(run_id) / "outcome.json")
        facts.daemon_running = _holder(facts, daemon_lock) is not None
        if running == facts.daemon_running:
            break


def _read_queue(facts: Facts, state: str, folder: Path) -> None:
    """How many data files lie in a folder of the queue; a hundred thousand are counted when one came or went."""
    try:
        if state == "processing":
            facts.processing = sorted(_list_data(folder))
            facts.queue[state] = len(facts.processing)
        else:
            facts.queue[state] = facts.memory.ask(
                f"queue/{state}", mark_folders([folder]), lambda: len(_list_data(folder))
            )
    except FileNotFoundError:
        pass
    except OSError as error:
        facts.note_unreadable(folder, error)


def _list_data(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [e.name for e in entries if not e.name.startswith(".") and e.is_file(follow_symlinks=False)]


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
