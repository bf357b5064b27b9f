"""What calling a library's function by name does, and what it gives back."""

import json
import os
import re
from collections.abc import Callable

from guardrails.guard.patterns import DEEP, FRESH, TAINT, UNKNOWN, is_known, tidy
from guardrails.guard.python.builtins import BUILTINS
from guardrails.guard.python.methods import (
    call_back,
    call_method,
    exists,
    expand_user,
    kill,
    make_absolute,
    tell_copy,
    tell_effects,
    tell_move,
)
from guardrails.guard.python.tables import (
    CONSTANTS,
    EFFECTS,
    NUMBERS,
    OPENING,
    PATHS,
    PROCESSES,
    QUIET,
    SAME,
    SHELL_LINES,
)
from guardrails.guard.python.text import below, entry_of, glob_marks, last_name, suffix_of, walk_of
from guardrails.guard.python.values import (
    ANY,
    FAILURES,
    NONE,
    NUMBER,
    Call,
    Class,
    Instance,
    Made,
    Map,
    Native,
    NotPlainError,
    Opened,
    Partial,
    Seq,
    Value,
    blur,
    combinations,
    concatenate,
    copied,
    is_true,
    json_object,
    lift,
    plain,
    text,
    texts,
    union,
)
from guardrails.guard.python.world import World

Handler = Callable[[World, Call], Value]
# Numbers of a range that are looked at one by one.
MOST_NUMBERS = 12
FOLDER_OF_TEMPORARY_FILES = "/tmp"  # noqa: S108 - nothing is made there


def call_library(world: World, name: str, call: Call) -> Value:
    """Tell the effects of calling ``name``; its result."""
    handler = LIBRARY.get(name)
    if handler is not None:
        return handler(world, call)
    owner, _, last = name.rpartition(".")
    if name in EFFECTS:
        tell_effects(world, EFFECTS[name], call)
        return NONE
    if name in OPENING:
        return _open(world, name, call)
    if name in SHELL_LINES:
        return world.run_text(call.get(0, "command", "cmd", "args"))
    if owner == "subprocess" and last in PROCESSES:
        return _subprocess(world, call, last)
    if name.startswith(("os.exec", "os.spawn", "os.posix_spawn")):
        return _exec(world, call, last)
    if owner in ("sh", "plumbum.cmd"):
        return world.run_argv((Seq([(last,), *call.args], call.rest),))
    if owner in PATHS or owner in ("str", "bytes", "list", "dict"):
        return union(*(call_method(world, item, last, call.after(1)) for item in call.get(0)), ())
    if last.endswith(("Arguments", "Config")):
        world.tell("write", call.find(0 if last.endswith("TrainingArguments") else -1, "output_dir") or ())
    call_back(world, call)
    return (blur(*call.args, *call.keywords.values()),)


def is_told(name: str) -> bool:
    """Whether more is known of a name than that it is one."""
    return any(name in table for table in (LIBRARY, EFFECTS, OPENING, SHELL_LINES, CONSTANTS))


# Files.


def _open(world: World, name: str, call: Call) -> Value:
    path = call.get(0, "file", "filename", "name", "path")
    opened = world.open(path, call.find(1, "mode") or (OPENING[name],))
    for item in opened if name not in ("open", "io.open", "codecs.open") else ():
        if isinstance(item, Opened):
            # What is written is packed.
            item.parts = None
    return opened


def _move(world: World, call: Call) -> Value:
    source, target = call.get(0, "src"), call.get(1, "dst")
    tell_move(world, source, world.targets(source, target))
    return target


def _rename(world: World, call: Call) -> Value:
    tell_move(world, call.get(0, "src", "old"), call.get(1, "dst", "new"))
    return NONE


def _copy(world: World, call: Call) -> Value:
    source, target = call.get(0, "src"), call.get(1, "dst")
    tell_copy(world, source, world.targets(source, target))
    return target


def _copy_tree(world: World, call: Call) -> Value:
    source, target = call.get(0, "src"), call.get(1, "dst")
    world.tell("write", world.tree_targets(source, target))
    return target


def _symlink(world: World, call: Call) -> Value:
    world.link(call.get(1, "dst"), call.get(0, "src"))
    return NONE


def _os_open(world: World, call: Call) -> Value:
    flags = call.find(1, "flags") or (os.O_RDONLY,)
    modes = []
    for flag in flags:
        number = flag if isinstance(flag, int) else os.O_WRONLY
        writes = number & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        modes.append("r" if not writes else "a" if number & os.O_APPEND else "w" if number & os.O_TRUNC else "r+")
    return world.open(call.get(0, "path"), tuple(modes))


