"""What Python code computes with, as far as that can be told without running it.

A value is a tuple of alternatives: text with the marks of ``patterns`` (bytes and paths are text, too), numbers,
``None`` and the objects below.
"""

import re
from collections.abc import Iterator

from guardrails.guard.patterns import MARKS, STAR, TAINT, UNKNOWN, clean, is_known

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _ast

Value = tuple[object, ...]
ANY: Value = (UNKNOWN,)
NONE: Value = (None,)
# Where more alternatives or longer text come up, some of it becomes unknown.
MOST_VALUES = 100
MOST_TEXT = 64 * 1024
MOST_BITS = 256
# What an operation on odd operands can raise.
FAILURES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, re.error)


class Number:
    """A number that is not known; in text, a name without a slash."""

    __slots__ = ()


NUMBER: Value = (Number(),)


class NotPlainError(Exception):
    """The value is not known in full."""


class Seq:
    """A list, tuple, set or iterator: known ``items``, then any number of ``rest``."""

    __slots__ = ("items", "level", "rest")

    def __init__(self, items: list[Value] | None = None, rest: Value = (), level: int = 0) -> None:
        self.items = items or []
        self.rest = rest
        # How many conditions stood around its making: under more of them a change may or may not happen.
        self.level = level

    def all(self) -> Value:
        return union(*self.items, self.rest) or ANY

    def at(self, index: object) -> Value:
        if isinstance(index, int) and not isinstance(index, bool):
            if 0 <= index < len(self.items):
                return self.items[index]
            if index < 0 and not self.rest and -index <= len(self.items):
                return self.items[index]
            if self.rest:
                return self.rest if index >= 0 else self.all()
            return ANY
        return self.all()


class Map:
    """A dict: its known keys, and in ``rest`` the values of keys that are not known (``()``: there are none)."""

    __slots__ = ("items", "level", "rest")

    def __init__(self, items: "dict[object, Value] | None" = None, rest: Value = (), level: int = 0) -> None:
        self.items = {} if items is None else items
        self.rest = rest
        self.level = level

    def at(self, key: object) -> Value:
        if isinstance(key, str) and not is_known(key):
            return union(*self.items.values(), self.rest) or ANY
        if key in self.items:
            return self.items[key]
        return self.rest or ANY

    def put(self, key: object, value: Value, level: int) -> None:
        if isinstance(key, str) and not is_known(key):
            self.rest = union(self.rest, value)
        elif level > self.level and key in self.items:
            self.items[key] = union(self.items[key], value)
        else:
            self.items[key] = value


class Native:
    """A module, function or class of a library, by its full name; builtins have no dot."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Native) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class Method:
    """An attribute of something, most likely a method; of what is unknown, it may be anything."""

    __slots__ = ("name", "receiver")

    def __init__(self, receiver: object, name: str) -> None:
        self.receiver = receiver
        self.name = name


class Loop:
    """Where ``break`` and ``continue`` of one loop lead: the variables as they were there."""

    __slots__ = ("breaks", "continues")

    def __init__(self) -> None:
        self.breaks: list[dict[str, Value]] = []
        self.continues: list[dict[str, Value]] = []


class Frame:
    """The variables of a module, class or function."""

    __slots__ = ("origins", "outer", "owner", "parent", "receiver", "results", "stars", "variables", "yields")

    def __init__(self, parent: "Frame | None" = None) -> None:
        self.variables: dict[str, Value] = {}
        self.parent = parent
        self.outer: dict[str, Frame] = {}
        # What variables were made of: name, expression, the variables in it and what was made.
        self.origins: list[tuple[str, _ast.expr, dict[str, Value], Value]] = []
        # Modules of which everything was imported.
        self.stars: list[str] = []
        self.results: list[Value] = []
        self.yields: list[Value] = []
        self.owner: Class | None = None
        self.receiver: object = None


class Function:
    """A function or lambda of the code itself, perhaps bound to an instance."""

    __slots__ = ("defaults", "frame", "keywords", "kinds", "node", "owner", "receiver")

    def __init__(self, node: "_ast.FunctionDef | _ast.AsyncFunctionDef | _ast.Lambda", frame: Frame) -> None:
        self.node = node
        self.frame = frame
        self.defaults: list[Value] = []
        self.keywords: list[Value | None] = []
        # The decorators that were told by name: property, staticmethod, ...
        self.kinds: set[str] = set()
        self.owner: Class | None = None
        self.receiver: object = None

    def bind(self, receiver: object) -> "Function":
        bound = Function(self.node, self.frame)
        bound.defaults, bound.keywords, bound.kinds, bound.owner = self.defaults, self.keywords, self.kinds, self.owner
        bound.receiver = receiver
        return bound


class Class:
    """A class of the code itself; ``fields`` are its annotated names in order."""

    __slots__ = ("bases", "fields", "variables")

    def __init__(self, bases: Value, variables: dict[str, Value], fields: list[str]) -> None:
        self.bases = bases
        self.variables = variables
        self.fields = fields

    def find(self, name: str, depth: int = 0) -> Value | None:
        if name in self.variables:
            return self.variables[name]
        for base in self.bases:
            if isinstance(base, Class) and depth < 8 and (found := base.find(name, depth + 1)) is not None:
                return found
        return None


class Instance:
    """An object with attributes: of a class of the code's own, or of none (a namespace)."""

    __slots__ = ("attributes", "kind", "level")

    def __init__(self, kind: Class | None, attributes: dict[str, Value], level: int = 0) -> None:
        self.kind = kind
        self.attributes = attributes
        self.level = level


