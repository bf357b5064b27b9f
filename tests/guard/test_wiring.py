"""What ships wires the guard into each agent: every command line runs as that agent runs it."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guardrails.paths import CODE_DIR
from tests.guard.box import make_box

SETTINGS = {
    "claude": ".claude/settings.json",
    "codex": ".codex/hooks.json",
    "gemini": ".gemini/settings.json",
    "cursor": ".cursor/hooks.json",
}
# What each agent tells the hook by its environment; Codex tells nothing.
FOLDER_VARIABLE = {"claude": "CLAUDE_PROJECT_DIR", "gemini": "GEMINI_PROJECT_DIR", "cursor": "CURSOR_PROJECT_DIR"}
BEFORE = ("PreToolUse", "BeforeTool", "preToolUse", "beforeShellExecution", "beforeMCPExecution")
AFTER = ("PostToolUse", "AfterTool", "postToolUse")
START = ("SessionStart", "sessionStart")
# Every tool of an agent that can change a file.
TOOLS = {
    "claude": ("Bash", "Monitor", "Write", "Edit", "MultiEdit", "NotebookEdit", "mcp__filesystem__write_file"),
    "codex": ("Bash", "apply_patch", "mcp__filesystem__write_file"),
    "gemini": ("run_shell_command", "write_file", "replace", "mcp_filesystem_write_file"),
    "cursor": ("Shell", "Write", "Delete", "StrReplace", "MCP:write_file"),
}


class Wired(NamedTuple):
    """One hook of one agent."""

    agent: str
    event: str
    matcher: str
    entry: dict[str, Any]


def read_settings(agent: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((CODE_DIR / SETTINGS[agent]).read_text(encoding="utf-8"))
    return document


def find_wired(agent: str) -> list[Wired]:
    wired = []
    for event, groups in read_settings(agent)["hooks"].items():
        for group in groups:
            # Cursor has no groups.
            wired += [Wired(agent, event, group.get("matcher", ""), entry) for entry in group.get("hooks", [group])]
    return wired


ALL = [wired for agent in SETTINGS for wired in find_wired(agent)]
IDS = [f"{wired.agent}-{wired.event}" for wired in ALL]
BEFORE_ALL = [wired for wired in ALL if wired.event in BEFORE]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toolkit, installed in a folder with an odd name that is its own base dir."""
    base = make_box(tmp_path_factory.mktemp("wiring") / "mein Projekt (ü) it's")
    copy_toolkit(base)
    (base / ".venv").symlink_to(CODE_DIR / ".venv")
    return base


def copy_toolkit(folder: Path) -> None:
    shutil.copytree(CODE_DIR / "guardrails", folder / "guardrails", ignore=shutil.ignore_patterns("__pycache__"))
    for script in CODE_DIR.glob("*.py"):
        shutil.copy2(script, folder)
    for settings in SETTINGS.values():
        (folder / settings).parent.mkdir()
        shutil.copy2(CODE_DIR / settings, folder / settings)


def run_wired(
    wired: Wired, project: Path, event: dict[str, Any], shell: tuple[str, ...] = ("sh", "-c"), **environment: str
) -> subprocess.CompletedProcess[str]:
    """A hook's command as its agent runs it, from another folder where the agent says where the project is."""
    command, cwd = wired.entry["command"], Path("/")
    if wired.agent == "codex":
        cwd = project / "notes"
    else:
        environment.setdefault(FOLDER_VARIABLE[wired.agent], str(project))
    if wired.agent == "gemini":
        # It writes the folder into the command, quoted as a word.
        command = re.sub(r"\$(?:GEMINI|CLAUDE)_PROJECT_DIR", lambda _: shlex.quote(str(project)), command)
    return subprocess.run(
        [*shell, command],
        input=json.dumps({"hook_event_name": wired.event, **event}),
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **environment},
        cwd=cwd,
        check=False,
        timeout=60,
    )


def make_call(wired: Wired, project: Path, command: str) -> dict[str, Any]:
    """A tool call that runs a command, as the agent tells it before and after."""
    if wired.event == "beforeShellExecution":
        return {"command": command, "cwd": str(project)}
    tool = {"gemini": "run_shell_command", "cursor": "Shell"}.get(wired.agent, "Bash")
    tool_input: Any = {"command": command}
    if wired.event == "beforeMCPExecution":
        tool, tool_input = "run_command", json.dumps(tool_input)
    return {"tool_name": tool, "tool_input": tool_input, "cwd": str(project)}


def is_denied(result: subprocess.CompletedProcess[str]) -> bool:
    assert result.returncode == 0, result
    told = json.loads(result.stdout or "{}")
    decision = told.get("hookSpecificOutput", {}).get("permissionDecision")
    return "deny" in (decision, told.get("decision"), told.get("permission"))


