"""What the words of a shell command expand to, as far as that is known beforehand."""

import re
from collections.abc import Iterable

from guardrails.guard.patterns import STAR, TAINT, UNKNOWN, clean, from_glob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from guardrails.guard.shell import Shell

# Node: what shfmt prints, a dict a node.
Node = dict[str, "Any"]
# One field while it is made: pieces of text, each with whether it was quoted.
Pieces = list[tuple[str, bool]]

MOST_ALTERNATIVES = 12
MOST_BRACES = 128
ANSI_C = re.compile(r"\\(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|U[0-9a-fA-F]{1,8}|[0-7]{1,3}|c.|.)", re.DOTALL)
ANSI_C_CHARACTERS = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "a": "\a",
    "b": "\b",
    "e": "\x1b",
    "E": "\x1b",
    "f": "\f",
    "v": "\v",
}
BRACES = re.compile(r"(?<!\\)(?<!\$)\{([^{}]*)\}")
RANGE = re.compile(r"(-?\d+|[a-zA-Z])\.\.(-?\d+|[a-zA-Z])(?:\.\.(-?\d+))?")
# Stand for parts of a word while its braces are expanded.
PLACEHOLDERS = range(0xF000, 0xF800)
HOME_NAMES = re.compile(r"~(\+|[\w.-]*)(?=/|$)")


def expand_words(shell: "Shell", words: Iterable[Node]) -> list[list[str]]:
    """All argument lists that the words may become, with splitting and wildcards; at most a few."""
    lists: list[list[str]] = [[]]
    for word in words:
        alternatives = expand_word(shell, word)
        if len(alternatives) == 1:
            for fields in lists:
                fields.extend(alternatives[0])
        else:
            lists = [[*fields, *more] for fields in lists for more in alternatives][:MOST_ALTERNATIVES]
    return lists


def expand_word(shell: "Shell", word: Node) -> list[list[str]]:
    """Every alternative of one word, each a list of fields."""
    parts = word.get("Parts", [])
    if len(parts) == 1 and parts[0]["Type"] == "Lit" and PLAIN.fullmatch(parts[0]["Value"]):
        return [[parts[0]["Value"]]]
    if not any(part["Type"] == "Lit" and "{" in part["Value"] for part in parts):
        return _expand_parts(shell, parts)
    lists: list[list[str]] = [[]]
    for braced in _expand_braces(parts):
        lists = [[*fields, *more] for fields in lists for more in _expand_parts(shell, braced)][:MOST_ALTERNATIVES]
    return lists


PLAIN = re.compile(r"[A-Za-z0-9_./:=@%+,-]+")


def _expand_parts(shell: "Shell", parts: list[Node]) -> list[list[str]]:
    separators = shell.variables.get("IFS", [" \t\n"])[0]
    return [list(_split(pieces, separators)) for pieces in _pieces_of(shell, parts, quoted=False)]


def expand_text(shell: "Shell", word: Node | None) -> list[str]:
    """Every text that a word may be without splitting, as after ``<<<``, in an assignment or as a pattern."""
    if word is None:
        return [""]
    texts = ["".join(text for text, _ in pieces) for pieces in _pieces_of(shell, word.get("Parts", []), quoted=False)]
    return list(dict.fromkeys(texts))


def first_text(shell: "Shell", word: Node | None) -> str:
    return expand_text(shell, word)[0]


def expand_heredoc(shell: "Shell", redirect: Node) -> str:
    """The text of a here document, expanded unless its delimiter was quoted."""
    parts = redirect.get("Hdoc", {}).get("Parts", [])
    is_raw = any(part["Type"] != "Lit" or "\\" in part["Value"] for part in redirect["Word"]["Parts"])
    if is_raw:
        text = "".join(clean(part.get("Value", "")) for part in parts)
    else:
        text = "".join(text for text, _ in _pieces_of(shell, parts, quoted=True)[0])
    if redirect["Op"] == "<<-":
        text = re.sub(r"^\t+", "", text, flags=re.MULTILINE)
    return text


def _pieces_of(shell: "Shell", parts: list[Node], *, quoted: bool) -> list[Pieces]:
    results: list[Pieces] = [[]]
    for index, part in enumerate(parts):
        alternatives = _pieces_of_part(shell, part, quoted=quoted, is_first=index == 0)
        if len(alternatives) == 1:
            for pieces in results:
                pieces.extend(alternatives[0])
        else:
            results = [[*pieces, *more] for pieces in results for more in alternatives][:MOST_ALTERNATIVES]
    return results


def _pieces_of_part(shell: "Shell", part: Node, *, quoted: bool, is_first: bool) -> list[Pieces]:
    kind = part["Type"]
    if kind == "Lit":
        return [_unescape(shell, clean(part["Value"]), quoted=quoted, is_first=is_first)]
    if kind == "SglQuoted":
        text = clean(part.get("Value", ""))
        return [[(decode_ansi_c(text) if part.get("Dollar") else text, True)]]
    if kind == "DblQuoted":
        inner = _pieces_of(shell, part.get("Parts", []), quoted=True)
        return [[*pieces, ("", True)] for pieces in inner]
    if kind == "ParamExp":
        from guardrails.guard.parameters import expand_parameter

        return [
            [(text, quoted or is_list)] if not is_list else _as_fields(text)
            for text, is_list in expand_parameter(shell, part, quoted)
        ]
    if kind == "CmdSubst":
        return [[(shell.substitute(part.get("Stmts", [])), quoted)]]
    if kind == "ProcSubst":
        return [[(shell.substitute_process(part), True)]]
    if kind == "ArithmExp":
        from guardrails.guard.parameters import evaluate

        value = evaluate(shell, part.get("X"))
        return [[(STAR if value is None else str(value), True)]]
    if kind == "ExtGlob":
        return [[(STAR, True)]]
    if kind == "BraceExp":
        return [[(STAR, True)]]
    return [[(UNKNOWN, quoted)]]


