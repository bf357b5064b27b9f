"""A shell that carries nothing out: it follows a command line and tells the effects that it would have.

``shfmt`` parses; here its syntax tree is walked with the current folder, variables, functions and pipes as far as
they are known beforehand. What a condition decides is followed both ways.
"""

import json
import os
from collections.abc import Callable

from guardrails.guard.patterns import ONE, STAR, TAINT, UNKNOWN, clean, is_known, is_text_known, join
from guardrails.guard.protected import CODE_DIR
from guardrails.guard.scene import MOST_DEPTH, Scene, TooMuchError
from guardrails.guard.words import (
    Node,
    expand_heredoc,
    expand_text,
    expand_word,
    first_text,
    without_unknown,
)

SHFMT = f"{CODE_DIR}/.venv/bin/shfmt"
MOST_ROUNDS = 64
# Of one variable, after conditions.
MOST_VALUES = 8
# What shfmt prints is some eighty times what it reads; parsing this takes a third of a second.
MOST_TREE_BYTES = 16 << 20
MOST_CHARACTERS = 1 << 18
WRITES = (">", ">|", ">>", "&>", "&>>", "<>")


class UnparsableError(Exception):
    """Not a command line of bash, or there is no parser."""


def judge_command(text: str, scene: Scene) -> None:
    """Tell the scene's judge the effects of a command line.

    Raises:
        Denied: one of them must not happen.
        UnparsableError: it could not be parsed.
        TooMuchError: it is too large to be looked through.
    """
    Shell(scene).run(text)


