"""What calling a method of text, a path, a list, a dict, an open file or a library's object does."""

import os
import re
from collections.abc import Callable

from guardrails.guard.patterns import DEEP, HAS_MARK, MARKS, UNKNOWN, is_known
from guardrails.guard.patterns import join as join_paths
from guardrails.guard.python.arguments import parse_arguments
from guardrails.guard.python.tables import METHOD_EFFECTS, PATH_EFFECTS, Effect
from guardrails.guard.python.text import (
    SPLITS,
    TEXT_METHODS,
    WHOLE_METHODS,
    below,
    call_text_method,
    entry_of,
    fill_fields,
    glob_marks,
    parent_of,
    suffix_of,
    walk_of,
    with_suffix,
)
from guardrails.guard.python.values import (
    ANY,
    FAILURES,
    MOST_TEXT,
    NONE,
    NUMBER,
    Call,
    Function,
    Instance,
    Made,
    Map,
    Method,
    Native,
    Opened,
    Partial,
    Seq,
    Value,
    blur,
    combinations,
    concatenate,
    copied,
    text,
    texts,
    union,
)
from guardrails.guard.python.world import World, can_be_path

PathMethod = Callable[[World, str, Call], Value]
ListMethod = Callable[[World, Seq, Call], Value]
MapMethod = Callable[[World, Map, Call], Value]
FileMethod = Callable[[World, Opened, Call], Value]
# Pools and executors hand each entry of a list to a function, as map does.
MAPPING = frozenset("map imap imap_unordered starmap map_async starmap_async".split())


def call_method(world: World, receiver: object, name: str, call: Call) -> Value:
    """Tell the effects of ``receiver.name(...)``; its result."""
    while isinstance(receiver, Method):
        receiver = blur((receiver,))
    if isinstance(receiver, Seq):
        return LIST_METHODS.get(name, _any_of_list)(world, receiver, call)
    if isinstance(receiver, Map):
        return MAP_METHODS.get(name, _any_of_map)(world, receiver, call)
    if isinstance(receiver, Opened):
        return FILE_METHODS.get(name, _any_of_file)(world, receiver, call)
    if isinstance(receiver, Made):
        return _call_made(world, receiver, name, call)
    return _call_text(world, receiver, name, call) if isinstance(receiver, str) else _call_other(world, name, call)


def _call_text(world: World, receiver: str, name: str, call: Call) -> Value:
    if name == "replace" and len(call.args) + len(call.keywords) < 2:
        name = "rename"
    if name in PATH_METHODS and not (receiver in MARKS and name in ("copy", "move", "rename") and _has_bare_word(call)):
        return PATH_METHODS[name](world, receiver, call)
    if name in PATH_EFFECTS and not (name in METHOD_EFFECTS and call.args):
        tell_effects(world, PATH_EFFECTS[name], Call([(receiver,), *call.args], call.keywords, call.rest))
        return (receiver,)
    if name in TEXT_METHODS or name in WHOLE_METHODS or name in SPLITS:
        return call_text_method(receiver, name, call)
    made = _call_other(world, name, call)
    return (blur((receiver,), made),)


def _has_bare_word(call: Call) -> bool:
    """Whether the first argument is more likely a column or a key than a path."""
    return not any("/" in target or "." in target for target in texts(call.get(0, "target")))


def _call_other(world: World, name: str, call: Call) -> Value:
    if name in METHOD_EFFECTS:
        tell_effects(world, METHOD_EFFECTS[name], call)
    elif name in MAPPING and call.args and is_callable(call.args[0]):
        return map_function(world, call)
    elif name in ("extractall", "extract"):
        world.tell("write", call.find(1, "path") or () if name == "extract" else call.find(0, "path") or (".",))
    elif name == "enter_context":
        return call.get(0)
    call_back(world, call)
    return ANY


def tell_effects(world: World, effects: "tuple[Effect, ...]", call: Call) -> None:
    for verb, index, keyword, recursive in effects:
        folder = next((call.keywords[key] for key in (f"{keyword}_dir_fd", "dir_fd") if key in call.keywords), NONE)
        path = call.find(index, keyword) or ()
        if isinstance(folder[0], Opened):
            path = tuple(below(text(folder[0]), name) for name in texts(path))
        world.tell(verb, path, recursive=recursive)


def is_callable(value: Value) -> bool:
    return any(isinstance(item, (Function, Partial, Native)) for item in value)


