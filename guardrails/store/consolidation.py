"""Consolidation: the adapter becomes part of the base model, and the next training starts a fresh one.

The merge is computed by a process of its own, into a stage in ``consolidated_models/``, and may take long; the store
lock is held only before and after it. What it was planned on must still stand then. The version that comes of it holds
one small file; making it ``current_model/`` moves config and lock along, all or nothing, and ``rollback`` moves them
back.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from guardrails import progress
from guardrails.config_lock import Fingerprint, fingerprint_base_model
from guardrails.errors import BusyError, DiskSpaceError, GuardrailsError, IntegrityError, OperationError
from guardrails.filesystem import apply_modes, free_bytes, remove_tree, rename_noreplace, sync_filesystem
from guardrails.locks import FileLock
from guardrails.manifest import total_size
from guardrails.paths import CODE_DIR, STAGE_PREFIX, Paths
from guardrails.preflight import CONSOLIDATION_FILE, SPARE_BYTES, check_before_training, is_consolidated
from guardrails.queue_records import processing
from guardrails.signature import take_signature
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, read_json, utc_now, write_json
from guardrails.store.backups import add_backup
from guardrails.store.change import CONSOLIDATION_LOCK, Announce, change_to, changed_by_hand_metadata, open_store
from guardrails.store.head import condition_of_live_model, next_number, read_head
from guardrails.store.live_model import Outcome, finish_completed_run, refuse_while_training, save_version
from guardrails.store.model_backups import require_backups_folder
from guardrails.store.version_records import read_metadata, version_name
from guardrails.store.versions import FILE_MODE, FOLDER_MODE, add_version

if TYPE_CHECKING:
    from guardrails.settings import Config

MERGE = (sys.executable, "-m", "guardrails.training.merge")
LIBRARIES = ("torch", "transformers", "peft")
POLL_SECONDS = 0.2
MAX_NAME_BYTES = 200
# Log of the merges, below logs/.
LOG_NAME = "consolidation.log"


class Plan(NamedTuple):
    """What a consolidation would do; it holds for as long as planning it again gives the same."""

    version: str
    base_model: str
    fingerprint: str
    merged: str  # relative to the base dir


def plan_consolidation(paths: Paths, announce: Announce) -> Plan:
    """What ``consolidate`` would do now.

    Raises:
        BusyError: a run trains, or is not finished.
        OperationError: there is no adapter to merge, or nothing that the merge could be rolled back to.
        DiskSpaceError: the merged model does not fit.
        GuardrailsError: what pre-flight finds.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise OperationError(f"a merge needs {', '.join(missing)}, not installed here", f"make -C '{CODE_DIR}' install")
    finish_completed_run(paths, announce)
    with open_store(paths, "planning a consolidation", announce):
        return _plan(paths)[0]


def consolidate(paths: Paths, plan: Plan, description: str, announce: Announce) -> Outcome:
    """Carry out a plan: backup, merge, logits check, version, new base model in config and lock; all or nothing.

    Raises:
        BusyError: another consolidation is at work, or a run trains.
        OperationError: things are no more as planned, or the merge failed.
        IntegrityError: the merged model does not answer as base plus adapter does.
        DiskSpaceError: the disk is full.
    """
    lock = FileLock(paths.locks / CONSOLIDATION_LOCK)
    stage = paths.base / plan.merged
    stage = stage.with_name(f"{STAGE_PREFIX}{stage.name}")
    with lock.hold("a consolidation", wait_seconds=0):
        with open_store(paths, "preparing a consolidation", announce):
            _require(paths, plan)
            save_version(paths, "before its consolidation", "snapshot")
            adapter, metadata = paths.version(plan.version) / "model", read_metadata(paths, plan.version)
            backup = add_backup(
                require_backups_folder(paths), adapter, "current_model/", "pre_consolidation", description, metadata
            )
            announce(f"{plan.version} backed up as {backup['id']}")
            if stage.exists():
                remove_tree(stage)
            stage.mkdir(parents=True)
        try:
            announce(f"merging {plan.version} into {plan.base_model}")
            result = _merge(paths, plan, stage, lock)
            sync_filesystem(stage)
            fingerprint = fingerprint_base_model(paths, stage / "model", remember=False)
            with open_store(paths, "consolidating", announce):
                config = _require(paths, plan)
                return _take_over(paths, plan, stage, description, config, fingerprint, result, announce)
        finally:
            remove_tree(stage)


def _require(paths: Paths, plan: Plan) -> "Config":
    """The config, if things are still as planned."""
    now, config = _plan(paths)
    if now != plan:
        raise OperationError(
            "the model, the config or the base model was changed meanwhile; nothing was consolidated",
            "look at it, then run the command again: model_versioner.py consolidate --description TEXT",
        )
    return config


def _plan(paths: Paths) -> tuple[Plan, "Config"]:
    """Needs the store lock."""
    refuse_while_training(paths)
    record = processing(paths)
    if record is not None:
        # It would go on from an adapter that is no more.
        raise BusyError(
            f"the run on {record.name} is not finished",
            "training_daemon.py --once finishes it, model_versioner.py rollback drops it",
        )
    head = read_head(paths)
    condition = condition_of_live_model(paths, head)
    if condition == "absent" or is_consolidated(paths.current_model):
        raise OperationError("there is no adapter in current_model/ to consolidate", "model_versioner.py list")
    config, fingerprint, folder, _ = check_before_training(paths)
    trained_on = read_metadata(paths, head["version"]) if head["version"] else {}
    known = trained_on.get("base_model"), (trained_on.get("base_model_fingerprint") or {}).get("blake3")
    if known != (config.base_model, fingerprint["blake3"]) or config.base_model is None:
        raise OperationError(
            f"{head['version'] or 'current_model/'} is not known to be trained on {config.base_model}, so a rollback"
            " could not put that back",
            "train a file on it first: training_queue.py add FILE",
        )
    _check_disk(paths, folder, fingerprint)
    version = version_name(next_number(paths, head)) if condition == "changed" else str(head["version"])
    merged = paths.relative(_free_name(paths, f"{config.model_name}-{version}"))
    return Plan(version, config.base_model, fingerprint["blake3"], merged), config


