"""Which hooks of agents are wired, which layers of protection were seen at work, and which of those no longer can be.

``status/protections.json`` remembers the layers, ``status/guard/`` how the wiring was when it worked. Looking costs a
few small files, so every report does it.
"""

import json
import os
import re
import time

from guardrails.guard.config_edits import HOOK
from guardrails.guard.protected import CODE_DIR, read_object

# Where each agent is told of its hooks, below the folder that it is started in.
WIRING = {
    "claude": ".claude/settings.json",
    "codex": ".codex/hooks.json",
    "gemini": ".gemini/settings.json",
    "cursor": ".cursor/hooks.json",
}
# Events of which a hook can stop a shell command.
BEFORE_SHELL = ("PreToolUse", "BeforeTool", "beforeShellExecution", "preToolUse")
CLAUDE_SETTINGS = (".claude/settings.json", ".claude/settings.local.json")
MANAGED_SETTINGS = "/etc/claude-code/managed-settings.json"
CODEX_OFF = re.compile(r"^[^\S\n]*(?:codex_)?hooks\s*=\s*false.*\n?", re.MULTILINE)
MOST_CHARACTERS = 1 << 20
SCHEMA_VERSION = 1

Json = dict[str, object]


class Wiring:
    """One agent's settings that name the hook; ``name`` is that of the layer."""

    __slots__ = ("agent", "home", "name", "path")

    def __init__(self, agent: str, home: str, name: str) -> None:
        self.agent = agent
        self.home = home
        self.name = name
        self.path = f"{home}/{WIRING[agent]}"

    def commands(self) -> list[tuple[str, str]]:
        """The events before a shell command that run the hook, each with its command line."""
        hooks = (read_object(self.path) or {}).get("hooks")
        if not isinstance(hooks, dict):
            return []
        return [(event, line) for event in BEFORE_SHELL for line in _commands(hooks.get(event)) if HOOK in line]

    def problem(self) -> str | None:
        """Why the hook would not be run, as far as files tell; None if nothing shows."""
        if not os.path.exists(self.path):
            return f"{self.path} is missing"
        if not self.commands():
            return f"{self.path} does not run {HOOK} before shell commands"
        if not os.path.exists(f"{CODE_DIR}/guardrails/{HOOK}"):
            return f"{CODE_DIR}/guardrails/{HOOK} is missing"
        if switch := find_switch(self.agent, self.home):
            return f"hooks are switched off in {switch}"
        return None

    def copy(self, base: str) -> str:
        """Where its text is kept as it was when it worked."""
        return f"{base}/status/guard/{self.name}.json"


def wirings(base: str) -> list[Wiring]:
    """Every agent's wiring, there or not: in the toolkit's own folder, and in the base dir where that is another."""
    found = [Wiring(agent, CODE_DIR, f"{agent}-hook") for agent in WIRING]
    if base != CODE_DIR:
        found += [Wiring(agent, base, f"{agent}-hook-of-base-dir") for agent in WIRING]
    return found


def find_switch(agent: str, home: str) -> str | None:
    """The settings file that switches all hooks of an agent off, if one does."""
    user = os.path.expanduser("~")
    if agent == "claude":
        own = os.environ.get("CLAUDE_CONFIG_DIR") or f"{user}/.claude"
        paths = [*(f"{home}/{name}" for name in CLAUDE_SETTINGS), f"{own}/settings.json", MANAGED_SETTINGS]
        return next((path for path in paths if (read_object(path) or {}).get("disableAllHooks")), None)
    if agent == "gemini":
        paths = [f"{folder}/{WIRING[agent]}" for folder in (home, user)]
        return next((path for path in paths if _is_off(read_object(path) or {})), None)
    if agent == "codex":
        paths = [f"{folder}/.codex/config.toml" for folder in (home, user)]
        return next((path for path in paths if CODEX_OFF.search(read_text(path) or "")), None)
    return None


def read_sandbox(home: str) -> tuple[bool, list[str]]:
    """Whether Claude Code's own sandbox is switched on for ``home``, and the paths that it does not write to."""
    own = os.environ.get("CLAUDE_CONFIG_DIR") or os.path.expanduser("~/.claude")
    enabled, closed = None, []
    # The first that says something counts; lists add up.
    for path, root in (
        (f"{home}/{CLAUDE_SETTINGS[1]}", home),
        (f"{home}/{CLAUDE_SETTINGS[0]}", home),
        (f"{own}/settings.json", own),
    ):
        section = (read_object(path) or {}).get("sandbox")
        if not isinstance(section, dict):
            continue
        enabled = section.get("enabled") if enabled is None else enabled
        filesystem = section.get("filesystem")
        entries = filesystem.get("denyWrite") if isinstance(filesystem, dict) else None
        for entry in entries if isinstance(entries, list) else []:
            closed.append(os.path.normpath(os.path.join(root, os.path.expanduser(str(entry)))))
    return enabled is True, closed


def _is_off(settings: Json) -> bool:
    sections = [settings.get(name) for name in ("hooksConfig", "hooks")]
    return any(isinstance(section, dict) and section.get("enabled") is False for section in sections)


