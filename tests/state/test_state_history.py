"""A row of the history for whatever matters, for nothing else, and all of them small for ever."""

import copy
import itertools
import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from guardrails.paths import CODE_DIR, Paths
from guardrails.report import database as state_database
from guardrails.report.database import NEWS, Database, Row, open_to_write
from guardrails.report.history import ask, record
from guardrails.report.parts import dump_parts, split
from guardrails.report.past import read_entries
from tests.state.building import SCRIPT, BaseDir, Json, healthy, run_tracker

DOCUMENT = json.loads((CODE_DIR / "tests/data/state_diff/training.json").read_text("utf-8"))
START = 1_800_000_000
HOUR, DAY = 3600, 86400


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return BaseDir(tmp_path).paths


def rows_of(paths: Paths) -> list[Row]:
    return ask(paths, Database.read_rows) or []


def changed(change: Callable[[Json], object], document: Json = DOCUMENT) -> Json:
    document = copy.deepcopy(document)
    change(document)
    return document


def with_free(gigabytes: float) -> Json:
    return changed(lambda d: d["disk_space"].update(available_gb=gigabytes))


def finding(identifier: str, severity: str = "warning", message: str = "something") -> Json:
    return {
        "id": identifier,
        "category": "daemon",
        "severity": severity,
        "message": message,
        "hint": "wait",
        "since": "2026-11-21T10:00:00Z",
    }


AT_ONCE: dict[str, Callable[[Json], object]] = {
    "a finding appears": lambda d: d["warning_details"].append(finding("queue-held")),
    "a finding is cleared": lambda d: d["warning_details"].pop(),
    "a finding gets worse": lambda d: d["warning_details"][0].update(severity="critical"),
    "the verdict": lambda d: d.update(verdict="critical"),
    "a new version": lambda d: d["versions"].append({**d["versions"][0], "id": "v005"}),
    "a version goes": lambda d: d["versions"].pop(0),
    "a version is described anew": lambda d: d["versions"][0].update(description="x"),
    "the config": lambda d: d["config"].update(max_length=512),
    "the model is gone": lambda d: d["current_model"].update(exists=False),
    "the model was trained": lambda d: d["current_model"].update(training_steps=300),
    "training's status": lambda d: d["training_status"].update(status="paused"),
    "the daemon": lambda d: d.update(daemon_running=False),
    "a file failed": lambda d: d["queue"].update(failed=2),
}
NEVER: dict[str, Callable[[Json], object]] = {
    "when": lambda d: d.update(last_updated="2027-01-01T00:00:00Z"),
    "the last update": lambda d: d["training_status"].update(last_update="2027-01-01T00:00:00Z"),
    "the time that is left": lambda d: d["training_status"].update(eta_seconds=1.5),
    "a little free space": lambda d: d["disk_space"].update(available_gb=41.9),
    "the share in use": lambda d: d["disk_space"].update(used_percent=94),
    "how busy the GPU is": lambda d: d["gpu"].update(utilization_percent=3, memory_used_gb=1.5),
    "since when": lambda d: d["warning_details"][0].update(since="2027-01-01T00:00:00Z"),
    "which of two is named first": lambda d: d["config"].update(warning="another"),
}
MOVING: dict[str, Callable[[Json], object]] = {
    "steps": lambda d: d["training_status"].update(current_step=300, run_step=75),
    "loss": lambda d: d["training_status"].update(loss=1.7),
    "free space": lambda d: d["disk_space"].update(available_gb=42.5),
    "a message": lambda d: d["warning_details"][0].update(message="2 data files failed to train"),
    "what is pending": lambda d: d["pending"].append("a stage"),
    "the trash": lambda d: d["storage"].update(trash_gb=0.5),
    "the GPU is gone": lambda d: d.update(gpu=None),
    "a section of a later release": lambda d: d.update(network={"up": True}),
}


@pytest.mark.parametrize("what", AT_ONCE)
def test_what_matters_gets_a_row_at_once(paths: Paths, what: str) -> None:
    record(paths, DOCUMENT, "v004", START)
    record(paths, changed(AT_ONCE[what]), "v004", START + 1)
    assert [row.at for row in rows_of(paths)] == [START, START + 1]