def _os_write(world: World, call: Call) -> Value:
    for item in call.get(0):
        if isinstance(item, Opened):
            world.put(item, call.get(1))
    return NUMBER


def _split_words(world: World, call: Call) -> Value:
    """``shlex.split``, but for escapes."""
    line = call.get(0, "s")
    if len(line) != 1 or not isinstance(line[0], str):
        return (Seq(rest=(blur(line),)),)
    words = re.findall(r"(?:[^\s'\"]|'[^']*'|\"[^\"]*\")+", line[0])
    bare = [re.sub(r"'([^']*)'|\"([^\"]*)\"", lambda match: match[1] or match[2] or "", word) for word in words]
    return (Seq([(word,) for word in bare]),)


def _quote(world: World, call: Call) -> Value:
    return tuple(text if re.fullmatch(r"[\w./:=@%+,-]+", text) else f"'{text}'" for text in texts(call.get(0, "s")))


def _join_words(world: World, call: Call) -> Value:
    return call_method(world, " ", "join", call)


def _unpack(world: World, call: Call) -> Value:
    world.tell("write", call.find(1, "extract_dir") or (".",))
    return NONE


def _edit_in_place(world: World, call: Call) -> Value:
    files = call.get(0, "files")
    if is_true(call.find(1, "inplace") or (False,)) is not False:
        world.tell("write", files)
    first = files[0].all() if isinstance(files[0], Seq) else files
    return (Opened(first, "r", world.level),)


def _map_memory(world: World, call: Call) -> Value:
    if texts(call.find(2, "mode") or ("r+",)) not in (["r"], ["c"]):
        world.tell("write", call.get(0, "filename"))
    return ANY


def _named_tuple(world: World, call: Call) -> Value:
    listed = call.get(1, "field_names")[0]
    names = texts(listed.all()) if isinstance(listed, Seq) else text(listed).replace(",", " ").split()
    return (Class((), {}, names),)


def _template(world: World, call: Call) -> Value:
    return (Made("template", call.get(0, "template")),)


def _fdopen(world: World, call: Call) -> Value:
    return call.get(0) if any(isinstance(item, Opened) for item in call.get(0)) else (Opened(ANY, "w", world.level),)


def _os_read(world: World, call: Call) -> Value:
    return union(*(world.read(item.path) if isinstance(item, Opened) else ANY for item in call.get(0)))


def _fresh(world: World, call: Call) -> Value:
    """The path of a temporary file or folder, another each time."""
    world.changes += 1
    folder = text((call.find(-1, "dir") or (FOLDER_OF_TEMPORARY_FILES,))[0] or FOLDER_OF_TEMPORARY_FILES)
    ending = text((call.find(-1, "suffix") or ("",))[0] or "")
    return (below(folder, f"{FRESH}{world.changes}{ending}"),)


def _fresh_file(world: World, call: Call) -> Value:
    return world.open(_fresh(world, call), ("w",))


def _fresh_pair(world: World, call: Call) -> Value:
    path = _fresh(world, call)
    return (Seq([world.open(path, ("w",)), path]),)


def _exists(world: World, call: Call) -> Value:
    return exists(world, call.get(0, "path"))


def _print(world: World, call: Call) -> Value:
    parts: list[Value] = []
    separator, end = call.keywords.get("sep", (" ",)), call.keywords.get("end", ("\n",))
    for value in call.args:
        parts.extend((separator, value) if parts else (value,))
    for item in call.keywords.get("file", ()):
        if isinstance(item, Opened):
            world.put(item, ANY if call.rest else concatenate([*parts, end]))
    return NONE


# JSON and other texts.


def _json_load(world: World, call: Call) -> Value:
    return union(*(_parse(world, world.read(item.path)) if isinstance(item, Opened) else ANY for item in call.get(0)))


def _json_loads(world: World, call: Call) -> Value:
    return _parse(world, call.get(0, "s"))


def _parse(world: World, value: Value) -> Value:
    if value and isinstance(value[0], Opened):
        value = world.read(value[0].path)
    try:
        made = lift(json.loads(str(plain(value))))
    except (NotPlainError, RecursionError, *FAILURES):
        return (blur(value),)
    return copied(made, world.level)


def _json_dumps(world: World, call: Call) -> Value:
    made: list[object] = []
    for item in call.get(0, "obj"):
        try:
            indent = plain(call.find(-1, "indent") or NONE)
            made.append(json.dumps(json_object(item), indent=indent if isinstance(indent, (int, str)) else None))
        except (NotPlainError, RecursionError, *FAILURES):
            made.append(UNKNOWN)
    return union(tuple(made), ())


