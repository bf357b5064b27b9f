"""One document, many faces: text, lines, JSON, Nagios, Prometheus and the schema say the same, to the last value."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from guardrails.report.nagios import status_line
from guardrails.report.prometheus import make_metrics
from guardrails.report.schema import SystemState, make_schema
from guardrails.report.text import report_lines, warning_lines
from tests.state.building import SCRIPT, BaseDir, Json, healthy, run_tracker
from tests.state.faces import Figure, read_metrics, read_nagios, read_report
from tests.state.situations import NAMES, ODD_NAME, situations

GIB = 1 << 30
GPU = {
    "name": 'NVIDIA "H100" | 模型',
    "count": 2,
    "memory_used_gb": 3.5,
    "memory_total_gb": 160.0,
    "utilization_percent": 75,
}
# Exactly what users were promised, key by key: a type, or what a value may be.
TEXT, NUMBER, WHOLE, FLAG = (str,), (int, float), (int,), (bool,)
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
SEVERITY, CATEGORY = {"info", "warning", "critical"}, {"model", "config", "daemon", "disk", "backup"}
PROMISED: dict[str, Any] = {
    "schema_version": {1},
    "last_updated": STAMP,
    "verdict": {"ok", "warning", "critical"},
    "current_model": {
        "exists": FLAG,
        "path": {"current_model/"},
        "size_gb": NUMBER,
        "has_adapter": FLAG,
        "training_steps": WHOLE,
        "last_training": [STAMP],
        "warning": [TEXT],
    },
    "versions": {"id": TEXT, "date": TEXT, "description": TEXT, "training_steps": WHOLE, "size_gb": NUMBER},
    "config": {
        "exists": FLAG,
        "model_name": [TEXT],
        "base_model": [TEXT],
        "max_length": [WHOLE],
        "locked_params": TEXT,
        "warning": [TEXT],
    },
    "training_status": {
        "status": {"idle", "training", "paused", "stopping", "stopped", "error"},
        "current_step": WHOLE,
        "total_evals": WHOLE,
        "last_update": [STAMP],
        "run_step": WHOLE,
        "run_total_steps": WHOLE,
        "loss": [NUMBER],
        "eta_seconds": [NUMBER],
    },
    "daemon_running": FLAG,
    "disk_space": {"available_gb": NUMBER, "used_percent": WHOLE, "total_gb": NUMBER, "warning": [TEXT]},
    "warnings": None,  # looked at below
    "warning_details": {
        "id": TEXT,
        "category": CATEGORY,
        "severity": SEVERITY,
        "message": TEXT,
        "hint": TEXT,
        "since": STAMP,
    },
    "queue": dict.fromkeys("high normal low processing completed failed skipped".split(), WHOLE),
    "storage": dict.fromkeys("versions_gb backups_gb trash_gb".split(), NUMBER),
    "pending": TEXT,
    "gpu": [
        {
            "name": TEXT,
            "count": WHOLE,
            "memory_used_gb": NUMBER,
            "memory_total_gb": NUMBER,
            "utilization_percent": WHOLE,
        }
    ],
}
LISTS = {"versions", "warning_details", "config.locked_params", "pending"}
# Each number of the document: where, Nagios' label and unit, Prometheus' series, and what its unit is in theirs.
FIGURES: list[tuple[str, str, str, str, float, float]] = [
    ("disk_space.available_gb", "disk_free", "B", "disk_available_bytes", GIB, GIB),
    ("disk_space.used_percent", "disk_used", "%", "disk_used_ratio", 1, 0.01),
    ("disk_space.total_gb", "", "", "disk_size_bytes", GIB, GIB),
    ("current_model.exists", "", "", "model_exists", 1, 1),
    ("current_model.has_adapter", "", "", "model_has_adapter", 1, 1),
    ("current_model.size_gb", "model_size", "B", "model_size_bytes", GIB, GIB),
    ("current_model.training_steps", "model_steps", "", "model_steps", 1, 1),
    ("storage.versions_gb", "versions_size", "B", "storage_bytes{kind=versions}", GIB, GIB),
    ("storage.backups_gb", "backups_size", "B", "storage_bytes{kind=backups}", GIB, GIB),
    ("storage.trash_gb", "trash_size", "B", "storage_bytes{kind=trash}", GIB, GIB),
    ("config.exists", "", "", "config_exists", 1, 1),
    ("config.max_length", "", "", "config_max_length_tokens", 1, 1),
    ("daemon_running", "daemon", "", "daemon_running", 1, 1),
    ("training_status.current_step", "steps", "", "steps", 1, 1),
    ("training_status.total_evals", "evaluations", "", "evaluations", 1, 1),
    ("training_status.run_step", "run_steps", "", "run_steps", 1, 1),
    ("training_status.run_total_steps", "run_total_steps", "", "run_planned_steps", 1, 1),
    ("training_status.loss", "loss", "", "loss", 1, 1),
    ("training_status.eta_seconds", "eta", "s", "remaining_seconds", 1, 1),
    *((f"queue.{state}", f"queue_{state}", "", f"queue_files{{state={state}}}", 1, 1) for state in PROMISED["queue"]),
    ("gpu.count", "gpus", "", "gpus", 1, 1),
    ("gpu.memory_used_gb", "gpu_memory", "B", "gpu_memory_used_bytes", GIB, GIB),
    ("gpu.memory_total_gb", "", "", "gpu_memory_size_bytes", GIB, GIB),
    ("gpu.utilization_percent", "gpu_used", "%", "gpu_utilization_ratio", 1, 0.01),
]
VOLATILE = ("disk_free", "disk_used", "disk_available", "timestamp")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, BaseDir]]:
    with situations(tmp_path_factory.mktemp("situations")) as made:
        yield made


@pytest.fixture(scope="module")
def documents(boxes: dict[str, BaseDir]) -> dict[str, Json]:
    found = {name: box.report() for name, box in boxes.items()}
    # What no small base dir has: a GPU, sizes, and no two numbers alike.
    training = found["training"]
    training["gpu"] = GPU
    training["current_model"]["size_gb"] = 0.16
    training["versions"][1]["size_gb"] = 0.17
    training["storage"] = {"versions_gb": 1.25, "backups_gb": 2.5, "trash_gb": 3.75}
    training["disk_space"] |= {"available_gb": 812.4, "total_gb": 1003.27, "used_percent": 19}
    training["queue"] = {state: 11 + number for number, state in enumerate(training["queue"])}
    return found


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def document(name: str, documents: dict[str, Json]) -> Json:
    return documents[name]


def test_the_situations_are_as_different_as_they_are_meant_to_be(documents: dict[str, Json]) -> None:
    verdicts = {name: document["verdict"] for name, document in documents.items()}
    assert {verdicts["healthy"], verdicts["training"]} <= {"ok", "warning"}, "warning: on a disk that is nearly full"
    assert {verdicts["fresh"], verdicts["warnings"], verdicts["damaged"]} == {"critical"}
    assert len(documents["warnings"]["warnings"]) >= 8
    assert any(ODD_NAME in message for _, message in documents["warnings"]["warnings"])
    assert documents["damaged"]["training_status"]["current_step"] == -5
    assert documents["damaged"]["versions"][2]["training_steps"] == 10**30
    assert documents["training"]["training_status"]["eta_seconds"] == 3671.25


def matches(value: Any, promised: Any) -> bool:
    if isinstance(promised, list):
        return value is None or matches(value, promised[0])
    if isinstance(promised, dict):
        return isinstance(value, dict) and value.keys() == promised.keys()
    if isinstance(promised, set):
        return value in promised
    if isinstance(promised, re.Pattern):
        return isinstance(value, str) and promised.fullmatch(value) is not None
    return type(value) in promised


def deviations(value: Any, promised: Any, path: str = "") -> Iterator[str]:
    """Where a document is not what was promised; nothing but what is promised to be may be null."""
    if promised is None:
        return
    for one in value if path in LISTS else [value]:
        if not matches(one, promised):
            yield f"{path}: {one!r}"[:200]
            continue
        inner = promised[0] if isinstance(promised, list) else promised
        if isinstance(inner, dict) and one is not None:
            for key, kind in inner.items():
                yield from deviations(one[key], kind, f"{path}.{key}".lstrip("."))


def test_the_document_has_exactly_the_promised_keys_and_types(document: Json) -> None:
    assert list(deviations(json.loads(json.dumps(document)), PROMISED)) == []
    assert [[d["category"], d["message"]] for d in document["warning_details"]] == document["warnings"]


def test_a_deviation_is_found(documents: dict[str, Json]) -> None:
    good = documents["healthy"]
    assert list(deviations({**good, "daemon_running": None}, PROMISED)) == ["daemon_running: None"]
    assert list(deviations({**good, "verdict": "fine"}, PROMISED)) == ["verdict: 'fine'"]
    assert list(deviations({**good, "pending": [1]}, PROMISED)) == ["pending: 1"]
    assert len(list(deviations({**good, "more": 1}, PROMISED))) == 1
    queue = {**good["queue"], "high": True}
    assert list(deviations({**good, "queue": queue}, PROMISED)) == ["queue.high: True"]


def test_the_document_is_valid_against_the_schema(document: Json) -> None:
    printed = json.dumps(document, allow_nan=False)
    jsonschema.Draft202012Validator(make_schema()).validate(json.loads(printed))
    SystemState.model_validate_json(printed)


def look_up(document: Json, path: str) -> float | None:
    value: Any = document
    for key in path.split("."):
        value = None if value is None else value[key]
    assert value is None or isinstance(value, int | float), path
    return value


def series(metrics: dict[str, list[Any]]) -> dict[str, float]:
    """Samples by name and labels, ``queue_files{state=high}``."""
    found = {}
    for metric, samples in metrics.items():
        for sample in samples:
            labels = ",".join(f"{label}={value}" for label, value in sample.labels.items())
            found[metric.removeprefix("training_") + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def test_nagios_and_prometheus_have_each_number_of_the_document_and_no_other(document: Json) -> None:
    figures = read_nagios(status_line(document)).figures
    metrics = series(read_metrics(make_metrics(document, Path("/x")), "/x"))
    for path, label, unit, metric, in_figures, in_metrics in FIGURES:
        value = look_up(document, path)
        if value is None:
            assert label not in figures
            assert metric not in metrics
            continue
        assert metrics[metric] == pytest.approx(value * in_metrics, rel=1e-9), path
        if label:
            figure = figures[label]
            expected = None if abs(value) >= 1e15 else pytest.approx(value * in_figures, rel=1e-9, abs=1e-6)
            assert (figure.value, figure.unit) == (expected, "" if expected is None else unit), path
    for label, path in (("disk_free", "disk_space.total_gb"), ("gpu_memory", "gpu.memory_total_gb")):
        total = look_up(document, path)
        assert label not in figures or float(figures[label].most) == round((total or 0) * GIB)
    counts = {severity: sum(d["severity"] == severity for d in document["warning_details"]) for severity in SEVERITY}
    for severity, count in counts.items():
        assert figures[f"findings_{severity}"].value == metrics[f"findings{{severity={severity}}}"] == count
    assert figures["versions"].value == metrics["versions"] == len(document["versions"])
    assert figures["pending"].value == metrics["pending_changes"] == len(document["pending"])
    others = {"versions", "pending", *(f"findings_{severity}" for severity in SEVERITY)}
    assert figures.keys() <= others | {label for _, label, *_ in FIGURES}


def test_prometheus_has_all_else_of_the_document_as_labels_and_times(document: Json) -> None:
    metrics = read_metrics(make_metrics(document, Path("/x")), "/x")

    def labels(metric: str) -> list[dict[str, str]]:
        return [sample.labels for sample in metrics.get(f"training_{metric}", []) if sample.value == 1]

    def time_of(metric: str) -> list[str]:
        return [to_stamp(sample.value) for sample in metrics.get(f"training_{metric}_timestamp_seconds", [])]

    details, config, model = document["warning_details"], document["config"], document["current_model"]
    assert labels("verdict") == [{"verdict": document["verdict"]}]
    assert labels("status") == [{"status": document["training_status"]["status"]}]
    assert labels("finding") == [{key: d[key] for key in ("id", "category", "severity")} for d in details]
    assert time_of("finding_since") == [d["since"] for d in details]
    assert time_of("report") == [document["last_updated"]]
    assert time_of("model_trained") == [stamp for stamp in [model["last_training"]] if stamp]
    assert time_of("status_update") == [stamp for stamp in [document["training_status"]["last_update"]] if stamp]
    known = {key: config[key] for key in ("model_name", "base_model") if config[key] is not None}
    assert labels("config_info") == [known]
    assert labels("newest_version_info") == [{"version": version["id"]} for version in document["versions"][-1:]]
    assert labels("gpu_info") == ([{"name": GPU["name"]}] if document["gpu"] else [])
    checked = {"verdict", "status", "finding", "config_info", "newest_version_info", "gpu_info", "tracker_info"}
    checked |= {f"{name}_timestamp_seconds" for name in ("finding_since", "report", "model_trained", "status_update")}
    checked |= {metric.partition("{")[0] for *_, metric, _, _ in FIGURES} | {"findings", "versions", "pending_changes"}
    assert {metric.removeprefix("training_") for metric in metrics} <= checked


def to_stamp(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shown(text: str) -> str:
    """What stands for a text in a line: control characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def test_the_report_has_the_values_of_the_document(document: Json) -> None:
    report = read_report(report_lines(document))
    model, training, disk = (document[key] for key in ("current_model", "training_status", "disk_space"))
    section = report["CURRENT MODEL"]
    assert section["Exists"] == ("current_model/" if model["exists"] else "No")
    assert section["Size"] == f"{model['size_gb']:.2f} GB"
    assert section["Training Steps"] == str(model["training_steps"])
    assert section["Last Training"] == (model["last_training"] or "never")
    assert section["Has Adapter"] == ("Yes" if model["has_adapter"] else "No")
    section = report["VERSIONS"]
    assert section[""] == f"{len(document['versions'])} saved"
    for version in document["versions"]:
        line = next(line for line in section if line.startswith(f"• {version['id']}: "))
        assert line.endswith(f"{shown(version['description'])} ({version['date']}, {version['size_gb']:.2f} GB)")
    sizes = ", ".join(f"{size:.2f} GB {key.removesuffix('_gb')}" for key, size in document["storage"].items())
    assert section["Storage"] == sizes
    config = document["config"]
    for label, key in (("Model", "model_name"), ("Base", "base_model"), ("Max Length", "max_length")):
        assert report["CONFIG"][label] == ("not set" if config[key] is None else shown(str(config[key])))
    assert report["CONFIG"]["Locked Params"] == (", ".join(config["locked_params"]) or "none")
    section = report["TRAINING STATUS"]
    assert section["Status"] == training["status"]
    assert section["Steps"] == str(training["current_step"])
    assert section["Evaluations"] == str(training["total_evals"])
    assert section["Queue"] == ", ".join(f"{count} {state}" for state, count in document["queue"].items())
    if training["status"] == "training":
        assert section["Run"] == "step 22 of 75, loss 0.7531, 3671 seconds left"
        assert section["GPU"] == f"2 x {GPU['name']}, 3.5 of 160.0 GB, 75% busy"
    assert report["DAEMON"][""] == ("Running" if document["daemon_running"] else "Stopped")
    assert report["DISK SPACE"] == {
        "": "",
        "Available": f"{disk['available_gb']} GB",
        "Used": f"{disk['used_percent']}%",
    }
    section = report["WARNINGS"]
    assert section[""] == f"{len(document['warnings']) or 'none'}, verdict {document['verdict']}"
    listed = [line for line in section if line.startswith("• ")]
    assert listed == [
        f"• [{d['category']}] {shown(d['message'])} ({d['severity']}, {d['id']})" for d in document["warning_details"]
    ]
    assert warning_lines(document) == ([f"[{c}] {shown(m)}" for c, m in document["warnings"]] or ["no warnings"])


