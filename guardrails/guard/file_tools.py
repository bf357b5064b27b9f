"""The tools by which agents write, move and delete files without a shell, and those of MCP servers.

An edit of a file that is judged by what it will hold (``config.json``, an agent's settings) is carried out in memory.
"""

import os
import re
from collections.abc import Callable, Iterator

from guardrails.guard.judge import Content
from guardrails.guard.patterns import clean, from_glob
from guardrails.guard.scene import Scene
from guardrails.guard.tool_input import command_of, paths_in, quote

Input = dict[str, object]

# What a tool does, by a word of its name; of several words the first row counts.
VERBS = {
    "run": "run exec execute shell bash terminal command cmd eval spawn process powershell python jupyter script",
    "delete": "delete remove rm rmdir trash unlink erase purge destroy drop wipe clear clean empty",
    "move": "move rename mv relocate",
    "copy": "copy cp duplicate clone",
    "write": "write edit create append insert replace patch save truncate upload put update modify touch overwrite"
    " apply restore extract unzip untar decompress download export",
}
VERB_OF = {word: verb for verb, words in VERBS.items() for word in words.split()}
# A name that begins so only reads, whatever else is in it, unless it does two things.
READING_WORDS = ("read", "get", "list", "show", "view", "describe", "count", "stat", "fetch", "is", "has")
TWO_THINGS = re.compile(r"(?i)[a-z][_-]and[_-]")
SOURCE_KEY = re.compile(r"(?i)(?:source|src|from|old|input)(?:_?(?:path|file|name|dir|directory|folder|uri|url))?s?")
TARGET_KEY = re.compile(
    r"(?i)(?:destination|dest|dst|to|new|target|output)(?:_?(?:path|file|name|dir|directory|folder|uri|url))?"
)
PATH_KEY = re.compile(
    r"(?i).*(?:path|file|dir|folder|uri|url|notebook|source|src|dest|dst|target|location|root).*|from|to|old|new"
)
CONTENT_KEYS = ("content", "contents", "file_text", "text", "new_content", "file_content", "data")
OLD_KEYS = ("old_string", "old_str", "oldText", "old_text", "oldString", "oldStr", "search")
NEW_KEYS = ("new_string", "new_str", "newText", "new_text", "newString", "newStr", "replace", "replacement")
ALL_KEYS = ("replace_all", "replaceAll", "allow_multiple", "allowMultiple")
COMMAND_KEYS = (
    "command",
    "cmd",
    "commandLine",
    "command_line",
    "shell_command",
    "script",
    "chars",
    "commands",
    "code",
    "input",
)
PATCH_KEYS = ("patch", "input", "command", "patchText", "patch_text", "diff", "content")
DRY_RUN_KEYS = ("dryRun", "dry_run")
# The commands of Anthropic's text editor tool, which is called by several names.
EDITOR_COMMANDS = ("view", "create", "str_replace", "insert", "undo_edit", "delete", "rename")
BEGIN_PATCH = "*** Begin Patch"
HEADER = re.compile(r"\*\*\* (Add|Update|Delete) File: *(.*)")
MOVE_TO = re.compile(r"\*\*\* Move to: *(.*)")


def judge_tool(name: str, tool_input: Input, scene: Scene) -> None:
    """Tell the scene's judge the effects of a tool that is no shell.

    Raises:
        Denied: one of them must not happen.
    """
    if re.search(r"(?i)apply[_-]?patch$", name):
        for key in PATCH_KEYS:
            judge_patch(_patch_in(tool_input.get(key)), scene)
        return
    if any(tool_input.get(key) is True for key in DRY_RUN_KEYS):
        return
    if tool_input.get("command") in EDITOR_COMMANDS and isinstance(tool_input.get("path"), str):
        name = str(tool_input["command"])
        tool_input = {key: value for key, value in tool_input.items() if key != "command"}
    verb = find_verb(name)
    if verb == "run" or (verb is None and ("command" in tool_input or "cmd" in tool_input)):
        _judge_run(name, tool_input, scene)
    elif verb == "delete":
        for _, path in _find_paths(tool_input):
            scene.effect("delete", from_glob(path))
    elif verb in ("move", "copy"):
        _judge_transfer(verb, tool_input, scene)
    elif verb == "write":
        for path, content in _find_writes(tool_input):
            scene.effect("write", path, content=content, recursive=False)


