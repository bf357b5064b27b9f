"""Which layers of protection are at work, each proven by a probe that can do no harm.

A probe asks the layer itself: the hook by the very command line that the agent would run, the lock by a value changed
in memory, modes and flags by the files, the sandbox by starting one. Layers that were seen at work are remembered in
``status/protections.json``; the state tracker says when one of them is off later.
"""

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from guardrails.config import LOCKED_KEYS, load_config
from guardrails.config_lock import base_model_folder, check_lock, fingerprint_base_model
from guardrails.errors import ConfigLockError, DamagedStateError, GuardrailsError, OperationError
from guardrails.guard.protections import (
    Wiring,
    find_off,
    put_wiring_back,
    read_layers,
    read_sandbox,
    remember_layers,
    remember_wiring,
    wirings,
)
from guardrails.manifest import list_files
from guardrails.paths import CODE_DIR, SANDBOX, Paths
from guardrails.report.facts import gather
from guardrails.report.findings import find
from guardrails.sandbox import check_start, find_bubblewrap, mount_options
from guardrails.store.backups import backups_folder, list_backup_ids
from guardrails.store.head import read_head, read_lock
from guardrails.store.immutable import is_immutable
from guardrails.store.remotes import read_remotes
from guardrails.store.sealing import KEY as IMMUTABLE_KEY
from guardrails.store.sealing import wants_immutable
from guardrails.store.version_records import is_kept
from guardrails.store.versions import FILE_MODE, FOLDER_MODE

if TYPE_CHECKING:
    from guardrails.settings import Config

# unused: it need not be on, and is not.
State = Literal["on", "off", "unused"]
PROBE_SECONDS = 30
# Of a tree with very many files so many are looked at.
SAMPLE = 200
TREES = ("current_model", "models", "base_models", "consolidated_models")


class Layer(NamedTuple):
    """One layer of protection: whether it is on, how that is known, and the command that switches it on."""

    id: str
    state: State
    detail: str
    fix: str | None = None


def examine(paths: Paths, now: float) -> list[Layer]:
    """Probe every layer, and remember those that are on."""
    layers = [
        *_hooks(paths),
        _config_lock(paths),
        _read_only(paths),
        _immutable(paths),
        _second_copy(paths, now),
        *_remotes(paths),
        _bubblewrap(paths),
        _claude_sandbox(paths),
    ]
    _remember(paths, layers)
    return layers


def repair_hooks(paths: Paths) -> list[str]:
    """Switch hooks on again that were seen at work and are off; what was done."""
    base = str(paths.base)
    off = {name for name, _ in find_off(base)}
    done = [put_wiring_back(base, wiring) for wiring in wirings(base) if wiring.name in off]
    return [line for line in done if line]


def _remember(paths: Paths, layers: list[Layer]) -> None:
    """Whoever may not write here learns all the same what is on."""
    if not paths.status.is_dir():
        return
    base = str(paths.base)
    on = {layer.id for layer in layers if layer.state == "on"}
    with contextlib.suppress(OSError):
        for wiring in wirings(base):
            if wiring.name in on:
                remember_wiring(base, wiring)
        if "read-only" in on:
            remember_layers(base, {"read-only": {}})
        if "bubblewrap" in on and SANDBOX not in os.environ:
            remember_layers(base, {"bubblewrap": {"program": find_bubblewrap()}})
        if "claude-sandbox" in on:
            remember_layers(base, {"claude-sandbox": {"closed": list(read_sandbox(str(CODE_DIR))[1])}})


# Agents' hooks


def _hooks(paths: Paths) -> Iterator[Layer]:
    base = str(paths.base)
    known = read_layers(base)
    for wiring in wirings(base):
        is_shipped = wiring.agent == "claude" and wiring.home == str(CODE_DIR)
        if os.path.exists(wiring.path) or wiring.name in known or is_shipped:
            yield _probe_wiring(paths, wiring, has_copy=os.path.exists(wiring.copy(base)))


def _probe_wiring(paths: Paths, wiring: Wiring, *, has_copy: bool) -> Layer:
    fix = "training_controller.py doctor --repair"
    if not has_copy:
        relative = os.path.relpath(wiring.path, wiring.home)
        fix = f"git -C '{wiring.home}' checkout HEAD -- {relative} guardrails/agent_hook.py guardrails/guard"
    if problem := wiring.problem():
        return Layer(wiring.name, "off", problem, fix)
    for event, line in wiring.commands():
        for command, expected in (("rm -rf current_model", "deny"), ("ls", "pass")):
            answer = _run_hook(paths, wiring, event, line, command)
            if answer != expected:
                detail = f"{event} of {wiring.path}: `{command}` in {paths.base}: {answer} instead of {expected}"
                return Layer(wiring.name, "off", detail, _fix_of_hook(paths, answer))
    return Layer(wiring.name, "on", f"{wiring.path} stops `rm -rf current_model` and lets `ls` pass")