def _commands(value: object) -> list[str]:
    """Every ``command`` in the hooks of one event."""
    if isinstance(value, list):
        return [line for child in value for line in _commands(child)]
    if isinstance(value, dict):
        line = value.get("command")
        return [line] if isinstance(line, str) else _commands(list(value.values()))
    return []


# Remembering


def read_layers(base: str) -> dict[str, Json]:
    """The layers that were seen on, and what is needed to tell that they still are."""
    layers = (read_object(f"{base}/status/protections.json") or {}).get("layers")
    return (
        {name: layer for name, layer in layers.items() if isinstance(layer, dict)} if isinstance(layers, dict) else {}
    )


def remember_layers(base: str, seen: dict[str, Json]) -> None:
    """Note layers that were just seen at work; those seen before stay. Written only if there is news.

    Raises:
        OSError: it cannot be written.
    """
    known = read_layers(base)
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    layers = {**known, **{name: {"since": known.get(name, {}).get("since", since), **seen[name]} for name in seen}}
    if layers != known:
        document = {"schema_version": SCHEMA_VERSION, "layers": layers}
        replace_text(f"{base}/status/protections.json", json.dumps(document, indent=2) + "\n", 0o644)


def remember_wiring(base: str, wiring: Wiring) -> None:
    """Note a hook that was just seen at work, and keep its settings as they are.

    Raises:
        OSError: it cannot be written.
    """
    text = read_text(wiring.path)
    if text is not None and text != read_text(wiring.copy(base)):
        replace_text(wiring.copy(base), text)
    remember_layers(base, {wiring.name: {}})


def find_off(base: str) -> list[tuple[str, str]]:
    """Layers that were seen on and are off now, as far as files tell: name and why."""
    known = read_layers(base)
    found = [(wiring.name, wiring.problem()) for wiring in wirings(base) if wiring.name in known]
    program = known.get("bubblewrap", {}).get("program")
    if isinstance(program, str) and not os.access(program, os.X_OK):
        found.append(("bubblewrap", f"{program} is gone"))
    before = known.get("claude-sandbox", {}).get("closed")
    if isinstance(before, list):
        is_enabled, closed = read_sandbox(CODE_DIR)
        if not is_enabled:
            found.append(("claude-sandbox", "no settings switch the sandbox on"))
        elif missing := [path for path in before if path not in closed]:
            found.append(("claude-sandbox", f"denyWrite does not name {missing[0]} any more"))
    return [(name, why) for name, why in found if why is not None]


# Putting back


def put_wiring_back(base: str, wiring: Wiring) -> str | None:
    """Make the hook run again, as far as files do; what was done, or None where nothing could be.

    What stood there is kept beside the copy.
    """
    done = []
    switch = find_switch(wiring.agent, wiring.home)
    text = None if wiring.commands() else read_text(wiring.copy(base)) or _read_committed(wiring)
    if text is not None:
        keep_aside(base, wiring.path)
        replace_text(wiring.path, text, 0o644)
        done.append(f"put {wiring.path} back as it was when it worked")
        switch = find_switch(wiring.agent, wiring.home)
    if switch and (text := _without_switch(switch)) is not None:
        keep_aside(base, switch)
        replace_text(switch, text)
        done.append(f"took the switch out of {switch}")
    return " and ".join(done) or None


def _read_committed(wiring: Wiring) -> str | None:
    """The settings as they were committed, where they run the hook."""
    import subprocess

    command = ["git", "-C", wiring.home, "show", f"HEAD:./{WIRING[wiring.agent]}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 and HOOK in done.stdout else None


def _without_switch(path: str) -> str | None:
    if path.endswith(".toml"):
        return CODEX_OFF.sub("", read_text(path) or "")
    settings = read_object(path)
    if settings is None:
        return None
    settings.pop("disableAllHooks", None)
    for name in ("hooksConfig", "hooks"):
        section = settings.get(name)
        if isinstance(section, dict):
            section.pop("enabled", None)
    return json.dumps(settings, indent=2) + "\n"


def keep_aside(base: str, path: str) -> str | None:
    """Keep what is at ``path`` now in ``status/guard/replaced/``; where, or None if there is nothing."""
    text = read_text(path)
    if text is None:
        return None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    kept = f"{base}/status/guard/replaced/{stamp}-{os.urandom(4).hex()}-{os.path.basename(path)}"
    replace_text(kept, text)
    return kept


# Files


def read_text(path: str) -> str | None:
    """The text of a small file, whatever its bytes; None where there is none, or one that is not small."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except OSError:
        return None
    return text if len(text) <= MOST_CHARACTERS else None


def replace_text(path: str, text: str, mode: int = 0o600) -> None:
    """Write a file in one step; a link stays, and so do the modes of what is there. A new file has ``mode``.

    A power cut may take what was written last: nothing here is the only copy.

    Raises:
        OSError: it cannot be written.
    """
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
        mode = os.stat(path).st_mode & 0o777
    temporary = f"{path}.tmp-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
