"""What was damaged from one look to the next, and what heals it."""

import json
import os
import re

from guardrails.guard.look import (
    Json,
    Look,
    as_dict,
    is_training,
    names_in_trash,
    numbers_of,
    read_approvals,
    was_model_changed_since,
)
from guardrails.guard.mark import mark_of
from guardrails.guard.protected import CODE_DIR

# So many backups are made again at once; more say that something larger went wrong, which a person should see.
MOST_BACKUPS = 3
SHOWN = 5


class Damage:
    """One thing that is not as it was, in words, and what heals it.

    That is a ``command`` of the toolkit, or a file or hook of the name ``put_back`` of which a copy is kept. Where it
    is neither, ``hint`` says what a person can do.
    """

    __slots__ = ("command", "hint", "put_back", "undo", "what")

    def __init__(
        self, what: str, *, command: tuple[str, ...] = (), put_back: str = "", hint: str = "", undo: str = ""
    ) -> None:
        self.what = what
        self.command = command
        self.put_back = put_back
        self.hint = hint
        self.undo = undo


def find_damage(base: str, last: Look, now: Look) -> list[Damage]:
    """All that changed and no command of the toolkit explains, in the order of healing."""
    return [
        *_find_in_config(base, last, now),
        *_find_in_trees(base, last, now),
        *_find_in_backups(base, last, now),
        *_find_in_model(base, last, now),
        *_find_in_base_models(base, last, now),
        *_find_in_guard(last, now),
    ]


def make_ideal(look: Look) -> Look:
    """The look that there should have been, where none is kept."""
    version = _pair(look["model"])[1]
    model = ["version", version] if version else look["model"]
    return {**look, "settings": {**as_dict(look["settings"]), **as_dict(look["locked"])}, "model": model}


def typed(base: str, script: str, *arguments: str) -> str:
    """A command of the toolkit as it is typed, from any folder."""
    where = () if base == CODE_DIR else ("--base-dir", base)
    return " ".join(["python3", *(quote(word) for word in (f"{CODE_DIR}/{script}", *arguments, *where))])


def quote(word: str) -> str:
    """One word for a POSIX shell."""
    return word if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII) else "'" + word.replace("'", "'\"'\"'") + "'"


def _find_in_config(base: str, last: Look, now: Look) -> list[Damage]:
    found = []
    settings, before = as_dict(now["settings"]), as_dict(last["settings"])
    expected, was = as_dict(now["locked"]), as_dict(last["locked"])
    states = {"missing": "was removed", "damaged": "is no JSON object any more", "there": "was changed by hand"}
    if now["config"] != "there" and last["config"] == "there":
        found.append(Damage(f"config.json {states[str(now['config'])]}", put_back="config.json"))
    is_lost = now["lock"] != "there" and last["lock"] == "there"
    if is_lost or (now["lock"] == "there" and was and _was_moved_by_nobody(base, last, now)):
        # Taken anew from the version that current_model/ is.
        anew = [typed(base, "training_controller.py", "config", "set", key, json.dumps(was[key])) for key in was][:1]
        what = f".config_lock.json {states[str(now['lock'])]}"
        found.append(Damage(what, put_back=".config_lock.json", hint="".join(anew)))
        expected = was
    for key, old in expected.items():
        new = settings.get(key, old)
        # What was so at the last look already was told then.
        if new == old or (new == before.get(key) and was.get(key) == old):
            continue
        set_value = ("training_controller.py", "config", "set", key)
        found.append(
            Damage(
                f"{key} in config.json was {json.dumps(old)} and became {json.dumps(new)}, but it is locked"
                " (policy 3: only a person changes it)",
                command=(*set_value, json.dumps(old)),
                undo=f"a person, on a terminal: {typed(base, *set_value, json.dumps(new))}",
            )
        )
    return found


def _was_moved_by_nobody(base: str, last: Look, now: Look) -> bool:
    """Whether the lock changed and no recorded approval says to what."""
    was, locked = as_dict(last["locked"]), as_dict(now["locked"])
    changed = {key: locked.get(key) for key in was if locked.get(key) != was[key]}
    if last["fingerprint"] != now["fingerprint"]:
        changed["base_model"] = locked.get("base_model")
    records = read_approvals(base) if changed else {}
    for key, value in changed.items():
        record = records.get(key, {})
        if record.get("new") != value or record.get("new_fingerprint", now["fingerprint"]) != now["fingerprint"]:
            return True
    return False


