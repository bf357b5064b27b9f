"""What people and disks put into arguments and documents: an error that names it, never a crash."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import backup_manager
import model_versioner
from guardrails.cli import print_json
from guardrails.config import load_config
from guardrails.errors import ConfigError, DamagedStateError, GuardrailsError, OperationError
from guardrails.paths import CODE_DIR, Paths
from guardrails.state_io import read_json, write_json
from guardrails.store.backups import backups_folder, list_backup_ids, read_backup
from guardrails.store.change import open_store
from guardrails.store.copies import Copies
from guardrails.store.live_model import save_version
from guardrails.store.removal import delete_version
from guardrails.store.retention import Policy, parse_duration
from guardrails.store.trash import list_entries
from guardrails.store.version_records import (
    lineage,
    list_version_ids,
    parse_version_id,
    read_metadata,
    read_summaries,
    remember_versions,
)
from tests.store import copy_store, make_store

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return make_store(tmp_path_factory.mktemp("inputs") / "base", versions=3, backups=True)


@pytest.fixture
def paths(template: Paths, tmp_path: Path) -> Paths:
    return copy_store(template, tmp_path / "base")


def versioner(paths: Paths, *arguments: str) -> Result:
    return CliRunner().invoke(model_versioner.main, ["--base-dir", str(paths.base), *arguments])


def backups(paths: Paths, *arguments: str) -> Result:
    return CliRunner().invoke(backup_manager.main, ["--base-dir", str(paths.base), *arguments])


def run_script(script: str, paths: Paths, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, CODE_DIR / script, "--base-dir", paths.base, *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )


def edit(file: Path, change: Change) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    def look() -> dict[str, tuple[int, int]]:
        return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")}

    before = look()
    yield
    assert look() == before


def ended_well(result: Result) -> bool:
    """With the toolkit's own error or none: anything else would be a traceback."""
    return result.exception is None or isinstance(result.exception, (GuardrailsError, SystemExit))


# Arguments


@pytest.mark.parametrize(
    "text",
    ["²", "\u0663", "9" * 5000, "v" + "9" * 300, "v\u0660\u0660\u0661", "", "/", "a\nb", "../v001", "v001/model"],
)
def test_what_is_no_version_is_said_to_be_none(paths: Paths, text: str) -> None:
    with pytest.raises(OperationError, match="there is no version"):
        parse_version_id(paths, text)


