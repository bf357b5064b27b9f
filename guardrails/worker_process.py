"""The training worker as the daemon sees it: start it, ask it to end, know whether it still gets on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from guardrails.paths import CODE_DIR, Paths
from guardrails.state_io import SCHEMA_VERSION, write_json

Action = Literal["stop", "pause", "hold", "skip", "resume"]
# A worker that was asked to end and shows no sign of life for this long is killed; its last checkpoint counts.
GRACE_SECONDS = 120.0
# No sign of life at all: reading a large model from a slow disk is the longest silence.
HANG_SECONDS = 1800.0
# Each step, batch or wait of these writes the live progress, at most once a second; the other phases may be silent.
STEPPING_PHASES = ("training", "evaluating", "held")


class WorkerProcess:
    """One living worker. It dies with the daemon: gracefully, by a signal that the kernel sends it."""

    def __init__(self, paths: Paths, run_id: str) -> None:
        self.folder = paths.run(run_id)
        self.status_file = paths.training_status
        (self.folder / "request.json").unlink(missing_ok=True)
        with (self.folder / "worker.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "guardrails.training.worker", str(self.folder)],
                cwd=CODE_DIR,
                env={**os.environ, "GUARDRAILS_DAEMON_PID": str(os.getpid()), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.last_sign = time.monotonic()
        self.last_stamp = 0

    def exit_code(self) -> int | None:
        """None while it lives; negative after a signal."""
        return self.process.poll()

    def request(self, action: Action) -> None:
        """Ask for the end (or the going on) of the run; before training starts it is simply gone."""
        # On a full disk the signal alone has to do: without a request the worker saves and leaves.
        with contextlib.suppress(OSError):
            write_json(self.folder / "request.json", {"schema_version": SCHEMA_VERSION, "action": action})
        self.last_sign = time.monotonic()
        if action != "resume":
            self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def silent_seconds(self) -> float:
        """Seconds since the last sign of life: a write of the live progress, or a request."""
        try:
            stamp = self.status_file.stat().st_mtime_ns
        except FileNotFoundError:
            stamp = 0
        if stamp != self.last_stamp:
            self.last_stamp = stamp
            self.last_sign = time.monotonic()
        return time.monotonic() - self.last_sign


def last_log_line(folder: Path) -> str:
    """The last line of the worker's log, for the reason of a failure."""
    try:
        with (folder / "worker.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""