FIELD_END = "\x1f"


def _as_fields(text: str) -> Pieces:
    """``"$@"`` and the like: each element a field of its own."""
    pieces: Pieces = []
    for index, element in enumerate(text.split(FIELD_END)):
        if index:
            pieces.append((FIELD_END, False))
        pieces.append((element, True))
    return pieces


def _unescape(shell: "Shell", text: str, *, quoted: bool, is_first: bool) -> Pieces:
    if quoted:
        return [(re.sub(r"\\([$`\"\\])", r"\1", text.replace("\\\n", "")), True)]
    text = text.replace("\\\n", "")
    pieces: Pieces = []
    if is_first and text.startswith("~"):
        home = _home(shell, text)
        if home is not None:
            match = HOME_NAMES.match(text)
            assert match is not None
            pieces.append((home, True))
            text = text[match.end() :]
    if "\\" not in text:
        return [*pieces, (_mark_wildcards(text), True)]
    for chunk in re.split(r"(\\.)", text, flags=re.DOTALL):
        if chunk.startswith("\\") and len(chunk) == 2:
            pieces.append((chunk[1], True))
        elif chunk:
            pieces.append((_mark_wildcards(chunk), True))
    return pieces


def _mark_wildcards(text: str) -> str:
    return from_glob(text).replace("\ue004", STAR) if any(mark in text for mark in "*?[") else text


def _home(shell: "Shell", text: str) -> str | None:
    match = HOME_NAMES.match(text)
    if match is None:
        return None
    if match[1] == "+":
        return shell.scene.cwd
    if match[1]:
        import pwd

        try:
            return pwd.getpwnam(match[1]).pw_dir
        except KeyError:
            return None
    return shell.value_of("HOME") or None


def _split(pieces: Pieces, separators: str) -> Iterable[str]:
    """Fields of one word: unquoted expansions split at blanks, and their wildcards count."""
    current: list[str] = []
    is_there = False
    for text, quoted in pieces:
        if quoted:
            current.append(text)
            is_there = True
            continue
        if text == FIELD_END:
            if is_there:
                yield "".join(current)
            current, is_there = [], False
            continue
        chunks = re.split(f"[{re.escape(separators)}]+", text) if separators else [text]
        for index, chunk in enumerate(chunks):
            if index:
                if is_there:
                    yield "".join(current)
                current, is_there = [], False
            if chunk:
                current.append(_mark_wildcards(chunk))
                is_there = True
    if is_there:
        yield "".join(current)


def _expand_braces(parts: list[Node]) -> list[list[Node]]:
    """The words that ``a{b,c}{1..3}`` stands for, each as parts."""
    kept: list[Node] = []
    text = ""
    for part in parts:
        if part["Type"] == "Lit":
            text += part["Value"]
        else:
            text += chr(PLACEHOLDERS[len(kept) % len(PLACEHOLDERS)])
            kept.append(part)
    return [_parts_from(word, kept) for word in expand_brace_text(text)]


def expand_brace_text(text: str) -> list[str]:
    """The words that a text with braces stands for; at most ``MOST_BRACES``, of which the rest are unknown."""
    done: list[str] = []
    todo = [text]
    while todo and len(done) + len(todo) < MOST_BRACES:
        word = todo.pop(0)
        # Innermost first; what has neither a comma nor a range is no brace expansion.
        match = next((m for m in BRACES.finditer(word) if "," in m[1] or RANGE.fullmatch(m[1])), None)
        if match is None:
            done.append(word)
            continue
        todo = [word[: match.start()] + item + word[match.end() :] for item in _items(match[1])] + todo
    return done if not todo else [*done, *(BRACES.sub(STAR, word) for word in todo)]


def _items(inner: str) -> list[str]:
    bounds = RANGE.fullmatch(inner)
    if bounds is None:
        return inner.split(",")
    first, last, step = bounds.groups()
    if first.lstrip("-").isdigit() and last.lstrip("-").isdigit():
        start, stop, by = int(first), int(last), abs(int(step or 1)) or 1
        if abs(stop - start) // by > MOST_BRACES:
            return [STAR]
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        return [
            str(n).zfill(width) for n in range(start, stop + (1 if stop >= start else -1), by if stop >= start else -by)
        ]
    if len(first) == len(last) == 1:
        low, high = sorted((ord(first), ord(last)))
        return [chr(code) for code in range(low, high + 1)]
    return [STAR]


def _parts_from(text: str, kept: list[Node]) -> list[Node]:
    parts: list[Node] = []
    for chunk in re.split("([\uf000-\uf7ff])", text):
        if len(chunk) == 1 and ord(chunk) in PLACEHOLDERS:
            parts.append(kept[ord(chunk) - PLACEHOLDERS[0]])
        elif chunk:
            parts.append({"Type": "Lit", "Value": chunk})
    return parts


def decode_ansi_c(text: str) -> str:
    """The text of ``$'…'``, or of a format of ``printf`` and ``echo -e``."""

    def decode(match: "re.Match[str]") -> str:
        code = match[1]
        if code[0] in "xuU" and len(code) > 1:
            number = int(code[1:], 16)
            return chr(number) if number < 0x110000 else ""
        if code[0] in "01234567":
            return chr(int(code, 8) & 0xFF)
        if code[0] == "c" and len(code) == 2:
            return chr(ord(code[1]) & 0x1F)
        return ANSI_C_CHARACTERS.get(code, code if code in "\\'\"?" else "\\" + code)

    return clean(ANSI_C.sub(decode, text))


def without_unknown(value: str) -> str:
    return value.replace(UNKNOWN, "").replace(TAINT, "")
