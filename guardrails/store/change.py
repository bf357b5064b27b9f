"""Changing ``current_model/``: always the whole folder in one step, always finished or undone after a kill.

Every change is an intent record (``models/intent.json``), written before the first and removed after the last step:

1. the new tree, complete and durable in its stage, takes the name ``current_model`` in one exchange of folders;
2. what was there is kept: as the retired tree if a version holds the same bytes, else as a version of its own;
3. ``head.json`` says which version ``current_model/`` is; the caller is told;
4. the bytes are checked; a damaged file is healed from a second copy, or the exchange is undone;
5. config, lock and queue follow.

Each step looks at what the folders say before it acts, so going on after a kill is running all of them again.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guardrails.config import set_config_value
from guardrails.config_lock import write_lock
from guardrails.errors import DamagedStateError, GuardrailsError, IntegrityError
from guardrails.filesystem import UnsupportedError, copy_tree, exchange, remove_tree
from guardrails.locks import read_holder
from guardrails.manifest import find_damage
from guardrails.paths import STAGE_PREFIX, Paths
from guardrails.sandbox import refuse_in_sandbox
from guardrails.signature import take_signature
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, read_json, remove_temporary_files, utc_now, write_json
from guardrails.store.backups import backup_of_version, backups_folder, remove_leftovers
from guardrails.store.consequences import config_changes, move_data_file, queue_changes
from guardrails.store.copies import Copies
from guardrails.store.head import condition_of_live_model, next_number, read_head, sign, write_head
from guardrails.store.repair import HOW_TO_GO_ON, copy_version, heal_tree, put_metadata_back
from guardrails.store.sealing import UNSEALED, sealed_afterwards
from guardrails.store.trash import discard, remove_unfinished_entries
from guardrails.store.version_records import is_kept, read_metadata, version_name
from guardrails.store.versions import (
    LIVE_FILE_MODE,
    LIVE_FOLDER_MODE,
    UNLOCKED_PREFIX,
    add_version,
    lock_again,
    store_lock,
)

Announce = Callable[[str], None]
# Copying and checking a large model under the lock takes this long at worst.
STORE_SECONDS = 600.0
INTENT_KEYS = {"operation": str, "config": dict, "queue": list}
QUEUE_KEYS = {"name", "blake3", "trained", "reason"}
CHANGE_KEYS = {
    "created_at": str,
    **dict.fromkeys(("stage", "target"), str | None),
    **dict.fromkeys(("stage_inode", "live_inode"), int | None),
    **dict.fromkeys(("signed", "previous_head"), dict),
    "displaced": dict | None,
    "restores": list,
    "last_number": int,
}
CONFIG_CHANGE = "config change"
DISPLACED = f"{STAGE_PREFIX}displaced"
CONSOLIDATION_LOCK = "consolidation.lock"
UNSIGNED: dict[str, Any] = {"signed_at_ns": 0, "signature": {}}


def read_intent(paths: Paths) -> dict[str, Any] | None:
    """The change that is under way or was interrupted; None if there is none.

    Raises:
        DamagedStateError: its record cannot be read.
    """
    intent = read_json(paths.intent, INTENT_KEYS)
    if intent is not None and intent["operation"] != CONFIG_CHANGE:
        intent = read_json(paths.intent, INTENT_KEYS | CHANGE_KEYS)
    if intent is not None and not all(isinstance(one, dict) and one.keys() == QUEUE_KEYS for one in intent["queue"]):
        raise DamagedStateError(f"{paths.intent} is damaged: queue", "docs/recovery.md says what to do about it")
    return intent


def say_nothing(line: str) -> None:
    """The announcer of callers that need no progress lines."""


@contextmanager
def open_store(
    paths: Paths, purpose: str, announce: Announce = say_nothing, wait_seconds: float = STORE_SECONDS
) -> Iterator[None]:
    """The store lock, with whatever a kill left half done finished first. For every writing command."""
    with hold_store(paths, purpose, announce, wait_seconds):
        finish_pending(paths, announce)
        yield


@contextmanager
def hold_store(
    paths: Paths, purpose: str, announce: Announce = say_nothing, wait_seconds: float = STORE_SECONDS
) -> Iterator[None]:
    """The store lock alone. ``finish_pending`` has to come before anything else is changed.

    Raises:
        OperationError: the store is closed to this process, in an agent's sandbox.
    """
    refuse_in_sandbox(paths)
    with store_lock(paths).hold(purpose, wait_seconds), sealed_afterwards(paths, announce):
        yield


def finish_pending(paths: Paths, announce: Announce = say_nothing) -> None:
    """Finish the change that a kill interrupted and remove stages that no record names. Needs the store lock."""
    intent = read_intent(paths)
    if intent is not None:
        announce(f"finishing the interrupted {intent['operation']}")
        try:
            carry_out(paths, intent, announce)
        except IntegrityError as error:
            if paths.intent.exists():
                # Not undone: nothing may be cleaned up, for a stage may hold the only copy.
                raise
            # Undone, so that nothing pends any more; who comes next asked for something else.
            announce(error.message)
    for path in (paths.config, paths.config_lock):
        remove_temporary_files(paths.base, path)
    remove_leftovers(backups_folder(paths))
    folders = [paths.models, paths.versions]
    if read_holder(paths.locks / CONSOLIDATION_LOCK) is None:
        # A merge at work writes there without the store lock.
        folders.append(paths.consolidated_models)
    for folder in folders:
        if not folder.is_dir():
            continue
        remove_temporary_files(folder)
        for name in os.listdir(folder):
            if name == DISPLACED:
                discard(paths, folder / name, "a change put it out")
            elif name.startswith(UNLOCKED_PREFIX):
                lock_again(folder / name)
            elif name.startswith(STAGE_PREFIX) and name != UNSEALED:
                remove_tree(folder / name)
    remove_unfinished_entries(paths.trash)


def changed_by_hand_metadata(paths: Paths, head: dict[str, Any], description: str, kind: str) -> dict[str, Any]:
    """Metadata of a model that no run of ours made: what is known from the version that it came from."""
    came_from = head["version"] if head["version"] and paths.version(head["version"]).is_dir() else None
    parent = read_metadata(paths, came_from) if came_from else None
    inherited = ("training_steps", "total_evals", "base_model", "base_model_fingerprint", "config", "libraries")
    return {
        "description": description,
        "kind": kind,
        "parent": came_from,
        "run_id": None,
        "run_steps": 0,
        "loss": None,
        "eval_loss": None,
        "eval_loss_before": None,
        "evaluations": 0,
        "data": [],
        **dict.fromkeys(inherited),
        "training_steps": 0,
        "total_evals": 0,
        **({key: parent[key] for key in inherited} if parent else {}),
    }


def change_to(
    paths: Paths,
    head: dict[str, Any],
    target: str | None,
    operation: str,
    announce: Announce,
    *,
    restores: list[dict[str, str]] | None = None,
    queue_follows: bool = True,
) -> None:
    """Make ``current_model/`` the version ``target`` (None: a fresh start). Needs the store lock and no intent.

    The retired tree is used where it is that version; else the version is copied. ``restores`` replaces the
    memory of restores in the head. ``queue_follows`` moves the data files whose training leaves or joins the model.

    Raises:
        IntegrityError: the version is damaged and no second copy heals it; nothing was changed.
        DiskSpaceError: no room for the copy; nothing was changed.
    """
    condition = condition_of_live_model(paths, head)
    number = next_number(paths, head)
    stage: Path | None = None
    is_checked = False
    if target is not None:
        stage, is_checked = _prepare_stage(paths, head, target, announce)
    displaced: dict[str, Any] | None = None
    if condition == "changed":
        displaced = {
            "adopt": number,
            "metadata": changed_by_hand_metadata(paths, head, f"changed by hand, saved by {operation}", "snapshot"),
        }
        announce(f"the model was changed by hand; that state is kept as {version_name(number)}")
    elif condition == "version":
        displaced = {"retire": head["version"]}
    intent = {
        "schema_version": SCHEMA_VERSION,
        "operation": operation,
        "created_at": utc_now(),
        "stage": str(stage.relative_to(paths.base)) if stage else None,
        "stage_inode": _inode(stage) if stage else None,
        # Taken while nobody else knows the tree: whatever is written into it later shows.
        "signed": sign(stage) if stage else UNSIGNED,
        "live_inode": _inode(paths.current_model),
        "displaced": displaced,
        "target": target,
        "previous_head": head,
        "restores": head["restores"] if restores is None else restores,
        "last_number": number if condition == "changed" else number - 1,
        "config": config_changes(paths, target, operation),
        "queue": queue_changes(paths, head["version"], target, operation) if queue_follows else [],
    }
    write_json(paths.intent, intent)
    try:
        carry_out(paths, intent, announce, is_checked=is_checked)
    except OSError:
        _forget_if_not_begun(paths, intent)
        raise


def _forget_if_not_begun(paths: Paths, intent: dict[str, Any]) -> None:
    """Drop a change that failed before its first step, so that no later command carries it out unasked."""
    stage = paths.base / intent["stage"] if intent["stage"] else None
    is_stage_there = stage is None or _inode(stage) == intent["stage_inode"]
    if is_stage_there and _inode(paths.current_model) == intent["live_inode"]:
        paths.intent.unlink(missing_ok=True)
        fsync_folder(paths.models)


def change_config(paths: Paths, values: dict[str, Any], lock: dict[str, Any]) -> None:
    """Change values of config.json together with the lock, all or nothing. Needs the store lock and no intent."""
    intent = {"schema_version": SCHEMA_VERSION, "operation": CONFIG_CHANGE, "created_at": utc_now()}
    write_json(paths.intent, {**intent, "config": {**values, "lock": lock}, "queue": []})
    finish_pending(paths)


def carry_out(paths: Paths, intent: dict[str, Any], announce: Announce, *, is_checked: bool = False) -> None:
    """All steps of a change, from wherever a kill left them. Needs the store lock.

    ``is_checked``: this process has just seen every byte of the new tree, so step 4 need not read them again.

    Raises:
        IntegrityError: the new tree is damaged beyond healing; ``current_model/`` is as before.
    """
    if intent["operation"] != CONFIG_CHANGE:
        if not intent.get("undo"):
            _exchange(paths, intent)
            write_head(paths, _settle_displaced(paths, intent))
            # A reader that went away must not stop a change half-way.
            with contextlib.suppress(OSError):
                announce(f"current_model/ is {intent['target'] or 'empty: a fresh start'}")
        is_good = intent["target"] is None or is_checked
        if intent.get("undo") or not (is_good or _check_or_heal(paths, intent, announce)):
            _undo(paths, intent, announce)
    for key, value in intent["config"].items():
        if key == "lock":
            write_lock(paths, value)
        else:
            set_config_value(paths, key, value)
            announce(f"config.json: {key} is {value}")
    for change in intent["queue"]:
        move_data_file(paths, **change)
    paths.intent.unlink()
    fsync_folder(paths.models)


def _prepare_stage(paths: Paths, head: dict[str, Any], target: str, announce: Announce) -> tuple[Path, bool]:
    """A complete, durable, writable tree of version ``target``, ready to become ``current_model/``.

    And whether its bytes are known to be right: those of a copy are, those of the retired tree may not be.
    """
    retired = head["retired"]
    if retired and retired["version"] == target and _is_as_retired(paths, retired):
        return paths.retired_model, False
    stage = paths.models / f"{STAGE_PREFIX}{target}"
    copy_version(paths, target, stage, announce)
    return stage, True


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _exchange(paths: Paths, intent: dict[str, Any]) -> None:
    """Step 1. Done already if ``current_model`` is the stage's inode (or gone, for a fresh start)."""
    live = _inode(paths.current_model)
    if intent["stage"] is None:
        if live is not None and live == intent["live_inode"]:
            paths.current_model.rename(_displaced_folder(paths, intent))
            fsync_folder(paths.models)
    elif live != intent["stage_inode"] and not _was_exchanged_elsewhere(paths, intent):
        stage = paths.base / intent["stage"]
        if live is not None:
            _take_place_of_live_model(paths, stage)
        else:
            stage.rename(paths.current_model)
        fsync_folder(stage.parent)
    fsync_folder(paths.base)


