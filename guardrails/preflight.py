"""What must hold before a file is trained: config, lock, base model, adapter, disk.

The rows of the data file are checked by the worker, which has the tokenizer.
"""

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from guardrails.config import load_config
from guardrails.config_lock import (
    Fingerprint,
    base_model_folder,
    check_lock,
    fingerprint_base_model,
)
from guardrails.errors import ConfigError, DiskSpaceError, IntegrityError
from guardrails.filesystem import free_bytes
from guardrails.manifest import list_files
from guardrails.paths import Paths
from guardrails.signature import take_signature
from guardrails.store.head import check_live_folder, read_lock

if TYPE_CHECKING:
    from guardrails.settings import Config

# Output, version, current_model/, backup and two checkpoints with the optimizer's two moments in fp32.
ADAPTER_COPIES = 12
# Log, metrics, state files and the encoded rows of a small file.
SPARE_BYTES = 32 << 20
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# Stands in a tree whose adapter is part of the base model; the next training starts a fresh one.
CONSOLIDATION_FILE = "consolidation.json"


class Preflight(NamedTuple):
    """What a passed pre-flight found out."""

    config: "Config"
    fingerprint: Fingerprint
    base_model: Path
    is_locked: bool


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
    live = paths.current_model
    if live.is_dir() and list_files(live) and not is_consolidated(live):
        check_adapter(live, config)
    _check_disk(paths, data_bytes)
    return Preflight(config, fingerprint, folder, paths.config_lock.exists())


def is_consolidated(folder: Path) -> bool:
    """Whether a tree says that its adapter was merged into the base model, and holds no other."""
    present = {name for name in (*ADAPTER_FILES, CONSOLIDATION_FILE) if (folder / name).is_file()}
    return present == {CONSOLIDATION_FILE}


def check_adapter(folder: Path, config: "Config") -> None:
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

    Raises:
        IntegrityError: missing, torn, or not a safetensors file.
    """
    hint = "model_versioner.py rollback goes back to the version it came from"
    try:
        size, expected = path.stat().st_size, _read_safetensors_size(path)
    except FileNotFoundError:
        raise IntegrityError(f"{path} is missing", hint) from None
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {error}", hint) from error
    if size != expected:
        raise IntegrityError(f"{path} is damaged: {size} bytes instead of {expected}", hint)


def refuse_torn_weights(root: Path) -> None:
    """That no safetensors file below ``root`` ends before its header says; any other file counts as what it is.

    Raises:
        IntegrityError: one does, as a write that was cut short leaves it.
    """
    for path in (root / name for name in list_files(root) if name.endswith(".safetensors")):
        try:
            size, expected = path.stat().st_size, _read_safetensors_size(path)
        except ValueError:
            continue
        if size < expected:
            raise IntegrityError(
                f"{path} is torn: {size} bytes instead of {expected}",
                "write it again in full; model_versioner.py rollback goes back to the version before",
            )


def _read_safetensors_size(path: Path) -> int:
    """How long a safetensors file should be, in bytes.

    Source: the format's description, 8 bytes of header length, a JSON header with data offsets, the data.

    Raises:
        ValueError: its beginning is not that of a safetensors file.
    """
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < header_bytes <= path.stat().st_size - 8:
            raise ValueError("its header is cut off")
        try:
            header = json.loads(file.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return 8 + int(header_bytes) + max(ends, default=0)
        except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError("its header is not that of a safetensors file") from error


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