def find_verb(name: str) -> str | None:
    """What a tool does, by its name: ``read``, one of ``VERBS``, or None if nobody can tell."""
    tool = re.split(r"__|:", name)[-1]
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", tool)]
    if words and words[0] in READING_WORDS and not TWO_THINGS.search(tool):
        return "read"
    found = {VERB_OF[word] for word in words if word in VERB_OF}
    return next((verb for verb in VERBS if verb in found), None)


def _judge_run(name: str, tool_input: Input, scene: Scene) -> None:
    from guardrails.guard.shell import judge_command

    is_python = re.search(r"(?i)python|jupyter|notebook|executecode|execute_code", name) is not None
    for key in COMMAND_KEYS:
        text = command_of(tool_input.get(key))
        if not text.strip():
            continue
        if is_python or str(tool_input.get("language", "")).lower().startswith("py"):
            text = f"python3 -c {quote(text)}"
        elif isinstance(arguments := tool_input.get("args", tool_input.get("arguments")), list):
            text = f"{text} {command_of(arguments)}"
        judge_command(text, scene)


def _judge_transfer(verb: str, tool_input: Input, scene: Scene) -> None:
    """A move or copy; what stands under a key that says neither from nor to is taken for both."""
    for key, path in _find_paths(tool_input):
        if verb == "move" and not TARGET_KEY.fullmatch(key):
            scene.effect("move", from_glob(path))
        if not SOURCE_KEY.fullmatch(key):
            scene.effect("write", path, recursive=False)


def _find_paths(tool_input: Input) -> Iterator[tuple[str, str]]:
    """The keys and paths in a tool's input, as local paths; nothing of a repository that lies elsewhere."""
    is_remote = "owner" in tool_input and "repo" in tool_input
    for key, text in paths_in(tool_input):
        path = _local(text.strip())
        if path is not None and (PATH_KEY.fullmatch(key) or "/" in path) and (path.startswith("/") or not is_remote):
            yield key, path


def _local(text: str) -> str | None:
    """A path as the file system knows it; None for the address of something else."""
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+)://", text)
    if scheme is not None:
        if scheme[1].lower() != "file":
            return None
        from urllib.parse import unquote

        text = "/" + unquote(text[scheme.end() :]).partition("/")[2]
    return clean(os.path.expanduser(text))


# Writes


def _find_writes(tool_input: Input) -> Iterator[tuple[str, Content]]:
    """Each path that would be written, with what it will hold."""
    files = tool_input.get("files")
    if isinstance(files, list) and all(isinstance(file, dict) for file in files):
        # Several files in one call, each with its own content.
        for file in files:
            yield from _find_writes(file)
        tool_input = {key: value for key, value in tool_input.items() if key != "files"}
    content = find_content(tool_input)
    for _, path in _find_paths(tool_input):
        yield path, content


def find_content(tool_input: Input) -> Content:
    """What a write or edit makes of a file's text."""
    edits = tool_input.get("edits")
    steps = [edit for edit in edits if isinstance(edit, dict)] if isinstance(edits, list) else [tool_input]
    if any(_first(step, OLD_KEYS) is not None for step in steps):
        return lambda old: _replace_all(old, steps)
    return None if _is_partial(tool_input) else _first(tool_input, CONTENT_KEYS)


def _is_partial(tool_input: Input) -> bool:
    """Whether the content is but a part of what the file will hold."""
    return any(key in tool_input for key in ("offset", "append", "insert_line", "line", "start_line", "position"))


def _replace_all(old: str, steps: list[Input]) -> str | None:
    for step in steps:
        before, after = _first(step, OLD_KEYS), _first(step, NEW_KEYS)
        if before is None or after is None:
            return None
        many = any(step.get(key) is True for key in ALL_KEYS) or step.get("expected_replacements", 1) not in (1, None)
        replaced = _replace(old, before, after, many=many)
        if replaced is None:
            return None
        old = replaced
    return old


def _replace(old: str, before: str, after: str, *, many: bool) -> str | None:
    """One edit; None where it does not fit exactly, for then only the tool knows what it does."""
    if not before:
        return after if not old else None
    count = old.count(before)
    return old.replace(before, after) if count == 1 or (count and many) else None


def _first(tool_input: Input, keys: tuple[str, ...]) -> str | None:
    return next((value for key in keys if isinstance(value := tool_input.get(key), str)), None)