def _was_exchanged_elsewhere(paths: Paths, intent: dict[str, Any]) -> bool:
    """Whether step 1 was done before the base dir was copied to other inodes: the bytes have to tell then."""
    if _inode(paths.base / intent["stage"]) == intent["stage_inode"]:
        return False
    return not find_damage(paths.current_model, read_metadata(paths, intent["target"])["files"])


def _take_place_of_live_model(paths: Paths, stage: Path) -> None:
    try:
        exchange(stage, paths.current_model)
    except UnsupportedError:
        # NFS and some FUSE: two renames. After a kill between them the intent record names the stage to go on with.
        paths.current_model.rename(paths.models / DISPLACED)
        stage.rename(paths.current_model)


def _displaced_folder(paths: Paths, intent: dict[str, Any]) -> Path:
    """Where step 1 puts the tree that it takes out."""
    apart = paths.models / DISPLACED
    return apart if intent["stage"] is None or apart.exists() else paths.base / intent["stage"]


def _settle_displaced(paths: Paths, intent: dict[str, Any]) -> dict[str, Any]:
    """Step 2; returns the head as it is to be."""
    out = _displaced_folder(paths, intent)
    previous, displaced = intent["previous_head"], intent["displaced"]
    head = {
        "version": intent["target"],
        "changed_at": intent["created_at"],
        "operation": intent["operation"],
        **intent["signed"],
        "restores": intent["restores"],
        "last_number": intent["last_number"],
        "retired": None if out == paths.retired_model else previous["retired"],
    }
    if displaced is not None and "retire" in displaced:
        tree = _find_displaced(paths, intent, out)
        if tree is None:
            return head
        signature = take_signature(tree)
        if signature == previous["signature"] or _is_version(paths, tree, displaced["retire"]):
            _retire(paths, tree, previous["retired"])
            return {**head, "retired": {"version": displaced["retire"], "signature": signature}}
        # Somebody wrote into it after the change was decided on.
        displaced = {
            "adopt": intent["last_number"] + 1,
            "metadata": changed_by_hand_metadata(
                paths, previous, f"changed by hand, saved by {intent['operation']}", "snapshot"
            ),
        }
        intent.update(
            {
                "displaced": displaced,
                "last_number": displaced["adopt"],
                "displaced_path": str(tree.relative_to(paths.base)),
            }
        )
        write_json(paths.intent, intent)
    if displaced is None:
        if out.exists():
            discard(paths, out, f"{intent['operation']} put it out")
        return head
    if "displaced_path" in intent:
        out = paths.base / intent["displaced_path"]
    if out.exists():
        add_version(paths, displaced["adopt"], out, displaced["metadata"], "move")
        discard(paths, out, "its files are a version now")
    if out == paths.retired_model:
        head["retired"] = None
    return {**head, "last_number": intent["last_number"]}