def _fix_of_hook(paths: Paths, answer: str) -> str:
    if answer == "pass" and paths.base != CODE_DIR:
        return f"start the agent with it: export TRAINING_BASE_DIR='{paths.base}'"
    return f"make -C '{CODE_DIR}' install"


def _run_hook(paths: Paths, wiring: Wiring, event: str, line: str, command: str) -> str:
    """What the hook's command line, run as the agent would, says to a shell command: ``deny``, ``pass`` or a fault."""
    call: dict[str, Any] = {"hook_event_name": event, "session_id": "doctor", "cwd": str(paths.base)}
    if event == "beforeShellExecution":
        call["command"] = command
    else:
        tool = "run_shell_command" if event == "BeforeTool" else "Bash"
        call.update(tool_name=tool, tool_input={"command": command})
    folders = dict.fromkeys(("CLAUDE_PROJECT_DIR", "GEMINI_PROJECT_DIR", "CURSOR_PROJECT_DIR"), wiring.home)
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            input=json.dumps(call),
            cwd=wiring.home,
            env={**os.environ, **folders},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_SECONDS} s"
    if done.returncode == 2:
        return "deny"
    if done.returncode:
        return f"exit code {done.returncode}, which agents take for a pass"
    return _read_answer(done.stdout)


def _read_answer(text: str) -> str:
    if not text.strip():
        return "pass"
    try:
        answer = json.loads(text)
        decision = answer.get("hookSpecificOutput", {}).get("permissionDecision")
    except (ValueError, AttributeError):
        return f"{text[:80]!r}, which agents take for a pass"
    said = decision or answer.get("decision") or answer.get("permission")
    return {"deny": "deny", "block": "deny", None: "pass", "allow": "pass"}.get(said, str(said))


# Config lock


def _config_lock(paths: Paths) -> Layer:
    try:
        lock = read_lock(paths)
        if lock is None:
            return Layer("config-lock", "unused", "nothing is locked before the first training")
        config = load_config(paths)
        fingerprint = fingerprint_base_model(paths, base_model_folder(paths, config), remember=False)
        check_lock(paths, config, fingerprint, lock)
        if not paths.config_lock.exists():
            value = json.dumps(lock["locked"][LOCKED_KEYS[0]])
            fix = f"training_controller.py config set {LOCKED_KEYS[0]} {value}"
            return Layer("config-lock", "off", f"{paths.config_lock} is missing", fix)
        refused = [key for key in LOCKED_KEYS if _refuses_change(paths, config, lock, fingerprint, key)]
    except GuardrailsError as error:
        return Layer("config-lock", "off", error.message, error.hint)
    if len(refused) < len(LOCKED_KEYS):
        return Layer("config-lock", "off", "a changed value is not refused", f"make -C '{CODE_DIR}' install")
    return Layer("config-lock", "on", f"config and base model are as locked; another {', '.join(refused)} is refused")


def _refuses_change(paths: Paths, config: "Config", lock: dict[str, Any], fingerprint: Any, key: str) -> bool:
    """Whether a config with another value of one key, made in memory only, would be refused."""
    value = getattr(config, key)
    other = config.model_copy(update={key: value + 1 if isinstance(value, int) else f"{value}-changed"})
    try:
        check_lock(paths, other, fingerprint, lock)
    except ConfigLockError:
        return True
    return False


# Files


def _saved_trees(paths: Paths) -> list[Path]:
    """The version that ``current_model/`` is and the newest backup, as far as they are there."""
    trees = []
    with contextlib.suppress(DamagedStateError):
        head = read_head(paths)["version"]
        if head is not None and is_kept(paths, head):
            trees.append(paths.version(head) / "model")
    folder = backups_folder(paths)
    trees += [folder / backup / "model" for backup in list_backup_ids(folder)[-1:]]
    return trees


def _read_only(paths: Paths) -> Layer:
    trees = _saved_trees(paths)
    if not trees:
        return Layer("read-only", "unused", "there is no version and no backup yet")
    try:
        for tree in trees:
            if problem := _find_writable(tree):
                return Layer("read-only", "off", problem, f"model_versioner.py repair {tree.parent.name}")
    except (OSError, GuardrailsError) as error:
        return Layer("read-only", "off", str(error), "model_versioner.py repair")
    who = "root writes all the same" if os.geteuid() == 0 else "opening one for writing fails"
    names = " and ".join(tree.parent.name for tree in trees)
    return Layer("read-only", "on", f"files of {names} are 0444 in folders of 0555; {who}")


