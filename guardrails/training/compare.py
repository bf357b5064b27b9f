"""How far two models are apart, module by module, read straight from their safetensors files in flat memory."""

import json
import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from guardrails.errors import IntegrityError
from guardrails.manifest import list_files

# bfloat16 is the upper half of a float32; what is no float has no norm.
FLOATS: dict[str, np.dtype[Any]] = {
    name: np.dtype(code) for name, code in (("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2"), ("BF16", "<u2"))
}
LORA = re.compile(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?")
BLOCK_ELEMENTS = 1 << 20
# The format's own limit.
MAX_HEADER_BYTES = 100_000_000

Array = npt.NDArray[np.float64]


class ModuleChange(TypedDict):
    """What became of one module. ``norm`` is the Frobenius norm of its change, ``relative`` that by its old norm.

    Of a LoRA pair both are those of the weight that it adds, scale * B @ A. ``norm`` is None where there is none: a
    module of one tree only, another shape, other bytes in what is no float, or (``finite`` is false; it counts as
    changed) NaN or infinity. ``relative`` is None also where the old norm is 0.
    """

    module: str
    state: str  # equal, changed, added (not in the first tree) or removed (not in the second)
    norm: float | None
    relative: float | None
    finite: bool


class Tensor(NamedTuple):
    """Where the bytes of one tensor lie."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, ``BLOCK_ELEMENTS`` at a time."""
        step = max(BLOCK_ELEMENTS * self.size // max(math.prod(self.shape), 1), 1)
        with self.path.open("rb") as file:
            file.seek(self.start)
            for done in range(0, self.size, step):
                yield file.read(min(step, self.size - done))

    def numbers(self, content: bytes) -> Array:
        raw: npt.NDArray[Any] = np.frombuffer(content, FLOATS[self.dtype])
        if self.dtype == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float64)

    def matrix(self) -> Array:
        """The whole tensor, all dimensions after the first as one."""
        return self.numbers(b"".join(self.blocks())).reshape(self.shape[0] if self.shape else 1, -1)


class Module(NamedTuple):
    """The tensors of one module by their last names, and what its LoRA pair is multiplied by, if that is known."""

    tensors: dict[str, Tensor]
    scale: float | None

    def pair(self) -> tuple[Array, Array] | None:
        """The factors scale * B and A of the weight that a LoRA pair adds."""
        b, a = self.tensors.get("lora_B"), self.tensors.get("lora_A")
        if not (a and b and self.scale and a.size and b.size) or not {a.dtype, b.dtype} <= FLOATS.keys():
            return None
        tall, wide = b.matrix() * self.scale, a.matrix()
        return (tall, wide) if tall.shape[1] == wide.shape[0] else None


# Squared norms of a change and of the old value; None where there are none.
Squares = tuple[float, float] | None


def compare_weights(one: Path, other: Path) -> list[ModuleChange]:
    """What changed from the model tree ``one`` to ``other``, sorted by module.

    Raises:
        IntegrityError: a safetensors file is torn or is none; the message names it.
    """
    old, new = _read_modules(one), _read_modules(other)
    found: list[ModuleChange] = []
    for name in sorted(old.keys() | new.keys()):
        squares, state = None, "removed" if name in old else "added"
        if name in old and name in new:
            with np.errstate(all="ignore"):
                squares = _compare(old[name], new[name])
            state = "equal" if squares is not None and squares[0] == 0 else "changed"
        finite = squares is None or math.isfinite(sum(squares))
        norm = math.sqrt(squares[0]) if squares and finite else None
        relative = norm / math.sqrt(squares[1]) if squares and squares[1] and norm is not None else None
        found.append({"module": name, "state": state, "norm": norm, "relative": relative, "finite": finite})
    return found


def _compare(old: Module, new: Module) -> Squares:
    """The squares of all tensors of a module together."""
    names = old.tensors.keys() | new.tensors.keys()
    pairs = old.pair(), new.pair()
    total: Squares = (0.0, 0.0)
    if pairs[0] and pairs[1]:
        names -= {"lora_A", "lora_B"}
        total = _compare_pairs(pairs[0], pairs[1])
    for name in names:
        mine, theirs = old.tensors.get(name), new.tensors.get(name)
        squares = _compare_tensors(mine, theirs) if mine and theirs else None
        if total is None or squares is None:
            return None
        total = total[0] + squares[0], total[1] + squares[1]
    return total


def _compare_tensors(one: Tensor, other: Tensor) -> Squares:
    if one.shape != other.shape or (one.dtype != other.dtype and not {one.dtype, other.dtype} <= FLOATS.keys()):
        return None
    change, before = 0.0, 0.0
    for mine, theirs in zip(one.blocks(), other.blocks(), strict=True):
        if one.dtype in FLOATS:
            old, new = one.numbers(mine), other.numbers(theirs)
            change, before = change + float(np.sum((new - old) ** 2)), before + float(np.sum(old**2))
        elif mine != theirs:
            return None
    return change, before


def _compare_pairs(old: tuple[Array, Array], new: tuple[Array, Array]) -> Squares:
    """The squares of what two pairs add, never building that matrix.

    The change is (B2 - B1) A2 + B1 (A2 - A1), a tall matrix times a wide one. Its norm is that of the product of their
    triangular factors: the trace of r x r products would lose the half of its digits where the terms cancel out.
    """
    if old[0].shape[0] != new[0].shape[0] or old[1].shape[1] != new[1].shape[1]:
        return None
    if not all(np.isfinite(factor).all() for factor in (*old, *new)):
        return math.nan, math.nan
    # Zeros added to the smaller rank change nothing in its product.
    rank = max(old[1].shape[0], new[1].shape[0])
    (b1, a1), (b2, a2) = (
        (np.pad(b, ((0, 0), (0, rank - b.shape[1]))), np.pad(a, ((0, rank - a.shape[0]), (0, 0))))
        for b, a in (old, new)
    )
    change = _norm_of_product(np.hstack([b2 - b1, b1]), np.vstack([a2, a2 - a1]))
    return change**2, _norm_of_product(b1, a1) ** 2


def _norm_of_product(tall: Array, wide: Array) -> float:
    left, right = (np.asarray(np.linalg.qr(factor, mode="r")) for factor in (tall, wide.T))
    return float(np.linalg.norm(left @ right.T))


def _read_modules(root: Path) -> dict[str, Module]:
    """Every module in the safetensors files of a tree; one in a folder of it carries the folder's name."""
    found: dict[str, Module] = {}
    for file in list_files(root):
        if not file.endswith(".safetensors"):
            continue
        folder = Path(file).parent
        settings = _read_adapter_settings(root / folder)
        for name, tensor in _read_header(root / file).items():
            pair = LORA.fullmatch(name)
            inner, last = (pair[1], f"lora_{pair[2]}") if pair else (name.rpartition(".")[0] or name, name)
            module = found.setdefault(str(folder / inner), Module({}, None))
            module.tensors[last] = tensor
            if last == "lora_A" and tensor.shape:
                found[str(folder / inner)] = module._replace(scale=_scale(settings, inner, tensor.shape[0]))
    return found


def _read_adapter_settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "adapter_config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _scale(settings: dict[str, Any], module: str, rank: int) -> float | None:
    """What a LoRA pair is multiplied by, as PEFT has it; None where the settings do not tell."""
    alpha = settings.get("lora_alpha")
    for pattern, own in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    if not isinstance(alpha, int | float) or not rank:
        return None
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file: 8 bytes of header length, a JSON header with data offsets, the data."""
    try:
        with path.open("rb") as file:
            header_bytes = struct.unpack("<Q", file.read(8))[0]
            if header_bytes > MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(file.read(header_bytes))
            data_bytes = os.fstat(file.fileno()).st_size - 8 - header_bytes
        tensors: dict[str, Tensor] = {}
        for name, entry in header.items():
            if name != "__metadata__":
                (start, end), dtype, shape = entry["data_offsets"], entry["dtype"], tuple(entry["shape"])
                size = math.prod(shape) * FLOATS[dtype].itemsize if dtype in FLOATS else end - start
                if not 0 <= start <= end <= data_bytes or size != end - start:
                    raise ValueError(f"{name} does not lie in it")
                tensors[name] = Tensor(path, dtype, shape, 8 + header_bytes + start, size)
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise IntegrityError(
            f"{path} is damaged: {error}", "backup_manager.py list shows the backups of its version"
        ) from error
    return tensors
