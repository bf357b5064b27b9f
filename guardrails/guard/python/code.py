"""What Python code would do to files and processes, told without running it.

``analyse`` steps through the code with all values that its variables may have: straight-line code in order, both
sides of a condition that cannot be told, the entries of a known list one by one and of any other all at once.
"""

import _ast
import os
import sys
import warnings
from collections.abc import Callable, Iterator

from guardrails.guard.patterns import is_known
from guardrails.guard.patterns import join as join_paths
from guardrails.guard.python.conditions import narrow, remember
from guardrails.guard.python.expressions import MARK_WORDS, MOST_TURNS
from guardrails.guard.python.functions import Functions
from guardrails.guard.python.methods import call_method, pop_from_map
from guardrails.guard.python.tables import ALIASES, EXITS, TOOLKIT
from guardrails.guard.python.text import below
from guardrails.guard.python.values import (
    ANY,
    NONE,
    Call,
    Frame,
    Instance,
    Loop,
    Made,
    Map,
    Module,
    Native,
    Opened,
    Seq,
    Value,
    is_plain,
    is_true,
    merge,
    text,
    texts,
    union,
)
from guardrails.guard.python.world import can_be_path
from guardrails.guard.scene import MOST_BYTES, MOST_DEPTH, Scene, TooMuchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from guardrails.guard.python.world import ShellRunner

ONLY_AST = 0x400
# Code of the user's own modules that is read.
MOST_IMPORTED = 128 * 1024


def analyse(source: str, scene: Scene, arguments: list[str], shell: "ShellRunner") -> None:
    """Tell the scene every effect of running ``source``; ``arguments`` is ``sys.argv`` (first ``-c`` or the script).

    Marks in the source stand for text that a shell put there.

    Raises:
        Denied: an effect must not happen.
        TooMuchError: there is more of it than can be looked through.
    """
    before = (scene.cwd, scene.other_cwds, scene.environ)
    scene.environ = dict(scene.environ)
    try:
        Program(scene, arguments, shell).run_main(source)
    finally:
        scene.cwd, scene.other_cwds, scene.environ = before


def parse(source: str, mode: str) -> "_ast.Module | _ast.Expression | None":
    """The syntax tree; None for what Python refuses as well."""
    if len(source) > MOST_BYTES:
        raise TooMuchError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = compile(source, "", mode, ONLY_AST)
        except (SyntaxError, ValueError):
            return None
        except MemoryError:
            raise TooMuchError from None
    assert isinstance(tree, (_ast.Module, _ast.Expression))
    return tree


