"""The verdict on the tool call in an event: which call it is, who judges it, and what holds where that fails."""

import json
import os

from guardrails.guard.read_only import is_read_only

# Importing typing would take a fifth of the time that a call takes; mypy knows the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrails.guard.scene import Scene

Event = dict[str, object]

CODE_DIR = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
# Well below the time limits in agents' settings, at which most of them let the call pass.
MOST_SECONDS = 10
# Cursor's own events for two kinds of tools.
BEFORE_SHELL, BEFORE_MCP = "beforeShellExecution", "beforeMCPExecution"
SHELL_TOOLS = frozenset(
    {
        *("bash", "shell", "local_shell", "shell_command", "exec", "exec_command", "unified_exec", "container.exec"),
        *("run_shell_command", "run_terminal_cmd", "run_terminal_command", "runterminalcommand", "run_in_terminal"),
        *("run_command", "execute_command", "terminal", "monitor", "powershell", "write_stdin"),
    }
)
READING_TOOLS = frozenset(
    {
        *("read", "read_file", "read_many_files", "notebookread", "ls", "list_directory", "list_dir", "glob", "grep"),
        *("grep_search", "search_file_content", "codebase_search", "file_search", "lsp", "view_image", "toolsearch"),
        *("webfetch", "web_fetch", "websearch", "web_search", "google_web_search", "fetch_rules", "readlints"),
        *("todowrite", "todoread", "todo_write", "write_todos", "update_plan", "task", "agent", "skill", "save_memory"),
        *("askuserquestion", "ask_user", "exitplanmode", "enterplanmode", "bashoutput", "taskoutput", "killshell"),
    }
)
COMMAND_KEYS = ("command", "cmd", "commandLine", "chars", "input")
FOLDER_KEYS = ("workdir", "working_directory", "workingDirectory", "dir_path", "directory", "cwd")


class Verdict:
    """``action`` is pass, ask or deny; ``failure`` says why the guard could not look through the call, if so."""

    __slots__ = ("action", "failure", "reason")

    def __init__(self, action: str = "pass", reason: str = "", failure: str = "") -> None:
        self.action = action
        self.reason = reason
        self.failure = failure


# The tool call in an event


def find_call(event: Event) -> tuple[str, dict[str, object]]:
    """The name and the input of the tool that an event is about; empty if it is about none."""
    name = event.get("tool_name", event.get("toolName"))
    if event.get("hook_event_name") == BEFORE_SHELL or (name is None and "command" in event):
        return "Shell", {"command": event.get("command")}
    tool_input = event.get("tool_input", event.get("toolInput"))
    if event.get("hook_event_name") == BEFORE_MCP:
        name = f"mcp__{name}"
    if isinstance(tool_input, str):
        tool_input = _parse_input(tool_input)
    if isinstance(tool_input, list):
        tool_input = {"input": tool_input}
    return name if isinstance(name, str) else "", tool_input if isinstance(tool_input, dict) else {}


