"""Data files, read line by line in bounded memory: every line becomes a row to train on or a bad row with its reason.

Formats: ``{"messages"}``, ShareGPT ``{"conversations"}``, ``{"prompt", "completion"}`` (plain text or
lists of messages), Alpaca ``{"instruction", "input", "output"}`` and ``{"text"}``. Other keys are ignored.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MAX_LINE_BYTES = 16 << 20
SKIP_BYTES = 1 << 20
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
EXPECTED = '"messages", "conversations", "prompt" and "completion", "instruction" and "output", or "text"'

Message = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """Messages for the chat template; what the assistant says from message ``context`` on is trained."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    context: int = 0


@dataclass(frozen=True)
class Completion:
    """Plain text that goes on from ``prompt``; the completion and the end of text are trained."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Plain text, trained from its first to its last token."""

    text: str


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be trained, and why, in words for whoever made the file."""

    line: int
    reason: str


Row = Chat | Completion | Text


class RowError(ValueError):
    """The reason why one row cannot be trained."""


def read_rows(path: Path) -> Iterator[tuple[int, Row] | BadRow]:
    """The rows of a file in order, each with its line number (from 1); blank lines are passed over.

    Memory stays bounded by the longest allowed line, whatever the file holds.

    Raises:
        OSError: the file cannot be read.
    """
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(SKIP_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield BadRow(number, f"longer than {MAX_LINE_BYTES >> 20} MiB")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                yield number, parse_row(line)
            except RowError as error:
                yield BadRow(number, str(error))


def parse_row(line: bytes) -> Row:
    """The row that one line of a data file holds.

    Raises:
        RowError: it cannot be trained.
    """
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}") from error
    except json.JSONDecodeError as error:
        raise RowError(f"not valid JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise RowError("not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise RowError(f"not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise RowError(f"not a JSON object but {_kind(row)}")
    # json.loads pairs surrogates; one left alone cannot be encoded, hence not be tokenized.
    if b"\\u" in line:
        _check_surrogates(row)
    return _normalise(row)


def _refuse_constant(name: str) -> NoReturn:
    raise RowError(f"not valid JSON: {name} is no JSON number")


def _normalise(row: dict[str, Any]) -> Row:
    if row.get("messages") is not None:
        return _check_chat(_read_messages(row["messages"], "messages"), _read_tools(row.get("tools")))
    if row.get("conversations") is not None:
        return _read_sharegpt(row)
    if row.get("completion") is not None and row.get("prompt") is not None:
        return _read_completion(row)
    if row.get("instruction") is not None and row.get("output") is not None:
        return _read_alpaca(row)
    if row.get("text") is not None:
        text = _read_string(row["text"], "text")
        if not text.strip():
            raise RowError('"text" is empty')
        return Text(text)
    names = ", ".join(json.dumps(name[:40]) for name in list(row)[:8])
    raise RowError(f"unknown format with {f'the keys {names}' if names else 'no keys'}; expected {EXPECTED}")


def _read_completion(row: dict[str, Any]) -> Row:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        before = _read_messages(prompt, "prompt")
        after = _read_messages(completion, "completion")
        return _check_chat(before + after, _read_tools(row.get("tools")), context=len(before))
    if isinstance(prompt, list) or isinstance(completion, list):
        raise RowError('"prompt" and "completion" must both be strings or both be lists of messages')
    prompt, completion = _read_string(prompt, "prompt"), _read_string(completion, "completion")
    if not completion.strip():
        raise RowError('"completion" is empty')
    return Completion(prompt, completion)


def _read_alpaca(row: dict[str, Any]) -> Chat:
    question = _read_string(row["instruction"], "instruction")
    if row.get("input") is not None and (extra := _read_string(row["input"], "input")).strip():
        question = f"{question}\n\n{extra}" if question.strip() else extra
    if not question.strip():
        raise RowError('"instruction" is empty')
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": _read_string(row["output"], "output")},
    ]
    return _check_chat(_system_turn(row) + messages, None)


def _read_sharegpt(row: dict[str, Any]) -> Chat:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise RowError(f'"conversations" must be a list of turns, not {_kind(turns)}')
    if isinstance(turns[0], dict) and "role" in turns[0]:
        return _check_chat(_system_turn(row) + _read_messages(turns, "conversations"), _read_tools(row.get("tools")))
    messages: list[Message] = []
    for position, turn in enumerate(turns, start=1):
        where = f"turn {position}"
        if not isinstance(turn, dict):
            raise RowError(f"{where} is not an object but {_kind(turn)}")
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
            raise RowError(f'{where}: "from" is {_show(speaker)}; expected {", ".join(SHAREGPT_ROLES)}')
        messages.append(
            {"role": SHAREGPT_ROLES[speaker], "content": _read_string(turn.get("value"), f"{where}: value")}
        )
    return _check_chat(_system_turn(row) + messages, _read_tools(row.get("tools")))


def _system_turn(row: dict[str, Any]) -> list[Message]:
    """A system message that ShareGPT and Alpaca rows may carry beside the turns."""
    if row.get("system") is None or not (system := _read_string(row["system"], "system")).strip():
        return []
    return [{"role": "system", "content": system}]


def _read_messages(value: object, name: str) -> list[Message]:
    if not isinstance(value, list):
        raise RowError(f'"{name}" must be a list of messages, not {_kind(value)}')
    if not value:
        raise RowError(f'"{name}" is an empty list')
    return [_read_message(message, f"message {position}") for position, message in enumerate(value, start=1)]


def _read_message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"{where} is not an object but {_kind(value)}")
    role = value.get("role")
    if role not in ROLES:
        raise RowError(f'{where}: "role" is {_show(role)}; expected {", ".join(ROLES)}')
    calls = value.get("tool_calls")
    message: Message = {"role": role, "content": _read_content(value.get("content"), where, may_lack=bool(calls))}
    for key in ("reasoning_content", "name", "tool_call_id"):
        if value.get(key) is not None:
            message[key] = _read_string(value[key], f"{where}: {key}")
    if calls:
        if role != "assistant":
            raise RowError(f'{where}: "tool_calls" in a message of the {role}')
        if not isinstance(calls, list):
            raise RowError(f'{where}: "tool_calls" must be a list, not {_kind(calls)}')
        message["tool_calls"] = [_read_tool_call(call, where) for call in calls]
    return message


def _read_content(value: object, where: str, *, may_lack: bool) -> str:
    """A message's text; of a list of parts, the text parts joined."""
    if value is None and may_lack:
        return ""
    if not isinstance(value, list):
        return _read_string(value, f"{where}: content")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise RowError(f"{where}: content part {_show(kind)} is not text; only text can be trained")
        texts.append(_read_string(part.get("text"), f"{where}: content"))
    return "".join(texts)