class Program(Functions):
    """One run of Python code, stepped through."""

    def __init__(self, scene: Scene, arguments: list[str], shell: "ShellRunner") -> None:
        super().__init__(scene, arguments, shell)
        self.imported_bytes = 0
        self.running = arguments[:1]
        self.foreign: set[str] = set()

    def run_main(self, source: str) -> None:
        self.mentions_daemon = "training_daemon" in source
        try:
            self.run_source(source, self.frame)
            self._run_registered()
        except (TooMuchError, RecursionError):
            for opened in self.unsaved:
                opened.parts = None
            self.save(*self.unsaved)
            raise TooMuchError from None
        self.save(*self.unsaved)

    def run_source(self, source: str, frame: Frame, mode: str = "exec") -> Value:
        for mark, word in MARK_WORDS.items():
            source = source.replace(mark, word)
        tree = parse(source, mode)
        if tree is None:
            return ANY
        self.scene.depth += 1
        if self.scene.depth > MOST_DEPTH:
            raise TooMuchError
        outer, loops = self.frame, self.loops
        self.frame, self.loops = frame, []
        try:
            if isinstance(tree, _ast.Expression):
                return self.evaluate(tree.body)
            self.run(tree.body)
            return NONE
        finally:
            self.frame, self.loops = outer, loops
            self.scene.depth -= 1

    def run(self, body: "list[_ast.stmt]") -> bool:
        """Run statements; whether what follows them is reached."""
        for node in body:
            self.scene.step()
            rule = STATEMENTS.get(node.__class__)
            if rule is None:
                self._look_inside(node)
            elif rule(self, node) is False:
                return False
        return True

    # Statements.

    def _run_expression(self, node: "_ast.Expr") -> bool:
        self.evaluate(node.value)
        if not isinstance(node.value, _ast.Call) or not isinstance(node.value.func, (_ast.Name, _ast.Attribute)):
            return True
        function = node.value.func
        name = function.id if isinstance(function, _ast.Name) else function.attr
        if all(name != full.rpartition(".")[2] for full in EXITS):
            return True
        return not all(isinstance(item, Native) and item.name in EXITS for item in self.evaluate(function))

    def _run_assign(self, node: "_ast.Assign") -> None:
        value = self.evaluate(node.value)
        for target in node.targets:
            self._bind(target, value)
        remember(self, node.targets[0], node.value)

    def _run_annotated(self, node: "_ast.AnnAssign") -> None:
        if node.value is not None:
            self._bind(node.target, self.evaluate(node.value))

    def _run_augmented(self, node: "_ast.AugAssign") -> None:
        old, value = self.evaluate(node.target), self.evaluate(node.value)
        method = {_ast.Add: "extend", _ast.BitOr: "update"}.get(node.op.__class__, "")
        grown = [item for item in old if isinstance(item, (Seq, Map))]
        for item in grown:
            call_method(self, item, method, Call([value]))
        if not grown:
            self._bind(node.target, self._operate(node.op, old, value))

    def _run_if(self, node: "_ast.If") -> bool:
        truth = is_true(self.evaluate(node.test))
        if truth is not None:
            return self.run(node.body if truth else node.orelse)
        frame, before, folders = self.frame, dict(self.frame.variables), self._folders()
        self.level += 1
        fell = narrow(self, node.test, True) and self.run(node.body)
        after, frame.variables = frame.variables, before
        folders_after = self._folders()
        self._go(folders)
        fell_else = narrow(self, node.test, False) and self.run(node.orelse)
        self.level -= 1
        if fell:
            frame.variables = merge(after, frame.variables) if fell_else else after
            self._go([*folders_after, *(self._folders() if fell_else else [])])
        return fell or fell_else

    def _folders(self) -> list[str]:
        """The current folder, and where the code may be as well."""
        return [self.scene.cwd, *self.scene.other_cwds]

    def _go(self, folders: list[str]) -> None:
        self.scene.cwd, *others = dict.fromkeys(folders)
        self.scene.other_cwds = tuple(others)

    def _run_for(self, node: "_ast.For | _ast.AsyncFor") -> bool:
        iterated = self.evaluate(node.iter)
        items, rest = self.entries(iterated)
        items = list(items)
        if len(items) * self.turns > MOST_TURNS:
            items, rest = [], union(*items, rest)
        loop = Loop()
        self.loops.append(loop)
        turns, self.turns = self.turns, self.turns * max(1, len(items))
        fell = True
        for item in items:
            self._bind(node.target, item)
            fell = self._run_turn(node.body, loop)
            if not fell:
                break
        more = union(rest, *self.entries(iterated)[0][len(items) :]) if items else rest
        if fell and more:
            self._run_any(lambda: self._bind(node.target, more), node.body, loop)
        self.turns = turns
        return self._leave(loop, fell and self.run(node.orelse))

    def _run_while(self, node: "_ast.While") -> bool:
        truth = is_true(self.evaluate(node.test))
        if truth is False:
            return self.run(node.orelse)
        loop = Loop()
        self.loops.append(loop)
        self._run_any(lambda: narrow(self, node.test, True), node.body, loop)
        self.evaluate(node.test)
        ends = not isinstance(node.test, _ast.Constant) and narrow(self, node.test, False)
        return self._leave(loop, ends and self.run(node.orelse))

    def _run_turn(self, body: "list[_ast.stmt]", loop: Loop) -> bool:
        """Run a loop's body once; whether there may be another turn."""
        frame = self.frame
        fell = self.run(body)
        for variables in loop.continues:
            frame.variables = merge(frame.variables, variables) if fell else variables
            fell = True
        loop.continues = []
        return fell

    def _run_any(self, begin: "Callable[[], object]", body: "list[_ast.stmt]", loop: Loop) -> None:
        """Run a loop's body any number of times: again if a turn changed what it began with."""
        self.level += 1
        folders = self._folders()
        for _ in range(2 if len(self.loops) < 4 else 1):
            before, changes = dict(self.frame.variables), self.changes
            begin()
            if self._run_turn(body, loop):
                self.frame.variables = merge(before, self.frame.variables)
            else:
                self.frame.variables = before
                break
            same = all(self.frame.variables[name] == value for name, value in before.items())
            if same and changes == self.changes:
                break
        self._go([*self._folders(), *folders])
        self.level -= 1

    def _leave(self, loop: Loop, fell: bool) -> bool:
        self.loops.pop()
        for variables in loop.breaks:
            self.frame.variables = merge(self.frame.variables, variables) if fell else variables
            fell = True
        return fell

    def _run_break(self, node: "_ast.Break") -> bool:
        if self.loops:
            self.loops[-1].breaks.append(dict(self.frame.variables))
        return False

    def _run_continue(self, node: "_ast.Continue") -> bool:
        if self.loops:
            self.loops[-1].continues.append(dict(self.frame.variables))
        return False

    def _run_try(self, node: "_ast.Try | _ast.TryStar") -> bool:
        frame, before = self.frame, dict(self.frame.variables)
        found, missed, told = self.found, self.missed, len(self.told)
        fell = self.run(node.body)
        is_there = self.found > found and (self.missed, len(self.told)) == (missed, told)
        thrown = merge(before, frame.variables)
        fell = fell and self.run(node.orelse)
        done = frame.variables
        self.level += 1
        for handler in node.handlers:
            if is_there and isinstance(handler.type, _ast.Name) and handler.type.id == "FileNotFoundError":
                continue
            frame.variables = dict(thrown)
            if handler.name:
                self._assign(handler.name, ANY)
            if self.run(handler.body):
                done = merge(done, frame.variables) if fell else frame.variables
                fell = True
        self.level -= 1
        frame.variables = done if fell else thrown
        return self.run(node.finalbody) and fell

    def _run_with(self, node: "_ast.With | _ast.AsyncWith") -> bool:
        managers: list[Value] = []
        for item in node.items:
            managers.append(self.evaluate(item.context_expr))
            entered = union(*(self._enter(manager) for manager in managers[-1]))
            if item.optional_vars is not None:
                self._bind(item.optional_vars, entered)
        fell = self.run(node.body)
        for manager in managers[::-1]:
            for entry in manager:
                self._exit(entry)
        return fell

    def _enter(self, manager: object) -> Value:
        if isinstance(manager, Instance) and manager.kind and manager.kind.find("__enter__"):
            return self.call(self.attribute((manager,), "__enter__"), Call([]))
        return manager.value if isinstance(manager, Made) and manager.kind == "temporary" else (manager,)

    def _exit(self, manager: object) -> None:
        if isinstance(manager, Opened):
            self.save(manager)
        elif isinstance(manager, Made) and manager.kind == "folder":
            self.scene.cwd = text(manager.value[0])
        elif isinstance(manager, Instance) and manager.kind and manager.kind.find("__exit__"):
            self.call(self.attribute((manager,), "__exit__"), Call([NONE, NONE, NONE]))

    def _run_match(self, node: "_ast.Match") -> bool:
        subject = self.evaluate(node.subject)
        frame, before = self.frame, self.frame.variables
        done: dict[str, Value] | None = None
        self.level += 1
        for case in node.cases:
            frame.variables = dict(before)
            for name in names_in(case.pattern):
                self._assign(name, subject if isinstance(case.pattern, _ast.MatchAs) else ANY)
            if isinstance(case.pattern, _ast.MatchValue):
                wanted = self.evaluate(case.pattern.value)
                if all(is_plain(item) and item not in wanted for item in subject) and all(map(is_plain, wanted)):
                    continue
            if case.guard is not None:
                self.evaluate(case.guard)
            if self.run(case.body):
                done = frame.variables if done is None else merge(done, frame.variables)
        self.level -= 1
        last = node.cases[-1]
        takes_all = last.guard is None and isinstance(last.pattern, _ast.MatchAs) and last.pattern.pattern is None
        if not takes_all:
            done = merge(done or {}, before)
        frame.variables = before if done is None else done
        return done is not None

    def _run_return(self, node: "_ast.Return") -> bool:
        self.frame.results.append(self.evaluate(node.value))
        return False

    def _run_raise(self, node: "_ast.Raise") -> bool:
        self.evaluate(node.exc)
        return False

    def _run_assert(self, node: "_ast.Assert") -> None:
        self.evaluate(node.test)
        narrow(self, node.test, True)

    def _run_delete(self, node: "_ast.Delete") -> None:
        for target in node.targets:
            if isinstance(target, _ast.Subscript):
                index = self.evaluate(target.slice)
                for item in self.evaluate(target.value):
                    if isinstance(item, Map):
                        pop_from_map(self, item, Call([index]))
            elif isinstance(target, _ast.Name):
                self.frame.variables.pop(target.id, None)

    def _run_global(self, node: "_ast.Global") -> None:
        frame = self.frame
        while frame.parent is not None:
            frame = frame.parent
        self.frame.outer.update(dict.fromkeys(node.names, frame))

    def _run_nonlocal(self, node: "_ast.Nonlocal") -> None:
        for name in node.names:
            frame = self.frame.parent
            while frame is not None and name not in frame.variables:
                frame = frame.parent
            if frame is not None:
                self.frame.outer[name] = frame

    # Modules.

    def _run_import(self, node: "_ast.Import") -> None:
        for alias in node.names:
            module = self.import_module(alias.name)
            top = alias.name.partition(".")[0]
            if alias.asname:
                self._assign(alias.asname, module)
            else:
                self._assign(top, module if top == alias.name else self.import_module(top))

    def _run_import_from(self, node: "_ast.ImportFrom") -> None:
        name = node.module or ""
        if node.level:
            parts = text(self._look_up("__name__")[0]).split(".")[: -node.level]
            name = ".".join([*parts, name] if name else parts)
        module = self.import_module(name)
        for alias in node.names:
            if alias.name != "*":
                value = self.attribute(module, alias.name)
                self._assign(alias.asname or alias.name, value)
            elif isinstance(module[0], Module):
                self.frame.variables.update(module[0].frame.variables)
            else:
                self.frame.stars.extend(item.name for item in module if isinstance(item, Native))

    def import_module(self, name: str) -> Value:
        """A module of the user's own, run for its effects; any other by its name."""
        top, _, rest = name.partition(".")
        native: Value = (Native(ALIASES.get(name, name)),)
        if top in sys.stdlib_module_names or top in TOOLKIT or top in self.foreign or not is_known(name):
            return native
        if name not in self.modules:
            if rest:
                self.import_module(name.rpartition(".")[0])
            self.modules.setdefault(name, ())
            self._load(name)
            if not rest and not self.modules[name] and not self._is_folder(name):
                self.foreign.add(name)
        return self.modules[name] or native

    def _is_folder(self, name: str) -> bool:
        return any(
            os.path.isdir(path) for folder in self._import_folders() for path in self.scene.paths(below(folder, name))
        )

    def _import_folders(self) -> list[str]:
        return [path for path in texts(self.search_path.all()) if is_known(path)]

    def _load(self, name: str) -> None:
        for folder in self._import_folders():
            path = below(folder, *name.split("."))
            for file in (f"{path}.py", f"{path}/__init__.py"):
                source = self.scene.read(file)
                if source is not None:
                    self._run_module(source, file, name)
                    return

    def _run_module(self, source: str, path: str, name: str) -> Value:
        self.imported_bytes += len(source)
        if self.imported_bytes > MOST_IMPORTED:
            return ANY
        frame = Frame()
        frame.variables.update({"__name__": (name,), "__file__": (join_paths(self.scene.cwd, path),)})
        module: Value = (Module(name, frame),)
        self.modules[name] = module
        if path not in self.running:
            self.running.append(path)
            self.run_source(source, frame)
            self.running.pop()
        return module

    def run_script(self, path: str, name: str) -> Value:
        source = self.scene.read(path) if is_known(path) and can_be_path(path) else None
        return ANY if source is None else self._run_module(source, path, name)