def _json_dump(world: World, call: Call) -> Value:
    content = _json_dumps(world, call)
    for item in call.get(1, "fp"):
        if isinstance(item, Opened):
            world.put(item, content)
    return NONE


def _decode(world: World, call: Call, codec: str) -> Value:
    import codecs

    try:
        data = str(plain(call.get(0)))
        made: object = (
            codecs.decode(data, "rot13") if codec == "rot13" else codecs.decode(data.encode("latin-1"), codec)
        )
    except (NotPlainError, *FAILURES):
        return (blur(call.get(0)),)
    return lift(made)


def _codecs_decode(world: World, call: Call) -> Value:
    codec = texts(call.find(1, "encoding") or ("utf-8",))[0].replace("_", "").replace("-", "").lower()
    return _decode(world, call, codec) if codec in ("rot13", "hex", "base64") else call.get(0)


def _substitute(world: World, call: Call) -> Value:
    """``re.sub``, for patterns that cannot take long."""
    try:
        pattern, new, old = (
            str(plain(call.get(place, key))) for place, key in enumerate(("pattern", "repl", "string"))
        )
        if len(old) > 16384 or len(pattern) > 200 or re.search(r"[)*+}]\s*[*+{]", pattern):
            return ANY
        return lift(re.sub(pattern, new, old, count=int(str(plain(call.find(3, "count") or (0,))))))
    except (NotPlainError, *FAILURES):
        return (blur(*call.args),)


# Paths.


def _join(world: World, call: Call) -> Value:
    parts = [value for value in call.args if value]
    if call.rest:
        parts.append(union(call.rest, ("",)))
    return tuple(below(*texts(tuple(picked))) for picked in combinations(parts or [(".",)])) if parts else (".",)


def _each_path(function: "Callable[[str], str]") -> Handler:
    return lambda world, call: union(tuple(function(path) for path in texts(call.get(0, "path", "p"))), ())


def _split(world: World, call: Call) -> Value:
    return tuple(Seq([(os.path.dirname(path),), (os.path.basename(path),)]) for path in texts(call.get(0, "p")))


def _split_suffix(world: World, call: Call) -> Value:
    paths = texts(call.get(0, "p"))
    return tuple(Seq([(path.removesuffix(suffix_of(path)),), (suffix_of(path),)]) for path in paths)


def _absolute(world: World, call: Call) -> Value:
    return tuple(make_absolute(world, path) for path in texts(call.get(0, "path")))


def _getenv(world: World, call: Call) -> Value:
    return call_method(world, world.environ, "get", call)


def _expand_variables(world: World, call: Call) -> Value:
    def value(match: "re.Match[str]") -> str:
        return text(world.environ.at(match[1] or match[2])[0])

    return tuple(re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, path) for path in texts(call.get(0)))


def _listdir(world: World, call: Call) -> Value:
    folders = texts(call.find(0, "path") or (".",))
    return (Seq(rest=union(tuple(entry_of(folder) for folder in folders), ())),)


def _scandir(world: World, call: Call) -> Value:
    folders = texts(call.find(0, "path") or (".",))
    return (Seq(rest=tuple(below(folder, entry_of(folder)) for folder in folders)),)


def _walk(world: World, call: Call) -> Value:
    rows: list[object] = []
    for folder in texts(call.get(0, "top")):
        names: list[Value] = [(Seq(rest=(entry_of(folder),)),) for _ in "df"]
        rows.append(Seq([(walk_of(folder),), *names]))
    return (Seq(rest=tuple(rows)),)


def _glob(world: World, call: Call) -> Value:
    patterns = [glob_marks(pattern) for pattern in texts(call.get(0, "pathname"))]
    return (Seq(rest=union(tuple(patterns), ())),)


# Processes.


def _subprocess(world: World, call: Call, name: str) -> Value:
    command, cwd = call.get(0, "args"), call.keywords.get("cwd", NONE)
    if is_true(call.keywords.get("shell", (False,))) is False:
        printed = world.run_argv(command, cwd)
    else:
        lines = [item.items[0] if isinstance(item, Seq) and item.items else (item,) for item in command]
        printed = world.run_text(union(*lines), cwd)
    first = command[0].items[:1] if isinstance(command[0], Seq) else [command]
    if any(last_name(word) in ("sh", "bash", "zsh") for value in first for word in texts(value)):
        script = call.keywords.get("input", NONE)
        if script != NONE:
            world.run_text(script, cwd)
    return (Made("process", printed),) if name == "Popen" else printed


def _program(world: World, call: Call) -> Value:
    """``create_subprocess_exec(program, *arguments)``."""
    return world.run_argv((Seq(list(call.args), call.rest),), call.keywords.get("cwd", NONE))


