"""What the schema promises: the guide's interface is made of it, keys are only added, old documents load for ever."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from docs.generate import GUIDE, fill, make_guide
from docs.typescript import make_interface
from guardrails.report.schema import make_schema
from guardrails.state_io import SCHEMA_VERSION, read_json
from tests.state.building import BaseDir, Json, healthy
from tests.state.situations import situations

DATA = Path(__file__).parent.parent / "data"
DOCUMENTS = sorted((DATA / "state").glob("*.json"))
SCHEMAS = sorted((DATA / "state_schema").glob("*.json"))
TSC = shutil.which("tsc")
# The interface as this project was given it, before keys were added.
GIVEN = """
interface Given {
  last_updated: string;
  current_model: {
    exists: boolean;
    path: string;
    size_gb: number;
    has_adapter?: boolean;
    training_steps: number;
    last_training: string | null;
    warning: string | null;
  };
  versions: Array<{ id: string; date: string; description: string; training_steps: number; size_gb: number }>;
  config: {
    exists: boolean;
    model_name?: string | null;
    base_model?: string | null;
    max_length?: number | null;
    locked_params: string[];
    warning: string | null;
  };
  training_status: { status: string; current_step: number; total_evals: number; last_update: string | null };
  daemon_running: boolean;
  disk_space: { available_gb: number; used_percent: number; warning: string | null };
  warnings: Array<[string, string]>;
}
"""


def test_the_guide_is_what_the_code_says() -> None:
    assert GUIDE.read_text("utf-8") == make_guide(), "run: make docs"


def test_only_what_is_between_the_marks_is_made() -> None:
    page = "a\n<!-- x: made by make docs -->\nold\n<!-- end of x -->\nb <!-- end of y -->\n"
    made = "a\n<!-- x: made by make docs -->\nnew\n|\n<!-- end of x -->\nb <!-- end of y -->\n"
    assert fill(page, "x", iter(["new", "|"])) == made
    with pytest.raises(AssertionError, match="marks of y"):
        fill(page, "y", iter([]))


def test_an_interface_says_what_its_schema_says() -> None:
    schema: Json = {
        "$defs": {"Part": {"description": "A part.", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
        "properties": {
            "one": {"$ref": "#/$defs/Part"},
            "maybe": {"anyOf": [{"$ref": "#/$defs/Part"}, {"type": "null"}]},
            "many": {"type": "array", "items": {"$ref": "#/$defs/Part"}, "description": "in order"},
            "names": {"type": "array", "items": {"type": "string"}},
            "pairs": {"type": "array", "items": {"prefixItems": [{"enum": ["x", "y"]}, {"type": "number"}]}},
            "kinds": {"type": "array", "items": {"enum": ["x", "y"]}},
            "missing": {"type": "boolean"},
        },
        "required": ["one", "maybe", "many", "names", "pairs", "kinds"],
    }
    assert [" ".join(line.split()) for line in make_interface("Whole", schema).splitlines()] == [
        "interface Whole {",
        *("one: { // a part", "a: number;", "};", ""),
        *("maybe: { // a part", "a: number;", "} | null;", ""),
        *("many: Array<{ // in order", "a: number;", "}>;", ""),
        "names: string[];",
        'pairs: Array<["x" | "y", number]>;',
        'kinds: Array<"x" | "y">;',
        "missing?: boolean;",
        "}",
    ]


def test_what_has_no_translation_is_no_interface() -> None:
    with pytest.raises(KeyError):
        make_interface("X", {"properties": {"a": {"not": {}}}, "required": ["a"]})


@pytest.mark.skipif(not TSC, reason="the TypeScript compiler is not installed")
def test_the_typescript_compiler_takes_the_interface_and_real_documents(tmp_path: Path) -> None:
    with situations(tmp_path) as boxes:
        documents = [box.report() for box in boxes.values()]
    gpu = {"name": "x", "count": 1, "memory_used_gb": 1.5, "memory_total_gb": 80, "utilization_percent": 9}
    documents += [{**documents[0], "gpu": gpu}, *(json.loads(path.read_text()) for path in DOCUMENTS)]
    interface = make_interface("SystemState", make_schema())
    lines = [interface, GIVEN, *(f"const d{n}: SystemState = {json.dumps(d)};" for n, d in enumerate(documents))]
    lines += ["const given: Given = d0;", "export { given };"]
    assert compile_typescript(tmp_path, lines) == ""
    wrong = {**documents[0], "daemon_running": None}
    said = compile_typescript(tmp_path, [interface, f"const x: SystemState = {json.dumps(wrong)};"])
    assert "Type 'null' is not assignable to type 'boolean'" in said


def compile_typescript(folder: Path, lines: list[str]) -> str:
    """What the compiler has to say."""
    source = folder / "state.ts"
    source.write_text("\n".join(lines))
    command = [str(TSC), "--noEmit", "--strict", "--exactOptionalPropertyTypes", "--target", "es2022", str(source)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False).stdout


def bare(schema: Json, definitions: Json) -> Json:
    """A schema without words, with its definitions where they are used."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    found: Json = {}
    for key, value in schema.items():
        if key in ("title", "description", "$defs", "$schema"):
            continue
        if key == "properties":
            found[key] = {name: bare(part, definitions) for name, part in value.items()}
        elif isinstance(value, dict):
            found[key] = bare(value, definitions)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found[key] = [bare(part, definitions) for part in value]
        else:
            found[key] = value
    return found


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where ``new`` is not ``old`` with keys added."""
    if isinstance(old, dict) and isinstance(new, dict):
        if "properties" in old and "properties" in new:
            gone = set(old["required"]) - set(new["required"])
            old = {**old, "required": sorted(gone)}
            new = {**new, "required": [], "properties": {key: new["properties"].get(key) for key in old["properties"]}}
        keys = sorted(old.keys() | new.keys())
        return [found for key in keys for found in differences(old.get(key), new.get(key), f"{path}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [found for pair in zip(old, new, strict=True) for found in differences(*pair, path)]
    return [] if old == new else [f"{path}: {old} became {new}"]


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_keys_are_only_added_while_the_schema_version_stays(path: Path) -> None:
    old, new = json.loads(path.read_text()), make_schema()
    assert old["properties"]["schema_version"]["const"] == SCHEMA_VERSION, (
        "keep the schemas of older versions elsewhere"
    )
    assert differences(bare(old, old["$defs"]), bare(new, new["$defs"])) == []


def test_a_broken_promise_is_found() -> None:
    old = make_schema()
    for change in ("removed", "nullable", "retyped", "optional", "narrowed", "added"):
        new = json.loads(json.dumps(old))
        queue, disk = new["$defs"]["Queue"], new["$defs"]["DiskSpace"]["properties"]
        if change == "removed":
            del queue["properties"]["high"]
            queue["required"].remove("high")
        elif change == "nullable":
            disk["total_gb"] = {"anyOf": [disk["total_gb"], {"type": "null"}]}
        elif change == "retyped":
            disk["used_percent"]["type"] = "number"
        elif change == "optional":
            queue["required"].remove("low")
        elif change == "narrowed":
            new["$defs"]["Detail"]["properties"]["severity"]["enum"].pop()
        else:
            queue["properties"]["later"] = {"type": "integer"}
            queue["required"].append("later")
        found = differences(bare(old, old["$defs"]), bare(new, new["$defs"]))
        assert bool(found) == (change != "added"), (change, found)


def test_there_are_documents_and_a_schema_of_every_release() -> None:
    assert {path.name for path in DOCUMENTS} >= {f"0.1.0-{n}.json" for n in ("damaged", "fresh", "healthy", "training")}
    assert {path.stem for path in SCHEMAS} == {path.name.partition("-")[0] for path in DOCUMENTS}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_an_old_document_lacks_at_most_what_was_added_since(path: Path) -> None:
    document = read_json(path)
    own = json.loads((DATA / "state_schema" / f"{path.name.partition('-')[0]}.json").read_text())
    jsonschema.Draft202012Validator(own).validate(document)
    errors = list(jsonschema.Draft202012Validator(make_schema()).iter_errors(document))
    assert {error.validator for error in errors} <= {"required"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_a_report_goes_on_from_an_old_document(tmp_path: Path, path: Path) -> None:
    """It is not set aside, and a finding that still stands keeps the time that it has there."""
    old = json.loads(path.read_text())
    if path.stem.endswith("fresh"):
        box = BaseDir(tmp_path)
    else:
        box = healthy(tmp_path, 3)
        (box.paths.version("v001") / "metadata.json").unlink()
    shutil.copy(path, box.paths.system_state)
    found = box.findings()
    assert "state-file-damaged" not in found
    known = {detail["id"]: detail["since"] for detail in old["warning_details"]}
    assert found.keys() & known.keys() or path.stem.endswith("training")
    for identifier in found.keys() & known.keys():
        assert found[identifier]["since"] == known[identifier]
