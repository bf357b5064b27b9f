"""The state document: one object with many faces, kept in ``.system_state.json``.

Its keys are those of the ``SystemState`` in docs/STATE_TRACKER_GUIDE.md; ``guardrails.report.schema`` has their types.
"""

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from guardrails.errors import BusyError, DamagedStateError
from guardrails.paths import SANDBOX, Paths
from guardrails.report.facts import LOCKED_DEFAULTS, Facts, gather, has_adapter, training_steps, true_status
from guardrails.report.findings import Finding, find, is_under_way, look_at, quote, verdict, worst_first
from guardrails.report.history import record
from guardrails.report.memory import ReportMemory
from guardrails.report.report import Report
from guardrails.report.values import Json, integer, number_or_none, text, timestamp, to_gb
from guardrails.state_io import (
    SCHEMA_VERSION,
    format_utc,
    read_json,
    remove_abandoned_files,
    set_aside,
    take_stat,
    write_text,
)

if TYPE_CHECKING:
    from guardrails.report.deep_record import Problem


def update_document(paths: Paths, now: float | None = None, problems: "list[Problem] | None" = None) -> Json:
    """The document of ``update_report``."""
    return update_report(paths, now, problems).document


def update_report(paths: Paths, now: float | None = None, problems: "list[Problem] | None" = None) -> Report:
    """The state document of this moment, written to ``.system_state.json`` and its history if the disk takes them.

    ``problems`` are those of a deep check that has just ended; else those that an earlier one left on record count.
    A state file that is damaged or from a newer toolkit is set aside as ``.damaged`` first, and so is a damaged
    history. Neither that nor a disk that cannot be written fails the report: all are findings in it.
    """
    now = time.time() if now is None else now
    facts = gather(paths, now)
    previous = _read_previous(paths, facts.memory)
    # The history before the state file, so that it knows no less than that.
    found = find(facts, timestamp(previous.get("last_updated"))) + _find_remembered(facts, problems)
    findings, report = _record(facts, worst_first(found), previous)
    stat = None
    try:
        stat = take_stat(write_text(paths.system_state, report.text))
        remove_abandoned_files(paths.system_state, now)
    except OSError as error:
        name = paths.system_state.name
        message = f"{name} could not be written: {error.strerror or error}"
        hint = look_at(paths.base, str(paths.system_state))
        # The history's trouble, if it has any, is the same one.
        findings = [finding for finding in findings if finding.id != "history-unwritable"]
        severity = "info" if is_as_it_should_be(error) else "warning"
        findings = worst_first([*findings, Finding("state-file-unwritable", "disk", severity, message, hint)])
        report = build_report(facts, findings, previous)
    shelves = {"versions": facts.versions, "backups": facts.backups}
    facts.memory.leave(paths, shelves, report.sections, stat, now)
    return report


def _find_remembered(facts: Facts, problems: "list[Problem] | None") -> list[Finding]:
    """What a deep check found and nobody healed since."""
    if problems is None:
        with contextlib.suppress(DamagedStateError):
            known = (read_json(facts.paths.deep_check) or {}).get("problems")
            if known:
                from guardrails.report.deep_record import read_problems

                problems = read_problems(facts.paths)
    if not problems:
        return []
    from guardrails.report.deep_findings import find_remembered

    return list(find_remembered(facts, problems))


def _record(facts: Facts, found: list[Finding], previous: Json) -> tuple[list[Finding], Report]:
    """Findings and report, with what there is to say of the history, to which the report was added if it is news."""
    paths = facts.paths
    name = paths.relative(paths.state_history)
    for _ in range(2):
        findings = found
        if os.path.lexists(f"{paths.state_history}.damaged"):
            message = f"{name} was damaged; it was set aside as {paths.state_history.name}.damaged and begun anew"
            hint = f"rm -r {quote(f'{paths.state_history}.damaged')}*"
            findings = worst_first([*findings, Finding("history-damaged", "disk", "warning", message, hint)])
        report = build_report(facts, findings, previous)
        severity = "warning"
        try:
            record(paths, report.sections, text(facts.head.get("version")) or None, facts.now, report.rows)
            return findings, report
        except DamagedStateError as error:
            # It was set aside, and is begun anew in the second round; one of a newer toolkit stays.
            reason = error.message
            continue
        except BusyError as error:
            # The next report adds what this one could not.
            reason = error.message
            severity = "info"
        except OSError as error:
            reason = error.strerror or str(error)
            severity = "info" if is_as_it_should_be(error) else "warning"
        break
    hint = look_at(paths.status, *(f"{paths.state_history}{suffix}" for suffix in ("", "-wal", "-shm")))
    problem = Finding("history-unwritable", "disk", severity, f"{name} could not be written: {reason}", hint)
    findings = worst_first([*findings, problem])
    return findings, build_report(facts, findings, previous)


def is_as_it_should_be(error: OSError) -> bool:
    """Whether it is an agent's sandbox that keeps a file from being written."""
    return error.errno == errno.EROFS and SANDBOX in os.environ


def _read_previous(paths: Paths, memory: ReportMemory) -> Json:
    """The last document, if only in short; empty if there is none, or none that is of use, which is then set aside."""
    try:
        return memory.previous(paths) or read_json(paths.system_state) or {}
    except DamagedStateError:
        # Where it fails another report was quicker, or the folder is closed: then writing fails too, and says so.
        with contextlib.suppress(OSError):
            set_aside(paths.system_state)
        return {}


