"""The world that Python code acts on: its effects, the files it reads and writes, and the commands it starts."""

import os

from guardrails.guard.patterns import FRESH, MARKS, STAR, TAINT, UNKNOWN, clean, is_known
from guardrails.guard.patterns import join as join_paths
from guardrails.guard.python.text import below, last_name
from guardrails.guard.python.values import (
    ANY,
    MOST_TEXT,
    NONE,
    Call,
    Frame,
    Map,
    Method,
    Opened,
    Seq,
    Value,
    blur,
    combinations,
    lift,
    text,
    texts,
    union,
)
from guardrails.guard.scene import Scene

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _ast
    from collections.abc import Callable
    from typing import Protocol, TypeVar

    Command = TypeVar("Command")

    class ShellRunner(Protocol):
        """Who looks at the commands that the code starts."""

        def run_text(self, text: str) -> None: ...

        def run_argv(self, argv: list[str]) -> None: ...


def can_be_path(path: str) -> bool:
    """Whether the system takes a text for a path."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeError:
        return False


class World:
    """What library functions act on; ``Program`` adds how the code itself runs."""

    def __init__(self, scene: Scene, arguments: list[str], shell: "ShellRunner") -> None:
        self.scene = scene
        self.shell = shell
        self.argv = Seq([(word,) for word in arguments])
        script = arguments[0] if arguments and not arguments[0].startswith("-") else ""
        self.search_path = Seq([(os.path.dirname(script) or ".",)])
        self.environ = Map({name: lift(entry) for name, entry in scene.environ.items()})
        self.frame = Frame()
        self.frame.variables["__name__"] = ("__main__",)
        if script:
            self.frame.variables["__file__"] = (join_paths(scene.cwd, script),)
        # How many conditions stand around what is run, and how many changes of lists, dicts and objects were made.
        self.level = 0
        self.changes = 0
        # Counts what is assigned to variables of modules.
        self.assigned = 0
        # How often nested loops over known lists are gone through.
        self.turns = 1
        # The user's own modules; () is a folder without __init__.py.
        self.modules: dict[str, Value] = {}
        self.mentions_daemon = False
        # Counts files that were read, and those whose text cannot be told.
        self.found = 0
        self.missed = 0
        self.unsaved: list[Opened] = []
        self.told: set[object] = set()

    # How the code runs.

    def call(self, function: Value, call: Call) -> Value:
        raise NotImplementedError

    def attribute(self, value: Value, name: str) -> Value:
        raise NotImplementedError

    def entries(self, value: Value) -> tuple[list[Value], Value]:
        """What iterating yields: known entries in order, then any number of others."""
        raise NotImplementedError

    def run_source(self, source: str, frame: Frame, mode: str = "exec") -> Value:
        raise NotImplementedError

    def run_commands(self, value: Value) -> None:
        """Functions are run with the words of the command line as their arguments."""
        raise NotImplementedError

    def import_module(self, name: str) -> Value:
        raise NotImplementedError

    def run_script(self, path: str, name: str) -> Value:
        raise NotImplementedError

    def run(self, body: "list[_ast.stmt]") -> bool:
        raise NotImplementedError

    def evaluate(self, node: "_ast.expr | None") -> Value:
        raise NotImplementedError

    def argv_rest(self) -> Value:
        return (Seq(self.argv.items[1:], self.argv.rest),)

    # Effects.

    def tell(self, verb: str, value: Value, *, recursive: bool = False, contents: Value = NONE) -> None:
        """Tell an effect on each path that a value may be; ``contents`` are the texts that it may get."""
        for item in value:
            if isinstance(item, Opened):
                item.parts = None if verb == "write" else item.parts
                self.tell(verb, item.path, recursive=recursive, contents=contents)
            elif isinstance(item, Seq):
                self.tell(verb, item.all(), recursive=recursive, contents=contents)
            elif isinstance(item, (str, Method)) and can_be_path(text(item)):
                self._tell(verb, text(item), recursive, contents)

    def _tell(self, verb: str, path: str, recursive: bool, contents: Value) -> None:
        folder, _, name = path.rpartition("/")
        if name == STAR and UNKNOWN in folder:
            # Any name in a folder that may be any.
            path = f"{folder}/{UNKNOWN}"
        scene = self.scene
        key = (verb, path, recursive, scene.cwd, scene.other_cwds, len(scene.links))
        if contents is NONE and key in self.told:
            return
        self.told.add(key)
        for content in contents:
            known = content if isinstance(content, str) and is_known(content) else None
            scene.effect(verb, path, content=known, recursive=recursive)

    def link(self, link: Value, target: Value) -> None:
        """A symlink is made; later paths may lead through it."""
        self.tell("write", link)
        for name in filter(can_be_path, texts(link)):
            for goal in filter(can_be_path, texts(target)):
                for path in self.scene.paths(name, follow_last=False) if is_known(name) else ():
                    self.scene.links[path] = join_paths(os.path.dirname(path), goal)

    def targets(self, source: Value, target: Value) -> Value:
        """What ``shutil.copy`` and ``shutil.move`` write: into a folder, the source's name."""
        made: list[Value] = []
        for path in filter(can_be_path, texts(target)):
            is_folder = path.endswith("/") or any(os.path.isdir(full) for full in self.scene.paths(path))
            made.append(tuple(below(path, last_name(name)) for name in texts(source)) if is_folder else (path,))
        return union(*made, ())

    def tree_targets(self, source: Value, target: Value) -> Value:
        """What ``shutil.copytree`` writes: into a folder that is there, the source's entries."""
        made: list[str] = []
        for path in filter(can_be_path, texts(target)):
            if not any(os.path.isdir(full) for full in self.scene.paths(path)):
                made.append(path)
                continue
            for tree in texts(source):
                made.extend(below(path, name) for name in self._list(tree))
        return tuple(made)

    def _list(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.scene.paths(folder)[0])[:MOST_TEXT] if is_known(folder) else [STAR]
        except OSError:
            return [STAR]

    # Files.

    def open(self, path: Value, mode: Value) -> Value:
        path = self._fix(path)
        modes = texts(mode)
        writing = [entry for entry in modes if not set(entry.partition(":")[0]).isdisjoint("wax+" + MARKS)]
        opened = Opened(path, (writing or modes)[0], self.level)
        if len(modes) > 1:
            opened.parts = None
        if writing:
            self.unsaved.append(opened)
            # What becomes of settings is told when their new text is there.
            self.tell("write", tuple(name for name in texts(path) if not name.endswith(".json")))
        return (opened,)

    def _fix(self, path: Value) -> Value:
        """The path wherever the code goes from here."""
        folders = (self.scene.cwd, *self.scene.other_cwds)
        fixed: list[object] = []
        for item in path:
            is_seen = isinstance(item, str) and is_known(item[:1])
            fixed.extend(join_paths(folder, text(item)) if is_seen else item for folder in folders)
        return union(tuple(fixed), ())

    def put(self, opened: Opened, value: Value) -> None:
        """Text is written to an open file."""
        known = len(value) == 1 and isinstance(value[0], str) and self.level <= opened.level
        if opened.parts is not None:
            opened.parts = [*opened.parts, text(value[0])] if known else None

    def save(self, *files: Opened) -> None:
        """Tell the new text of files that were written."""
        for opened in files:
            if opened in self.unsaved:
                self.unsaved.remove(opened)
                self.tell("write", opened.path, contents=(self._content(opened),))

    def save_written(self) -> None:
        self.save(*(opened for opened in self.unsaved if opened.parts))

    def _content(self, opened: Opened) -> str | None:
        if opened.parts is None or ("r" in opened.mode and not opened.is_rewound):
            return None
        content = "".join(opened.parts)
        if "w" in opened.mode or "x" in opened.mode or opened.is_cut:
            return content
        old = self.scene.read(text(opened.path[0])) or ""
        return content + old[len(content) :] if opened.is_rewound else old + content

    def read(self, path: Value) -> Value:
        """The text of a file as it will be then."""
        path = self._fix(path)
        self.save(*(opened for opened in self.unsaved if opened.parts and opened.path == path))
        self.missed += 1
        name = path[0] if len(path) == 1 else None
        if not isinstance(name, str) or not is_known(name.replace(FRESH, "")) or not can_be_path(name):
            return (blur(path),)
        found = self.scene.read(name)
        if found is None or len(found) >= MOST_TEXT:
            # A process id, most likely.
            return (TAINT,) if "daemon" in name else ANY
        self.missed -= 1
        self.found += 1
        return (clean(found),)

    # Commands.

    def run_text(self, value: Value, cwd: Value = NONE) -> Value:
        """A line for the shell; what it prints."""
        lines = texts(value)
        for line in lines:
            self._start(self.shell.run_text, line, cwd)
        return (self._output(lines),)

    def run_argv(self, value: Value, cwd: Value = NONE) -> Value:
        """A program with its arguments; what it prints."""
        commands: list[list[str]] = []
        for item in value:
            if isinstance(item, Seq):
                words = [*item.items, item.rest] if item.rest else item.items
                commands.extend([text(word) for word in picked] for picked in combinations(words))
            else:
                commands.append([text(item)])
        for command in commands:
            if command:
                self._start(self.shell.run_argv, command, cwd)
        return (self._output([word for command in commands for word in command]),)

    def _start(self, run: "Callable[[Command], None]", command: "Command", cwd: Value) -> None:
        """Run something in a process of its own: neither its folder nor its variables come back."""
        self.save_written()
        scene = self.scene
        before, environ = (scene.cwd, scene.other_cwds), dict(scene.environ)
        try:
            self.change_folder(cwd)
            run(command)
        finally:
            (scene.cwd, scene.other_cwds), scene.environ = before, environ

    def change_folder(self, value: Value) -> None:
        if value != NONE:
            path = text(value[0]) if len(value) == 1 else blur(value)
            folder = path if is_known(path[:1]) else f"/{path}"
            self.scene.cwd = join_paths(self.scene.cwd, folder)
            others = dict.fromkeys(join_paths(other, folder) for other in self.scene.other_cwds)
            self.scene.other_cwds = tuple(other for other in others if other != self.scene.cwd)

    def _output(self, words: list[str]) -> str:
        """What a command prints: of protected things where it names one."""
        names = {place.segments[-1] for place in self.scene.judge.protected.places} | {"training_daemon"}
        return TAINT if any(name in word for name in names for word in words) else blur(tuple(words))
