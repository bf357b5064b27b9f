"""What a call may do that the guard could not look through, told from its words alone.

It knows no syntax, so it fails on none, and looks at each character a fixed number of times. A call is dangerous if its
text names a protected place beside a word that changes things, or if a deletion, as far as its words tell, could reach
one. Everything else passes: errors of the guard stop only what may touch the models.
"""

import fnmatch
import json
import os
import re
from itertools import pairwise

from guardrails.guard.tool_input import paths_in

MOST_CHARACTERS = 1 << 20
MOST_OPERANDS = 1000
MOST_FOLDERS = 8
PLACES = (
    *("current_model", "models", "base_models", "consolidated_models", "config.json", ".config_lock.json"),
    *(".claude/settings.json", ".claude/settings.local.json", ".codex/hooks.json", ".codex/config.toml"),
    *(".cursor/hooks.json", ".gemini/settings.json", "guardrails/agent_hook.py", "guardrails/guard"),
)
# Settings that name more of them.
SETTINGS = ("base_model", "backup_dir")
# These scripts guard themselves: naming a place to them is no danger.
OWN_SCRIPTS = (
    *("state_tracker.py", "training_daemon.py", "training_controller.py", "training_queue.py", "model_versioner.py"),
    "backup_manager.py",
)
FOR_A_PERSON = (
    *({"model_versioner.py", "consolidate"}, {"model_versioner.py", "delete", "--confirm"}),
    *({"model_versioner.py", "prune", "--execute"}, {"model_versioner.py", "trash", "empty"}),
    {"backup_manager.py", "cleanup", "--execute"},
)
HARMLESS_REDIRECTION = re.compile(r"[0-9&]?>[ \t]*/dev/null|[0-9]>&[0-9]|[-=]>")
SEPARATOR = re.compile(r"[;|&\n]")
WORD = re.compile(r"[^\s()<>`\"',]+|>")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DELETIONS = frozenset(
    {"rm", "rmdir", "unlink", "shred", "mv", "truncate", "trash", "gio", "rmtree", "removedirs", "rmSync", "unlinkSync"}
)
# These delete with the right options alone.
DELETING_OPTIONS = {
    "chmod": ("-R", "--recursive"),
    "chown": ("-R", "--recursive"),
    "rsync": ("--delete", "--delete-after", "--delete-excluded", "--remove-source-files"),
    "find": ("-delete",),
}
READERS = frozenset({"grep", "cat", "ls", "head", "tail", "wc", "stat", "file", "md5sum", "sha256sum", "echo"})
CHANGES = DELETIONS | {
    *(
        ">",
        "cp",
        "dd",
        "tee",
        "install",
        "ln",
        "chmod",
        "chown",
        "chattr",
        "setfacl",
        "sed",
        "ed",
        "ex",
        "perl",
        "ruby",
    ),
    *("node", "php", "awk", "find", "xargs", "parallel", "tar", "unzip", "cpio", "patch", "touch", "sponge", "rename"),
    *("mount", "wipe", "scp", "rsync", "rclone", "wget", "curl", "eval", "exec", "source", "sh", "bash", "zsh", "dash"),
    *("python", "python3", "remove", "replace", "write", "write_text", "write_bytes", "writeFile", "writeFileSync"),
    *("move", "copy", "copyfile", "copytree", "delete"),
}
GIT_CHANGES = frozenset(
    {"rm", "mv", "clean", "checkout", "restore", "reset", "stash", "switch", "pull", "merge", "rebase", "apply"}
)
GIT_HARMLESS = frozenset({"-b", "-c", "--soft", "list", "show", "-n", "--dry-run"})
KILLS = frozenset({"kill", "pkill", "killall"})
HARD = frozenset({"-9", "-KILL", "-SIGKILL", "-s9", "KILL", "SIGKILL", "--signal=KILL", "--signal=SIGKILL"})
WILDCARD = re.compile(r"[*?\[{]")


def find_danger(text: str, cwd: str, base_dir: str) -> str | None:
    """What is to be feared of a command line, in words; None if nothing is."""
    text = HARMLESS_REDIRECTION.sub(" ", text[:MOST_CHARACTERS].replace("\0", " "))
    commands = [WORD.findall(part) for part in SEPARATOR.split(text)]
    for words in commands:
        names = {os.path.basename(word) for word in words}
        if any(names >= wanted for wanted in FOR_A_PERSON):
            return "a person decides on this one"
        if names & KILLS and names & HARD and "training_" in text:
            return "it kills the daemon or its worker the hard way"
    commands = [_without_own_script(words) for words in commands]
    if any(_changes(words) for words in commands):
        rest = " ".join(word for words in commands for word in words)
        for name in _names(base_dir):
            if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", rest):
                return f"it names {name} beside a word that changes things"
    return _find_reach(commands, cwd, base_dir)


