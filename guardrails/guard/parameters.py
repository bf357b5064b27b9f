"""``$x``, ``${x…}`` and ``$((…))``: parameters and arithmetic of the shell."""

import re

from guardrails.guard.patterns import HAS_MARK, STAR, UNKNOWN, from_glob, is_known
from guardrails.guard.words import FIELD_END, Node, expand_text, first_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell


def expand_parameter(shell: "Shell", part: Node, quoted: bool) -> list[tuple[str, bool]]:
    """What a parameter may stand for; with True, a list of fields between ``FIELD_END``."""
    name = part["Param"]["Value"]
    index = part.get("Index")
    if part.get("Length"):
        return [(str(len(value)) if is_known(value) else STAR, False) for value in _values(shell, name, index)]
    if name in ("@", "*") or (index and _text_of(index) in ("@", "*")):
        elements = shell.elements(name if index else "@")
        if elements is None:
            return [(UNKNOWN, False)]
        if slice_ := part.get("Slice"):
            start = evaluate(shell, slice_.get("Offset")) or 0
            elements = elements[start if index else max(0, start - 1) :]
        elements = [_modify(shell, part, element)[0] for element in elements]
        if not elements:
            return [("", False)]
        if quoted and (name == "@" or (index and _text_of(index) == "@")):
            return [(FIELD_END.join(elements), True)]
        return [(" ".join(elements), False)]
    values = _values(shell, name, index)
    if part.get("Excl"):
        if part.get("Names"):
            return [(STAR, False)]
        values = [value for named in values for value in _values(shell, named, None)]
    return [(text, False) for value in values for text in _modify(shell, part, value)]


def _values(shell: "Shell", name: str, index: Node | None) -> list[str]:
    if index is not None:
        elements = shell.elements(name)
        if elements is None:
            return [UNKNOWN]
        number = evaluate(shell, index)
        if number is None:
            return elements or [UNKNOWN]
        return [elements[number]] if -len(elements) <= number < len(elements) else [""]
    return shell.values_of(name)


def _modify(shell: "Shell", part: Node, value: str) -> list[str]:
    """The value after ``:-``, ``%``, ``/``, slices and the like."""
    if slice_ := part.get("Slice"):
        return [_slice(shell, slice_, value)] if part["Param"]["Value"] not in ("@", "*") else [value]
    if repl := part.get("Repl"):
        return [_replace(shell, repl, value)]
    if expansion := part.get("Exp"):
        return _expand_operator(shell, part, expansion, value)
    return [value]


def _slice(shell: "Shell", slice_: Node, value: str) -> str:
    if not is_known(value):
        return UNKNOWN
    start, length = evaluate(shell, slice_.get("Offset")), evaluate(shell, slice_.get("Length"))
    if start is None or (slice_.get("Length") and length is None):
        return UNKNOWN
    value = value[start if start >= 0 else max(0, len(value) + start) :]
    return value if length is None else value[:length]


def _replace(shell: "Shell", repl: Node, value: str) -> str:
    if not is_known(value):
        return value
    old, new = first_text(shell, repl.get("Orig")), first_text(shell, repl.get("With"))
    anchor = ""
    if old[:1] in "#%" and old and not repl.get("All"):
        anchor, old = old[0], old[1:]
    if not old:
        return value
    pattern = glob_to_regex(old)
    if anchor == "#":
        pattern = "^" + pattern
    elif anchor == "%":
        pattern += "$"
    return re.sub(pattern, lambda _: new, value, count=0 if repl.get("All") else 1, flags=re.DOTALL)


def _expand_operator(shell: "Shell", part: Node, expansion: Node, value: str) -> list[str]:
    operator = expansion.get("Op", "")
    name = part["Param"]["Value"]
    is_unset = value in ("", UNKNOWN) and not shell.is_set(name)
    if operator in (":-", "-", ":=", "="):
        fallback = expand_text(shell, expansion.get("Word"))
        if is_unset or (value == "" and operator.startswith(":")):
            if "=" in operator:
                shell.assign(name, fallback)
            return fallback if value == "" and not shell.is_from_outside(name) else [*fallback]
        return [value]
    if operator in (":+", "+"):
        return [""] if is_unset else expand_text(shell, expansion.get("Word"))
    if operator in (":?", "?"):
        return [value]
    if operator in ("%", "%%", "#", "##"):
        return [_trim(value, operator, first_text(shell, expansion.get("Word")))]
    if operator in ("^", "^^", ",", ",,"):
        changed = value.upper() if "^" in operator else value.lower()
        return [changed if len(operator) == 2 else changed[:1] + value[1:]]
    return [value]


def _trim(value: str, operator: str, pattern: str) -> str:
    if not is_known(value) and operator in ("#", "##"):
        return UNKNOWN
    if not is_known(value):
        # ${x%/*} of a partly known path: its folder.
        match = HAS_MARK.search(value)
        assert match is not None
        return value if pattern.startswith(".") else value[: match.start()].rstrip("/") or UNKNOWN
    regex = glob_to_regex(pattern)
    sizes = range(len(value) + 1)
    if operator in ("%", "%%"):
        order = sizes if operator == "%%" else reversed(sizes)
        cut = next((at for at in order if re.fullmatch(regex, value[at:], re.DOTALL)), None)
        return value if cut is None else value[:cut]
    order = sizes if operator == "#" else reversed(sizes)
    cut = next((at for at in order if re.fullmatch(regex, value[:at], re.DOTALL)), None)
    return value if cut is None else value[cut:]


def glob_to_regex(pattern: str) -> str:
    """A shell pattern as a regular expression."""
    regex = ""
    for character in from_glob(pattern):
        if character in "\ue002\ue004":
            regex += ".*"
        elif character == "\ue003":
            regex += "."
        elif HAS_MARK.match(character):
            regex += ".*"
        else:
            regex += re.escape(character)
    return regex


def _text_of(index: Node) -> str:
    return "".join(part.get("Value", "") for part in index.get("Parts", []))


def evaluate(shell: "Shell", node: Node | None) -> int | None:
    """The value of an arithmetic expression; None where it cannot be told."""
    if node is None:
        return None
    kind = node["Type"]
    if kind == "Word":
        text = first_text(shell, node).strip()
        if re.fullmatch(r"[A-Za-z_]\w*", text):
            text = shell.values_of(text)[0]
        try:
            return int(text, 0)
        except ValueError:
            return None
    if kind == "ParenArithm":
        return evaluate(shell, node.get("X"))
    if kind == "UnaryArithm":
        value = evaluate(shell, node.get("X"))
        if value is None or node.get("Op") in ("++", "--"):
            return None
        return {"-": -value, "+": value, "~": ~value, "!": int(not value)}.get(str(node.get("Op")))
    if kind == "BinaryArithm":
        left, right = evaluate(shell, node.get("X")), evaluate(shell, node.get("Y"))
        if left is None or right is None:
            return None
        return _calculate(str(node.get("Op")), left, right)
    return None


def _calculate(operator: str, left: int, right: int) -> int | None:
    if operator in ("/", "%"):
        return None if right == 0 else (left // right if operator == "/" else left % right)
    simple = {"+": left + right, "-": left - right, "*": left * right}
    return simple.get(operator)