def _parse_input(text: str) -> object:
    """Cursor gives the input of MCP tools as JSON; others give what is no object as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"input": text}


def find_cwd(event: Event, tool_input: dict[str, object]) -> str:
    """The folder that a tool call would run in, as far as the event tells."""
    roots = event.get("workspace_roots")
    candidates = [event.get("cwd"), *(roots if isinstance(roots, list) else [])]
    folders = [
        folder for folder in candidates if isinstance(folder, str) and folder.startswith("/") and "\0" not in folder
    ]
    cwd = folders[0] if folders else _current_folder()
    if any(key in tool_input for key in COMMAND_KEYS):
        told = [folder for key in FOLDER_KEYS if isinstance(folder := tool_input.get(key), str) and "\0" not in folder]
        cwd = os.path.join(cwd, os.path.expanduser(told[0])) if told else cwd
    return cwd


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def judge_event(event: Event, base_dir: str, agent: str = "claude") -> Verdict:
    """The verdict on the tool call in an event."""
    name, tool_input = find_call(event)
    tool = name.lower()
    if not tool or not tool_input or tool in READING_TOOLS:
        return Verdict()
    cwd = find_cwd(event, tool_input)
    try:
        return _judge_call(name, tool_input, _possible_folders(cwd, base_dir, agent), base_dir)
    except Exception as error:  # noqa: BLE001 - the one outer boundary: whatever fails in here, the call's text decides
        return _fall_back(name, tool_input, cwd, base_dir, describe(error))


def judge_text(text: str, base_dir: str) -> Verdict:
    """The verdict on an event that cannot be read."""
    return _fall_back("Bash", {"command": text}, "/", base_dir, "the event is no JSON object")


def _possible_folders(cwd: str, base_dir: str, agent: str) -> list[str]:
    """Codex does not tell the folder that a command is to run in, only the session's."""
    base = os.path.realpath(base_dir)
    return [cwd, base] if agent == "codex" and base.startswith(os.path.realpath(cwd).rstrip("/") + "/") else [cwd]


def _judge_call(name: str, tool_input: dict[str, object], folders: list[str], base_dir: str) -> Verdict:
    tool = name.lower()
    if tool not in SHELL_TOOLS:
        from guardrails.guard.file_tools import judge_tool

        return _judge(lambda scene: judge_tool(name, tool_input, scene), folders, base_dir)
    command = _find_command(tool_input)
    if not command.strip() or is_read_only(command, folders[0]):
        return Verdict()
    if command.lstrip().startswith("*** Begin Patch"):
        from guardrails.guard.file_tools import judge_patch

        return _judge(lambda scene: judge_patch(command, scene), folders, base_dir)
    from guardrails.guard.shell import judge_command

    return _judge(lambda scene: judge_command(command, scene), folders, base_dir)


def _find_command(tool_input: dict[str, object]) -> str:
    values = [tool_input[key] for key in COMMAND_KEYS if tool_input.get(key)]
    if not values:
        return ""
    if isinstance(values[0], str):
        return values[0]
    from guardrails.guard.tool_input import command_of

    return command_of(values[0])


def _judge(tell: "Callable[[Scene], None]", folders: list[str], base_dir: str) -> Verdict:
    """The verdict on what ``tell`` tells of a call, seen from each folder that it may run in."""
    import signal

    from guardrails.guard.judge import Denied, Judge
    from guardrails.guard.protected import Protected
    from guardrails.guard.scene import Scene

    judge = Judge(Protected(base_dir))
    before = signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(MOST_SECONDS)
    try:
        for cwd in folders:
            tell(Scene(judge, cwd, dict(os.environ)))
    except Denied:
        pass
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Verdict(judge.action, judge.reason)


def _give_up(*_: object) -> None:
    raise TimeoutError(f"it took more than {MOST_SECONDS} s")


def _fall_back(name: str, tool_input: dict[str, object], cwd: str, base_dir: str, failure: str) -> Verdict:
    """The verdict on a call that could not be looked through."""
    from guardrails.guard.fallback import find_danger, find_path

    danger = find_danger(_find_command(tool_input), cwd, base_dir)
    if danger is None and name.lower() not in SHELL_TOOLS:
        danger = find_path(tool_input, cwd, base_dir)
    if danger is None:
        return Verdict(failure=failure)
    reason = (
        f"Stopped: the agent guard could not look through this call ({failure}), and {danger}. Instead: write it as"
        f" plain, separate commands. If that is stopped too, the guard is broken: `make -C {CODE_DIR} install`, then"
        f" `{CODE_DIR}/guardrails/agent_hook.py --self-test`. When in doubt, ask the user."
    )
    return Verdict("deny", reason, failure)


def describe(error: Exception) -> str:
    name = type(error).__name__
    return "it is too large" if name == "TooMuchError" else f"{name}: {error}"[:200]
