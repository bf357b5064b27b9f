"""What of one base dir an agent may not touch, and whether a path is any of it."""

import json
import os
import re
from collections.abc import Iterable

from guardrails.guard.patterns import DEEP, FRESH, HAS_MARK, MARKS, TAINT, UNKNOWN, is_known, matches

CODE_DIR = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
LOCKED_KEYS = ("max_length", "base_model", "model_name")
# Kinds of what is protected.
CURRENT, VERSIONS, BACKUPS, STORE, BASE_MODELS, CONSOLIDATED = (
    "current_model/",
    "the versions",
    "the backups",
    "the store of versions",
    "a base model",
    "the consolidated models",
)
CONFIG, LOCK, GUARD, DISK = "config.json", "the config lock", "the agent guard", "a whole disk"
DISKS = re.compile(r"/dev/(?:[shvx]v?d[a-z]|nvme\d|mmcblk\d|md\d|md/|dm-\d|mapper/|disk/|loop\d|zvol/)")
# Settings of a user that could switch hooks off.
USER_SETTINGS = (
    ".claude/settings.json",
    ".claude/settings.local.json",
    ".codex/config.toml",
    ".codex/hooks.json",
    ".cursor/hooks.json",
    ".gemini/settings.json",
)
# Below the base dir and below the toolkit's own folder.
GUARD_FILES = (
    ".claude/settings.json",
    ".claude/settings.local.json",
    ".codex/config.toml",
    ".codex/hooks.json",
    ".cursor/hooks.json",
    ".gemini/settings.json",
    "guardrails/agent_hook.py",
    "guardrails/guard",
)
GUARD_NAMES = ("settings.json", "hooks.json", "config.toml", "agent_hook.py", "judge.py", "guard")
VERSION_OR_BACKUP = re.compile(r"[vb][0-9]{3,}")
# Names that files below the trees have; a wildcard that fits none of them deletes nothing there that matters.
USUAL_NAMES = (
    *("adapter_model.safetensors", "adapter_config.json", "metadata.json", "model", "README.md", "config.json"),
    *("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"),
    *("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "head.json"),
    *("version_index.jsonl", "intent.json", "entry.json", "content", "versions", "backups", "retired", "trash"),
    *("v001", "v002", "v010", "v123", "b001", "b002", "b010", "b123", "tiny"),
)


class Place:
    """One protected path: a tree with all below it, or a file."""

    __slots__ = ("is_tree", "kind", "names", "path", "segments")

    def __init__(self, path: str, kind: str, base: str) -> None:
        self.path = path
        self.kind = kind
        self.is_tree = kind not in (CONFIG, LOCK) and not path.endswith((".json", ".toml", ".py"))
        self.segments = path.strip("/").split("/")
        # How many of the last segments tell it apart where the folders before them are unknown.
        inside = path.startswith(base + "/")
        self.names = len(self.segments) - len(base.strip("/").split("/")) if inside else 1


class Protected:
    """The protected places of the base dir ``base``; reads ``config.json`` and its lock, writes nothing."""

    def __init__(self, base: str, home: str | None = None) -> None:
        self.home = home or os.path.expanduser("~")
        self.named_base = os.path.abspath(base)
        self.base = os.path.realpath(base)
        self.config = f"{self.base}/config.json"
        self.config_lock = f"{self.base}/.config_lock.json"
        self.settings = read_object(self.config) or {}
        self.locked = self._read_locked()
        self.places = self._find_places()
        self.names = {*USUAL_NAMES, *_list(f"{self.base}/current_model"), *_list(f"{self.base}/base_models")}

    def _read_locked(self) -> dict[str, object]:
        """What the lock holds; where it is lost, what the model was trained with, else what the config has now."""
        locked = (read_object(self.config_lock) or {}).get("locked")
        if isinstance(locked, dict) and locked:
            return locked
        models = f"{self.base}/models"
        head = (read_object(f"{models}/head.json") or {}).get("version")
        trained_with = (read_object(f"{models}/versions/{head}/metadata.json") or {}).get("config")
        if not isinstance(trained_with, dict):
            has_model = _list(f"{self.base}/current_model") or _list(f"{models}/versions")
            trained_with = self.settings if has_model else {}
        return {key: trained_with[key] for key in LOCKED_KEYS if trained_with.get(key) is not None}

    def _find_places(self) -> list[Place]:
        kinds = {
            "current_model": CURRENT,
            "models/versions": VERSIONS,
            "models/retired": VERSIONS,
            "models/trash": VERSIONS,
            "models/backups": BACKUPS,
            "models": STORE,
            "base_models": BASE_MODELS,
            "consolidated_models": CONSOLIDATED,
            "config.json": CONFIG,
            ".config_lock.json": LOCK,
            ".config_approvals.jsonl": LOCK,
        }
        paths = {f"{self.base}/{name}": kind for name, kind in kinds.items()}
        if isinstance(folder := self.settings.get("backup_dir"), str) and folder:
            paths[self._full(folder)] = BACKUPS
        for model in (self.settings.get("base_model"), self.locked.get("base_model")):
            if isinstance(model, str) and model:
                paths[self._full(model)] = BASE_MODELS
        for path in [path for path, kind in paths.items() if kind == BASE_MODELS]:
            # A hub's cache holds links; what they lead to is the model.
            paths.update({os.path.dirname(real): BASE_MODELS for real in _linked_files(path)})
        for home in {self.base, CODE_DIR}:
            paths.update({f"{home}/{name}": GUARD for name in GUARD_FILES})
        for path, kind in list(paths.items()):
            paths.setdefault(os.path.realpath(path), kind)
        return [Place(path, kind, self.base) for path, kind in paths.items() if path != "/"]

    def is_user_settings(self, path: str) -> bool:
        """Whether a path is a settings file of the user, in which hooks can be switched off for every project."""
        home = os.path.realpath(self.home)
        return path.startswith(home + "/") and path[len(home) + 1 :] in USER_SETTINGS

    def _full(self, setting: str) -> str:
        return os.path.normpath(os.path.join(self.base, os.path.expanduser(setting)))

    def find(self, path: str, *, recursive: bool) -> Place | None:
        """The first protected place that an absolute, resolved path may be, lie in or (``recursive``) hold."""
        if path.startswith("/dev/") and DISKS.match(path):
            return Place(path, DISK, self.base)
        segments = [segment for segment in path.split("/") if segment]
        for place in self.places:
            if self._reaches(segments, 0, place, 0, recursive):
                return place
        return None

    def _reaches(self, segments: list[str], i: int, place: Place, j: int, recursive: bool) -> bool:
        while True:
            if j == len(place.segments):
                names = GUARD_NAMES if place.kind == GUARD else self.names
                return place.is_tree and _may_be_inside(segments[i:], names) if segments[i:] else True
            if i == len(segments):
                return recursive
            segment, name = segments[i], place.segments[j]
            if is_known(segment):
                if segment != name:
                    return False
            elif FRESH in segment:
                return False
            elif segment == DEEP:
                return self._reaches(segments, i + 1, place, j, recursive and i + 1 < len(segments)) or (
                    self._reaches(segments, i, place, j + 1, recursive)
                )
            elif UNKNOWN in segment or TAINT in segment:
                return self._may_come_to(segments, i, place, j, recursive)
            elif not matches(segment, name):
                return False
            i, j = i + 1, j + 1

    def _may_come_to(self, segments: list[str], i: int, place: Place, j: int, recursive: bool) -> bool:
        """Behind a segment that is unknown: only what is known around it can tell."""
        segment = segments[i]
        known = HAS_MARK.split(segment, maxsplit=1)[0]
        if known and not place.segments[j].startswith(known):
            return False
        last = max(index for index in range(i, len(segments)) if not _is_plain(segments[index]))
        rest = segments[last + 1 :]
        if not rest:
            tail = HAS_MARK.split(segments[last])[-1]
            if TAINT in segment:
                return True
            return bool(known) or (len(tail) > 3 and place.segments[-1] == tail)
        if VERSION_OR_BACKUP.fullmatch(rest[0]) and place.kind in (VERSIONS, BACKUPS):
            return True
        first = len(place.segments) - place.names
        return any(
            matches(rest[0], place.segments[k]) and self._reaches(rest, 0, place, k, recursive)
            for k in range(max(first, j), len(place.segments))
            if place.kind not in (CONFIG, GUARD)
        )


def _may_be_inside(rest: list[str], names: Iterable[str]) -> bool:
    """Whether what follows the path of a place may be something below it; ``names`` are what lies there."""
    if all(is_known(segment) for segment in rest):
        return True
    if UNKNOWN in rest[-1] or TAINT in rest[-1]:
        # It may be a new name.
        rest = rest[:-1]
    return all(any(matches(segment, name) for name in names) for segment in rest if segment.strip(MARKS))


def _is_plain(segment: str) -> bool:
    return UNKNOWN not in segment and TAINT not in segment


def _linked_files(folder: str) -> list[str]:
    files = [f"{folder}/{name}" for name in _list(folder)[:200]]
    return [os.path.realpath(file) for file in files if os.path.islink(file)]


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def read_object(path: str) -> dict[str, object] | None:
    """A JSON object from a file; None where there is none."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
