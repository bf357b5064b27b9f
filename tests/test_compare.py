"""How far two models are apart: the same numbers as from dense matrices, whatever the rank, scale or dtype."""

import json
import math
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardrails.errors import IntegrityError
from guardrails.training.compare import ModuleChange, compare_weights

Arrays = dict[str, npt.NDArray[Any]]
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}
PAIR = "base_model.model.layers.0.q_proj"


def as_bfloat16(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 numbers, as which bfloat16 is stored; written with its own dtype below."""
    return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_model(tree: Path, tensors: Arrays, adapter: dict[str, Any] | None = None, name: str = "model") -> Path:
    """A tree with one safetensors file; uint16 arrays are written as bfloat16."""
    tree.mkdir(parents=True, exist_ok=True)
    header, data = {}, b""
    for key, array in tensors.items():
        content = array.tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[key] = {"dtype": DTYPES[str(array.dtype)], "shape": array.shape, "data_offsets": offsets}
        data += content
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (tree / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    if adapter is not None:
        (tree / "adapter_config.json").write_text(json.dumps(adapter))
    return tree


def only(changes: list[ModuleChange]) -> ModuleChange:
    assert len(changes) == 1, changes
    json.dumps(changes, allow_nan=False)
    return changes[0]


def stored(numbers: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[Any]:
    return as_bfloat16(numbers) if dtype == "bfloat16" else numbers.astype(dtype)


def read_back(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


dtypes = st.sampled_from(["float64", "float32", "float16", "bfloat16"])
sides = st.fixed_dictionaries(
    {"rank": st.integers(1, 6), "alpha": st.integers(1, 64), "rslora": st.booleans(), "dtype": dtypes}
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=sides, other=sides, shape=st.tuples(st.integers(1, 20), st.integers(1, 20)), seed=st.integers(0, 999))
def test_a_pair_counts_by_the_weight_that_it_adds(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], shape: tuple[int, int], seed: int
) -> None:
    source, dense, trees = np.random.default_rng(seed), [], []
    for name, side in (("one", one), ("other", other)):
        a, b = (
            stored(source.standard_normal(size), side["dtype"])
            for size in ((side["rank"], shape[1]), (shape[0], side["rank"]))
        )
        scale = side["alpha"] / (math.sqrt(side["rank"]) if side["rslora"] else side["rank"])
        dense.append(scale * read_back(b) @ read_back(a))
        config = {"lora_alpha": side["alpha"], "use_rslora": side["rslora"]}
        pair = {f"{PAIR}.lora_A.weight": a, f"{PAIR}.lora_B.weight": b}
        trees.append(write_model(tmp_path / name, pair, config, "adapter_model"))
    change = only(compare_weights(*trees))
    assert change["module"] == PAIR
    assert change["norm"] == pytest.approx(np.linalg.norm(dense[1] - dense[0]), rel=1e-9)
    assert change["relative"] == pytest.approx(np.linalg.norm(dense[1] - dense[0]) / np.linalg.norm(dense[0]), rel=1e-9)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=dtypes, other=dtypes, shape=st.lists(st.integers(1, 9), max_size=3), seed=st.integers(0, 999))
def test_any_other_tensor_counts_by_its_difference(
    tmp_path: Path, one: str, other: str, shape: list[int], seed: int
) -> None:
    source = np.random.default_rng(seed)
    arrays = [stored(source.standard_normal(shape), dtype) for dtype in (one, other)]
    bias = np.ones(3), np.full(3, 3.0)
    trees = [
        write_model(tmp_path / name, {"layer.weight": array, "layer.bias": extra})
        for name, array, extra in zip(("one", "other"), arrays, bias, strict=True)
    ]
    change = only(compare_weights(*trees))
    old, new = map(read_back, arrays)
    norm = math.sqrt(np.sum((new - old) ** 2) + 3 * 2.0**2)
    assert change["norm"] == pytest.approx(norm, rel=1e-12)
    assert change["relative"] == pytest.approx(norm / math.sqrt(np.sum(old**2) + 3), rel=1e-12)


def test_a_change_far_below_the_weights_keeps_its_digits(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    a, b = source.standard_normal((4, 30)), source.standard_normal((20, 4))
    # Another basis for the same product, and a millionth of a millionth of one entry more.
    turn = np.array([[2.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 4, 1], [0, 0, 0, 1]])
    turned = b @ np.linalg.inv(turn)
    turned[0, 0] += 1e-9
    trees = [
        write_model(tmp_path / name, {"m.lora_A.weight": wide, "m.lora_B.weight": tall}, {"lora_alpha": 4})
        for name, wide, tall in (("one", a, b), ("other", turn @ a, turned))
    ]
    assert only(compare_weights(*trees))["norm"] == pytest.approx(1e-9 * np.linalg.norm((turn @ a)[0]), rel=1e-3)


def test_equal_models_are_equal_and_other_settings_are_a_change(tmp_path: Path) -> None:
    pair = {"m.lora_A.weight": np.ones((2, 3)), "m.lora_B.weight": np.ones((4, 2))}
    one = write_model(tmp_path / "one", pair, {"lora_alpha": 4})
    equal = only(compare_weights(one, one))
    assert (equal["state"], equal["norm"], equal["relative"]) == ("equal", 0.0, 0.0)
    doubled = write_model(tmp_path / "other", pair, {"lora_alpha": 8})
    assert only(compare_weights(one, doubled)) | {"norm": 0} == {
        "module": "m",
        "state": "changed",
        "norm": 0,
        "relative": pytest.approx(1.0),
        "finite": True,
    }
    own = write_model(tmp_path / "own", pair, {"lora_alpha": 4, "alpha_pattern": {"m": 12}})
    assert only(compare_weights(one, own))["relative"] == pytest.approx(2.0)


def test_what_only_one_model_has_is_named(tmp_path: Path) -> None:
    both = {"same.weight": np.ones(2)}
    one = write_model(tmp_path / "one", {**both, "old.weight": np.ones(2), "wider.weight": np.ones(2)})
    other = write_model(tmp_path / "other", {**both, "new.weight": np.ones(2), "wider.weight": np.ones(3)})
    write_model(other / "second", both)
    states = {change["module"]: (change["state"], change["norm"]) for change in compare_weights(one, other)}
    assert states == {
        "new": ("added", None),
        "old": ("removed", None),
        "same": ("equal", 0.0),
        "second/same": ("added", None),
        "wider": ("changed", None),
    }


def test_a_model_in_other_shards_is_the_same_model(tmp_path: Path) -> None:
    one = write_model(tmp_path / "one", {"a.weight": np.ones(2), "b.weight": np.ones(3)})
    write_model(tmp_path / "other", {"a.weight": np.ones(2)}, name="model-00001-of-00002")
    other = write_model(tmp_path / "other", {"b.weight": np.ones(3)}, name="model-00002-of-00002")
    assert [change["state"] for change in compare_weights(one, other)] == ["equal", "equal"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_told_and_stay_out_of_the_document(tmp_path: Path, bad: float) -> None:
    good = {"m.lora_A.weight": np.ones((1, 2)), "m.lora_B.weight": np.ones((2, 1)), "n.weight": np.ones(2)}
    broken = {**good, "m.lora_B.weight": np.array([[1.0], [bad]]), "n.weight": np.array([1.0, bad])}
    one = write_model(tmp_path / "one", good, {"lora_alpha": 1})
    other = write_model(tmp_path / "other", broken, {"lora_alpha": 1})
    for changes in (compare_weights(one, other), compare_weights(other, one)):
        json.dumps(changes, allow_nan=False)
        assert [(c["module"], c["state"], c["norm"], c["finite"]) for c in changes] == [
            ("m", "changed", None, False),
            ("n", "changed", None, False),
        ]


def test_what_is_no_float_is_equal_or_changed(tmp_path: Path) -> None:
    one = write_model(tmp_path / "one", {"a.ids": np.arange(4), "b.ids": np.arange(4)})
    other = write_model(tmp_path / "other", {"a.ids": np.arange(4), "b.ids": np.arange(4)[::-1]})
    states = [(change["state"], change["norm"]) for change in compare_weights(one, other)]
    assert states == [("equal", 0.0), ("changed", None)]


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    one = write_model(tmp_path / "one", {"a.weight": np.ones(4)})
    for content in (b"", b"{}", (one / "model.safetensors").read_bytes()[:-1], struct.pack("<Q", 1 << 40) + b"{}"):
        torn = tmp_path / "torn"
        torn.mkdir(exist_ok=True)
        (torn / "model.safetensors").write_bytes(content)
        with pytest.raises(IntegrityError, match=r"torn/model\.safetensors is damaged"):
            compare_weights(one, torn)


def test_a_large_model_is_read_in_blocks(tmp_path: Path) -> None:
    count = 64 << 20
    for name in ("one", "other"):
        header = {"big.weight": {"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]}}
        text = json.dumps(header).encode()
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + 2 * count)
            if name == "other":
                file.seek(-2, 2)
                file.write(as_bfloat16(np.array([3.0])).tobytes())
    tracemalloc.start()
    change = only(compare_weights(tmp_path / "one", tmp_path / "other"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (change["norm"], change["relative"]) == (3.0, None)
    assert peak < 64 << 20