def names_in(pattern: "_ast.AST") -> "Iterator[str]":
    """The names that a pattern of ``match`` binds."""
    for field in pattern._fields:
        child = getattr(pattern, field, None)
        if field in ("name", "rest") and isinstance(child, str):
            yield child
        for part in child if isinstance(child, list) else (child,):
            if isinstance(part, _ast.pattern):
                yield from names_in(part)


STATEMENTS: "dict[type, Callable[[Program, Any], bool | None]]" = {
    _ast.AnnAssign: Program._run_annotated,
    _ast.Assert: Program._run_assert,
    _ast.Assign: Program._run_assign,
    _ast.AsyncFor: Program._run_for,
    _ast.AsyncFunctionDef: Program._run_def,
    _ast.AsyncWith: Program._run_with,
    _ast.AugAssign: Program._run_augmented,
    _ast.Break: Program._run_break,
    _ast.ClassDef: Program._run_class,
    _ast.Continue: Program._run_continue,
    _ast.Delete: Program._run_delete,
    _ast.Expr: Program._run_expression,
    _ast.For: Program._run_for,
    _ast.FunctionDef: Program._run_def,
    _ast.Global: Program._run_global,
    _ast.If: Program._run_if,
    _ast.Import: Program._run_import,
    _ast.ImportFrom: Program._run_import_from,
    _ast.Match: Program._run_match,
    _ast.Nonlocal: Program._run_nonlocal,
    _ast.Raise: Program._run_raise,
    _ast.Return: Program._run_return,
    _ast.Try: Program._run_try,
    _ast.TryStar: Program._run_try,
    _ast.While: Program._run_while,
    _ast.With: Program._run_with,
}
