"""Whether the files of an adapter hold what PEFT can load, told without torch: its settings, shapes and numbers.

That the model answers is not shown by this; only a run, or a consolidation, loads base model and adapter together.
"""

import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Bytes of a number of each type; source: the safetensors format.
NUMBER_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "I8", "U8", "BOOL"), 1),
}
# A number is NaN or infinite where all these bits of its last byte, and of the one before, are set.
EXPONENT_BITS = {
    "F64": (0x7F, 0xF0),
    "F32": (0x7F, 0x80),
    "BF16": (0x7F, 0x80),
    "F16": (0x7C, 0),
    "F8_E5M2": (0x7C, 0),
    "F8_E4M3": (0x7F, 0),
}
MOST_HEADER_BYTES = 100_000_000
# A multiple of every number's size.
BLOCK_BYTES = 8 << 20
LORA_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.(?:\w+\.)?weight")


class TornError(ValueError):
    """A safetensors file ends before its header says."""


class Tensor(NamedTuple):
    """One tensor of a safetensors file; ``start`` and ``end`` are offsets in the file."""

    name: str
    kind: str
    shape: list[int]
    start: int
    end: int


def find_adapter_problems(folder: Path, base_model: Path | None) -> list[str]:
    """What keeps the adapter in ``folder`` from being loaded, a sentence each; empty when nothing is known to.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        settings = json.loads((folder / CONFIG).read_bytes())
        if not isinstance(settings, dict):
            raise TypeError("not a JSON object")
    except (ValueError, TypeError, RecursionError) as error:
        return [f"{CONFIG} is damaged: {error}"]
    problems = list(_find_odd_settings(settings))
    if not (folder / WEIGHTS).is_file():
        # Older adapters are pickles, which nothing but torch should read.
        return problems
    try:
        tensors = read_header(folder / WEIGHTS)
    except ValueError as error:
        return [*problems, f"{WEIGHTS} is damaged: {error}"]
    problems += _find_odd_shapes(tensors, settings)
    if base_model is not None and not settings.get("fan_in_fan_out"):
        problems += _find_misfits(tensors, base_model)
    return problems + _find_wild_numbers(folder / WEIGHTS, tensors)


def _find_odd_settings(settings: dict[str, Any]) -> Iterator[str]:
    kind = settings.get("peft_type")
    if kind != "LORA":
        yield f"{CONFIG}: peft_type is {json.dumps(kind)} instead of LORA"
        return
    rank, modules = settings.get("r"), settings.get("target_modules")
    if type(rank) is not int or rank < 1:
        yield f"{CONFIG}: r is {json.dumps(rank)} instead of a positive number"
    if not (isinstance(modules, str | list) and modules):
        yield f"{CONFIG}: target_modules is {json.dumps(modules)}"


def read_header(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file in the order of their bytes.

    Raises:
        ValueError: it is torn, or no safetensors file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        start = file.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < header_bytes <= min(size - 8, MOST_HEADER_BYTES):
            raise ValueError("its header is cut off")
        data_start = 8 + header_bytes
        try:
            header = json.loads(file.read(header_bytes))
            tensors = [
                Tensor(name, entry["dtype"], entry["shape"], *(data_start + at for at in entry["data_offsets"]))
                for name, entry in header.items()
                if name != "__metadata__"
            ]
            tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
            expected = [(tensor, math.prod(tensor.shape) * NUMBER_BYTES.get(tensor.kind, 0)) for tensor in tensors]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("its header is not that of a safetensors file") from error
    position = data_start
    for tensor, length in expected:
        if tensor.start != position or (tensor.kind in NUMBER_BYTES and tensor.end - tensor.start != length):
            raise ValueError(f"the place of {tensor.name} in it is not where its header says")
        position = tensor.end
    if position != size:
        raise (TornError if size < position else ValueError)(f"{size} bytes instead of {position}")
    return tensors


def is_torn(path: Path) -> bool:
    """Whether a safetensors file ends before its header says; any other file counts as what it is."""
    try:
        read_header(path)
    except TornError:
        return True
    except (ValueError, OSError):
        pass
    return False


def _find_odd_shapes(tensors: list[Tensor], settings: dict[str, Any]) -> Iterator[str]:
    pairs = _pair(tensors)
    if not any("lora_" in tensor.name for tensor in tensors):
        yield f"{WEIGHTS} holds no LoRA weights"
    rank = None if settings.get("rank_pattern") else settings.get("r")
    for module, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            yield f"{module} has lora_{min(pair)} alone"
        elif all(len(tensor.shape) == 2 for tensor in pair.values()):
            ranks = (pair["A"].shape[0], pair["B"].shape[1])
            if ranks[0] != ranks[1] or (rank is not None and ranks[0] != rank):
                yield f"{module} has rank {ranks[0]} and {ranks[1]}, {CONFIG} says {json.dumps(settings.get('r'))}"


def _pair(tensors: list[Tensor]) -> dict[str, dict[str, Tensor]]:
    """By module of the base model its ``A`` and ``B``."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        if match := LORA_NAME.fullmatch(tensor.name):
            pairs.setdefault(match[1], {})[match[2]] = tensor
    return pairs


def _find_misfits(tensors: list[Tensor], base_model: Path) -> Iterator[str]:
    """Where a module of the base model has another shape; one that cannot be found there under its name is let pass."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(base_model.glob("*.safetensors")):
        try:
            found = read_header(path)
        except (ValueError, OSError):
            # The fingerprint tells of that.
            continue
        shapes.update((tensor.name, tensor.shape) for tensor in found if tensor.kind in EXPONENT_BITS)
    for module, pair in _pair(tensors).items():
        base = shapes.get(f"{module}.weight", [])
        if len(base) == 2 and pair.keys() == {"A", "B"} and all(len(tensor.shape) == 2 for tensor in pair.values()):
            own = [pair["B"].shape[0], pair["A"].shape[1]]
            if own != base:
                yield f"{module} is made for a layer of {own[0]} x {own[1]}, the base model's has {base[0]} x {base[1]}"


def _find_wild_numbers(path: Path, tensors: list[Tensor]) -> list[str]:
    """The tensors that hold NaN or infinity."""
    found = []
    with path.open("rb") as file:
        for tensor in tensors:
            if tensor.kind not in EXPONENT_BITS:
                continue
            file.seek(tensor.start)
            left, finite = tensor.end - tensor.start, True
            while left and finite:
                block = file.read(min(left, BLOCK_BYTES))
                if not block:
                    raise OSError(f"{path} was cut short while it was read")
                left -= len(block)
                finite = is_finite(block, tensor.kind)
            if not finite:
                found.append(f"{tensor.name} holds NaN or infinity")
    return found


def is_finite(numbers: bytes, kind: str) -> bool:
    """Whether none of the little-endian numbers is NaN or infinite."""
    size, (last_bits, before_bits) = NUMBER_BYTES[kind], EXPONENT_BITS[kind]
    last = numbers[size - 1 :: size].translate(_mark(last_bits))
    if 1 not in last:
        return True
    if not before_bits:
        return False
    before = numbers[size - 2 :: size].translate(_mark(before_bits))
    # As two large numbers, whose bits meet only where both are marked.
    return not int.from_bytes(last, "big") & int.from_bytes(before, "big")


def _mark(bits: int) -> bytes:
    """A table that makes 1 of every byte with all these bits set, and 0 of the others."""
    return bytes(byte & bits == bits for byte in range(256))
