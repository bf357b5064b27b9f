"""Commands of this toolkit: which of them a person decides on."""

import json
import os

from guardrails.guard.patterns import TAINT, UNKNOWN, is_known
from guardrails.guard.protected import CONFIG, LOCKED_KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guardrails.guard.shell import Shell

# Script and subcommand: the flag that makes it final (None: always), the one that takes that back, what to run first.
ASKED = {
    ("model_versioner.py", "consolidate"): (None, None, "model_versioner.py list"),
    ("model_versioner.py", "delete"): ("--confirm", None, "model_versioner.py list"),
    ("model_versioner.py", "prune"): ("--execute", None, "model_versioner.py prune --keep-last 30"),
    ("model_versioner.py", "trash empty"): (None, "--dry-run", "model_versioner.py trash list"),
    ("backup_manager.py", "cleanup"): ("--execute", None, "backup_manager.py cleanup --retention-days 30"),
}
VALUED = (
    "--base-dir",
    "--reason",
    "--description",
    "--type",
    "--priority",
    "--wait",
    "--target",
    "--older-than",
    "--retention-days",
    "--prometheus",
)


def run_toolkit(shell: "Shell", script: str, folder: str, arguments: list[str]) -> str:
    """One command of the toolkit; those of another base dir are none of this guard's business."""
    words, options = _split(arguments)
    if "--help" in arguments or "--version" in arguments:
        return UNKNOWN
    base = options.get("--base-dir") or (
        shell.value_of("TRAINING_BASE_DIR") if shell.is_set("TRAINING_BASE_DIR") else folder
    )
    protected, judge = shell.scene.judge.protected, shell.scene.judge
    if is_known(base) and os.path.realpath(shell.scene.paths(base)[0]) != protected.base:
        return UNKNOWN
    if script == "training_controller.py":
        _run_controller(shell, words, arguments)
    if target := options.get("--prometheus"):
        shell.scene.effect("write", target)
    for name in (" ".join(words[:2]), " ".join(words[:1])):
        if (script, name) in ASKED:
            flag, harmless, instead = ASKED[script, name]
            if (flag is None or flag in arguments) and harmless not in arguments:
                judge.ask(f"`{script} {name}` {'merges' if name == 'consolidate' else 'removes'} for good", instead)
            break
    return TAINT


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    words: list[str] = []
    options: dict[str, str] = {}
    rest = iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in VALUED:
            options[name] = value if equals else next(rest, "")
        elif not word.startswith("-") or word == "-" or word[1:2].isdigit():
            words.append(word)
    return words, options


def _run_controller(shell: "Shell", words: list[str], arguments: list[str]) -> None:
    judge = shell.scene.judge
    if words[:1] == ["agent"] and "--" in arguments:
        shell.run_argv(arguments[arguments.index("--") + 1 :])
    elif words[:2] == ["config", "approve"]:
        judge.deny(CONFIG, "`config approve` accepts a changed locked value, which only a person may do, at a terminal")
    elif words[:2] == ["config", "set"] and len(words) > 3:
        key, value = words[2], _parse(words[3])
        locked = judge.protected.locked
        if key in LOCKED_KEYS and key in locked and value != locked[key]:
            old, new = json.dumps(locked[key]), json.dumps(value)
            what = f"`config set {key}` would change a locked value from {old} to {new}"
            judge.deny(CONFIG, f"{what}, which only a person may do, at a terminal")


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