def _find_in_trees(base: str, last: Look, now: Look) -> list[Damage]:
    """Versions that are gone, and versions and backups in which something changed: one command looks at all."""
    gone = [f"v{number:03d}" for number in sorted(numbers_of(last["versions"]) - numbers_of(now["versions"]))]
    before, trees = as_dict(last["trees"]), as_dict(now["trees"])
    changed = [name for name in before if name in trees and _is_damaged(base, name, before[name], trees[name])]
    what = [f"{_list(gone)} removed from models/versions/"] if gone else []
    if changed:
        what.append(f"files of {_list(changed)} changed, touched or removed")
    return [Damage(" and ".join(what), command=("model_versioner.py", "repair", *gone, *changed))] if what else []


def _is_damaged(base: str, name: str, old: object, new: object) -> bool:
    if new in (old, "removed") or not isinstance(old, list):
        return False
    if not isinstance(new, list) or new[0] != old[0]:
        return True
    # Pinning writes the metadata anew.
    folder = "versions" if name.startswith("v") else "backups"
    try:
        with open(f"{base}/models/{folder}/{name}/metadata.json", "rb") as file:
            return as_dict(json.loads(file.read())).get("id") != name
    except (OSError, ValueError, RecursionError):
        return True


def _list(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _find_in_backups(base: str, last: Look, now: Look) -> list[Damage]:
    names = [f"b{number:03d}" for number in sorted(numbers_of(last["backups"]) - numbers_of(now["backups"]))]
    in_trash = names_in_trash(base) if names else set()
    gone = [name for name in reversed(names) if name not in in_trash]
    of: Json = as_dict(last["of"])
    found = []
    for name in gone[:MOST_BACKUPS]:
        source = f"models/versions/{of[name]}" if of.get(name) else "current_model/"
        again = ("backup_manager.py", "backup", source, "--reason", f"{name} was removed")
        found.append(Damage(f"models/backups/{name} was removed", command=again))
    if rest := gone[MOST_BACKUPS:]:
        hint = f"{typed(base, 'backup_manager.py', 'list')} shows what is left"
        found.append(Damage(f"{_list(rest)} were removed from models/backups/", hint=hint))
    return found


def _find_in_model(base: str, last: Look, now: Look) -> list[Damage]:
    (was, _), (condition, version) = _pair(last["model"]), _pair(now["model"])
    if was != "version" or condition == "version":
        return []
    if version is None and condition == "absent" and os.path.exists(f"{base}/models/head.json"):
        # A rollback to a fresh start.
        return []
    what = "current_model/ was removed" if condition == "absent" else "files in current_model/ were changed or touched"
    back = ("model_versioner.py", "rollback", "--by-hand")
    if is_training(base):
        hint = "nothing is lost: the run that trains now publishes its own, and keeps such a change as a version"
        return [Damage(what, hint=hint)]
    if condition == "changed" and not was_model_changed_since(base, mark_of(base)):
        # Copying a model there by hand is allowed, and may still go on.
        return [Damage(f"{what} before this call, perhaps by a person", hint=f"to undo it: {typed(base, *back)}")]
    return [Damage(what, command=back)]


def _find_in_base_models(base: str, last: Look, now: Look) -> list[Damage]:
    before, here = (look["base_models"] if isinstance(look["base_models"], list) else [] for look in (last, now))
    hint = f"nothing here makes it again; a backup may have it: {typed(base, 'backup_manager.py', 'list')}"
    gone = [path for path in before if path not in here and not os.path.exists(f"{path}/config.json")]
    return [Damage(f"the base model {path} is gone", hint=hint) for path in gone]


def _find_in_guard(last: Look, now: Look) -> list[Damage]:
    found = []
    hooks = as_dict(now["hooks"])
    for name, problem in as_dict(last["hooks"]).items():
        why = hooks.get(name, "its settings were removed")
        if problem is None and why is not None:
            found.append(Damage(f"the hook {name} was switched off: {why}", put_back=name))
    before, code = as_dict(last["code"]), as_dict(now["code"])
    for word, names in (
        ("removed", [name for name in before if code.get(name) is None]),
        ("changed", [name for name in before if code.get(name) not in (None, before[name])]),
    ):
        if names:
            files = " ".join(f"guardrails/{name}" for name in names)
            hint = f"if nobody meant that: git -C {quote(CODE_DIR)} checkout HEAD -- {files}"
            found.append(Damage(f"of the guard itself {_list(names)} {word}", hint=hint))
    return found


def _pair(value: object) -> tuple[object, object]:
    return (value[0], value[1]) if isinstance(value, list) and len(value) == 2 else (None, None)
