"""What Python's expressions give, and what evaluating them does."""

import _ast
import builtins
import os
import sys
from collections.abc import Callable

from guardrails.guard.patterns import TAINT, UNKNOWN, clean, is_known
from guardrails.guard.python.calls import is_told
from guardrails.guard.python.conditions import narrow
from guardrails.guard.python.methods import call_method, lines_of, put_in_map
from guardrails.guard.python.tables import ALIASES, CONSTANTS
from guardrails.guard.python.text import PATH_ATTRIBUTES, below, cut_text, fill_percent, format_item
from guardrails.guard.python.values import (
    ANY,
    FAILURES,
    MOST_BITS,
    MOST_TEXT,
    NONE,
    NUMBER,
    Call,
    Class,
    Frame,
    Function,
    Instance,
    Made,
    Map,
    Method,
    Module,
    Native,
    Number,
    Opened,
    Seq,
    Value,
    blur,
    combinations,
    concatenate,
    copied,
    is_plain,
    is_true,
    lift,
    text,
    texts,
    union,
)
from guardrails.guard.python.world import World

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# How often nested loops over known lists are gone through entry by entry.
MOST_TURNS = 128
# What stands in source text for marks, in names as in literals.
MARK_WORDS = {UNKNOWN: "_UNKNOWN_", TAINT: "_TAINTED_"}
# Modules that others import, and that can be reached through them.
STEPPING_STONES = frozenset(("os", "shutil", "subprocess", "sys"))
NUMBERS = (int, float, Number)