def test_nagios_has_the_verdict_and_the_worst_finding(document: Json) -> None:
    status = read_nagios(status_line(document))
    assert status.state.lower() == document["verdict"]
    alarms = [detail for detail in document["warning_details"] if detail["severity"] != "info"]
    if alarms:
        assert status.text.startswith(f"[{alarms[0]['category']}] {alarms[0]['message'][:30]}")
        assert status.text.endswith(f"(and {len(alarms) - 1} more)") == (len(alarms) > 1)
    else:
        assert status.text.startswith(f"{document['training_status']['status']}, {len(document['versions'])} versions")


def test_the_scripts_faces_of_the_same_files_agree(name: str, boxes: dict[str, BaseDir]) -> None:
    box = boxes[name]

    def run(*options: str) -> str:
        result = run_tracker(box.base, *options)
        assert (result.returncode in (0, 1, 2), result.stderr) == (True, "")
        return result.stdout

    document = json.loads(run("--json"))
    assert run("--warnings").splitlines() == warning_lines(document)
    status, expected = read_nagios(run("--nagios").removesuffix("\n")), read_nagios(status_line(document))
    assert status[:2] == expected[:2]
    assert steady(status.figures) == steady(expected.figures)
    metrics = series(read_metrics(run("--prometheus", "-"), box.base))
    assert steady(metrics) == steady(series(read_metrics(make_metrics(document, box.base), box.base)))
    report, wanted = read_report(run("--check").splitlines()), read_report(report_lines(document))
    for section in wanted.keys() - {"DISK SPACE"}:
        assert wanted[section].items() <= report[section].items(), section


