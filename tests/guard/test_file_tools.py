"""Tools that write without a shell: what may touch a protected place is denied, however the tool is called."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from guardrails.guard.file_tools import find_verb
from guardrails.guard.verdicts import judge_event
from tests.guard.box import SETTINGS, make_box


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base dir that no test changes, with a link into it and a shipped settings file."""
    base = make_box(tmp_path_factory.mktemp("guard") / "base dir")
    (base / "link").symlink_to("current_model")
    (base / ".claude").mkdir()
    hook = {"type": "command", "command": "guardrails/agent_hook.py"}
    guard = {"hooks": {"PreToolUse": [{"matcher": "*", "hooks": [hook]}]}, "model": "one"}
    (base / ".claude" / "settings.json").write_text(json.dumps(guard, indent=2) + "\n")
    return str(base)


def judge(base: str, tool: str, tool_input: Any, cwd: str | None = None) -> str:
    verdict = judge_event({"tool_name": tool, "tool_input": tool_input, "cwd": cwd or base}, base)
    assert not verdict.failure, verdict.failure
    return verdict.action


def patch(*lines: str) -> dict[str, str]:
    return {"input": "\n".join(["*** Begin Patch", *lines, "*** End Patch", ""])}


DENIED: list[tuple[str, dict[str, Any]]] = [
    ("Write", {"file_path": "{base}/current_model/adapter_config.json", "content": "{}"}),
    ("Write", {"file_path": "current_model/new.txt", "content": ""}),
    ("Write", {"file_path": "notes/../current_model/x", "content": ""}),
    ("Write", {"file_path": "link/adapter_model.safetensors", "content": ""}),
    ("Write", {"file_path": "{base}/.config_lock.json", "content": "{}"}),
    ("Write", {"file_path": "models/head.json", "content": "{}"}),
    ("Edit", {"file_path": "models/versions/v001/metadata.json", "old_string": "24", "new_string": "25"}),
    ("MultiEdit", {"file_path": "base_models/tiny/config.json", "edits": [{"old_string": "a", "new_string": "b"}]}),
    ("NotebookEdit", {"notebook_path": "consolidated_models/merged-v002/x.ipynb", "new_source": "1"}),
    ("write_file", {"file_path": "models/backups/b001/content/x", "content": ""}),
    ("replace", {"file_path": "models/head.json", "old_string": "v003", "new_string": "v001", "instruction": "x"}),
    ("StrReplace", {"path": "models/head.json", "old_string": "v003", "new_string": "v001"}),
    ("search_replace", {"file_path": "models/head.json", "old_string": "v003", "new_string": "v001"}),
    ("edit_file", {"target_file": "models/head.json", "code_edit": "{}"}),
    ("Delete", {"path": "current_model"}),
    ("delete_file", {"target_file": "{base}/models/versions/v002"}),
    ("EditNotebook", {"target_notebook": "models/x.ipynb"}),
    ("str_replace_based_edit_tool", {"command": "create", "path": "models/head.json", "file_text": "{}"}),
    ("str_replace_editor", {"command": "str_replace", "path": "models/head.json", "old_str": "a", "new_str": "b"}),
    ("mcp__filesystem__write_file", {"path": "current_model/x", "content": "y"}),
    ("mcp__filesystem__write_file", {"path": "file://{base}/current_model/x", "content": "y"}),
    ("mcp__filesystem__write_file", {"path": "file://localhost{quoted}/current_model/x", "content": "y"}),
    ("mcp__filesystem__edit_file", {"path": "models/head.json", "edits": [{"oldText": "a", "newText": "b"}]}),
    ("mcp__filesystem__move_file", {"source": "current_model", "destination": "/tmp/x"}),
    ("mcp__filesystem__move_file", {"source": "/tmp/x", "destination": "current_model"}),
    ("mcp__filesystem__move_file", {"source": "{base}", "destination": "/tmp/x"}),
    ("mcp__fs__rename", {"old_path": "models/versions/v001", "new_path": "models/versions/v009"}),
    ("mcp__fs__rename", {"from": "notes/plan.txt", "to": "models/plan.txt"}),
    ("mcp__fs__copy", {"src": "/tmp/x", "dst": "current_model/x"}),
    ("mcp__fs__copy_files", {"files": ["/tmp/x"], "target_dir": "models/versions"}),
    ("mcp__fs__delete_directory", {"path": "."}),
    ("mcp__fs__delete_files", {"paths": ["notes/plan.txt", "models/versions/v001"]}),
    ("mcp__fs__removeFile", {"options": {"uri": "file://{base}/models/head.json"}}),
    ("mcp__fs__delete", {"path": "models/versions/*"}),
    ("mcp__fs__trash", {"path": "{base}/../base dir/models"}),
    ("mcp__fs__truncate_file", {"path": "current_model/adapter_model.safetensors"}),
    ("mcp__fs__append_to_file", {"path": "current_model/README.md", "content": "x"}),
    ("mcp__fs__search_and_replace", {"path": "models/head.json", "search": "a", "replace": "b"}),
    (
        "mcp__fs__write_multiple_files",
        {"files": [{"path": "notes/a", "content": ""}, {"path": "models/b", "content": ""}]},
    ),
    ("MCP:write_file", {"path": "models/head.json", "content": "{}"}),
    ("apply_patch", patch("*** Delete File: models/head.json")),
    ("apply_patch", patch("*** Add File: notes/new.txt", "+x", "*** Delete File: current_model/README.md")),
    ("apply_patch", patch("  *** Delete File: models/head.json  ")),
    (
        "apply_patch",
        patch("*** Update File: notes/plan.txt", "*** Move to: current_model/plan.txt", "@@", "-train more", "+x"),
    ),
    ("apply_patch", patch("*** Update File: current_model/README.md", "*** Move to: notes/r.md", "@@", "+x")),
    ("functions.apply_patch", patch("*** Delete File: {base}/models/head.json")),
    ("apply_patch", {"command": ["apply_patch", "*** Begin Patch\n*** Delete File: models/head.json\n*** End Patch"]}),
    ("apply_patch", {"patch": "--- a/models/head.json\n+++ b/models/head.json\n@@ -1 +1 @@\n-a\n+b\n"}),
    ("apply_patch", {"patch": "--- a/models/head.json\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"}),
    ("apply_patch", {"patch": "diff --git a/x b/models/x\nrename from notes/plan.txt\nrename to models/x\n"}),
]
PASSED: list[tuple[str, dict[str, Any]]] = [
    ("Write", {"file_path": "notes/x.md", "content": "rm -rf current_model"}),
    ("Write", {"file_path": "/tmp/current_model/x", "content": ""}),
    ("Write", {"file_path": "current_model_notes.md", "content": "{base}/current_model"}),
    ("Write", {"file_path": "docs/models/x.md", "content": ""}),
    ("Write", {"content": "models"}),
    ("Edit", {"file_path": "notes/plan.txt", "old_string": "models/", "new_string": "current_model/"}),
    ("Delete", {"path": ".system_state.json"}),
    ("Delete", {"path": "notes"}),
    ("str_replace_based_edit_tool", {"command": "view", "path": "models/head.json"}),
    ("mcp__filesystem__read_file", {"path": "current_model/adapter_config.json"}),
    ("mcp__filesystem__list_directory", {"path": "models"}),
    ("mcp__filesystem__directory_tree", {"path": "."}),
    ("mcp__filesystem__search_files", {"path": "models", "pattern": "*"}),
    ("mcp__filesystem__get_file_info", {"path": "current_model"}),
    ("mcp__filesystem__edit_file", {"path": "models/x", "edits": [{"oldText": "a", "newText": "b"}], "dryRun": True}),
    ("mcp__fs__copy", {"source": "current_model", "destination": "/tmp/copy"}),
    ("mcp__fs__move_file", {"source": "notes/plan.txt", "destination": "notes/done.txt"}),
    ("mcp__fs__delete", {"path": "/tmp/models"}),
    ("mcp__fs__create_directory", {"path": "."}),
    ("mcp__github__create_or_update_file", {"owner": "o", "repo": "r", "path": "current_model/x", "content": ""}),
    ("mcp__web__fetch", {"url": "https://example.com/models/current_model"}),
    ("mcp__s3__delete_object", {"uri": "s3://bucket/current_model"}),
    ("mcp__notion__update_page", {"title": "models", "body": "current_model"}),
    ("mcp__memory__delete_entities", {"entities": ["models", "current_model"]}),
    (
        "apply_patch",
        patch("*** Update File: notes/plan.txt", "@@", " *** Delete File: models/head.json", "-train more", "+x"),
    ),
    ("apply_patch", patch("*** Add File: notes/new.txt", "+*** Delete File: models/head.json")),
    ("apply_patch", {"patch": "--- a/notes/plan.txt\n+++ b/notes/plan.txt\n@@ -1 +1 @@\n--- models/head.json\n+x\n"}),
    ("apply_patch", {}),
]


