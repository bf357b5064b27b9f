"""The document, its schema and the guide's interface agree, whatever lies in the files."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from guardrails.config import LOCKED_KEYS
from guardrails.paths import CODE_DIR, Paths
from guardrails.report.document import update_document
from guardrails.report.facts import LOCKED_DEFAULTS, STATUSES, Facts, true_status
from guardrails.report.schema import SystemState, make_schema
from guardrails.settings import Config
from guardrails.store import versions
from tests.state.building import SCRIPT, BaseDir, Json, healthy, run_tracker

GUIDE = CODE_DIR / "docs/STATE_TRACKER_GUIDE.md"
# The guide's SystemState as this project was given it: what may not be missing, and what may be null.
GIVEN: dict[str, dict[str, str]] = {
    "current_model": {
        "exists": "boolean",
        "path": "string",
        "size_gb": "number",
        "has_adapter": "boolean",
        "training_steps": "number",
        "last_training": "string | null",
        "warning": "string | null",
    },
    "versions": {
        "id": "string",
        "date": "string",
        "description": "string",
        "training_steps": "number",
        "size_gb": "number",
    },
    "config": {
        "exists": "boolean",
        "model_name": "string | null",
        "base_model": "string | null",
        "max_length": "number | null",
        "locked_params": "string[]",
        "warning": "string | null",
    },
    "training_status": {
        "status": "string",
        "current_step": "number",
        "total_evals": "number",
        "last_update": "string | null",
    },
    "disk_space": {"available_gb": "number", "used_percent": "number", "warning": "string | null"},
}


def documents(tmp_path: Path) -> list[Json]:
    """Reports on base dirs in very different states."""
    fresh = update_document(Paths(_made(tmp_path / "fresh")))
    box = healthy(tmp_path / "healthy", versions=3)
    with box.daemon():
        quiet = box.report()
        box.status_said("training")
        box.daemon_said("training", run_id="r1")
        training = box.report()
    for path in ("config.json", ".config_lock.json", "models/head.json", "status/daemon.json"):
        (box.base / path).write_text("{")
    (box.paths.version("v001") / "metadata.json").write_text("[]")
    return [fresh, quiet, training, box.report()]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_every_document_is_valid_against_schema_and_models(tmp_path: Path) -> None:
    schema = make_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for document in documents(tmp_path):
        printed = json.loads(json.dumps(document, allow_nan=False))
        validator.validate(printed)
        SystemState.model_validate_json(json.dumps(printed))
        for section in ("current_model", "config", "disk_space"):
            category = {"current_model": "model", "config": "config", "disk_space": "disk"}[section]
            first = next((message for name, message in printed["warnings"] if name == category), None)
            assert printed[section]["warning"] == first


def test_the_schema_refuses_unknown_and_missing_keys_and_wrong_types(tmp_path: Path) -> None:
    validator = jsonschema.Draft202012Validator(make_schema())
    document = json.loads(json.dumps(healthy(tmp_path).report()))
    for key in document:
        assert not validator.is_valid({name: value for name, value in document.items() if name != key})
    assert not validator.is_valid({**document, "another": 1})
    assert not validator.is_valid({**document, "daemon_running": None})
    assert not validator.is_valid({**document, "last_updated": "2026-11-21T10:00:00.5"})


def read_interface() -> dict[str, Any]:
    """The guide's TypeScript interface as nested dictionaries of type texts."""
    block = re.search(r"```typescript\ninterface SystemState \{\n(.*?)\n\}\n```", GUIDE.read_text("utf-8"), re.DOTALL)
    assert block
    stack: list[dict[str, Any]] = [{}]
    for raw in block[1].splitlines():
        line = raw.split("//")[0].strip()
        if opened := re.fullmatch(r"(\w+): (?:Array<)?\{", line):
            stack.append({})
            stack[-2][opened[1]] = stack[-1]
        elif re.fullmatch(r"\}(>| \| null)?;", line):
            stack.pop()
        elif field := re.fullmatch(r"(\w+): (.+);", line):
            stack[-1][field[1]] = field[2]
        else:
            assert not line, line
    assert len(stack) == 1
    return stack[0]


