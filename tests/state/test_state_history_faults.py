"""Whatever becomes of the history, the report is made; and nothing but damage of the file itself loses a row."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from guardrails.errors import DamagedStateError
from guardrails.locks import FileLock
from guardrails.paths import CODE_DIR, Paths
from guardrails.report import database as state_database
from guardrails.report import history as state_history
from guardrails.report.database import Database, open_to_write
from guardrails.report.history import ask, record
from guardrails.report.parts import dump_parts, split
from guardrails.report.past import read_entries
from guardrails.report.schema import SystemState
from tests.disks import as_root, mounted, read_only
from tests.processes import count_calls, run_killed, run_python, run_unprivileged
from tests.state.building import SCRIPT, BaseDir, healthy, run_tracker

FROZEN = CODE_DIR / "tests/data/state_diff/training.json"
START = 1_800_000_000
# Records a row for each number of steps, and says so once it is there.
RECORD = f"""
import json, sys
from pathlib import Path
from guardrails.errors import BusyError
from guardrails.paths import Paths
from guardrails.report.history import record
document = json.loads(Path({str(FROZEN)!r}).read_text("utf-8"))
for steps in map(int, sys.argv[2:]):
    document["current_model"]["training_steps"] = steps
    while True:
        try:
            record(Paths(Path(sys.argv[1])), document, "v004", {START})
            break
        except BusyError:
            pass
    print(steps, flush=True)
