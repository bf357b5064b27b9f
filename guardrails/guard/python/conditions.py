"""What a condition of Python code tells about a variable where it holds, and where it does not."""

import _ast
import re

from guardrails.guard.patterns import DEEP, is_known
from guardrails.guard.python.text import (
    below,
    fits,
    glob_marks,
    last_name,
    narrow_name,
    narrow_text,
    parent_of,
    suffix_of,
)
from guardrails.guard.python.values import Made, Seq, Value, is_plain, text, texts, union
from guardrails.guard.python.world import World

Origin = tuple[str, _ast.expr, dict[str, Value], Value]
# Methods that leave a name what it is, as far as conditions go.
SOFT = frozenset("lower casefold strip as_posix __str__ resolve absolute".split())
REMADE = (_ast.Attribute, _ast.BinOp, _ast.Call, _ast.Constant, _ast.FormattedValue, _ast.JoinedStr, _ast.Subscript)
REMAKING = frozenset(
    "join joinpath Path str fspath abspath realpath basename dirname splitext with_suffix with_name match".split()
)
REMAKING |= SOFT
PARTS = frozenset("name suffix stem parts".split())


def narrow(world: World, test: "_ast.expr", truth: bool) -> bool:
    """Leave variables what they can be where a condition is ``truth``; False if that cannot be."""
    if isinstance(test, _ast.UnaryOp) and isinstance(test.op, _ast.Not):
        return narrow(world, test.operand, not truth)
    if isinstance(test, _ast.BoolOp):
        if isinstance(test.op, _ast.And) is truth:
            reached = [narrow(world, value, truth) for value in test.values]
            return all(reached)
        return _narrow_either(world, test.values, truth)
    if isinstance(test, _ast.Compare) and len(test.ops) == 1:
        return _narrow_comparison(world, test, truth)
    if isinstance(test, _ast.Call):
        return _narrow_call(world, test, truth)
    if isinstance(test, _ast.NamedExpr):
        return narrow(world, test.value, truth)
    if isinstance(test, _ast.Name):
        made = [origin for origin in world.frame.origins if origin[0] == test.id]
        if made and _is_valid(made[-1], world.frame.variables):
            return narrow(world, made[-1][1], truth)
    return True


def _narrow_either(world: World, tests: "list[_ast.expr]", truth: bool) -> bool:
    """One of the conditions is ``truth``, nobody knows which."""
    before = dict(world.frame.variables)
    reached: list[dict[str, Value]] = []
    for test in tests:
        world.frame.variables = dict(before)
        if narrow(world, test, truth):
            reached.append(world.frame.variables)
    world.frame.variables = before
    for name in before if reached else ():
        before[name] = union(*(variables[name] for variables in reached if name in variables))
    return bool(reached)


def _narrow_comparison(world: World, test: "_ast.Compare", truth: bool) -> bool:
    left, operator, right = test.left, test.ops[0], test.comparators[0]
    truth = truth is not isinstance(operator, (_ast.NotEq, _ast.NotIn))
    if isinstance(operator, (_ast.Eq, _ast.NotEq)):
        if _subject(left) is None:
            left, right = right, left
        return _keep(world, left, "is", world.evaluate(right) if _subject(left) else (), truth)
    if isinstance(operator, (_ast.In, _ast.NotIn)):
        if isinstance(left, _ast.Constant):
            return _keep(world, right, "has", world.evaluate(left), truth)
        if _subject(left):
            wanted = [item.all() for item in world.evaluate(right) if isinstance(item, Seq) and not item.rest]
            return _keep(world, left, "is", union(*wanted, ()), truth)
    return True


def _narrow_call(world: World, test: "_ast.Call", truth: bool) -> bool:
    function = test.func
    if not isinstance(function, _ast.Attribute) or not test.args:
        return True
    if function.attr in ("startswith", "endswith", "is_relative_to") and _subject(function.value):
        wanted = world.evaluate(test.args[0])
        wanted = union(*(item.all() if isinstance(item, Seq) else (item,) for item in wanted))
        return _keep(world, function.value, "ends" if function.attr == "endswith" else "starts", wanted, truth)
    if function.attr in ("match", "fullmatch") and truth and _subject(test.args[-1]):
        return _narrow_match(world, test, function)
    if function.attr in ("fnmatch", "fnmatchcase") and len(test.args) == 2 and _subject(test.args[0]):
        return _keep(world, test.args[0], "globs", world.evaluate(test.args[1]), truth)
    return True


def _narrow_match(world: World, test: "_ast.Call", function: "_ast.Attribute") -> bool:
    """``re.match``: what the pattern begins with, where that is plain text."""
    pattern = world.evaluate(test.args[0])
    if len(test.args) == 1:
        pattern = union(*(item.value for item in world.evaluate(function.value) if isinstance(item, Made)), ())
    if len(pattern) != 1 or not is_plain(pattern[0]):
        return True
    beginning = re.match(r"\^?((?:[\w -]|\\[^\w])*)(.?)", text(pattern[0]))
    if beginning is None or "|" in text(pattern[0]):
        return True
    known = re.sub(r"\\(.)", r"\1", beginning[1])
    return _keep(world, test.args[-1], "starts", (known[:-1] if beginning[2] in tuple("*?{") else known,), True)