def build_report(facts: Facts, findings: list[Finding], previous: Json) -> Report:
    """The report of ``facts``; a finding that stands in ``previous`` keeps its ``since``."""
    first: dict[str, str] = {}
    for finding in findings:
        first.setdefault(finding.category, finding.message)
    sections = {
        "schema_version": SCHEMA_VERSION,
        "last_updated": format_utc(facts.now),
        "verdict": verdict(findings),
        "current_model": {**_current_model(facts), "warning": first.get("model")},
        "versions": [],
        "config": {**_config(facts), "warning": first.get("config")},
        "training_status": _training_status(facts),
        "daemon_running": facts.daemon_running,
        "disk_space": {**_disk_space(facts), "warning": first.get("disk")},
        "warnings": [[finding.category, finding.message] for finding in findings],
        "warning_details": _details(facts, findings, previous),
        "queue": facts.queue,
        "storage": _storage(facts),
        "pending": _pending(facts),
        "gpu": facts.gpu,
    }
    return Report(sections, facts.versions.summary.rows)


def _details(facts: Facts, findings: list[Finding], previous: Json) -> list[Json]:
    known: dict[str, str] = {}
    details = previous.get("warning_details")
    for detail in details if isinstance(details, list) else []:
        since = timestamp(detail.get("since")) if isinstance(detail, dict) else None
        if since is not None:
            known[text(detail.get("id"))] = since
    return [
        {
            "id": finding.id,
            "category": finding.category,
            "severity": finding.severity,
            "message": finding.message,
            "hint": finding.hint,
            "since": known.get(finding.id, format_utc(facts.now)),
        }
        for finding in findings
    ]


def _current_model(facts: Facts) -> Json:
    signature = facts.model_signature or {}
    # By inode, so that hard links count once; what is no regular file has size -1.
    size = sum({stat[3]: stat[0] for stat in signature.values() if stat[0] > 0}.values())
    return {
        "exists": facts.model_signature is not None,
        "path": "current_model/",
        "size_gb": to_gb(size),
        "has_adapter": has_adapter(facts),
        "training_steps": training_steps(facts),
        "last_training": _last_training(facts),
    }


def _last_training(facts: Facts) -> str | None:
    """When the newest training in the lineage of ``current_model/`` ended; without versions, its newest file's time."""
    if not facts.model_signature:
        return None
    seen: set[object] = set()
    tree = facts.head_version
    while tree is not None and tree.id not in seen:
        seen.add(tree.id)
        if tree.metadata.get("kind") == "training":
            return tree.created_at()
        tree = facts.versions.find(tree.metadata.get("parent"))
    if seen or not training_steps(facts):
        return None
    return format_utc(max(stat[1] for stat in facts.model_signature.values()) / 1e9)


def _config(facts: Facts) -> Json:
    return {
        "exists": facts.config_exists,
        "model_name": facts.config.get("model_name"),
        "base_model": facts.config.get("base_model"),
        "max_length": facts.config.get("max_length"),
        "locked_params": list(LOCKED_DEFAULTS) if facts.config_exists or facts.lock else [],
    }


def _training_status(facts: Facts) -> Json:
    said = facts.training
    status = true_status(facts)
    current_step, evaluations = integer(said.get("current_step")), integer(said.get("total_evals"))
    known = facts.head_metadata
    if status == "idle" and known:
        # Between runs the model is where training stands; the file may be older than a rollback.
        current_step, evaluations = training_steps(facts), integer(known.get("total_evals"))
    return {
        "status": status,
        "current_step": current_step,
        "total_evals": evaluations,
        "last_update": timestamp(said.get("updated_at")),
        "run_step": integer(said.get("run_step")),
        "run_total_steps": integer(said.get("run_total_steps")),
        "loss": number_or_none(said.get("loss")),
        "eta_seconds": number_or_none(said.get("eta_seconds")) if status == "training" else None,
    }


def _disk_space(facts: Facts) -> Json:
    # As df has it: what only root could still use counts neither as used nor as available.
    usable = facts.used_bytes + facts.available_bytes
    return {
        "available_gb": to_gb(facts.available_bytes),
        "used_percent": round(100 * facts.used_bytes / usable) if usable else 0,
        "total_gb": to_gb(facts.total_bytes),
    }


def _storage(facts: Facts) -> Json:
    """What all versions and all backups take together; a file that several share by hard link counts once."""
    return {
        "versions_gb": to_gb(facts.versions.summary.bytes),
        "backups_gb": to_gb(facts.backups.summary.bytes + facts.other_backup_bytes),
        "trash_gb": to_gb(facts.trash_bytes),
    }


def _pending(facts: Facts) -> list[str]:
    """What the next writing command, or the daemon's start, will finish or undo."""
    pending = []
    under_way = is_under_way(facts)
    if facts.intent is not None:
        operation = text(facts.intent.get("operation")) or "change"
        end = "is under way" if under_way else "was interrupted; the next writing command finishes or undoes it"
        pending.append(f"a {operation} of current_model/ {end}")
    if not facts.daemon_running:
        pending += [
            f"{text(name)}: its run is kept; the daemon's next start carries it on" for name in facts.processing
        ]
    if not under_way:
        pending += [f"{text(stage)}: unfinished; the next writing command removes it" for stage in facts.stages]
    return pending
