"""Versions without training: runs as a worker would have left them, published by the real code."""

import json
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guardrails.config import starting_config
from guardrails.intake import add_file
from guardrails.manifest import make_manifest
from guardrails.paths import Paths
from guardrails.queue import claim
from guardrails.queue_records import Record
from guardrails.runs import new_run_id, write_job
from guardrails.signature import take_signature
from guardrails.state_io import read_json, write_json
from guardrails.store.change import say_nothing
from guardrails.store.head import read_head, sign, untouched_files
from guardrails.store.live_model import finish_published_run, publish_run
from guardrails.store.model_backups import back_up_version

WEIGHTS = "adapter_model.safetensors"


def safetensors(content: bytes) -> bytes:
    """A valid safetensors file with one tensor of these bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}).encode()
    return struct.pack("<Q", len(header)) + header + content


def make_store(base: Path, versions: int = 3, weight_bytes: int = 5000, backups: bool = False) -> Paths:
    """A base dir with this many published versions, each with other weights and a file that never changes."""
    paths = Paths(base)
    for folder in paths.folders():
        folder.mkdir(parents=True, exist_ok=True)
    paths.config.write_text(starting_config(base_model="base", max_length=64))
    for number in range(1, versions + 1):
        version = publish(paths, number, weight_bytes)
        if backups:
            back_up_version(paths, version)
    return paths


def publish(paths: Paths, number: int, weight_bytes: int = 5000, **job: Any) -> str:
    """Publish a run whose weights are ``number`` all over; its version's id."""
    record = make_run(paths, number, weight_bytes, **job)
    version = publish_run(paths, record, say_nothing)
    assert version is not None
    finish_published_run(paths, record, version)
    return str(version["id"])


def make_run(paths: Paths, number: int, weight_bytes: int = 5000, **job: Any) -> Record:
    """The data file of a completed run that was not published yet, as a daemon that died then leaves it."""
    source = paths.base / f"{number}.jsonl"
    source.write_text(f"{number}\n")
    record = add_file(paths, source, "normal", lambda _: None)
    run_id = new_run_id(paths, record.blake3)
    parent = read_head(paths)["version"]
    fingerprint = {"blake3": "f" * 64, "files": []}
    write_job(
        paths,
        {
            "run_id": run_id,
            "data_name": record.name,
            "data_blake3": record.blake3,
            "parent_version": parent,
            "start_steps": 10 * (number - 1),
            "config": {"base_model": "base", "max_length": 64},
            "base_model_files": fingerprint,
            **job,
        },
    )
    output = paths.run(run_id) / "output"
    output.mkdir()
    (output / "adapter_config.json").write_text('{"r": 16}')
    (output / WEIGHTS).write_bytes(safetensors(bytes([number % 256]) * weight_bytes))
    write_json(
        paths.run(run_id) / "outcome.json",
        {
            "schema_version": 1,
            "run_id": run_id,
            "result": "completed",
            "run_steps": 10,
            "loss": 1.0,
            "eval_loss": 1.0,
            "eval_loss_before": 2.0,
            "evaluations": 2,
            "rows": {"total": 5, "trained": 5, "held_out": 0, "bad": 0, "cut": 0},
            "libraries": {},
            "files": make_manifest(output),
        },
    )
    return claim(paths, record.name, run_id)


def copy_store(source: Paths, base: Path) -> Paths:
    """A copy of a store in which nobody touched what was untouched in the source: its signatures are of its own inodes.

    Modes and hard links are kept. The source has no pending change.
    """
    subprocess.run(["cp", "-a", source.base, base], check=True)
    paths = Paths(base)
    head = read_json(paths.head)
    if head is not None:
        if source.current_model.exists():
            untouched = untouched_files(head, take_signature(source.current_model))
            now = sign(paths.current_model)
            known = head["signature"].items()
            now["signature"] = {name: now["signature"][name] if name in untouched else stat for name, stat in known}
            head.update(now)
        if head["retired"] and head["retired"]["signature"] == take_signature(source.retired_model):
            head["retired"]["signature"] = take_signature(paths.retired_model)
        write_json(paths.head, head)
    return paths


def weights_of(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


def overwrite(path: Path, content: bytes) -> None:
    """Write into the very inode, as a careless program run by root does."""
    path.chmod(0o644)
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, content, 0)
    os.close(descriptor)


def flip(path: Path) -> None:
    """Damage one bit of a file in place."""
    content = path.read_bytes()
    overwrite(path, bytes([content[0] ^ 1]))


def hurt(file: Path, damage: Callable[[Path], object]) -> None:
    """Damage a file behind the back of the modes, as a disk does."""
    modes = {path: path.stat().st_mode for path in (file.parent, file)}
    for path in modes:
        path.chmod(0o755)
    damage(file)
    for path, mode in modes.items():
        if path.exists():
            path.chmod(mode)
