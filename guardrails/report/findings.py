"""What deserves a person's attention: each finding with a stable id, a category, a severity and a command that helps.

Severities: ``critical`` when training cannot go on or a copy is lost or damaged, ``warning`` when somebody should
act soon, ``info`` when it is good to know; info does not touch the verdict. The table of all findings is in
docs/STATE_TRACKER_GUIDE.md.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from guardrails.paths import CODE_DIR
from guardrails.report.facts import LOCKED_DEFAULTS, Facts, has_adapter, is_folder, training_steps
from guardrails.report.saved_trees import SavedTree
from guardrails.report.values import GIB, text, timestamp
from guardrails.state_io import format_utc
from guardrails.store.immutable import is_immutable

# Worst first, and within a severity in the guide's order.
SEVERITIES = ("critical", "warning", "info")
CATEGORIES = ("model", "config", "daemon", "disk", "backup")

CRITICAL_FREE_BYTES = 10 * GIB
LOW_FREE_BYTES = 50 * GIB
# With daily backups the newest version may go without one for this long.
DAILY_SECONDS = 86400
CLOCK_TOLERANCE_SECONDS = 60
# How long the report tells of what the guard put right.
HEALED_SECONDS = 86400
SAFE_IN_A_SHELL = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


class Finding:
    """One thing to know about. ``id`` stays the same from report to report while the cause lasts."""

    __slots__ = ("category", "hint", "id", "message", "severity")

    def __init__(self, identifier: str, category: str, severity: str, message: str, hint: str) -> None:
        self.id = text(identifier)
        self.category = category
        self.severity = severity
        self.message = text(message)
        self.hint = text(hint)


def find(facts: Facts, last_report: str | None) -> list[Finding]:
    """Every finding about a base dir, worst first. ``last_report`` is the time of the last one, if it is known."""
    rules = (
        _model,
        _changes,
        _config,
        _base_model,
        _guard,
        _daemon,
        _queue,
        _disk,
        _state_file,
        _saved,
        _immutable,
        _second_copy,
        _unreadable,
    )
    found = [finding for rule in rules for finding in rule(facts)]
    return worst_first([*found, *_clock(facts, last_report)])


def worst_first(findings: list[Finding]) -> list[Finding]:
    """By severity, then in the guide's order of categories."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), CATEGORIES.index(f.category)))


def verdict(findings: list[Finding]) -> str:
    """``ok``, ``warning`` or ``critical``: the worst severity above info."""
    worst = [finding.severity for finding in findings if finding.severity != "info"]
    return "critical" if "critical" in worst else "warning" if worst else "ok"


def command(facts: Facts, script: str, *arguments: str) -> str:
    """The shell command, for the toolkit's own folder, that runs ``script`` on this base dir."""
    base = facts.paths.base
    if base != CODE_DIR:
        arguments = (*arguments, "--base-dir", str(base))
    return " ".join(["python3", script, *(quote(argument) for argument in arguments)])


def quote(argument: str) -> str:
    """One word for a POSIX shell."""
    return argument if SAFE_IN_A_SHELL.fullmatch(argument) else "'" + argument.replace("'", "'\"'\"'") + "'"


def move_away(path: str) -> str:
    """The shell command that gives a damaged file another name."""
    return f"mv {quote(path)} {quote(f'{path}.damaged')}"


def look_at(folder: Path, *files: str) -> str:
    """The shell command that shows the room and the permissions that a folder and those files in it have."""
    names = [str(folder), *(name for name in files if os.path.lexists(name))]
    return f"df -h {quote(str(folder))}; ls -ld {' '.join(map(quote, names))}"


