"""How functions and classes of the code itself are made and called."""

import _ast

from guardrails.guard.patterns import FRESH, UNKNOWN
from guardrails.guard.python.arguments import parse_parameters
from guardrails.guard.python.calls import call_library
from guardrails.guard.python.expressions import Expressions
from guardrails.guard.python.methods import call_method
from guardrails.guard.python.tables import QUIET_DECORATORS
from guardrails.guard.python.values import (
    ANY,
    NONE,
    Call,
    Class,
    Frame,
    Function,
    Instance,
    Loop,
    Map,
    Method,
    Native,
    Partial,
    Seq,
    Value,
    texts,
    union,
)
from guardrails.guard.scene import Scene

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.python.world import ShellRunner

# Calls within calls; what lies deeper is unknown.
MOST_CALLS = 16
# Calls with the same arguments that are followed.
MOST_REPEATS = 4
# Arguments that a test gets from pytest.
FIXTURES = dict.fromkeys(("tmp_path", "tmpdir"), f"/tmp/{FRESH}")  # noqa: S108 - nothing is made there


class Functions(Expressions):
    """Calls of the code's own functions, and of its commands with the words of the command line."""

    def __init__(self, scene: Scene, arguments: list[str], shell: "ShellRunner") -> None:
        super().__init__(scene, arguments, shell)
        self.loops: list[Loop] = []
        self.active: list[object] = []
        # What calls with the same arguments came to, and how often.
        self.results: dict[object, tuple[int, Value]] = {}
        self.called: set[object] = set()
        # Functions that a decorator may have handed to someone who calls them.
        self.registered: list[Function] = []
        self.command_names: dict[object, list[str]] = {}

    # Functions and classes.

    def _run_def(self, node: "_ast.FunctionDef | _ast.AsyncFunctionDef") -> None:
        value = self._decorate(self._function(node), node.decorator_list)
        if not any(
            isinstance(part, _ast.Attribute) and part.attr in ("setter", "deleter") for part in node.decorator_list
        ):
            self._assign(node.name, value)

    def _decorate(self, function: Function, decorators: "list[_ast.expr]") -> Value:
        value: Value = (function,)
        for node in decorators[::-1]:
            decorator = self.evaluate(node)
            named = self.evaluate(node.func) if isinstance(node, _ast.Call) else decorator
            names = [item.name for item in named if isinstance(item, Native)]
            function.kinds.update(name.rpartition(".")[2] for name in names)
            called = node.func if isinstance(node, _ast.Call) else node
            function.kinds.update([called.attr] if isinstance(called, _ast.Attribute) else [])
            if any(isinstance(item, (Function, Partial, Class, Instance)) for item in decorator):
                made = self.call(decorator, Call([value]))
                value = made if any(isinstance(item, (Function, Partial, Instance)) for item in made) else value
            elif not names or not all("." not in name or name.startswith(QUIET_DECORATORS) for name in names):
                self.registered.append(function)
                if isinstance(node, _ast.Call) and node.args and isinstance(node.args[0], _ast.Constant):
                    self.command_names[function.node] = [str(node.args[0].value)]
        return value

    def _run_class(self, node: "_ast.ClassDef") -> None:
        bases = union(*(self.evaluate(base) for base in node.bases), ())
        for decorator in node.decorator_list:
            self.evaluate(decorator)
        outer, self.frame = self.frame, Frame(self.frame)
        self.run(node.body)
        variables, self.frame = self.frame.variables, outer
        fields = [
            line.target.id
            for line in node.body
            if isinstance(line, _ast.AnnAssign) and isinstance(line.target, _ast.Name)
        ]
        made = Class(bases, variables, fields)
        for value in variables.values():
            for item in value:
                if isinstance(item, Function):
                    item.owner = item.owner or made
        self._assign(node.name, (made,))

    def call(self, function: Value, call: Call) -> Value:
        return union(*(self._call_one(item, call) for item in function), ()) or ANY

    def _call_one(self, item: object, call: Call) -> Value:
        self.scene.step()
        if isinstance(item, Native):
            return self._super() if item.name == "super" else call_library(self, item.name, call)
        if isinstance(item, Method):
            return call_method(self, item.receiver, item.name, call)
        if isinstance(item, Function):
            return self._call_function(item, call)
        if isinstance(item, Partial):
            args = [*item.args, *call.args]
            return self.call(item.function, Call(args, {**item.keywords, **call.keywords}, call.rest))
        if isinstance(item, Class):
            return self._instantiate(item, call)
        if isinstance(item, Instance) and item.kind and item.kind.find("__call__"):
            return self.call(self.attribute((item,), "__call__"), call)
        return call_library(self, "", call)

    def _call_function(self, function: Function, call: Call) -> Value:
        node = function.node
        self.called.add(node)
        if function in self.registered and not call.args and not call.keywords:
            call = self._command_line(function)
        given = (*call.args, *call.keywords.items(), call.rest)
        key = (node, function.receiver, given, self.scene.cwd, self.assigned)
        count, known = self.results.get(key, (0, ANY))
        if count >= MOST_REPEATS or self.active.count(node) > 1 or len(self.active) >= MOST_CALLS:
            return known
        result = self._run_function(function, call)
        self.results[key] = (count + 1, result)
        return result

    def run_commands(self, value: Value) -> None:
        for item in value:
            if isinstance(item, Seq):
                self.run_commands(item.all())
            elif isinstance(item, Map):
                self.run_commands(union(*item.items.values(), ()))
            elif isinstance(item, Class):
                methods = self._bound(union(*item.variables.values(), ()), Instance(item, {}), item)
                self.registered.extend(method for method in methods if isinstance(method, Function))
            elif isinstance(item, Function):
                self.registered.append(item)

    def _run_registered(self) -> None:
        """What a decorator may have handed to someone who calls it; of several commands, the one that is named."""
        waiting = [function for function in self.registered if function.node not in self.called]
        commands = [function for function in waiting if "command" in function.kinds]
        named = [function for function in waiting if self._words_after(function) is not None]
        for function in named or waiting:
            if named or len(commands) < 2 or function not in commands:
                self._call_function(function, Call([]))

    def _words_after(self, function: Function) -> list[Value] | None:
        """The arguments that follow a command's name; None if it is not named."""
        node = function.node
        name = getattr(node, "name", "")
        names = [*self.command_names.get(node, []), name, name.replace("_", "-")]
        words = self.argv.items[1:]
        return next((words[index + 1 :] for index, word in enumerate(words) if texts(word)[0] in names), None)

    def _command_line(self, function: Function) -> Call:
        """The arguments of a command as they stand in ``sys.argv``."""
        wanted = function.node.args
        names = [parameter.arg for parameter in (*wanted.posonlyargs, *wanted.args)][function.receiver is not None :]
        required: dict[str, Value | None] = dict.fromkeys(names[: len(names) - len(function.defaults)])
        parameters = {**required, **dict(zip(names[len(required) :], function.defaults, strict=False))}
        parameters.update(zip((parameter.arg for parameter in wanted.kwonlyargs), function.keywords, strict=True))
        words = self._words_after(function)
        given = self.argv.items[1:] if words is None else words
        return Call(list(given) if wanted.vararg else [], parse_parameters(parameters, given))

    def _run_function(self, function: Function, call: Call) -> Value:
        node = function.node
        frame = Frame(function.frame)
        frame.owner, frame.receiver = function.owner, function.receiver
        self._bind_parameters(function, call, frame)
        outer, loops = self.frame, self.loops
        self.frame, self.loops = frame, []
        self.active.append(node)
        try:
            if isinstance(node, _ast.Lambda):
                return self.evaluate(node.body)
            if self.run(node.body):
                frame.results.append(NONE)
        finally:
            self.active.pop()
            self.frame, self.loops = outer, loops
        if frame.yields:
            is_context = not function.kinds.isdisjoint(("contextmanager", "asynccontextmanager"))
            return union(*frame.yields) if is_context else (Seq(rest=union(*frame.yields)),)
        return union(*frame.results, ())

    def _bind_parameters(self, function: Function, call: Call, frame: Frame) -> None:
        wanted = function.node.args
        names = [parameter.arg for parameter in (*wanted.posonlyargs, *wanted.args)]
        values = call.args if function.receiver is None else [(function.receiver,), *call.args]
        variables = frame.variables
        for name, default in zip(names[len(names) - len(function.defaults) :], function.defaults, strict=True):
            variables[name] = default
        for parameter, given in zip(wanted.kwonlyargs, function.keywords, strict=True):
            variables[parameter.arg] = ANY if given is None else given
        variables.update(zip(names, values, strict=False))
        known = {*names, *(parameter.arg for parameter in wanted.kwonlyargs)}
        variables.update({name: value for name, value in call.keywords.items() if name in known})
        for name in names:
            variables.setdefault(name, call.rest or (FIXTURES.get(name, UNKNOWN),))
        if wanted.vararg:
            variables[wanted.vararg.arg] = (Seq(list(values[len(names) :]), call.rest, self.level),)
        if wanted.kwarg:
            others = Map({name: value for name, value in call.keywords.items() if name not in known}, (), self.level)
            variables[wanted.kwarg.arg] = (others,)

    def _instantiate(self, kind: Class, call: Call) -> Value:
        made = Instance(kind, {}, self.level)
        if kind.find("__init__"):
            self.call(self.attribute((made,), "__init__"), call)
        else:
            made.attributes.update(zip(kind.fields, call.args, strict=False))
            made.attributes.update(call.keywords)
            if kind.find("__post_init__"):
                self.call(self.attribute((made,), "__post_init__"), Call([]))
        return (made,)

    def _super(self) -> Value:
        owner, receiver = self.frame.owner, self.frame.receiver
        bases = [base for base in owner.bases if isinstance(base, Class)] if owner else []
        if not bases or not isinstance(receiver, Instance):
            return ANY
        above = Instance(bases[0], receiver.attributes, receiver.level)
        return (above,)
