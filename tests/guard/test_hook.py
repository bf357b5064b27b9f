"""The hook answers every event, in its agent's words, and what fails inside it stops only what touches the models."""

import ast
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardrails.guard import shell
from guardrails.guard.fallback import find_danger, find_path
from guardrails.guard.hook import AGENTS, answer_event, main
from guardrails.guard.read_only import is_read_only
from guardrails.guard.session import probe_guard, shorten
from guardrails.guard.verdicts import judge_event
from guardrails.paths import CODE_DIR
from tests.guard.box import make_box

HOOK = CODE_DIR / "guardrails" / "agent_hook.py"
DESTRUCTIVE = "rm -rf current_model"
FOR_A_PERSON = "python3 model_versioner.py trash empty"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base dir that no test changes."""
    return str(make_box(tmp_path_factory.mktemp("guard") / "base dir"))


def make_event(agent: str, command: str, cwd: str, **more: Any) -> dict[str, Any]:
    """A shell command as each agent tells it."""
    if agent == "cursor":
        return {"hook_event_name": "beforeShellExecution", "command": command, "cwd": cwd, **more}
    name = "BeforeTool" if agent == "gemini" else "PreToolUse"
    tool = "run_shell_command" if agent == "gemini" else "Bash"
    return {"hook_event_name": name, "tool_name": tool, "tool_input": {"command": command}, "cwd": cwd, **more}


def answer(event: Any, base: str, agent: str = "claude") -> Any:
    return answer_event(json.dumps(event).encode(), base, agent)


def run_hook(
    data: bytes, *arguments: str, python: Sequence[str] = (sys.executable, "-I", "-S"), **environment: str
) -> subprocess.CompletedProcess[str]:
    """The hook as a process of its own."""
    result = subprocess.run(
        [*python, str(HOOK), *arguments],
        input=data,
        capture_output=True,
        env={"PATH": os.environ["PATH"], **environment},
        check=False,
        timeout=60,
    )
    return subprocess.CompletedProcess(result.args, result.returncode, result.stdout.decode(), result.stderr.decode())


# What each agent is told


def test_a_denial_is_told_in_each_agents_words(base: str) -> None:
    claude, codex, gemini, cursor = (answer(make_event(a, DESTRUCTIVE, base), base, a) for a in AGENTS)
    for told in (claude, codex):
        assert told["hookSpecificOutput"]["hookEventName"] == "PreToolUse"
        assert told["hookSpecificOutput"]["permissionDecision"] == "deny"
        assert "current_model" in told["hookSpecificOutput"]["permissionDecisionReason"]
    assert gemini["decision"] == "deny"
    assert "current_model" in gemini["reason"]
    assert cursor["permission"] == "deny"
    assert "current_model" in cursor["user_message"]
    assert cursor["user_message"] == cursor["agent_message"]


def test_no_opinion_is_nothing_but_an_allow_for_cursor(base: str) -> None:
    told = [answer(make_event(a, "make test > /tmp/out.txt", base), base, a) for a in AGENTS]
    assert told == [None, None, None, {"permission": "allow"}]


def test_what_a_person_decides_is_asked_where_an_ask_holds(base: str) -> None:
    claude, codex, gemini, cursor = (answer(make_event(a, FOR_A_PERSON, base), base, a) for a in AGENTS)
    assert claude["hookSpecificOutput"]["permissionDecision"] == "ask"
    assert codex["hookSpecificOutput"]["permissionDecision"] == "deny"
    assert gemini["decision"] == "deny"
    assert cursor["permission"] == "deny"
    assert "ask the user" in cursor["user_message"]


@pytest.mark.parametrize("more", [{"permission_mode": "bypassPermissions"}, {"cursor_version": "3.21.16"}])
def test_an_ask_that_would_be_let_pass_is_a_denial(base: str, more: dict[str, str]) -> None:
    told = answer(make_event("claude", FOR_A_PERSON, base, **more), base)
    assert told["hookSpecificOutput"]["permissionDecision"] == "deny"


def test_the_answer_is_one_line_of_ascii_json(base: str) -> None:
    event = make_event("claude", "rm -rf current_model/modèle", base)
    result = run_hook(json.dumps(event).encode(), "--base-dir", base)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii()
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout)["hookSpecificOutput"]["permissionDecision"] == "deny"


# What an event says


@pytest.mark.parametrize(
    ("tool", "tool_input"),
    [
        ("Bash", {"command": DESTRUCTIVE}),
        ("shell", {"command": ["bash", "-lc", DESTRUCTIVE]}),
        ("local_shell", {"command": ["rm", "-rf", "current_model"]}),
        ("exec_command", {"cmd": DESTRUCTIVE}),
        ("write_stdin", {"session_id": 1, "chars": DESTRUCTIVE + "\n"}),
        ("Monitor", {"command": DESTRUCTIVE}),
        ("run_shell_command", {"command": "rm -rf versions", "dir_path": "models"}),
        ("Shell", {"command": "rm -rf versions", "working_directory": "models"}),
        ("exec_command", {"cmd": "rm -rf versions", "workdir": "models"}),
        ("mcp__desktop__start_process", {"command": DESTRUCTIVE}),
        ("mcp__terminal__run", {"command": "rm", "args": ["-rf", "current_model"]}),
        ("mcp__ide__executeCode", {"code": "import shutil\nshutil.rmtree('current_model')"}),
        ("something_new", {"command": DESTRUCTIVE}),
        ("Bash", "rm -rf current_model"),
        ("shell", {"command": ["apply_patch", "*** Begin Patch\n*** Delete File: models/head.json\n*** End Patch"]}),
        ("Bash", {"command": "*** Begin Patch\n*** Delete File: models/head.json\n*** End Patch"}),
    ],
)
def test_a_command_is_found_however_it_is_given(base: str, tool: str, tool_input: Any) -> None:
    told = answer({"tool_name": tool, "tool_input": tool_input, "cwd": base}, base)
    assert told["hookSpecificOutput"]["permissionDecision"] == "deny"


def test_cursors_mcp_tools_are_judged_by_their_json_input(base: str) -> None:
    event = {"hook_event_name": "beforeMCPExecution", "tool_name": "delete_file", "command": "npx server", "cwd": base}
    told = answer({**event, "tool_input": '{"path": "current_model"}'}, base, "cursor")
    assert told["permission"] == "deny"
    assert answer({**event, "tool_input": '{"path": "notes/plan.txt"}'}, base, "cursor") == {"permission": "allow"}


def test_cursors_folder_is_the_first_workspace_where_no_other_is_told(base: str) -> None:
    event = {"hook_event_name": "beforeShellExecution", "command": DESTRUCTIVE, "workspace_roots": [base, "/tmp"]}
    assert answer(event, base, "cursor")["permission"] == "deny"
    assert answer({**event, "cwd": "/tmp"}, base, "cursor")["permission"] == "allow"


def test_codex_may_run_a_command_below_the_folder_that_it_tells(base: str) -> None:
    event = make_event("codex", DESTRUCTIVE, os.path.dirname(base))
    assert answer(event, base, "codex") is not None
    assert answer(event, base, "claude") is None


@pytest.mark.parametrize(
    "tool", ["Read", "Glob", "Grep", "WebFetch", "TodoWrite", "Task", "read_file", "list_directory"]
)
def test_reading_tools_pass(base: str, tool: str) -> None:
    event = {
        "tool_name": tool,
        "tool_input": {"file_path": f"{base}/current_model", "prompt": DESTRUCTIVE},
        "cwd": base,
    }
    assert answer(event, base) is None


# Bad events


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b" ", b"{", b"[]", b"null", b"1", b'"text"', b"\xff\xfe", b"{}", b"[" * 100_000),
        *(b'{"tool_name": 1}', b'{"tool_name": "Bash"}', b'{"tool_name": "Bash", "tool_input": null}'),
        *(b'{"tool_name": "Bash", "tool_input": {"command": 7}}', b'{"tool_name": "Write", "tool_input": {}}'),
        *(b'{"tool_name": "Write", "tool_input": {"file_path": ["a"]}}', b'{"hook_event_name": "Stop"}'),
        *(b'{"tool_name": "Bash", "tool_input": {"command": "cat \\u0000 \\ud800"}, "cwd": "/\\ud800\\u0000"}',),
        *(b'{"tool_name": "Edit", "tool_input": {"file_path": "\\ud800", "old_string": 1}, "cwd": 5}',),
        *(b'{"hook_event_name": ["x"], "tool_name": "mcp__a__b", "tool_input": "{"}',),
    ],
)
@pytest.mark.parametrize("agent", AGENTS)
def test_a_bad_event_without_the_models_gets_no_opinion(base: str, agent: str, data: bytes) -> None:
    assert answer_event(data, base, agent) in (None, {"permission": "allow"})


def test_a_bad_event_that_names_the_models_is_denied(base: str) -> None:
    data = json.dumps(make_event("claude", DESTRUCTIVE, base)).encode()[:-3]
    told = answer_event(data, base, "claude")
    assert told is not None
    assert "is no JSON object" in json.dumps(told)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("command", "file_path", "path", "content", "edits", "old_string", "new_string", "patch", "source", "files")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tool=st.sampled_from(["Bash", "Write", "Edit", "apply_patch", "mcp__x__move_file", "mcp__x__run", "Read"]) | JSON,
    tool_input=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4) | JSON,
    cwd=st.text(max_size=10).map(lambda text: "/" + text) | JSON,
    agent=st.sampled_from(AGENTS),
)
def test_no_event_breaks_the_hook(base: str, tool: Any, tool_input: Any, cwd: Any, agent: str) -> None:
    event = {"hook_event_name": "PreToolUse", "tool_name": tool, "tool_input": tool_input, "cwd": cwd}
    json.dumps(answer(event, base, agent))


# Plainly read-only commands

READ_ONLY = [
    "ls",
    "ls -la /tmp | head -5",
    "git status && git log --oneline -5",
    "git --no-pager diff HEAD~1 -- docs/design.md",
    "git -C /tmp show HEAD:config.json | jq .max_length",
    "cat current_model/adapter_config.json 2>/dev/null || echo none",
    "grep -rn 'rm -rf current_model' docs | wc -l",
    'grep -c "a b" x.txt; echo done;',
    "find . -maxdepth 2 -name '*.py' -newer x -type f | sort -u | tail -3",
    "sed -n 10,20p README.md",
    "sed -n '$p' README.md",
    "cd models && ls -R",
    "du -sh models/versions 2>&1",
    "ps aux | grep training",
    "sort -k2 -n x | uniq -c",
    "date",
    "nvidia-smi",
    f"python3 {CODE_DIR}/state_tracker.py --check",
    f"{CODE_DIR}/state_tracker.py --warnings --base-dir '/some dir' | grep daemon",
]
NOT_PLAINLY_READ_ONLY = [
    "",
    "rm x",
    "ls; rm x",
    "ls && rm x",
    "ls | xargs rm",
    "ls & rm x",
    "ls\nrm x",
    "ls > x",
    "ls >> x",
    "ls 2> x",
    "ls > /dev/null2",
    "cat <(rm x)",
    "cat $(rm x)",
    "cat `rm x`",
    'cat "$(rm x)"',
    'cat "`rm x`"',
    "cat x{a,b}",
    "cat *",
    "FOO=bar ls",
    "PAGER=rm git log",
    "sudo ls",
    "env ls",
    "ls # rm",
    "ls;;",
    "ls ||",
    "| ls",
    "git log --output=x",
    "git log --outpu x",
    "git diff '--output=x'",
    "git -c core.pager=rm log",
    "git checkout x",
    "git show --ext-diff",
    "find . -delete",
    "find . -name x -exec rm y",
    "find . -fprint x",
    "find . '-delete'",
    "sort -o x y",
    "sort -uo x y",
    "sort --output=x y",
    "sort --compress-program=rm y",
    "uniq a b",
    "tree -o x",
    "file -C",
    "date 0101",
    "hostname x",
    "nvidia-smi -r",
    "sed -i s/a/b/ x",
    "sed -n 'w x' y",
    "sed -n 1p x -i",
    "sed -n 1p --in-place x",
    "rg --pre rm x",
    "jq . x | tee y",
    "python3 state_tracker.py --check",
    f"python3 {CODE_DIR}/state_tracker.py --prometheus x",
    f"cd /tmp && python3 ..{CODE_DIR}/state_tracker.py",
    "./ls",
    "/tmp/cat x",
    "'ls -la'",
    "ls 'a",
    "x=1",
    "echo a\\;b",
    "[ -f x ]",
    "ls " + "x" * 5000,
]


@pytest.mark.parametrize("command", READ_ONLY)
def test_a_plainly_read_only_command_is_one_for_the_whole_analysis_too(base: str, command: str) -> None:
    assert is_read_only(command, base)
    verdict = judge_event({"tool_name": "Bash", "tool_input": {"command": f"{command}\n:"}, "cwd": base}, base)
    assert (verdict.action, verdict.failure) == ("pass", "")


@pytest.mark.parametrize("command", NOT_PLAINLY_READ_ONLY)
def test_what_could_do_more_is_looked_through(base: str, command: str) -> None:
    assert not is_read_only(command, base)


WORD = st.sampled_from(
    [
        *(
            "ls",
            "cat",
            "git",
            "find",
            "sort",
            "sed",
            "rg",
            "uniq",
            "log",
            "diff",
            "status",
            "-n",
            "1,2p",
            "-u",
            "-o",
            "-k2",
        ),
        *(
            "--output=current_model/x",
            "--out",
            "-delete",
            "-exec",
            "-name",
            "'*'",
            '"a b"',
            "current_model",
            "models",
            "rm",
        ),
        *(
            "tee",
            "xargs",
            "|",
            "&&",
            "||",
            ";",
            "2>&1",
            "2>/dev/null",
            ">",
            "-rf",
            "config.json",
            "cd",
            "..",
            "-C",
            "-i",
        ),
    ]
)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORD, min_size=1, max_size=8).map(" ".join))
def test_no_command_is_called_read_only_that_the_whole_analysis_stops(base: str, command: str) -> None:
    if is_read_only(command, base):
        verdict = judge_event({"tool_name": "Bash", "tool_input": {"command": f"{command}\n:"}, "cwd": base}, base)
        assert verdict.action == "pass", command


def imported_by(command: str, base: str) -> set[str]:
    python = (sys.executable, "-I", "-S", "-X", "importtime")
    result = run_hook(json.dumps(make_event("claude", command, base)).encode(), "--base-dir", base, python=python)
    return {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "|" in line}


def test_a_plainly_read_only_command_costs_no_more_than_reading_it(base: str) -> None:
    names = imported_by("ls -la | head", base)
    assert {name for name in names if name.startswith("guardrails")} <= {
        *(
            "guardrails",
            "guardrails.guard",
            "guardrails.guard.hook",
            "guardrails.guard.mark",
            "guardrails.guard.read_only",
            "guardrails.guard.verdicts",
        )
    }
    assert not names & {"typing", "pathlib", "subprocess", "argparse", "dataclasses", "tempfile", "shutil", "shlex"}


def test_other_commands_import_little_besides_the_guard(base: str) -> None:
    assert not imported_by("rm -rf build", base) & {
        "pathlib",
        "subprocess",
        "argparse",
        "dataclasses",
        "tempfile",
        "shutil",
    }


# Errors of the guard's own

HARMLESS = [
    "echo hi > notes/x.txt",
    "make test",
    "python3 -m pytest -q tests | tee /tmp/out.txt",
    "git commit -m 'models are better'",
    "git checkout -b try",
    "rm -rf build/*.o notes/old.txt",
    "rm -f *.log",
    "cp notes/plan.txt /tmp/",
    "for f in a b; do echo $f; done",
    "find notes -name '*.txt' -delete",
    "pip install -r requirements.txt",
    "python3 training_controller.py stop --wait 120",
    "python3 backup_manager.py backup current_model/ --type emergency --reason 'before it'",
    "python3 model_versioner.py restore v002",
    "kill 4711",
    "ls $(cat x)",
]
DANGEROUS = [
    DESTRUCTIVE,
    "rm -rf ./models/versions/*",
    "rm -rf *",
    "rm -rf .",
    "rm -rf ../*",
    "rm -rf $PWD",
    "rm -rf c*",
    "cd models && rm -rf versions",
    "rm -rf $UNKNOWN/x",
    "find . -delete",
    "find . -name '*.safetensors' -exec rm {} +",
    "mv models /tmp/",
    "python3 -c \"import shutil; shutil.rmtree('models')\"",
    "git clean -fdx",
    "git checkout .",
    "echo '{\"max_length\": 1}' > config.json",
    "sed -i 's/512/1024/' config.json",
    "rm .config_lock.json",
    "echo {} > .claude/settings.json",
    "rm -rf base_models/tiny",
    "pkill -9 -f training_daemon.py",
    "kill -KILL $(pgrep -f training_daemon)",
    "chmod -R 777 .",
    FOR_A_PERSON,
    "python3 backup_manager.py cleanup --retention-days 1 --execute",
]


@pytest.fixture
def no_shfmt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shell, "SHFMT", str(tmp_path / "shfmt"))


@pytest.mark.usefixtures("no_shfmt")
@pytest.mark.parametrize("command", [*HARMLESS, *READ_ONLY])
def test_without_its_parser_harmless_commands_pass(base: str, command: str) -> None:
    assert answer(make_event("claude", command, base), base) is None


@pytest.mark.usefixtures("no_shfmt")
@pytest.mark.parametrize("command", DANGEROUS)
def test_without_its_parser_what_may_touch_the_models_is_denied(base: str, command: str) -> None:
    told = answer(make_event("claude", command, base), base)["hookSpecificOutput"]
    assert told["permissionDecision"] == "deny"
    assert "could not look through this call" in told["permissionDecisionReason"]
    assert f"make -C {CODE_DIR} install" in told["permissionDecisionReason"]


@pytest.mark.parametrize(
    "error", [RuntimeError("oops"), RecursionError(), MemoryError(), KeyError("x"), ImportError("y")]
)
def test_a_failure_inside_the_guard_stops_only_what_may_touch_the_models(
    base: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("guardrails.guard.protected.Protected.__init__", fail)
    assert answer(make_event("claude", "make test > out.txt", base), base) is None
    assert answer(make_event("claude", DESTRUCTIVE, base), base) is not None
    writes = {"tool_name": "Write", "cwd": base}
    assert answer({**writes, "tool_input": {"file_path": "notes/x.md", "content": DESTRUCTIVE}}, base) is None
    assert answer({**writes, "tool_input": {"file_path": "models/head.json", "content": "{}"}}, base) is not None


def test_an_analysis_that_takes_too_long_is_given_up(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardrails.guard.verdicts.MOST_SECONDS", 1)
    monkeypatch.setattr(shell, "judge_command", lambda *_: signal.pause())
    assert answer(make_event("claude", "make test > out.txt", base), base) is None
    told = answer(make_event("claude", DESTRUCTIVE, base), base)["hookSpecificOutput"]
    assert "it took more than 1 s" in told["permissionDecisionReason"]


def test_a_command_that_is_too_large_passes_unless_it_names_the_models(base: str) -> None:
    large = "; ".join(f"echo {number} > /tmp/x{number}" for number in range(30_000))
    assert answer(make_event("claude", large, base), base) is None
    assert answer(make_event("claude", f"{large}; {DESTRUCTIVE}", base), base) is not None


def test_what_bash_would_not_parse_passes_unless_it_names_the_models(base: str) -> None:
    assert answer(make_event("claude", "if then fi (((", base), base) is None
    assert answer(make_event("claude", f"{DESTRUCTIVE}\nif then fi (((", base), base) is not None


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(), cwd=st.text(max_size=20).map(lambda text: "/" + text))
def test_the_fallback_fails_on_no_text(base: str, text: str, cwd: str) -> None:
    find_danger(f"rm {text}", cwd.replace("\0", ""), base)
    find_path({"path": text}, cwd.replace("\0", ""), base)


# The command line


def test_the_self_test_says_whether_the_guard_works(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_hook(b"", "--self-test", "--base-dir", base)
    assert (result.returncode, result.stdout) == (0, "agent guard: on, 11 probes judged right\n")
    monkeypatch.setattr(shell, "SHFMT", "/nowhere/shfmt")
    works, line = probe_guard(base)
    assert not works
    assert "BROKEN" in line
    assert f"make -C {CODE_DIR} install" in line


def test_the_base_dir_is_the_option_else_the_variable_else_the_toolkits_folder(base: str, tmp_path: Path) -> None:
    event = json.dumps(make_event("claude", f"rm -rf '{base}/current_model'", "/")).encode()
    assert run_hook(event, "--base-dir", base).stdout
    assert run_hook(event, TRAINING_BASE_DIR=base).stdout
    assert run_hook(event, f"--base-dir={tmp_path}", TRAINING_BASE_DIR=base).stdout == ""
    of_toolkit = json.dumps(make_event("claude", f"rm -rf {CODE_DIR}/current_model", "/")).encode()
    assert run_hook(of_toolkit).stdout


@pytest.mark.parametrize("arguments", [["--agent", "other"], ["--agent"], ["--unknown"], ["x"], ["--self-test=1"]])
def test_a_wrong_command_line_denies_and_says_how_it_goes(arguments: list[str]) -> None:
    result = run_hook(b"{}", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: agent_hook.py" in result.stderr


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--self-test" in capsys.readouterr().out


def test_it_runs_as_a_program_and_on_the_systems_python(base: str) -> None:
    event = json.dumps(make_event("claude", DESTRUCTIVE, base)).encode()
    for python in ([], ["python3"], ["python3", "-I", "-S"], [sys.executable]):
        assert '"deny"' in run_hook(event, "--base-dir", base, python=python).stdout


def test_an_old_python_denies_and_says_what_to_run() -> None:
    ast.parse(HOOK.read_text(encoding="utf-8"), feature_version=(3, 8))
    pretend = f"import runpy, sys; sys.version_info = (3, 8, 10); runpy.run_path({str(HOOK)!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", pretend], input=b"{}", capture_output=True, check=False)
    assert result.returncode == 2
    assert b"python 3.8 is too old" in result.stderr
    assert b"make -C" in result.stderr


def test_a_guard_that_is_not_whole_denies_and_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "guardrails").mkdir()
    copy = tmp_path / "guardrails" / "agent_hook.py"
    copy.write_bytes(HOOK.read_bytes())
    result = subprocess.run([sys.executable, "-I", "-S", copy], input=b"{}", capture_output=True, check=False)
    assert result.returncode == 2
    assert b"it is not whole" in result.stderr


# After a call and at a session's start


def test_the_aftermath_can_tell_when_a_call_began(tmp_path: Path) -> None:
    base = make_box(tmp_path / "base")
    answer({"tool_name": "Read", "tool_input": {"file_path": "x"}, "cwd": str(base)}, str(base))
    assert not (base / "status" / "guard.mark").exists()
    answer(make_event("claude", "ls", str(base)), str(base))
    assert (base / "status" / "guard.mark").exists()


@pytest.fixture
def aftermath(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("guardrails.guard.aftermath")
    monkeypatch.setitem(sys.modules, "guardrails.guard.aftermath", module)
    monkeypatch.setattr("guardrails.guard.aftermath", module, raising=False)
    return module


@pytest.mark.parametrize("name", ["PostToolUse", "AfterTool", "postToolUse"])
def test_what_the_aftermath_says_reaches_the_agent(base: str, aftermath: types.ModuleType, name: str) -> None:
    aftermath.look_after = lambda base_dir, event: f"{base_dir} {event['tool_name']}"  # type: ignore[attr-defined]
    event = {"hook_event_name": name, "tool_name": "Bash", "tool_input": {"command": DESTRUCTIVE}}
    for agent in ("claude", "codex", "gemini"):
        assert answer(event, base, agent) == {
            "hookSpecificOutput": {"hookEventName": name, "additionalContext": f"{base} Bash"}
        }
    assert answer(event, base, "cursor") == {"additional_context": f"{base} Bash"}


def test_an_aftermath_that_fails_or_says_nothing_is_silent(base: str, aftermath: types.ModuleType) -> None:
    event = {"hook_event_name": "PostToolUse", "tool_name": "Bash", "tool_input": {}}
    # It has no look_after at all.
    assert answer(event, base) is None
    aftermath.look_after = lambda *_: None  # type: ignore[attr-defined]
    assert answer(event, base) is None
    assert answer(event, base, "cursor") == {}


def test_a_session_begins_with_the_report_and_the_self_test(base: str) -> None:
    result = run_hook(b'{"hook_event_name": "SessionStart", "source": "startup"}', "--base-dir", base)
    assert result.returncode == 0
    told = json.loads(result.stdout)["hookSpecificOutput"]
    assert told["hookEventName"] == "SessionStart"
    for part in ("CURRENT MODEL:", "VERSIONS:", "WARNINGS:", "agent guard: on"):
        assert part in told["additionalContext"]


def test_a_long_report_is_cut_in_the_middle() -> None:
    lines = [
        "CURRENT MODEL:",
        *(f"   v{number:03} a version" for number in range(5000)),
        "WARNINGS: 1, verdict warning",
    ]
    short = shorten("\n".join(lines) + "\n")
    assert len(short) < 9000
    assert short.startswith("CURRENT MODEL:")
    assert short.endswith("WARNINGS: 1, verdict warning")
    assert "lines more" in short
    assert len(shorten("x" * 100_000)) < 9000