def _model(facts: Facts) -> Iterator[Finding]:
    head, signature = facts.head_version, facts.model_signature
    create = command(facts, "model_versioner.py", "create")
    if not facts.model_settled:
        return
    wanted = facts.head.get("version")
    is_empty = signature == {} and facts.paths.relative(facts.paths.current_model) not in facts.unreadable
    if signature is None or (is_empty and wanted is not None):
        if wanted is None:
            newest = facts.versions.find_newest(kept=True)
            hint = command(facts, "training_daemon.py")
            if newest:
                hint = command(facts, "model_versioner.py", "restore", newest.id)
            yield Finding("model-fresh-start", "model", "info", "No current model - fresh start", hint)
        elif facts.intent is None:
            message = f"current_model/ is {'missing' if signature is None else 'empty'}; it was {wanted}"
            hint = command(facts, "model_versioner.py", "restore", text(wanted))
            if head is None:
                hint = f"{command(facts, 'model_versioner.py', 'repair', text(wanted))} && {hint}"
            yield Finding("model-missing", "model", "critical", message, hint)
        return
    if not has_adapter(facts):
        hint = command(facts, "model_versioner.py", "list")
        yield Finding("model-no-adapter", "model", "info", "No adapter found - base model only", hint)
    if not signature or not facts.head_known or facts.intent is not None:
        return
    if not facts.versions.summary.kept:
        message = "Current model exists but no versions saved - create backup!"
        yield Finding("backup-no-versions", "backup", "warning", message, create)
    elif head is None or head.removed:
        message = "current_model/ is no saved version"
        if facts.head.get("version"):
            message += f": {facts.head['version']}, which it came from, was removed"
        yield Finding("model-unsaved", "model", "warning", message, _save_or_take_back(facts))
    elif facts.head.get("signature") != signature:
        changed, touched = compare_with_head(facts)
        verb = "was changed" if changed else "may have changed"
        message = f"current_model/ {verb} since it was saved as {head.id}: {first_of(changed + touched)}"
        yield Finding("model-changed", "model", "warning", message, _save_or_take_back(facts))


def _save_or_take_back(facts: Facts) -> str:
    """The command for a model that is no saved version: ``create``, where the model can be saved."""
    from guardrails.report.adapter_check import is_torn

    signature, model = facts.model_signature or {}, facts.paths.current_model
    if any(stat[0] < 0 for stat in signature.values()):
        return f"find {quote(str(model))} ! -type d ! -type f"
    if any(name.endswith(".safetensors") and is_torn(model / name) for name in signature):
        return command(facts, "model_versioner.py", "rollback", "--by-hand")
    return command(facts, "model_versioner.py", "create")


def compare_with_head(facts: Facts) -> tuple[list[str], list[str]]:
    """What in ``current_model/`` differs for sure from when it was last known to equal its version, and what may."""
    recorded = facts.head.get("signature")
    old = recorded if isinstance(recorded, dict) else {}
    new = facts.model_signature or {}
    changed = [f"{name} is missing" for name in sorted(old.keys() - new.keys())]
    for name in sorted(new.keys() - old.keys()):
        changed.append(f"{name} is new{'' if new[name][0] >= 0 else ', and a link or no file'}")
    touched = []
    for name in sorted(old.keys() & new.keys()):
        size = old[name][0] if isinstance(old[name], list) and old[name] else None
        if new[name][0] < 0:
            changed.append(f"{name} is a link or no file")
        elif new[name][0] != size:
            changed.append(f"{name} has {new[name][0]} bytes instead of {size}")
        elif new[name] != old[name]:
            touched.append(f"{name} was touched")
    return changed, touched


def first_of(problems: list[str]) -> str:
    """The first of some problems, and how many more there are."""
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _changes(facts: Facts) -> Iterator[Finding]:
    if facts.intent is None:
        return
    operation = text(facts.intent.get("operation")) or "change"
    if is_under_way(facts):
        who = facts.store_holder or "the daemon"
        hint = command(facts, "model_versioner.py", "list")
        yield Finding("change-under-way", "model", "info", f"a {operation} of current_model/ is under way: {who}", hint)
    else:
        message = f"a {operation} of current_model/ was interrupted; nothing trains until it is finished"
        hint = command(facts, "model_versioner.py", "create")
        yield Finding("change-interrupted", "model", "warning", message, hint)


def is_under_way(facts: Facts) -> bool:
    """Whether a living process is at work on ``current_model/`` and the versions."""
    if facts.store_holder is not None or not facts.model_settled:
        return True
    return facts.daemon_running and facts.daemon.get("state") == "publishing"


def _config(facts: Facts) -> Iterator[Finding]:
    if not facts.config_exists:
        hint = command(facts, "training_daemon.py", "--init")
        yield Finding("config-missing", "config", "critical", "Config file missing!", hint)
        return
    if facts.config_problem is not None:
        hint = command(facts, "training_controller.py", "config", "check")
        message = f"Error reading config: {facts.config_problem}"
        yield Finding("config-unreadable", "config", "critical", message, hint)
        if not facts.config_parses:
            return
    if facts.config.get("base_model") is None:
        hint = command(facts, "training_controller.py", "config", "set", "base_model", "/path/to/model")
        message = "base_model is not set: nothing can be trained"
        yield Finding("config-no-base-model", "config", "warning", message, hint)
    locked = locked_values(facts)
    approve = command(facts, "training_controller.py", "config", "approve")
    for key in LOCKED_DEFAULTS:
        new = facts.config.get(key)
        if key in locked and new != locked[key]:
            message = (
                f"locked {key} was changed from {show(locked[key])} to {show(new)}; a person may accept it: {approve}"
            )
            hint = command(facts, "training_controller.py", "config", "set", key, show(locked[key]))
            yield Finding(f"config-lock-changed:{key}", "config", "critical", message, hint)
    if locked and not os.path.lexists(facts.paths.config_lock):
        key = next(iter(locked))
        message = f"{facts.paths.config_lock.name} is missing; what {facts.head['version']} was trained with holds"
        hint = command(facts, "training_controller.py", "config", "set", key, show(locked[key]))
        yield Finding("config-lock-missing", "config", "warning", message, hint)