def steady(values: Any) -> dict[str, Figure | float]:
    """Without what other processes on this disk change from one report to the next."""
    return {key: value for key, value in values.items() if not any(word in key for word in VOLATILE)}


@pytest.mark.parametrize(
    "options",
    [
        ["--check", "--explain", "disk-low"],
        ["--nagios", "--prometheus", "-"],
        ["--explain", "disk-low", "--prometheus", "-"],
        ["--json", "--prometheus", "-"],
    ],
)
def test_two_forms_at_once_are_a_usage_error(tmp_path: Path, options: list[str]) -> None:
    result = run_tracker(tmp_path, *options)
    assert result.returncode == (3 if "--nagios" in options else 2)
    said = result.stdout if "--nagios" in options else result.stderr
    assert "each print a form of their own" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "module"),
    [
        (["--json"], None),
        (["--check"], None),
        (["--nagios"], "guardrails.report.nagios"),
        (["--prometheus", "-"], "guardrails.report.prometheus"),
        (["--explain", "disk-low"], "guardrails.report.explanations"),
    ],
)
def test_each_form_pays_for_itself_alone(tmp_path: Path, options: list[str], module: str | None) -> None:
    # The first report checks the config in full.
    healthy(tmp_path).report()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", SCRIPT, *options, "--base-dir", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "guardrails.report.facts" in imported
    faces = {f"guardrails.report.{name}" for name in ("nagios", "prometheus", "explanations", "schema")}
    assert imported & faces == ({module} if module else set())
    assert ("guardrails.report.faces" in imported) == (options != ["--json"])
    assert not {"pydantic", "rich", "psutil", "difflib"} & imported