def test_a_path_to_a_version_of_another_base_dir_names_no_version_here(
    paths: Paths, template: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(paths.versions)
    for good in (
        f"{paths.versions}/v002/",
        "models/versions/v002",
        "models/versions/../versions/2",
        f"{tmp_path}/link/v002",
    ):
        assert parse_version_id(paths, good) == "v002"
    for bad in ("/other/base/models/versions/v002", f"{template.versions}/v002", "/v002", "./v002", "backups/v002"):
        with pytest.raises(OperationError, match="there is no version"):
            parse_version_id(paths, bad)
    monkeypatch.chdir(paths.versions)
    assert parse_version_id(paths, "./v002") == "v002"
    monkeypatch.chdir(template.base)
    with pytest.raises(OperationError, match="there is no version"):
        parse_version_id(paths, "models/versions/v002")


@pytest.mark.parametrize("backup_id", ["../../x", "b" + "9" * 300, "b\u0660\u0660\u0661", "", "b999", "a\nb"])
def test_what_is_no_backup_is_said_to_be_none(paths: Paths, backup_id: str) -> None:
    with pytest.raises(OperationError, match="there is no backup"):
        read_backup(paths.backups, backup_id)


@pytest.mark.parametrize("duration", ["0d", "0y0m0d0h"])
def test_a_policy_that_keeps_nothing_within_is_no_policy(paths: Paths, duration: str) -> None:
    assert Policy(within=duration).keeps_nothing()
    result = versioner(paths, "prune", "--keep-within", duration)
    assert result.exit_code == 2
    edit(paths.config, lambda config: config.update(retention={"keep_within": duration}))
    assert versioner(paths, "prune").exit_code == 2


@pytest.mark.parametrize("duration", ["99999999999y", "9" * 5000 + "d", "\u0663d", "d", "-1d"])
def test_a_time_that_is_too_long_is_a_usage_error(paths: Paths, duration: str) -> None:
    with pytest.raises(ValueError, match=r"long|duration"):
        parse_duration(duration)
    assert versioner(paths, "prune", "--keep-within", duration).exit_code == 2


def test_a_time_that_is_too_long_in_the_config_is_named(paths: Paths) -> None:
    edit(paths.config, lambda config: config.update(retention={"keep_within": "99999999999y"}))
    error = versioner(paths, "prune").exception
    assert isinstance(error, ConfigError)
    assert "keep_within" in error.message


def test_a_time_before_all_dates_keeps_all(paths: Paths) -> None:
    result = versioner(paths, "prune", "--keep-within", "9999y")
    assert result.exit_code == 0
    assert result.output.count("would keep") == 3


def test_days_are_whole_and_not_beyond_all_dates(paths: Paths) -> None:
    for days in ("999999999", "9999999999", "-1", "1.5", "nan"):
        assert backups(paths, "cleanup", "--retention-days", days).exit_code == 2
        assert versioner(paths, "trash", "empty", "--dry-run", "--older-than", days).exit_code == 2
    for trash_days in (1.5, -1, 10**9):
        edit(paths.config, lambda config, days=trash_days: config.update(retention={"trash_days": days}))  # type: ignore[misc]
        with pytest.raises(ConfigError, match="trash_days"):
            load_config(paths)


def test_what_nothing_else_holds_leaves_the_trash_only_when_asked(paths: Paths) -> None:
    (paths.base / "notes").write_text("old")
    assert backups(paths, "backup", str(paths.base / "notes")).exit_code == 0
    (paths.base / "notes").write_text("new, and nowhere else")
    assert backups(paths, "restore", "b004").exit_code == 0
    assert versioner(paths, "trash", "empty", "--older-than", "0").exit_code == 0
    assert len(list_entries(paths.trash)) == 1
    assert versioner(paths, "trash", "empty", "--older-than", "0", "--unsaved").exit_code == 0
    assert not list_entries(paths.trash)


def test_exit_codes_of_what_was_mistyped(paths: Paths) -> None:
    for arguments, code in ((("show", "²"), 1), (("prune", "--keep-within", "0d"), 2)):
        done = run_script("model_versioner.py", paths, *arguments)
        assert done.returncode == code
        assert done.stderr.startswith(b"error: ")


# Reading commands


READING = (
    (model_versioner.main, ("list",)),
    (model_versioner.main, ("show", "v001")),
    (model_versioner.main, ("verify",)),
    (model_versioner.main, ("lineage", "v003")),
    (model_versioner.main, ("diff", "v001", "v002")),
    (model_versioner.main, ("trash", "list")),
    (model_versioner.main, ("prune", "--keep-last", "1")),
    (model_versioner.main, ("trash", "empty", "--dry-run")),
    (backup_manager.main, ("list",)),
    (backup_manager.main, ("verify",)),
    (backup_manager.main, ("cleanup", "--retention-days", "0")),
)


@pytest.mark.parametrize(
    ("command", "arguments"), READING, ids=lambda value: str(value[0]) if type(value) is tuple else ""
)
def test_a_reading_command_writes_nothing_and_says_what_is_pending(
    paths: Paths, command: Any, arguments: tuple[str]
) -> None:
    write_json(paths.intent, {"operation": "rollback", "config": {}, "queue": []})
    (paths.locks / "store.lock").unlink()
    with unchanged(paths.base):
        result = CliRunner().invoke(command, ["--base-dir", str(paths.base), "--json", *arguments])
    assert result.exit_code == 0
    assert result.stderr == "note: an interrupted rollback is pending; the next writing command finishes it\n"
    json.loads(result.stdout)


def test_a_change_that_is_under_way_is_not_said_to_be_interrupted(paths: Paths) -> None:
    with open_store(paths, "test"):
        write_json(paths.intent, {"operation": "restore", "config": {}, "queue": []})
        assert "note: a restore is under way\n" in versioner(paths, "list").output
        paths.intent.write_text("{")
        assert "note: " in versioner(paths, "list").output


def test_without_a_change_under_way_nothing_is_said(paths: Paths) -> None:
    assert "note" not in versioner(paths, "list").output


# Documents


def put(key: str, value: object) -> Change:
    *folders, name = key.split(".")

    def change(document: Any) -> None:
        for folder in folders:
            document = document[int(folder) if folder.isdigit() else folder]
        document[name] = value

    return change


ODD: tuple[object, ...] = (None, True, -1, 10**400, 1.5, "x", "", "\0", "\ud800", [], [1], {}, {"x": 1})
# Of each document: keys, and which odd values are as good as any other there.
VERSION_KEYS: dict[str, tuple[object, ...]] = {
    "id": (),
    "created_at": (),
    "kind": ("x", "", "\0", "\ud800"),
    "description": ("x", "", "\0", "\ud800"),
    "parent": (None,),
    "run_id": (None, "x", ""),
    **dict.fromkeys(("training_steps", "run_steps", "total_evals", "size")),  # type: ignore[dict-item]
    **dict.fromkeys(("loss", "eval_loss", "eval_loss_before"), (None, -1, 1.5)),
    "data": ([],),
    "data.0.name": ("x", "", "\0", "\ud800"),
    "data.0.blake3": ("x", "", "\0", "\ud800"),
    "data.0.rows": (),
    "data.0.trained": (),
    "base_model": (None, "x", ""),
    "base_model_fingerprint": (None,),
    "base_model_fingerprint.blake3": ("x", "", "\0", "\ud800"),
    "base_model_fingerprint.files": ([],),
    "config": (None, {}, {"x": 1}),
    "libraries": (None, {}, {"x": 1}),
    "files": ([],),
    "files.0.path": ("x",),
    "files.0.size": (),
    "files.0.blake3": ("x", "", "\0", "\ud800"),
}
BACKUP_KEYS: dict[str, tuple[object, ...]] = {
    "id": (),
    "created_at": (),
    "verified_at": (),
    "type": ("x", "", "\0", "\ud800"),
    "source": ("x",),
    "reason": (None, "x", "", "\0", "\ud800"),
    "version": (),
    "version_metadata": (),
    "version_metadata.files": ([],),
    "version_metadata.loss": (None, -1, 1.5),
    "single_file": (True,),
    "size": (),
    "files": ([],),
    "files.0.path": ("x",),
}


def wrong_values(keys: dict[str, tuple[object, ...]]) -> list[tuple[str, object]]:
    return [(key, value) for key, fine in keys.items() for value in ODD if repr(value) not in map(repr, fine or ())]


def test_damaged_metadata_of_a_version_name_the_file_and_the_key(paths: Paths) -> None:
    file = paths.version("v002") / "metadata.json"
    good = json.loads(file.read_text())
    for key, value in wrong_values(VERSION_KEYS):
        document = copy.deepcopy(good)
        put(key, value)(document)
        file.write_text(json.dumps(document))
        with pytest.raises(DamagedStateError) as caught:
            read_metadata(paths, "v002")
        assert str(file) in caught.value.message
        assert key.split(".")[0] in caught.value.message or key == "id", (key, value)
    for key in {key.split(".")[0] for key in VERSION_KEYS}:
        file.write_text(json.dumps({k: v for k, v in good.items() if k != key}))
        with pytest.raises(DamagedStateError):
            read_metadata(paths, "v002")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "..", "a\0b", "\ud800"])