def read_lock(facts: Facts) -> dict[str, object]:
    """The config lock; where its file is gone, what the head version was trained with, as pre-flight has it."""
    if facts.lock or os.path.lexists(facts.paths.config_lock):
        return facts.lock
    config, fingerprint = (facts.read_head_metadata().get(key) for key in ("config", "base_model_fingerprint"))
    if not isinstance(config, dict) or not isinstance(fingerprint, dict):
        return {}
    locked = {key: config[key] for key in LOCKED_DEFAULTS if key in config}
    return {"locked": locked, "base_model_fingerprint": fingerprint}


def locked_values(facts: Facts) -> dict[str, object]:
    """What the config lock holds; empty without one."""
    locked = read_lock(facts).get("locked")
    return locked if isinstance(locked, dict) else {}


def show(value: object) -> str:
    """A config value as ``config set`` takes it: JSON, which a string may leave out where it reads as no other JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def _base_model(facts: Facts) -> Iterator[Finding]:
    folder = facts.base_model
    if folder is None:
        return
    check = command(facts, "training_controller.py", "config", "check")
    if facts.base_model_signature is None:
        if facts.paths.relative(folder) not in facts.unreadable:
            message = f"base model is missing: {folder} holds no model"
            yield Finding("base-model-missing", "config", "critical", message, check)
        return
    if locked_values(facts).get("base_model") != facts.config.get("base_model"):
        return
    changed, touched = compare_base_model(facts)
    if changed:
        message = f"base model in {folder} is not the locked one: {first_of(changed)}"
        yield Finding("base-model-changed", "config", "critical", message, check)
    elif touched:
        message = f"base model in {folder} may have changed: {first_of(touched)}; the next pre-flight reads it again"
        # What was known of the touched files goes only when their bytes turn out to be the same.
        hint = f"{check} && rm -f {quote(str(facts.paths.base_model_stat))}"
        yield Finding("base-model-touched", "config", "warning", message, hint)


def compare_base_model(facts: Facts) -> tuple[list[str], list[str]]:
    """What in the base model differs for sure from the locked one, and what may, told by stat and past hashes."""
    fingerprint = read_lock(facts).get("base_model_fingerprint")
    files = fingerprint.get("files") if isinstance(fingerprint, dict) else None
    if not isinstance(files, list):
        return [], []
    locked = {text(entry.get("path")): entry for entry in files if isinstance(entry, dict)}
    present = facts.base_model_signature or {}
    same_folder = facts.base_model_cache.get("folder") == str(facts.base_model)
    cache = facts.base_model_cache.get("files") if same_folder else None
    known_files = cache if isinstance(cache, dict) else {}
    changed = [f"{path} is missing" for path in sorted(locked.keys() - present.keys())]
    changed += [f"{path} is new" for path in sorted(present.keys() - locked.keys())]
    touched = []
    for path in sorted(locked.keys() & present.keys()):
        size, known = locked[path].get("size"), known_files.get(path)
        if present[path][0] != size:
            changed.append(f"{path} has {present[path][0]} bytes instead of {size}")
        elif isinstance(known, dict):
            if known.get("stat") != present[path]:
                touched.append(f"{path} was touched")
            elif known.get("blake3") != locked[path].get("blake3"):
                changed.append(f"{path} has other bytes")
    return changed, touched


def _guard(facts: Facts) -> Iterator[Finding]:
    """Layers of protection that were seen at work and are off, and what the guard put right in the last day."""
    if os.path.lexists(facts.paths.protections):
        from guardrails.guard.protections import find_off, read_layers

        base = str(facts.paths.base)
        for name, why in find_off(base):
            hint = command(facts, "training_controller.py", "doctor", "--repair")
            yield Finding(f"guard-layer-off:{name}", "config", "warning", f"{name} was on and is off: {why}", hint)
        newest = facts.backups.find_newest()
        writable = [
            tree.id
            for tree in (facts.head_version, newest)
            if tree is not None and not tree.problems and is_writable(tree.folder / "model")
        ]
        if writable and "read-only" in read_layers(base) and not is_under_way(facts):
            message = f"read-only was on and is off: files of {' and '.join(writable)} can be written to"
            hint = command(facts, "model_versioner.py", "repair", *writable)
            yield Finding("guard-layer-off:read-only", "config", "warning", message, hint)
    if os.path.lexists(facts.paths.guard_log):
        record = read_last_healing(facts)
        if record is not None:
            message = f"the guard found at {record['at']}: {text(record['what'])}: {text(record['done'])}"
            hint = f"tail {quote(str(facts.paths.guard_log))}"
            yield Finding("guard-healed", "config", "info", message, hint)


def is_writable(model: Path) -> bool:
    """Whether the folder or a file at the top of a saved tree has a mode that lets somebody write."""
    try:
        with os.scandir(model) as entries:
            modes = [os.stat(model).st_mode, *(entry.stat(follow_symlinks=False).st_mode for entry in entries)]
    except OSError:
        return False
    return any(mode & 0o222 for mode in modes)


def read_last_healing(facts: Facts) -> dict[str, str] | None:
    """The last line of the guard's log, if it is of the last day."""
    since = format_utc(facts.now - HEALED_SECONDS)
    try:
        with open(facts.paths.guard_log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 14)))
            record = json.loads(file.read().splitlines()[-1])
    except (OSError, ValueError, IndexError, RecursionError):
        return None
    keys = ("at", "what", "done")
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in keys):
        return None
    return {key: record[key] for key in keys} if timestamp(record["at"]) and record["at"] >= since else None