def _read_tool_call(value: object, where: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"{where}: a tool call without a function name")
    arguments = function.get("arguments", {})
    # The OpenAI form holds the arguments as JSON in a string; templates expect the object.
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{where}: the arguments of {_show(function['name'])} are not valid JSON") from error
    if not isinstance(arguments, dict):
        raise RowError(f"{where}: the arguments of {_show(function['name'])} are not an object but {_kind(arguments)}")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _read_tools(value: object) -> list[dict[str, Any]] | None:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RowError('"tools" is not valid JSON') from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError('"tools" must be a list of objects')
    return value


def _check_chat(messages: list[Message], tools: list[dict[str, Any]] | None, context: int = 0) -> Chat:
    answers = [message for message in messages[context:] if message["role"] == "assistant"]
    if not answers:
        raise RowError("no turn of the assistant to learn from")
    if not any(answer["content"].strip() or answer.get("tool_calls") for answer in answers):
        raise RowError("every turn of the assistant is empty")
    return Chat(messages, tools, context)


def _read_string(value: object, name: str) -> str:
    if not isinstance(value, str):
        where, _, key = name.rpartition(": ")
        raise RowError(f'{where}{": " if where else ""}"{key}" must be a string, not {_kind(value)}')
    return value


def _check_surrogates(value: object) -> None:
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending.extend(one.keys())
            pending.extend(one.values())
        elif isinstance(one, list):
            pending.extend(one)
        elif isinstance(one, str):
            try:
                one.encode("utf-8")
            except UnicodeEncodeError as error:
                code = f"\\u{ord(one[error.start]):04x}"
                raise RowError(f"half a surrogate pair ({code}), which is no character") from error


def _kind(value: object) -> str:
    """The JSON name of a value's type, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return {"str": "a string", "list": "a list", "dict": "an object"}[type(value).__name__]


def _show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
