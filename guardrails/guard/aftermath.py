"""After a tool call: what it damaged is noticed and put right, whatever way it took.

A look is compared with the last one, which is kept in ``status/guard.json``. What is damaged since is healed by the
toolkit's own commands, each of which looks again by itself and loses nothing; the agent is told, and
``logs/guard.jsonl`` tells the person, whose change it may have been. At a session's start things are only told.
"""

import fcntl
import json
import os
import struct
import time

from guardrails.guard.damage import Damage, find_damage, make_ideal, quote, typed
from guardrails.guard.look import FLOCK, Look, as_dict, take_look
from guardrails.guard.protected import CODE_DIR, read_object
from guardrails.guard.protections import (
    Wiring,
    keep_aside,
    put_wiring_back,
    read_text,
    remember_wiring,
    replace_text,
    wirings,
)

SANDBOX = "GUARDRAILS_SANDBOX"
SESSION_START = ("SessionStart", "sessionStart")
# Healing goes on by itself when it takes longer than this; an agent waits a minute for its hook.
HEAL_SECONDS = 25.0
KEPT = ("config.json", ".config_lock.json")
SCHEMA_VERSION = 1

Event = dict[str, object]


def look_after(base_dir: str, event: Event) -> str | None:
    """Look at what is protected, heal what was damaged since the last look; what to tell the agent, or None.

    Raises:
        OSError: something cannot be looked at, or ``status/`` not be written to.
    """
    base = os.path.realpath(base_dir)
    is_closed = SANDBOX in os.environ and not os.access(f"{base}/models", os.W_OK)
    if is_closed or not os.path.isdir(f"{base}/status"):
        # Where nothing can be damaged, or nothing is yet.
        return None
    kept = (read_object(f"{base}/status/guard.json") or {}).get("look")
    last = kept if isinstance(kept, dict) else None
    seen = take_look(base, last or {})
    if seen is None:
        return None
    now: Look = seen
    is_start = event.get("hook_event_name") in SESSION_START
    lines = []
    if last is not None or not is_start:
        damage = find_damage(base, last or make_ideal(now), now)
        may_heal = last is not None and not is_start
        lines = _heal_all(base, damage, event) if may_heal else [_describe(base, one) for one in damage]
        if damage and may_heal:
            now = take_look(base, now) or now
    if now != last:
        document = {"schema_version": SCHEMA_VERSION, "look": now}
        replace_text(f"{base}/status/guard.json", json.dumps(document) + "\n", 0o644)
    _keep_copies(base, now)
    if is_start:
        _remember_hooks(base)
    if not lines:
        return None
    found = "\n".join(f"- {line}" for line in lines)
    return f"The guard found that what is protected was changed since its last look. Tell the user:\n{found}"


def _heal_all(base: str, damage: list[Damage], event: Event) -> list[str]:
    """Heal all, a line each; none where a second look found nothing wrong."""
    ends_at = time.monotonic() + HEAL_SECONDS
    lines = []
    for one in damage:
        result = _heal(base, one, max(1.0, ends_at - time.monotonic()))
        if result is not None:
            lines.append(f"{one.what}: {result}" if result else _describe(base, one))
            _log(base, event, one.what, result or "not healed")
    return lines


def _heal(base: str, damage: Damage, seconds: float) -> str | None:
    """What was done; empty if nothing could be, None if nothing was wrong after all."""
    if damage.put_back:
        wiring = _find_wiring(base, damage.put_back)
        if wiring is None:
            return _put_file_back(base, damage.put_back) or ""
        # One switch may have been that of several agents' hooks.
        return None if wiring.problem() is None else put_wiring_back(base, wiring) or ""
    if not damage.command:
        return ""
    code, out, said = _run(base, damage.command, seconds)
    if code is None:
        return f"it is being put right by `{typed(base, *damage.command)}`, which goes on"
    if code:
        return f"it could not be put right ({said}) by `{typed(base, *damage.command)}`"
    return _describe_healing(damage, out)


def _describe_healing(damage: Damage, out: str) -> str | None:
    """What a command says that it did, in words."""
    try:
        report = json.loads(out)
    except ValueError:
        return "put right"
    undo = damage.undo
    if isinstance(report, list):
        healed = [str(one["id"]) for one in report if isinstance(one, dict) and one.get("healed")]
        return f"healed {', '.join(healed)} from second copies" if healed else None
    if damage.command[1] == "rollback":
        if not report.get("undo") and "nothing was changed" in str(report.get("message")):
            return None
        done, undo = str(report.get("message")), report.get("undo") or ""
    elif damage.command[1] == "backup":
        done = f"made {report.get('id', 'another backup')} in its place"
    else:
        done = f"put back to {json.dumps(report.get('new'))}"
    return f"{done}. Undo: {undo}" if undo else done