def _daemon(facts: Facts) -> Iterator[Finding]:
    start = command(facts, "training_daemon.py")
    if os.path.lexists(facts.paths.emergency_stop):
        message = "the emergency stop lies in the base dir: as long as it does, the daemon does not start"
        yield Finding("daemon-stop-file", "daemon", "warning", message, f"rm {quote(str(facts.paths.emergency_stop))}")
    if facts.died:
        message = f"Training daemon died while at work on {first_of(facts.processing)}; its next start carries it on"
        yield Finding("daemon-died", "daemon", "critical", message, start)
    elif not facts.daemon_running and facts.daemon.get("exit_code") and facts.daemon.get("reason"):
        message = f"Training daemon ended with an error: {text(facts.daemon['reason'])}"
        yield Finding("daemon-failed", "daemon", "warning", message, start)
    if not facts.daemon_running and training_steps(facts):
        message = "Training daemon not running (model exists with training progress)"
        yield Finding("daemon-not-running", "daemon", "warning", message, start)


def _queue(facts: Facts) -> Iterator[Finding]:
    if facts.daemon_running and facts.daemon.get("state") == "held":
        reason = text(facts.daemon.get("reason")) or "no reason is recorded"
        hint = command(facts, "training_controller.py", "resume")
        yield Finding("queue-held", "daemon", "warning", f"Queue held: {reason}", hint)
    failed = facts.queue["failed"]
    if failed:
        message = f"{failed} data file{'s' if failed > 1 else ''} failed to train"
        yield Finding("queue-failed", "daemon", "warning", message, command(facts, "training_queue.py", "list"))


def _disk(facts: Facts) -> Iterator[Finding]:
    free = facts.available_bytes
    hint = f"du -xhd2 {quote(str(facts.paths.base))} | sort -h"
    if free < CRITICAL_FREE_BYTES:
        yield Finding("disk-low", "disk", "critical", f"LOW DISK SPACE: Only {free // GIB}GB free!", hint)
    elif free < LOW_FREE_BYTES:
        yield Finding("disk-getting-low", "disk", "warning", f"Disk space getting low: {free // GIB}GB free", hint)


def _saved(facts: Facts) -> Iterator[Finding]:
    hint = command(facts, "model_versioner.py", "repair")
    for version in facts.versions.list_damaged():
        message = f"version {version.id} is damaged: {first_of(version.problems)}"
        yield Finding(f"version-damaged:{version.id}", "backup", "critical", message, hint)
    for backup in facts.backups.list_damaged():
        message = f"backup {backup.id} is damaged: {first_of(backup.problems)}"
        yield Finding(f"backup-damaged:{backup.id}", "backup", "warning", message, hint)


