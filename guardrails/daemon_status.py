"""What the daemon shows: its own state, the live progress while no worker lives to write it, and the log.

systemd, where that started the daemon, is shown the same, and whether something gets on.
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from guardrails.errors import GuardrailsError
from guardrails.paths import Paths
from guardrails.queue_records import Record, processing
from guardrails.state_io import SCHEMA_VERSION, read_json, utc_now, write_json
from guardrails.store.head import read_head
from guardrails.store.version_records import lineage
from guardrails.supervisor import Supervisor
from guardrails.worker_process import STEPPING_PHASES


class StatusBoard:
    """``status/daemon.json``, ``status/training_status.json`` and ``logs/`` of one daemon session."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.session = f"{os.getpid()}-{time.time_ns() // 1_000_000}"
        self.started_at = utc_now()
        self.published: dict[str, Any] = {}
        self.supervisor = Supervisor(os.environ)

    def read_progress(self) -> dict[str, Any]:
        try:
            return read_json(self.paths.training_status) or {}
        except GuardrailsError:
            return {}

    def publish_progress(self, status: str) -> None:
        """Live progress while no worker lives to write it: the model's steps of all time, and how things stand."""
        previous = self.read_progress()
        version = None
        # Without the head, or its version's metadata, the steps are shown as none; what is damaged holds the queue.
        with contextlib.suppress(GuardrailsError):
            version = next(lineage(self.paths, read_head(self.paths)["version"]), None)
        run = {key: previous.get(key) for key in ("run_id", "data_name", "loss", "eval_loss")}
        at_rest = status in ("paused", "stopped") and processing(self.paths) is not None
        self._write(
            self.paths.training_status,
            {
                "schema_version": SCHEMA_VERSION,
                "status": status,
                "phase": None,
                **(run if at_rest or status == "error" else dict.fromkeys(run)),
                "current_step": previous.get("current_step", 0)
                if at_rest
                else (version["training_steps"] if version else 0),
                "run_step": previous.get("run_step", 0) if at_rest else 0,
                "run_total_steps": previous.get("run_total_steps", 0) if at_rest else 0,
                "total_evals": previous.get("total_evals", 0)
                if at_rest
                else (version["total_evals"] if version else 0),
                "eta_seconds": None,
                "updated_at": utc_now(),
                "pid": None,
            },
        )

    def publish_state(
        self, state: str, record: Record | None = None, *, reason: str | None = None, exit_code: int | None = None
    ) -> None:
        document = {
            "schema_version": SCHEMA_VERSION,
            "pid": os.getpid(),
            "session": self.session,
            "started_at": self.started_at,
            "state": state,
            "run_id": record.run_id if record else None,
            "data_name": record.name if record else None,
            "reason": reason,
        }
        self.supervisor.show(": ".join(filter(None, (state, record.name if record else None, reason))))
        if document != self.published:
            ended_at = utc_now() if exit_code is not None else None
            complete = {**document, "updated_at": utc_now(), "ended_at": ended_at, "exit_code": exit_code}
            if self._write(self.paths.daemon_status, complete):
                self.published = document

    def show_worker(self, last_sign: float) -> None:
        """Tell the supervisor how far the worker is, and pet its watchdog if the worker gets on.

        In a phase with steps that is a sign of life (``time.monotonic``) since the watchdog was last petted; loading
        or saving a large model gives none, there the daemon's own patience counts.
        """
        if not self.supervisor.wants_pet():
            return
        progress = self.read_progress()
        phase = progress.get("phase")
        if phase is not None:
            done = f"step {progress.get('run_step')} of {progress.get('run_total_steps')}"
            self.supervisor.show(f"{progress.get('data_name')}: {phase}, {done}")
        if phase not in STEPPING_PHASES or last_sign > self.supervisor.last_pet:
            self.supervisor.pet()

    def _write(self, path: Path, document: dict[str, Any]) -> bool:
        """Write a status file if possible: a full disk must not end the daemon that waits for it to be freed."""
        try:
            write_json(path, document)
        except OSError as error:
            self.log(f"cannot write {path}: {error.strerror}")
            return False
        return True

    def log(self, line: str) -> None:
        """One line to the day's log and to stderr; where the log cannot be written, to stderr alone."""
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
        text = f"{utc_now()} {shown}\n"
        # A full disk or a terminal that is gone must not end months of training.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        with contextlib.suppress(OSError):
            path = self.paths.logs / f"daemon_{time.strftime('%Y%m%d', time.gmtime())}.log"
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
