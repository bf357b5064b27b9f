"""A base dir for the agent guard's tests, made in milliseconds and without torch."""

import json
import subprocess
from pathlib import Path

from guardrails.paths import CODE_DIR, Paths

SETTINGS = {"model_name": "tiny", "base_model": "base_models/tiny", "max_length": 512}
FINGERPRINT = {"blake3": "0" * 64, "files": [{"path": "model.safetensors", "size": 4096, "blake3": "0" * 64}]}
ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "README.md")
BASE_MODEL = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
VERSIONS = ("v001", "v002", "v003")
DATA_FILES = {
    "inbox": ("new.jsonl",),
    "queue/normal": ("waiting.jsonl",),
    "queue/completed": ("done.jsonl",),
    "queue/skipped": ("undone.jsonl",),
}


def make_box(folder: Path) -> Path:
    """A base dir ``folder`` as after three trainings, in a git repository of its own; returns its resolved path.

    Committed are the toolkit's ``.gitignore``, ``config.json`` with ``base_model`` null, ``README.md`` and
    ``notes/plan.txt``; ``config.json`` as it lies there differs from that. The adapters are bytes of no meaning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = folder.resolve()
    _make_repository(base)
    paths = Paths(base)
    for subfolder in paths.folders():
        subfolder.mkdir(parents=True, exist_ok=True)
    _write_json(paths.config, SETTINGS)
    _write_json(paths.config_lock, _make_lock())
    _fill(paths.base / "base_models" / "tiny", BASE_MODEL)
    _fill(paths.consolidated_models / "merged-v002", BASE_MODEL)
    _fill(paths.current_model, ADAPTER)
    _fill(paths.retired_model, ADAPTER)
    for number, version in enumerate(VERSIONS, start=1):
        _fill(paths.version(version) / "model", ADAPTER)
        _write_json(
            paths.version(version) / "metadata.json",
            {"schema_version": 1, "id": version, "training_steps": number * 24},
        )
        _fill(paths.backups / f"b00{number}" / "content", ADAPTER)
    _write_json(paths.head, {"schema_version": 1, "version": "v003"})
    _write_json(paths.system_state, {"schema_version": 1, "verdict": "ok"})
    for state, names in DATA_FILES.items():
        for name in names:
            (base / state / name).write_text('{"text": "one row"}\n')
    (paths.logs / "daemon_20261121.log").write_text("2026-11-21T21:41:25Z started, process 1662\n")
    return base


def _make_repository(base: Path) -> None:
    (base / ".gitignore").write_text((CODE_DIR / ".gitignore").read_text())
    _write_json(base / "config.json", {**SETTINGS, "base_model": None})
    (base / "README.md").write_text("# A project\n")
    (base / "notes").mkdir(exist_ok=True)
    (base / "notes" / "plan.txt").write_text("train more\n")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    for arguments in (("init", "-q", "-b", "main"), ("add", "-A"), (*identity, "commit", "-q", "-m", "start")):
        subprocess.run(["git", "-C", str(base), *arguments], check=True)


def _make_lock() -> dict[str, object]:
    """The document that ``guardrails.config_lock.make_lock`` gives for ``SETTINGS``."""
    return {
        "schema_version": 1,
        "locked": {key: SETTINGS[key] for key in ("max_length", "base_model", "model_name")},
        "base_model_fingerprint": FINGERPRINT,
        "locked_at": "2026-11-21T21:41:26Z",
        "approved_by": "the first training",
    }


def _fill(folder: Path, names: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"{}" if name.endswith(".json") else b"\0" * 64)


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")