def _immutable(facts: Facts) -> Iterator[Finding]:
    """What the config wants immutable should be so; a file system, or a daemon that is not root, may not be able to."""
    if not facts.config.get("immutable_versions") or is_under_way(facts):
        return
    newest = facts.versions.find_newest(kept=True)
    if newest is not None and not is_immutable(newest.folder):
        message = f"immutable_versions is on, but {newest.id} is not immutable: that needs root, and ext4, XFS or btrfs"
        hint = command(facts, "model_versioner.py", "create")
        yield Finding("guard-not-immutable", "backup", "warning", message, hint)


def _second_copy(facts: Facts) -> Iterator[Finding]:
    """The version that ``current_model/`` is should also exist as a verified backup, better on another disk."""
    head = facts.head_version
    own_folder = bool(facts.config.get("backup_dir"))
    change_folder = command(facts, "training_controller.py", "config", "set", "backup_dir", "/path/on/another/disk")
    if own_folder and facts.versions.summary.kept and not is_folder(facts.backup_folder):
        message = f"backup_dir {facts.backup_folder} is not there"
        yield Finding("backup-folder-missing", "backup", "warning", message, change_folder)
        return
    if head is None or head.removed or is_under_way(facts):
        return
    copies = find_copies(facts, head)
    if not copies:
        if facts.config.get("backup") == "daily" and facts.now - age_stamp(facts, head) < DAILY_SECONDS:
            return
        severity = "info" if facts.config.get("backup") == "off" else "warning"
        # The toolkit's folder may have a current_model/ of its own.
        model = "current_model/" if facts.paths.base == CODE_DIR else f"{facts.paths.current_model}/"
        hint = command(facts, "backup_manager.py", "backup", model)
        good = (backup for backup in reversed(facts.backups) if backup.is_verified and not backup.problems)
        newest = next((text(b.metadata["version"]) for b in good if b.metadata.get("version")), None)
        if newest:
            message = f"second copy is stale: {head.id} has none, the newest is of {newest}"
            yield Finding("backup-stale", "backup", severity, message, hint)
        else:
            yield Finding(
                "backup-missing", "backup", severity, f"second copy is missing: {head.id} has no backup", hint
            )
    elif {backup.find_device() for backup in copies} == {head.find_device()}:
        severity = "warning" if own_folder else "info"
        message = f"second copy of {head.id} is on the same disk as the model"
        yield Finding("backup-same-disk", "backup", severity, message, change_folder)


def find_copies(facts: Facts, version: SavedTree) -> list[SavedTree]:
    """The good backups that hold the bytes of a version; by name where the version's metadata is lost."""
    if version.metadata:
        return facts.backups.list_copies(version)
    good = (backup for backup in facts.backups if backup.is_verified and not backup.problems)
    return [backup for backup in good if backup.metadata.get("version") == version.id]


def age_stamp(facts: Facts, tree: SavedTree) -> float:
    """When the folder of a saved tree was made, in seconds since the epoch."""
    try:
        return os.stat(tree.folder).st_mtime
    except OSError:
        return facts.now


def _unreadable(facts: Facts) -> Iterator[Finding]:
    for path, (message, trouble) in sorted(facts.unreadable.items()):
        category = "model"
        if path.startswith(("status/", "queue", "runs/", ".locks/")):
            category = "daemon"
        elif path == facts.paths.config_lock.name or path == facts.config.get("base_model"):
            category = "config"
        elif path.startswith("models/versions") or path == facts.paths.relative(facts.backup_folder):
            category = "backup"
        full = str(facts.paths.base / path)
        looks = {"closed": f"ls -ld {quote(full)}", "newer": f"head -c 2000 {quote(full)}"}
        hint = looks.get(trouble) or move_away(full)
        yield Finding(f"file-unreadable:{path}", category, "critical", message, hint)


def _state_file(facts: Facts) -> Iterator[Finding]:
    aside = f"{facts.paths.system_state}.damaged"
    if os.path.lexists(aside):
        name = facts.paths.system_state.name
        message = f"{name} was damaged; it was set aside as {name}.damaged and written anew"
        yield Finding("state-file-damaged", "disk", "warning", message, f"rm -r {quote(aside)}")


def _clock(facts: Facts, last_report: str | None) -> Iterator[Finding]:
    """The clock is behind the last report, or behind the newest version: what goes by time cannot be trusted."""
    newest = facts.versions.find_newest()
    made = timestamp(newest.metadata.get("created_at")) if newest is not None else None
    latest = max(made or "", last_report or "")
    if latest > format_utc(facts.now + CLOCK_TOLERANCE_SECONDS):
        message = f"the clock moved back: the last report or version is of {latest}"
        yield Finding("clock-moved-back", "daemon", "warning", message, "date -u +%Y-%m-%dT%H:%M:%SZ")