def _exec(world: World, call: Call, name: str) -> Value:
    args = call.args[1:] if "spawn" in name and "posix" not in name else call.args
    if not args:
        return ANY
    if name.startswith(("execl", "spawnl")):
        rest = [value for value in args[2:] if not isinstance(value[0], Map)]
        return world.run_argv((Seq([args[0], *rest], call.rest),))
    words, more = world.entries(args[1]) if len(args) > 1 else ([], ())
    return world.run_argv((Seq([args[0], *words[1:]], more),))


def _kill(world: World, call: Call) -> Value:
    return kill(world, call.get(0, "pid"), call.find(1, "sig") or (15,))


def _kill_group(world: World, call: Call) -> Value:
    return kill(world, concatenate([("-",), call.get(0, "pgid")]), call.find(1, "sig") or (15,))


def _process(world: World, call: Call) -> Value:
    return (Made("pid", call.find(0, "pid") or NUMBER),)


def _processes(world: World, call: Call) -> Value:
    return (Seq(rest=(Made("pid", (TAINT if world.mentions_daemon else UNKNOWN,)),)),)


# Code.


def _exec_source(world: World, call: Call) -> Value:
    for source in call.get(0):
        if isinstance(source, str) and is_known(source):
            world.run_source(source, world.frame)
    return NONE


def _eval_source(world: World, call: Call) -> Value:
    known = [item for item in call.get(0) if isinstance(item, str) and is_known(item)]
    return union(*(world.run_source(source.strip(), world.frame, "eval") for source in known), ()) or ANY


def _import(world: World, call: Call) -> Value:
    return union(*(world.import_module(name) for name in texts(call.get(0, "name"))))


def _run_path(world: World, call: Call) -> Value:
    name = texts(call.find(2, "run_name") or ("<run_path>",))[0]
    return union(*(world.run_script(path, name) for path in texts(call.get(0, "path_name"))))


def _spec(world: World, call: Call) -> Value:
    return union(*(world.run_script(path, texts(call.get(0, "name"))[0]) for path in texts(call.get(1, "location"))))


def _getattr(world: World, call: Call) -> Value:
    return union(*(world.attribute(call.get(0), name) for name in texts(call.get(1))), call.find(2) or ())


def _run_commands(world: World, call: Call) -> Value:
    world.run_commands(call.find(0, "function", "component") or tuple(world.frame.variables.values()))
    return NONE


def _setattr(world: World, call: Call) -> Value:
    for item in call.get(0):
        if isinstance(item, Instance):
            item.attributes.update(dict.fromkeys(texts(call.get(1)), call.get(2)))
    return NONE


def _partial(world: World, call: Call) -> Value:
    return (Partial(call.get(0), call.args[1:], call.keywords),)


def _change_folder(world: World, call: Call) -> Value:
    world.change_folder(call.get(0, "path"))
    return NONE


def _push_folder(world: World, call: Call) -> Value:
    before = world.scene.cwd
    world.change_folder(call.get(0, "path"))
    return (Made("folder", (before,)),)


def _method_caller(world: World, call: Call) -> Value:
    return (Partial((Native("operator.methodcaller.call"),), call.args, call.keywords),)


def _call_by_name(world: World, call: Call) -> Value:
    *args, receiver = call.args[1:] or [ANY]
    names = texts(call.get(0))
    return union(*(call_method(world, item, name, Call(args, call.keywords)) for name in names for item in receiver))


def _namespace(world: World, call: Call) -> Value:
    return (Instance(None, dict(call.keywords), world.level),)


def _first(world: World, call: Call) -> Value:
    return call.get(0)


def _text(world: World, call: Call) -> Value:
    return tuple(texts(call.get(0))) if call.args else ("",)


def _any(world: World, call: Call) -> Value:
    return ANY


