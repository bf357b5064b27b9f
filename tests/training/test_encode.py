"""Which tokens the model sees, and which it is trained to produce."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardrails.training.check import check_data
from guardrails.training.encode import (
    GENERATION_MARK,
    TRAINING_TEMPLATE,
    EncodedFile,
    Encoder,
    Sequence,
    choose_template,
    encode_file,
    hold_out,
    load_tokenizer,
)
from guardrails.training.job import RunError
from guardrails.training.rows import Chat, Completion, RowError, Text, parse_row

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "é"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}
RESULT = {"role": "tool", "content": "4"}
THINKING = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"}
PLAIN_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATS = [
    [USER, ANSWER],
    [SYSTEM, USER, ANSWER],
    [USER, ANSWER, USER, ANSWER],
    [USER, THINKING, USER, THINKING],
    [USER, CALLING, RESULT, RESULT, ANSWER],
    [USER, {**CALLING, "content": "Let me add."}, RESULT, THINKING],
    [USER, {**ANSWER, "reasoning_content": "\nhm\n"}],
    [USER, ANSWER, USER],
    [USER, {"role": "assistant", "content": "\n4\n"}, USER, ANSWER],
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


@pytest.fixture
def with_template(tiny_model: Path, tmp_path: Path) -> Callable[[str], Any]:
    """Makes a tokenizer with another chat template."""

    def make(template: str) -> Any:
        folder = tmp_path / "other"
        shutil.copytree(tiny_model, folder)
        (folder / "chat_template.jinja").write_text(template)
        return load_tokenizer(folder)

    return make


def render(tokenizer: Any, messages: list[dict[str, Any]], **options: object) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def trained_text(tokenizer: Any, sequence: Sequence) -> list[str]:
    """The runs of trained tokens as text."""
    runs: list[list[int]] = []
    before = 0
    for token, trained in zip(sequence.tokens, sequence.trained, strict=True):
        if trained:
            if not before:
                runs.append([])
            runs[-1].append(token)
        before = trained
    return [tokenizer.decode(run) for run in runs]


def encode_one(tokenizer: Any, row: Chat | Completion, max_length: int = 4096) -> list[str]:
    (sequence,) = Encoder(tokenizer, max_length).encode(row).sequences
    return trained_text(tokenizer, sequence)


def make_file(path: Path, count: int) -> Path:
    rows = [{"prompt": f"{number} + 1 =", "completion": f" {number + 1}"} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_template_renders_as_qwen3_does(tokenizer: Any) -> None:
    """Written down from the model's documented format; nothing is taken from the marks."""
    assert render(tokenizer, [SYSTEM, USER, ANSWER]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n4<|im_end|>\n"
    )
    assert render(tokenizer, [USER, THINKING, USER, THINKING]) == (
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\n4<|im_end|>\n"
    )
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": "é"}}\n</tool_call>'
    assert render(tokenizer, [USER, CALLING, RESULT, RESULT, ANSWER]) == (
        "<|im_start|>user\n2 + 2?<|im_end|>\n"
        f"<|im_start|>assistant\n{call}\n{call}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n4\n</tool_response>\n<tool_response>\n4\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n4<|im_end|>\n"
    )
    assert render(tokenizer, [SYSTEM, USER, ANSWER], tools=TOOLS).startswith(
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user query."
        "\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        f"{json.dumps(TOOLS[0])}\n</tools>\n\nFor each function call, return a json object with function name and "
        "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n<|im_start|>user\n'
    )
    assert render(tokenizer, [USER], add_generation_prompt=True).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert render(tokenizer, [USER], add_generation_prompt=True, enable_thinking=False).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("messages", CHATS)
def test_generation_marks_do_not_change_the_text(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    template = TRAINING_TEMPLATE.read_text()
    unmarked = re.sub(r"\{%-\s*(end)?generation\s*-%\}", "{#- -#}", template)
    assert not GENERATION_MARK.search(unmarked)
    rendered = render(tokenizer, messages, tools=tools)
    assert rendered == render(tokenizer, messages, tools=tools, chat_template=unmarked)
    tokens = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True)["input_ids"]
    assert tokenizer.decode(tokens) == rendered