class Expressions(World):
    """How the code's expressions are evaluated; ``Program`` adds statements."""

    def evaluate(self, node: "_ast.expr | None") -> Value:
        if node is None:
            return NONE
        rule = EXPRESSIONS.get(node.__class__)
        return self._look_inside(node) if rule is None else rule(self, node)

    def _look_inside(self, node: "_ast.AST") -> Value:
        """Run what stands in a node that has no rule."""
        for name in node._fields:
            child = getattr(node, name, None)
            for part in child if isinstance(child, list) else (child,):
                if isinstance(part, _ast.expr):
                    self.evaluate(part)
                elif isinstance(part, _ast.stmt):
                    self.run([part])
        return ANY

    # Variables.

    def _look_up(self, name: str) -> Value:
        frame: Frame | None = self.frame.outer.get(name, self.frame)
        while frame is not None:
            value = frame.variables.get(name)
            if value is not None:
                return value
            for module in frame.stars:
                if is_told(f"{module}.{name}"):
                    return self._of_native(module, name)
            frame = frame.parent
        if hasattr(builtins, name) or name in sys.stdlib_module_names:
            return (Native(name),)
        return (TAINT,) if MARK_WORDS[TAINT] in name else ANY

    def _assign(self, name: str, value: Value) -> None:
        frame = self.frame.outer.get(name, self.frame)
        frame.variables[name] = value
        self.assigned += frame.parent is None

    def _bind(self, target: "_ast.expr", value: Value) -> None:
        if isinstance(target, _ast.Name):
            self._assign(target.id, value)
        elif isinstance(target, (_ast.Tuple, _ast.List)):
            self._unpack(target.elts, value)
        elif isinstance(target, _ast.Starred):
            self._bind(target.value, value)
        elif isinstance(target, _ast.Attribute):
            self._bind_attribute(self.evaluate(target.value), target.attr, value)
        elif isinstance(target, _ast.Subscript):
            owner = self.evaluate(target.value)
            if isinstance(target.slice, _ast.Slice):
                self._bind_slice(owner, target.slice, value)
            else:
                self._bind_entry(owner, self.evaluate(target.slice), value)

    def _bind_slice(self, owner: Value, place: "_ast.Slice", value: Value) -> None:
        for item in owner:
            if isinstance(item, Seq) and place.lower is place.upper and self.level <= item.level:
                items, item.rest = self.entries(value)
                item.items = list(items)
            elif isinstance(item, Seq):
                call_method(self, item, "extend", Call([value]))

    def _unpack(self, targets: "list[_ast.expr]", value: Value) -> None:
        star = next((i for i, target in enumerate(targets) if isinstance(target, _ast.Starred)), len(targets))
        for index, target in enumerate(targets):
            parts = [self._part(item, index, star, len(targets)) for item in value]
            self._bind(target, union(*parts) if parts else ANY)

    def _part(self, item: object, index: int, star: int, count: int) -> Value:
        if not isinstance(item, (Seq, str)) or (isinstance(item, str) and not is_known(item)):
            return (Seq(rest=ANY),) if index == star else (blur((item,)),)
        seq = item if isinstance(item, Seq) else Seq([(letter,) for letter in item[:64]])
        if index < star:
            return seq.at(index)
        if index == star:
            return (Seq(seq.items[index : len(seq.items) - (count - index - 1)], seq.rest, self.level),)
        return seq.at(index - count)

    def _bind_attribute(self, owner: Value, name: str, value: Value) -> None:
        self.changes += 1
        for item in owner:
            if isinstance(item, Instance):
                old = item.attributes.get(name)
                item.attributes[name] = value if old is None or self.level <= item.level else union(old, value)
            elif isinstance(item, Class):
                item.variables[name] = value
            elif isinstance(item, Module):
                item.frame.variables[name] = value

    def _bind_entry(self, owner: Value, index: Value, value: Value) -> None:
        for item in owner:
            if isinstance(item, Map):
                for place in index:
                    key = place if is_plain(place) else UNKNOWN
                    put_in_map(self, item, key, value if len(index) == 1 else union(item.at(key), value))
            elif isinstance(item, Seq):
                self.changes += 1
                if isinstance(index[0], int) and self.level <= item.level and 0 <= index[0] < len(item.items):
                    item.items[index[0]] = value
                else:
                    item.rest = union(item.rest, value)

    def _function(self, node: "_ast.FunctionDef | _ast.AsyncFunctionDef | _ast.Lambda") -> Function:
        function = Function(node, self.frame)
        function.defaults = [self.evaluate(default) for default in node.args.defaults]
        function.keywords = [None if default is None else self.evaluate(default) for default in node.args.kw_defaults]
        return function

    # Attributes and entries.

    def attribute(self, value: Value, name: str) -> Value:
        return union(*(self._attribute(item, name) for item in value), ()) or ANY

    def _attribute(self, item: object, name: str) -> Value:
        if isinstance(item, Native):
            return self._of_native(item.name, name)
        if isinstance(item, Instance):
            return self._of_instance(item, name)
        if isinstance(item, Class):
            found = item.find(name)
            return (Method(UNKNOWN, name),) if found is None else self._bound(found, item, item)
        if isinstance(item, Module):
            found = item.frame.variables.get(name)
            return found or self.import_module(f"{item.name}.{name}")
        if isinstance(item, Made) and item.kind == "temporary" and name == "name":
            return item.value
        if isinstance(item, Opened) and name == "name":
            return item.path
        if isinstance(item, Function) and name in ("callback", "__call__", "__wrapped__"):
            return (item,)
        if name == "__dict__":
            return (item,)
        if name == "value" and is_plain(item):
            return (item,)
        if isinstance(item, str) and name in PATH_ATTRIBUTES:
            return PATH_ATTRIBUTES[name](item)
        return (Method(item, name),)

    def _of_native(self, owner: str, name: str) -> Value:
        full = f"{owner}.{name}" if owner else name
        full = ALIASES.get(full, full)
        special = {
            "sys.argv": self.argv,
            "os.environ": self.environ,
            "os.environb": self.environ,
            "sys.path": self.search_path,
        }
        if full in special:
            return (special[full],)
        if full in CONSTANTS:
            return (CONSTANTS[full],)
        if name == "__dict__":
            return (Native(owner),)
        if name in STEPPING_STONES and owner:
            return (Native(name),)
        if name.startswith("O_") and owner == "os":
            return (getattr(os, name, 0),)
        return self.import_module(full) if owner.partition(".")[0] in self.modules else (Native(full),)

    def _of_instance(self, item: Instance, name: str) -> Value:
        if name in item.attributes:
            return item.attributes[name]
        found = item.kind.find(name) if item.kind else None
        if found is None and name == "start" and item.kind and item.kind.find("run"):
            # A thread.
            return self._of_instance(item, "run")
        if found is None:
            return (item.kind,) if name == "__class__" and item.kind else (Method(UNKNOWN, name),)
        return self._bound(found, item, item.kind)

    def _bound(self, value: Value, owner: object, kind: object) -> Value:
        made: list[Value] = []
        for item in value:
            if not isinstance(item, Function) or "staticmethod" in item.kinds or item.receiver is not None:
                made.append((item,))
            elif "classmethod" in item.kinds:
                made.append((item.bind(kind),))
            elif isinstance(owner, Class):
                made.append((item,))
            elif not item.kinds.isdisjoint(("property", "cached_property")):
                made.append(self.call((item.bind(owner),), Call([])))
            else:
                made.append((item.bind(owner),))
        return union(*made)

    def entries(self, value: Value) -> tuple[list[Value], Value]:
        if len(value) != 1:
            found = [self.entries((item,)) for item in value]
            return [], union(*(union(*items, rest) for items, rest in found), ())
        item = value[0]
        if isinstance(item, Seq):
            return item.items, item.rest
        if isinstance(item, Map):
            return [(key,) for key in item.items], ANY if item.rest else ()
        if isinstance(item, Class):
            # An enumeration.
            return [value for name, value in item.variables.items() if not name.startswith("__")], ()
        if isinstance(item, Opened):
            return self.entries(lines_of(self, item))
        if isinstance(item, str) and is_known(item):
            return ([(letter,) for letter in item], ()) if len(item) <= 256 else ([], ANY)
        return [], (blur((item,)),)

    def _subscript(self, node: "_ast.Subscript") -> Value:
        owner = self.evaluate(node.value)
        if isinstance(node.slice, _ast.Slice):
            bounds = [self.evaluate(bound) for bound in (node.slice.lower, node.slice.upper, node.slice.step)]
            return (
                union(*(self._slice(item, picked) for item in owner for picked in combinations(bounds, 4)), ()) or ANY
            )
        index = self.evaluate(node.slice)
        return union(*(self._entry(item, place) for item in owner for place in index), ()) or ANY

    def _entry(self, item: object, place: object) -> Value:
        if isinstance(item, Seq):
            return item.at(place)
        if isinstance(item, Map):
            return item.at(place) if is_plain(place) or isinstance(place, str) else item.at(UNKNOWN)
        if isinstance(item, str) and is_known(item) and isinstance(place, int):
            return (item[place],) if -len(item) <= place < len(item) else ANY
        if isinstance(item, (Native, Module)) and isinstance(place, str) and is_known(place):
            special = {"sys.modules": (Native(place),), "plumbum.local": (Native(f"sh.{place}"),)}
            return special.get(getattr(item, "name", "")) or self._attribute(item, place)
        return (blur((item,)),)

    def _slice(self, item: object, bounds: list[object]) -> Value:
        cut = slice_of(bounds)
        if isinstance(item, str):
            return ANY if cut is None else cut_text(item, cut)
        if not isinstance(item, Seq) or cut is None:
            return (blur((item,)),)
        if not item.rest or (item.items and not cut.stop and cut.step in (None, 1)):
            return (Seq(item.items[cut], item.rest, self.level),)
        return (Seq(rest=item.all()),)

    # Expressions.

    def _constant(self, node: "_ast.Constant") -> Value:
        value = node.value
        if isinstance(value, str):
            for mark, word in MARK_WORDS.items():
                if word in value:
                    return (clean(value).replace(word, mark),)
            return (value if value.isascii() else clean(value),)
        return (value,) if value is None or isinstance(value, bool) else lift(value)

    def _name(self, node: "_ast.Name") -> Value:
        return self._look_up(node.id)

    def _get_attribute(self, node: "_ast.Attribute") -> Value:
        return self.attribute(self.evaluate(node.value), node.attr)

    def _call_node(self, node: "_ast.Call") -> Value:
        function = self.evaluate(node.func)
        args, rest = self._spread(node.args)
        call = Call(args, {}, rest)
        for keyword in node.keywords:
            value = self.evaluate(keyword.value)
            if keyword.arg is not None:
                call.keywords[keyword.arg] = value
            for item in value if keyword.arg is None else ():
                if isinstance(item, Map):
                    call.keywords.update({text(key): entry for key, entry in item.items.items()})
        return self.call(function, call)

    def _spread(self, nodes: "list[_ast.expr]") -> tuple[list[Value], Value]:
        """The values of expressions in a row, those with a star spread out."""
        made: list[Value] = []
        rest: Value = ()
        for node in nodes:
            if not isinstance(node, _ast.Starred):
                value = self.evaluate(node)
                if rest:
                    rest = union(rest, value)
                else:
                    made.append(value)
                continue
            items, more = self.entries(self.evaluate(node.value))
            if rest:
                rest = union(rest, *items, more)
            else:
                made.extend(items)
                rest = more
        return made, rest

    def _sequence(self, node: "_ast.List | _ast.Tuple | _ast.Set") -> Value:
        items, rest = self._spread(node.elts)
        return (Seq(items, rest, self.level),)

    def _dict(self, node: "_ast.Dict") -> Value:
        made = Map(level=self.level)
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self.evaluate(value_node)
            if key_node is None:
                call_method(self, made, "update", Call([value]))
                continue
            key = self.evaluate(key_node)
            for item in key:
                made.put(item if is_plain(item) else UNKNOWN, value, self.level)
        return (made,)

    def _lambda(self, node: "_ast.Lambda") -> Value:
        return (self._function(node),)

    def _joined_text(self, node: "_ast.JoinedStr") -> Value:
        return concatenate([self.evaluate(part) for part in node.values])

    def _formatted(self, node: "_ast.FormattedValue") -> Value:
        value = self.evaluate(node.value)
        spec = texts(self.evaluate(node.format_spec))[0] if node.format_spec else ""
        if node.conversion == ord("r"):
            value = tuple(repr(item) if is_plain(item) else item for item in value)
        return tuple(format_item(item, spec) for item in value)

    def _conditional(self, node: "_ast.IfExp") -> Value:
        truth = is_true(self.evaluate(node.test))
        if truth is not None:
            return self.evaluate(node.body if truth else node.orelse)
        before = dict(self.frame.variables)
        self.level += 1
        value = self.evaluate(node.body) if narrow(self, node.test, True) else ()
        self.frame.variables = dict(before)
        other = self.evaluate(node.orelse) if narrow(self, node.test, False) else ()
        self.frame.variables = before
        self.level -= 1
        return union(value, other) or ANY

    def _boolean(self, node: "_ast.BoolOp") -> Value:
        made: list[Value] = []
        stops = isinstance(node.op, _ast.Or)
        before, level = dict(self.frame.variables), self.level
        for index, part in enumerate(node.values):
            value = self.evaluate(part)
            truth = is_true(value)
            if truth is stops or index == len(node.values) - 1:
                made.append(value)
                break
            if truth is None:
                made.append(value)
                self.level += 1
                if not narrow(self, part, not stops):
                    break
        self.frame.variables, self.level = {**self.frame.variables, **before}, level
        return union(*made)

    def _not(self, node: "_ast.UnaryOp") -> Value:
        value = self.evaluate(node.operand)
        if isinstance(node.op, _ast.Not):
            truth = is_true(value)
            return ANY if truth is None else (not truth,)
        if isinstance(node.op, _ast.USub):
            return tuple(-item if isinstance(item, (int, float)) else blur((item,)) for item in value)
        return value

    def _compare(self, node: "_ast.Compare") -> Value:
        left, right = self.evaluate(node.left), self.evaluate(node.comparators[0])
        test = COMPARISONS.get(node.ops[0].__class__)
        if test is None or len(node.ops) > 1:
            return ANY
        found: list[object] = []
        for one, other in combinations([left, right]):
            known = known_entries(other)
            if not is_plain(one) or known is None:
                return ANY
            try:
                found.append(test(one, known[0]))
            except FAILURES:
                return ANY
        return union(tuple(found), ())

    def _binary(self, node: "_ast.BinOp") -> Value:
        return self._operate(node.op, self.evaluate(node.left), self.evaluate(node.right))

    def _operate(self, operator: "_ast.operator", left: Value, right: Value) -> Value:
        if isinstance(operator, _ast.Mod) and any(isinstance(item, str) for item in left):
            return union(*(fill_percent(item, right) for item in left if isinstance(item, str)))
        made: list[Value] = []
        for one, other in combinations([left, right], 64):
            made.append(self._operate_one(operator, one, other))
        return union(*made)

    def _operate_one(self, operator: "_ast.operator", one: object, other: object) -> Value:
        name = operator.__class__.__name__
        if isinstance(one, Map):
            made = copied((one,), self.level)
            if name == "BitOr":
                call_method(self, made[0], "update", Call([(other,)]))
            return made
        if isinstance(one, Seq):
            method = {"Add": "union", "BitOr": "union", "Sub": "difference"}.get(name)
            return call_method(self, one, method, Call([(other,)])) if method else (one,)
        if isinstance(one, (int, float)) and isinstance(other, (int, float)):
            return calculate(name, one, other)
        if isinstance(one, NUMBERS) and isinstance(other, NUMBERS):
            return NUMBER
        if name == "Div" and (isinstance(one, (str, Method)) or isinstance(other, str)):
            return (below(text(one), text(other)),)
        if name == "Add" and isinstance(one, (str, Method)) and not isinstance(other, (int, float)):
            return concatenate([(one,), (other,)])
        if name == "Mult" and isinstance(one, str) and isinstance(other, int) and len(one) * other <= MOST_TEXT:
            return (one * other,)
        return (blur((one,), (other,)),)

    def _walrus(self, node: "_ast.NamedExpr") -> Value:
        value = self.evaluate(node.value)
        self._bind(node.target, value)
        return value

    def _inner(self, node: "_ast.Await | _ast.Starred") -> Value:
        return self.evaluate(node.value)

    def _yield(self, node: "_ast.Yield") -> Value:
        self.frame.yields.append(self.evaluate(node.value))
        return ANY

    def _yield_from(self, node: "_ast.YieldFrom") -> Value:
        items, rest = self.entries(self.evaluate(node.value))
        self.frame.yields.append(union(*items, rest) or ANY)
        return ANY

    def _comprehension(self, node: "_ast.ListComp | _ast.SetComp | _ast.GeneratorExp | _ast.DictComp") -> Value:
        before = dict(self.frame.variables)
        made: Seq | Map = Map(level=self.level) if isinstance(node, _ast.DictComp) else Seq(level=self.level)
        self._comprehend(node, node.generators, made)
        self.frame.variables = {**self.frame.variables, **before}
        return (made,)

    def _comprehend(self, node: "Any", generators: "list[_ast.comprehension]", made: "Seq | Map") -> None:
        if not generators:
            self._add_entry(node, made)
            return
        first, *others = generators
        items, rest = self.entries(self.evaluate(first.iter))
        if len(items) * self.turns > MOST_TURNS:
            items, rest = [], union(*items, rest)
        turns, self.turns = self.turns, self.turns * max(1, len(items))
        for item in [*items, *([rest] if rest else [])]:
            self.scene.step()
            level = self.level
            self.level += item is rest
            self._bind(first.target, item)
            if self._passes(first.ifs):
                self._comprehend(node, others, made)
            self.level = level
        self.turns = turns

    def _passes(self, tests: "list[_ast.expr]") -> bool:
        for test in tests:
            truth = is_true(self.evaluate(test))
            if truth is False:
                return False
            if truth is None:
                self.level += 1
                if not narrow(self, test, True):
                    return False
        return True

    def _add_entry(self, node: "Any", made: "Seq | Map") -> None:
        if isinstance(made, Map):
            value = self.evaluate(node.value)
            for key in self.evaluate(node.key):
                made.put(key if is_plain(key) else UNKNOWN, value, self.level)
        else:
            call_method(self, made, "append", Call([self.evaluate(node.elt)]))


