"""What a run is asked to do (job.json), and how it can fail. Imports nothing heavy."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from guardrails.errors import DamagedStateError, TrainingError
from guardrails.manifest import hash_file
from guardrails.state_io import read_json


class RunError(TrainingError):
    """A run cannot go on; ``reason`` is one of those that docs/formats.md lists for outcome.json."""

    def __init__(self, reason: str, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.reason = reason


@dataclass(frozen=True)
class Job:
    """job.json: everything that decides the result of a run. Paths are absolute."""

    run_id: str
    data_name: str
    data_path: str
    data_blake3: str
    base_model: str
    parent_adapter: str | None
    start_steps: int
    status_file: str
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
    return Job(**{field.name: document[field.name] for field in fields if field.name in document}), hash_file(path)
