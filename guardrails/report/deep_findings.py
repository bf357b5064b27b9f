"""Findings of what a deep check saw and nobody healed since. Only imported where there is something to say."""

from collections.abc import Callable, Iterator, Sequence

from guardrails.queue_records import ENDED
from guardrails.report.deep_record import Problem, is_replaced, is_touched
from guardrails.report.facts import Facts
from guardrails.report.findings import Finding, command, first_of, move_away, quote
from guardrails.report.values import text

# What a finding is made of: the facts, what it is about, in which words, when they were last found so.
Make = Callable[[Facts, str, list[str], str], Finding]


def find_remembered(facts: Facts, problems: Sequence[Problem]) -> Iterator[Finding]:
    """The findings of the problems that still stand.

    One that somebody wrote to since stands, too, and its command reads it again: it may be healed, or worse.
    """
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        if problem.finding in KINDS and not is_replaced(facts.paths, problem):
            subject = problem.subject if problem.finding in OF_ONE_THING else ""
            groups.setdefault((problem.finding, subject), []).append(problem)
    for (kind, subject), group in groups.items():
        words = sorted({text(problem.words) for problem in group})
        finding = KINDS[kind](facts, text(subject), words, max(text(problem.at) for problem in group))
        damaged_records = [path for problem in group if not problem.absent for path in problem.present]
        if kind == "queue-record-missing" and damaged_records:
            finding.hint = "; ".join(move_away(str(facts.paths.base / path)) for path in damaged_records)
        if any(is_touched(facts.paths, problem) for problem in group):
            finding.hint = command(facts, "state_tracker.py", "--deep")
        yield finding


def _version_bytes(facts: Facts, version: str, words: list[str], at: str) -> Finding:
    message = f"bytes of version {version} are damaged: {first_of(words)}; read at {at}"
    hint = command(facts, "model_versioner.py", "repair", version)
    return Finding(f"version-bytes-damaged:{version}", "backup", "critical", message, hint)


def _version_gone(facts: Facts, version: str, words: list[str], _: str) -> Finding:
    message = f"version {version} is gone: its folder is missing, and no command removed it; {first_of(words)}"
    hint = command(facts, "model_versioner.py", "repair", version)
    return Finding(f"version-gone:{version}", "backup", "critical", message, hint)


def _version_index(facts: Facts, _: str, words: list[str], __: str) -> Finding:
    name = facts.paths.relative(facts.paths.version_index)
    message = f"{name} does not say what the metadata say: {first_of(words)}"
    return Finding("version-index-wrong", "backup", "warning", message, f"rm {quote(str(facts.paths.version_index))}")


def _backup_bytes(facts: Facts, backup: str, words: list[str], at: str) -> Finding:
    message = f"bytes of backup {backup} are damaged: {first_of(words)}; read at {at}"
    hint = command(facts, "model_versioner.py", "repair", backup)
    return Finding(f"backup-bytes-damaged:{backup}", "backup", "warning", message, hint)


def _model_bytes(facts: Facts, _: str, words: list[str], at: str) -> Finding:
    version = text(facts.head.get("version"))
    message = f"bytes of current_model/ are not those of {version}: {first_of(words)}; read at {at}"
    # Its stamps say that nothing was changed, so that rollback would take it for sound.
    touch = f"find {quote(str(facts.paths.current_model))} -type f -exec touch {{}} +"
    hint = f"{touch}; {command(facts, 'model_versioner.py', 'rollback', '--by-hand')}"
    return Finding("model-bytes-damaged", "model", "critical", message, hint)


def _adapter(facts: Facts, _: str, words: list[str], __: str) -> Finding:
    message = f"the adapter in current_model/ cannot be loaded: {first_of(words)}"
    hint = command(facts, "model_versioner.py", "rollback")
    return Finding("model-adapter-broken", "model", "critical", message, hint)


def _base_model(facts: Facts, _: str, words: list[str], at: str) -> Finding:
    message = f"bytes of the base model are not the locked ones: {first_of(words)}; read at {at}"
    # Without that cache config check, and each pre-flight, read it all.
    forget = f"rm -f {quote(str(facts.paths.base_model_stat))}"
    hint = f"{forget}; {command(facts, 'training_controller.py', 'config', 'check')}"
    return Finding("base-model-bytes-changed", "config", "critical", message, hint)


def _config_lock(facts: Facts, _: str, words: list[str], __: str) -> Finding:
    message = f"{facts.paths.config_lock.name} is not as it was last approved: {first_of(words)}"
    hint = command(facts, "training_controller.py", "config", "check")
    return Finding("config-lock-unapproved", "config", "critical", message, hint)


def _queue_file(facts: Facts, _: str, words: list[str], __: str) -> Finding:
    ended = [f"queue/{state}/" for state in ENDED]
    severity = "info" if all(word.endswith(tuple(ended)) for word in words) else "warning"
    message = f"data files of the queue are gone: {first_of(words)}"
    hint = command(facts, "training_queue.py", "history")
    return Finding("queue-file-missing", "daemon", severity, message, hint)


def _queue_record(facts: Facts, _: str, words: list[str], __: str) -> Finding:
    message = f"data files have no record that can be read: {first_of(words)}"
    hint = command(facts, "training_queue.py", "list")
    return Finding("queue-record-missing", "daemon", "warning", message, hint)


def _queue_data(facts: Facts, _: str, words: list[str], at: str) -> Finding:
    message = f"completed data files are not what was trained: {first_of(words)}; read at {at}"
    hint = command(facts, "training_queue.py", "list", "--state", "completed")
    return Finding("queue-data-changed", "daemon", "warning", message, hint)


def _queue_version(facts: Facts, _: str, words: list[str], __: str) -> Finding:
    message = f"queue and versions do not agree: {first_of(words)}"
    hint = command(facts, "training_queue.py", "history")
    return Finding("queue-version-mismatch", "daemon", "warning", message, hint)


def _incomplete(facts: Facts, _: str, words: list[str], at: str) -> Finding:
    message = f"not all could be read in the deep check of {at}: {first_of(words)}"
    return Finding("deep-check-incomplete", "backup", "info", message, command(facts, "state_tracker.py", "--deep"))


KINDS: dict[str, Make] = {
    "version-bytes-damaged": _version_bytes,
    "version-gone": _version_gone,
    "version-index-wrong": _version_index,
    "backup-bytes-damaged": _backup_bytes,
    "model-bytes-damaged": _model_bytes,
    "model-adapter-broken": _adapter,
    "base-model-bytes-changed": _base_model,
    "config-lock-unapproved": _config_lock,
    "queue-file-missing": _queue_file,
    "queue-record-missing": _queue_record,
    "queue-data-changed": _queue_data,
    "queue-version-mismatch": _queue_version,
    "deep-check-incomplete": _incomplete,
}
OF_ONE_THING = ("version-bytes-damaged", "version-gone", "backup-bytes-damaged")