def in_typescript(schema: Json, definitions: Json) -> Any:
    """A JSON Schema as ``read_interface`` has it."""
    if "$ref" in schema:
        return in_typescript(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        options = [in_typescript(option, definitions) for option in schema["anyOf"]]
        nested = [option for option in options if isinstance(option, dict)]
        return nested[0] if nested else " | ".join(options)
    if "const" in schema or "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if "prefixItems" in schema:
        return f"[{', '.join(in_typescript(item, definitions) for item in schema['prefixItems'])}]"
    if schema["type"] == "array":
        items = in_typescript(schema["items"], definitions)
        return items if isinstance(items, dict) else f"Array<{items}>" if items[0] == "[" else f"{items}[]"
    if schema["type"] == "object":
        assert set(schema["required"]) == set(schema["properties"])
        return {key: in_typescript(value, definitions) for key, value in schema["properties"].items()}
    return {"integer": "number", "number": "number", "string": "string", "boolean": "boolean", "null": "null"}[
        schema["type"]
    ]


def test_the_guides_interface_is_the_schema() -> None:
    schema = make_schema()
    interface = read_interface()
    assert interface == in_typescript(schema, schema["$defs"])


def test_the_document_has_the_keys_and_types_it_was_asked_for() -> None:
    interface = read_interface()
    for section, fields in GIVEN.items():
        for key, kind in fields.items():
            shown = interface[section][key]
            assert shown == kind or (kind == "string" and shown.startswith('"'))
    assert interface["last_updated"] == "string"
    assert interface["daemon_running"] == "boolean"
    assert re.fullmatch(r'Array<\[("\w+"( \| )?)+, string\]>', interface["warnings"])


def test_json_is_one_strict_ascii_document_and_the_file_is_the_same(tmp_path: Path) -> None:
    box = healthy(tmp_path / "Modèle 模型 🙂")
    path = box.paths.version("v001") / "metadata.json"
    odd = {"description": "Zürich\n\x1b[31m \ud800 🙂", "training_steps": float("nan"), "loss": float("inf")}
    path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))
    box.status_said("training", loss=float("nan"), eta_seconds=float("inf"), current_step=1e400, total_evals=True)
    result = run_tracker(box.base, "--json")
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.isascii()
    assert result.stdout.endswith("}\n")
    document = json.loads(result.stdout, parse_constant=pytest.fail)
    assert document == json.loads(box.paths.system_state.read_text())
    assert document["versions"][0]["description"] == "Zürich\n\x1b[31m \\ud800 🙂"
    assert document["versions"][0]["training_steps"] == 0
    assert document["training_status"]["loss"] is None


@pytest.mark.parametrize("options", [["--check"], ["--warnings"], [], ["--json"], ["--check", "--json"]])
def test_every_form_writes_the_state_file_first(tmp_path: Path, options: list[str]) -> None:
    result = run_tracker(tmp_path, *options)
    assert result.returncode == 0, result.stderr
    SystemState.model_validate_json((tmp_path / ".system_state.json").read_bytes())


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [("ok", 0), ("warning", 1), ("critical", 3)],
)
def test_the_exit_code_is_the_verdict_only_when_asked_for(tmp_path: Path, prepare: str, expected: int) -> None:
    box = healthy(tmp_path)
    if prepare == "critical":
        box.paths.config.unlink()
    elif prepare == "warning":
        box.paths.emergency_stop.touch()
    with box.daemon():
        for form in (["--check"], ["--warnings"], [], ["--json"]):
            assert run_tracker(tmp_path, *form, "--exit-code").returncode == expected
            assert run_tracker(tmp_path, *form).returncode == 0


def test_the_schema_is_printed_without_a_base_dir(tmp_path: Path) -> None:
    result = run_tracker(tmp_path / "none", "--schema")
    assert result.returncode == 0
    assert json.loads(result.stdout) == make_schema()


def test_a_missing_base_dir_is_an_error(tmp_path: Path) -> None:
    result = run_tracker(tmp_path / "none", "--json")
    assert result.returncode == 1
    assert result.stdout == ""
    assert set(json.loads(result.stderr)) == {"error", "hint", "exit_code"}
    assert not (tmp_path / "none").exists()