def test_no_file_of_a_version_or_backup_lies_outside_of_it(paths: Paths, path: str) -> None:
    edit(paths.version("v002") / "metadata.json", put("files.0.path", path))
    with pytest.raises(DamagedStateError, match="files"):
        read_metadata(paths, "v002")
    edit(paths.backups / "b001" / "metadata.json", put("files.0.path", path))
    with pytest.raises(DamagedStateError, match="files"):
        read_backup(paths.backups, "b001")


def test_damaged_metadata_of_a_backup_name_the_file_and_the_key(paths: Paths) -> None:
    file = paths.backups / "b001" / "metadata.json"
    good = json.loads(file.read_text())
    for key, value in wrong_values(BACKUP_KEYS):
        document = copy.deepcopy(good)
        put(key, value)(document)
        if document == good or key == "single_file":
            continue
        file.write_text(json.dumps(document))
        with pytest.raises(DamagedStateError) as caught:
            read_backup(paths.backups, "b001")
        assert str(file) in caught.value.message
        assert "version" in caught.value.message or key.split(".")[0] in caught.value.message
    for key in BACKUP_KEYS.keys() & good.keys():
        file.write_text(json.dumps({k: v for k, v in good.items() if k != key}))
        with pytest.raises(DamagedStateError):
            read_backup(paths.backups, "b001")


def test_numbers_that_json_does_not_have_are_damage(paths: Paths) -> None:
    file = paths.version("v002") / "metadata.json"
    good = file.read_text()
    for number in ("NaN", "-Infinity", "1e999"):
        file.write_text(good.replace('"loss": 1.0', f'"loss": {number}'))
        with pytest.raises(DamagedStateError):
            read_metadata(paths, "v002")
        with pytest.raises(DamagedStateError):
            print_json([{"config": {"max_length": float(number)}}])


VERSION_COMMANDS = (
    ("list",),
    ("show", "v002"),
    ("verify",),
    ("lineage", "v003"),
    ("diff", "v001", "v002"),
    ("prune", "--keep-last", "1"),
    ("rollback",),
    ("repair",),
)


