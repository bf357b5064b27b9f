"""The state document: one object with many faces, kept in ``.system_state.json``.

Its keys are those of the ``SystemState`` in docs/STATE_TRACKER_GUIDE.md; ``guardrails.state_schema`` has their types.
"""

import contextlib
import os
import time
from pathlib import Path

from guardrails.errors import DamagedStateError
from guardrails.findings import Finding, find, is_under_way, quote, verdict, worst_first
from guardrails.paths import Paths
from guardrails.state import (
    GIB,
    LOCKED_DEFAULTS,
    Facts,
    Json,
    SavedTree,
    gather,
    has_adapter,
    integer,
    list_sizes,
    number_or_none,
    text,
    timestamp,
    training_steps,
    true_status,
)
from guardrails.state_io import SCHEMA_VERSION, format_utc, read_json, set_aside, write_json

# A temporary file this old belongs to nobody any more.
LEFTOVER_SECONDS = 3600


def update_document(paths: Paths, now: float | None = None) -> Json:
    """The state document of this moment, written to ``.system_state.json`` if the disk takes it.

    A state file that is damaged or from a newer toolkit is set aside as ``.damaged`` first. Neither that
    nor a disk that cannot be written fails the report: both are findings in it.
    """
    now = time.time() if now is None else now
    previous = _read_previous(paths)
    facts = gather(paths, now)
    findings = find(facts, timestamp(previous.get("last_updated")))
    document = build_document(facts, findings, previous)
    try:
        write_json(paths.system_state, document)
        _remove_leftovers(paths, now)
    except OSError as error:
        name = paths.system_state.name
        message = f"{name} could not be written: {error.strerror or error}"
        hint = f"df -h {quote(str(paths.base))}; ls -ld {quote(str(paths.base))} {quote(str(paths.system_state))}"
        findings = worst_first([*findings, Finding("state-file-unwritable", "disk", "warning", message, hint)])
        document = build_document(facts, findings, previous)
    return document


def _read_previous(paths: Paths) -> Json:
    """The last document; empty if there is none, or none that is of use, which is then set aside."""
    try:
        return read_json(paths.system_state) or {}
    except DamagedStateError:
        # Where it fails another report was quicker, or the folder is closed: then writing fails too, and says so.
        with contextlib.suppress(OSError):
            set_aside(paths.system_state)
        return {}


def _remove_leftovers(paths: Paths, now: float) -> None:
    """Remove what killed reports left of the state file."""
    with os.scandir(paths.base) as entries:
        for entry in entries:
            if not entry.name.startswith(f"{paths.system_state.name}.tmp-"):
                continue
            try:
                if now - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER_SECONDS:
                    Path(entry.path).unlink()
            except FileNotFoundError:
                continue


def build_document(facts: Facts, findings: list[Finding], previous: Json) -> Json:
    """The document of ``facts``; a finding that stands in ``previous`` keeps its ``since``."""
    first: dict[str, str] = {}
    for finding in findings:
        first.setdefault(finding.category, finding.message)
    return {
        "schema_version": SCHEMA_VERSION,
        "last_updated": format_utc(facts.now),
        "verdict": verdict(findings),
        "current_model": {**_current_model(facts), "warning": first.get("model")},
        "versions": [_version(tree) for tree in facts.kept_versions],
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


def to_gb(size: float) -> float:
    """Bytes in GiB, to two places."""
    return round(size / GIB, 2)


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
        tree = facts.version(tree.metadata.get("parent"))
    if seen or not training_steps(facts):
        return None
    return format_utc(max(stat[1] for stat in facts.model_signature.values()) / 1e9)


def _version(tree: SavedTree) -> Json:
    return {
        "id": tree.id,
        "date": tree.created_at()[:10],
        "description": text(tree.metadata.get("description")),
        "training_steps": integer(tree.metadata.get("training_steps")),
        "size_gb": to_gb(tree.size_bytes),
    }


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
    backups = [tree.sizes for tree in facts.backups]
    if facts.backup_folder != facts.paths.backups:
        backups.append(list_sizes(facts.paths.backups))
    return {
        "versions_gb": to_gb(_total([tree.sizes for tree in facts.versions])),
        "backups_gb": to_gb(_total(backups)),
        "trash_gb": to_gb(facts.trash_bytes),
    }


def _total(trees: list[dict[str, tuple[int, int]]]) -> int:
    return sum({inode: size for sizes in trees for size, inode in sizes.values()}.values())


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
