"""A real base dir, file by file as docs/formats.md has it, and the script run on it as a user runs it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guardrails.filesystem import exchange
from guardrails.locks import FileLock
from guardrails.manifest import hash_file, make_manifest, total_size
from guardrails.paths import CODE_DIR, Paths
from guardrails.report.document import update_document
from guardrails.report.explanations import find_explanation
from guardrails.signature import take_model_signature, take_signature
from guardrails.state_io import format_utc, read_json, write_json

Json = dict[str, Any]
SCRIPT = CODE_DIR / "state_tracker.py"


class BaseDir:
    """A base dir under construction; ``healthy`` makes one that a daemon would have left behind."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.paths = Paths(base)
        for folder in self.paths.folders():
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path | str, document: object) -> Path:
        target = self.base / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document))
        return target

    def config(self, **values: object) -> None:
        settings = {"model_name": "tiny", "base_model": "base_models/tiny", "max_length": 2048}
        self.write("config.json", {**settings, **values})

    def base_model(self) -> Path:
        """A base model, its lock and its stat cache, as after a first pre-flight."""
        folder = self.base / "base_models/tiny"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "qwen3"}')
        (folder / "model.safetensors").write_bytes(b"w" * 5000)
        stats = take_model_signature(folder)
        hashes = {path: hash_file(folder / path) for path in stats}
        files = [{"path": path, "size": stat[0], "blake3": hashes[path]} for path, stat in stats.items()]
        self.write(
            ".config_lock.json",
            {
                "schema_version": 1,
                "locked": {"max_length": 2048, "base_model": "base_models/tiny", "model_name": "tiny"},
                "base_model_fingerprint": {"blake3": "77aa", "files": files},
                "locked_at": format_utc(time.time()),
                "approved_by": "first training",
            },
        )
        known = {path: {"stat": stat, "blake3": hashes[path], "hashed_at": 1} for path, stat in stats.items()}
        self.write("status/base_model_stat.json", {"schema_version": 1, "folder": str(folder), "files": known})
        return folder

    def adapter(self, folder: Path, content: bytes) -> None:
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(content)

    def version(self, number: int, **metadata: object) -> Path:
        identifier = f"v{number:03d}"
        folder = self.paths.version(identifier)
        self.adapter(folder / "model", b"adapter %d" % number)
        files = make_manifest(folder / "model")
        self.write(
            folder / "metadata.json",
            {
                "schema_version": 1,
                "id": identifier,
                "created_at": format_utc(time.time()),
                "description": f"file {number}.jsonl",
                "kind": "training",
                "parent": f"v{number - 1:03d}" if number > 1 else None,
                "training_steps": 75 * number,
                "run_steps": 75,
                "total_evals": 3 * number,
                "size": total_size(files),
                "files": files,
                "config": {"max_length": 2048, "lora_target_modules": ["q_proj", "v_proj"]},
                "libraries": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
                **metadata,
            },
        )
        return folder

    def backup(self, number: int, version: str, folder: Path | None = None) -> Path:
        target = (folder or self.paths.backups) / f"b{number:03d}"
        shutil.copytree(self.paths.version(version) / "model", target / "model")
        self.write(
            target / "metadata.json",
            {
                "schema_version": 1,
                "id": target.name,
                "created_at": format_utc(time.time()),
                "type": "after_training",
                "source": "current_model/",
                "version": version,
                "version_metadata": read_json(self.paths.version(version) / "metadata.json"),
                "files": make_manifest(target / "model"),
                "verified_at": format_utc(time.time()),
            },
        )
        return target

    def publish(self, version: str) -> None:
        """``current_model/`` is a copy of ``version``, and the head says so."""
        if self.paths.current_model.exists():
            shutil.rmtree(self.paths.current_model)
        shutil.copytree(self.paths.version(version) / "model", self.paths.current_model)
        self.head(version)

    def head(self, version: str | None) -> None:
        signature = take_signature(self.paths.current_model) if version else {}
        self.write(
            "models/head.json",
            {"schema_version": 1, "version": version, "signature": signature, "restores": [], "retired": None},
        )

    def daemon_said(self, state: str, **values: object) -> None:
        document = {"schema_version": 1, "pid": 4000, "state": state, "run_id": None, "reason": None}
        self.write("status/daemon.json", {**document, **values})

    def status_said(self, status: str, **values: object) -> None:
        document = {
            "schema_version": 1,
            "status": status,
            "run_id": "r1",
            "current_step": 97,
            "run_step": 22,
            "run_total_steps": 75,
            "loss": 3.9,
            "total_evals": 1,
            "eta_seconds": 31.5,
            "updated_at": "2026-11-21T10:00:40Z",
        }
        self.write("status/training_status.json", {**document, **values})

    def status_said_atomically(self, status: str, **values: object) -> None:
        document = {"schema_version": 1, "status": status, "run_id": None, **values}
        write_json(self.paths.training_status, document)

    def version_by_rename(self, number: int) -> None:
        """A version as the versioner makes it: complete before its name exists."""
        other = BaseDir(self.base / ".other")
        complete = other.version(number)
        complete.rename(self.paths.version(complete.name))

    def publish_by_exchange(self, version: str) -> None:
        """``current_model/`` becomes ``version`` as ``guardrails.store.change`` does it."""
        with self.held(".locks/store.lock", "publish"):
            stage = self.paths.models / f".stage-{version}"
            shutil.copytree(self.paths.version(version) / "model", stage)
            write_json(self.paths.intent, {"schema_version": 1, "operation": "publish"})
            exchange(stage, self.paths.current_model)
            signature = take_signature(self.paths.current_model)
            write_json(self.paths.head, {"schema_version": 1, "version": version, "signature": signature})
            self.paths.intent.unlink()
            shutil.rmtree(stage)

    def processing(self, name: str = "math.jsonl") -> None:
        (self.paths.queue_folder("processing") / name).write_text("{}\n")

    @contextmanager
    def held(self, lock: str, purpose: str = "test") -> Iterator[None]:
        """A lock of this base dir, held by this process."""
        with FileLock(self.base / lock).hold(purpose):
            yield

    def daemon(self) -> Any:
        return self.held(".locks/daemon.lock", "training daemon")

    def report(self, now: float | None = None) -> Json:
        """A fresh document, also written to ``.system_state.json``; its findings are as they are explained."""
        document = update_document(self.paths, now)
        for found in document["warning_details"]:
            entry = find_explanation(found["id"])
            assert entry.category in (None, found["category"]), found
            assert found["severity"] in entry.severities, found
        return document

    def findings(self) -> dict[str, Json]:
        """The findings of a fresh report by id."""
        return {detail["id"]: detail for detail in self.report()["warning_details"]}


def healthy(base: Path, versions: int = 2) -> BaseDir:
    """A one-disk box as the daemon leaves it after ``versions`` files; its daemon is for the caller to run."""
    made = BaseDir(base)
    made.config()
    made.base_model()
    for number in range(1, versions + 1):
        made.version(number)
        made.backup(number, f"v{number:03d}")
        (made.paths.queue_folder("completed") / f"file {number}.jsonl").write_text("{}\n")
    made.publish(f"v{versions:03d}")
    made.status_said("idle", current_step=75 * versions, total_evals=3 * versions, loss=None, eta_seconds=None)
    made.daemon_said("idle")
    return made


def run_tracker(base: Path | None, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """``state_tracker.py`` in the toolkit's own Python, on pipes."""
    command = [sys.executable, str(SCRIPT), *options]
    if base is not None:
        command += ["--base-dir", str(base)]
    environment = {key: value for key, value in os.environ.items() if key != "TRAINING_BASE_DIR"}
    return subprocess.run(command, capture_output=True, text=True, check=False, **{"env": environment, **settings})