def _find_displaced(paths: Paths, intent: dict[str, Any], out: Path) -> Path | None:
    """The tree that was ``current_model/``, wherever a kill left it; None if others removed it."""
    for tree in (out, paths.retired_model):
        if _inode(tree) == intent["live_inode"]:
            return tree
    # Copied to other inodes: the place has to tell.
    return out if out.exists() else None


def _is_version(paths: Paths, tree: Path, version_id: str) -> bool:
    """Whether a tree holds the bytes of a version, as far as that is known."""
    try:
        return not find_damage(tree, read_metadata(paths, version_id)["files"])
    except GuardrailsError:
        return False


def _retire(paths: Paths, tree: Path, retired: dict[str, Any] | None) -> None:
    """Make ``tree`` the retired tree."""
    if tree == paths.retired_model:
        return
    if paths.retired_model.exists():
        _drop_retired(paths, retired)
    paths.retired.mkdir(exist_ok=True)
    tree.rename(paths.retired_model)
    fsync_folder(paths.retired)


def _is_as_retired(paths: Paths, retired: dict[str, Any]) -> bool:
    """Whether nobody touched or removed the retired tree."""
    try:
        return bool(take_signature(paths.retired_model) == retired["signature"])
    except FileNotFoundError:
        return False


def _drop_retired(paths: Paths, retired: dict[str, Any] | None) -> None:
    """Make room for the next retired tree. Only one whose bytes a version and a backup hold is removed for good."""
    if retired and _is_as_retired(paths, retired) and _has_two_copies(paths, retired["version"]):
        remove_tree(paths.retired_model)
    else:
        discard(paths, paths.retired_model, "it was changed, or its version has no backup")