def call_back(world: World, call: Call) -> None:
    """Functions that are handed to someone who may call them, with the arguments that stand after them."""
    for index, value in enumerate(call.args):
        for item in value:
            if isinstance(item, Opened):
                item.parts = None
        if is_callable(value):
            world.call(value, Call(call.args[index + 1 :], rest=call.rest))
            break
    for keyword in ("target", "func", "function", "callback", "initializer"):
        if is_callable(call.keywords.get(keyword, ())):
            args, _ = world.entries(call.keywords.get("args", (Seq(),)))
            maps = [item.items for item in call.keywords.get("kwargs", ()) if isinstance(item, Map)]
            world.call(
                call.keywords[keyword], Call(args, {text(key): entry for items in maps for key, entry in items.items()})
            )


def map_function(world: World, call: Call) -> Value:
    """``map`` and what works as it does."""
    columns = [world.entries(value) for value in call.args[1:]]
    if any(rest for _, rest in columns):
        return (Seq(rest=world.call(call.args[0], Call([union(rest, *items) or ANY for items, rest in columns]))),)
    rows = zip(*(items for items, _ in columns), strict=False)
    return (Seq([world.call(call.args[0], Call(list(row))) for row in rows]),)


# Files.


def tell_move(world: World, source: Value, target: Value) -> None:
    world.save_written()
    contents = _text_for(world, source, target)
    world.tell("move", source, recursive=True)
    world.tell("write", target, contents=contents)


def tell_copy(world: World, source: Value, target: Value) -> None:
    world.save_written()
    world.tell("write", target, contents=_text_for(world, source, target))


def _text_for(world: World, source: Value, target: Value) -> Value:
    """What settings would hold that another file takes the place of."""
    return world.read(source) if any(path.endswith(".json") for path in texts(target)) else NONE


def kill(world: World, pid: Value, signal: Value) -> Value:
    for number in signal:
        if number != 0:
            shown = number if isinstance(number, int) else 9
            world.run_argv((Seq([("kill",), (f"-{shown}",), pid]),))
    return NONE


def expand_user(world: World, path: str) -> str:
    if path != "~" and not path.startswith("~/"):
        return path
    return text(world.environ.items.get("HOME", ANY)[0]) + path[1:]


def exists(world: World, value: Value) -> Value:
    """Whether a path is there now: what is not may come with an earlier command of the same call."""
    paths = [full for path in texts(value) if is_known(path) and can_be_path(path) for full in world.scene.paths(path)]
    return (True,) if len(paths) == len(value) and all(map(os.path.exists, paths)) else ANY


def make_absolute(world: World, path: str) -> str:
    return join_paths(world.scene.cwd, path) if path[:1] != UNKNOWN else path


# Methods of paths, and those of text that take other values apart.


def _rename(world: World, path: str, call: Call) -> Value:
    tell_move(world, (path,), call.get(0, "target"))
    return call.get(0, "target")


def _into(act: "Callable[[World, Value, Value], None]") -> PathMethod:
    """``Path.copy_into`` and ``Path.move_into`` of Python 3.14."""

    def run(world: World, path: str, call: Call) -> Value:
        act(world, (path,), world.targets((path,), tuple(f"{name}/" for name in texts(call.get(0, "target_dir")))))
        return call.get(0)

    return run


def _copy(world: World, path: str, call: Call) -> Value:
    if call.args or call.keywords:
        tell_copy(world, (path,), call.get(0, "target"))
    return (path,)


def _write_text(world: World, path: str, call: Call) -> Value:
    world.tell("write", (path,), contents=call.get(0, "data"))
    return NUMBER


def _open(world: World, path: str, call: Call) -> Value:
    mode = call.find(0, "mode") or ("r",)
    second = call.find(1)
    if not is_known(path) and second is not None and set(text(second[0])) <= set("rwaxbt+"):
        # A file system's open(path, mode).
        return world.open(mode, second)
    return world.open((path,), mode)


def _symlink(world: World, path: str, call: Call) -> Value:
    world.link((path,), call.get(0, "target"))
    return NONE


def _glob(world: World, path: str, call: Call) -> Value:
    return (Seq(rest=tuple(below(path, glob_marks(shape)) for shape in texts(call.get(0, "pattern")))),)


def _rglob(world: World, path: str, call: Call) -> Value:
    return (Seq(rest=tuple(below(path, DEEP, glob_marks(shape)) for shape in texts(call.get(0, "pattern")))),)