"""
CALLS = ("pwrite64", "write", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "fallocate")


def steps_of(paths: Paths) -> list[int]:
    """What each row says the model has, oldest first; the file must be whole."""
    with closing(sqlite3.connect(paths.state_history)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def read(database: Database) -> list[int]:
        return [json.loads(database.read_texts(row)["current_model"])["training_steps"] for row in database.read_rows()]

    assert not list(paths.status.glob("*.damaged*"))
    return ask(paths, read) or []


def test_twenty_writers_at_once_lose_no_row(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    numbers = [[str(100 * writer + row) for row in range(1, 6)] for writer in range(20)]
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda own: run_python(RECORD, tmp_path, *own), numbers))
    assert [result.stderr for result in results] == [""] * 20
    assert sorted(steps_of(box.paths)) == sorted(int(number) for own in numbers for number in own)


def test_twenty_reports_at_once_write_one_row_and_none_of_them_minds(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: run_tracker(tmp_path, "--json"), range(20)))
    for result in results:
        ids = [detail["id"] for detail in json.loads(result.stdout)["warning_details"]]
        assert not [identifier for identifier in ids if identifier.startswith("history")]
    assert len(steps_of(box.paths)) == 1


@pytest.mark.parametrize("rows_before", [0, 3])
def test_killed_at_any_call_of_a_write_every_row_that_was_there_is_there(tmp_path: Path, rows_before: int) -> None:
    kill_at_calls(tmp_path, rows_before, sample=6)


@pytest.mark.faults
@pytest.mark.parametrize("rows_before", [0, 3])
def test_killed_at_every_call_of_a_write_every_row_that_was_there_is_there(tmp_path: Path, rows_before: int) -> None:
    kill_at_calls(tmp_path, rows_before, sample=None)


def kill_at_calls(folder: Path, rows_before: int, sample: int | None) -> None:
    prepared = BaseDir(folder / "prepared")
    before = list(range(1, rows_before + 1))
    assert not run_python(RECORD, prepared.base, *map(str, before)).stderr
    shutil.copytree(prepared.base, folder / "counted")
    counts = count_calls(RECORD, folder / "counted", "9", calls=CALLS, log=folder / "log")
    points = [(call, number) for call, count in counts.items() for number in range(1, count + 1)]
    assert len(points) > 10
    for call, number in random.Random(1).sample(points, sample or len(points)):
        base = folder / f"{call}-{number}"
        shutil.copytree(prepared.base, base)
        run_killed(RECORD, base, "9", call=call, number=number)
        paths = Paths(base)
        if paths.state_history.exists():
            assert steps_of(paths) in (before, [*before, 9])
        assert run_python(RECORD, base, "9", "10").stdout == "9\n10\n"
        assert steps_of(paths) == [*before, 9, 10]
        assert not list(paths.status.glob("*.tmp-*"))


def test_writers_that_are_killed_at_random_lose_no_row_that_they_had_written(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(CODE_DIR)}
    confirmed: set[int] = set()
    chance = random.Random(3)
    for start in (1000, 2000):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", RECORD, tmp_path, *(str(start + 100 * n + row) for row in range(90))],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for n in range(5)
        ]
        # They are killed at work, not at their start.
        assert writers[0].stdout
        confirmed.add(int(writers[0].stdout.readline()))
        for writer in chance.sample(writers, len(writers)):
            time.sleep(chance.random() / 10)
            writer.send_signal(signal.SIGKILL)
        outputs = [writer.communicate()[0] for writer in writers]
        confirmed |= {int(line) for output in outputs for line in output.splitlines()}
        found = steps_of(box.paths)
        assert confirmed <= set(found)
        assert len(found) == len(set(found))
    assert run_python(RECORD, tmp_path, "9").stdout == "9\n"
    assert steps_of(box.paths)[-1] == 9


def damage(content: bytes, what: str) -> bytes:
    if what == "torn":
        return content[: len(content) // 2]
    if what == "a page of zeros":
        return content[:4096] + bytes(4096) + content[8192:]
    if what == "another database":
        return content.replace(b"history", b"hystery").replace(b"parts", b"purts")
    return b"no database at all, and long enough to be taken for one" * 100


@pytest.mark.parametrize("what", ["torn", "a page of zeros", "another database", "text"])
def test_a_damaged_history_is_set_aside_and_begun_anew_with_a_warning(tmp_path: Path, what: str) -> None:
    box = healthy(tmp_path)
    box.report()
    box.config(max_length=1024)
    box.report()
    database = box.paths.state_history
    damaged = damage(database.read_bytes(), what)
    database.write_bytes(damaged)
    box.config(max_length=512)
    document = box.report()
    found = next(d for d in document["warning_details"] if d["id"] == "history-damaged")
    assert (found["category"], found["severity"]) == ("disk", "warning")
    assert "history-unwritable" not in [d["id"] for d in document["warning_details"]]
    assert (tmp_path / "status/state_history.db.damaged").read_bytes() == damaged
    # The new one begins with this report, warning and all.
    entries = read_entries(box.paths, None)
    assert [entry.changes for entry in entries] == [["first row"]]
    SystemState.model_validate_json(box.paths.system_state.read_bytes())
    subprocess.run(["bash", "-c", found["hint"]], check=True)
    assert "history-damaged" not in box.findings()
    assert [entry.changes for entry in read_entries(box.paths, None)][1:] == [["history-damaged cleared"]]


def test_damage_that_a_look_back_meets_is_set_aside_and_said(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    for form in ("--history", "--diff"):
        box.report()
        damaged = damage(box.paths.state_history.read_bytes(), "a page of zeros")
        box.paths.state_history.write_bytes(damaged)
        # As after a bad disk, the stamps tell nothing.
        stat = box.paths.state_history.stat()
        last = json.loads(box.paths.state_history_last.read_text())
        last["stat"][0] = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
        box.write(box.paths.state_history_last, last)
        result = run_tracker(tmp_path, form)
        assert result.returncode == 0, result.stderr
        assert result.stderr.startswith("note: status/state_history.db was damaged; it was set aside")
        assert (tmp_path / "status/state_history.db.damaged").exists()
        assert len(read_entries(box.paths, None)) == 1


def test_what_was_set_aside_can_still_be_read_from(tmp_path: Path) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("needs the sqlite3 shell")
    paths = BaseDir(tmp_path).paths
    document = json.loads(FROZEN.read_text("utf-8"))
    with open_to_write(paths.state_history) as database:
        for steps in range(400):
            document["current_model"]["training_steps"] = steps
            database.add(START, "ok", "v004", dump_parts(split(document)), START)
    content = paths.state_history.read_bytes()
    paths.state_history.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(DamagedStateError, match="set aside"):
        read_entries(paths, None)
    aside = tmp_path / "status/state_history.db.damaged"
    done = subprocess.run(["sqlite3", aside, ".dump"], capture_output=True, text=True, check=False)
    assert done.stdout.count("INSERT INTO history") > 100


def test_an_empty_file_and_a_folder_in_its_place_are_no_obstacle(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.paths.state_history.touch()
    assert "history-damaged" not in box.findings()
    assert len(read_entries(box.paths, None)) == 1
    box.paths.state_history.unlink()
    (box.paths.state_history / "inside").mkdir(parents=True)
    assert "history-damaged" in box.findings()
    assert len(read_entries(box.paths, None)) == 1


def test_a_history_of_a_newer_toolkit_is_left_untouched(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.report()
    with closing(sqlite3.connect(box.paths.state_history)) as connection:
        connection.execute("PRAGMA user_version = 2")
    content = box.paths.state_history.read_bytes()
    found = box.findings()["history-unwritable"]
    assert (found["severity"], "schema_version 2" in found["message"]) == ("warning", True)
    assert box.paths.state_history.read_bytes() == content
    result = run_tracker(tmp_path, "--history")
    assert result.returncode == 30
    assert "update the toolkit" in result.stderr


def test_random_damage_ends_in_a_report_and_never_in_a_traceback(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    document = json.loads(FROZEN.read_text("utf-8"))
    with open_to_write(box.paths.state_history) as database:
        for steps in range(30):
            document["current_model"]["training_steps"] = steps
            database.add(START, "ok", "v004", dump_parts(split(document)), START)
    good = box.paths.state_history.read_bytes()
    chance = random.Random(5)
    outcomes = set()
    for round_number in range(60):
        content = bytearray(good)
        for _ in range(chance.choice([1, 3, 50])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        box.paths.state_history.write_bytes(content)
        try:
            read_entries(box.paths, None)
            outcomes.add("read")
        except DamagedStateError:
            outcomes.add("set aside")
        document["current_model"]["training_steps"] = 100 + round_number
        try:
            record(box.paths, document, "v004", START)
        except DamagedStateError:
            record(box.paths, document, "v004", START)
        for path in box.paths.status.iterdir():
            path.unlink()
    assert outcomes == {"read", "set aside"}


@as_root
def test_on_a_full_disk_the_report_says_so_and_the_next_one_makes_up_for_it(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path) as disk:
        box = healthy(disk)
        box.report()
        filler = disk / "filler"
        box.paths.config.unlink()
        with open(filler, "wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        found = box.findings()
        assert "state-file-unwritable" in found
        assert "history-unwritable" not in found, "it is the same trouble"
        assert len(read_entries(box.paths, None)) == 1
        filler.unlink()
        assert not [identifier for identifier in box.findings() if "unwritable" in identifier]
        assert read_entries(box.paths, None)[1].changes[0] == "config gone"


@as_root
def test_on_a_read_only_disk_the_history_can_still_be_read(tmp_path: Path) -> None:
    box = healthy(tmp_path / "base")
    box.report()
    box.config(max_length=1024)
    box.report()
    with read_only(box.base):
        for form in (["--history"], ["--diff", "1", "2"], ["--check"]):
            result = run_tracker(box.base, *form)
            assert (result.returncode, "Read-only file system" in result.stdout + result.stderr) == (
                0,
                form == ["--check"],
            )
        assert "config max_length 2048 -> 1024" in run_tracker(box.base, "--history", "--json").stdout


def test_a_status_folder_that_cannot_be_written_is_a_warning(shared_folder: Path) -> None:
    box = healthy(shared_folder / "base")
    box.base.chmod(0o777)
    box.paths.locks.chmod(0o777)
    box.report()
    box.config(max_length=1024)
    for path in (box.base / ".system_state.json", *box.paths.status.iterdir()):
        path.chmod(0o644)
    code = (
        "import sys; from pathlib import Path; from guardrails.paths import Paths\n"
        "from guardrails.report.document import update_document\n"
        "from guardrails.report.past import read_entries\n"
        "paths = Paths(Path(sys.argv[1]))\n"
        "found = {d['id']: d for d in update_document(paths)['warning_details']}\n"
        "assert 'state-file-unwritable' not in found, found\n"
        "assert found['history-unwritable']['severity'] == 'warning', found\n"
        "assert found['history-unwritable']['message'].startswith('status/state_history.db could not be written: ')\n"
        "assert len(read_entries(paths, None)) == 1\n"
    )
    run_unprivileged(code, box.base)
    assert len(read_entries(box.paths, None)) == 1


def test_while_somebody_holds_it_the_report_is_made_and_the_next_one_makes_up_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_history, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(state_database, "BUSY_SECONDS", 0.1)
    box = healthy(tmp_path)
    box.report()
    box.config(max_length=1024)
    with FileLock(tmp_path / ".locks/state_history.lock").hold("a test"):
        found = box.findings()["history-unwritable"]
        assert found["severity"] == "info"
        assert f"process {os.getpid()} (a test)" in found["message"]
        assert len(read_entries(box.paths, None)) == 1, "it is read all the same"
    with closing(sqlite3.connect(box.paths.state_history, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert "database is locked" in box.findings()["history-unwritable"]["message"]
    assert "history-unwritable" not in box.findings()
    assert read_entries(box.paths, None)[1].changes[0] == "config max_length 2048 -> 1024"


def test_a_reader_that_stays_hinders_no_writer_and_keeps_its_view(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.report()
    with closing(sqlite3.connect(box.paths.state_history, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM history").fetchone() == (1,)
        for length in (1024, 512):
            box.config(max_length=length)
            assert "history-unwritable" not in box.findings()
        assert reader.execute("SELECT count(*) FROM history").fetchone() == (1,)
    assert len(read_entries(box.paths, None)) == 3
    # The reader took the log with it as it left; when the next report has seen that, all is as before.
    box.report()
    assert (
        "sqlite3"
        not in subprocess.run(
            [sys.executable, "-X", "importtime", SCRIPT, "--json", "--base-dir", tmp_path],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    )


def test_a_python_without_sqlite_makes_the_report_and_says_so(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.report()
    box.config(max_length=1024)
    code = (
        "import sys; sys.modules['sqlite3'] = None\n"
        "sys.argv[0] = 'state_tracker.py'\n"
        "import state_tracker\n"
        "state_tracker.run(state_tracker.main)\n"
    )

    def run(form: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, form, "--base-dir", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=CODE_DIR)

    for form in ("--json", "--check"):
        result = run(form)
        assert (result.returncode, result.stderr) == (0, "")
        assert "status/state_history.db could not be written: this Python has no sqlite3" in result.stdout
    result = run("--history")
    assert result.returncode == 1
    assert "error: this Python has no sqlite3" in result.stderr
