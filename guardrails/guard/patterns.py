"""Paths that are only partly known: text in which marks stand for what a shell would fill in.

A value is a plain ``str``. The marks are private-use characters, taken out of all text that comes in.
"""

import os
import re

# Text that nobody can know beforehand, slashes included.
UNKNOWN = "\ue000"
# As UNKNOWN, but it came out of a command that named a protected path.
TAINT = "\ue001"
# The shell's * and ? (and [...]): no slash.
STAR = "\ue002"
ONE = "\ue003"
# A folder or any number of folders: ** and what find walks.
DEEP = "\ue004"
# A fresh name that holds nothing yet, as of mktemp.
FRESH = "\ue005"

MARKS = UNKNOWN + TAINT + STAR + ONE + DEEP + FRESH
HAS_MARK = re.compile(f"[{MARKS}]")
_GLOB = {STAR: "[^/]*", ONE: "[^/]", DEEP: ".*", UNKNOWN: ".*", TAINT: ".*", FRESH: "[^/]*"}


def clean(text: str) -> str:
    """Text from outside, with nothing in it that could be taken for a mark."""
    return HAS_MARK.sub("?", text) if not text.isascii() else text


def is_known(value: str) -> bool:
    return value.isascii() or not HAS_MARK.search(value)


def is_text_known(value: str) -> bool:
    """Whether a value is known but for wildcards."""
    return UNKNOWN not in value and TAINT not in value


def show(value: str) -> str:
    """A value as people write it."""
    for mark, shown in ((UNKNOWN, "…"), (TAINT, "…"), (STAR, "*"), (ONE, "?"), (DEEP, "**"), (FRESH, "tmp")):
        value = value.replace(mark, shown)
    return value


def from_glob(text: str) -> str:
    """A wildcard pattern as Python's glob and find understand it, with marks for its wildcards."""
    text = re.sub(r"\[(?:\[:\w+:\]|[^\]/])+\]", ONE, clean(text))
    return text.replace("**", DEEP).replace("*", STAR).replace("?", ONE)


def matches(pattern: str, name: str) -> bool:
    """Whether one segment of a pattern can be ``name``."""
    if is_known(pattern):
        return pattern == name
    if name.startswith(".") and pattern[0] in STAR + ONE:
        return False
    return re.fullmatch("".join(_GLOB.get(c) or re.escape(c) for c in pattern), name, re.DOTALL) is not None


def join(folder: str, path: str) -> str:
    """``path`` seen from ``folder``, tidied as far as that is safe (``..`` after a mark stays)."""
    return tidy(path if path.startswith("/") else f"{folder}/{path}")


def tidy(path: str) -> str:
    """An absolute path without ``.``, ``..`` and doubled slashes."""
    if is_known(path):
        return os.path.normpath("/" + path.lstrip("/")) if path.startswith("/") else os.path.normpath(path)
    done: list[str] = []
    for segment in path.split("/"):
        if segment in ("", "."):
            continue
        if segment == ".." and done and done[-1] != ".." and DEEP not in done[-1] and UNKNOWN not in done[-1]:
            done.pop()
        elif segment != ".." or done:
            done.append(segment)
    return ("/" if path.startswith("/") else "") + "/".join(done)


def resolve(path: str, links: "dict[str, str]", *, follow_last: bool) -> str:
    """An absolute path with the symlinks on its known part followed; ``links`` are those that do not exist yet."""
    path = re.sub(r"^/proc/[^/]+/root(?=/|$)", "", path) or "/"
    for _ in range(8):
        start, mark, rest = _split_at_mark(path)
        if not follow_last and not mark:
            start, rest = os.path.split(start)
        new = _follow(os.path.realpath(start), links)
        full = tidy(f"{new}/{rest}") if rest else new
        if full == path:
            break
        path = full
    return path


def _split_at_mark(path: str) -> "tuple[str, bool, str]":
    match = HAS_MARK.search(path)
    if match is None:
        return path, False, ""
    cut = path.rfind("/", 0, match.start())
    return path[:cut] or "/", True, path[cut + 1 :]


def _follow(path: str, links: "dict[str, str]") -> str:
    for link, target in links.items():
        if path == link or path.startswith(link + "/"):
            return tidy(target + path[len(link) :])
    return path
