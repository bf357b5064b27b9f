"""What a run shows while it lives: training_status.json and metrics.jsonl."""

import math
import os
import time
from pathlib import Path
from typing import Any

from guardrails.state_io import SCHEMA_VERSION, dump_json, utc_now
from guardrails.training.job import Job

WRITE_SECONDS = 1.0


class StatusFile:
    """training_status.json, replaced in one step but not fsynced: after a power cut no worker lives anyway."""

    def __init__(self, job: Job) -> None:
        self.path = Path(job.status_file)
        # Named as state_io names its own, so that a killed worker's leftover is cleaned up with them.
        self.temporary = self.path.with_name(f"{self.path.name}.tmp-{os.getpid()}-{0:08x}")
        self.start_steps = job.start_steps
        self.start_evals = job.start_evals
        self.next_write = 0.0
        self.document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "status": "training",
            "phase": "importing",
            "run_id": job.run_id,
            "data_name": job.data_name,
            "current_step": job.start_steps,
            "run_step": 0,
            "run_total_steps": 0,
            "loss": None,
            "eval_loss": None,
            "total_evals": job.start_evals,
            "eta_seconds": None,
            "updated_at": utc_now(),
            "pid": os.getpid(),
        }

    def show_phase(self, phase: str, status: str = "training") -> None:
        """Write at once that the worker is now in ``phase``."""
        self.document["phase"] = phase
        self.document["status"] = status
        self._write()

    def refresh(self) -> None:
        """Write what ``document`` holds, at most once a second: a sign of life."""
        if time.monotonic() >= self.next_write:
            self._write()

    def _write(self) -> None:
        document = self.document
        document["current_step"] = self.start_steps + document["run_step"]
        document["updated_at"] = utc_now()
        self.temporary.write_text(dump_json(document) + "\n", encoding="utf-8")
        self.temporary.rename(self.path)
        self.next_write = time.monotonic() + WRITE_SECONDS


class Metrics:
    """metrics.jsonl: one line a log or an evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, values: dict[str, float | None]) -> None:
        """Add a line; values that are None or not finite are left out."""
        line: dict[str, Any] = {"step": step}
        line |= {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
        line["at"] = utc_now()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(dump_json(line, indent=None) + "\n")

    def sync(self) -> int:
        """Make what was appended survive a power cut; the file's size in bytes, for ``cut``."""
        with self.path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut(self, size: int) -> None:
        """Drop what stands after ``size`` bytes: it is of steps and evaluations that are done again."""
        if self.path.exists() and self.path.stat().st_size > size:
            os.truncate(self.path, size)