LIBRARY: dict[str, Handler] = {
    **dict.fromkeys(SAME, _first),
    **dict.fromkeys(NUMBERS, lambda world, call: NUMBER),
    **dict.fromkeys(PATHS, _join),
    **dict.fromkeys(("os.rename", "os.renames", "os.replace"), _rename),
    "shutil.move": _move,
    **dict.fromkeys(("shutil.copy", "shutil.copy2", "shutil.copyfile"), _copy),
    **dict.fromkeys(("shutil.copytree", "distutils.dir_util.copy_tree"), _copy_tree),
    "os.symlink": _symlink,
    "os.open": _os_open,
    "os.write": _os_write,
    "os.read": _os_read,
    "os.fdopen": _fdopen,
    "shutil.unpack_archive": _unpack,
    **dict.fromkeys(("fileinput.input", "fileinput.FileInput"), _edit_in_place),
    **dict.fromkeys(("numpy.memmap", "numpy.lib.format.open_memmap"), _map_memory),
    "collections.namedtuple": _named_tuple,
    "string.Template": _template,
    **dict.fromkeys(("tempfile.NamedTemporaryFile", "tempfile.TemporaryFile"), _fresh_file),
    "tempfile.TemporaryDirectory": lambda world, call: (Made("temporary", _fresh(world, call)),),
    **dict.fromkeys(("tempfile.mkdtemp", "tempfile.mktemp"), _fresh),
    "tempfile.mkstemp": _fresh_pair,
    "tempfile.gettempdir": lambda world, call: (FOLDER_OF_TEMPORARY_FILES,),
    "print": _print,
    **dict.fromkeys(("json.load", "yaml.safe_load", "yaml.load"), _json_load),
    **dict.fromkeys(("json.loads", "orjson.loads", "ujson.loads"), _json_loads),
    "json.dump": _json_dump,
    "json.dumps": _json_dumps,
    **dict.fromkeys(("base64.b64decode", "base64.standard_b64decode"), lambda w, call: _decode(w, call, "base64")),
    **dict.fromkeys(
        ("binascii.unhexlify", "bytes.fromhex", "bytearray.fromhex"), lambda w, call: _decode(w, call, "hex")
    ),
    "codecs.decode": _codecs_decode,
    "codecs.encode": _codecs_decode,
    "re.sub": _substitute,
    "shlex.split": _split_words,
    "shlex.quote": _quote,
    "shlex.join": _join_words,
    "re.compile": lambda world, call: (Made("pattern", call.get(0)),),
    "str": _text,
    "os.path.join": _join,
    "os.path.expanduser": lambda w, call: tuple(expand_user(w, path) for path in texts(call.get(0, "path"))),
    "os.path.expandvars": _expand_variables,
    **dict.fromkeys(("os.path.abspath", "os.path.realpath"), _absolute),
    "os.path.normpath": _each_path(tidy),
    "os.path.dirname": _each_path(os.path.dirname),
    "os.path.basename": _each_path(lambda path: last_name(path) if path.endswith(DEEP) else os.path.basename(path)),
    "os.path.relpath": _each_path(lambda path: path),
    "os.path.split": _split,
    "os.path.splitext": _split_suffix,
    **dict.fromkeys(
        ("os.getcwd", "os.getcwdb", *(f"{path}.cwd" for path in PATHS)), lambda world, call: (world.scene.cwd,)
    ),
    **dict.fromkeys([f"{path}.home" for path in PATHS], lambda world, call: (expand_user(world, "~"),)),
    "os.getenv": _getenv,
    "os.listdir": _listdir,
    "os.scandir": _scandir,
    **dict.fromkeys(("os.walk", "os.fwalk"), _walk),
    **dict.fromkeys(("glob.glob", "glob.iglob"), _glob),
    **dict.fromkeys(("os.kill", "signal.pidfd_send_signal"), _kill),
    "os.killpg": _kill_group,
    "psutil.Process": _process,
    "psutil.process_iter": _processes,
    "asyncio.create_subprocess_exec": _program,
    "pty.spawn": lambda world, call: world.run_argv(call.get(0)),
    **dict.fromkeys(("os.chdir", "os.fchdir"), _change_folder),
    "contextlib.chdir": _push_folder,
    "exec": _exec_source,
    "eval": _eval_source,
    "compile": _first,
    **dict.fromkeys(("__import__", "importlib.import_module"), _import),
    "runpy.run_path": _run_path,
    "runpy.run_module": _import,
    "importlib.util.spec_from_file_location": _spec,
    "getattr": _getattr,
    "setattr": _setattr,
    **dict.fromkeys(("typer.run", "fire.Fire", "plac.call", "defopt.run"), _run_commands),
    "functools.partial": _partial,
    "operator.methodcaller": _method_caller,
    "operator.methodcaller.call": _call_by_name,
    **dict.fromkeys(("types.SimpleNamespace", "argparse.Namespace"), _namespace),
    **dict.fromkeys(("argparse.ArgumentParser", "optparse.OptionParser"), lambda w, call: (Made("parser"),)),
    **dict.fromkeys(("ctypes.CDLL", "ctypes.PyDLL", "ctypes.cdll.LoadLibrary"), lambda w, call: (Native("os"),)),
    **dict.fromkeys(("os.path.exists", "os.path.lexists", "os.path.isfile", "os.path.isdir"), _exists),
    **dict.fromkeys(QUIET, _any),
    **BUILTINS,
}
