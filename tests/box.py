"""A base dir with a tiny model, and the toolkit's scripts run on it as a user runs them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guardrails.config import starting_config
from guardrails.locks import read_holder
from guardrails.paths import CODE_DIR, Paths
from guardrails.state_io import dump_json, read_json
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata

DEADLINE_SECONDS = 90.0
WORDS = [
    "river",
    "stone",
    "lamp",
    "garden",
    "winter",
    "paper",
    "quiet",
    "silver",
    "morning",
    "window",
    "bread",
    "letter",
]


def make_rows(count: int, seed: int, words: int = 6) -> list[dict[str, Any]]:
    """Chats of random words; another seed makes other content."""
    source = random.Random(seed)

    def sentence() -> str:
        return " ".join(source.choices(WORDS, k=words)) + "."

    return [
        {"messages": [{"role": "user", "content": sentence()}, {"role": "assistant", "content": sentence()}]}
        for _ in range(count)
    ]


class Box:
    """One base dir. Settings are small, so that a run of 40 rows takes 10 steps of a few milliseconds."""

    def __init__(self, base: Path, model: Path, **settings: Any) -> None:
        self.paths = Paths(base)
        for folder in self.paths.folders():
            folder.mkdir(parents=True, exist_ok=True)
        self.configure(base_model=str(model), **settings)
        self.daemon: subprocess.Popen[bytes] | None = None

    def configure(self, **settings: Any) -> None:
        defaults: dict[str, Any] = {
            "model_name": "tiny",
            "max_length": 128,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "learning_rate": 5e-3,
            "warmup_steps": 2,
            "lora_r": 4,
            "lora_dropout": 0.1,
            "log_steps": 2,
            "eval_steps": 0,
            "poll_interval": 0.2,
        }
        self.settings = {**defaults, **settings}
        self.paths.config.write_text(starting_config(**self.settings))

    # Data

    def drop(self, name: str, rows: int = 40, seed: int = 1, words: int = 6) -> Path:
        """Put a data file into the inbox in one step."""
        path = self.paths.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(".dropping")
        beside.write_text("".join(dump_json(row, indent=None) + "\n" for row in make_rows(rows, seed, words)))
        beside.rename(path)
        return path

    def names(self, state: str) -> list[str]:
        return sorted(path.name for path in self.paths.queue_folder(state).iterdir() if not path.name.startswith("."))

    # Scripts

    def environment(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1", "TRAINING_BASE_DIR": str(self.paths.base)}

    def run(self, script: str, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """A script to its end; ``code`` is the exit code that it must have (None: any)."""
        result = subprocess.run(
            [sys.executable, str(CODE_DIR / script), *arguments],
            env=self.environment(),
            cwd=self.paths.base,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS * 3,
            check=False,
        )
        assert code is None or result.returncode == code, (script, arguments, result)
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def once(self, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        return self.run("training_daemon.py", "--once", code=code)

    def json(self, script: str, *arguments: str) -> Any:
        return json.loads(self.run(script, *arguments, "--json").stdout)

    def start_daemon(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A daemon that has published its session."""
        with (self.paths.base / "daemon.out").open("ab") as output:
            self.daemon = subprocess.Popen(
                [sys.executable, str(CODE_DIR / "training_daemon.py"), *arguments],
                env=self.environment(),
                stdout=output,
                stderr=output,
            )
        pid = self.daemon.pid
        self.wait(lambda: self.state().get("pid") == pid or self.daemon_ended(), "the daemon's start")
        return self.daemon

    def daemon_ended(self) -> bool:
        return self.daemon is None or self.daemon.poll() is not None

    def wait_for_end(self, code: int = 0) -> None:
        assert self.daemon is not None
        assert self.daemon.wait(DEADLINE_SECONDS) == code, self.output()

    def output(self) -> str:
        path = self.paths.base / "daemon.out"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """End what still runs, however the test went."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
        self.wait(lambda: not self.workers(), "the end of all workers", kill=True)

    # What can be seen

    def state(self) -> dict[str, Any]:
        return read_json(self.paths.daemon_status) or {}

    def progress(self) -> dict[str, Any]:
        return read_json(self.paths.training_status) or {}

    def workers(self) -> list[int]:
        holders = (read_holder(folder / ".lock") for folder in self.paths.runs.iterdir())
        return [holder.pid for holder in holders if holder is not None]

    def versions(self) -> list[dict[str, Any]]:
        ids = [version for version in list_version_ids(self.paths) if is_kept(self.paths, version)]
        return [read_metadata(self.paths, version) for version in ids]

    def head(self) -> str | None:
        version: str | None = (read_json(self.paths.head) or {}).get("version")
        return version

    def weights(self) -> bytes:
        return (self.paths.current_model / "adapter_model.safetensors").read_bytes()

    def wait(self, condition: Callable[[], object], what: str, *, kill: bool = False) -> None:
        """Returns as soon as ``condition`` holds; fails the test after the deadline."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            if kill:
                for pid in self.workers():
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.output()}"
            time.sleep(0.005)

    def wait_for_phase(self, phase: str, run_step: int = 0) -> None:
        """The worker's phase, at ``run_step`` steps or more."""

        def reached() -> bool:
            progress = self.progress()
            return progress.get("phase") == phase and progress["run_step"] >= run_step

        self.wait(lambda: reached() or self.daemon_ended(), f"phase {phase}")
        assert not self.daemon_ended(), self.output()

    def assert_at_rest(self) -> None:
        """No process, stage folder or intent record is left, and ``current_model/`` is its version."""
        assert self.workers() == []
        assert not self.paths.intent.exists()
        leftovers = [
            path
            for folder in (
                self.paths.models,
                self.paths.versions,
                self.paths.backups,
                self.paths.status,
                self.paths.base,
            )
            for path in folder.iterdir()
            if path.name.startswith(".stage-") or ".tmp-" in path.name
        ]
        assert leftovers == []
        head = self.head()
        if head is not None:
            saved = (self.paths.version(head) / "model" / "adapter_model.safetensors").read_bytes()
            assert self.weights() == saved
