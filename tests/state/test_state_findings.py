"""Each finding is fired by its real cause, and by nothing on a healthy box."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guardrails.paths import Paths
from guardrails.report.document import update_document
from guardrails.report.facts import Facts
from guardrails.report.findings import CATEGORIES, SEVERITIES, find
from guardrails.report.values import GIB
from guardrails.state_io import format_utc
from tests.state.building import BaseDir, Json, healthy


def check(found: dict[str, Json], identifier: str, category: str, severity: str, *words: str) -> Json:
    """The finding is there, as it should be, and its hint is a command."""
    assert identifier in found, found
    finding = found[identifier]
    assert (finding["category"], finding["severity"]) == (category, severity)
    for word in words:
        assert word in finding["message"]
    assert finding["hint"].split()[0] in ("python3", "mv", "rm", "du", "df", "date", "find")
    return finding


def test_a_healthy_one_disk_box_is_ok(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    with box.daemon():
        document = box.report()
    assert document["verdict"] == "ok"
    assert [detail["id"] for detail in document["warning_details"]] == ["backup-same-disk"]
    assert document["warning_details"][0]["severity"] == "info"
    assert document["pending"] == []


def test_a_second_copy_on_another_disk_leaves_nothing_to_say(tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"guardrails-{os.getpid()}-{tmp_path.name}"
    if not other.parent.is_dir() or other.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm as another file system")
    box = healthy(tmp_path)
    box.config(backup_dir=str(other))
    try:
        box.backup(1, "v002", other)
        with box.daemon():
            document = box.report()
    finally:
        shutil.rmtree(other)
    assert document["warnings"] == []
    assert document["verdict"] == "ok"


def test_a_chosen_backup_folder_on_the_same_disk_is_a_warning(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.config(backup_dir="elsewhere")
    box.backup(1, "v002", tmp_path / "elsewhere")
    check(box.findings(), "backup-same-disk", "backup", "warning", "v002")


def test_a_backup_folder_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.config(backup_dir="/no/such/disk")
    check(box.findings(), "backup-folder-missing", "backup", "warning", "/no/such/disk")


def test_a_fresh_base_dir_says_the_guides_words(tmp_path: Path) -> None:
    found = BaseDir(tmp_path).findings()
    assert check(found, "model-fresh-start", "model", "info")["message"] == "No current model - fresh start"
    assert check(found, "config-missing", "config", "critical")["message"] == "Config file missing!"


def test_an_empty_folder_is_a_fresh_base_dir_and_gets_nothing_but_the_state_file(tmp_path: Path) -> None:
    document = update_document(Paths(tmp_path))
    assert document["versions"] == []
    assert document["config"]["locked_params"] == []
    assert [path.name for path in tmp_path.iterdir()] == [".system_state.json"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"[]", "not a JSON object"),
        (b"\xff", "invalid start byte"),
        (b'{"max_length": "2048"}', 'max_length is "2048"'),
        (b'{"max_length": true}', "max_length is true"),
        (b'{"base_model": 7}', "base_model is 7"),
        (b'{"model_name": null}', "model_name is null"),
        (b'{"max_length": 1, "max_length": 2}', "twice"),
        (b'{"backup_dir": "a\\u0000b"}', "backup_dir"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    box = BaseDir(tmp_path)
    box.paths.config.write_bytes(content)
    found = check(box.findings(), "config-unreadable", "config", "critical", reason)
    assert found["message"].startswith("Error reading config: ")
    assert box.report()["config"]["warning"] == found["message"]


def test_a_config_without_a_base_model_is_a_warning(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    box.config(base_model=None)
    check(box.findings(), "config-no-base-model", "config", "warning")


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [("max_length", 2048, 4096), ("model_name", "tiny", "large"), ("base_model", "base_models/tiny", "base_models/b")],
)
def test_a_changed_locked_value_names_old_and_new_and_how_to_set_it_back(
    tmp_path: Path, key: str, old: object, new: object
) -> None:
    box = healthy(tmp_path)
    box.config(**{key: new})
    found = box.findings()
    finding = check(found, f"config-lock-changed:{key}", "config", "critical", key, str(old), str(new))
    assert finding["hint"] == f"python3 training_controller.py config set {key} {old} --base-dir {tmp_path}"
    assert "base-model-changed" not in found


def test_a_locked_key_that_the_config_leaves_to_its_default_is_not_changed(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.write("config.json", {"base_model": "base_models/tiny", "model_name": "tiny"})
    assert not [identifier for identifier in box.findings() if identifier.startswith("config-lock")]


def test_a_locked_string_that_looks_like_a_number_is_quoted_in_the_hint(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    lock = json.loads(box.paths.config_lock.read_text())
    lock["locked"]["model_name"] = "123"
    box.write(".config_lock.json", lock)
    hint = box.findings()["config-lock-changed:model_name"]["hint"]
    assert "config set model_name '\"123\"'" in hint


def test_a_missing_base_model_is_critical(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    shutil.rmtree(tmp_path / "base_models/tiny")
    check(box.findings(), "base-model-missing", "config", "critical", "base_models/tiny")


def _grow(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"w" * 5001)


def _remove(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _add(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(("change", "word"), [(_grow, "5001 bytes"), (_remove, "missing"), (_add, "is new")])
def test_another_base_model_at_the_same_path_is_critical(
    tmp_path: Path, change: Callable[[Path], None], word: str
) -> None:
    box = healthy(tmp_path)
    change(tmp_path / "base_models/tiny")
    check(box.findings(), "base-model-changed", "config", "critical", word)


def test_a_base_model_of_the_same_sizes_is_suspect_until_it_was_read_and_wrong_after(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    weights = tmp_path / "base_models/tiny/model.safetensors"
    weights.unlink()
    weights.write_bytes(b"x" * 5000)
    check(box.findings(), "base-model-touched", "config", "warning", "model.safetensors")

    cache = json.loads(box.paths.base_model_stat.read_text())
    status = weights.stat()
    cache["files"]["model.safetensors"] = {
        "stat": [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino],
        "blake3": "other",
        "hashed_at": 1,
    }
    box.write("status/base_model_stat.json", cache)
    check(box.findings(), "base-model-changed", "config", "critical", "other bytes")


def test_a_lost_stat_cache_accuses_nobody(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.paths.base_model_stat.write_text("{")
    assert not [identifier for identifier in box.findings() if identifier.startswith(("base-model", "file-"))]


def test_a_model_without_adapter_says_the_guides_words(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    box.paths.current_model.mkdir()
    found = check(box.findings(), "model-no-adapter", "model", "info")
    assert found["message"] == "No adapter found - base model only"
    assert box.report()["current_model"]["exists"] is True


def test_a_model_that_vanished_is_no_fresh_start(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    shutil.rmtree(box.paths.current_model)
    found = box.findings()
    assert "restore v002" in check(found, "model-missing", "model", "critical", "v002")["hint"]
    assert "model-fresh-start" not in found


def test_a_copied_base_dir_is_only_suspected(tmp_path: Path) -> None:
    box = healthy(tmp_path / "one")
    shutil.copytree(box.base, tmp_path / "two")
    check(BaseDir(tmp_path / "two").findings(), "model-changed", "model", "warning", "may have changed", "touched")


def test_steps_survive_the_loss_of_the_versions_own_record(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    (box.paths.version("v002") / "metadata.json").unlink()
    document = box.report()
    assert document["current_model"]["training_steps"] == 150
    assert document["training_status"]["total_evals"] == 6


def _edit(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"r": 8}')


def _add_to_model(model: Path) -> None:
    (model / "notes.txt").write_text("x")


def _link(model: Path) -> None:
    (model / "link").symlink_to("adapter_config.json")


def _drop(model: Path) -> None:
    (model / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "command"), [(_edit, "create"), (_add_to_model, "create"), (_link, "! -type f"), (_drop, "create")]
)
def test_a_model_changed_by_hand_is_noticed(tmp_path: Path, change: Callable[[Path], None], command: str) -> None:
    box = healthy(tmp_path)
    change(box.paths.current_model)
    found = check(box.findings(), "model-changed", "model", "warning", "v002")
    assert command in found["hint"]


def test_a_model_of_the_same_size_rewritten_in_place_is_noticed(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    weights = box.paths.current_model / "adapter_model.safetensors"
    before = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"A")
    # Within one tick of the kernel's clock the stamp would be the same.
    os.utime(weights, ns=(0, before.st_mtime_ns + 1))
    assert weights.stat().st_size == before.st_size
    check(box.findings(), "model-changed", "model", "warning")


def test_a_model_without_any_version_says_the_guides_words(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    box.adapter(box.paths.current_model, b"w")
    box.write("current_model/trainer_state.json", {"global_step": 685})
    found = box.findings()
    message = "Current model exists but no versions saved - create backup!"
    assert check(found, "backup-no-versions", "backup", "warning")["message"] == message
    message = "Training daemon not running (model exists with training progress)"
    assert check(found, "daemon-not-running", "daemon", "warning")["message"] == message
    assert box.report()["current_model"]["training_steps"] == 685


def test_a_model_that_no_record_claims_is_unsaved(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.paths.head.unlink()
    check(box.findings(), "model-unsaved", "model", "warning")


def test_a_model_whose_version_was_removed_is_unsaved(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    metadata = json.loads((box.paths.version("v002") / "metadata.json").read_text())
    shutil.rmtree(box.paths.version("v002") / "model")
    box.write("models/versions/v002/metadata.json", {**metadata, "removed_at": "2026-11-21T10:00:00Z"})
    found = box.findings()
    check(found, "model-unsaved", "model", "warning", "v002")
    assert "version-damaged:v002" not in found
    assert [version["id"] for version in box.report()["versions"]] == ["v001"]


def test_a_change_is_under_way_while_its_process_lives_and_interrupted_after(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.write("models/intent.json", {"schema_version": 1, "operation": "restore"})
    with box.held(".locks/store.lock", "restore"):
        check(box.findings(), "change-under-way", "model", "info", "restore", str(os.getpid()))
        assert box.report()["pending"] == ["a restore of current_model/ is under way"]
    check(box.findings(), "change-interrupted", "model", "warning", "restore")
    assert len(box.report()["pending"]) == 1


def test_a_publishing_daemon_is_given_time_for_its_backup(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.version(3)
    box.publish("v003")
    box.daemon_said("publishing")
    with box.daemon():
        assert not box.findings()
        box.daemon_said("idle")
        check(box.findings(), "backup-stale", "backup", "warning", "v003", "v002")


def test_stage_folders_are_pending_unless_somebody_works_on_them(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    (box.paths.versions / ".stage-v003").mkdir()
    with box.held(".locks/store.lock"):
        assert box.report()["pending"] == []
    assert "models/versions/.stage-v003" in box.report()["pending"][0]


def test_a_daemon_killed_in_a_run_is_critical_and_one_that_said_goodbye_is_not(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.processing("math.jsonl")
    box.status_said("training")
    box.daemon_said("training", run_id="r1")
    found = box.findings()
    check(found, "daemon-died", "daemon", "critical", "math.jsonl")
    check(found, "daemon-not-running", "daemon", "warning")
    assert box.report()["training_status"]["status"] == "error"
    assert "math.jsonl" in box.report()["pending"][0]
    box.daemon_said("stopped", run_id="r1")
    assert "daemon-died" not in box.findings()
    assert "math.jsonl" in box.report()["pending"][0]


def test_a_daemon_that_ended_with_an_error_says_which(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.daemon_said("stopped", exit_code=11, reason="locked max_length was 2048 and is now 4096")
    check(box.findings(), "daemon-failed", "daemon", "warning", "locked max_length")


def test_only_this_base_dirs_daemon_counts(tmp_path: Path) -> None:
    box, other = healthy(tmp_path / "a"), BaseDir(tmp_path / "b")
    with other.daemon():
        check(box.findings(), "daemon-not-running", "daemon", "warning")
        assert other.report()["daemon_running"] is True


def test_a_leftover_lock_file_is_no_daemon(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    (tmp_path / ".locks/daemon.lock").write_text(json.dumps({"pid": os.getpid(), "purpose": "x", "since": 0}))
    assert box.report()["daemon_running"] is False


def test_an_emergency_stop_lying_around_is_named_with_its_removal(tmp_path: Path) -> None:
    box = healthy(tmp_path / "with space")
    box.paths.emergency_stop.touch()
    found = check(box.findings(), "daemon-stop-file", "daemon", "warning")
    subprocess.run(["bash", "-c", found["hint"]], check=True)
    assert "daemon-stop-file" not in box.findings()


def test_a_held_queue_says_for_what(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.daemon_said("held", reason="the backup failed: No space left on device")
    with box.daemon():
        check(box.findings(), "queue-held", "daemon", "warning", "No space left on device")
    assert "queue-held" not in box.findings()


def test_failed_files_are_counted(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (box.paths.queue_folder("failed") / name).touch()
    check(box.findings(), "queue-failed", "daemon", "warning", "2 data files")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "damaged"),
        (b'{"id": "v00', "damaged"),
        (b'{"id": "v001"}', "no list of files"),
        (b"{}", "something else"),
        (None, "missing"),
    ],
)
def test_torn_edited_and_removed_metadata_shows_in_the_very_next_report(
    tmp_path: Path, content: bytes | None, word: str
) -> None:
    box = healthy(tmp_path)
    assert "version-damaged:v001" not in box.findings()
    metadata = box.paths.version("v001") / "metadata.json"
    if content is None:
        metadata.unlink()
    else:
        metadata.write_bytes(content)
    check(box.findings(), "version-damaged:v001", "backup", "critical", word)
    assert [version["id"] for version in box.report()["versions"]] == ["v001", "v002"]


def _truncate(model: Path) -> None:
    (model / "adapter_model.safetensors").write_bytes(b"a")


def _remove_model(model: Path) -> None:
    shutil.rmtree(model)


@pytest.mark.parametrize("change", [_truncate, _drop, _add_to_model, _remove_model])
def test_a_version_that_is_not_as_recorded_is_critical_and_a_backup_a_warning(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    box = healthy(tmp_path)
    change(box.paths.version("v001") / "model")
    check(box.findings(), "version-damaged:v001", "backup", "critical")
    change(box.paths.backups / "b002" / "model")
    found = box.findings()
    check(found, "backup-damaged:b002", "backup", "warning")
    check(found, "backup-stale", "backup", "warning", "v002")


def test_metadata_of_another_version_is_damage(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    shutil.copy(box.paths.version("v002") / "metadata.json", box.paths.version("v001") / "metadata.json")
    check(box.findings(), "version-damaged:v001", "backup", "critical", "v002")


def test_a_missing_second_copy_is_a_warning_unless_backups_are_off(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    for number in (1, 2):
        shutil.rmtree(box.paths.backups / f"b{number:03d}")
    found = check(box.findings(), "backup-missing", "backup", "warning", "v002")
    assert found["hint"].startswith(f"python3 backup_manager.py backup {box.paths.current_model}/ ")
    box.config(backup="off")
    check(box.findings(), "backup-missing", "backup", "info")


def test_a_backup_that_was_never_read_back_does_not_count(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    path = box.paths.backups / "b002/metadata.json"
    box.write(path, {**json.loads(path.read_text()), "verified_at": None})
    check(box.findings(), "backup-stale", "backup", "warning")


def test_daily_backups_leave_a_version_a_day(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.config(backup="daily")
    shutil.rmtree(box.paths.backups / "b002")
    assert "backup-stale" not in box.findings()
    tomorrow = time.time() + 90_000
    assert "backup-stale" in [detail["id"] for detail in box.report(tomorrow)["warning_details"]]


@pytest.mark.parametrize(
    "path",
    [
        ".config_lock.json",
        "models/head.json",
        "models/intent.json",
        "status/training_status.json",
        "status/daemon.json",
    ],
)
@pytest.mark.parametrize("content", ["{", '{"schema_version": 2}'])
def test_an_unusable_state_file_is_named_and_left_untouched(tmp_path: Path, path: str, content: str) -> None:
    box = healthy(tmp_path)
    (tmp_path / path).write_text(content)
    found = box.findings()[f"file-unreadable:{path}"]
    assert found["severity"] == "critical"
    assert path in found["message"]
    assert (tmp_path / path).read_text() == content


def test_a_lock_that_holds_nothing_is_damage(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.paths.config_lock.write_text("{}")
    check(box.findings(), "file-unreadable:.config_lock.json", "config", "critical", "is damaged: locked")


def test_a_clock_behind_the_last_report_is_noticed(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    now = time.time()
    box.report(now + 3600)
    document = box.report(now)
    assert "clock-moved-back" in [detail["id"] for detail in document["warning_details"]]
    assert "clock-moved-back" not in box.findings()
    box.report(now + 30)
    assert "clock-moved-back" not in [d["id"] for d in box.report(now)["warning_details"]]


def test_a_clock_behind_the_newest_version_is_noticed(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.version(3, created_at=format_utc(time.time() + 3600))
    check(box.findings(), "clock-moved-back", "daemon", "warning")


@pytest.mark.parametrize(
    ("free_gib", "identifier", "message"),
    [
        (8.4, "disk-low", "LOW DISK SPACE: Only 8GB free!"),
        (45.9, "disk-getting-low", "Disk space getting low: 45GB free"),
        (50.0, None, None),
        (10.0, "disk-getting-low", "Disk space getting low: 10GB free"),
        (0.0, "disk-low", "LOW DISK SPACE: Only 0GB free!"),
    ],
)
def test_disk_space_thresholds(tmp_path: Path, free_gib: float, identifier: str | None, message: str | None) -> None:
    facts = Facts(Paths(tmp_path), time.time())
    facts.queue = {"failed": 0}
    facts.available_bytes = int(free_gib * GIB)
    found = [finding for finding in find(facts, None) if finding.category == "disk"]
    assert [(finding.id, finding.message) for finding in found] == ([(identifier, message)] if identifier else [])


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_small_disk_is_low_and_a_full_one_still_gets_its_report(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        box = healthy(disk)
        with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb") as file:
            file.write(b"x" * (2 << 20))
        document = box.report()
        ids = [detail["id"] for detail in document["warning_details"]]
        assert "disk-low" in ids
        assert "state-file-unwritable" in ids
        assert ["disk", ".system_state.json could not be written: No space left on device"] in document["warnings"]
        assert not [path for path in disk.iterdir() if ".tmp-" in path.name]


def test_warnings_come_worst_first_and_sections_show_the_first_of_their_category(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.config(max_length=4096, model_name="other")
    box.paths.emergency_stop.touch()
    (box.paths.version("v001") / "metadata.json").unlink()
    document = box.report()
    details = document["warning_details"]
    ranks = [SEVERITIES.index(detail["severity"]) for detail in details]
    assert ranks == sorted(ranks)
    assert {detail["category"] for detail in details} <= set(CATEGORIES)
    assert document["warnings"] == [[detail["category"], detail["message"]] for detail in details]
    first = next(message for category, message in document["warnings"] if category == "config")
    assert document["config"]["warning"] == first
    assert document["verdict"] == "critical"


def test_since_stays_while_the_cause_lasts(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    now = time.time()

    def since(at: float) -> str | None:
        details = box.report(at)["warning_details"]
        return next((detail["since"] for detail in details if detail["id"] == "daemon-stop-file"), None)

    box.paths.emergency_stop.touch()
    assert since(now) == since(now + 50) == format_utc(now)
    box.paths.emergency_stop.unlink()
    assert since(now + 55) is None
    box.paths.emergency_stop.touch()
    assert since(now + 60) == format_utc(now + 60)
