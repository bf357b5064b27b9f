"""What follows when another version becomes ``current_model/``: config and lock, and the data files in the queue."""

from typing import Any

from guardrails.config_lock import move_lock
from guardrails.paths import Paths
from guardrails.queue import finish
from guardrails.queue_records import read_record
from guardrails.store.head import read_lock
from guardrails.store.version_records import lineage, read_metadata, version_number


def config_changes(paths: Paths, target: str | None, operation: str) -> dict[str, Any]:
    """What config and lock must become for ``target``: its base model, if another one is configured now."""
    lock = read_lock(paths)
    if target is None or lock is None:
        return {}
    metadata = read_metadata(paths, target)
    base_model, fingerprint = metadata["base_model"], metadata["base_model_fingerprint"]
    if base_model is None or fingerprint is None or lock["base_model_fingerprint"]["blake3"] == fingerprint["blake3"]:
        return {}
    moved = move_lock(lock, {"base_model": base_model}, fingerprint, f"{operation} to {target}")
    return {"base_model": base_model, "lock": moved}


def _diverging(
    paths: Paths, one: str | None, other: str | None
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """What each lineage has of its own, down to the common ancestor and no further."""
    mine: dict[str, dict[str, Any]] = {}
    theirs: dict[str, dict[str, Any]] = {}
    left, right = lineage(paths, one), lineage(paths, other)
    first, second = next(left, None), next(right, None)
    while (first is None) != (second is None) or (first and second and first["id"] != second["id"]):
        # An ancestor has a smaller number than what came of it.
        if second is None or (first is not None and version_number(first["id"]) > version_number(second["id"])):
            assert first is not None
            mine[first["id"]] = first
            first = next(left, None)
        else:
            theirs[second["id"]] = second
            second = next(right, None)
    return mine, theirs


def queue_changes(paths: Paths, before: str | None, after: str | None, operation: str) -> list[dict[str, Any]]:
    """Data files whose training leaves or joins the model when it goes from one version to another."""
    old, new = _diverging(paths, before, after)
    where = after or "a fresh start"
    undone = [
        {
            "name": data["name"],
            "blake3": data["blake3"],
            "trained": None,
            "reason": f"run {metadata['run_id']} ({version}) undone by {operation} to {where}",
        }
        for version, metadata in old.items()
        for data in metadata["data"]
    ]
    redone = [
        {"name": data["name"], "blake3": data["blake3"], "trained": version, "reason": None}
        for version, metadata in new.items()
        for data in metadata["data"]
    ]
    return undone + redone


def move_data_file(paths: Paths, name: str, blake3: str, trained: str | None, reason: str | None) -> None:
    """Step 5 for one data file; one that a person moved meanwhile, or that is another file by now, is left alone."""
    record = read_record(paths, name)
    if record is None or record.blake3 != blake3:
        return
    if trained is None and record.state == "completed":
        finish(paths, name, "skipped", reason=reason, held_back=True)
    elif trained is not None and record.state == "skipped" and record.held_back:
        finish(paths, name, "completed", version=trained)