def fill(value: Any, base: str) -> Any:
    """The input with the base dir in its texts."""
    if isinstance(value, str):
        return value.replace("{base}", base).replace("{quoted}", base.replace(" ", "%20"))
    if isinstance(value, dict):
        return {key: fill(child, base) for key, child in value.items()}
    return [fill(child, base) for child in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("tool", "tool_input"), DENIED)
def test_what_touches_a_protected_place_is_denied(base: str, tool: str, tool_input: dict[str, Any]) -> None:
    assert judge(base, tool, fill(tool_input, base)) == "deny"


@pytest.mark.parametrize(("tool", "tool_input"), PASSED)
def test_everything_else_passes(base: str, tool: str, tool_input: dict[str, Any]) -> None:
    assert judge(base, tool, fill(tool_input, base)) == "pass"


def test_paths_are_seen_from_the_calls_folder(base: str) -> None:
    write = {"file_path": "../current_model/x", "content": ""}
    assert judge(base, "Write", write, f"{base}/notes") == "deny"
    assert judge(base, "Write", write, "/tmp/a") == "pass"
    assert judge(base, "apply_patch", patch("*** Delete File: head.json"), f"{base}/models") == "deny"
    assert judge(base, "apply_patch", patch("*** Delete File: head.json"), base) == "pass"