def test_sizes_are_apparent_and_count_hard_links_once_and_follow_no_links(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    gib = 1 << 30
    with (box.paths.version("v001") / "model/big").open("wb") as file:
        file.truncate(gib // 4)
    (box.paths.version("v001") / "model/same").hardlink_to(box.paths.version("v001") / "model/big")
    (box.paths.version("v002") / "model/big").hardlink_to(box.paths.version("v001") / "model/big")
    outside = tmp_path / "outside"
    with outside.open("wb") as file:
        file.truncate(gib)
    (box.paths.version("v002") / "model/link").symlink_to(outside)
    with (box.paths.current_model / "big").open("wb") as file:
        file.truncate(gib // 2)
    (box.paths.current_model / "same").hardlink_to(box.paths.current_model / "big")
    document = box.report()
    assert [version["size_gb"] for version in document["versions"]] == [0.25, 0.25]
    assert document["storage"]["versions_gb"] == 0.25
    assert document["current_model"]["size_gb"] == 0.5


def test_versions_are_sorted_by_number_and_junk_is_none(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    for number in (1000, 999, 2):
        box.version(number)
    for name in ("v01", "vabc", "v001.bak", "V002", "latest"):
        (box.paths.versions / name).mkdir()
    (box.paths.versions / "v003").write_text("a file")
    assert [version["id"] for version in box.report()["versions"]] == ["v002", "v999", "v1000"]


def test_last_training_is_that_of_the_lineage_not_of_a_snapshot(tmp_path: Path) -> None:
    box = healthy(tmp_path, versions=1)
    box.version(2, kind="snapshot", parent="v001", created_at="2030-01-01T00:00:00Z")
    box.publish("v002")
    trained = json.loads((box.paths.version("v001") / "metadata.json").read_text())["created_at"]
    assert box.report()["current_model"]["last_training"] == trained


def test_between_runs_the_steps_are_those_of_the_model_also_after_a_rollback(tmp_path: Path) -> None:
    box = healthy(tmp_path, versions=2)
    box.publish("v001")
    document = box.report()
    assert document["current_model"]["training_steps"] == 75
    assert document["training_status"]["current_step"] == 75
    assert document["training_status"]["total_evals"] == 3


def test_queue_counts_are_those_of_the_folders(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    for count, state in enumerate(("high", "normal", "low", "processing", "completed", "failed", "skipped")):
        for number in range(count):
            (box.paths.queue_folder(state) / f"{number}.jsonl").touch()
        (box.paths.queue_folder(state) / ".hidden").touch()
        (box.paths.queue_folder(state) / "folder").mkdir()
    assert list(box.report()["queue"].values()) == [0, 1, 2, 3, 4, 5, 6]


class Situation(Facts):
    """Facts made by hand, for the table below."""

    def __init__(self, said: str, daemon: bool, worker: bool, state: str, result: str | None, processing: bool) -> None:
        super().__init__(Paths(Path("/nowhere")), 0)
        self.training = {"status": said} if said else {}
        self.daemon_running, self.worker_running = daemon, worker
        self.daemon = {"state": state} if state else {}
        self.outcome = {"result": result} if result else None
        self.processing = ["a.jsonl"] if processing else []


@pytest.mark.parametrize(
    ("said", "daemon", "worker", "state", "result", "processing", "expected"),
    [
        # a living process stands behind what is said
        ("training", True, True, "training", None, True, "training"),
        ("training", False, True, "training", None, True, "training"),
        ("stopping", True, True, "stopping", None, True, "stopping"),
        ("paused", True, False, "paused", "interrupted", True, "paused"),
        ("idle", True, False, "idle", None, False, "idle"),
        ("error", True, False, "waiting", None, True, "error"),
        # nothing lives and nobody said goodbye
        ("training", False, False, "training", None, True, "error"),
        ("paused", False, True, "paused", None, True, "error"),
        ("idle", False, False, "idle", None, True, "error"),
        ("training", False, False, "", None, False, "error"),
        # the run had ended, or the daemon said goodbye
        ("training", False, False, "training", "interrupted", True, "stopped"),
        ("training", False, False, "stopped", None, True, "stopped"),
        ("stopping", False, False, "stopped", "interrupted", True, "stopped"),
        ("training", False, False, "stopped", "completed", False, "idle"),
        ("stopped", False, False, "stopped", "interrupted", True, "stopped"),
        ("idle", False, False, "stopped", None, False, "idle"),
        ("idle", False, False, "idle", None, False, "idle"),
        # no usable status file
        ("", False, False, "", None, False, "idle"),
        ("nonsense", True, False, "publishing", None, True, "training"),
        ("", True, True, "idle", None, True, "training"),
        ("", True, False, "paused", None, False, "paused"),
    ],
)
def test_the_status_is_true(
    said: str, daemon: bool, worker: bool, state: str, result: str | None, processing: bool, expected: str
) -> None:
    status = true_status(Situation(said, daemon, worker, state, result, processing))
    assert status == expected
    assert status in STATUSES


def test_what_is_repeated_for_speed_is_the_same_as_where_it_belongs() -> None:
    defaults = Config().model_dump()
    assert {key: defaults[key] for key in LOCKED_KEYS} == LOCKED_DEFAULTS
    assert tuple(LOCKED_DEFAULTS) == LOCKED_KEYS
    assert versions.store_lock(Paths(Path("/x"))).path == Path("/x/.locks/store.lock")


@pytest.mark.parametrize("form", ["--json", "--check"])
def test_a_report_imports_nothing_heavy(tmp_path: Path, form: str) -> None:
    box = healthy(tmp_path)
    # The first report checks the config in full.
    box.report()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", SCRIPT, form, "--base-dir", box.base],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "guardrails.report.facts" in imported
    heavy = {"pydantic", "rich", "torch", "psutil", "subprocess", "blake3", "dataclasses", "logging", "asyncio"}
    assert not heavy & {name.split(".")[0] for name in imported}
    assert not {"guardrails.config", "guardrails.manifest", "guardrails.report.schema", "guardrails.gpu"} & imported


def test_the_script_parses_on_old_pythons_and_stays_thin() -> None:
    source = SCRIPT.read_text("utf-8")
    ast.parse(source, feature_version=(3, 6))
    # Options, one line each, and where each form is printed.
    assert len(source.splitlines()) <= 220
    assert os.access(SCRIPT, os.X_OK)