def find_path(tool_input: object, cwd: str, base_dir: str) -> str | None:
    """The protected place at a path in a tool's input, in words; None if there is none."""
    places = _places(base_dir)
    for _, text in paths_in(tool_input):
        path = _full(text.removeprefix("file://"), cwd)
        if any(path == place or path.startswith(place + "/") for place in places):
            return f"it names {text}"
    return None


def _without_own_script(words: list[str]) -> list[str]:
    """The words of a command but for one of the toolkit's scripts, its python and its arguments."""
    for index, word in enumerate(words):
        if os.path.basename(word) in OWN_SCRIPTS:
            start = index - 1 if index and words[index - 1].startswith("python") else index
            end = words.index(">", index) if ">" in words[index:] else len(words)
            return words[:start] + words[end:]
    return words


def _changes(words: list[str]) -> bool:
    if "git" in words:
        return _git_overwrites(words)
    return any(word == ">" or not CHANGES.isdisjoint(NAME.findall(word)) for word in words)


def _git_overwrites(words: list[str]) -> bool:
    return "git" in words and not GIT_CHANGES.isdisjoint(words) and GIT_HARMLESS.isdisjoint(words)


def _find_reach(commands: list[list[str]], cwd: str, base_dir: str) -> str | None:
    """Whether the words of a deletion can stand for a protected place, wildcards and folders around it included."""
    places, base, folders, looked_at = _places(base_dir), os.path.realpath(base_dir), [cwd], 0
    for words in commands:
        folders += [_full(to, cwd) for word, to in pairwise(words) if word in ("cd", "pushd", "-C")]
        folders = folders[-MOST_FOLDERS:]
        is_near = any(_is_around(base, folder) for folder in folders)
        if is_near and _git_overwrites(words):
            return "git would overwrite or delete files of the base dir"
        start = next((index for index, word in enumerate(words) if _deletes(word, words)), None)
        if start is None:
            continue
        if is_near and "xargs" in words[:start]:
            return "nobody can tell what xargs hands to it"
        looked_at += len(words) - start
        if looked_at > MOST_OPERANDS:
            return "it deletes more than can be looked at"
        for word in words[start + 1 :]:
            found = _reach_of(word, folders, places)
            if found:
                return f"{words[start]} {found}"
    return None


def _deletes(word: str, words: list[str]) -> bool:
    if not DELETIONS.isdisjoint(NAME.findall(word)):
        return True
    if word not in DELETING_OPTIONS:
        return False
    follows = [after for before, after in pairwise(words) if before.startswith(("-exec", "-ok"))]
    return any(option in words for option in DELETING_OPTIONS[word]) or any(after not in READERS for after in follows)


def _reach_of(word: str, folders: list[str], places: list[str]) -> str | None:
    if word.startswith("-") or word == "{}":
        return None
    if word.startswith("$") and not word.startswith(("$PWD", "$HOME")):
        return f"{word}: nobody can tell what that stands for"
    for folder in folders:
        path = _full(os.path.expandvars(word.replace("$PWD", folder)), folder)
        if any(_may_reach(path, place) for place in places):
            return f"{word} could reach the models"
    return None


def _may_reach(path: str, place: str) -> bool:
    """Whether a path with wildcards can be a place, lie in it or hold it."""
    for pattern, name in zip(path.rstrip("/").split("/"), place.split("/"), strict=False):
        if pattern != name and not (WILDCARD.search(pattern) and ("{" in pattern or fnmatch.fnmatch(name, pattern))):
            return False
    return True


def _is_around(base: str, folder: str) -> bool:
    return base == folder or base.startswith(folder.rstrip("/") + "/") or folder.startswith(base + "/")


def _names(base_dir: str) -> list[str]:
    return [*PLACES, *(name for path in _configured(base_dir) if len(name := os.path.basename(path)) > 3)]


def _places(base_dir: str) -> list[str]:
    base = os.path.realpath(base_dir)
    return [*(f"{base}/{name}" for name in PLACES), *(_full(path, base) for path in _configured(base_dir))]


def _configured(base_dir: str) -> list[str]:
    """The places that the settings name; none where they cannot be read."""
    try:
        with open(os.path.join(base_dir, "config.json"), encoding="utf-8", errors="replace") as file:
            settings = json.loads(file.read(MOST_CHARACTERS))
    except (OSError, ValueError, RecursionError):
        return []
    values = [settings.get(key) for key in SETTINGS] if isinstance(settings, dict) else []
    return [value.rstrip("/") for value in values if isinstance(value, str) and value.strip("/") and "\0" not in value]


def _full(path: str, folder: str) -> str:
    """An absolute path with the links on its known part followed."""
    full = os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
    match = WILDCARD.search(full)
    cut = full.rfind("/", 0, match.start()) if match is not None else len(full)
    try:
        return os.path.realpath(full[:cut] or "/").rstrip("/") + full[cut:] or "/"
    except (OSError, ValueError):
        # No file has such a name.
        return full