def slice_of(bounds: list[object]) -> "slice[int | None, int | None, int | None] | None":
    known = [bound for bound in bounds if bound is None or isinstance(bound, int)]
    return slice(*known) if len(known) == 3 and known[2] != 0 else None


def known_entries(item: object) -> "tuple[Any] | None":
    """A number, a text or the entries of a list, as they are compared; None if they are not known."""
    entries: list[object]
    if isinstance(item, Seq) and not item.rest and all(len(entry) == 1 for entry in item.items):
        entries = [entry[0] for entry in item.items]
    elif isinstance(item, Map) and not item.rest:
        entries = list(item.items)
    else:
        return (item,) if is_plain(item) else None
    return (entries,) if all(is_plain(entry) for entry in entries) else None


def calculate(name: str, one: "int | float", other: "int | float") -> Value:
    """Arithmetic on numbers that stay small."""
    rule = ARITHMETIC.get(name)
    if rule is None or any(isinstance(number, int) and number.bit_length() > MOST_BITS for number in (one, other)):
        return NUMBER
    try:
        return lift(rule(one, other))
    except FAILURES:
        return NUMBER


ARITHMETIC: "dict[str, Callable[[Any, Any], object]]" = {
    "Add": lambda one, other: one + other,
    "Sub": lambda one, other: one - other,
    "Mult": lambda one, other: one * other,
    "Div": lambda one, other: one / other,
    "FloorDiv": lambda one, other: one // other,
    "Mod": lambda one, other: one % other,
    "BitOr": lambda one, other: one | other,
    "BitAnd": lambda one, other: one & other,
    "BitXor": lambda one, other: one ^ other,
}
COMPARISONS: "dict[type, Callable[[Any, Any], bool]]" = {
    _ast.Eq: lambda one, other: bool(one == other),
    _ast.NotEq: lambda one, other: bool(one != other),
    _ast.Is: lambda one, other: bool(one == other),
    _ast.IsNot: lambda one, other: bool(one != other),
    _ast.Lt: lambda one, other: bool(one < other),
    _ast.LtE: lambda one, other: bool(one <= other),
    _ast.Gt: lambda one, other: bool(one > other),
    _ast.GtE: lambda one, other: bool(one >= other),
    _ast.In: lambda one, other: one in other,
    _ast.NotIn: lambda one, other: one not in other,
}
EXPRESSIONS: "dict[type, Callable[[Expressions, Any], Value]]" = {
    _ast.Attribute: Expressions._get_attribute,
    _ast.Await: Expressions._inner,
    _ast.BinOp: Expressions._binary,
    _ast.BoolOp: Expressions._boolean,
    _ast.Call: Expressions._call_node,
    _ast.Compare: Expressions._compare,
    _ast.Constant: Expressions._constant,
    _ast.Dict: Expressions._dict,
    _ast.DictComp: Expressions._comprehension,
    _ast.FormattedValue: Expressions._formatted,
    _ast.GeneratorExp: Expressions._comprehension,
    _ast.IfExp: Expressions._conditional,
    _ast.JoinedStr: Expressions._joined_text,
    _ast.Lambda: Expressions._lambda,
    _ast.List: Expressions._sequence,
    _ast.ListComp: Expressions._comprehension,
    _ast.Name: Expressions._name,
    _ast.NamedExpr: Expressions._walrus,
    _ast.Set: Expressions._sequence,
    _ast.SetComp: Expressions._comprehension,
    _ast.Starred: Expressions._inner,
    _ast.Subscript: Expressions._subscript,
    _ast.Tuple: Expressions._sequence,
    _ast.UnaryOp: Expressions._not,
    _ast.Yield: Expressions._yield,
    _ast.YieldFrom: Expressions._yield_from,
}
