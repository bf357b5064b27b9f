"""Edits of settings files, carried out in memory: what would be another than before."""

import json
import re
from collections.abc import Callable

LOCKED_KEYS = ("max_length", "base_model", "model_name")
HOOK = "agent_hook.py"


def find_changed_key(old: str, new: str, locked: dict[str, object]) -> str | None:
    """What a new text of config.json would change that is locked, in words; None if nothing.

    A text that is no JSON object loses the locked values.
    """
    settings = _parse(new)
    if settings is None:
        return "config.json into what is no JSON object" if _parse(old) is not None else None
    for key in LOCKED_KEYS:
        if key in locked and settings.get(key) != locked[key]:
            return f"{key}, which is locked, from {json.dumps(locked[key])} to {json.dumps(settings.get(key))}"
    return None


def weakens_guard(old: str, new: str) -> bool:
    """Whether a new text of an agent's settings would take hooks, denials or the sandbox away, or switch hooks off."""
    before, after = _parse(old) or {}, _parse(new)
    if after is None:
        return bool(before)
    if after.get("disableAllHooks") or _switches_off(after):
        return True
    missing = set(_strings(before, "")) - set(_strings(after, ""))
    return any(
        HOOK in text or path.startswith((".hooks", ".permissions.deny", ".permissions.ask", ".sandbox"))
        for path, text in missing
    )


def _switches_off(settings: dict[str, object]) -> bool:
    """The other ways in which agents' settings say that no hook runs."""
    hooks = settings.get("hooksConfig")
    sandbox = settings.get("sandbox")
    return (isinstance(hooks, dict) and hooks.get("enabled") is False) or (
        isinstance(sandbox, dict) and sandbox.get("enabled") is False
    )


def _parse(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _strings(value: object, path: str) -> list[tuple[str, str]]:
    """Every leaf with the keys on the way to it; places in lists do not count."""
    if isinstance(value, dict):
        return [leaf for key, child in value.items() for leaf in _strings(child, f"{path}.{key}")]
    if isinstance(value, list):
        return [leaf for child in value for leaf in _strings(child, path)]
    return [(path, json.dumps(value))]


def split_patch(text: str, *, is_reversed: bool = False) -> "list[tuple[str, Callable[[str], str | None]]]":
    """The files of a unified diff, each with what it makes of the old text (None where a hunk does not fit)."""
    edits = []
    for part in re.split(r"^(?=--- )", text, flags=re.MULTILINE)[1:]:
        names = re.match(r"--- (\S+)[^\n]*\n\+\+\+ (\S+)[^\n]*\n", part)
        if names is None:
            continue
        name = names[2] if names[2] != "/dev/null" else names[1]
        hunks = []
        for hunk in re.split(r"^@@.*$\n?", part[names.end() :], flags=re.MULTILINE)[1:]:
            lines = [line for line in hunk.split("\n") if line[:1] in (" ", "-", "+")]
            old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] != sign) for sign in "+-")
            hunks.append((new, old) if is_reversed else (old, new))
        edits.append((re.sub(r"^[ab]/", "", name), _make_edit(hunks)))
    return edits


def _make_edit(hunks: list[tuple[str, str]]) -> "Callable[[str], str | None]":
    def edit(text: str) -> str | None:
        for old, new in hunks:
            if old not in text:
                return None
            text = text.replace(old, new, 1)
        return text

    return edit