def _walk(world: World, path: str, call: Call) -> Value:
    names: list[Value] = [(Seq(rest=(entry_of(path),)),) for _ in "df"]
    return (Seq(rest=(Seq([(walk_of(path),), *names]),)),)


def _join_path(world: World, path: str, call: Call) -> Value:
    return tuple(
        below(path, *texts(tuple(picked))) for picked in combinations([*call.args, *([call.rest] if call.rest else [])])
    )


def _of_path(function: "Callable[[str, str], str]") -> PathMethod:
    return lambda world, path, call: tuple(function(path, name) for name in texts(call.get(0)))


def _with_stem(path: str, stem: str) -> str:
    return below(parent_of(path), stem + suffix_of(path))


def _relative(world: World, path: str, call: Call) -> Value:
    top = texts(call.get(0))[0]
    inside = path.removeprefix(top.rstrip("/") + "/")
    return (inside if inside != path or is_known(path) else UNKNOWN,)


def _join_text(world: World, receiver: str, call: Call) -> Value:
    items, rest = world.entries(call.get(0))
    if rest:
        items = [*items, union(rest, ("",))]
    parts: list[Value] = []
    for item in items:
        parts.extend(((receiver,), item) if parts else (item,))
    return concatenate(parts)


def _format(world: World, receiver: str, call: Call) -> Value:
    return fill_fields(receiver, call)


def _decode(world: World, receiver: str, call: Call) -> Value:
    """Bytes are text, one letter each, until they are decoded."""
    if receiver.isascii() or HAS_MARK.search(receiver):
        return (receiver,)
    try:
        return (receiver.encode("latin-1").decode(errors="replace"),)
    except FAILURES:
        return (receiver,)


def _run_line(world: World, receiver: str, call: Call) -> Value:
    """``get_ipython().system(...)``."""
    return world.run_text(call.get(0)) if not is_known(receiver) else ANY


PATH_METHODS: dict[str, PathMethod] = {
    "rename": _rename,
    "move": _rename,
    "copy": _copy,
    "copy_into": _into(tell_copy),
    "move_into": _into(tell_move),
    "write_text": _write_text,
    "write_bytes": _write_text,
    "read_text": lambda world, path, call: world.read((path,)),
    "read_bytes": lambda world, path, call: world.read((path,)),
    "open": _open,
    "symlink_to": _symlink,
    **dict.fromkeys(("exists", "is_file", "is_dir"), lambda world, path, call: exists(world, (path,))),
    "glob": _glob,
    "rglob": _rglob,
    "iterdir": lambda world, path, call: (Seq(rest=(below(path, entry_of(path)),)),),
    "walk": _walk,
    "joinpath": _join_path,
    "with_name": _of_path(lambda path, name: below(parent_of(path), name)),
    "with_stem": _of_path(_with_stem),
    "with_suffix": _of_path(with_suffix),
    "relative_to": _relative,
    "resolve": lambda world, path, call: (make_absolute(world, path),),
    "absolute": lambda world, path, call: (make_absolute(world, path),),
    "expanduser": lambda world, path, call: (expand_user(world, path),),
    "as_posix": lambda world, path, call: (path,),
    "encode": lambda world, path, call: (path,),
    "decode": _decode,
    "join": _join_text,
    "format": _format,
    "system": _run_line,
    "getoutput": _run_line,
}


# Lists.


def _change(world: World, seq: Seq, value: Value) -> Value:
    """An entry is added, for sure or perhaps, at the end or anywhere."""
    world.changes += 1
    if world.level > seq.level or seq.rest or len(seq.items) >= MOST_TEXT:
        seq.rest = union(seq.rest, value)
    else:
        seq.items.append(value)
    return NONE


def _append(world: World, seq: Seq, call: Call) -> Value:
    value = call.get(0)
    return NONE if all(item in seq.rest for item in value) else _change(world, seq, value)


def _insert(world: World, seq: Seq, call: Call) -> Value:
    if call.get(0) == (0,) and world.level <= seq.level:
        world.changes += 1
        seq.items.insert(0, call.get(1))
        return NONE
    return _change(world, seq, call.get(1))


def _extend(world: World, seq: Seq, call: Call) -> Value:
    items, rest = world.entries(call.get(0))
    for item in list(items):
        _change(world, seq, item)
    if rest and not all(item in seq.rest for item in rest):
        world.changes += 1
        seq.rest = union(seq.rest, rest)
    return NONE


