"""What people and the daemon do with ``current_model/``: save it, publish a run, go back, restore."""

import shlex
import time
from typing import Any, Literal, NamedTuple

from guardrails import signals
from guardrails.errors import BusyError, DamagedStateError, IntegrityError, OperationError
from guardrails.locks import read_holder
from guardrails.manifest import KnownHashes, find_damage
from guardrails.paths import Paths
from guardrails.preflight import refuse_torn_weights
from guardrails.queue import finish
from guardrails.queue_records import Record, find_states, processing, read_record
from guardrails.runs import drop_run, read_job, read_outcome, remove_continuation, run_of, worker_of
from guardrails.signature import take_signature
from guardrails.state_io import fsync_folder, read_json, utc_now
from guardrails.store.change import (
    Announce,
    change_to,
    changed_by_hand_metadata,
    finish_pending,
    hold_store,
    open_store,
    read_intent,
)
from guardrails.store.copies import Copies
from guardrails.store.head import (
    Condition,
    condition_of_live_model,
    next_number,
    read_head,
    sign,
    untouched_files,
    write_head,
)
from guardrails.store.removal import bring_back
from guardrails.store.repair import HOW_TO_GO_ON, repair_version
from guardrails.store.version_records import (
    is_kept,
    lineage,
    list_version_ids,
    read_metadata,
    version_name,
    version_number,
)
from guardrails.store.versions import add_version
from guardrails.store.writers import refuse_writers

POLL_SECONDS = 0.05
# How long a worker without a daemon may take to save its last checkpoint.
ORPHAN_SECONDS = 60.0
# States of status/daemon.json in which a run stands still and may be dropped by others.
AT_REST = ("paused", "held")
# In these it ends; its lock is free a moment later.
ENDING = ("stopping", "stopped")


class Outcome(NamedTuple):
    """What a rollback or restore did, in one past-tense line, and the command that undoes it."""

    message: str
    undo: str | None
    version: str | None


def save_version(paths: Paths, description: str, kind: Literal["manual", "snapshot"]) -> tuple[str | None, bool]:
    """A version of ``current_model/`` as it is: its id (None without a model) and whether it had to be made.

    Needs the store lock. The version that the model equals is confirmed rather than made twice.

    Raises:
        BusyError: something writes into it; no version was made.
        IntegrityError: a weight file in it is torn; no version was made.
    """
    head = read_head(paths)
    condition = condition_of_live_model(paths, head)
    if condition == "absent":
        return None, False
    if condition == "version" and _is_whole(paths, head["version"]):
        return str(head["version"]), False
    if condition == "version":
        # Its own files are gone or cut short, and the model has them.
        repaired = repair_version(paths, head["version"], Copies(paths, strict=False), KnownHashes())
        if not repaired.left:
            return str(head["version"]), False
    refuse_writers(paths.current_model)
    refuse_torn_weights(paths.current_model)
    signed = sign(paths.current_model)

    def refuse_changes() -> None:
        refuse_writers(paths.current_model)
        if take_signature(paths.current_model) != signed["signature"]:
            raise BusyError(
                f"{paths.current_model} was written to while it was saved; no version was made",
                "wait until that is done, then run the command again",
            )

    number = next_number(paths, head)
    metadata = add_version(
        paths,
        number,
        paths.current_model,
        changed_by_hand_metadata(paths, head, description, kind),
        "copy",
        untouched=untouched_files(head, signed["signature"]),
        check=refuse_changes,
    )
    changed = {"version": metadata["id"], "changed_at": utc_now(), "operation": "create", "last_number": number}
    write_head(paths, {**head, **signed, **changed})
    return str(metadata["id"]), True


def _is_whole(paths: Paths, version_id: str) -> bool:
    """Whether every file of a version is there and as long as it was saved."""
    model = paths.version(version_id) / "model"
    try:
        sizes = {path: stat[0] for path, stat in take_signature(model).items()}
        return sizes == {entry["path"]: entry["size"] for entry in read_metadata(paths, version_id)["files"]}
    except (OSError, DamagedStateError):
        return False


def publish_run(paths: Paths, record: Record, announce: Announce) -> dict[str, Any] | None:
    """Make a completed run's output the next version and ``current_model/``; return the version's metadata.

    None if the run is not open any more: a rollback finished it meanwhile. Idempotent: going on after a kill makes
    no second version. All it needs lies in the run's folder.

    Raises:
        IntegrityError: the output's bytes are not those that the worker reported; nothing was changed.
    """
    run_id = run_of(record)
    with open_store(paths, f"publishing {record.name}", announce):
        if not _is_open(paths, record):
            return None
        job, outcome = read_job(paths, run_id), read_outcome(paths, run_id)
        if job is None or outcome is None or outcome["result"] != "completed":
            raise OperationError(f"run {run_id} is not completed", "training_queue.py status shows what is under way")
        head = read_head(paths)
        version = _find_published(paths, run_id, job["parent_version"])
        if version is None:
            version = _add_published_version(paths, next_number(paths, head), job, outcome)
        if head["version"] != version["id"]:
            change_to(paths, head, version["id"], "publish", announce, queue_follows=False)
    return version


