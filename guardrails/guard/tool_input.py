"""The inputs of tools: what in them may be a path, what is content, what is a command."""

import re
from collections.abc import Iterator

MOST_PATH = 4096
# Keys whose texts are no paths, however they look.
CONTENT_KEY = re.compile(
    r"(?:file_?|new_?|old_?|insert_?)?(?:contents?|text|str|string)|(?:new|cell)_?source|code_?edit|code|body|data|edits"
    r"|description|prompt|reason|explanation|query|pattern|regexp?|instructions?|message|title|language|encoding|mode",
    re.IGNORECASE,
)


def paths_in(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a tool's input that may be a path, with its key; lists and objects are looked through."""
    if isinstance(value, str):
        if value.strip() and len(value) <= MOST_PATH and "\n" not in value and "\0" not in value:
            yield key, value
    elif isinstance(value, list):
        for child in value:
            yield from paths_in(child, key)
    elif isinstance(value, dict):
        for name, child in value.items():
            if not CONTENT_KEY.fullmatch(str(name)):
                yield from paths_in(child, str(name))


def command_of(value: object) -> str:
    """A command line, given as one or as a list of arguments; empty for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(argument, str) for argument in value):
        return " ".join(quote(argument) for argument in value)
    return ""


def quote(argument: str) -> str:
    """An argument as a shell takes it for one word."""
    if argument and re.fullmatch(r"[A-Za-z0-9_./:=@%+,-]+", argument):
        return argument
    return "'" + argument.replace("'", "'\\''") + "'"