class Module:
    """A module of the user's own, run for its effects."""

    __slots__ = ("frame", "name")

    def __init__(self, name: str, frame: Frame) -> None:
        self.name = name
        self.frame = frame


class Opened:
    """An open file: what is written to it is known as long as ``parts`` is not None."""

    __slots__ = ("is_cut", "is_rewound", "level", "mode", "parts", "path")

    def __init__(self, path: Value, mode: str, level: int) -> None:
        self.path = path
        self.mode = mode
        self.parts: list[str] | None = []
        self.level = level
        self.is_rewound = False
        self.is_cut = False

    @property
    def is_writing(self) -> bool:
        return not set(self.mode.partition(":")[0]).isdisjoint("wax+" + MARKS)


class Partial:
    """A function with its first arguments."""

    __slots__ = ("args", "function", "keywords")

    def __init__(self, function: Value, args: list[Value], keywords: dict[str, Value]) -> None:
        self.function = function
        self.args = args
        self.keywords = keywords


class Made:
    """What a library made, where its methods matter: a process, a pattern, a parser."""

    __slots__ = ("children", "defaults", "kind", "options", "value")

    def __init__(self, kind: str, value: Value = ANY) -> None:
        self.kind = kind
        self.value = value
        # Of a parser: its options, what it sets without any, and the parsers of its commands.
        self.options: list[Call] = []
        self.defaults: dict[str, Value] = {}
        self.children: dict[str, Made] = {}


class Call:
    """The arguments of one call; ``rest`` are more of unknown number."""

    __slots__ = ("args", "keywords", "rest")

    def __init__(self, args: list[Value], keywords: dict[str, Value] | None = None, rest: Value = ()) -> None:
        self.args = args
        self.keywords = keywords or {}
        self.rest = rest

    def find(self, index: int, *names: str) -> Value | None:
        if 0 <= index < len(self.args):
            return self.args[index]
        for name in names:
            if name in self.keywords:
                return self.keywords[name]
        return self.rest or None if index >= 0 else None

    def get(self, index: int, *names: str) -> Value:
        found = self.find(index, *names)
        return ANY if found is None else found

    def after(self, count: int) -> "Call":
        return Call(self.args[count:], self.keywords, self.rest)


def union(*values: Value) -> Value:
    """All alternatives of all values, each once."""
    if len(values) == 1:
        return values[0]
    found = {(item.__class__, item): item for value in values for item in value}
    if len(found) > MOST_VALUES:
        return (*list(found.values())[:MOST_VALUES], UNKNOWN)
    return tuple(found.values())


def merge(one: dict[str, Value], other: dict[str, Value]) -> dict[str, Value]:
    """The variables behind two ways through the code."""
    merged = dict(one)
    for name, value in other.items():
        before = merged.get(name)
        merged[name] = value if before is None or before is value else union(before, value)
    return merged


def blur(*values: Value) -> str:
    """What is made of the values in a way that cannot be followed."""
    for value in values:
        for item in value:
            while isinstance(item, Method):
                item = item.receiver  # noqa: PLW2901 - down to what it is a method of
            if isinstance(item, str) and TAINT in item:
                return TAINT
    return UNKNOWN


