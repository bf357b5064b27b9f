#!/usr/bin/env -S python3 -I -S
"""The agent guard, as agents start it: one tool call as JSON on stdin, the verdict on stdout, exit code 0.

$ echo '{"tool_name":"Bash","tool_input":{"command":"rm -rf current_model"}}' | guardrails/agent_hook.py
{"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "deny", ...}}
$ guardrails/agent_hook.py --self-test
agent guard: on, 11 probes judged right

Parsed by whatever python3 there is, so this file keeps to old syntax. Where the guard cannot even start it exits 2,
which every agent takes for a denial.
"""

import os
import sys

CODE_DIR = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
OLDEST_PYTHON = (3, 11)


def main() -> int:
    if sys.version_info < OLDEST_PYTHON:
        return report(f"python {sys.version_info[0]}.{sys.version_info[1]} is too old for it")
    # Without site packages the toolkit comes last, so that no file beside the scripts is taken for the standard
    # library; with them first, since others may be called like the library.
    script_dir = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [path for path in sys.path if path and os.path.realpath(path) != script_dir]
    sys.path.insert(len(sys.path) if sys.flags.no_site else 0, CODE_DIR)
    try:
        from guardrails.guard.hook import main as judge
    except (ImportError, SyntaxError) as error:
        return report(f"it is not whole: {error}")
    return judge(sys.argv[1:])


def report(what: str) -> int:
    sys.stderr.write(f"The agent guard cannot start, so nothing may run: {what}. Run: make -C '{CODE_DIR}' install\n")
    return 2


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Nothing is open and nothing is buffered: leaving at once saves a tenth of the time.
    os._exit(code)