@pytest.mark.parametrize("shell", [("sh", "-c"), ("bash", "-lc")])
@pytest.mark.parametrize("wired", BEFORE_ALL, ids=[f"{wired.agent}-{wired.event}" for wired in BEFORE_ALL])
def test_each_wired_command_denies_what_destroys_and_nothing_else(
    project: Path, wired: Wired, shell: tuple[str, ...]
) -> None:
    assert is_denied(run_wired(wired, project, make_call(wired, project, "rm -rf current_model"), shell))
    assert not is_denied(run_wired(wired, project, make_call(wired, project, "echo x > notes/x.txt; ls"), shell))


@pytest.mark.parametrize("wired", [w for w in ALL if w.event in AFTER], ids=lambda wired: wired.agent)
def test_the_look_after_a_call_never_fails_it(project: Path, wired: Wired) -> None:
    result = run_wired(wired, project, {**make_call(wired, project, "ls"), "tool_response": "x"})
    assert (result.returncode, result.stderr) == (0, "")
    json.loads(result.stdout or "{}")


@pytest.mark.parametrize("wired", [w for w in ALL if w.event in START], ids=lambda wired: wired.agent)
def test_a_session_begins_with_the_report(project: Path, wired: Wired) -> None:
    result = run_wired(wired, project, {"source": "startup"})
    assert (result.returncode, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    context = told.get("additional_context") or told["hookSpecificOutput"]["additionalContext"]
    for part in ("CURRENT MODEL:", "VERSIONS:", "agent guard: on"):
        assert part in context


@pytest.mark.parametrize("wired", ALL, ids=IDS)
def test_a_guard_that_is_gone_stops_tools_but_no_session(tmp_path: Path, wired: Wired) -> None:
    project = tmp_path / "no toolkit"
    (project / "notes").mkdir(parents=True)
    result = run_wired(wired, project, make_call(wired, project, "ls"))
    if wired.event in BEFORE:
        # Exit code 2 with a reason is what every agent takes for a denial.
        assert result.returncode == 2
        assert "make install" in result.stderr
    else:
        assert result.returncode == 0


@pytest.mark.parametrize("wired", BEFORE_ALL, ids=[f"{wired.agent}-{wired.event}" for wired in BEFORE_ALL])
def test_without_any_python_nothing_runs(tmp_path: Path, wired: Wired) -> None:
    project = tmp_path / "project"
    (project / "notes").mkdir(parents=True)
    copy_toolkit(project)
    shell = shutil.which("sh") or "/bin/sh"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to(shell)
    result = run_wired(wired, project, make_call(wired, project, "ls"), (shell, "-c"), PATH=str(tmp_path / "bin"))
    assert result.returncode == 2
    assert "make install" in result.stderr


@pytest.mark.parametrize("wired", BEFORE_ALL, ids=[f"{wired.agent}-{wired.event}" for wired in BEFORE_ALL])
def test_before_the_installation_the_systems_python_guards(tmp_path: Path, wired: Wired) -> None:
    if subprocess.run(["python3", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode:
        pytest.skip("the system's python3 is older than 3.11")
    project = make_box(tmp_path / "project")
    copy_toolkit(project)
    assert is_denied(run_wired(wired, project, make_call(wired, project, "rm -rf current_model; :")))
    assert not is_denied(run_wired(wired, project, make_call(wired, project, "for f in a b; do echo $f; done")))


def matches(agent: str, matcher: str, tool: str) -> bool:
    """Whether an agent runs a hook for a tool: all do for none and for a star; else names, or a regular expression."""
    if matcher in ("", "*"):
        return True
    if agent in ("claude", "codex") and re.fullmatch(r"[A-Za-z0-9_|]+", matcher):
        return tool in matcher.split("|")
    return re.search(matcher, tool) is not None


@pytest.mark.parametrize("agent", SETTINGS)
def test_each_tool_that_changes_files_meets_the_guard_before_and_after(agent: str) -> None:
    for events in (BEFORE, AFTER):
        matchers = [wired.matcher for wired in ALL if wired.agent == agent and wired.event in events]
        for tool in TOOLS[agent]:
            assert any(matches(agent, matcher, tool) for matcher in matchers), (tool, matchers)


@pytest.mark.parametrize("wired", ALL, ids=IDS)
def test_each_hook_has_a_time_limit_and_what_guards_fails_closed_where_it_can(wired: Wired) -> None:
    seconds = wired.entry["timeout"] / (1000 if wired.agent == "gemini" else 1)
    assert 10 <= seconds <= 60
    if wired.event in BEFORE:
        closed = {"claude": ("onFailure", "block"), "cursor": ("failClosed", True)}.get(wired.agent)
        assert closed is None or wired.entry[closed[0]] == closed[1]


def test_the_permission_rules_are_of_kinds_that_are_consulted() -> None:
    permissions = read_settings("claude")["permissions"]
    for rule in [*permissions["deny"], *permissions["ask"]]:
        assert re.fullmatch(r"(?:Edit\(/|Bash\(\w).*\)", rule), rule


def test_agents_that_read_another_file_get_the_same_rules() -> None:
    rules = CODE_DIR / "CLAUDE.md"
    assert (CODE_DIR / "AGENTS.md").resolve() == rules
    assert rules.name in read_settings("gemini")["context"]["fileName"]
