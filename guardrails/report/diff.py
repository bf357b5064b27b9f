"""What differs between two state documents: lists by id, old documents without the newer keys included."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from guardrails.report.parts import BY_MESSAGE, dump_parts, load_part

ORDER = (
    *("verdict", "version", "current_model", "versions", "config", "training_status", "daemon_running", "queue"),
    *("warning_details", "warnings", "disk_space", "storage", "pending", "gpu"),
)
# Numbers that move all day; in a line of the history they have columns of their own or tell nothing.
MOVING = ("current_model", "training_status", "disk_space", "storage", "pending", "gpu")
ONE_BY_ONE = 2

Differences = Mapping[str, tuple[str | None, str | None]]


class Change(NamedTuple):
    """One difference. ``kind`` is ``added``, ``removed`` or ``changed``; ``key`` is within ``part`` if it has any."""

    kind: str
    part: str
    key: str | None
    old: Any
    new: Any

    @property
    def path(self) -> str:
        return self.part if self.key is None else f"{self.part}.{self.key}"

    @property
    def list_name(self) -> str:
        return self.part.partition("/")[0]

    @property
    def id(self) -> str:
        return self.part.partition("/")[2]


def find_differences(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Parts that are not the same text: name -> (old, new), None where it is absent."""
    if "warnings" in old or "warnings" in new:
        # One of the two knows its findings by message only.
        old, new = _by_message(old), _by_message(new)
    names = [*old, *(name for name in new if name not in old)]
    return {
        name: (old.get(name), new.get(name))
        for name in names
        if old.get(name) != new.get(name) and _is_comparable(name, old, new)
    }


def _is_comparable(name: str, old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Whether both documents can tell of it: a list that one of them does not have at all says nothing."""
    in_list = name.partition("/")[0] if "/" in name else name
    return in_list in old and in_list in new


def _by_message(texts: Mapping[str, str]) -> Mapping[str, str]:
    if "warnings" in texts:
        return texts
    told = {name: text for name, text in texts.items() if name.partition("/")[0] != "warning_details"}
    for name in texts.keys() - told.keys():
        finding = load_part(texts[name])
        if isinstance(finding, dict):
            told[f"warnings/[{finding.get('category')}] {finding.get('message')}"] = "{}"
    return {**told, **dump_parts({"warnings": BY_MESSAGE})}


def explain(differences: Differences) -> list[Change]:
    """Differences of parts as single changes, in the order of the document."""
    names = sorted(differences, key=lambda name: (_rank(name), _by_number(name)))
    return [change for name in names for change in _explain_part(name, *differences[name])]


def _rank(name: str) -> int:
    top = name.partition("/")[0]
    return ORDER.index(top) if top in ORDER else len(ORDER)


def _by_number(name: str) -> tuple[int, str]:
    """v999 before v1000."""
    return len(name) if name.startswith("versions/") else 0, name


def _explain_part(name: str, old_text: str | None, new_text: str | None) -> Iterable[Change]:
    old, new = (load_part(text) if text is not None else None for text in (old_text, new_text))
    if old_text is None or new_text is None:
        if "/" in name:
            yield Change("added" if old_text is None else "removed", name, None, old, new)
    elif isinstance(old, dict) and isinstance(new, dict):
        # A key that only one of them has came with another release.
        for key in old:
            if key in new and old[key] != new[key]:
                yield from _compare_values(name, key, old[key], new[key])
    else:
        yield from _compare_values(name, None, old, new)


def _compare_values(part: str, key: str | None, old: Any, new: Any) -> Iterable[Change]:
    lists = isinstance(old, list) and isinstance(new, list)
    if not lists or not all(isinstance(value, str) for value in (*old, *new)):
        yield Change("changed", part, key, old, new)
        return
    yield from (Change("removed", part, key, value, None) for value in old if value not in new)
    yield from (Change("added", part, key, None, value) for value in new if value not in old)


def summarize(changes: Iterable[Change]) -> list[str]:
    """The changes in a few words each, the weightiest first; numbers that move all day if there is nothing else.

    The verdict is not among them: it follows from the rest, and whoever lists changes shows it beside them.
    """
    changes = list(changes)
    if any(change.path == "config.exists" for change in changes):
        # What was in it went, or came, with it.
        changes = [change for change in changes if change.part != "config" or change.key == "exists"]
    news = [words for change in changes if change.list_name not in MOVING for words in _words(change)]
    return [*_version_words(changes), *news] or _moving_words(changes)


def _version_words(changes: list[Change]) -> list[str]:
    """Which versions came and went, and which one ``current_model/`` became."""
    words = []
    moved = next((change for change in changes if change.part == "version"), None)
    current = moved.new if moved is not None else None
    for kind, verb in (("added", "saved"), ("removed", "removed")):
        ids = [change.id for change in changes if change.list_name == "versions" and change.kind == kind]
        if kind == "added" and current in ids:
            ids.remove(current)
            words.append(f"{current} published")
        if len(ids) > ONE_BY_ONE:
            words.append(f"{ids[0]} to {ids[-1]} {verb} ({len(ids)})")
        else:
            words += [f"{identifier} {verb}" for identifier in ids]
    if moved is not None and f"{current} published" not in words:
        words.append(f"model {moved.old or 'none'} -> {moved.new or 'none'}")
    for change in changes:
        if change.part == "current_model" and change.key in ("exists", "has_adapter") and moved is None:
            what = "model" if change.key == "exists" else "adapter"
            words.append(f"{what} {'there' if change.new else 'gone'}")
        if change.part == "training_status" and change.key == "status":
            words.append(f"{change.old} -> {change.new}")
    return words


def _words(change: Change) -> Iterable[str]:
    if change.part in ("verdict", "version") or (change.list_name == "versions" and change.kind != "changed"):
        return
    if change.part == "daemon_running":
        yield "daemon started" if change.new else "daemon stopped"
    elif change.list_name in ("warning_details", "warnings"):
        if change.kind != "changed":
            yield f"{change.id} {'appeared' if change.kind == 'added' else 'cleared'}"
        elif change.key == "severity":
            yield f"{change.id} {change.old} -> {change.new}"
    elif change.part == "queue" and change.key in ("processing", "completed"):
        # Training's status and the versions tell it.
        return
    elif change.part == "config" and change.key == "exists":
        yield "config there" if change.new else "config gone"
    elif change.list_name == "versions":
        yield f"{change.id} {change.key} {show_value(change.old)} -> {show_value(change.new)}"
    elif change.kind == "changed":
        name = change.key if change.part == "queue" else change.path.replace(".", " ")
        yield f"{name} {show_value(change.old)} -> {show_value(change.new)}"


def _moving_words(changes: list[Change]) -> list[str]:
    """What there is to say of a row whose numbers alone have moved."""
    steps = next((change for change in changes if change.path == "training_status.current_step"), None)
    free = next((change for change in changes if change.path == "disk_space.available_gb"), None)
    words = []
    if steps is not None and isinstance(steps.old, int) and isinstance(steps.new, int):
        words.append(f"{steps.new - steps.old:+} steps")
    elif free is not None and all(isinstance(value, int | float) for value in (free.old, free.new)):
        words.append(f"{free.new - free.old:+.1f} GB free")
    return words or sorted({f"{change.list_name} changed" for change in changes})


def show_value(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return value if isinstance(value, str) else f"{value}"
