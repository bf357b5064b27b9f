"""What --history and --diff show, and what --check says of what changed since all was well."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardrails.errors import UsageError
from guardrails.paths import CODE_DIR, Paths
from guardrails.report.diff import Change, explain, find_differences, summarize
from guardrails.report.history import record
from guardrails.report.history_text import diff_lines, history_lines, sparkline
from guardrails.report.moments import parse_since, parse_time
from guardrails.report.parts import dump_parts, split
from guardrails.report.past import choose_sides, find_words_since_healthy, read_entries
from tests.state.building import SCRIPT, BaseDir, Json, healthy
from tests.state.test_state_report import on_terminal
from tests.warm import Done, Warm

FROZEN = CODE_DIR / "tests/data/state_diff"
DOCUMENT: Json = json.loads((FROZEN / "training.json").read_text("utf-8"))
NOW = 1_600_000_000.0
DAY = 86400


def diff(old: Json, new: Json) -> list[Change]:
    return explain(find_differences(dump_parts(split(old)), dump_parts(split(new))))


def changed(change: Callable[[Json], object], document: Json = DOCUMENT) -> Json:
    document = copy.deepcopy(document)
    change(document)
    return document


def detail(identifier: str, **values: str) -> Json:
    base = {"id": identifier, "category": "disk", "severity": "warning", "message": "m", "hint": "h", "since": "s"}
    return {**base, **values}


Track = Callable[..., Done]


@pytest.fixture
def track(warm: Warm) -> Track:
    """``state_tracker.py`` on a base dir, quickly."""
    return lambda base, *options: warm.run(Paths(base), "state_tracker.py", *options)


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a pipe, wherever the tests run."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def box(tmp_path: Path) -> BaseDir:
    """Three rows: healthy, then a version of another config, then a finding."""
    made = healthy(tmp_path)
    document = changed(lambda d: d.update(verdict="ok", warnings=[], warning_details=[]))
    record(made.paths, document, "v004", NOW - 3 * DAY)
    document["versions"].append({**document["versions"][0], "id": "v005", "description": "puzzles 2.jsonl"})
    document["config"]["max_length"] = 1024
    record(made.paths, document, "v005", NOW - 2 * DAY)
    document.update(verdict="warning", warning_details=[detail("disk-getting-low")])
    document["disk_space"]["available_gb"] = 20.5
    record(made.paths, document, "v005", NOW - 1 * DAY)
    return made


# --- the diff ---


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        (lambda d: d.update(last_updated="x"), [], []),
        (lambda d: d["training_status"].update(eta_seconds=1, last_update="x"), [], []),
        (lambda d: d["versions"].reverse(), [], []),
        (
            lambda d: d["config"].update(max_length=512),
            [("changed", "config.max_length", 2048, 512)],
            ["config max_length 2048 -> 512"],
        ),
        (lambda d: d["versions"].pop(1), [("removed", "versions/v002", ..., None)], ["v002 removed"]),
        (
            lambda d: d["versions"][2].update(size_gb=0.2),
            [("changed", "versions/v004.size_gb", 0.16, 0.2)],
            ["v004 size_gb 0.16 -> 0.2"],
        ),
        (
            lambda d: d["warning_details"].append(detail("queue-held")),
            [("added", "warning_details/queue-held", None, ...)],
            ["queue-held appeared"],
        ),
        (
            lambda d: d["warning_details"].pop(0),
            [("removed", "warning_details/queue-failed", ..., None)],
            ["queue-failed cleared"],
        ),
        (
            lambda d: d["warning_details"][1].update(severity="critical"),
            [("changed", "warning_details/disk-getting-low.severity", "warning", "critical")],
            ["disk-getting-low warning -> critical"],
        ),
        (lambda d: d.update(daemon_running=False), [("changed", "daemon_running", True, False)], ["daemon stopped"]),
        (
            lambda d: d["training_status"].update(status="paused"),
            [("changed", "training_status.status", "training", "paused")],
            ["training -> paused"],
        ),
        (
            lambda d: d["training_status"].update(current_step=250),
            [("changed", "training_status.current_step", 247, 250)],
            ["+3 steps"],
        ),
        (
            lambda d: d["disk_space"].update(available_gb=40.0),
            [("changed", "disk_space.available_gb", 41.27, 40.0)],
            ["-1.3 GB free"],
        ),
        (lambda d: d["queue"].update(failed=2), [("changed", "queue.failed", 1, 2)], ["failed 1 -> 2"]),
        (lambda d: d["pending"].append("x"), [("added", "pending", None, "x")], ["pending changed"]),
        (
            lambda d: d["config"]["locked_params"].remove("base_model"),
            [("removed", "config.locked_params", "base_model", None)],
            [],
        ),
        (lambda d: d.update(gpu=None), [("changed", "gpu", ..., None)], ["gpu changed"]),
        (
            lambda d: d["config"].update(exists=False, max_length=None),
            [("changed", "config.exists", True, False), ("changed", "config.max_length", 2048, None)],
            ["config gone"],
        ),
    ],
)
def test_a_diff_has_one_change_for_one_change(
    change: Callable[[Json], object], expected: list[tuple[Any, ...]], words: list[str]
) -> None:
    changes = diff(DOCUMENT, changed(change))
    assert len(changes) == len(expected)
    for one, (kind, path, old, new) in zip(changes, expected, strict=True):
        assert (one.kind, one.path) == (kind, path)
        assert old in (..., one.old)
        assert new in (..., one.new)
    if words:
        assert summarize(changes) == words


def test_dropping_the_first_of_many_versions_is_one_change() -> None:
    many = changed(lambda d: d.update(versions=[{**d["versions"][0], "id": f"v{n:03d}"} for n in range(1, 3000)]))
    changes = diff(many, changed(lambda d: d["versions"].pop(0), many))
    assert [(change.kind, change.part) for change in changes] == [("removed", "versions/v001")]
    assert summarize(diff(DOCUMENT, many))[0] == "v003 to v2999 saved (2996)"


def test_versions_that_are_published_saved_and_gone_back_to_are_told_apart() -> None:
    def words(old: str | None, new: str | None, *saved: str) -> list[str]:
        after = changed(lambda d: d["versions"].extend({**d["versions"][0], "id": name} for name in saved))
        texts = [dump_parts({**split(d), "version": v}) for d, v in ((DOCUMENT, old), (after, new))]
        return summarize(explain(find_differences(*texts)))

    assert words("v004", "v005", "v005") == ["v005 published"]
    assert words("v004", "v006", "v005", "v006") == ["v006 published", "v005 saved"]
    assert words("v004", "v004", "v005") == ["v005 saved"]
    assert words("v004", "v002") == ["model v004 -> v002"]
    assert words("v004", None) == ["model v004 -> none"]


def test_a_document_without_the_newer_keys_is_compared_by_what_it_has() -> None:
    guide = json.loads((FROZEN / "guide.json").read_text("utf-8"))
    for changes in (diff(guide, DOCUMENT), diff(DOCUMENT, guide)):
        parts = {change.list_name for change in changes}
        assert parts == {"current_model", "versions", "training_status", "warnings", "disk_space"}
    told = changed(
        lambda d: d.update(warnings=[[w["category"], w["message"]] for w in DOCUMENT["warning_details"]]), guide
    )
    assert not [change for change in diff(told, DOCUMENT) if change.list_name.startswith("warning")]


# --- times ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", NOW - 7200),
        ("7d", NOW - 7 * DAY),
        ("1w2d3h4m5s", NOW - 9 * DAY - 3 * 3600 - 245),
        ("2026-11-01", 1793491200),
        ("2026-11-01T10:00:00Z", 1793527200),
        ("2026-11-01T10:00", 1793527200),
        ("2026-11-01 10:00:00.5+02:00", 1793520000.5),
        ("2026", None),
        ("20261101", None),
        ("7x", None),
        ("-7d", None),
        ("", None),
        ("2026-13-01", None),
        ("2026-11-01T99", None),
        ("٣d", None),
    ],
)
def test_ages_and_times_are_read_as_people_write_them(text: str, seconds: float | None) -> None:
    assert parse_time(text, NOW) == seconds


@pytest.mark.parametrize("text", ["7x", "yesterday", "2099-01-01", ""])
def test_a_since_that_is_no_time_or_has_not_come_is_refused_before_anything_is_done(
    tmp_path: Path, text: str, track: Track
) -> None:
    healthy(tmp_path)
    result = track(tmp_path, "--history", "--since", text)
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: --since {text!r} is ")
    assert not (tmp_path / ".system_state.json").exists()
    with pytest.raises(UsageError):
        parse_since(text, NOW)


@pytest.mark.parametrize(
    "options",
    [
        ("--since", "7d"),
        ("--check", "--since", "7d"),
        ("7d",),
        ("--check", "7d"),
        ("--diff", "1", "2", "3"),
        ("--diff", "--since", "7d"),
    ],
)
def test_what_belongs_to_another_form_is_refused(tmp_path: Path, options: tuple[str, ...], track: Track) -> None:
    healthy(tmp_path)
    result = track(tmp_path, *options)
    assert (result.code, result.stdout) == (2, "")
    assert not (tmp_path / ".system_state.json").exists()


# --- the listing ---


def test_the_history_is_a_line_a_row_within_80_columns_in_any_locale(box: BaseDir) -> None:
    for variables in ({}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}):
        environment = {**os.environ, "TRAINING_BASE_DIR": str(box.base), **variables}
        environment.pop("COLUMNS", None)
        output = subprocess.run(
            [sys.executable, SCRIPT, "--history"], capture_output=True, text=True, check=True, env=environment
        ).stdout
        lines = output.splitlines()
        assert max(map(len, lines)) <= 80
        assert "\x1b" not in output
        assert output.isascii() == bool(variables)
        assert lines[0].startswith("disk use ")
        assert lines[1].startswith("steps ")
        heading = next(number for number, line in enumerate(lines) if line.startswith("row time"))
        rows = lines[heading + 1 :]
        assert len(rows) == 4
        assert re.match(r"  1 2020-09-10 12:26 ok +v004 +247 +41\.3 first row$", rows[0])
        assert re.match(r"  2 2020-09-11 12:26 ok +v005 +247 +41\.3 v005 published \+1$", rows[1])
        assert "disk-getting-low" in rows[2]


def test_the_history_as_json_has_the_same_rows(box: BaseDir, track: Track) -> None:
    rows = json.loads(track(box.base, "--history", "--json").stdout)
    assert [row["row"] for row in rows] == [1, 2, 3, 4]
    assert rows[1] == {
        "row": 2,
        "at": "2020-09-11T12:26:40Z",
        "verdict": "ok",
        "version": "v005",
        "training_steps": 247,
        "available_gb": 41.27,
        "changes": ["v005 published", "config max_length 2048 -> 1024"],
    }


def test_since_leaves_out_what_was_before_and_still_tells_what_changed(box: BaseDir) -> None:
    entries = read_entries(box.paths, NOW - 2 * DAY)
    assert [entry.row.id for entry in entries] == [2, 3]
    assert entries[0].changes == ["v005 published", "config max_length 2048 -> 1024"]
    assert [entry.row.id for entry in read_entries(box.paths, NOW)] == []
    assert list(history_lines([])) == ["no rows"]


def test_a_row_that_only_a_newer_release_made_says_so(tmp_path: Path) -> None:
    paths = BaseDir(tmp_path).paths
    record(paths, DOCUMENT, "v004", NOW)
    record(paths, changed(lambda d: d.update(network={"up": True})), "v004", NOW + 600)
    assert [entry.changes for entry in read_entries(paths, None)] == [["first row"], ["document of another release"]]


def test_a_folder_without_history_says_so(tmp_path: Path, track: Track) -> None:
    assert track(tmp_path, "--history").stdout == "no rows\n"
    assert track(tmp_path, "--history", "--json").stdout == "[]\n"
    result = track(tmp_path, "--diff")
    assert (result.code, "has no history yet" in result.stderr) == (1, True)


def test_what_a_name_holds_does_no_harm_to_a_line(box: BaseDir) -> None:
    document = changed(lambda d: d["config"].update(model_name="x\n\x1b[31m" + "y" * 200))
    record(box.paths, document, "v\n5", NOW)
    for entry in list(history_lines(read_entries(box.paths, None))):
        assert entry.isprintable()
        assert len(entry) <= 80


def test_a_terminal_gets_colour_unless_no_color_is_set(box: BaseDir) -> None:
    for form in ("--history", "--diff"):
        command = (sys.executable, SCRIPT, form, "--base-dir", box.base)
        assert "\x1b[" in on_terminal(*command, NO_COLOR="")
        assert "\x1b" not in on_terminal(*command, NO_COLOR="1")


def test_a_closed_pipe_ends_quietly(box: BaseDir) -> None:
    line = f"'{sys.executable}' '{SCRIPT}' --history --base-dir '{box.base}' | grep -q disk"
    assert subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stderr == ""


def test_a_sparkline_shows_what_held_over_time() -> None:
    assert sparkline([(0, 0), (50, 7), (100, 7)], 4) == "▁███"
    assert sparkline([(0, 5), (100, 5.2)], 3) == "▁▁▂", "what moves a little looks like it"
    assert sparkline([(7, 5)], 3) == "▁▁▁"
    assert len(sparkline([(0, 1), (1, 2), (10**9, 3)], 44)) == 44


# --- --diff ---


def test_without_arguments_the_last_change_is_shown(box: BaseDir, track: Track) -> None:
    track(box.base)
    (box.paths.queue_folder("failed") / "bad.jsonl").touch()
    for _ in range(2):
        lines = track(box.base, "--diff").stdout.splitlines()
        assert lines[0].startswith("from row 4, ")
        assert lines[1].startswith("to   now, ")
        assert "~ queue.failed: 0 -> 1 (+1)" in lines
        assert any(line.startswith("+ warning_details/queue-failed: [daemon] 1 data file failed") for line in lines)


@pytest.mark.parametrize(
    "sides", [("1", "2"), ("#1", "#2"), ("2020-09-10T12:26:40Z", "2020-09-12T12:26:39Z"), ("2020-01-01", "2")]
)
def test_rows_are_named_by_number_or_by_time(box: BaseDir, sides: tuple[str, str], track: Track) -> None:
    assert track(box.base, "--diff", *sides).stdout.splitlines() == [
        "from row 1, 2020-09-10T12:26:40Z",
        "to   row 2, 2020-09-11T12:26:40Z",
        "~ version: v004 -> v005",
        "+ versions/v005: puzzles 2.jsonl (2026-11-19, 75 steps, 0.16 GB)",
        "~ config.max_length: 2048 -> 1024 (-1024)",
    ]


def test_an_age_is_what_held_then(tmp_path: Path, track: Track) -> None:
    box = healthy(tmp_path)
    first = box.report(NOW)["last_updated"]
    document = json.loads(track(tmp_path, "--diff", "0s", "now", "--json").stdout)
    assert document["from"]["row"] is not None
    assert document["to"] == {"at": document["to"]["at"], "row": None, "file": None}
    # Before the first row nothing is known: the first has to do.
    document = json.loads(track(tmp_path, "--diff", "5w", "--json").stdout)
    assert document["from"] == {"at": first, "row": 1, "file": None}


def test_a_diff_as_json_has_every_change_with_old_and_new(box: BaseDir, track: Track) -> None:
    document = json.loads(track(box.base, "--diff", "1", "2", "--json").stdout)
    assert document["changes"] == [
        {"change": "changed", "path": "version", "old": "v004", "new": "v005"},
        {
            "change": "added",
            "path": "versions/v005",
            "old": None,
            "new": {"date": "2026-11-19", "description": "puzzles 2.jsonl", "size_gb": 0.16, "training_steps": 75},
        },
        {"change": "changed", "path": "config.max_length", "old": 2048, "new": 1024},
    ]


def test_equal_sides_say_so(box: BaseDir, track: Track) -> None:
    assert track(box.base, "--diff", "2", "2").stdout.splitlines()[2:] == ["no differences"]


@pytest.mark.parametrize("frozen", sorted(path.name for path in FROZEN.iterdir()))
def test_documents_that_were_saved_load_for_ever(tmp_path: Path, frozen: str, track: Track) -> None:
    healthy(tmp_path)
    path = FROZEN / frozen
    result = track(tmp_path, "--diff", str(path), str(path))
    assert result.stdout.splitlines()[2:] == ["no differences"]
    assert result.stderr == ""
    lines = track(tmp_path, "--diff", str(path)).stdout.splitlines()
    assert lines[0] == f"from {path}, {json.loads(path.read_text('utf-8'))['last_updated']}"
    assert "~ daemon_running: yes -> no" in lines or frozen == "critical.json"
    assert any(line.startswith("~ config.base_model: /models/qwen3-8b -> base_models/tiny") for line in lines)


def test_a_document_that_is_saved_now_can_be_compared_with_later(tmp_path: Path, track: Track) -> None:
    box = healthy(tmp_path)
    (tmp_path / "saved 1.json").write_text(track(tmp_path, "--json").stdout)
    box.version(3)
    lines = track(tmp_path, "--diff", "saved 1.json").stdout.splitlines()
    assert lines[0].startswith("from saved 1.json, ")
    assert any(line.startswith("+ versions/v003: ") for line in lines)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", 30),
        ("[]", 30),
        ("{}", 2),
        ('{"schema_version": 9, "current_model": {}}', 30),
        ('{"current_model": {}, "versions": 7}', 2),
        ('{"current_model": {}, "versions": [{}]}', 2),
        ('{"current_model": {}, "warnings": [1]}', 2),
    ],
)
def test_a_file_that_is_no_document_is_refused_by_name(tmp_path: Path, content: str, code: int, track: Track) -> None:
    healthy(tmp_path)
    (tmp_path / "other.json").write_text(content)
    result = track(tmp_path, "--diff", "other.json")
    assert (result.code, result.stdout, "other.json" in result.stderr) == (code, "", True)


@pytest.mark.parametrize("side", ["99", "#0", "nonsense", "7x"])
def test_what_names_nothing_is_refused(box: BaseDir, side: str, track: Track) -> None:
    result = track(box.base, "--diff", side)
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")


# --- --check ---


def test_each_warning_says_what_changed_since_all_was_well(tmp_path: Path, track: Track) -> None:
    box = healthy(tmp_path)
    document = json.loads(box.paths.system_state.read_text()) if box.report() else {}
    document = changed(lambda d: d.update(verdict="ok", warnings=[], warning_details=[]), document)
    box.paths.state_history.unlink()
    record(box.paths, document, "v002", NOW)
    box.version(3)
    box.publish("v003")
    box.config(max_length=1024)
    box.paths.emergency_stop.touch()
    lines = track(tmp_path, "--check").stdout.splitlines()
    details = json.loads(box.paths.system_state.read_text())["warning_details"]
    serious = [detail for detail in details if detail["severity"] != "info"]
    since = [line.strip() for line in lines if line.startswith("     Since: ")]
    told = "changed since all was well: v003 published, config max_length 2048 -> 1024"
    assert since == [f"Since: {detail['since']}; {told}" for detail in serious]
    assert len(since) > 2
    assert all("Fix: " in lines[lines.index(f"     {line}") - 1] for line in since)


def test_where_nothing_was_ever_well_nothing_is_said_of_it(tmp_path: Path, track: Track) -> None:
    box = healthy(tmp_path)
    assert "Since:" not in track(tmp_path, "--check").stdout
    assert find_words_since_healthy(box.paths, box.report()) == []


def test_a_damaged_history_takes_nothing_from_the_report(box: BaseDir, track: Track) -> None:
    track(box.base)
    content = box.paths.state_history.read_bytes()
    box.paths.state_history.write_bytes(content[:4096] + bytes(len(content) - 4096))
    stat = box.paths.state_history.stat()
    last = json.loads(box.paths.state_history_last.read_text())
    last["stat"][0] = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
    box.write(box.paths.state_history_last, last)
    result = track(box.base, "--check")
    assert (result.code, result.stderr) == (0, "")
    assert "WARNINGS:" in result.stdout
    assert "history-damaged" in box.findings()


# --- the guide ---


def days_of_the_guide(paths: Paths) -> None:
    """What the guide's example went through."""
    document = changed(
        lambda d: d.update(
            verdict="ok",
            warning_details=[],
            versions=d["versions"][:1],
            gpu=None,
            queue=dict.fromkeys(d["queue"], 0),
            disk_space={"available_gb": 838.41, "used_percent": 10, "total_gb": 930.44},
        )
    )
    training, model, queue = document["training_status"], document["current_model"], document["queue"]
    training.update(status="idle", current_step=75)
    model.update(training_steps=75)

    def write(at: str, version: str) -> None:
        record(paths, document, version, parse_time(at, NOW) or NOW)

    write("2026-11-19T08:00:00Z", "v001")
    training.update(status="training", current_step=81)
    queue.update(processing=1)
    write("2026-11-19T14:20:00Z", "v001")
    document["versions"].append({**DOCUMENT["versions"][1], "description": "puzzles.jsonl"})
    training.update(status="idle", current_step=150)
    model.update(training_steps=150)
    queue.update(processing=0, completed=1)
    document["disk_space"].update(available_gb=837.9)
    write("2026-11-19T15:05:00Z", "v002")
    message = "locked max_length was changed from 2048 to 1024"
    lock = detail("config-lock-changed:max_length", category="config", severity="critical", message=message)
    document.update(verdict="critical", warning_details=[lock])
    document["config"].update(max_length=1024)
    write("2026-11-20T09:40:00Z", "v002")
    document.update(verdict="ok", warning_details=[])
    document["config"].update(max_length=2048)
    write("2026-11-20T10:02:00Z", "v002")
    document["disk_space"].update(available_gb=641.2)
    write("2026-11-21T03:00:00Z", "v002")
    training.update(current_step=75)
    model.update(training_steps=75)
    write("2026-11-21T10:00:00Z", "v001")


def test_the_history_and_the_diff_in_the_guide_are_those_that_are_printed(tmp_path: Path) -> None:
    paths = BaseDir(tmp_path).paths
    days_of_the_guide(paths)
    guide = (CODE_DIR / "docs/STATE_TRACKER_GUIDE.md").read_text("utf-8")
    listed = "\n".join(history_lines(read_entries(paths, None)))
    first, second = choose_sides(paths, DOCUMENT, ("3", "4"), NOW)
    compared = "\n".join(diff_lines(first, second, explain(find_differences(first.texts, second.texts))))
    for command, output in (("--history --since 2026-11-19", listed), ("--diff 3 4", compared)):
        assert f"```\n$ python3 state_tracker.py {command}\n{output}\n```\n" in guide, output