def _free_name(paths: Paths, name: str) -> Path:
    """A folder in ``consolidated_models/`` that does not exist, named after ``name``."""
    safe = re.sub(r"[^\w.-]+", "-", name).lstrip(".-").encode()[-MAX_NAME_BYTES:].decode(errors="ignore")
    number, found = 1, paths.consolidated_models / safe
    while os.path.lexists(found):
        number += 1
        found = paths.consolidated_models / f"{safe}-{number}"
    return found


def _check_disk(paths: Paths, folder: Path, fingerprint: Fingerprint) -> None:
    """That the merged model fits, which takes 4 bytes a weight whatever the base model takes."""
    settings = json.loads((folder / "config.json").read_bytes())
    factor = 1 if (settings.get("dtype") or settings.get("torch_dtype")) == "float32" else 2
    adapter = sum(status[0] for status in take_signature(paths.current_model).values())
    needed = factor * total_size(fingerprint["files"]) + 2 * adapter + SPARE_BYTES
    free = free_bytes(paths.consolidated_models)
    if free < needed:
        raise DiskSpaceError(
            f"{free >> 20} MiB are free on the disk of {paths.consolidated_models}, the merge needs {needed >> 20} MiB",
            "free some space, then run the command again",
        )


def _merge(paths: Paths, plan: Plan, stage: Path, lock: FileLock) -> dict[str, Any]:
    """Have the merged model written to ``stage``/model and checked; what the merge says of it."""
    result = stage / "result.json"
    job = {
        "base_model": str(paths.resolve(plan.base_model)),
        "adapter": str(paths.version(plan.version) / "model"),
        "model": str(stage / "model"),
        "result": str(result),
        "parent": os.getpid(),
    }
    write_json(stage / "job.json", {"schema_version": SCHEMA_VERSION, **job})
    assert lock.descriptor is not None
    paths.logs.mkdir(exist_ok=True)
    with (paths.logs / LOG_NAME).open("ab") as log:
        # It inherits the lock: the stage counts as left over only when both are gone.
        process = subprocess.Popen(
            [*MERGE, str(stage / "job.json")],
            cwd=CODE_DIR,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.descriptor],
        )
    try:
        written = 0
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            now = _bytes_below(stage)
            progress.advance(now - written)
            written = now
    finally:
        process.kill()
        process.wait()
    said = read_json(result) or {}
    problem = said.get("problem")
    if process.returncode or problem or "logits" not in said:
        kinds: dict[int, type[GuardrailsError]] = {31: IntegrityError, 33: DiskSpaceError}
        kind = kinds.get(process.returncode, OperationError)
        if problem:
            raise kind(problem["message"], problem["hint"])
        raise kind(
            f"the merge ended with {process.returncode}",
            f"see logs/{LOG_NAME}; one that was killed (-9) had too little memory for the whole model in fp32",
        )
    return said


def _bytes_below(folder: Path) -> int:
    try:
        return sum(status[0] for status in take_signature(folder).values())
    except OSError:
        # A temporary file went while it was looked at.
        return 0


def _take_over(
    paths: Paths,
    plan: Plan,
    stage: Path,
    description: str,
    config: "Config",
    fingerprint: Fingerprint,
    result: dict[str, Any],
    announce: Announce,
) -> Outcome:
    """Give the merged model its name, make the version, and change to it. Needs the store lock."""
    merged = paths.base / plan.merged
    rename_noreplace(stage / "model", merged)
    apply_modes(merged, FILE_MODE, FOLDER_MODE)
    fsync_folder(merged.parent)
    tree = stage / "version"
    tree.mkdir()
    write_json(
        tree / CONSOLIDATION_FILE,
        {
            "schema_version": SCHEMA_VERSION,
            "consolidated_at": utc_now(),
            "version": plan.version,
            "base_model": plan.base_model,
            "base_model_fingerprint": plan.fingerprint,
            "merged_base_model": plan.merged,
            "merged_fingerprint": fingerprint["blake3"],
            "logits": result["logits"],
            "libraries": result["libraries"],
        },
    )
    head = read_head(paths)
    metadata = {
        **changed_by_hand_metadata(paths, head, description, "consolidation"),
        "base_model": plan.merged,
        "base_model_fingerprint": fingerprint,
        "config": {**config.model_dump(), "base_model": plan.merged},
        "libraries": result["libraries"],
    }
    version = add_version(paths, next_number(paths, head), tree, metadata, "copy")
    if config.backup != "off":
        folder = require_backups_folder(paths)
        add_backup(folder, paths.version(version["id"]) / "model", "current_model/", "after_training", None, version)
    change_to(paths, head, version["id"], "consolidation", announce)
    difference = result["logits"]["max_difference"]
    return Outcome(
        f"consolidated {plan.version} into {plan.merged} as {version['id']}; logits differ by {difference:.1e} at most",
        "model_versioner.py rollback",
        version["id"],
    )