def parse(text: str) -> list[Node]:
    """The statements of a command line.

    Raises:
        UnparsableError: it is not one, or there is no ``shfmt``.
        TooMuchError: it is too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise TooMuchError
    data = text.encode("utf-8", "replace")
    try:
        printed = _run_shfmt(data)
        tree = json.loads(printed)
    except (OSError, ValueError, RecursionError) as error:
        raise UnparsableError(str(error)) from error
    statements: list[Node] = tree.get("Stmts") or []
    return statements


def _run_shfmt(data: bytes) -> bytes:
    """What ``shfmt --to-json`` prints; files stand in for pipes, so that no size can block."""
    with open(os.memfd_create("in"), "w+b") as source, open(os.memfd_create("out"), "w+b") as target:
        source.write(data)
        source.seek(0)
        pid = os.posix_spawn(
            SHFMT,
            ["shfmt", "-ln", "bash", "--to-json"],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, source.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, target.fileno(), 1),
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
            ],
        )
        _, status = os.waitpid(pid, 0)
        if status:
            raise ValueError("shfmt cannot parse it")
        if os.fstat(target.fileno()).st_size > MOST_TREE_BYTES:
            raise TooMuchError
        target.seek(0)
        return target.read()


class ExitedError(Exception):
    """The shell, a function or a loop was left; what follows is not reached."""


class Shell:
    """Variables, functions and arguments of one shell; the scene is shared with all shells of a call."""

    def __init__(self, scene: Scene, arguments: list[str] | None = None) -> None:
        self.scene = scene
        # None: given from outside, unknown.
        self.arguments: list[str] | None = [] if arguments is None else arguments
        self.name = "bash"
        self.variables: dict[str, list[str]] = {}
        self.arrays: dict[str, list[str]] = {}
        self.functions: dict[str, Node] = {}
        self.aliases: dict[str, str] = {}
        # declare -n
        self.references: dict[str, str] = {}
        self.folders: list[str] = []
        self.old_cwd = UNKNOWN

    # Variables

    def values_of(self, name: str) -> list[str]:
        """Every value that a parameter may have; an unset one may be set where the command will run."""
        name = self.references.get(name, name)
        if name in self.variables:
            return self.variables[name]
        if name in self.arrays:
            return self.arrays[name][:1] or [""]
        if name == "PWD":
            return [self.scene.cwd, *self.scene.other_cwds]
        if name == "OLDPWD":
            return [self.old_cwd]
        if name.isdigit():
            if name == "0":
                return [self.name]
            if self.arguments is None:
                return [UNKNOWN]
            number = int(name)
            return [self.arguments[number - 1] if number <= len(self.arguments) else ""]
        if name in "#?$!-_" or name in ("RANDOM", "SECONDS", "LINENO", "UID", "EUID", "PPID", "BASHPID"):
            return [STAR]
        if name in self.scene.environ:
            return [clean(self.scene.environ[name])]
        return [UNKNOWN]

    def value_of(self, name: str) -> str:
        return self.values_of(name)[0]

    def is_set(self, name: str) -> bool:
        return name in self.variables or name in self.arrays or name in self.scene.environ

    def is_from_outside(self, name: str) -> bool:
        return name not in self.variables and name not in self.arrays

    def elements(self, name: str) -> list[str] | None:
        """The elements of an array, or the arguments (``@``); None where they are unknown."""
        if name in ("@", "*"):
            return self.arguments
        if name in self.arrays:
            return self.arrays[name]
        return self.variables.get(name)

    def assign(self, name: str, values: list[str]) -> None:
        self.arrays.pop(name, None)
        if name != "PWD":
            self.variables[name] = list(dict.fromkeys(values))[:MOST_VALUES]

    def fork(self) -> "Shell":
        """A subshell: what it changes, the shell does not see."""
        shell = Shell(self.scene, self.arguments)
        shell.name = self.name
        shell.variables = dict(self.variables)
        shell.arrays = dict(self.arrays)
        shell.functions = dict(self.functions)
        shell.aliases = dict(self.aliases)
        shell.references = dict(self.references)
        shell.folders = list(self.folders)
        shell.old_cwd = self.old_cwd
        return shell

    def apart(self, run: "Callable[[Shell], str]") -> str:
        """Run something in a subshell; the current folder is as before afterwards."""
        before = (self.scene.cwd, self.scene.other_cwds)
        try:
            return run(self.fork())
        except ExitedError:
            return UNKNOWN
        finally:
            self.scene.cwd, self.scene.other_cwds = before

    # Running

    def run(self, text: str, stdin: str | None = None) -> str:
        """Follow a command line; what it prints. Raises as ``judge_command``."""
        self.scene.depth += 1
        if self.scene.depth > MOST_DEPTH:
            raise TooMuchError
        try:
            return self.run_statements(parse(text if is_known(text) else _as_text(text)), stdin)
        except ExitedError:
            return UNKNOWN
        finally:
            self.scene.depth -= 1

    def run_text(self, text: str) -> None:
        """A command line that another program runs: in a shell of its own."""
        self.apart(lambda shell: shell.run(text))

    def run_argv(self, argv: list[str]) -> None:
        """A program with its arguments."""
        self.apart(lambda shell: shell.run_program(argv, None))

    def run_statements(self, statements: list[Node], stdin: str | None = None) -> str:
        printed = [self.run_statement(statement, stdin) for statement in statements]
        return "".join(printed)

    def run_statement(self, statement: Node, stdin: str | None = None) -> str:
        self.scene.step()
        targets: list[tuple[str, str]] = []
        for redirect in statement.get("Redirs") or []:
            operator = redirect["Op"]
            if operator in ("<<", "<<-"):
                stdin = expand_heredoc(self, redirect)
            elif operator == "<<<":
                stdin = first_text(self, redirect["Word"]) + "\n"
            elif operator == "<":
                stdin = self.read_all(expand_text(self, redirect["Word"]))
            elif operator in WRITES or operator == ">&":
                values = [field for fields in expand_word(self, redirect["Word"]) for field in fields]
                is_error = redirect.get("N", {}).get("Value") == "2"
                targets += [
                    (operator if not is_error else "2>", value)
                    for value in values
                    if not _is_descriptor(operator, value)
                ]
        command = statement.get("Cmd")
        for operator, value in targets:
            if operator in (">", ">|", "&>"):
                # The shell empties it before the command runs.
                self.scene.files.update(dict.fromkeys(self.scene.paths(value), ""))
        if command is not None and statement.get("Background"):
            printed = self.apart(lambda shell: shell.run_command(command, stdin))
            self.assign("!", [TAINT if "training_daemon" in json.dumps(command) else STAR])
        else:
            printed = self.run_command(command, stdin) if command is not None else ""
        for operator, value in targets:
            self.write(value, "" if operator == "2>" else printed, append=">>" in operator or operator in ("<>", "2>"))
        return "" if any(operator != "2>" for operator, _ in targets) else printed

    def write(self, value: str, printed: str, *, append: bool = False) -> None:
        """A file that is written with what a command printed."""
        text = printed if is_known(printed) else None
        if append:
            self.scene.effect("write", value, content=(lambda old: old + text) if text is not None else None)
            if text is not None:
                for path in self.scene.paths(value):
                    self.scene.files[path] = (self.scene.read(path) or "") + text
        else:
            self.scene.effect("write", value, content=text)

    def read_all(self, values: list[str]) -> str:
        """The text of a file that is read as stdin."""
        text = self.scene.read(values[0]) if values else None
        return self.unknown_from(values) if text is None else text if values[0].startswith("/dev/fd/") else clean(text)

    def unknown_from(self, values: list[str]) -> str:
        """What a command prints of which only the arguments are known."""
        base = self.scene.judge.protected.base
        for value in values:
            for path in self.scene.paths(value):
                place = self.scene.judge.protected.find(path, recursive=False)
                if place is not None and place.path != self.scene.judge.protected.config:
                    return TAINT
                if path.startswith((f"{base}/.locks/", f"{base}/status/")):
                    # They tell the daemon's process.
                    return TAINT
        return UNKNOWN

    def run_command(self, command: Node, stdin: str | None) -> str:
        """A command of any kind; one that changes nothing prints nothing."""
        from guardrails.guard.statements import KINDS

        run = KINDS.get(command["Type"])
        return run(self, command, stdin) if run is not None else ""

    def assign_node(self, node: Node) -> None:
        """``x=1``, ``x+=1``, ``x[1]=1`` or ``x=(1 2)``."""
        name = node["Name"]["Value"]
        if node.get("Naked"):
            return
        if array := node.get("Array"):
            elements: list[str] = list(self.arrays.get(name, [])) if node.get("Append") else []
            for element in array.get("Elems") or []:
                elements += [field for fields in expand_word(self, element["Value"]) for field in fields]
            self.variables.pop(name, None)
            self.arrays[name] = elements
            return
        values = expand_text(self, node.get("Value"))
        if node.get("Index") is not None:
            self.arrays[name] = [*(self.elements(name) or []), *values]
            self.variables.pop(name, None)
        elif node.get("Append"):
            old = self.values_of(name) if self.is_set(name) else [""]
            self.assign(name, [before + value for before in old for value in values])
        else:
            self.assign(name, values)

    def run_lists(self, lists: list[list[str]], stdin: str | None) -> str:
        """A simple command with each of its possible argument lists."""
        printed = ""
        for argv in lists:
            if argv:
                printed = self.run_program(argv, stdin)
        return printed

    def run_program(self, argv: list[str], stdin: str | None) -> str:
        """One simple command with its arguments."""
        self.scene.step()
        name = argv[0] if is_text_known(argv[0]) else without_unknown(argv[0])
        if not name:
            name = UNKNOWN
        if name in self.functions:
            return self._call(self.functions[name], argv, stdin)
        if name in self.aliases:
            text = " ".join([self.aliases.pop(name), *(_quote(argument) for argument in argv[1:])])
            return self.run(text, stdin)
        from guardrails.guard.programs import run_program

        return run_program(self, [name, *argv[1:]], stdin)

    def _call(self, body: Node, argv: list[str], stdin: str | None) -> str:
        self.scene.depth += 1
        if self.scene.depth > MOST_DEPTH:
            self.scene.depth -= 1
            return UNKNOWN
        before, self.arguments = self.arguments, argv[1:]
        try:
            return self.run_statement(body, stdin)
        except ExitedError:
            return UNKNOWN
        finally:
            self.arguments = before
            self.scene.depth -= 1

    def substitute(self, statements: list[Node]) -> str:
        """What ``$(…)`` stands for."""
        return self.apart(lambda shell: shell.run_statements(statements)).rstrip("\n")

    def substitute_process(self, part: Node) -> str:
        """The file that ``<(…)`` or ``>(…)`` stands for."""
        statements = part.get("Stmts") or []
        printed = self.apart(lambda shell: shell.run_statements(statements, UNKNOWN))
        value = f"/dev/fd/{60 + len(self.scene.files)}"
        self.scene.files[value] = printed if part.get("Op") == "<(" else None
        return value

    # Folders

    def change_folder(self, value: str, *, or_fail: bool = False) -> None:
        """``cd``: each possible current folder moves. ``or_fail``: nothing that follows runs where it cannot."""
        scene = self.scene
        self.old_cwd = scene.cwd
        moved = dict.fromkeys(scene.paths(value) if value[:1] not in (UNKNOWN, TAINT) else [join("/", value)])
        before = (scene.cwd, *scene.other_cwds)
        targets = list(moved)
        scene.cwd, *others = targets
        if not (or_fail or scene.stops_at_errors) and not any(self._may_exist(target) for target in targets):
            scene.if_cd_failed = before
            others += [cwd for cwd in before if cwd not in targets]
        scene.other_cwds = tuple(others)

    def _may_exist(self, folder: str) -> bool:
        return (
            not is_known(folder)
            or folder in self.scene.files
            or os.path.isdir(folder)
            or not os.path.isdir(os.path.dirname(folder))
            or any(folder.startswith(made + "/") or made.startswith(folder + "/") for made in self.scene.files)
        )


def _is_descriptor(operator: str, value: str) -> bool:
    return (operator == ">&" and (value.rstrip("-").isdigit() or value == "-")) or value in (
        "/dev/null",
        "/dev/stdout",
        "/dev/stderr",
        "/dev/tty",
    )


def _quote(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"


def _as_text(value: str) -> str:
    """A partly known command line in which unknown text is one plain word, so that it can be parsed."""
    return value.replace(UNKNOWN, "$__unknown").replace(TAINT, "$__unknown").replace(STAR, "*").replace(ONE, "?")