@pytest.mark.parametrize(
    ("messages", "trained"),
    [
        ([USER, ANSWER], ["4<|im_end|>"]),
        ([SYSTEM, USER, ANSWER, USER, ANSWER], ["4<|im_end|>", "4<|im_end|>"]),
        # Earlier reasoning is not shown to the model, the last is and is trained; an empty block is context.
        ([USER, THINKING, USER, THINKING], ["4<|im_end|>", "<think>\nhm\n</think>\n\n4<|im_end|>"]),
        ([USER, ANSWER, USER], ["4<|im_end|>"]),
        (
            [USER, {**CALLING, "tool_calls": [CALL]}, RESULT, ANSWER],
            ['<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": "é"}}\n</tool_call><|im_end|>', "4<|im_end|>"],
        ),
    ],
)
def test_exactly_what_the_model_is_to_produce_is_trained(
    tokenizer: Any, messages: list[dict[str, Any]], trained: list[str]
) -> None:
    assert encode_one(tokenizer, Chat(messages)) == trained


def test_turns_of_a_prompt_are_context(tokenizer: Any) -> None:
    later = {"role": "assistant", "content": "later"}
    assert encode_one(tokenizer, Chat([USER, ANSWER, USER, later], context=2)) == ["later<|im_end|>"]
    assert encode_one(tokenizer, Chat([USER, ANSWER, USER, later], context=0)) == ["4<|im_end|>", "later<|im_end|>"]


def test_a_completion_is_trained_with_its_end(tokenizer: Any) -> None:
    (sequence,) = Encoder(tokenizer, 64).encode(Completion("one two", " three")).sequences
    assert tokenizer.decode(sequence.tokens) == "one two three<|im_end|>"
    assert trained_text(tokenizer, sequence) == [" three<|im_end|>"]


def test_text_is_cut_into_windows_that_lose_nothing(tokenizer: Any) -> None:
    text = "one two three four five six seven eight nine ten " * 9
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    for max_length in (8, 17, len(whole) - 1, len(whole)):
        encoded = Encoder(tokenizer, max_length).encode(Text(text))
        assert not encoded.cut
        windows = [sequence.tokens for sequence in encoded.sequences]
        assert all(2 <= len(window) <= max_length for window in windows)
        # A last window of one token brings the token before it along.
        repeated = len(whole) % max_length == 1
        joined = [token for window in windows[:-1] for token in window] + windows[-1][repeated:]
        assert joined == whole


def test_a_long_chat_is_cut_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    long = {"messages": [USER, {"role": "assistant", "content": "4 " * 500}]}
    short = {"messages": [USER, ANSWER]}
    buried = {"messages": [{"role": "user", "content": "2 " * 500}, ANSWER]}
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (long, short, buried)))
    data = encode_file(path, Encoder(tokenizer, 64))
    assert (data.good, data.cut, data.bad) == (2, 1, 1)
    assert len(data.items.tokens(0)) == 64
    assert data.bad_rows[0].line == 3
    assert "starts only after max_length: 1015 tokens" in data.bad_rows[0].reason


def test_a_row_too_short_to_predict_anything_is_a_bad_row(tokenizer: Any) -> None:
    with pytest.raises(RowError, match="no token in it would be trained"):
        Encoder(tokenizer, 64).encode(Completion("", ""))


def test_labels_and_tokens_come_back_as_they_went_in(tokenizer: Any) -> None:
    data = EncodedFile()
    data.items.append(0, Sequence([5, 6, 7], [1, 0, 1]))
    data.items.append(3, Sequence([8, 9], [0, 1]))
    assert data.items.labels(0) == [5, -100, 7]
    assert data.items.labels(1) == [-100, 9]
    assert data.items.tokens(1) == [8, 9]
    assert (data.items.row(1), data.items.count_trained(0), len(data.items)) == (3, 1, 2)


@pytest.mark.parametrize(("rows", "held_out"), [(19, 0), (20, 2), (100, 5), (600, 30), (1500, 50)])
def test_a_small_sample_is_held_out(tokenizer: Any, tmp_path: Path, rows: int, held_out: int) -> None:
    data = encode_file(make_file(tmp_path / "data.jsonl", rows), Encoder(tokenizer, 64))
    hold_out(data, seed=1, data_blake3="aa")
    assert len(data.held_out) == data.held_out_rows == held_out
    assert sorted(data.train + data.held_out) == list(range(rows))


def test_the_sample_depends_on_seed_and_data_alone(tokenizer: Any, tmp_path: Path) -> None:
    path = make_file(tmp_path / "data.jsonl", 100)

    def sample(seed: int, blake3: str) -> list[int]:
        data = encode_file(path, Encoder(tokenizer, 64))
        hold_out(data, seed, blake3)
        return data.held_out

    assert sample(1, "aa") == sample(1, "aa") == [5, 27, 64, 75, 83]
    assert sample(2, "aa") != sample(1, "aa") != sample(1, "bb")


