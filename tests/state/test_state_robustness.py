"""A report is always made, beside any number of others and of writers."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guardrails.report.schema import SystemState
from guardrails.state_io import write_json
from tests.state.building import SCRIPT, BaseDir, healthy, run_tracker


def test_twenty_at_once_all_report_and_leave_one_whole_file(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.paths.system_state.write_text("{ torn")
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: run_tracker(tmp_path, "--json"), range(20)))
    for result in results:
        assert result.returncode == 0, result.stderr
        SystemState.model_validate_json(result.stdout)
    SystemState.model_validate_json(box.paths.system_state.read_bytes())
    assert not [path.name for path in tmp_path.iterdir() if ".tmp-" in path.name]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 99}', '{"schema_version": "x"}', "\0" * 5000])
def test_a_state_file_of_no_use_is_set_aside_and_written_anew_with_a_warning(tmp_path: Path, content: str) -> None:
    box = healthy(tmp_path)
    box.paths.system_state.write_text(content)
    found = box.findings()["state-file-damaged"]
    assert (found["category"], found["severity"]) == ("disk", "warning")
    aside = tmp_path / ".system_state.json.damaged"
    assert aside.read_text() == content
    SystemState.model_validate_json(box.paths.system_state.read_bytes())
    subprocess.run(["bash", "-c", found["hint"]], check=True)
    assert "state-file-damaged" not in box.findings()


def test_a_folder_in_the_state_files_place_is_set_aside(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    (box.paths.system_state / "inside").mkdir(parents=True)
    assert "state-file-damaged" in box.findings()
    assert box.paths.system_state.is_file()


@pytest.mark.parametrize(
    "previous",
    [
        {"warning_details": 7},
        {"warning_details": [1, {"id": []}, {"id": "x", "since": 5}, {"since": "yesterday"}]},
        {"last_updated": "not a time"},
        {"last_updated": 7},
    ],
)
def test_odd_values_in_the_last_document_do_no_harm(tmp_path: Path, previous: dict[str, object]) -> None:
    box = healthy(tmp_path)
    box.write(".system_state.json", previous)
    assert "clock-moved-back" not in box.findings()


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root writes everywhere")
def test_a_read_only_base_dir_is_a_warning_in_the_document() -> None:
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        base = Path(folder) / "base"
        healthy(base)
        base.chmod(0o555)
        command = [sys.executable, str(SCRIPT), "--json", "--base-dir", str(base)]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        base.chmod(0o755)
        if result.returncode != 0 and "Permission denied" in result.stderr:
            pytest.skip("another user cannot start this Python")
        assert result.returncode == 0, result.stderr
        SystemState.model_validate_json(result.stdout)
        warnings = json.loads(result.stdout)["warnings"]
        assert ["disk", ".system_state.json could not be written: Permission denied"] in warnings
        assert not (base / ".system_state.json").exists()


def test_leftovers_of_killed_reports_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    old, new = (tmp_path / f".system_state.json.tmp-{pid}-00000000" for pid in (1, 2))
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    box.report()
    assert not old.exists()
    assert new.exists()


def fill_with_junk(box: BaseDir) -> None:
    for folder in (
        box.paths.versions,
        box.paths.backups,
        box.paths.queue_folder("processing"),
        box.paths.current_model,
    ):
        (folder / "dangling").symlink_to("/no/such/file")
        (folder / "line\nbreak 🙂").touch()
        os.close(os.open(os.fsencode(folder) + b"/not utf-8 \xff", os.O_CREAT | os.O_WRONLY))
        os.mkfifo(folder / "pipe")


def files_for_folders(box: BaseDir) -> None:
    for folder in (box.paths.versions, box.paths.backups, box.paths.queue, box.paths.trash, box.paths.current_model):
        shutil.rmtree(folder)
        folder.touch()


def odd_json(box: BaseDir) -> None:
    odd: list[object] = [{}, {"version": 7, "signature": 7, "retired": 7}, {"locked": 7}]
    paths = box.paths
    for path in (paths.head, paths.config_lock, paths.intent, paths.daemon_status, paths.training_status):
        box.write(path, odd[1])
    box.write(paths.config_lock, {"locked": {"max_length": []}, "base_model_fingerprint": {"files": [1, {"path": 3}]}})
    box.write(paths.base_model_stat, {"folder": str(box.base / "base_models/tiny"), "files": {"model.safetensors": {}}})
    box.write(paths.daemon_status, {"state": [], "run_id": "../..", "reason": 3, "exit_code": "x"})
    for number, files in ((1, [1]), (2, [{"path": "adapter_config.json", "size": "x"}])):
        metadata = {"id": 7, "parent": [], "created_at": 3, "training_steps": "x", "description": None, "files": files}
        box.write(paths.version(f"v{number:03d}") / "metadata.json", metadata)
    box.write(paths.backups / "b001/metadata.json", {"id": "b001", "verified_at": 1, "files": {}, "version": {}})


def closed_folders(box: BaseDir) -> None:
    (box.paths.version("v001") / "metadata.json").unlink()
    (box.paths.version("v001") / "metadata.json").mkdir()
    box.config(base_model="~nobody-of-this-name/model", backup_dir="~nobody-of-this-name/backups")


def pipes_for_files(box: BaseDir) -> None:
    paths = box.paths
    for path in (
        paths.config,
        paths.config_lock,
        paths.head,
        paths.daemon_status,
        paths.version("v001") / "metadata.json",
    ):
        path.unlink(missing_ok=True)
        os.mkfifo(path)


@pytest.mark.parametrize("damage", [fill_with_junk, files_for_folders, odd_json, closed_folders, pipes_for_files])
def test_whatever_lies_there_every_form_reports(tmp_path: Path, damage: Callable[[BaseDir], None]) -> None:
    box = healthy(tmp_path)
    damage(box)
    for form in ("--json", "--check", "--warnings"):
        result = run_tracker(tmp_path, form)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        if form == "--json":
            SystemState.model_validate_json(result.stdout)
            assert result.stdout.isascii()


def test_readers_beside_writers_never_see_damage(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    ended = threading.Event()

    def write() -> None:
        """What a daemon does all day: status, a new version by rename, a change of the model by exchange."""
        for number in range(3, 60):
            box.status_said_atomically("training", current_step=number)
            box.version_by_rename(number)
            box.publish_by_exchange(f"v{number:03d}")
            if ended.is_set():
                return

    writer = threading.Thread(target=write)
    with box.daemon():
        writer.start()
        deadline = time.monotonic() + 60
        reports = 0
        while writer.is_alive() and time.monotonic() < deadline:
            found = box.findings()
            reports += 1
            assert not [
                name
                for name in found
                if name.startswith(("version-damaged", "file-unreadable", "model-", "change-interrupted"))
            ], found
        ended.set()
        writer.join()
    assert reports > 3
    SystemState.model_validate_json(box.paths.system_state.read_bytes())


def test_versions_that_vanish_under_the_reader_are_no_error(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            box.version_by_rename(3)
            box.paths.version("v003").rename(tmp_path / "gone")
            shutil.rmtree(tmp_path / "gone")

    writer = threading.Thread(target=come_and_go)
    writer.start()
    try:
        for _ in range(100):
            ids = [version["id"] for version in box.report()["versions"]]
            assert ids in (["v001", "v002"], ["v001", "v002", "v003"])
    finally:
        ended.set()
        writer.join()


def test_a_daemon_between_two_words_is_not_dead(tmp_path: Path) -> None:
    """It takes its lock first and speaks after; it says goodbye first and lets go of the lock after."""
    box = healthy(tmp_path)
    box.processing()
    box.daemon_said("stopped")
    ended = threading.Event()

    def start_and_stop() -> None:
        while not ended.is_set():
            with box.daemon():
                write_json(box.paths.daemon_status, {"schema_version": 1, "state": "idle"})
                write_json(box.paths.daemon_status, {"schema_version": 1, "state": "stopped"})

    writer = threading.Thread(target=start_and_stop)
    writer.start()
    try:
        for _ in range(100):
            assert "daemon-died" not in box.findings()
    finally:
        ended.set()
        writer.join()