def test_a_path_from_home_is_found(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.path.dirname(base))
    assert judge(base, "Write", {"file_path": f"~/{os.path.basename(base)}/models/x", "content": ""}) == "deny"


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        *(("Write", "write"), ("MultiEdit", "write"), ("StrReplace", "write"), ("write_file", "write")),
        *(("mcp__fs__createDirectory", "write"), ("search_replace", "write"), ("mcp__x__HTTPDownload", "write")),
        *(("move_file", "move"), ("Delete", "delete"), ("mcp__a__copy_and_delete", "delete"), ("rename", "move")),
        *(("mcp__ide__executeCode", "run"), ("run_python", "run"), ("mcp__t__start_process", "run")),
        *(("mcp__fs__read_file", "read"), ("get_write_permissions", "read"), ("mcp__fs__list_deleted", "read")),
        *(("directory_tree", None), ("search_files", None), ("mcp__x__", None), ("", None), ("123", None)),
    ],
)
def test_the_verb_of_a_tool_is_told_by_its_name(name: str, verb: str | None) -> None:
    assert find_verb(name) == verb


# config.json


def text_of(**changes: Any) -> str:
    return json.dumps({**SETTINGS, **changes}, indent=2) + "\n"


LINE, NEXT_LINE = '  "max_length": 512', '  "learning_rate": 0.1,\n  "max_length": 512'
CONFIG_DENIED: list[tuple[str, dict[str, Any]]] = [
    ("Write", {"content": text_of(max_length=1024)}),
    ("Write", {"content": text_of(base_model=None)}),
    ("Write", {"content": "{}"}),
    ("Write", {"content": ""}),
    ("Write", {"content": "not json"}),
    ("Write", {}),
    ("Edit", {"old_string": "512", "new_string": "1024"}),
    ("Edit", {"old_string": '"tiny"', "new_string": '"other"'}),
    ("Edit", {"old_string": "tiny", "new_string": "other", "replace_all": True}),
    ("Edit", {"old_string": LINE, "new_string": '  "max_len": 512'}),
    ("Edit", {"old_string": "not there", "new_string": "x"}),
    ("Edit", {"old_string": "512", "new_string": "0x200"}),
    ("MultiEdit", {"edits": [{"old_string": "512", "new_string": "51"}, {"old_string": "51", "new_string": "513"}]}),
    ("replace", {"old_string": "tiny", "new_string": "x", "expected_replacements": 2}),
    ("edit_file", {"code_edit": '"max_length": 1024'}),
    ("str_replace_editor", {"command": "insert", "insert_line": 1, "new_str": '"max_length": 9,'}),
    ("mcp__fs__append_file", {"content": "x", "append": True}),
    ("mcp__fs__delete_file", {}),
    ("mcp__fs__move_file", {"destination": "/tmp/config.json"}),
]
CONFIG_PASSED: list[tuple[str, dict[str, Any]]] = [
    ("Write", {"content": text_of(learning_rate=0.1)}),
    ("Write", {"content": json.dumps({**SETTINGS, "epochs": 3})}),
    ("Edit", {"old_string": LINE, "new_string": NEXT_LINE}),
    (
        "MultiEdit",
        {"edits": [{"old_string": LINE, "new_string": NEXT_LINE}, {"old_string": "0.1", "new_string": "0.2"}]},
    ),
    ("Edit", {"old_string": "512", "new_string": "512"}),
    ("replace", {"old_string": LINE, "new_string": NEXT_LINE}),
    ("mcp__filesystem__edit_file", {"edits": [{"oldText": LINE, "newText": NEXT_LINE}]}),
    ("str_replace_editor", {"command": "str_replace", "old_str": LINE, "new_str": NEXT_LINE}),
]