def _remove(world: World, seq: Seq, call: Call) -> Value:
    value = call.get(0)
    if value in seq.items and world.level <= seq.level:
        seq.items.remove(value)
    return NONE


def _pop(world: World, seq: Seq, call: Call) -> Value:
    index = (call.find(0) or (-1,))[0]
    value = seq.at(index)
    if (
        world.level <= seq.level
        and isinstance(index, int)
        and not seq.rest
        and -len(seq.items) <= index < len(seq.items)
    ):
        del seq.items[index]
    return value


def _clear(world: World, seq: Seq, call: Call) -> Value:
    if world.level <= seq.level:
        seq.items, seq.rest = [], ()
    return NONE


def _difference(world: World, seq: Seq, call: Call) -> Value:
    others = [item for value in call.args for item in world.entries(value)[0]]
    return (Seq([item for item in seq.items if item not in others], seq.rest, world.level),)


def _joined(world: World, seq: Seq, call: Call) -> Value:
    made = Seq(list(seq.items), seq.rest, world.level)
    for value in call.args:
        _extend(world, made, Call([value]))
    return (made,)


def _any_of_list(world: World, seq: Seq, call: Call) -> Value:
    call_back(world, call)
    return ANY


LIST_METHODS: dict[str, ListMethod] = {
    **dict.fromkeys(("append", "add", "appendleft", "put", "put_nowait"), _append),
    "insert": _insert,
    **dict.fromkeys(("extend", "update", "extendleft", "__iadd__"), _extend),
    **dict.fromkeys(("remove", "discard"), _remove),
    **dict.fromkeys(("pop", "popleft", "get", "get_nowait"), _pop),
    "clear": _clear,
    "copy": lambda world, seq, call: copied((seq,), world.level),
    **dict.fromkeys(("difference", "__sub__"), _difference),
    **dict.fromkeys(("union", "__add__"), _joined),
    "__enter__": lambda world, seq, call: (seq,),
}


# Dicts.


def _get(world: World, found: Map, call: Call) -> Value:
    default = call.find(1, "default") or NONE
    made: list[Value] = []
    for key in call.get(0, "key"):
        if isinstance(key, str) and not is_known(key):
            made.append(union(found.at(key), default))
        elif key in found.items:
            made.append(found.items[key])
        else:
            made.append(union(found.rest, default))
    return union(*made)


def _set_default(world: World, found: Map, call: Call) -> Value:
    value = _get(world, found, call)
    for key in call.get(0):
        if key not in found.items:
            put_in_map(world, found, key, value)
    return value


def _update(world: World, found: Map, call: Call) -> Value:
    for item in call.args[0] if call.args else ():
        if isinstance(item, Map):
            for key, value in item.items.items():
                put_in_map(world, found, key, value)
            found.rest = union(found.rest, item.rest)
        else:
            found.rest = ANY
    for key, value in call.keywords.items():
        put_in_map(world, found, key, value)
    found.rest = union(found.rest, call.rest)
    return NONE


def put_in_map(world: World, found: Map, key: object, value: Value) -> None:
    world.changes += 1
    found.put(key, value, world.level)
    if found is world.environ and isinstance(key, str):
        world.scene.environ[key] = text(value[0]) if len(value) == 1 else blur(value)


def pop_from_map(world: World, found: Map, call: Call) -> Value:
    value = _get(world, found, call)
    for key in call.get(0):
        if key in found.items:
            if world.level > found.level:
                found.items[key] = union(found.items[key], NONE)
            else:
                del found.items[key]
    return value


def _items(world: World, found: Map, call: Call) -> Value:
    pairs: list[Value] = [(Seq([(key,), value]),) for key, value in found.items.items()]
    return (Seq(pairs, (Seq([ANY, found.rest]),) if found.rest else ()),)


def _any_of_map(world: World, found: Map, call: Call) -> Value:
    call_back(world, call)
    return ANY


MAP_METHODS: dict[str, MapMethod] = {
    "get": _get,
    "setdefault": _set_default,
    "update": _update,
    "pop": pop_from_map,
    "items": _items,
    "keys": lambda world, found, call: (Seq([(key,) for key in found.items], ANY if found.rest else ()),),
    "values": lambda world, found, call: (Seq(list(found.items.values()), found.rest),),
    "copy": lambda world, found, call: copied((found,), world.level),
}


