"""What Python's own functions on numbers, texts and lists give back, and what works as they do."""

from collections.abc import Callable

from guardrails.guard.patterns import UNKNOWN, is_known
from guardrails.guard.python.methods import map_function
from guardrails.guard.python.tables import LISTS
from guardrails.guard.python.text import format_item
from guardrails.guard.python.values import (
    ANY,
    FAILURES,
    NUMBER,
    Call,
    Function,
    Map,
    NotPlainError,
    Opened,
    Seq,
    Value,
    blur,
    copied,
    is_plain,
    is_true,
    lift,
    plain,
    texts,
    union,
)
from guardrails.guard.python.world import World

Handler = Callable[[World, Call], Value]
# Numbers of a range that are looked at one by one.
MOST_NUMBERS = 12


def _characters(world: World, call: Call) -> Value:
    """``bytes([...])``, ``bytes("...")``, ``bytes.fromhex`` and ``bytearray`` are text here."""
    made: list[object] = []
    for item in call.get(0):
        if isinstance(item, Seq) and not item.rest:
            numbers = [entry[0] for entry in item.items if len(entry) == 1]
            made.append("".join(chr(n) if isinstance(n, int) and 0 <= n < 256 else UNKNOWN for n in numbers))
        else:
            made.append(item if isinstance(item, (str, Opened)) else UNKNOWN)
    return union(tuple(made), ())


def _of_plain(function: "Callable[[object], object]") -> Handler:
    """A builtin function of one argument, carried out where that is known."""

    def run(world: World, call: Call) -> Value:
        try:
            return union(*(lift(function(item)) if is_plain(item) else (blur((item,)),) for item in call.get(0)))
        except FAILURES:
            return ANY

    return run


def _int(world: World, call: Call) -> Value:
    made: list[Value] = []
    for item in call.get(0):
        try:
            base = int(str(plain(call.find(1, "base") or (10,))))
            made.append(lift(int(item, base) if isinstance(item, str) else int(str(item))))
        except (NotPlainError, *FAILURES):
            made.append(NUMBER if blur((item,)) == UNKNOWN else (blur((item,)),))
    return union(*made)


def _format(world: World, call: Call) -> Value:
    spec = texts(call.find(1) or ("",))[0]
    return tuple(format_item(item, spec) for item in call.get(0))


# Lists.


def _list(world: World, call: Call) -> Value:
    items, rest = world.entries(call.get(0)) if call.args else ([], call.rest)
    return (Seq(list(items), rest, world.level),)


def _reversed(world: World, call: Call) -> Value:
    items, rest = world.entries(call.get(0))
    return (Seq(items[::-1], rest) if not rest else Seq(rest=union(rest, *items)),)


def _filter(world: World, call: Call) -> Value:
    items, rest = world.entries(call.get(1))
    if not any(isinstance(item, Function) for item in call.get(0)):
        return (Seq(items, rest),)
    kept = [(item, is_true(world.call(call.get(0), Call([item])))) for item in items]
    if rest:
        world.call(call.get(0), Call([rest]))
    sure = all(keeps is not None for _, keeps in kept)
    left = [item for item, keeps in kept if keeps is not False]
    return (Seq(left, rest) if sure else Seq(rest=union(rest, *left)),)


def _zip(world: World, call: Call) -> Value:
    columns = [world.entries(value) for value in call.args]
    if all(not rest for _, rest in columns):
        return (Seq([(Seq(list(row)),) for row in zip(*(items for items, _ in columns), strict=False)]),)
    return (Seq(rest=(Seq([union(rest, *items) or ANY for items, rest in columns]),)),)


def _enumerate(world: World, call: Call) -> Value:
    items, rest = world.entries(call.get(0))
    start = call.find(1, "start") or (0,)
    first = start[0] if isinstance(start[0], int) else 0
    pairs: list[Value] = [(Seq([(index,), item]),) for index, item in enumerate(items, first)]
    return (Seq(pairs, (Seq([NUMBER, rest]),) if rest else ()),)


def _range(world: World, call: Call) -> Value:
    try:
        numbers = range(*(int(str(plain(value))) for value in call.args))
        return (Seq([(number,) for number in numbers]) if len(numbers) <= MOST_NUMBERS else Seq(rest=NUMBER),)
    except (NotPlainError, *FAILURES):
        return (Seq(rest=NUMBER),)


def _length(world: World, call: Call) -> Value:
    item = call.get(0)[0]
    if len(call.get(0)) == 1 and isinstance(item, (Seq, Map)) and not item.rest and item.level >= world.level:
        return (len(item.items),)
    return (len(item),) if len(call.get(0)) == 1 and isinstance(item, str) and is_known(item) else NUMBER


def _chain(world: World, call: Call) -> Value:
    found = [world.entries(value) for value in call.args]
    if any(rest for _, rest in found):
        return (Seq(rest=union(*(union(rest, *items) for items, rest in found))),)
    return (Seq([item for items, _ in found for item in items]),)


def _chain_all(world: World, call: Call) -> Value:
    items, rest = world.entries(call.get(0))
    return _chain(world, Call([*items, *([rest] if rest else [])]))


def _next(world: World, call: Call) -> Value:
    items, rest = world.entries(call.get(0))
    return union(*items, rest, call.find(1) or ()) or ANY


def _choose(world: World, call: Call) -> Value:
    if len(call.args) > 1:
        return union(*call.args)
    return _next(world, Call(call.args, rest=call.keywords.get("default", ())))


def _dict(world: World, call: Call) -> Value:
    made = Map(level=world.level)
    for item in call.args[0] if call.args else ():
        if isinstance(item, Map):
            made.items.update(item.items)
            made.rest = union(made.rest, item.rest)
        else:
            _put_pairs(world, made, (item,))
    made.items.update(call.keywords)
    made.rest = union(made.rest, call.rest)
    return (made,)


def _put_pairs(world: World, made: Map, value: Value) -> None:
    items, rest = world.entries(value)
    for pair in items:
        entry = pair[0]
        if isinstance(entry, Seq) and len(entry.items) == 2 and is_plain(entry.items[0][0]):
            made.items[entry.items[0][0]] = entry.items[1]
        else:
            made.rest = ANY
    if rest:
        made.rest = ANY


BUILTINS: dict[str, Handler] = {
    **dict.fromkeys(LISTS, _list),
    **dict.fromkeys(("copy.copy", "copy.deepcopy"), lambda world, call: copied(call.get(0), world.level)),
    **dict.fromkeys(("bytes", "bytearray"), _characters),
    "chr": _of_plain(lambda item: chr(item) if isinstance(item, int) else UNKNOWN),
    "ord": _of_plain(lambda item: ord(item) if isinstance(item, str) else 0),
    "hex": _of_plain(lambda item: hex(item) if isinstance(item, int) else UNKNOWN),
    "repr": _of_plain(repr),
    "int": _int,
    "float": _int,
    "format": _format,
    "bool": lambda world, call: lift(is_true(call.get(0))) if is_true(call.get(0)) is not None else ANY,
    "reversed": _reversed,
    "filter": _filter,
    "map": map_function,
    "zip": _zip,
    "enumerate": _enumerate,
    "range": _range,
    "len": _length,
    "itertools.chain": _chain,
    "itertools.chain.from_iterable": _chain_all,
    **dict.fromkeys(("next", "random.choice"), _next),
    **dict.fromkeys(("min", "max"), _choose),
    **dict.fromkeys(("dict", "collections.OrderedDict"), _dict),
}
