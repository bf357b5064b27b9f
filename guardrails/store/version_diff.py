"""What differs between two versions: files, config, metrics, and how far the weights moved."""

from typing import Any

from guardrails.errors import OperationError
from guardrails.paths import Paths
from guardrails.store.version_records import is_kept, read_metadata

METRICS = ("training_steps", "run_steps", "loss", "eval_loss", "total_evals", "kind", "parent", "base_model", "size")


def compare_metadata(paths: Paths, one: str, other: str) -> dict[str, Any]:
    """Files, config keys and metrics of two versions, with the value in each where they differ."""
    old, new = read_metadata(paths, one), read_metadata(paths, other)
    before = {entry["path"]: entry for entry in old["files"]}
    after = {entry["path"]: entry for entry in new["files"]}
    names = sorted(before.keys() | after.keys())
    return {
        "from": one,
        "to": other,
        "files": {
            "added": [name for name in names if name not in before],
            "removed": [name for name in names if name not in after],
            "changed": [name for name in names if name in before and name in after and before[name] != after[name]],
        },
        "config": _differing(old["config"] or {}, new["config"] or {}),
        "metrics": _differing({key: old[key] for key in METRICS}, {key: new[key] for key in METRICS}),
    }


def _differing(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    keys = sorted(old.keys() | new.keys())
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def require_models(paths: Paths, *versions: str) -> None:
    """That the weights of both can be compared.

    Raises:
        OperationError: the model of one was removed.
    """
    for version in versions:
        if not is_kept(paths, version):
            raise OperationError(
                f"the model of {version} was removed", f"bring it back: model_versioner.py trash restore {version}"
            )
