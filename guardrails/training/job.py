"""What a run is asked to do (job.json), and how it can fail. Imports nothing heavy."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from guardrails.errors import DamagedStateError, TrainingError
from guardrails.manifest import hash_file
from guardrails.state_io import read_json

PATHS = ("data_path", "base_model", "parent_adapter", "status_file", "validation_file")


class RunError(TrainingError):
    """A run cannot go on; ``reason`` is one of those that docs/formats.md lists for outcome.json."""

    def __init__(self, reason: str, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.reason = reason


@dataclass(frozen=True)
class Job:
    """job.json: everything that decides the result of a run. Paths are absolute here, whatever job.json says."""

    run_id: str
    data_name: str
    data_path: str
    data_blake3: str
    base_model: str
    parent_adapter: str | None
    start_steps: int
    max_length: int
    batch_size: int
    gradient_accumulation: int
    learning_rate: float
    warmup_steps: int
    epochs: int
    seed: int
    lora_r: int
    lora_alpha: float
    lora_dropout: float
    lora_target_modules: list[str]
    log_steps: int
    eval_steps: int
    save_minutes: float
    validation_file: str | None
    max_bad_rows: int
    start_evals: int = 0
    status_file: str = "status/training_status.json"


def load_job(run_dir: Path) -> tuple[Job, str]:
    """The job of a run and the BLAKE3 of its job.json, which every checkpoint of it carries.

    Raises:
        DamagedStateError: job.json is missing, unreadable or lacks a key.
    """
    path = run_dir / "job.json"
    document = read_json(path)
    if document is None:
        raise DamagedStateError(f"{path} is missing", "a run starts with its job.json; training_daemon.py writes it")
    fields = dataclasses.fields(Job)
    missing = [f.name for f in fields if f.name not in document and f.default is dataclasses.MISSING]
    if missing:
        raise DamagedStateError(f"{path} lacks {', '.join(missing)}", "drop the run: training_controller.py skip")
    values = {field.name: document.get(field.name, field.default) for field in fields}
    # Relative to the base dir, so that a base dir can be moved with a run that stands still.
    base = run_dir.parent.parent
    for name in PATHS:
        if values[name] is not None:
            values[name] = str(base / values[name])
    return Job(**values), hash_file(path)