def _is_open(paths: Paths, record: Record) -> bool:
    """Whether the run of ``record`` is still the open one, or its data file was taken away meanwhile."""
    current = processing(paths)
    if current is not None:
        return (current.name, current.run_id) == (record.name, record.run_id)
    last = read_record(paths, record.name)
    taken_away = last is not None and (last.run_id, last.state) == (record.run_id, "processing")
    return taken_away and not find_states(paths, record.name)


def _find_published(paths: Paths, run_id: str, parent: str | None) -> dict[str, Any] | None:
    """The version that a kill left of this run's publishing; it is younger than the run's parent."""
    for version_id in reversed(list_version_ids(paths)):
        if parent is not None and version_number(version_id) <= version_number(parent):
            return None
        metadata = read_metadata(paths, version_id)
        if metadata["run_id"] == run_id:
            return metadata
    return None


def _add_published_version(paths: Paths, number: int, job: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    run_id = job["run_id"]
    output = paths.run(run_id) / "output"
    if problems := find_damage(output, outcome["files"]):
        # Without an outcome the run goes on from its last checkpoint.
        (paths.run(run_id) / "outcome.json").unlink()
        fsync_folder(paths.run(run_id))
        raise IntegrityError(
            f"the output of run {run_id} is damaged: {problems[0]}", "it is trained again from its last checkpoint"
        )
    parent = read_metadata(paths, job["parent_version"]) if job["parent_version"] else None
    rows = outcome["rows"]
    metadata = {
        "description": job["data_name"],
        "kind": "training",
        "parent": job["parent_version"],
        "run_id": run_id,
        "training_steps": job["start_steps"] + outcome["run_steps"],
        "run_steps": outcome["run_steps"],
        **{key: outcome[key] for key in ("loss", "eval_loss", "eval_loss_before", "evaluations")},
        "total_evals": (parent["total_evals"] if parent else 0) + outcome["evaluations"],
        "data": [
            {
                "name": job["data_name"],
                "blake3": job["data_blake3"],
                "rows": rows["total"],
                **{key: rows[key] for key in ("trained", "held_out", "bad", "cut")},
            }
        ],
        "base_model": job["config"]["base_model"],
        "base_model_fingerprint": job["base_model_files"],
        "config": job["config"],
        "libraries": outcome["libraries"],
    }
    return add_version(paths, number, output, metadata, "link", files=outcome["files"])


def finish_published_run(paths: Paths, record: Record, version: dict[str, Any]) -> None:
    """The last step of a data file: to ``completed/``, and its run's checkpoints away, unless a rollback came first."""
    with open_store(paths, f"finishing {record.name}"):
        if _is_open(paths, record):
            _finish_published_run(paths, record, version)


def _finish_published_run(paths: Paths, record: Record, version: dict[str, Any]) -> None:
    # In this order: after a kill the file is still in processing/, and both are done again.
    remove_continuation(paths.run(run_of(record)))
    finish(paths, record.name, "completed", version=version["id"], rows=version["data"][0]["rows"])


def restore(paths: Paths, version_id: str, announce: Announce) -> Outcome:
    """Make ``current_model/`` the version. What was there stays, as the retired tree or a version of its own.

    Raises:
        BusyError: a run trains.
        OperationError: no such version, or it was removed.
        IntegrityError: the version is damaged and no second copy heals it; ``current_model/`` is as before.
    """
    finish_completed_run(paths, announce)
    with open_store(paths, f"restoring {version_id}", announce):
        refuse_while_training(paths)
        return put_in_place(paths, version_id, announce)


def put_in_place(paths: Paths, version_id: str, announce: Announce) -> Outcome:
    if not is_kept(paths, version_id):
        announce(f"{version_id} was removed; brought back from {bring_back(paths, version_id)}")
    head = read_head(paths)
    condition = condition_of_live_model(paths, head)
    if condition == "version" and head["version"] == version_id:
        announce(f"current_model/ is {version_id}")
        return Outcome(f"current_model/ was {version_id} already", None, version_id)
    before = version_name(next_number(paths, head)) if condition == "changed" else head["version"]
    restores = head["restores"]
    if before != version_id:
        restores = [*restores, {"at": version_id, "over": before}]
    change_to(paths, head, version_id, "restore", announce, restores=restores)
    # By name where there is one: with a run that stands still, a rollback would drop that first.
    undo: str | None = f"model_versioner.py restore {before}" if before else "model_versioner.py rollback"
    if restores == head["restores"]:
        undo = None
    replaced = "a removed model" if condition == "absent" and before else before or "a fresh start"
    return Outcome(f"restored {version_id} in place of {replaced}", undo, version_id)


def rollback(paths: Paths, announce: Announce) -> Outcome:
    """Undo the last change: an open run, else a change by hand, else the last training or restore.

    Waits (announced) for a run that was asked to end.

    Raises:
        BusyError: a run trains that nobody asked to end.
        OperationError: there is nothing to undo.
        IntegrityError: the version to go back to is damaged beyond healing; nothing was changed.
    """
    _wait_for_run_to_rest(paths, announce)
    with hold_store(paths, "rolling back", announce):
        # Under the lock, or it might be the change of a process that is at it.
        interrupted = read_intent(paths)
        if interrupted is not None:
            finish_pending(paths, announce)
    if interrupted is not None and interrupted["operation"] == "rollback":
        # The one that was interrupted is the one that is meant.
        version, target = read_head(paths)["version"], interrupted["target"]
        if version != target:
            raise IntegrityError(
                f"{target} is damaged and no second copy heals it; current_model/ is {version or 'empty'}", HOW_TO_GO_ON
            )
        return Outcome(
            f"finished the rollback that was interrupted; current_model/ is {version or 'empty'}", None, version
        )
    record = processing(paths)
    if record is not None and _is_held_in_memory(paths, record):
        return _drop_held_run(paths, record, announce)
    finish_completed_run(paths, announce)
    with open_store(paths, "rolling back", announce):
        refuse_while_training(paths)
        record = processing(paths)
        return _drop_open_run(paths, record, announce) if record else _go_back(paths, announce)


def finish_completed_run(paths: Paths, announce: Announce) -> None:
    """Publish a run that was completed when its daemon died or was held: it is in the model before anything else is.

    Raises:
        BusyError: a run trains.
    """
    record = processing(paths)
    if record is not None and _daemon_state(paths) is None and worker_of(paths, run_of(record)) is not None:
        _wait_for_orphan(paths, run_of(record), announce)
    refuse_while_training(paths)
    record = processing(paths)
    outcome = read_outcome(paths, run_of(record)) if record else None
    if record is not None and outcome is not None and outcome["result"] == "completed":
        try:
            version = publish_run(paths, record, announce)
        except IntegrityError as error:
            # It is a run that stands still now, as after a kill.
            announce(error.message)
            return
        if version is not None:
            finish_published_run(paths, record, version)


def _drop_open_run(paths: Paths, record: Record, announce: Announce) -> Outcome:
    reason = f"run {record.run_id} dropped by rollback"
    drop_run(paths, run_of(record), reason)
    finish(paths, record.name, "skipped", reason=reason, held_back=True)
    return _describe_dropped_run(paths, record, announce)


def _drop_held_run(paths: Paths, record: Record, announce: Announce) -> Outcome:
    """The daemon holds the worker in memory, so the daemon has to drop the run."""
    announce("the worker that is held in memory is asked to leave")
    signal_id = signals.send(paths, "skip", reason="rollback")
    ending = signals.wait_for_acknowledgement(paths, signal_id, ORPHAN_SECONDS)
    if ending is None or ending.result != "done":
        raise BusyError("the held run did not end", "training_controller.py stop, then this again")
    return _describe_dropped_run(paths, record, announce)


def _describe_dropped_run(paths: Paths, record: Record, announce: Announce) -> Outcome:
    version = read_head(paths)["version"]
    announce(f"current_model/ is {version or 'empty: a fresh start'}")
    return Outcome(
        f"dropped the run on {record.name}; the model is as before it, the file is in queue/skipped/",
        f"training_queue.py retry {shlex.quote(record.name)}",
        version,
    )


def _go_back(paths: Paths, announce: Announce) -> Outcome:
    head = read_head(paths)
    condition = condition_of_live_model(paths, head)
    before = head["version"]
    if before is None:
        if condition == "changed":
            raise OperationError(
                "current_model/ has no version to go back to", "model_versioner.py create saves it as it is"
            )
        raise OperationError("there is nothing to undo: no model and no version", "model_versioner.py list")
    if condition != "version":
        return _put_head_back(paths, head, condition, announce)
    target, restores = _before_last_change(paths, head, announce)
    change_to(paths, head, target, "rollback", announce, restores=restores)
    return Outcome(
        f"went back from {before} to {target or 'a fresh start'}", f"model_versioner.py restore {before}", target
    )


def _put_head_back(paths: Paths, head: dict[str, Any], condition: Condition, announce: Announce) -> Outcome:
    before = head["version"]
    adopted = version_name(next_number(paths, head)) if condition == "changed" else None
    if not is_kept(paths, before):
        bring_back(paths, before)
    change_to(paths, head, before, "rollback", announce)
    what = "the change by hand" if adopted else "the removal of current_model/"
    return Outcome(
        f"undid {what}; current_model/ is {before} again",
        f"model_versioner.py restore {adopted}" if adopted else None,
        before,
    )


def undo_change_by_hand(paths: Paths, announce: Announce) -> Outcome:
    """Make ``current_model/`` its version again if somebody changed or removed it; else change nothing.

    Unlike a rollback it touches no run, training or restore, so it may be called whenever in doubt.

    Raises:
        BusyError: a run trains.
        OperationError: there is no version to go back to.
        IntegrityError: that version is damaged beyond healing; nothing was changed.
    """
    with open_store(paths, "undoing a change by hand", announce):
        refuse_while_training(paths)
        head = read_head(paths)
        condition = condition_of_live_model(paths, head)
        if head["version"] is None:
            raise OperationError(
                "current_model/ has no version to go back to", "model_versioner.py create saves it as it is"
            )
        if condition == "version":
            return Outcome(f"current_model/ is {head['version']}: nothing was changed by hand", None, head["version"])
        return _put_head_back(paths, head, condition, announce)


def _before_last_change(
    paths: Paths, head: dict[str, Any], announce: Announce
) -> tuple[str | None, list[dict[str, Any]]]:
    """The version to go back to, and the memory of restores as it is then."""
    restores: list[dict[str, Any]] = head["restores"]
    for index in reversed(range(len(restores))):
        if restores[index]["at"] == head["version"]:
            over = restores[index]["over"]
            return (None if over is None else _nearest_kept(paths, over, announce)), restores[:index]
    parent = read_metadata(paths, head["version"])["parent"]
    return (None if parent is None else _nearest_kept(paths, parent, announce)), restores


def _nearest_kept(paths: Paths, version_id: str, announce: Announce) -> str:
    """The version, or where it was removed its nearest kept ancestor; where none is kept, it is brought back.

    Raises:
        OperationError: it is gone without a trace.
    """
    oldest = None
    for ancestor in lineage(paths, version_id):
        oldest = ancestor
        if is_kept(paths, ancestor["id"]):
            if ancestor["id"] != version_id:
                announce(f"{version_id} was removed; going back to its nearest kept ancestor {ancestor['id']}")
            return str(ancestor["id"])
    gone = version_id if oldest is None else oldest["parent"]
    if gone is not None:
        raise OperationError(
            f"{gone}, which the model came from, is gone with its metadata",
            "backup_manager.py list, then restore its backup; or choose a version: model_versioner.py list",
        )
    # None of its ancestors is kept: rather the version from the trash or a backup than an empty model.
    announce(f"{version_id} was removed; brought back from {bring_back(paths, version_id)}")
    return version_id


def _daemon_state(paths: Paths) -> str | None:
    """What the living daemon is doing; None without one."""
    if read_holder(paths.locks / "daemon.lock") is None:
        return None
    return str((read_json(paths.daemon_status) or {}).get("state", "starting"))


def refuse_while_training(paths: Paths) -> None:
    """Raises BusyError while a run trains, or would go on by itself."""
    state = _daemon_state(paths)
    record = processing(paths)
    if record is not None and state is not None and state not in AT_REST:
        raise BusyError(f"the daemon trains on {record.name}", "training_controller.py stop, then this command again")


def _is_held_in_memory(paths: Paths, record: Record) -> bool:
    return _daemon_state(paths) == "paused" and worker_of(paths, run_of(record)) is not None


def _wait_for_run_to_rest(paths: Paths, announce: Announce) -> None:
    """Wait for a run that was asked to end."""

    def asked_to_end() -> bool:
        state = _daemon_state(paths)
        return state is not None and (
            state in ENDING
            or paths.emergency_stop.exists()
            or not {"stop", "skip", "pause"}.isdisjoint(signals.pending(paths))
        )

    if asked_to_end():
        announce("waiting for the run that was asked to end")
        while asked_to_end():
            time.sleep(POLL_SECONDS)


def _wait_for_orphan(paths: Paths, run_id: str, announce: Announce) -> None:
    announce("waiting for the worker of a daemon that died")
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (worker := worker_of(paths, run_id)) is not None:
        if time.monotonic() > deadline:
            raise BusyError(
                f"worker {worker.pid} of a daemon that died does not end",
                f"look at runs/{run_id}/worker.log, then: kill {worker.pid}",
            )
        time.sleep(POLL_SECONDS)