def test_another_version_as_the_model_gets_a_row_at_once(paths: Paths) -> None:
    record(paths, DOCUMENT, "v004", START)
    record(paths, DOCUMENT, "v002", START)
    record(paths, DOCUMENT, None, START)
    assert [row.version for row in rows_of(paths)] == ["v004", "v002", None]


@pytest.mark.parametrize("what", NEVER)
def test_what_is_new_in_every_report_gets_none(paths: Paths, what: str) -> None:
    record(paths, DOCUMENT, "v004", START)
    for seconds in (1, HOUR, DAY):
        record(paths, changed(NEVER[what]), "v004", START + seconds)
    assert len(rows_of(paths)) == 1


@pytest.mark.parametrize("what", MOVING)
def test_what_moves_all_day_gets_a_row_every_five_minutes_at_most(paths: Paths, what: str) -> None:
    record(paths, DOCUMENT, "v004", START)
    record(paths, changed(MOVING[what]), "v004", START + 299)
    assert len(rows_of(paths)) == 1
    record(paths, changed(MOVING[what]), "v004", START + 300)
    record(paths, changed(MOVING[what]), "v004", START + HOUR)
    assert [row.at for row in rows_of(paths)] == [START, START + 300]


def test_free_space_that_goes_little_by_little_gets_a_row_a_gigabyte(paths: Paths) -> None:
    for tenth in range(31):
        record(paths, with_free(round(600 - tenth / 10, 2)), "v004", START + 600 * tenth)
    assert [entry.free_gb for entry in read_entries(paths, None)] == [600, 599, 598, 597]


def test_on_a_small_disk_less_is_a_row(paths: Paths) -> None:
    for number, free in enumerate((4.0, 3.9, 3.8, 3.7)):
        record(paths, with_free(free), "v004", START + 600 * number)
    assert [entry.free_gb for entry in read_entries(paths, None)] == [4.0, 3.8]


def test_a_report_that_was_overtaken_is_no_step_back(paths: Paths) -> None:
    record(paths, DOCUMENT, "v004", START)
    record(paths, changed(AT_ONCE["the daemon"]), "v004", START + 10)
    record(paths, DOCUMENT, "v004", START + 9)
    assert len(rows_of(paths)) == 2
    # The clock was moved back, and what is now is worth a row again.
    record(paths, DOCUMENT, "v004", START - HOUR)
    assert [row.at for row in rows_of(paths)] == [START, START + 10, START - HOUR]


