"""Every line of a data file is a row, or a bad row with its number and a reason."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardrails.paths import CODE_DIR
from guardrails.training.rows import MAX_LINE_BYTES, BadRow, Chat, Completion, Row, RowError, Text, parse_row, read_rows

USER = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}


def parse(row: object) -> Row:
    return parse_row(json.dumps(row).encode())


def reason(row: object) -> str:
    with pytest.raises(RowError) as raised:
        parse(row)
    return str(raised.value)


def test_every_format_becomes_the_same_chat() -> None:
    chat = Chat([USER, ANSWER])
    assert parse({"messages": [USER, ANSWER], "id": 7, "source": None}) == chat
    assert parse({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}) == chat
    assert parse({"conversations": [USER, ANSWER]}) == chat
    assert parse({"instruction": "2 + 2?", "input": "", "output": "4"}) == chat
    assert parse({"instruction": "2 + 2?", "output": "4"}) == chat
    assert parse({"prompt": [USER], "completion": [ANSWER]}) == Chat([USER, ANSWER], context=1)


def test_plain_text_stays_plain() -> None:
    assert parse({"text": " a\n"}) == Text(" a\n")
    assert parse({"prompt": "a", "completion": " b"}) == Completion("a", " b")
    assert parse({"prompt": "", "completion": "b"}) == Completion("", "b")


def test_a_system_prompt_beside_the_turns_is_kept() -> None:
    system = {"role": "system", "content": "Be brief."}
    turns = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    assert parse({"system": "Be brief.", "conversations": turns}) == Chat([system, USER, ANSWER])
    assert parse({"system": "Be brief.", "instruction": "2 + 2?", "output": "4"}) == Chat([system, USER, ANSWER])
    assert parse({"system": " ", "conversations": turns}) == Chat([USER, ANSWER])


def test_an_alpaca_input_follows_its_instruction() -> None:
    row = parse({"instruction": "Add.", "input": "2, 2", "output": "4"})
    assert isinstance(row, Chat)
    assert row.messages[0]["content"] == "Add.\n\n2, 2"


def test_tool_calls_are_brought_to_one_form() -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    given_calls = [
        {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}},
        {"name": "add", "arguments": {"a": 2}},
    ]
    for given_call in given_calls:
        turns = [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [given_call]},
            {"role": "tool", "content": "4"},
        ]
        row = parse({"messages": turns, "tools": json.dumps(tools)})
        assert isinstance(row, Chat)
        assert row.tools == tools
        assert row.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    assert parse({"messages": [{"role": "user", "content": parts}, ANSWER]}) == Chat([USER, ANSWER])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([], "not a JSON object but a list"),
        ("text", "not a JSON object but a string"),
        (None, "not a JSON object but null"),
        ({}, "unknown format with no keys; expected "),
        ({"question": "a", "answer": "b"}, 'unknown format with the keys "question", "answer"; expected '),
        ({"text": None}, 'unknown format with the keys "text"'),
        ({"text": 5}, '"text" must be a string, not a number'),
        ({"text": " \n"}, '"text" is empty'),
        ({"prompt": "a", "completion": ""}, '"completion" is empty'),
        ({"prompt": "a", "completion": [ANSWER]}, "must both be strings or both be lists"),
        ({"prompt": True, "completion": "a"}, '"prompt" must be a string, not a boolean'),
        ({"messages": "hi"}, '"messages" must be a list of messages, not a string'),
        ({"messages": []}, '"messages" is an empty list'),
        ({"messages": [USER, "hi"]}, "message 2 is not an object but a string"),
        ({"messages": [{"role": "bot", "content": "a"}]}, 'message 1: "role" is "bot"; expected system, user'),
        ({"messages": [{"content": "a"}]}, 'message 1: "role" is null'),
        ({"messages": [{"role": ["user"], "content": "a"}]}, 'message 1: "role" is ["user"]'),
        ({"messages": [USER, {"role": "assistant"}]}, 'message 2: "content" must be a string, not null'),
        (
            {"messages": [USER, {"role": "assistant", "content": 4}]},
            'message 2: "content" must be a string, not a number',
        ),
        ({"messages": [USER]}, "no turn of the assistant"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "every turn of the assistant is empty"),
        ({"prompt": [USER, ANSWER], "completion": [USER]}, "no turn of the assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
            'message 1: content part "image_url" is not text',
        ),
        ({"messages": [{**USER, "tool_calls": [{"name": "f"}]}, ANSWER]}, '"tool_calls" in a message of the user'),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{}]}]}, "message 2: a tool call without a function name"),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            'message 2: the arguments of "f" are not valid JSON',
        ),
        ({"messages": [USER, ANSWER], "tools": "["}, '"tools" is not valid JSON'),
        ({"messages": [USER, ANSWER], "tools": {"name": "f"}}, '"tools" must be a list of objects'),
        ({"conversations": [{"from": "bing", "value": "a"}]}, 'turn 1: "from" is "bing"; expected human'),
        ({"conversations": [{"from": "human", "value": None}]}, 'turn 1: "value" must be a string, not null'),
        ({"conversations": {}}, '"conversations" must be a list of turns, not an object'),
        ({"instruction": "", "output": "a"}, '"instruction" is empty'),
        ({"instruction": "a", "output": ""}, "every turn of the assistant is empty"),
        ({"text": "a \ud800 b"}, "half a surrogate pair (\\ud800)"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row: object, expected: str) -> None:
    assert expected in reason(row)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a"', "not valid JSON: Expecting ',' delimiter at character 13"),
        (b'{"text": "a"} {}', "not valid JSON: Extra data at character 15"),
        (b"{'text': 'a'}", "not valid JSON: "),
        (b'{"text": NaN}', "not valid JSON: NaN is no JSON number"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff at position 10"),
        (b"\xff\xfe{\x00", "not UTF-8: byte 0xff at position 0"),
        (b"[" * 200000, "not valid JSON: "),
        (b'{"text": ' + b"9" * 5000 + b"}", "not valid JSON: "),
        (b"\x00\x00", "not valid JSON: "),
    ],
)
def test_a_line_that_is_not_json_says_where(line: bytes, expected: str) -> None:
    with pytest.raises(RowError) as raised:
        parse_row(line)
    assert expected in str(raised.value)
    assert len(str(raised.value)) < 200


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    """Byte order mark, CRLF, blank lines, a bad line among good ones, no newline at the end."""
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "1"}\r\n\r\n  \n{"text": }\n{"text": "5"}')
    assert list(read_rows(path)) == [
        (1, Text("1")),
        BadRow(4, "not valid JSON: Expecting value at character 10"),
        (5, Text("5")),
    ]


def test_a_line_of_just_the_allowed_length_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    frame = len(b'{"text": ""}')
    with path.open("wb") as file:
        for extra in (0, 1):
            file.write(b'{"text": "' + b"a" * (MAX_LINE_BYTES - frame + extra) + b'"}\n')
    good, bad = read_rows(path)
    assert isinstance(good, tuple)
    assert bad == BadRow(2, "longer than 16 MiB")


def test_a_line_of_any_length_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "1"}\n')
        file.seek(400 << 20)
        file.write(b'\n{"text": "3"}\n')
    program = (
        "import resource, sys; from pathlib import Path; from guardrails.training.rows import read_rows; "
        "resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20)); "
        "print([row if type(row) is tuple else row.reason for row in read_rows(Path(sys.argv[1]))])"
    )
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, cwd=CODE_DIR, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[(1, Text(text='1')), 'longer than 16 MiB', (3, Text(text='3'))]", done.stderr


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
known_keys = st.sampled_from(
    ["messages", "conversations", "prompt", "completion", "instruction", "output", "text", "tools", "role", "content"]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(known_keys, json_values | st.lists(st.dictionaries(known_keys, json_values))))
def test_no_row_ends_in_anything_but_a_row_or_a_reason(row: dict[str, object]) -> None:
    try:
        parse(row)
    except RowError as error:
        assert str(error)