# Open files.


def _write(world: World, opened: Opened, call: Call) -> Value:
    world.put(opened, call.get(0))
    return NUMBER


def _write_lines(world: World, opened: Opened, call: Call) -> Value:
    items, rest = world.entries(call.get(0))
    for value in [*items, *([ANY] if rest else [])]:
        world.put(opened, value)
    return NONE


def lines_of(world: World, opened: Opened) -> Value:
    return union(*(call_text_method(item, "splitlines", Call([(True,)])) for item in texts(world.read(opened.path))))


def _rewind(world: World, opened: Opened, call: Call) -> Value:
    if call.get(0) == (0,) and "r" in opened.mode:
        opened.is_rewound, opened.parts = True, []
    elif call.get(0) != (0,):
        opened.parts = None
    return NUMBER


def _cut(world: World, opened: Opened, call: Call) -> Value:
    if opened.is_rewound or call.get(0) == (0,):
        opened.is_cut = True
    return NUMBER


def _close(world: World, opened: Opened, call: Call) -> Value:
    world.save(opened)
    return NONE


def _any_of_file(world: World, opened: Opened, call: Call) -> Value:
    return ANY


def _extract_all(world: World, opened: Opened, call: Call) -> Value:
    world.tell("write", call.find(0, "path") or (".",))
    return NONE


FILE_METHODS: dict[str, FileMethod] = {
    "write": _write,
    "writelines": _write_lines,
    "read": lambda world, opened, call: world.read(opened.path),
    "readlines": lambda world, opened, call: lines_of(world, opened),
    "readline": lambda world, opened, call: (
        union(*(world.entries((item,))[1] for item in lines_of(world, opened))) or ANY
    ),
    "seek": _rewind,
    "truncate": _cut,
    "close": _close,
    "fileno": lambda world, opened, call: (opened,),
    "extractall": _extract_all,
    "extract": lambda world, opened, call: _extract_all(world, opened, call.after(1)),
}


# What libraries make.


def _call_made(world: World, made: Made, name: str, call: Call) -> Value:
    if made.kind == "pid" and name in ("kill", "terminate", "send_signal", "suspend"):
        signal: Value = {"kill": (9,), "terminate": (15,), "suspend": (19,)}.get(name) or call.get(0)
        return kill(world, made.value, signal)
    if made.kind == "pattern" and name == "sub":
        return world.call((Native("re.sub"),), Call([made.value, *call.args], call.keywords))
    if made.kind == "template" and name in ("substitute", "safe_substitute"):
        return union(*(_substitute(item, call) for item in texts(made.value)))
    if made.kind == "parser":
        return _call_parser(world, made, name, call)
    if made.kind == "process" and name in ("kill", "terminate", "send_signal"):
        return NONE
    if name in ("parent", "children", "communicate", "wait", "as_dict"):
        return ANY
    return _call_other(world, name, call)


def _substitute(template: str, call: Call) -> Value:
    names = {match[1] or match[2] for match in re.finditer(r"\$(?:(\w+)|\{(\w+)\})", template)}
    made = [template]
    for name in sorted(names, key=len, reverse=True):
        value = (
            call.find(-1, name) or union(*(item.at(name) for item in call.get(0) if isinstance(item, Map)), ()) or ANY
        )
        made = [old.replace(f"${{{name}}}", new).replace(f"${name}", new) for old in made for new in texts(value)]
    return tuple(made)


def _call_parser(world: World, made: Made, name: str, call: Call) -> Value:
    if name in ("add_argument", "add_option"):
        made.options.append(call)
        return NONE
    if name in ("parse_args", "parse_known_args"):
        items, _ = world.entries(call.args[0] if call.args and call.args[0] != NONE else world.argv_rest())
        found: Value = (Instance(None, parse_arguments(made, items), world.level),)
        return found if name == "parse_args" else (Seq([found, (Seq(rest=ANY),)]),)
    if name == "set_defaults":
        made.defaults.update(call.keywords)
    if name == "add_parser":
        child = Made("parser")
        made.children.update(dict.fromkeys(texts(call.get(0, "name")), child))
        return (child,)
    if name == "add_subparsers":
        made.options.append(Call([call.find(-1, "dest") or ("command",)], {"nargs": ("?",)}))
    # Groups of options and of commands add to the parser.
    return (made,) if name.startswith("add_") else ANY
