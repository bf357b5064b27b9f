"""Run folders and workers for the tests of the training engine."""

import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from guardrails.manifest import hash_file
from guardrails.paths import CODE_DIR

DEADLINE_SECONDS = 60.0


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of ``condition``; fails after the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)


class RunFolder:
    """A run as the daemon would have prepared it."""

    def __init__(self, path: Path, base_model: Path, data: Path, **settings: object) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.status_file = path / "training_status.json"
        job = {
            "schema_version": 1,
            "run_id": path.name,
            "data_name": data.name,
            "data_path": str(data),
            "data_blake3": hash_file(data),
            "base_model": str(base_model),
            "base_model_fingerprint": "77aa",
            "parent_version": None,
            "parent_adapter": None,
            "start_steps": 0,
            "status_file": str(self.status_file),
            "max_length": 64,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "learning_rate": 0.005,
            "warmup_steps": 2,
            "epochs": 1,
            "seed": 42,
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.1,
            "lora_target_modules": ["q_proj", "v_proj", "down_proj"],
            "log_steps": 3,
            "eval_steps": 5,
            "save_minutes": 10.0,
            "validation_file": None,
            "max_bad_rows": 0,
            "world_size": 1,
        }
        self.job = {**job, **settings}
        (path / "job.json").write_text(json.dumps(self.job))

    def copy(self, path: Path) -> "RunFolder":
        """A copy that can be trained on: job.json, and so the checkpoints' claim to it, stays the same."""
        shutil.copytree(self.path, path)
        copied = object.__new__(RunFolder)
        copied.__dict__ |= {**self.__dict__, "path": path}
        return copied

    def request(self, action: str) -> None:
        temporary = self.path / "request.tmp"
        temporary.write_text(json.dumps({"schema_version": 1, "action": action}))
        temporary.rename(self.path / "request.json")

    def read(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / name).read_text())
        return content

    def status(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self.status_file.read_text())
        except FileNotFoundError:
            return {"phase": None, "run_step": 0}
        return content

    def metrics(self) -> list[dict[str, Any]]:
        """The logged values without their times."""
        lines = (self.path / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "at"} for line in lines]

    def checkpoints(self) -> list[int]:
        """Steps of all checkpoints, in order."""
        return sorted(int(path.name.removeprefix("step-")) for path in (self.path / "ckpt").glob("step-*"))

    def log(self) -> str:
        return (self.path / "worker.log").read_text()

    def result(self) -> dict[str, Any]:
        """All that an uninterrupted run of the same job must equal, bit for bit."""
        outcome = self.read("outcome.json")
        for key in ("run_id", "seconds", "ended_at"):
            del outcome[key]
        return {"outcome": outcome, "metrics": self.metrics(), "rows": self.read("rows.json")}


def worker_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CODE_DIR)}


class Worker:
    """A worker started by a spawner; its exit code is known once it ended."""

    def __init__(self, spawner: "Spawner", pid: int) -> None:
        self.spawner = spawner
        self.pid = pid

    def send(self, number: int) -> None:
        """Send a signal, unless the worker has already ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        self.spawner.read_answers(0)
        return self.spawner.codes.get(self.pid)

    def wait(self) -> int:
        """The exit code; minus the signal's number for a killed worker."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.pid not in self.spawner.codes:
            self.spawner.read_answers(1)
            assert time.monotonic() < deadline, "the worker did not end"
        return self.spawner.codes[self.pid]

    def wait_at_most(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.pid not in self.spawner.codes and (left := deadline - time.monotonic()) > 0:
            self.spawner.read_answers(left)


class Spawner:
    """Forks workers of a process that has imported the libraries already; see spawner.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("spawner.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=worker_environment(),
        )
        self.codes: dict[int, int] = {}
        self.started: list[int] = []
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.stdout, selectors.EVENT_READ)
        self.unread = b""

    def start(self, run: RunFolder, environment: Mapping[str, str] | None = None) -> Worker:
        self.stdin.write(json.dumps({"run": str(run.path), "environment": environment or {}}).encode() + b"\n")
        self.stdin.flush()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self.started:
            self.read_answers(1)
            assert time.monotonic() < deadline, "the spawner did not answer"
        return Worker(self, self.started.pop())

    def train(self, run: RunFolder) -> int:
        """Run a worker to its end; its exit code."""
        return self.start(run).wait()

    def read_answers(self, wait_seconds: float) -> None:
        while self.selector.select(wait_seconds):
            wait_seconds = 0
            chunk = os.read(self.stdout.fileno(), 65536)
            if not chunk:
                raise AssertionError("the spawner ended")
            *lines, self.unread = (self.unread + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "started" in message:
                    self.started.append(message["started"])
                elif "pid" in message:
                    self.codes[message["pid"]] = message["code"]

    def close(self) -> None:
        self.stdin.close()
        self.process.wait(DEADLINE_SECONDS)
        self.stdout.close()
        self.selector.close()
