"""The decision on a tool call: what its effects mean for what is protected.

Analysers tell effects to one ``Judge``; a denied one ends the analysis with ``Denied``.
"""

import json
import os
from collections.abc import Callable

from guardrails.guard.config_edits import find_changed_key, weakens_guard
from guardrails.guard.patterns import show
from guardrails.guard.protected import (
    BACKUPS,
    BASE_MODELS,
    CODE_DIR,
    CONFIG,
    CONSOLIDATED,
    CURRENT,
    DISK,
    GUARD,
    LOCK,
    STORE,
    VERSIONS,
    Place,
    Protected,
)

# The new text of a file: known, made of the old one (None: it cannot be told), or unknown.
Content = str | Callable[[str], str | None] | None

# kind: the policy of CLAUDE.md that stands for it, and what to run instead.
POLICIES = {
    CURRENT: ("policy 1, never delete current_model/", "model_versioner.py rollback", "undoes the last change of it"),
    VERSIONS: (
        "policy 1, never delete versions",
        "model_versioner.py list",
        "shows them; `delete` and `prune` go through the trash",
    ),
    BACKUPS: ("policy 1, never delete backups", "backup_manager.py cleanup --retention-days 30", "shows what may go"),
    STORE: ("policy 1, never delete versions", "model_versioner.py list", "shows what is there"),
    BASE_MODELS: (
        "policy 1, never delete base models",
        "training_controller.py config check",
        "tells which one is in use",
    ),
    CONSOLIDATED: ("policy 1, never delete consolidated models", "model_versioner.py list", "tells what came of them"),
    CONFIG: (
        "policy 3, never change critical config without approval",
        "training_controller.py config check",
        "tells what is locked",
    ),
    LOCK: (
        "policy 3, never change critical config without approval",
        "training_controller.py config check",
        "tells what is locked",
    ),
    DISK: ("policy 2, back up before anything risky", "state_tracker.py --check", "shows what lies on the disk"),
    GUARD: ("the agent guard stays on", "training_controller.py doctor", "shows its layers"),
}
VERBS = {
    "delete": "delete",
    "move": "move away",
    "write": "write into",
    "metadata": "change the mode or owner of",
    "link": "make a second name for the bytes of",
    "mount": "mount over",
}


class Denied(Exception):  # noqa: N818 - a verdict, no error
    """The call must not be carried out; the judge holds why."""


class Judge:
    """Collects the worst of what the effects of one call deserve: ``action`` is pass, ask or deny."""

    def __init__(self, protected: Protected) -> None:
        self.protected = protected
        # Where the call would run; a scene sets it.
        self.cwd = "/"
        self.action = "pass"
        self.reason = ""

    def weigh(self, verb: str, path: str, *, content: Content = None, recursive: bool = True) -> None:
        """An effect on an absolute, resolved path.

        Raises:
            Denied: it must not happen.
        """
        place = self.protected.find(path, recursive=recursive)
        if place is None:
            if verb == "write" and self.protected.is_user_settings(path):
                self._touch_settings(path, path, content)
            return
        if place.kind == CONFIG:
            self._touch_config(verb, path, place, content)
        elif place.kind == GUARD:
            self._touch_guard(verb, path, place, content)
        else:
            self.deny(place.kind, f"this would {VERBS[verb]} {self._name(path, place)}")

    def _touch_config(self, verb: str, path: str, place: Place, content: Content) -> None:
        if verb == "metadata":
            return
        if verb == "write" and path == place.path:
            old = _read(place.path)
            new = content(old) if callable(content) else content
            if new is not None:
                changed = find_changed_key(old, new, self.protected.locked)
                if changed is None:
                    return
                self.deny(CONFIG, f"this would change {changed}")
            self.deny(CONFIG, "this would write config.json, and what it would hold cannot be told", _how_to_set(self))
        self.deny(
            CONFIG, f"this would {VERBS[verb]} {self._name(path, place)} with its locked values", _how_to_set(self)
        )

    def _touch_guard(self, verb: str, path: str, place: Place, content: Content) -> None:
        name = self._name(path, place)
        if verb == "write" and path == place.path and place.path.endswith(".json"):
            self._touch_settings(path, name, content)
        else:
            self.deny(GUARD, f"this would {VERBS[verb]} {name}")

    def _touch_settings(self, path: str, name: str, content: Content) -> None:
        old = _read(path)
        new = content(old) if callable(content) else content
        if new is None or weakens_guard(old, new):
            self.deny(GUARD, f"this would write {name}, and the guard would be weaker for it or nobody can tell")

    def _name(self, path: str, place: Place) -> str:
        """The protected place that is meant, and the path if it says more."""
        shown, base = show(path), self.protected.base + "/"
        if shown.startswith(place.path):
            return shown.removeprefix(base)
        return f"{place.path.removeprefix(base)} (as {shown})"

    def deny(self, kind: str, what: str, instead: tuple[str, str] | None = None) -> None:
        """Raises ``Denied`` with what would happen, the policy and the safe command."""
        policy, command, does = POLICIES[kind]
        if instead is not None:
            command, does = instead
        self.action = "deny"
        self.reason = (
            f"Stopped ({policy}): {what}. Instead: {self.command(command)} ({does}). When in doubt, ask the user."
        )
        raise Denied

    def ask(self, what: str, instead: str) -> None:
        """Have a person decide, unless something else is denied."""
        if self.action == "pass":
            self.action = "ask"
            self.reason = f"A person decides (policy 1, explicit permission): {what}. Without: {self.command(instead)}."

    def command(self, line: str) -> str:
        """A command of the toolkit that works from anywhere."""
        script, _, rest = line.partition(" ")
        where = "" if self.protected.base == CODE_DIR else f" --base-dir {_quote(self.protected.named_base)}"
        path = script if os.path.realpath(self.cwd) == CODE_DIR else f"{CODE_DIR}/{script}"
        return f"`python3 {_quote(path)} {rest}{where}`"


def _how_to_set(judge: Judge) -> tuple[str, str]:
    rate = judge.protected.settings.get("learning_rate", 0.0002)
    return (
        f"training_controller.py config set learning_rate {json.dumps(rate)}",
        "`config set KEY VALUE` changes one value",
    )


def _quote(text: str) -> str:
    return (
        text
        if text.isascii() and not set(text) & set(" '\"$`\\&;|<>()*?[]#~!{}")
        else "'" + text.replace("'", "'\\''") + "'"
    )


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""