def _find_writable(tree: Path) -> str | None:
    if tree.stat().st_mode & 0o777 != FOLDER_MODE:
        return f"{tree} has mode {tree.stat().st_mode & 0o777:04o} instead of {FOLDER_MODE:04o}"
    for name in list_files(tree)[:SAMPLE]:
        file = tree / name
        if file.stat().st_mode & 0o777 != FILE_MODE:
            return f"{file} has mode {file.stat().st_mode & 0o777:04o} instead of {FILE_MODE:04o}"
        # Root may open it, and whoever asks just then whether somebody writes to it would be told so.
        if os.geteuid() != 0 and _opens(file):
            return f"{file} can be opened for writing, modes or not"
    return None


def _opens(file: Path) -> bool:
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise
    return True


def _immutable(paths: Paths) -> Layer:
    if not wants_immutable(paths):
        fix = f"training_controller.py config set {IMMUTABLE_KEY} true"
        return Layer("immutable", "unused", f"{IMMUTABLE_KEY} is off", fix)
    trees = _saved_trees(paths)
    for tree in trees:
        for path in (tree, *(tree / name for name in list_files(tree)[:SAMPLE])):
            if not is_immutable(path):
                detail = f"{path} lacks the flag; setting it needs root"
                return Layer("immutable", "off", detail, "model_versioner.py create")
    names = " and ".join(tree.parent.name for tree in trees) or "nothing yet"
    return Layer("immutable", "on", f"not even root writes to {names}")


# Copies


def _second_copy(paths: Paths, now: float) -> Layer:
    facts = gather(paths, now)
    if not facts.versions.summary.kept:
        return Layer("second-copy", "unused", "there is no version yet")
    for finding in find(facts, None):
        if finding.id in ("backup-folder-missing", "backup-missing", "backup-stale", "backup-same-disk"):
            state: State = "unused" if finding.severity == "info" else "off"
            return Layer("second-copy", state, finding.message, finding.hint)
    damaged = facts.backups.list_damaged()
    if damaged:
        return Layer("second-copy", "off", f"{damaged[0].id}: {damaged[0].problems[0]}", "model_versioner.py repair")
    head = facts.head_version
    return Layer("second-copy", "on", f"{head.id if head else 'all'} has a verified copy in {facts.backup_folder}")


def _remotes(paths: Paths) -> Iterator[Layer]:
    try:
        remotes = read_remotes(paths)
    except DamagedStateError as error:
        yield Layer("remote", "off", error.message, error.hint)
        return
    if not remotes:
        yield Layer("remote", "unused", "nothing was pushed yet", "backup_manager.py push REMOTE")
    for url, record in remotes.items():
        versions = record.get("versions") or []
        detail = f"{len(versions)} versions at {url}, last pushed {record.get('pushed_at')}"
        if url.startswith("s3://"):
            bucket = url.removeprefix("s3://").partition("/")[0]
            detail += f"; object lock is known there only: aws s3api get-object-lock-configuration --bucket {bucket}"
        yield Layer("remote", "on", f"{detail}; whether it is reachable is not asked here")


# Sandboxes


def _bubblewrap(paths: Paths) -> Layer:
    if SANDBOX in os.environ:
        return Layer("bubblewrap", "on", "this runs in a sandbox")
    is_wanted = "bubblewrap" in read_layers(str(paths.base)) or read_sandbox(str(CODE_DIR))[0]
    try:
        start = [find_bubblewrap(), *mount_options(paths), "--"]
        check_start(start)
        if problem := _find_hole(paths, start):
            return Layer("bubblewrap", "off", problem, f"make -C '{CODE_DIR}' install")
    except OperationError as error:
        return Layer("bubblewrap", "off" if is_wanted else "unused", error.message, error.hint)
    return Layer("bubblewrap", "on", "`training_controller.py agent -- COMMAND` runs it without write access to models")


def _find_hole(paths: Paths, start: list[str]) -> str | None:
    """A protected file that a process in the sandbox may open for appending; nothing is written."""
    for path in (paths.head, paths.config_lock):
        if path.exists():
            done = subprocess.run([*start, "sh", "-c", ': >> "$1"', "sh", path], capture_output=True, check=False)
            if done.returncode == 0:
                return f"{path} can be written to in the sandbox"
    return None


def _claude_sandbox(paths: Paths) -> Layer:
    """Claude Code's own sandbox for shell commands: what its settings close, and whether they switch it on."""
    is_enabled, closed = read_sandbox(str(CODE_DIR))
    wanted = [*(paths.base / name for name in TREES), paths.config_lock]
    names = [f"{path}/" for path in closed]
    if is_open := [path for path in wanted if not any(f"{path}/".startswith(name) for name in names)]:
        detail = f"denyWrite in .claude/settings.json does not name {is_open[0]}"
        return Layer("claude-sandbox", "off" if is_enabled else "unused", detail, "add it there")
    if not is_enabled:
        fix = "/sandbox in Claude Code"
        return Layer("claude-sandbox", "unused", "denyWrite names all models, but the sandbox is off", fix)
    return Layer("claude-sandbox", "on", "the settings switch it on, and denyWrite names all models")