def test_all_windows_of_a_held_out_text_are_held_out(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"{number} " * 50}) + "\n" for number in range(20)))
    data = encode_file(path, Encoder(tokenizer, 16))
    hold_out(data, seed=1, data_blake3="aa")
    kept, held = ({data.items.row(item) for item in items} for items in (data.train, data.held_out))
    assert len(held) == 2
    assert not kept & held


def test_plain_chatml_models_get_the_shipped_template(with_template: Callable[[str], Any]) -> None:
    tokenizer = with_template(PLAIN_CHATML)
    assert choose_template(tokenizer) == (TRAINING_TEMPLATE.read_text(), {"thinking": False})
    (sequence,) = Encoder(tokenizer, 64).encode(Chat([USER, ANSWER])).sequences
    assert tokenizer.decode(sequence.tokens) == render(tokenizer, [USER, ANSWER])
    assert trained_text(tokenizer, sequence) == ["4<|im_end|>"]
    # A template without tools must not be trained on text that it never renders.
    with pytest.raises(RowError, match="renders it in a way"):
        Encoder(tokenizer, 256).encode(Chat([USER, ANSWER], tools=TOOLS))


def test_a_models_own_system_prompt_is_kept(with_template: Callable[[str], Any]) -> None:
    own = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are X.<|im_end|>\n' }}{% endif %}"
    tokenizer = with_template(own + PLAIN_CHATML)
    assert choose_template(tokenizer)[1] == {"thinking": False, "default_system": "You are X."}
    for chat in ([USER, ANSWER], [SYSTEM, USER, ANSWER]):
        (sequence,) = Encoder(tokenizer, 64).encode(Chat(chat)).sequences
        assert tokenizer.decode(sequence.tokens) == render(tokenizer, chat)


def test_qwen3s_own_unmarked_template_gets_the_shipped_one(with_template: Callable[[str], Any]) -> None:
    unmarked = re.sub(r"\{%-\s*(end)?generation\s*-%\}", "{#- -#}", TRAINING_TEMPLATE.read_text())
    tokenizer = with_template(unmarked)
    assert choose_template(tokenizer)[1] == {"thinking": True}
    assert encode_one(tokenizer, Chat([USER, THINKING])) == ["<think>\nhm\n</think>\n\n4<|im_end|>"]


def test_a_template_that_is_not_known_fails_chats_alone(with_template: Callable[[str], Any]) -> None:
    tokenizer = with_template("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    encoder = Encoder(tokenizer, 64)
    with pytest.raises(RunError) as raised:
        encoder.encode(Chat([USER, ANSWER]))
    assert raised.value.reason == "bad_model"
    assert "{% generation %}" in raised.value.hint
    assert encoder.encode(Completion("a", "b")).sequences


def test_a_template_that_refuses_a_row_makes_it_a_bad_row(with_template: Callable[[str], Any]) -> None:
    tokenizer = with_template(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    with pytest.raises(RowError, match="refuses it: no system prompts"):
        Encoder(tokenizer, 64).encode(Chat([SYSTEM, USER, ANSWER]))


def test_sharegpt_and_alpaca_rows_are_trained_as_chats(tokenizer: Any) -> None:
    lines = (
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        {"instruction": "2 + 2?", "input": "", "output": "4"},
    )
    encoder = Encoder(tokenizer, 64)
    for line in lines:
        assert encoder.encode(parse_row(json.dumps(line).encode())) == encoder.encode(Chat([USER, ANSWER]))


def test_the_check_finds_what_a_run_would_find(tiny_model: Path, tmp_path: Path) -> None:
    good = make_file(tmp_path / "good.jsonl", 20)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"text": 1}\n')
    of_good, of_bad = check_data([good, bad], tiny_model, max_length=64, max_bad_rows=0)
    assert (of_good["total"], of_good["held_out"], of_good["items"], of_good["problem"]) == (20, 2, 18, None)
    assert of_bad["bad_rows"] == [{"line": 2, "reason": '"text" must be a string, not a number'}]
    assert of_bad["problem"]["reason"] == "bad_data"
    (allowed,) = check_data([bad], tiny_model, max_length=64, max_bad_rows=1)
    assert allowed["problem"] is None
