"""The state document as metrics for Prometheus, in the text format that node_exporter's textfile collector reads.

Names and units follow Prometheus: base units, ratios from 0 to 1, times as seconds since the epoch, no time stamps of
their own. Everything is a gauge, for a rollback takes steps back. Every series names its base dir, so that several of
one machine can lie side by side.
"""

import os
import time
from calendar import timegm
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from guardrails import __version__
from guardrails.errors import OperationError
from guardrails.report.facts import STATUSES
from guardrails.report.values import GIB, Json, text
from guardrails.state_io import remove_abandoned_files, write_text

PREFIX = "training_"
VERDICTS = ("ok", "warning", "critical")
SEVERITIES = ("critical", "warning", "info")
FIRST_BYTES = f"# HELP {PREFIX}".encode()

Labels = dict[str, str]
# A metric's name without the prefix, what it is, and its series.
Metric = tuple[str, str, Sequence[tuple[Labels, float]]]


def make_metrics(document: Json, base_dir: Path) -> str:
    """The whole metrics file of one base dir; what is null in the document has no series."""
    # By its bytes, so that the locale of whoever runs this makes no other series.
    place = ("base_dir", os.fsencode(base_dir).decode("utf-8", "backslashreplace"))
    lines = []
    for name, meaning, series in _metrics(document):
        if not series:
            continue
        lines += [f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} gauge"]
        # One series twice would make the collector drop the whole file.
        for labels, value in {tuple(labels.items()): value for labels, value in series}.items():
            shown = ",".join(f'{label}="{_escape(content)}"' for label, content in (place, *labels))
            lines.append(f"{PREFIX}{name}{{{shown}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escape(content: str) -> str:
    return text(content).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    try:
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
    except OverflowError:
        # A damaged record may claim what no float holds.
        return "+Inf" if value > 0 else "-Inf"


def _metrics(document: Json) -> Iterator[Metric]:
    details = document["warning_details"]
    tracker = {"version": __version__, "schema_version": str(document["schema_version"])}
    yield "tracker_info", "The toolkit that wrote this.", [(tracker, 1)]
    yield _time("report", "When the report was made.", document["last_updated"])
    yield _states("verdict", "The verdict of the report: 1 for the one that holds.", VERDICTS, document["verdict"])
    yield _per("findings", "Findings that stand.", "severity", _count_by_severity(details))
    standing = [{key: detail[key] for key in ("id", "category", "severity")} for detail in details]
    yield "finding", "A finding that stands; state_tracker.py --explain says more.", [(one, 1) for one in standing]
    since = [(one, _seconds(detail["since"])) for one, detail in zip(standing, details, strict=True)]
    yield "finding_since_timestamp_seconds", "When a report first had the finding.", since
    yield _one("pending_changes", "What the next writing command finishes or undoes.", len(document["pending"]))

    model = document["current_model"]
    yield _one("model_exists", "Whether there is a current_model/.", model["exists"])
    yield _one("model_has_adapter", "Whether current_model/ holds an adapter.", model["has_adapter"])
    yield _one("model_size_bytes", "Apparent size of current_model/.", _bytes(model["size_gb"]))
    yield _one("model_steps", "Steps of all time in current_model/.", model["training_steps"])
    yield _time("model_trained", "When current_model/ was last trained.", model["last_training"])
    yield _one("versions", "Saved versions.", len(document["versions"]))
    newest = [({"version": version["id"]}, 1) for version in document["versions"][-1:]]
    yield "newest_version_info", "The newest saved version.", newest
    stored = {name.removesuffix("_gb"): _bytes(size) for name, size in document["storage"].items()}
    yield _per("storage_bytes", "What versions, backups and the trash take.", "kind", stored)

    config = document["config"]
    named = {key: str(config[key]) for key in ("model_name", "base_model") if config[key] is not None}
    yield _one("config_exists", "Whether there is a config.json.", config["exists"])
    yield "config_info", "What is trained.", [(named, 1)]
    yield _one("config_max_length_tokens", "Tokens that a row may have.", config["max_length"])

    training = document["training_status"]
    yield _states("status", "Where training stands: 1 for the status that holds.", STATUSES, training["status"])
    yield _one("steps", "Steps of all time, the current run's included.", training["current_step"])
    yield _one("evaluations", "Evaluations of all time.", training["total_evals"])
    yield _one("run_steps", "Steps of the newest run.", training["run_step"])
    yield _one("run_planned_steps", "Steps that the newest run is to have.", training["run_total_steps"])
    yield _one("loss", "Training loss as last logged.", training["loss"])
    yield _one("remaining_seconds", "How long the run will still take.", training["eta_seconds"])
    yield _time("status_update", "When the worker last wrote its status.", training["last_update"])
    yield _one("daemon_running", "Whether the daemon of this base dir runs.", document["daemon_running"])
    yield _per("queue_files", "Data files by state.", "state", document["queue"])

    disk = document["disk_space"]
    yield _one("disk_available_bytes", "Free for the user on the disk of the base dir.", _bytes(disk["available_gb"]))
    yield _one("disk_size_bytes", "Size of the disk of the base dir.", _bytes(disk["total_gb"]))
    yield _one("disk_used_ratio", "Share of the disk in use, as df has it.", disk["used_percent"] / 100)
    gpu = document["gpu"]
    if gpu is not None:
        yield "gpu_info", "The first GPU.", [({"name": gpu["name"]}, 1)]
        yield _one("gpus", "GPUs of this machine.", gpu["count"])
        yield _one("gpu_memory_used_bytes", "GPU memory in use, all together.", _bytes(gpu["memory_used_gb"]))
        yield _one("gpu_memory_size_bytes", "GPU memory, all together.", _bytes(gpu["memory_total_gb"]))
        yield _one("gpu_utilization_ratio", "Mean utilization of the GPUs.", gpu["utilization_percent"] / 100)


def _one(name: str, meaning: str, value: float | None) -> Metric:
    return name, meaning, [] if value is None else [({}, value)]


def _time(name: str, meaning: str, stamp: str | None) -> Metric:
    return _one(f"{name}_timestamp_seconds", meaning, None if stamp is None else _seconds(stamp))


def _states(name: str, meaning: str, states: tuple[str, ...], current: str) -> Metric:
    return _per(name, meaning, name, {state: state == current for state in states})


def _per(name: str, meaning: str, label: str, values: dict[str, int] | dict[str, bool]) -> Metric:
    return name, meaning, [({label: key}, value) for key, value in values.items()]


def _count_by_severity(details: list[Json]) -> dict[str, int]:
    return {severity: sum(detail["severity"] == severity for detail in details) for severity in SEVERITIES}


def _bytes(size_gb: float) -> int:
    return round(size_gb * GIB)


def _seconds(stamp: str) -> int:
    return timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))


def write_metrics(path: Path, metrics: str) -> None:
    """Replace a metrics file in one step, readable by everybody; nothing else is ever replaced.

    Raises:
        OperationError: what lies there is no metrics file of this toolkit.
    """
    # A link stays, and what it names is replaced.
    target = Path(os.path.realpath(path))
    if not _may_be_replaced(target):
        raise OperationError(
            f"{path} is there already and holds no metrics of this toolkit; it was left as it is",
            "name another file for --prometheus, or - for stdout",
        )
    write_text(target, metrics, 0o644, whatever_umask=True)
    # What another user left in a shared folder may not be ours to remove.
    with suppress(OSError):
        remove_abandoned_files(target, time.time())


def _may_be_replaced(path: Path) -> bool:
    if not os.path.lexists(path):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(FIRST_BYTES)) in (b"", FIRST_BYTES)