def _subject(node: "_ast.expr") -> tuple[str, str] | None:
    """The variable that an expression is, or of whose text it is a part."""
    if isinstance(node, _ast.Name):
        return node.id, ""
    if isinstance(node, _ast.Attribute) and node.attr in PARTS and (inner := _subject(node.value)):
        return (inner[0], node.attr) if not inner[1] else None
    if isinstance(node, _ast.Subscript) and isinstance(node.value, _ast.Call) and node.value.args:
        is_suffix = isinstance(node.slice, _ast.Constant) and node.slice.value in (1, -1)
        inner = _subject(node.value.args[0])
        return (inner[0], "suffix") if inner and is_suffix and _called(node.value) == "splitext" else None
    if not isinstance(node, _ast.Call):
        return None
    if isinstance(node.func, _ast.Attribute) and node.func.attr in SOFT and not node.args:
        return _subject(node.func.value)
    if len(node.args) == 1 and (inner := _subject(node.args[0])):
        if _called(node) == "basename":
            return inner[0], "name"
        if _called(node) in ("str", "fspath"):
            return inner
    return None


def _called(node: "_ast.Call") -> str:
    return node.func.attr if isinstance(node.func, _ast.Attribute) else getattr(node.func, "id", "")


def _keep(world: World, node: "_ast.expr", how: str, wanted: Value, truth: bool) -> bool:
    subject = _subject(node)
    if subject is None or not wanted or not all(is_plain(item) for item in wanted):
        return True
    name, part = subject
    variables = world.frame.variables
    value = variables.get(name)
    if value is None:
        return True
    kept: list[object] = []
    for item in value:
        if is_plain(item):
            if any(_holds(item, part, how, each) for each in wanted) is truth:
                kept.append(item)
        elif isinstance(item, str) and truth:
            kept.extend(new for each in texts(wanted) for new in _narrow_item(item, part, how, each))
        else:
            kept.append(item)
    valid = [origin for origin in world.frame.origins if _is_valid(origin, variables)]
    variables[name] = union(tuple(kept), ()) or value
    for other, source, names, _ in valid:
        if name in names:
            # What was made of it is made of what is left of it.
            variables[other] = world.evaluate(source)
            remember(world, _ast.Name(id=other), source)
        elif other == name and not part and _subject(source) not in (None, subject):
            _keep(world, source, how, wanted, truth)
    return bool(kept)


def _is_valid(origin: "Origin", variables: dict[str, Value]) -> bool:
    name, _, names, value = origin
    return variables.get(name) is value and all(variables.get(other) is known for other, known in names.items())


def remember(world: World, target: "_ast.expr", source: "_ast.expr") -> None:
    """Keep what a variable was made of, where that can be made again."""
    if isinstance(target, _ast.Tuple) and isinstance(source, _ast.Call) and _called(source) == "splitext":
        target, source = target.elts[-1], _ast.Subscript(value=source, slice=_ast.Constant(value=1))
    if not isinstance(target, _ast.Name) or isinstance(source, (_ast.Constant, _ast.Name)):
        return
    names: set[str] = set()
    if _is_remade(source, names):
        variables = world.frame.variables
        known = {name: variables[name] for name in names if name in variables}
        if known and target.id in variables and target.id not in known:
            world.frame.origins = [*world.frame.origins[-30:], (target.id, source, known, variables[target.id])]


def _is_remade(node: "_ast.AST", names: set[str]) -> bool:
    """Whether evaluating an expression again has no effect; ``names`` takes the variables in it."""
    if isinstance(node, _ast.Name):
        names.add(node.id)
        return True
    if isinstance(node, _ast.Call) and _called(node) not in REMAKING:
        return False
    if not isinstance(node, REMADE):
        return False
    children = [child for field in node._fields for child in _as_list(getattr(node, field, None))]
    return all(_is_remade(child, names) for child in children if isinstance(child, _ast.expr))


def _as_list(child: object) -> list[object]:
    return child if isinstance(child, list) else [child]


def _holds(item: object, part: str, how: str, wanted: object) -> bool:
    if how == "is" and not part:
        return item == wanted
    whole, goal = text(item), text(wanted)
    if part == "parts":
        return goal in whole.split("/")
    shown = {"name": last_name, "suffix": suffix_of, "stem": _stem}.get(part, str)(whole)
    if how == "globs":
        return fits(glob_marks(goal), shown)
    return {"is": shown == goal, "starts": shown.startswith(goal), "ends": shown.endswith(goal), "has": goal in shown}[
        how
    ]


def _stem(path: str) -> str:
    return last_name(path).removesuffix(suffix_of(path))


def _narrow_item(item: str, part: str, how: str, wanted: str) -> list[str]:
    if part == "parts":
        parent, name = parent_of(item), last_name(item)
        return [item] if is_known(item) else [below(parent, wanted), below(parent, wanted, DEEP, name)]
    if part == "suffix" and how == "is":
        return narrow_name(item, "ends", wanted)
    if part == "stem":
        return narrow_name(item, "starts", wanted)
    return narrow_name(item, how, wanted) if part == "name" else narrow_text(item, how, wanted)