@pytest.mark.parametrize(("tool", "tool_input"), CONFIG_DENIED)
@pytest.mark.parametrize("key", ["file_path", "path"])
def test_an_edit_of_the_config_that_touches_a_locked_value_is_denied(
    base: str, tool: str, tool_input: dict[str, Any], key: str
) -> None:
    key = "path" if tool == "str_replace_editor" else key
    assert judge(base, tool, {key: f"{base}/config.json", **tool_input}) == "deny"


@pytest.mark.parametrize(("tool", "tool_input"), CONFIG_PASSED)
def test_any_other_edit_of_the_config_passes(base: str, tool: str, tool_input: dict[str, Any]) -> None:
    assert judge(base, tool, {"path": "config.json", **tool_input}) == "pass"


@pytest.mark.parametrize(
    ("lines", "action"),
    [
        (["@@", '-  "max_length": 512', '+  "max_length": 1024'], "deny"),
        (['   "base_model": "base_models/tiny",', '-  "max_length": 512'], "deny"),
        (["@@", '-"max_length": 512  ', '+"max_length": 513'], "deny"),
        (["@@", "-  no such line", "+x"], "deny"),
        (["@@", '-  "max_length": 512', '+  "max_length": 512,', '+  "epochs": 2'], "pass"),
        (
            [
                '@@   "base_model": "base_models/tiny",',
                '-  "max_length": 512',
                '+  "max_length": 512,',
                '+  "epochs": 2',
            ],
            "pass",
        ),
    ],
)
def test_a_patch_of_the_config_is_carried_out_in_memory(base: str, lines: list[str], action: str) -> None:
    assert judge(base, "apply_patch", patch("*** Update File: config.json", *lines)) == action
    # Codex gives it as a command.
    assert judge(base, "apply_patch", {"command": patch("*** Update File: config.json", *lines)["input"]}) == action


def test_a_patch_that_moves_another_file_onto_the_config_is_denied(base: str) -> None:
    lines = ("*** Update File: notes/plan.txt", "*** Move to: config.json", "@@", "-train more", "+{}")
    assert judge(base, "apply_patch", patch(*lines)) == "deny"


def test_before_there_is_a_model_nothing_is_locked(tmp_path: Path) -> None:
    base = make_box(tmp_path / "base")
    (base / ".config_lock.json").unlink()
    for tree in ("current_model", "models"):
        shutil.rmtree(base / tree)
    (base / "current_model").mkdir()
    assert judge(str(base), "Write", {"file_path": f"{base}/config.json", "content": text_of(max_length=9)}) == "pass"


@pytest.mark.parametrize("lock", [None, "{}", "{", "[]"])
@pytest.mark.parametrize("has_trained_with", [True, False])
def test_a_lost_lock_opens_nothing(tmp_path: Path, lock: str | None, has_trained_with: bool) -> None:
    base = make_box(tmp_path / "base")
    (base / ".config_lock.json").unlink()
    if lock is not None:
        (base / ".config_lock.json").write_text(lock)
    # Then the version that current_model/ is tells what it was trained with; else the config as it stands.
    if has_trained_with:
        metadata = base / "models/versions/v003/metadata.json"
        metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "config": SETTINGS}))
        (base / "config.json").write_text(text_of(max_length=9))
    for change, action in (({"max_length": 10}, "deny"), ({"learning_rate": 0.5}, "pass")):
        edited = {"file_path": f"{base}/config.json", "content": text_of(**change)}
        assert judge(str(base), "Write", edited) == action, change


def test_a_value_that_was_never_given_is_not_locked(tmp_path: Path) -> None:
    base = make_box(tmp_path / "base")
    (base / ".config_lock.json").unlink()
    (base / "config.json").write_text(text_of(base_model=None))
    for change, action in (({}, "pass"), ({"base_model": None, "max_length": 9}, "deny")):
        edited = {"file_path": f"{base}/config.json", "content": text_of(**change)}
        assert judge(str(base), "Write", edited) == action, change


# Agents' settings


@pytest.mark.parametrize(
    ("tool_input", "action"),
    [
        ({"content": "{}"}, "deny"),
        ({"old_string": '"model": "one"', "new_string": '"disableAllHooks": true'}, "deny"),
        ({"old_string": "guardrails/agent_hook.py", "new_string": "true"}, "deny"),
        ({"old_string": '"model": "one"', "new_string": '"model": "other"'}, "pass"),
    ],
)
def test_an_edit_of_agents_settings_passes_only_if_the_guard_stays_on(
    base: str, tool_input: dict[str, str], action: str
) -> None:
    tool = "Write" if "content" in tool_input else "Edit"
    assert judge(base, tool, {"file_path": f"{base}/.claude/settings.json", **tool_input}) == action
