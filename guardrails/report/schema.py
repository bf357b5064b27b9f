"""The types of the state document, as pydantic models and as a JSON Schema.

The interface in docs/STATE_TRACKER_GUIDE.md is made of this, descriptions included. Imported for
``state_tracker.py --schema``, ``make docs`` and tests only: pydantic costs more than a whole report.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Timestamp = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="whole-second UTC")]
Count = Annotated[int, Field(ge=0)]
GiB = Annotated[float, Field(ge=0, description="GiB, to two places")]
Percent = Annotated[int, Field(ge=0, le=100)]
Category = Literal["model", "config", "daemon", "disk", "backup"]
Warned = Annotated[str | None, Field(description="the first of its category in `warnings`")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CurrentModel(_Section):
    """The live adapter."""

    exists: bool
    path: Literal["current_model/"]
    size_gb: GiB
    has_adapter: bool
    training_steps: Annotated[Count, Field(description="of all time")]
    last_training: Timestamp | None
    warning: Warned


class Version(_Section):
    """A saved version whose model is still there."""

    id: Annotated[str, Field(pattern=r"^v\d{3,}$", description="v001 to v999, then v1000")]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$", description="YYYY-MM-DD")]
    description: str
    training_steps: Annotated[int, Field(description="of all time")]
    size_gb: GiB


class ConfigSection(_Section):
    """What a report needs of config.json; null where nothing is known."""

    exists: bool
    model_name: str | None
    base_model: str | None
    max_length: int | None
    locked_params: list[str]
    warning: Warned


class TrainingStatus(_Section):
    """Where training stands; `run_…`, `loss` and `eta_seconds` are of the newest run."""

    status: Literal["idle", "training", "paused", "stopping", "stopped", "error"]
    current_step: Annotated[int, Field(description="of all time")]
    total_evals: int
    last_update: Timestamp | None
    run_step: int
    run_total_steps: int
    loss: Annotated[float | None, Field(description="null before the first one is logged")]
    eta_seconds: Annotated[float | None, Field(description="null unless training, and before it can be told")]


class DiskSpace(_Section):
    """The file system of the base dir."""

    available_gb: GiB
    used_percent: Percent
    total_gb: GiB
    warning: Warned


class Detail(_Section):
    """One finding; `id` stays the same while its cause lasts."""

    id: Annotated[str, Field(pattern=r"^[a-z]+(-[a-z]+)+(:.+)?$")]
    category: Category
    severity: Annotated[Literal["info", "warning", "critical"], Field(description="info does not touch the verdict")]
    message: str
    hint: Annotated[str, Field(description="the command that helps")]
    since: Timestamp


class Queue(_Section):
    """Data files by state."""

    high: Count
    normal: Count
    low: Count
    processing: Count
    completed: Count
    failed: Count
    skipped: Count


class Storage(_Section):
    """What is kept besides the live adapter; files shared by hard link count once."""

    versions_gb: GiB
    backups_gb: GiB
    trash_gb: GiB


class Gpu(_Section):
    """All GPUs together, as nvidia-smi has them; `name` is the first one's."""

    name: str
    count: Count
    memory_used_gb: GiB
    memory_total_gb: GiB
    utilization_percent: Percent


class SystemState(_Section):
    """What exists in one base dir, and what needs attention."""

    schema_version: Literal[1]
    last_updated: Timestamp
    verdict: Literal["ok", "warning", "critical"]
    current_model: CurrentModel
    versions: Annotated[list[Version], Field(description="oldest first")]
    config: ConfigSection
    training_status: TrainingStatus
    daemon_running: bool
    disk_space: DiskSpace
    warnings: Annotated[list[tuple[Category, str]], Field(description="[category, message], worst first")]
    warning_details: Annotated[list[Detail], Field(description="the same warnings, in the same order")]
    queue: Queue
    storage: Storage
    pending: Annotated[list[str], Field(description="what the next writing command finishes or undoes")]
    gpu: Gpu | None


def make_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the state document."""
    schema = SystemState.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
