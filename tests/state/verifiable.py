"""A base dir in which everything can be verified: real adapters, records, approvals and an index."""

import hashlib
import json
import os
import struct
import time
from pathlib import Path

from guardrails.config_lock import combine_hashes
from guardrails.manifest import hash_file
from guardrails.queue_records import Record, write_record
from guardrails.state_io import format_utc, read_json
from guardrails.store.version_records import read_index, remember_versions
from tests.processes import wait_until
from tests.state.building import BaseDir, Json

MODULE = "model.layers.0.self_attn.q_proj"
RANK, WIDTH = 2, 4


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """A file as the format's description has it."""
    header, data = {}, b""
    for name, (kind, shape, numbers) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def floats(seed: bytes, count: int) -> bytes:
    """That many numbers between 0 and 1, others for another seed."""
    stream = hashlib.shake_128(seed).digest(count)
    return struct.pack(f"<{count}f", *(byte / 255 for byte in stream))


class Verifiable(BaseDir):
    """Versions with adapters that load; ``train`` makes one together with all that is written down of it."""

    def adapter(self, folder: Path, content: bytes) -> None:
        folder.mkdir(parents=True)
        settings = {"peft_type": "LORA", "r": RANK, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        write_safetensors(
            folder / "adapter_model.safetensors",
            {
                f"base_model.model.{MODULE}.lora_A.weight": ("F32", [RANK, WIDTH], floats(content, RANK * WIDTH)),
                f"base_model.model.{MODULE}.lora_B.weight": ("F32", [WIDTH, RANK], floats(content, RANK * WIDTH)),
            },
        )

    def base_model(self) -> Path:
        folder = super().base_model()
        weights = folder / "model.safetensors"
        weights.unlink()
        write_safetensors(weights, {f"{MODULE}.weight": ("F32", [WIDTH, WIDTH], floats(b"base", WIDTH * WIDTH))})
        files = [
            {"path": path.name, "size": path.stat().st_size, "blake3": hash_file(path)}
            for path in sorted(folder.iterdir())
        ]
        lock = self.lock()
        lock["base_model_fingerprint"] = {"blake3": combine_hashes(files), "files": files}  # type: ignore[arg-type]
        self.write(".config_lock.json", lock)
        (self.paths.base_model_stat).unlink()
        return folder

    def lock(self) -> Json:
        return read_json(self.paths.config_lock) or {}

    def approve(self) -> None:
        """The lock as it is, on record."""
        lock = self.lock()
        lines = [{"at": format_utc(time.time()), "key": key, "new": value} for key, value in lock["locked"].items()]
        lines[1]["new_fingerprint"] = lock["base_model_fingerprint"]["blake3"]
        self.paths.approvals.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def train(self, number: int) -> None:
        name = f"file {number}.jsonl"
        file = self.paths.queue_folder("completed") / name
        file.write_text(json.dumps({"text": str(number)}) + "\n")
        data = {"name": name, "blake3": hash_file(file), "rows": 1, "trained": 1, "held_out": 0, "bad": 0, "cut": 0}
        numbers = {"loss": 1.0, "eval_loss": None, "eval_loss_before": None, "evaluations": 0}
        base = {"base_model": "base_models/tiny", "base_model_fingerprint": self.lock()["base_model_fingerprint"]}
        self.version(number, data=[data], run_id=f"run-{number}", **numbers, **base)
        self.backup(number, f"v{number:03d}")
        self.complete_backup(number)
        self.record(
            name, blake3=data["blake3"], size=file.stat().st_size, version=f"v{number:03d}", run_id=f"run-{number}"
        )

    def complete_backup(self, number: int) -> None:
        path = self.paths.backups / f"b{number:03d}/metadata.json"
        metadata = json.loads(path.read_text())
        metadata |= {"reason": None, "single_file": False, "size": sum(file["size"] for file in metadata["files"])}
        path.write_text(json.dumps(metadata))

    def record(self, name: str, state: str = "completed", **values: object) -> None:
        """What is known of a data file that lies in ``state``."""
        defaults: Json = {"arrival": 1, "state": state, "blake3": "00", "size": 1}
        write_record(self.paths, Record(name, name, **{**defaults, **values}))

    def index(self) -> None:
        """The index of versions, complete."""

        def is_complete() -> bool:
            remember_versions(self.paths)
            return len(read_index(self.paths)) == len(list(self.paths.versions.glob("v*")))

        wait_until(is_complete)


def make_verifiable(base: Path, versions: int = 2) -> Verifiable:
    box = Verifiable(base)
    box.config()
    box.base_model()
    box.approve()
    for number in range(1, versions + 1):
        box.train(number)
    box.publish(f"v{versions:03d}")
    box.index()
    box.status_said("idle", current_step=75 * versions, loss=None, eta_seconds=None, run_id=None)
    box.daemon_said("idle")
    return box


def flip_byte(path: Path, at: int = -1) -> None:
    """Rot: one byte is another one, and nothing else says that anything was changed."""
    status = path.stat()
    mode = status.st_mode
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
