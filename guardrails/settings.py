"""The settings of config.json: their types, limits and defaults."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from guardrails.store.retention import MOST_DAYS

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
# -1 keeps all
KeepCount = Annotated[int, Field(ge=-1)]


class Retention(BaseModel):
    """What ``prune`` keeps without options of its own, and how long the trash holds what was removed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    keep_last: KeepCount = 0
    keep_hourly: KeepCount = 0
    keep_daily: KeepCount = 0
    keep_weekly: KeepCount = 0
    keep_monthly: KeepCount = 0
    keep_yearly: KeepCount = 0
    keep_within: Annotated[str, Field(min_length=2, pattern=r"^(\d+y)?(\d+m)?(\d+d)?(\d+h)?$")] | None = None
    trash_days: Annotated[int, Field(ge=0, le=MOST_DAYS)] = 7


class Alerts(BaseModel):
    """When ``state_tracker.py --alert`` sends a message. Where to is a secret, and stands elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    after_checks: Count = 2
    min_severity: Literal["info", "warning", "critical"] = "warning"
    max_per_day: Count = 20
    remind_hours: Annotated[float, Field(gt=0)] | None = None
    secrets_file: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")] = ".alerts.env"


class Config(BaseModel):
    """The settings of one base dir. Meanings and defaults are in docs/cli.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model_name: Annotated[str, Field(min_length=1)] = "model"
    base_model: Annotated[str, Field(min_length=1)] | None = None
    max_length: Annotated[int, Field(ge=8)] = 2048
    batch_size: Count = 4
    gradient_accumulation: Count = 4
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    warmup_steps: CountOrNone = 10
    lora_r: Count = 16
    lora_alpha: Annotated[float, Field(gt=0)] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    lora_target_modules: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    use_qlora: Literal[False] = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    epochs: Count = 1
    log_steps: Count = 10
    eval_steps: CountOrNone = 100
    save_minutes: Annotated[float, Field(ge=0)] = 10
    validation_file: Annotated[str, Field(min_length=1)] | None = None
    poll_interval: Annotated[float, Field(ge=0.1, le=3600)] = 2
    max_attempts: Count = 3
    max_bad_rows: CountOrNone = 0
    backup: Literal["after_each", "daily", "off"] = "after_each"
    backup_dir: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")] | None = None
    immutable_versions: bool = False
    monitor_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    launch: None = None
    alerts: Alerts | None = None
    retention: Retention | None = None