@pytest.mark.parametrize(
    "change",
    [
        put("files", ["x"]),
        put("data", [1]),
        put("created_at", "2026-13-45T10:00:00Z"),
        put("base_model_fingerprint", "x"),
        put("loss", "x"),
        lambda metadata: metadata.pop("config"),
    ],
)
def test_every_command_meets_damaged_metadata_with_an_error(paths: Paths, change: Change) -> None:
    edit(paths.version("v002") / "metadata.json", change)
    for command in VERSION_COMMANDS:
        result = versioner(paths, *command)
        assert ended_well(result), (command, result.exception)


def test_repair_puts_wrong_metadata_back(paths: Paths) -> None:
    file = paths.version("v002") / "metadata.json"
    good = read_json(file)
    edit(file, put("files", ["x"]))
    edit(paths.backups / "b003" / "metadata.json", put("created_at", "yesterday"))
    assert versioner(paths, "repair").exit_code == 0
    assert read_json(file) == good
    assert read_backup(paths.backups, "b003")["version"] == "v003"


def test_a_version_that_is_its_own_parent_ends_its_lineage(paths: Paths) -> None:
    edit(paths.version("v002") / "metadata.json", put("parent", "v002"))
    assert [metadata["id"] for metadata in lineage(paths, "v003")] == ["v003", "v002"]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"metadata": {"files": 3}},
        {"metadata": {"files": ["x"]}},
        {"metadata": {"files": [{}]}},
        {"metadata": [1]},
        {"kind": 1},
    ],
)
def test_a_damaged_record_in_the_trash_is_listed_and_stays(paths: Paths, record: dict[str, Any]) -> None:
    with open_store(paths, "test"):
        delete_version(paths, "v001", Copies(paths, strict=True), "deleted")
    (entry,) = list_entries(paths.trash)
    edit(entry.folder / "entry.json", lambda document: document.update(record) if record else document.clear())
    (entry,) = list_entries(paths.trash)
    assert entry.record is None
    assert "its record is damaged" in versioner(paths, "trash", "list").output
    for command in (("trash", "empty", "--older-than", "0"), ("trash", "restore", "v001")):
        assert ended_well(versioner(paths, *command))


# The index


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "v002"}',
        '{"id": "v002", "stat": STAT, "row": {}}',
        '{"id": 1, "stat": STAT, "row": []}',
        "{}",
        '{"id": [1]}',
        "{1}",
    ],
)
def test_lines_of_the_index_that_are_wrong_count_for_nothing(paths: Paths, line: str) -> None:
    status = (paths.version("v002") / "metadata.json").stat()
    stat = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    good = read_summaries(paths)
    paths.version_index.write_text(line.replace("STAT", json.dumps(stat)) + "\n")
    assert read_summaries(paths) == good


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_no_version_fails_for_the_index(paths: Paths, make: Callable[[Path], None]) -> None:
    paths.version_index.unlink(missing_ok=True)
    make(paths.version_index)
    assert list(read_summaries(paths).rows) == list_version_ids(paths)
    (paths.current_model / "more").write_text("more")
    with open_store(paths, "test"):
        remember_versions(paths)
        assert save_version(paths, "more", "manual") == ("v004", True)


# The config


def test_a_backup_dir_of_nobody_is_a_folder_that_is_not_there(paths: Paths) -> None:
    edit(paths.config, put("backup_dir", "~nosuchuser/b"))
    assert backups_folder(paths) == paths.base / "~nosuchuser/b"
    assert ended_well(backups(paths, "backup", "current_model"))
    assert isinstance(backups(paths, "backup", "current_model").exception, OperationError)
    assert backups(paths, "list").output == "no backups yet\n"
    assert versioner(paths, "restore", "v001").exit_code == 0


@pytest.mark.parametrize("folder", ["a\0b", "\ud800"])
def test_a_backup_dir_that_no_system_has_is_bad_config_and_stops_no_restore(paths: Paths, folder: str) -> None:
    edit(paths.config, put("backup_dir", folder))
    with pytest.raises(ConfigError, match="backup_dir"):
        load_config(paths)
    assert list_backup_ids(backups_folder(paths)) == ["b001", "b002", "b003"]
    assert versioner(paths, "restore", "v001").exit_code == 0


# File names


def test_a_file_name_that_is_no_utf8_is_shown(paths: Paths) -> None:
    Path(os.fsdecode(os.fsencode(paths.current_model) + b"/\xff.bin")).write_text("x")
    assert versioner(paths, "create").exit_code == 0
    assert list_version_ids(paths)[-1] == "v004"
    for encoding in ("utf-8:strict", "ascii:strict"):
        for more in ((), ("--json",)):
            done = run_script("model_versioner.py", paths, "show", "v004", *more, PYTHONIOENCODING=encoding)
            assert done.returncode == 0, done.stderr
            assert b"udcff.bin" in done.stdout