def _put_file_back(base: str, name: str) -> str | None:
    """Put a kept copy back under the lock of all who change it; None where there is none, or while another has it."""
    text = read_text(_copy_of(base, name))
    if text is None:
        return None
    os.makedirs(f"{base}/.locks", exist_ok=True)
    descriptor = os.open(f"{base}/.locks/store.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        aside = keep_aside(base, f"{base}/{name}")
        replace_text(f"{base}/{name}", text, 0o644)
    except (BlockingIOError, PermissionError):
        return None
    finally:
        os.close(descriptor)
    return f"put back as it was. Undo: cp {quote(aside)} {quote(f'{base}/{name}')}" if aside else "put back as it was"


def _run(base: str, command: tuple[str, ...], seconds: float) -> tuple[int | None, str, str]:
    """A command of the toolkit: its exit code (None: it goes on), its stdout, and what its error says."""
    import subprocess
    import sys
    import tempfile

    python = f"{CODE_DIR}/.venv/bin/python"
    if not os.access(python, os.X_OK):
        python = sys.executable
    line = [python, f"{CODE_DIR}/{command[0]}", *command[1:], "--base-dir", base, "--json"]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        # In a session of its own: an agent that loses patience with its hook does not end it half-way.
        process = subprocess.Popen(
            line, cwd=base, stdin=subprocess.DEVNULL, stdout=out, stderr=error, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None, "", ""
        texts = []
        for file in (out, error):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return process.returncode, texts[0], _last_error(texts[1])


def _last_error(text: str) -> str:
    lines = text.strip().splitlines() or ["it said nothing"]
    try:
        return str(json.loads(lines[-1])["error"])
    except (ValueError, KeyError, TypeError):
        return lines[-1]


def _describe(base: str, damage: Damage) -> str:
    """A damage that is not healed, and what heals it."""
    hint = damage.hint
    if damage.command:
        hint = typed(base, *damage.command)
    elif damage.put_back:
        wiring = _find_wiring(base, damage.put_back)
        target = wiring.path if wiring else f"{base}/{damage.put_back}"
        # The copy is about to be replaced by what is there now.
        kept = keep_aside(base, wiring.copy(base) if wiring else _copy_of(base, damage.put_back))
        hint = f"cp {quote(kept)} {quote(target)}" if kept else hint or "no copy of it is kept"
    return f"{damage.what}; not healed. {hint}"


def _find_wiring(base: str, name: str) -> Wiring | None:
    return next((wiring for wiring in wirings(base) if wiring.name == name), None)


def _log(base: str, event: Event, what: str, done: str) -> None:
    """One line in ``logs/guard.jsonl``."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"at": at, "session": event.get("session_id"), "tool": event.get("tool_name"), "what": what, "done": done}
    os.makedirs(f"{base}/logs", exist_ok=True)
    with open(f"{base}/logs/guard.jsonl", "a", encoding="ascii") as file:
        file.write(json.dumps(record) + "\n")


def _copy_of(base: str, name: str) -> str:
    return f"{base}/status/guard/{name.lstrip('.')}"


def _keep_copies(base: str, look: Look) -> None:
    """Keep config and lock as they are while they agree: what a later call damages is put back from there."""
    settings = as_dict(look["settings"])
    if look["config"] != "there" or any(settings[key] != value for key, value in as_dict(look["locked"]).items()):
        return
    for name in KEPT:
        text = read_text(f"{base}/{name}")
        if text is not None and text != read_text(_copy_of(base, name)):
            replace_text(_copy_of(base, name), text)


def _remember_hooks(base: str) -> None:
    """The hook is at work, for it is this process: how it is wired is kept, if it stops what it is there to stop."""
    from guardrails.guard.judge import Denied, Judge
    from guardrails.guard.protected import Protected
    from guardrails.guard.scene import Scene
    from guardrails.guard.shell import judge_command

    judge = Judge(Protected(base))
    try:
        judge_command("rm -rf current_model", Scene(judge, base, dict(os.environ)))
    except Denied:
        for wiring in wirings(base):
            if wiring.problem() is None:
                remember_wiring(base, wiring)