# Patches


def judge_patch(text: str, scene: Scene) -> None:
    """Tell the effects of a patch: of ``apply_patch``, or a unified diff.

    Raises:
        Denied: one of them must not happen.
    """
    lines = text.splitlines()
    if not any(line.strip() == BEGIN_PATCH for line in lines):
        _judge_diff(lines, scene)
        return
    position = 0
    while position < len(lines):
        match = HEADER.match(lines[position].strip())
        position += 1
        if match is None:
            continue
        action, path = match[1], clean(match[2].strip())
        end = position
        # Within an update only a bare line ends it: an indented one is context.
        while end < len(lines) and not HEADER.match(lines[end] if action == "Update" else lines[end].strip()):
            end += 1
        _judge_section(action, path, lines[position:end], scene)
        position = end


def _judge_section(action: str, path: str, body: list[str], scene: Scene) -> None:
    if action == "Delete":
        scene.effect("delete", path)
    elif action == "Add":
        added = "".join(f"{line[1:]}\n" for line in body if line.startswith("+"))
        scene.effect("write", path, content=added, recursive=False)
    else:
        edit = _make_edit(body)
        target = next((match[1].strip() for line in body if (match := MOVE_TO.match(line.strip()))), None)
        if target is None:
            scene.effect("write", path, content=edit, recursive=False)
        else:
            old = scene.read(path)
            scene.effect("move", path)
            scene.effect("write", clean(target), content=None if old is None else edit(old), recursive=False)


def _make_edit(body: list[str]) -> Callable[[str], str | None]:
    """The lines of an update as a function from a file's old text to its new one."""

    def edit(old: str) -> str | None:
        lines, start = old.splitlines(), 0
        for context, before, after in _split_hunks(body):
            if context:
                start = _find_lines(lines, [context], start) + 1
            found = _find_lines(lines, before, start) if before else len(lines)
            if found < 0 or (context and not start):
                return None
            lines[found : found + len(before)] = after
            start = found + len(after)
        return "\n".join(lines) + "\n"

    return edit


def _split_hunks(body: list[str]) -> list[tuple[str, list[str], list[str]]]:
    """For each hunk the line it comes after (or none), the lines it replaces and their replacement."""
    hunks: list[tuple[str, list[str], list[str]]] = []
    for line in body:
        if line.startswith("@@"):
            hunks.append((line[2:].strip(), [], []))
        elif not line.startswith("***"):
            if not hunks:
                hunks.append(("", [], []))
            if line[:1] != "+":
                hunks[-1][1].append(line[1:])
            if line[:1] != "-":
                hunks[-1][2].append(line[1:])
    return [hunk for hunk in hunks if hunk[1] or hunk[2] or hunk[0]]


def _find_lines(lines: list[str], wanted: list[str], start: int) -> int:
    """Where lines stand from ``start`` on, exactly or else but for spaces around them; -1 if nowhere."""
    for strip in (str, str.rstrip, str.strip):
        pattern = [strip(line) for line in wanted]
        for index in range(start, len(lines) - len(wanted) + 1):
            if [strip(line) for line in lines[index : index + len(wanted)]] == pattern:
                return index
    return -1


def _judge_diff(lines: list[str], scene: Scene) -> None:
    """A unified diff: its files are written, or deleted where the new one is ``/dev/null``."""
    old = ""
    for line in lines:
        mark, _, rest = line.partition(" ")
        path = clean(rest.partition("\t")[0].strip().strip('"'))
        if mark == "---":
            old = path
        elif mark == "+++":
            verb = "delete" if path == "/dev/null" else "write"
            for name in _without_prefix(old if verb == "delete" else path):
                scene.effect(verb, name, recursive=False)
        elif line.startswith("rename from "):
            scene.effect("move", clean(line[12:]))
        elif line.startswith("rename to "):
            scene.effect("write", clean(line[10:]), recursive=False)


def _without_prefix(path: str) -> list[str]:
    """A path of a diff, with and without git's ``a/`` or ``b/``."""
    return [path, path[2:]] if path[:2] in ("a/", "b/") else [path]


def _patch_in(value: object) -> str:
    """The text of a patch, given as one, or as a program with its arguments."""
    if isinstance(value, list):
        return "\n".join(text for text in value if isinstance(text, str))
    return value if isinstance(value, str) else ""
