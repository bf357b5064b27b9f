"""Whether an AI agent started this process, as far as a process can know.

Agents mark the environment of what they start, and are among its ancestors. What neither shows cannot be known: a
process that was cut loose from its ancestors with an empty environment, or keys sent into a person's own terminal.
"""

import os
from collections.abc import Iterator, Mapping

# Set by agents for the commands that they run (the last by our own launcher). Source: the agents' documentation, and
# what aws-cdk, std-env and the Supabase CLI look for.
MARKERS = (
    *("CLAUDECODE", "CLAUDE_CODE", "AI_AGENT", "GEMINI_CLI", "CURSOR_AGENT", "CURSOR_TRACE_ID", "VSCODE_AGENT"),
    *("CODEX_SANDBOX", "CODEX_SANDBOX_NETWORK_DISABLED", "CODEX_THREAD_ID", "CODEX_CI", "COPILOT_AGENT", "OPENCODE"),
    *("OPENCODE_CLIENT", "AUGMENT_AGENT", "ANTIGRAVITY_AGENT", "QWEN_CODE", "CLINE_ACTIVE", "GUARDRAILS_AGENT"),
)
PROGRAMS = frozenset({"aider", "claude", "codex", "copilot", "cursor-agent", "gemini", "goose", "opencode", "qwen"})
INTERPRETERS = frozenset({"bun", "deno", "node", "python", "python3", "sh"})
SUFFIXES = (".js", ".mjs", ".cjs", ".py", ".exe")


def find_agent() -> str | None:
    """What shows that an AI agent started this process, in words; None if nothing does."""
    if marker := find_marker(os.environ):
        return f"{marker} is set"
    for pid in _ancestors():
        if marker := find_marker(_environ_of(pid)):
            return f"{marker} is set for process {pid}, which started this one"
        if program := find_program(_command_of(pid)):
            return f"process {pid}, which started this one, is {program}"
    return None


def find_marker(environ: Mapping[str, str]) -> str | None:
    """The first of the variables by which agents mark what they start."""
    return next((name for name in MARKERS if environ.get(name, "").lower() not in ("", "0", "false")), None)


def find_program(command: list[str]) -> str | None:
    """The agent that a command line runs, by the name of the program or of the script that an interpreter runs."""
    names = [os.path.basename(word) for word in command[:2]]
    if names and names[0] not in INTERPRETERS:
        names = names[:1]
    for name in names:
        stem = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
        if stem in PROGRAMS:
            return stem
    return None


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid > 0:
        yield pid
        # The name in brackets may hold anything; the parent is the second field behind it.
        fields = _read(pid, "stat").rpartition(b")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0


def _environ_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty where it is another user's."""
    pairs = (entry.partition("=") for entry in os.fsdecode(_read(pid, "environ")).split("\0"))
    return {name: value for name, _, value in pairs}


def _command_of(pid: int) -> list[str]:
    return os.fsdecode(_read(pid, "cmdline")).split("\0")


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read(1 << 20)
    except OSError:
        return b""
