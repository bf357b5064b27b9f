"""A session's start: the report of what exists, and whether the guard works; both never fail the session."""

import json
import os
import subprocess
import sys

from guardrails.guard.verdicts import CODE_DIR, Event, judge_event

REPORT_SECONDS = 20
# What fits into a context without pushing anything out; of a longer report the middle goes, which is old versions.
MOST_LINES_ABOVE, MOST_LINES_BELOW = 10, 60
MOST_CHARACTERS = 8000


def report_start(base_dir: str) -> str:
    """The report of ``state_tracker.py --check``, and whether the guard works."""
    return f"{_run_tracker(base_dir)}\n{probe_guard(base_dir)[1]}"


def _run_tracker(base_dir: str) -> str:
    command = [_python(), f"{CODE_DIR}/state_tracker.py", "--check", "--base-dir", base_dir]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=REPORT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"state_tracker.py --check could not run: {error}"
    return shorten(done.stdout if done.returncode == 0 else done.stdout + done.stderr)


def _python() -> str:
    python = f"{CODE_DIR}/.venv/bin/python"
    return python if os.access(python, os.X_OK) else sys.executable or "python3"


def shorten(text: str) -> str:
    """A report without the middle of it, if it is long: its verdict stands at the end."""
    lines = text.rstrip("\n").split("\n")
    left_out = len(lines) - MOST_LINES_ABOVE - MOST_LINES_BELOW
    if left_out > 1:
        lines[MOST_LINES_ABOVE:-MOST_LINES_BELOW] = [f"   … {left_out} lines more: python3 state_tracker.py --check"]
    text = "\n".join(lines)
    return text if len(text) <= MOST_CHARACTERS else "…" + text[-MOST_CHARACTERS:]


# The self-test


def probe_guard(base_dir: str) -> tuple[bool, str]:
    """Whether the guard judges a few calls right, all the way through its parser; nothing is carried out."""
    base = os.path.abspath(base_dir)
    probes = _make_probes(base)
    wrong = []
    for expected, tool, tool_input in probes:
        event: Event = {"tool_name": tool, "tool_input": tool_input, "cwd": base}
        verdict = judge_event(event, base)
        if verdict.failure or (verdict.action == "pass") != (expected == "pass"):
            wrong.append(f"{tool} {json.dumps(tool_input)}: {verdict.action}, {verdict.failure or f'not {expected}'}")
    if wrong:
        fix = f"make -C {CODE_DIR} install"
        return False, f"agent guard: BROKEN, {len(wrong)} of {len(probes)} probes judged wrong ({wrong[0]}); run: {fix}"
    return True, f"agent guard: on, {len(probes)} probes judged right"


def _make_probes(base: str) -> list[tuple[str, str, dict[str, object]]]:
    def shell(expected: str, command: str) -> tuple[str, str, dict[str, object]]:
        return expected, "Bash", {"command": command}

    return [
        shell("pass", "ls -la && git status"),
        shell("pass", 'for f in a b; do echo "$f" > /tmp/$f.txt; done'),
        shell("pass", "grep -rn 'rm -rf current_model' docs | tee /tmp/found.txt"),
        shell("pass", "rm -f .system_state.json"),
        ("pass", "Write", {"file_path": f"{base}/notes.txt", "content": "rm -rf current_model"}),
        shell("deny", "rm -rf current_model"),
        shell("deny", "cd models && bash -c 'rm -r versions'"),
        shell("deny", "find . -name '*.safetensors' -delete"),
        shell("deny", "echo {} > current_model/adapter_config.json"),
        ("deny", "Write", {"file_path": f"{base}/models/versions/v001/metadata.json", "content": "{}"}),
        ("deny", "Edit", {"file_path": f"{base}/.config_lock.json", "old_string": "a", "new_string": "b"}),
    ]