def test_without_news_no_database_is_opened(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.report()
    assert len(rows_of(box.paths)) == 1
    for form in ("--json", "--warnings"):
        result = subprocess.run(
            [sys.executable, "-X", "importtime", SCRIPT, form, "--base-dir", box.base],
            capture_output=True,
            text=True,
            check=True,
        )
        imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
        assert "guardrails.report.history" in imported
        assert not {"sqlite3", "zlib", "guardrails.report.database"} & imported
    assert len(rows_of(box.paths)) == 1


def test_every_report_writes_its_row(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    for number, form in enumerate(([], ["--json"], ["--check"], ["--warnings"], ["--history"], ["--diff"]), start=1):
        box.config(max_length=number)
        assert run_tracker(tmp_path, *form).returncode == 0
        assert len(rows_of(box.paths)) == number


def test_a_folder_that_is_no_base_dir_gets_no_history(tmp_path: Path) -> None:
    assert run_tracker(tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == [".system_state.json"]
    (tmp_path / "config.json").write_text("{}")
    assert run_tracker(tmp_path).returncode == 0
    assert (tmp_path / "status/state_history.db").is_file()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema_version": 1, "stat": [], "at": "x"}', '{"schema_version": 9}']
)
def test_the_cache_may_be_lost_or_torn(paths: Paths, content: str) -> None:
    record(paths, DOCUMENT, "v004", START)
    paths.state_history_last.write_text(content)
    record(paths, DOCUMENT, "v004", START + 1)
    record(paths, changed(AT_ONCE["the daemon"]), "v004", START + 2)
    assert [row.at for row in rows_of(paths)] == [START, START + 2]
    assert json.loads(paths.state_history_last.read_text())["at"] == START + 2


def test_a_history_that_was_deleted_begins_anew(paths: Paths) -> None:
    record(paths, DOCUMENT, "v004", START)
    paths.state_history.unlink()
    record(paths, DOCUMENT, "v004", START + 1)
    assert [row.at for row in rows_of(paths)] == [START + 1]


def some_documents(count: int) -> Iterator[tuple[Json, str | None]]:
    """Documents in which all kinds of things come, change and go."""
    chance = random.Random(7)
    document, version = copy.deepcopy(DOCUMENT), "v004"
    for number in range(count):
        kind = chance.randrange(6)
        if kind == 0:
            document["versions"].append({**DOCUMENT["versions"][0], "id": f"v{number + 5:03d}"})
            version = document["versions"][-1]["id"]
        elif kind == 1 and len(document["versions"]) > 1:
            document["versions"].pop(chance.randrange(len(document["versions"])))
        elif kind == 2:
            known = {detail["id"] for detail in document["warning_details"]}
            identifier = chance.choice(["queue-held", "backup-stale", "version-damaged:v001"])
            if identifier in known:
                document["warning_details"] = [d for d in document["warning_details"] if d["id"] != identifier]
            else:
                document["warning_details"].append(finding(identifier, message=f"number {number}"))
            document["verdict"] = chance.choice(["ok", "warning", "critical"])
        elif kind == 3:
            document["config"]["max_length"] = chance.choice([512, 1024])
        document["training_status"]["current_step"] += chance.randrange(3)
        yield copy.deepcopy(document), chance.choice([version, "v001", None])


def test_every_row_that_is_left_gives_its_whole_document_again(paths: Paths) -> None:
    written: dict[int, dict[str, str]] = {}
    with open_to_write(paths.state_history) as database:
        for number, (document, version) in enumerate(some_documents(1500)):
            at = START + number * 1200 + number % 7
            texts = dump_parts({**split(document), "version": version})
            # Years pass, so that most rows are thinned out at last.
            at += number // 300 * 40 * DAY
            database.add(at, document["verdict"], version, texts, at)
            written[number + 1] = texts
        rows = database.read_rows()
        assert 100 < len(rows) < 1500
        assert rows[-1].id == 1500
        for row in rows:
            assert database.read_texts(row) == written[row.id]
        # Read in one pass, they differ by just what differs.
        steps = list(database.read_steps(rows, ("config",)))
        for before, step in itertools.pairwise(steps):
            old, new = written[before.row.id], written[step.row.id]
            expected = {n: (old.get(n), new.get(n)) for n in old.keys() | new.keys() if old.get(n) != new.get(n)}
            assert step.differences == expected
            assert json.dumps(step.parts["config"], sort_keys=True, separators=(",", ":")) == new["config"]
    with closing(sqlite3.connect(paths.state_history)) as connection:
        # Nothing is kept that no row shows.
        lost = connection.execute(
            "SELECT count(*) FROM parts WHERE removed IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM history WHERE id >= added AND id < removed)"
        ).fetchone()
        assert lost == (0,)


def simulate(paths: Paths, times: Iterator[tuple[int, int]]) -> list[int]:
    """Busy years: a row at each time, with so many versions by then. What each cost, in thousands of sqlite's steps.

    The daemon trains a file a day, the steps move in every row, and now and then the verdict changes.
    """
    costs: list[int] = []
    ticks: list[None] = []
    texts = dump_parts(split(DOCUMENT))
    versions = 0
    with open_to_write(paths.state_history) as database:
        database._connection.set_progress_handler(lambda: ticks.append(None), 1000)
        for at, wanted in times:
            new = {} if costs else {name: text for name, text in texts.items() if name != "verdict"}
            steps = 40 * len(costs)
            new |= dump_parts(
                {
                    "training_status": {**DOCUMENT["training_status"], "current_step": steps, "loss": 1 / (steps + 1)},
                    "disk_space": {**DOCUMENT["disk_space"], "available_gb": 600 + at // 100 % 97},
                }
            )
            while versions < wanted:
                versions += 1
                new |= dump_parts(
                    {
                        f"versions/v{versions:03d}": {**DOCUMENT["versions"][1], "training_steps": 75 * versions},
                        "current_model": {**DOCUMENT["current_model"], "training_steps": 75 * versions},
                        "queue": {**DOCUMENT["queue"], "completed": versions},
                        "storage": {**DOCUMENT["storage"], "versions_gb": round(versions * 0.16, 2)},
                    }
                )
            gone = [name for name in new if name in texts] if costs else []
            before = len(ticks)
            database.add_changes(at, "warning" if at // HOUR % 50 == 0 else "ok", f"v{versions:03d}", gone, new, at)
            costs.append(len(ticks) - before)
    return costs


def decade(*spacings: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Ten years of rows. Each spacing is (for so many of the last days, seconds from row to row), the longest first.

    What is to be thinned to a row an hour or a day by then may begin with fewer.
    """
    end = START + 3653 * DAY
    at = START
    while at < end:
        yield at, (at - START) // DAY + 1
        at += [seconds for days, seconds in spacings if end - at <= days * DAY][-1]


def check_decade(paths: Paths, costs: list[int]) -> None:
    rows = rows_of(paths)
    size = paths.state_history.stat().st_size
    assert size < 50 << 20, size
    days = {row.at // DAY for row in rows}
    assert len(days) in (3653, 3654), "a row a day for ever"
    assert {row.version for row in rows} >= {f"v{number:03d}" for number in range(1, 3654)}
    end = rows[-1].at
    hours = {row.at // HOUR for row in rows if row.at > end - 89 * DAY}
    assert len(hours) >= 89 * 24, "a row an hour for ninety days"
    assert sum(row.at > end - 6 * DAY for row in rows) == 6 * 288, "every row for a week"
    # However many rows and versions there are, in thousands of steps.
    assert sum(costs[-2000:]) / 2000 < 1
    assert max(costs) < 20, "thinning is done bit by bit"


def test_a_decade_of_busy_use_is_under_50_mb_and_thinned_bit_by_bit(paths: Paths) -> None:
    costs = simulate(paths, decade((3653, 8 * HOUR), (100, HOUR // 2), (9, 300)))
    assert len(costs) > 15_000
    check_decade(paths, costs)
    entries = read_entries(paths, None)
    assert len(entries) == len(rows_of(paths))
    assert entries[-1].row.version == "v3653"


@pytest.mark.faults
def test_a_decade_with_a_row_every_five_minutes_throughout_is_under_50_mb(paths: Paths) -> None:
    costs = simulate(paths, decade((3653, 300)))
    assert len(costs) > 1_000_000
    check_decade(paths, costs)


def test_changes_of_verdict_version_and_config_are_never_thinned_out(paths: Paths) -> None:
    news = []
    with open_to_write(paths.state_history) as database:
        for number, (document, version) in enumerate(some_documents(400)):
            at = START + number * 60
            database.add(at, document["verdict"], version, dump_parts(split(document)), at)
        news = [row.id for row in database.read_rows() if tier_of(database, row) == NEWS]
        later = START + 1000 * DAY
        database.add(later, document["verdict"], version, dump_parts(split(document)), later)
        rows = database.read_rows()
    assert 100 < len(news) < 400
    assert set(news) <= {row.id for row in rows}
    # Of the others the last of each day is left.
    assert len(rows) <= len(news) + 3


def tier_of(database: Database, row: Row) -> int:
    found = database._execute("SELECT tier FROM history WHERE id = ?", (row.id,)).fetchone()
    return int(found[0])


def test_a_verdict_that_flickers_for_years_does_not_fill_the_disk(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_database, "MOST_BYTES", 1 << 20)
    texts = dump_parts(split(DOCUMENT))
    with open_to_write(paths.state_history) as database:
        at = START
        for number in range(20_000):
            at += 3600
            new = texts if number == 0 else {}
            database.add_changes(at, "ok" if number % 2 else "warning", "v004", [], new, at)
        assert database.count_bytes() <= 1 << 20
        rows = database.read_rows()
    assert paths.state_history.stat().st_size < 3 << 20
    assert rows[-1].id == 20_000
    newest = [row for row in rows if row.at > at - 30 * DAY]
    assert len(newest) == 30 * 24, "the oldest go first"
    assert len({row.at // DAY for row in rows}) >= 20_000 // 24, "and a row a day stays"


def test_clocks_that_jump_lose_no_row_of_their_week(paths: Paths) -> None:
    with open_to_write(paths.state_history) as database:
        for at in (START, START + 60, START - 400 * DAY, START + 120, START + 130):
            texts = dump_parts({**split(DOCUMENT), "daemon_running": at})
            database.add_changes(at, "ok", "v004", ["daemon_running"], {"daemon_running": texts["daemon_running"]}, at)
        assert len(database.read_rows()) == 5
