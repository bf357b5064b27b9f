"""What is written down against what lies in the folders: queue records, version numbers, the index, the config lock.

Each function returns what is wrong now, and reads small files only.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from guardrails.config import LOCKED_KEYS
from guardrails.config_lock import combine_hashes, read_approvals, read_lock_file
from guardrails.errors import DamagedStateError, OperationError
from guardrails.paths import QUEUE_STATES, VERSION_ID, Paths
from guardrails.queue_records import (
    ENDED,
    Record,
    find_states,
    is_record_name,
    list_names,
    read_record,
    record_path,
)
from guardrails.report.deep_record import Problem
from guardrails.report.deep_trees import make_problem
from guardrails.report.findings import show
from guardrails.state_io import read_json
from guardrails.store.backups import backups_folder, list_backup_ids, read_backup
from guardrails.store.repair import is_own
from guardrails.store.version_records import find_wrong_rows, lineage, list_version_ids, read_index, read_metadata

QUEUE, VERSIONS, INDEX, LOCK = "queue", "versions", "version_index", "config_lock"
# How long a queue function may be between its record and its move.
SETTLE_SECONDS = 0.2


def examine_queue(paths: Paths) -> list[Problem]:
    """Records against folders, and both against the versions; what is still so a moment later."""
    found = list(_look_at_queue(paths))
    if found:
        time.sleep(SETTLE_SECONDS)
        again = {(problem.finding, problem.words) for problem in _look_at_queue(paths)}
        found = [problem for problem in found if (problem.finding, problem.words) in again]
    return found


def _look_at_queue(paths: Paths) -> Iterator[Problem]:
    for state in (*ENDED, "processing"):
        for name in list_names(paths, state):
            missing = record_path(paths, name)
            if not os.path.lexists(missing):
                file = paths.queue_folder(state) / name
                words = f"{name} in {paths.relative(file.parent)}/"
                yield make_problem(paths, QUEUE, "queue-record-missing", words, [file], [missing])
    records = []
    for name in _list_record_names(paths):
        try:
            record = read_record(paths, name)
        except DamagedStateError as error:
            yield make_problem(paths, QUEUE, "queue-record-missing", error.message, [record_path(paths, name)])
            continue
        if record is None:
            continue
        records.append(record)
        if not find_states(paths, name):
            places = [paths.queue_folder(state) / name for state in QUEUE_STATES]
            words = f"{name} of {paths.relative(paths.queue_folder(record.state))}/"
            yield make_problem(paths, QUEUE, "queue-file-missing", words, [record_path(paths, name)], places)
    yield from _compare_with_versions(paths, records)


def _list_record_names(paths: Paths) -> list[str]:
    try:
        return sorted(name.removesuffix(".json") for name in os.listdir(paths.queue_records) if is_record_name(name))
    except FileNotFoundError:
        return []


def _compare_with_versions(paths: Paths, records: list[Record]) -> Iterator[Problem]:
    """Whether each completed file is in the version that it was trained into, and what was trained is completed."""
    finding = "queue-version-mismatch"
    for record in records:
        if record.state != "completed" or not record.version:
            continue
        # A version without a trace, or with damaged metadata, is a finding of its own.
        with suppress(OperationError, DamagedStateError):
            trained = read_metadata(paths, record.version)["data"]
            if record.blake3 not in {data["blake3"] for data in trained}:
                names = ", ".join(data["name"] for data in trained) or "nothing"
                words = f"{record.name} is completed as {record.version}, which was trained on {names}"
                yield make_problem(paths, QUEUE, finding, words, [record_path(paths, record.name)])
    by_content: dict[str, list[Record]] = {}
    for record in records:
        by_content.setdefault(record.blake3, []).append(record)
    with suppress(DamagedStateError):
        head = (read_json(paths.head) or {}).get("version")
        for metadata in lineage(paths, head) if isinstance(head, str) and VERSION_ID.fullmatch(head) else ():
            for data in metadata["data"]:
                same = by_content.get(data["blake3"], [])
                if same and all(record.held_back or record.state == "failed" for record in same):
                    words = f"{same[0].name} is in queue/{same[0].state}/, and {metadata['id']} was trained on it"
                    yield make_problem(paths, QUEUE, finding, words, [record_path(paths, same[0].name)])


def find_gone_versions(paths: Paths) -> list[Problem]:
    """Versions that were here and of which not even the folder is left, as every removal by a command leaves it."""
    folder, index = backups_folder(paths), read_index(paths)
    why = dict.fromkeys(index, f"{paths.relative(paths.version_index)} lists it")
    for name in _list_record_names(paths):
        with suppress(DamagedStateError):
            record = read_record(paths, name)
            if record is not None and record.version and record.state == "completed":
                why.setdefault(record.version, f"{name} was trained into it")
    for backup_id in list_backup_ids(folder):
        with suppress(DamagedStateError, OperationError):
            known = read_backup(folder, backup_id)["version_metadata"]
            # A folder that other base dirs may share holds their versions of the same name, too.
            if known and is_own(paths, folder, known, index.get(known["id"])):
                why[known["id"]] = f"backup {backup_id} holds it"
    gone = sorted(filter(VERSION_ID.fullmatch, why.keys() - {*list_version_ids(paths)}))
    return [
        make_problem(paths, VERSIONS, "version-gone", why[name], absent=[paths.version(name)], subject=name)
        for name in gone
    ]


def examine_index(paths: Paths) -> list[Problem]:
    wrong = find_wrong_rows(paths)
    return [make_problem(paths, INDEX, "version-index-wrong", name, [paths.version_index]) for name in wrong]


def examine_config_lock(paths: Paths) -> list[Problem]:
    """The lock against its own fingerprint and against the last change of each key that is on record."""
    try:
        lock = read_lock_file(paths)
    except DamagedStateError:
        return []
    if lock is None:
        return []
    return [
        make_problem(paths, LOCK, "config-lock-unapproved", words, [paths.config_lock])
        for words in _find_unapproved(lock, read_approvals(paths))
    ]


def _find_unapproved(lock: dict[str, Any], approvals: list[dict[str, Any]]) -> Iterator[str]:
    fingerprint = lock["base_model_fingerprint"]
    try:
        sum_of_files = combine_hashes(fingerprint["files"])
    except (KeyError, TypeError):
        sum_of_files = None
    if sum_of_files != fingerprint["blake3"]:
        yield "the base model's fingerprint is not that of its files"
    for key in LOCKED_KEYS:
        last = next((line for line in reversed(approvals) if line["key"] == key), None)
        if last is None:
            continue
        if lock["locked"].get(key) != last.get("new"):
            yield f"it holds {key} {show(lock['locked'].get(key))}, on record is {show(last.get('new'))}"
        elif last.get("new_fingerprint") not in (None, fingerprint["blake3"]):
            yield f"it holds another fingerprint of {key} than is on record"
