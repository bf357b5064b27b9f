"""Every finding is explained, in one place, and --explain says so together with what stands."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from guardrails.errors import UsageError
from guardrails.paths import CODE_DIR
from guardrails.report.explanations import EXPLANATIONS, Explanation, find_explanation
from guardrails.report.findings import CATEGORIES, SEVERITIES
from tests.state.building import BaseDir, healthy, run_tracker

ENTRIES = {entry.family: entry for entry in EXPLANATIONS}
SOURCES = sorted(CODE_DIR.glob("guardrails/**/*.py"))
TESTS = "".join(path.read_text("utf-8") for path in sorted(CODE_DIR.glob("tests/**/*.py")) if path != Path(__file__))


class Made(NamedTuple):
    """A ``Finding(…)`` of the sources, as far as it is fixed there."""

    family: str
    categories: set[str]
    severities: set[str]
    # the fixed parts of the message
    message: list[str]


def findings_in(source: str) -> Iterator[Made]:
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        said = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Finding":
                identifier, category, severity = (texts(argument, said) for argument in call.args[:3])
                yield Made(
                    identifier[0].partition(":")[0],
                    {text for text in category if text in CATEGORIES},
                    {text for text in severity if text in SEVERITIES},
                    last_texts(call.args[3], said),
                )


def texts(argument: ast.expr, said: list[ast.Assign]) -> list[str]:
    """The fixed parts of an argument; of a variable, those of everything that is assigned to it."""
    values: list[ast.AST] = [argument]
    if isinstance(argument, ast.Name):
        values = [node.value for node in said if getattr(node.targets[0], "id", "") == argument.id]
    return [
        n.value for value in values for n in ast.walk(value) if isinstance(n, ast.Constant) and type(n.value) is str
    ]


def last_texts(argument: ast.expr, said: list[ast.Assign]) -> list[str]:
    """As ``texts``, but of a variable only what was assigned last before it is used."""
    before = [node for node in said if node.lineno <= argument.lineno and texts(argument, [node])]
    return texts(argument, sorted(before, key=lambda node: node.lineno)[-1:])


MADE = [made for path in SOURCES for made in findings_in(path.read_text("utf-8"))]


def test_every_finding_that_the_code_can_make_is_explained_and_no_other() -> None:
    assert len(MADE) > 30
    assert {made.family for made in MADE} == ENTRIES.keys()
    assert len(ENTRIES) == len(EXPLANATIONS), "each once"


def test_every_finding_has_a_test_that_names_it() -> None:
    assert {family for family in ENTRIES if f'"{family}' not in TESTS} == set()


@pytest.mark.parametrize("entry", EXPLANATIONS, ids=lambda entry: entry.family)
def test_category_severity_and_message_are_those_of_the_code(entry: Explanation) -> None:
    made = [one for one in MADE if one.family == entry.family]
    categories = set().union(*(one.categories for one in made))
    assert categories == {entry.category} or (entry.category is None and len(categories) > 1)
    # A severity that a function decides is held by ``BaseDir.report``.
    assert set().union(*(one.severities for one in made)) <= entry.severities
    parts = [part.strip() for one in made for part in one.message if len(part) > 7]
    assert not parts or any(part in entry.message for part in parts), parts


@pytest.mark.parametrize("entry", EXPLANATIONS, ids=lambda entry: entry.family)
def test_an_explanation_is_whole(entry: Explanation) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+(:\w+)?", entry.id)
    assert entry.category in (None, *CATEGORIES)
    assert entry.severities <= set(SEVERITIES)
    for text in (entry.meaning, entry.why):
        assert text[0].isupper() or text[0] == "`"
        assert text.endswith((".", ")"))
    assert entry.remedy
    assert entry.remedy.count("`") % 2 == 0
    assert "\n" not in "".join(filter(None, entry))


def test_the_worst_of_a_kind_decides(tmp_path: Path) -> None:
    """What ``BaseDir.report`` holds every document of every test against."""
    box = healthy(tmp_path)
    box.config(backup="off")
    (box.paths.backups / "b002/metadata.json").unlink()
    found = box.findings()["backup-stale"]
    assert found["severity"] == "info"
    assert ENTRIES["backup-stale"].severities == {"info", "warning"}


def test_a_finding_that_stands_is_told_with_since_when_and_its_own_command(tmp_path: Path) -> None:
    box = healthy(tmp_path / "it's here")
    for name in ("v001", "v002"):
        (box.paths.version(name) / "metadata.json").unlink()
    found = box.findings()["version-damaged:v002"]
    lines = run_tracker(box.base, "--explain", "version-damaged:v002").stdout.splitlines()
    entry = ENTRIES["version-damaged"]
    assert lines[0] == "version-damaged:vNNN: critical"
    for text in (entry.meaning, entry.why, entry.remedy):
        assert sum(line.endswith(f": {text}") for line in lines) == 1
    assert lines[-3:] == [
        f"STANDS NOW: version-damaged:v002, critical since {found['since']}",
        f"   [backup] {found['message']}",
        f"   Fix: {found['hint']}",
    ]
    assert [line for line in lines if "v001" in line] == []


def test_the_part_before_the_colon_tells_all_of_a_kind(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    for name in ("v001", "v002"):
        (box.paths.version(name) / "metadata.json").unlink()
    for identifier in ("version-damaged", "version-damaged:"):
        output = run_tracker(tmp_path, "--explain", identifier).stdout
        assert re.findall(r"^STANDS NOW: (\S+),", output, re.MULTILINE) == [
            "version-damaged:v001",
            "version-damaged:v002",
        ]


def test_a_finding_that_does_not_stand_says_so(tmp_path: Path) -> None:
    healthy(tmp_path)
    for identifier in ("model-fresh-start", "version-damaged:v001", "file-unreadable:models/a:b.json"):
        assert run_tracker(tmp_path, "--explain", identifier).stdout.splitlines()[-1] == "STANDS NOW: no"


def test_with_json_it_is_one_document(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    standing = box.findings()["config-missing"]
    result = run_tracker(tmp_path, "--explain", "config-missing", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    explanation = json.loads(result.stdout)
    assert explanation["standing"] == [standing]
    entry = ENTRIES["config-missing"]
    assert (explanation["meaning"], explanation["why"], explanation["remedy"]) == (
        entry.meaning,
        entry.why,
        entry.remedy,
    )
    assert set(explanation) == {
        *("id", "category", "severity", "otherwise", "message", "meaning", "why", "remedy", "standing"),
    }
    assert run_tracker(tmp_path, "--explain", "config-missing", "--json", "--exit-code").returncode == 3


@pytest.mark.parametrize("entry", EXPLANATIONS, ids=lambda entry: entry.family)
def test_every_explanation_can_be_asked_for(entry: Explanation) -> None:
    assert find_explanation(entry.family) is entry
    assert find_explanation(entry.id) is entry
    if ":" in entry.id:
        assert find_explanation(f"{entry.family}:any:thing") is entry
    else:
        with pytest.raises(UsageError):
            find_explanation(f"{entry.family}:any")


@pytest.mark.parametrize(
    ("identifier", "near"),
    [
        ("disklow", "disk-low"),
        ("disk", "disk-getting-low"),
        ("version", "version-damaged"),
        ("Version-Damaged:v003", "version-damaged"),
        ("disk-low:x", "disk-low"),
        ("qqqqqqqq", "--check names the id"),
        ("", "--check names the id"),
    ],
)
def test_an_unknown_id_is_a_usage_error_that_names_the_nearest(tmp_path: Path, identifier: str, near: str) -> None:
    result = run_tracker(tmp_path, "--explain", identifier)
    assert (result.returncode, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert error == f"error: there is no finding {identifier!r}"
    assert hint.startswith("hint: ")
    assert near in hint
