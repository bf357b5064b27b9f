"""Text and paths that are only partly known: formatted, cut, taken apart and narrowed by conditions."""

import os
import re
from collections.abc import Callable

from guardrails.guard.patterns import DEEP, HAS_MARK, MARKS, ONE, STAR, UNKNOWN, from_glob, is_known, is_text_known
from guardrails.guard.python.values import (
    ANY,
    FAILURES,
    MOST_TEXT,
    Call,
    Map,
    NotPlainError,
    Seq,
    Value,
    blur,
    combinations,
    concatenate,
    is_plain,
    lift,
    plain,
    text,
    union,
)

# Text.

# Methods that give text, and that do to a part what they do to the whole.
TEXT_METHODS = frozenset(
    ("strip lstrip rstrip lower upper casefold title capitalize swapcase replace removeprefix removesuffix").split()
)
# Methods that need all of the text.
WHOLE_METHODS = frozenset(
    (
        "zfill ljust rjust center expandtabs startswith endswith find rfind index rindex count isdigit isalpha isalnum"
        " isspace isupper islower isidentifier isnumeric isdecimal isascii hex"
    ).split()
)
SPLITS = frozenset(("split", "rsplit", "splitlines", "partition", "rpartition"))
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}:!]*)(?:!([rsa]))?(?::([^{}]*))?\}")
_PERCENT = re.compile(r"%(?:\((\w+)\))?([-+ #0]*\d{0,4}(?:\.\d{1,3})?)([sdifrxXoeEgGcua%])")
_SMALL_SPEC = re.compile(r"[^0-9]*[0-9]{0,4}[^0-9]*[0-9]{0,3}[^0-9]*")


def call_text_method(item: str, name: str, call: Call) -> Value:
    """A method of ``str`` or ``bytes`` that has no effect."""
    found: list[Value] = []
    for arguments in combinations(call.args):
        found.append(_call_text_method(item, name, arguments))
    return union(*found)


def _call_text_method(item: str, name: str, arguments: list[object]) -> Value:
    if any(isinstance(entry, int) and entry > MOST_TEXT for entry in arguments):
        return (blur((item,)),)
    try:
        known = [_as_argument(entry) for entry in arguments]
    except NotPlainError:
        made = blur((item,), tuple(arguments))
        return (Seq(rest=(made,)),) if name in SPLITS else (made,)
    if name in SPLITS and not is_text_known(item):
        return (Seq(rest=(blur((item,)),)),)
    if name in WHOLE_METHODS and not is_known(item):
        return ANY
    if name == "replace" and len(known) > 1 and len(item) * max(1, len(str(known[1]))) > MOST_TEXT * 16:
        return (blur((item,)),)
    try:
        made = item.encode("latin-1").hex() if name == "hex" else getattr(item, name)(*known)
    except FAILURES:
        return ANY
    return (made,) if isinstance(made, str) else lift_marked(made)


def _as_argument(entry: object) -> object:
    known = plain((entry,))
    return tuple(known) if isinstance(known, list) else known


def lift_marked(item: object) -> Value:
    """As ``lift``, but text in lists keeps its marks."""
    if isinstance(item, (list, tuple)):
        return (Seq([(entry,) if isinstance(entry, str) else lift(entry) for entry in item][:MOST_TEXT]),)
    return lift(item)


def format_item(item: object, spec: str) -> str:
    """``format(item, spec)``; what is not known stays as it is."""
    if not spec or not is_plain(item):
        return text(item)
    if not _SMALL_SPEC.fullmatch(spec):
        return UNKNOWN
    try:
        return format(item, spec)
    except FAILURES:
        return text(item)


def fill_fields(template: str, call: Call) -> Value:
    """``template.format(...)``."""
    numbers = iter(range(1000))

    def find(match: "re.Match[str]") -> tuple[Value, str]:
        name = match[1]
        if name is None:
            return (match[0][0],), ""
        if not name:
            return call.get(next(numbers)), match[3] or ""
        if name.isdigit():
            return call.get(int(name)), match[3] or ""
        return call.get(-1, name), match[3] or ""

    return _fill(template, _FIELD, find)


def fill_percent(template: str, value: Value) -> Value:
    """``template % value``."""
    first = value[0] if value else None
    entries = iter(first.items if isinstance(first, Seq) and len(value) == 1 else [value])

    def find(match: "re.Match[str]") -> tuple[Value, str]:
        name, flags, kind = match.groups()
        if kind == "%":
            return ("%",), ""
        if name:
            return (first.at(name) if isinstance(first, Map) else ANY), ""
        shape = f"{flags}{kind}" if kind in "dixXoeEgGf" and re.fullmatch(r"0?\d*(\.\d+)?", flags) else ""
        return next(entries, ANY), shape.replace("i", "d")

    return _fill(template, _PERCENT, find)


