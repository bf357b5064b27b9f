"""The folder of one run, from its frozen job to its outcome. The worker computes; this only reads and files."""

import os
import time
from pathlib import Path
from typing import Any

from guardrails.filesystem import remove_tree
from guardrails.locks import Holder, read_holder
from guardrails.paths import Paths
from guardrails.queue_records import Record
from guardrails.state_io import SCHEMA_VERSION, fsync_folder, read_json, utc_now, write_json

# What only a run that goes on needs; the log, the metrics, the job and the outcome stay for ever.
CONTINUATION = ("stage", "ckpt", "output")


def new_run_id(paths: Paths, data_blake3: str) -> str:
    """A run id that no folder has yet."""
    stem = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{data_blake3[:8]}"
    number, run_id = 1, stem
    while paths.run(run_id).exists():
        number += 1
        run_id = f"{stem}-{number}"
    return run_id


def run_of(record: Record) -> str:
    """The run that a data file in ``processing/`` belongs to."""
    assert record.run_id is not None, record.name
    return record.run_id


def worker_of(paths: Paths, run_id: str) -> Holder | None:
    """The living worker of a run, or None."""
    return read_holder(paths.run(run_id) / ".lock")


def read_outcome(paths: Paths, run_id: str) -> dict[str, Any] | None:
    """How the run ended; None while it has not, or if it was killed."""
    return read_json(paths.run(run_id) / "outcome.json", {"result": str})


def read_job(paths: Paths, run_id: str) -> dict[str, Any] | None:
    """What the run is to do; None before its pre-flight passed."""
    return read_json(paths.run(run_id) / "job.json")


def write_job(paths: Paths, job: dict[str, Any]) -> None:
    folder = paths.run(job["run_id"])
    folder.mkdir(parents=True, exist_ok=True)
    fsync_folder(folder.parent)
    write_json(folder / "job.json", {"schema_version": SCHEMA_VERSION, **job})


def newest_checkpoint_step(paths: Paths, run_id: str) -> int:
    """The step of the newest finished checkpoint; 0 without one. Its bytes are checked by the worker."""
    try:
        names = os.listdir(paths.run(run_id) / "ckpt")
    except FileNotFoundError:
        return 0
    return max((int(name[5:]) for name in names if name.startswith("step-") and name[5:].isdigit()), default=0)


def drop_run(paths: Paths, run_id: str, reason: str) -> None:
    """End a run without a result: its checkpoints go, its log and metrics stay."""
    folder = paths.run(run_id)
    if not folder.is_dir():
        return
    previous = read_outcome(paths, run_id) or {}
    write_json(
        folder / "outcome.json",
        {
            **previous,
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "result": "dropped",
            "reason": "dropped",
            "message": reason,
            "ended_at": utc_now(),
        },
    )
    remove_continuation(folder)


def has_continuation(paths: Paths, run_id: str) -> bool:
    """Whether the run's folder still holds what only a run that goes on needs."""
    return any((paths.run(run_id) / name).exists() for name in CONTINUATION)


def remove_continuation(folder: Path) -> None:
    """Remove what a run needed to go on, once it never will."""
    for name in CONTINUATION:
        if (folder / name).exists():
            remove_tree(folder / name)