def _has_two_copies(paths: Paths, version_id: str) -> bool:
    if not is_kept(paths, version_id):
        return False
    try:
        return backup_of_version(backups_folder(paths), read_metadata(paths, version_id)) is not None
    except (GuardrailsError, OSError):
        return False


def _check_or_heal(paths: Paths, intent: dict[str, Any], announce: Announce) -> bool:
    """Step 4: whether ``current_model/`` holds the target's bytes, if need be after healing."""
    target = intent["target"]
    put_metadata_back(paths, target)
    files = read_metadata(paths, target)["files"]
    problems = find_damage(paths.current_model, files)
    if not problems:
        return True
    announce(f"damaged: {problems[0]}")
    copies = Copies(paths, strict=False)
    staging = paths.models / f"{STAGE_PREFIX}healing"
    staging.mkdir(exist_ok=True)
    left = heal_tree(paths.current_model, files, copies, staging, paths.trash, "current_model/", mode=LIVE_FILE_MODE)
    remove_tree(staging)
    if left:
        return False
    announce("healed from a second copy")
    write_head(paths, {**read_head(paths), **sign(paths.current_model)})
    return True


def _undo(paths: Paths, intent: dict[str, Any], announce: Announce) -> None:
    """Put back what was displaced, because the new tree is damaged beyond healing, and raise IntegrityError.

    The intent record says first that this is the way now, so that a kill does not turn it round again.
    """
    write_json(paths.intent, {**intent, "undo": True})
    previous, displaced = intent["previous_head"], intent["displaced"] or {}
    head = {**previous, "retired": None, "last_number": intent["last_number"]}
    before = _tree_to_put_back(paths, intent)
    damaged = paths.models / DISPLACED
    if _inode(paths.current_model) == intent["stage_inode"]:
        # Two renames will do: this is no moment for speed, and the record tells what is missing between them.
        paths.current_model.rename(damaged)
    if before is not None and not paths.current_model.exists():
        before.rename(paths.current_model)
    fsync_folder(paths.base)
    if "adopt" in displaced:
        head["version"] = version_name(displaced["adopt"])
    if paths.current_model.exists():
        head.update(sign(paths.current_model))
    write_head(paths, head)
    if damaged.exists():
        discard(paths, damaged, f"{intent['target']} was damaged")
    paths.intent.unlink()
    fsync_folder(paths.models)
    announce(f"undone: current_model/ is {head['version'] or 'empty'} again")
    raise IntegrityError(
        f"{intent['target']} is damaged and no second copy heals it; current_model/ is as before",
        HOW_TO_GO_ON,
    )


def _tree_to_put_back(paths: Paths, intent: dict[str, Any]) -> Path | None:
    """The tree that was ``current_model/``, or a copy of the version that it became; None if there was none."""
    displaced = intent["displaced"]
    if displaced is None:
        return None
    if "retire" in displaced:
        return paths.retired_model
    stage = paths.models / f"{STAGE_PREFIX}undo"
    if stage.exists():
        remove_tree(stage)
    adopted = paths.version(version_name(displaced["adopt"])) / "model"
    copy_tree(adopted, stage, file_mode=LIVE_FILE_MODE, folder_mode=LIVE_FOLDER_MODE)
    return stage