def _fill(template: str, fields: "re.Pattern[str]", find: "Callable[[re.Match[str]], tuple[Value, str]]") -> Value:
    parts: list[Value] = []
    end = 0
    for match in fields.finditer(template):
        parts.append((template[end : match.start()],))
        value, spec = find(match)
        parts.append(tuple(format_item(item, spec) for item in value))
        end = match.end()
    return concatenate([*parts, (template[end:],)])


def cut_text(item: str, cut: "slice[int | None, int | None, int | None]") -> Value:
    """``item[start:stop:step]``."""
    cuts_known_end = cut.start is None and cut.step is None and (cut.stop or 0) < 0 and is_known(item[cut.stop :])
    return (item[cut],) if is_known(item) or cuts_known_end else (blur((item,)),)


# Paths.


def glob_marks(pattern: str) -> str:
    """As ``from_glob``, for text that holds marks already."""
    return "".join(
        part if part and part in MARKS else from_glob(part) for part in re.split(f"([{MARKS}])", pattern) if part
    )


def last_name(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2]
    return STAR if name == DEEP else name


def parent_of(path: str) -> str:
    if path in (".", "", "/"):
        return path or "."
    return os.path.dirname(path.rstrip("/")) or "."


def suffix_of(path: str) -> str:
    name = last_name(path)
    tail = HAS_MARK.split(name)[-1]
    if "." in tail.lstrip(".") or ("." in tail and tail != name):
        return "." + tail.rpartition(".")[2]
    return "" if is_known(name) else (UNKNOWN if not is_text_known(name) else STAR)


def with_suffix(path: str, suffix: str) -> str:
    old = suffix_of(path)
    return (path.removesuffix(old) if is_known(old) else path) + suffix


def entry_of(folder: str) -> str:
    """The name of any entry of a folder."""
    last = folder.rstrip("/").rpartition("/")[2]
    return STAR if is_text_known(last) else blur((last,))


def below(folder: str, *names: str) -> str:
    return os.path.join(folder, *names)


def walk_of(folder: str) -> str:
    """Any folder of a tree, its top included."""
    return folder if not is_text_known(last_name(folder)) else below(folder, DEEP)


PATH_ATTRIBUTES: "dict[str, Callable[[str], Value]]" = {
    "anchor": lambda path: ("/" if path.startswith("/") else "",),
    "name": lambda path: (last_name(path),),
    "parent": lambda path: (parent_of(path),),
    "parents": lambda path: (Seq([(parent_of(path),)], (parent_of(parent_of(path)), "/")),),
    "parts": lambda path: (Seq([(part,) for part in path.split("/") if part]),),
    "path": lambda path: (path,),
    "stem": lambda path: (last_name(path).removesuffix(suffix_of(path)) if is_known(suffix_of(path)) else STAR,),
    "suffix": lambda path: (suffix_of(path),),
    "suffixes": lambda path: (Seq([(suffix_of(path),)]),),
}


# What a condition tells about a text.


def fits(item: str, wanted: str) -> bool:
    """Whether a text with marks can be ``wanted``."""
    shape = "".join({STAR: "[^/]*", ONE: "[^/]"}.get(c) or (".*" if c in MARKS else re.escape(c)) for c in item)
    return re.fullmatch(shape, wanted, re.DOTALL) is not None


def narrow_text(item: str, how: str, wanted: str) -> list[str]:
    """What of ``item`` is left where it ``is``, ``starts`` or ``ends`` with, ``has`` or ``globs`` ``wanted``."""
    if not is_known(wanted):
        return [item]
    if how == "is":
        return [wanted] if fits(item, wanted) else []
    marks = [match.start() for match in HAS_MARK.finditer(item)]
    if not marks:
        return [item]
    head, tail = item[: marks[0]], item[marks[-1] + 1 :]
    if how == "starts":
        if not head.startswith(wanted):
            return [wanted + item[len(head) :]] if wanted.startswith(head) else []
    elif how == "ends":
        if not tail.endswith(wanted):
            return [item[: marks[-1] + 1] + wanted] if wanted.endswith(tail) else []
    elif how == "has" and wanted not in item:
        mark = item[marks[-1]]
        around = (f"{DEEP}/{STAR}", f"{STAR}/{DEEP}") if mark == DEEP else (mark, mark)
        return [item[: marks[-1]] + wanted.join(around) + tail]
    elif how == "globs" and len(item) == 1:
        return [glob_marks(wanted)]
    return [item]


def narrow_name(path: str, how: str, wanted: str) -> list[str]:
    """As ``narrow_text``, for the last name of a path."""
    head, slash, last = path.rpartition("/")
    if last == DEEP or not is_text_known(last):
        head, slash, last = path, "/", STAR
    return [head + slash + name for name in narrow_text(last, how, wanted)]
