"""What must hold before a file is trained: config, lock, base model, adapter, disk.

The rows of the data file are checked by the worker, which has the tokenizer.
"""

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from guardrails.config import LOCKED_KEYS, Config, load_config
from guardrails.config_lock import (
    Fingerprint,
    base_model_folder,
    check_lock,
    fingerprint_base_model,
    read_lock_file,
)
from guardrails.errors import ConfigError, DiskSpaceError, IntegrityError
from guardrails.filesystem import free_bytes
from guardrails.head import check_live_folder, read_head
from guardrails.manifest import list_files
from guardrails.paths import Paths
from guardrails.signature import take_signature
from guardrails.versions import read_metadata

# Output, version, current_model/, backup and two checkpoints with the optimizer's two moments in fp32.
ADAPTER_COPIES = 12
# Log, metrics, state files and the encoded rows of a small file.
SPARE_BYTES = 32 << 20
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Preflight(NamedTuple):
    """What a passed pre-flight found out."""

    config: Config
    fingerprint: Fingerprint
    base_model: Path
    is_locked: bool


def read_lock(paths: Paths) -> dict[str, Any] | None:
    """The config lock; where its file is gone, what the head version was trained with. None before any training.

    Raises:
        DamagedStateError: the lock, the head or its version cannot be read.
    """
    lock = read_lock_file(paths)
    head = read_head(paths)["version"] if lock is None else None
    if head is None:
        return lock
    metadata = read_metadata(paths, head)
    config, fingerprint = metadata.get("config"), metadata.get("base_model_fingerprint")
    if not config or not fingerprint:
        return None
    return {"locked": {key: config.get(key) for key in LOCKED_KEYS}, "base_model_fingerprint": fingerprint}


def check_before_training(paths: Paths, *, data_bytes: int = 0, remember: bool = True) -> Preflight:
    """All that must hold whatever the data file says. ``remember=False`` is for reading commands: no cache is written.

    Raises:
        ConfigError: config missing or invalid, no such base model, adapter settings that do not fit the adapter.
        ConfigLockError: a locked value or the base model changed.
        IntegrityError: ``current_model/`` holds no complete adapter.
        DiskSpaceError: too little room for the run, its version and its backup.
        OperationError: ``current_model`` is a link or a mount point.
    """
    config = load_config(paths)
    folder = base_model_folder(paths, config)
    fingerprint = fingerprint_base_model(paths, folder, remember=remember)
    lock = read_lock(paths)
    if lock is not None:
        check_lock(paths, config, fingerprint, lock)
    if config.validation_file is not None and not paths.resolve(config.validation_file).is_file():
        raise ConfigError(
            f"validation_file {config.validation_file} does not exist",
            "put it there, or: training_controller.py config set validation_file null",
        )
    check_live_folder(paths)
    if paths.current_model.is_dir() and list_files(paths.current_model):
        check_adapter(paths.current_model, config)
    _check_disk(paths, data_bytes)
    return Preflight(config, fingerprint, folder, paths.config_lock.exists())


def check_adapter(folder: Path, config: Config) -> None:
    """That ``folder`` holds a complete adapter of the configured shape.

    Raises:
        IntegrityError: a file is missing, torn or unreadable.
        ConfigError: ``lora_*`` in the config and the adapter disagree; training would ignore the config.
    """
    settings = _read_adapter_config(folder)
    check_safetensors(folder / "adapter_model.safetensors")
    shape: dict[str, tuple[Any, Any]] = {
        "lora_r": (settings.get("r"), config.lora_r),
        "lora_alpha": (settings.get("lora_alpha"), config.lora_alpha),
    }
    modules = settings.get("target_modules")
    if isinstance(modules, list):
        shape["lora_target_modules"] = (sorted(modules), sorted(config.lora_target_modules))
    for key, (found, wanted) in shape.items():
        if found != wanted:
            raise ConfigError(
                f"{key} is {json.dumps(wanted)} in config.json, but the adapter in {folder} has {json.dumps(found)}",
                f"an adapter keeps its shape for life: training_controller.py config set {key} '{json.dumps(found)}'",
            )


def _read_adapter_config(folder: Path) -> dict[str, Any]:
    hint = "model_versioner.py rollback goes back to the version it came from"
    try:
        settings = json.loads((folder / "adapter_config.json").read_bytes())
    except FileNotFoundError:
        raise IntegrityError(f"{folder} has no adapter_config.json", hint) from None
    except ValueError as error:
        raise IntegrityError(f"{folder / 'adapter_config.json'} is damaged: {error}", hint) from error
    if not isinstance(settings, dict):
        raise IntegrityError(f"{folder / 'adapter_config.json'} is not a JSON object", hint)
    return settings


def check_safetensors(path: Path) -> None:
    """That a safetensors file is as long as its header says.

    Source: the format's description, 8 bytes of header length, a JSON header with data offsets, the data.

    Raises:
        IntegrityError: missing, torn, or not a safetensors file.
    """
    hint = "model_versioner.py rollback goes back to the version it came from"
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            header_bytes = struct.unpack("<Q", file.read(8))[0]
            if header_bytes > size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(header_bytes))
        data_end = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
        if size != 8 + header_bytes + data_end:
            raise ValueError(f"{size} bytes instead of {8 + header_bytes + data_end}")
    except FileNotFoundError:
        raise IntegrityError(f"{path} is missing", hint) from None
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", hint) from error


def _check_disk(paths: Paths, data_bytes: int) -> None:
    adapter = (
        sum(status[0] for status in take_signature(paths.current_model).values()) if paths.current_model.is_dir() else 0
    )
    needed = SPARE_BYTES + ADAPTER_COPIES * adapter + 2 * data_bytes
    free = free_bytes(paths.base)
    if free < needed:
        raise DiskSpaceError(
            f"{free >> 20} MiB are free on the disk of {paths.base}, a run needs {needed >> 20} MiB",
            "free some space; the file waits in the queue",
        )