def text(item: object) -> str:
    """An alternative as ``str()`` shows it."""
    if isinstance(item, str):
        return item
    if item is None or isinstance(item, (int, float)):
        return str(item)
    if isinstance(item, Number):
        return STAR
    if isinstance(item, Opened):
        return text(item.path[0])
    return blur((item,))


def texts(value: Value) -> list[str]:
    return [text(item) for item in value]


def concatenate(parts: list[Value]) -> Value:
    """The texts of the parts put together, in all combinations."""
    made = [""]
    for part in parts:
        choices = texts(part) or [UNKNOWN]
        if len(made) * len(choices) > MOST_VALUES:
            choices = [blur(part)]
        made = [start + choice for start in made for choice in choices]
        if len(made[0]) > MOST_TEXT:
            return (blur(tuple(made)),)
    return union(tuple(made), ())


def combinations(values: list[Value], most: int = 32) -> Iterator[list[object]]:
    """Every choice of one alternative each; where they are too many, the later values are blurred."""
    chosen, count = [], 1
    for value in values:
        count *= len(value)
        chosen.append(value if count <= most else (blur(value),))
        if count > most:
            count //= len(value)
    picks: list[list[object]] = [[]]
    for value in chosen:
        picks = [[*pick, item] for pick in picks for item in value]
    yield from picks


def is_plain(item: object) -> bool:
    return is_known(item) if isinstance(item, str) else item is None or isinstance(item, (int, float))


def plain(value: Value) -> object:
    """The Python object that a value is.

    Raises:
        NotPlainError: it is not known, or not in full.
    """
    if len(value) != 1:
        raise NotPlainError
    item = value[0]
    if isinstance(item, Seq) and not item.rest:
        return [plain(entry) for entry in item.items]
    if isinstance(item, Map) and not item.rest:
        return {key: plain(entry) for key, entry in item.items.items()}
    if not is_plain(item):
        raise NotPlainError
    return item


def json_object(item: object, depth: int = 0) -> object:
    """What ``json.dump`` would write; a leaf that is not known is None, and so differs from any locked value.

    Raises:
        NotPlainError: what keys or entries there are is not known.
    """
    if isinstance(item, (Seq, Map)) and (item.rest or depth > 20):
        raise NotPlainError
    if isinstance(item, Seq):
        return [json_leaf(entry, depth) for entry in item.items]
    if isinstance(item, Map):
        return {text(key): json_leaf(entry, depth) for key, entry in item.items.items()}
    if not is_plain(item):
        raise NotPlainError
    return item


def json_leaf(value: Value, depth: int) -> object:
    try:
        return json_object(value[0], depth + 1) if len(value) == 1 else None
    except NotPlainError:
        return None


def lift(item: object, depth: int = 0) -> Value:
    """A Python object as a value."""
    if isinstance(item, bytes):
        item = item.decode("latin-1")
    if isinstance(item, str):
        return (clean(item),) if len(item) <= MOST_TEXT else ANY
    if isinstance(item, int) and item.bit_length() > MOST_BITS:
        return NUMBER
    if item is None or isinstance(item, (int, float)):
        return (item,)
    if isinstance(item, (list, tuple)) and depth < 50:
        return (Seq([lift(entry, depth + 1) for entry in item]),)
    if isinstance(item, dict) and depth < 50:
        return (Map({key: lift(entry, depth + 1) for key, entry in item.items()}),)
    return ANY


def copied(value: Value, level: int, depth: int = 0) -> Value:
    """A deep copy."""
    made: list[object] = []
    for item in value:
        if isinstance(item, Seq) and depth < 20:
            entries = [copied(entry, level, depth + 1) for entry in item.items]
            made.append(Seq(entries, item.rest, level))
        elif isinstance(item, Map) and depth < 20:
            pairs = {key: copied(entry, level, depth + 1) for key, entry in item.items.items()}
            made.append(Map(pairs, item.rest, level))
        else:
            made.append(item)
    return tuple(made)


def is_true(value: Value) -> bool | None:
    """Whether a value counts as true; None if it may or may not."""
    found: set[bool] = set()
    for item in value:
        if not is_plain(item) or isinstance(item, float):
            return None
        found.add(bool(item))
    return found.pop() if len(found) == 1 else None
