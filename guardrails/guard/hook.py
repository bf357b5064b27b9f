"""One event of an agent: what it is about, what the guard says to it, and how that agent wants to be told.

Told apart by ``hook_event_name``: before a tool call the guard judges, after it and at a session's start it reports.
An event that is none of these and holds no tool call gets no answer. Whatever fails inside the guard, the text of the
call decides (``fallback``).
"""

import json
import os
import sys

from guardrails.guard.mark import mark_start
from guardrails.guard.verdicts import (
    CODE_DIR,
    READING_TOOLS,
    Event,
    Verdict,
    describe,
    find_call,
    judge_event,
    judge_text,
)

USAGE = """usage: agent_hook.py [--base-dir DIR] [--agent claude|codex|gemini|cursor] [--self-test]

Reads one hook event as JSON on stdin and prints the verdict as that agent expects it. The base dir is DIR, else
$TRAINING_BASE_DIR, else the toolkit's folder. --self-test judges a few probes and exits 1 if one is judged wrong.
"""
AGENTS = ("claude", "codex", "gemini", "cursor")
MOST_BYTES = 64 << 20
MOST_REASON = 4000
AFTER = ("PostToolUse", "PostToolUseFailure", "AfterTool", "postToolUse", "postToolUseFailure", "afterFileEdit")
SESSION_START = ("SessionStart", "sessionStart")
NOBODY_TO_ASK = " Nobody can be asked here: ask the user, who runs it at a terminal."


class Options:
    """The command line.

    Raises:
        ValueError: it is not as in ``USAGE``.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.base_dir = os.environ.get("TRAINING_BASE_DIR") or CODE_DIR
        self.agent = AGENTS[0]
        self.self_test = self.help = False
        rest = list(arguments)
        while rest:
            option, equals, value = rest.pop(0).partition("=")
            if option in ("--base-dir", "--agent"):
                if not equals and not rest:
                    raise ValueError(f"{option} needs a value")
                value = value if equals else rest.pop(0)
                setattr(self, option[2:].replace("-", "_"), value)
            elif option in ("--self-test", "--help") and not equals:
                setattr(self, option[2:].replace("-", "_"), True)
            else:
                raise ValueError(f"no such option: {option}")
        if self.agent not in AGENTS:
            raise ValueError(f"no such agent: {self.agent}")


def main(arguments: list[str]) -> int:
    """Answer the event on stdin; 0, or 2 (a denial) where the command line itself is wrong."""
    try:
        options = Options(arguments)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n{USAGE}")
        return 2
    if options.help:
        _print(USAGE)
        return 0
    if options.self_test:
        from guardrails.guard.session import probe_guard

        works, line = probe_guard(options.base_dir)
        _print(f"{line}\n")
        return 0 if works else 1
    answer = answer_event(_read_stdin(), options.base_dir, options.agent)
    if answer is not None:
        _print(json.dumps(answer) + "\n")
    return 0


def _read_stdin() -> bytes:
    return sys.stdin.buffer.read(MOST_BYTES) if sys.stdin is not None else b""


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def answer_event(data: bytes, base_dir: str, agent: str) -> Event | None:
    """What to print for an event; None for nothing, which is no opinion."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        return format_verdict(judge_text(data.decode("utf-8", "replace"), base_dir), agent, {})
    name = event.get("hook_event_name")
    if name in SESSION_START:
        from guardrails.guard.session import report_start

        parts = (report_start(base_dir), look_after(base_dir, event))
        return format_context("\n".join(part for part in parts if part), str(name), agent)
    if name in AFTER:
        return format_context(look_after(base_dir, event), str(name), agent)
    if find_call(event)[0].lower() not in READING_TOOLS:
        mark_start(base_dir)
    return format_verdict(judge_event(event, base_dir, agent), agent, event)


def look_after(base_dir: str, event: Event) -> str | None:
    """What a look at the models after a call says to the agent; None if there is nothing to say."""
    try:
        from guardrails.guard import aftermath

        message: str | None = aftermath.look_after(base_dir, event)
    except Exception as error:  # noqa: BLE001 - the call is over: nothing that fails here may fail the agent
        sys.stderr.write(f"agent guard: {describe(error)}\n")
        return None
    return message


# What each agent expects


def format_verdict(verdict: Verdict, agent: str, event: Event) -> Event | None:
    """A verdict in an agent's words. Only Claude Code reliably asks; where nobody is asked, an ask is a denial."""
    action, reason = verdict.action, verdict.reason[:MOST_REASON]
    if action == "ask" and not _can_ask(agent, event):
        action, reason = "deny", reason + NOBODY_TO_ASK
    if agent == "cursor":
        # A hook that fails closed must say something each time; which message the model sees depends on the event.
        messages = {"user_message": reason, "agent_message": reason}
        return {"permission": "allow"} if action == "pass" else {"permission": "deny", **messages}
    if action == "pass":
        return None
    if agent == "gemini":
        return {"decision": "deny", "reason": reason}
    decision = {"hookEventName": "PreToolUse", "permissionDecision": action, "permissionDecisionReason": reason}
    return {"hookSpecificOutput": decision}


def _can_ask(agent: str, event: Event) -> bool:
    """Whether a person would see an ask: Claude Code lets it pass in bypass mode, Cursor in auto-review."""
    return agent == "claude" and event.get("permission_mode") != "bypassPermissions" and "cursor_version" not in event


def format_context(text: str | None, event_name: str, agent: str) -> Event | None:
    """A text for the model, in an agent's words."""
    if agent == "cursor":
        return {"additional_context": text} if text else {}
    return {"hookSpecificOutput": {"hookEventName": event_name, "additionalContext": text}} if text else None
