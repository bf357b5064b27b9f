"""What a backup may be put over, and what it is taken for: only what it is of, and never the toolkit's own state."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import guardrails.store.model_backups
from guardrails.errors import BusyError, ConfigError, IntegrityError, OperationError
from guardrails.filesystem import remove_tree
from guardrails.manifest import KnownHashes
from guardrails.paths import CODE_DIR, STAGE_PREFIX, Paths
from guardrails.state_io import read_json, write_json
from guardrails.store.backups import list_backup_ids, read_backup
from guardrails.store.change import open_store, say_nothing
from guardrails.store.copies import Copies
from guardrails.store.head import read_head
from guardrails.store.live_model import Outcome
from guardrails.store.model_backups import (
    back_up,
    back_up_version,
    copy_version_elsewhere,
    restore_backup,
    was_backed_up_since,
)
from guardrails.store.removal import delete_version
from guardrails.store.repair import verify_version
from guardrails.store.trash import list_entries
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata
from tests.store import WEIGHTS, copy_store, make_store, publish, weights_of


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return make_store(tmp_path_factory.mktemp("backups") / "base", versions=2, backups=True)


@pytest.fixture
def paths(template: Paths, tmp_path: Path) -> Paths:
    return copy_store(template, tmp_path / "base")


def restore(paths: Paths, backup_id: str, target: Path | None = None) -> Outcome:
    return restore_backup(paths, backup_id, target, say_nothing)


def set_config(paths: Paths, **values: Any) -> None:
    write_json(paths.config, {**(read_json(paths.config) or {}), **values})


def make_other_store(base: Path, folder: Path, first: int) -> Paths:
    """A base dir whose backups are in ``folder``; its versions hold ``first`` and ``first + 1``, none backed up."""
    paths = make_store(base, versions=0)
    set_config(paths, backup_dir=str(folder))
    publish(paths, first)
    publish(paths, first + 1)
    return paths


@pytest.fixture
def stranger(paths: Paths, tmp_path: Path) -> Paths:
    """A base dir that keeps its backups where ``paths`` does, with a v001 and a v002 of its own."""
    return make_other_store(tmp_path / "stranger", paths.backups, 7)


def all_good(paths: Paths) -> bool:
    return not any(verify_version(paths, version, KnownHashes()) for version in list_version_ids(paths))


# Backups of another base dir's versions


def test_a_backup_of_another_base_dir_becomes_a_version_of_its_own(paths: Paths, stranger: Paths) -> None:
    own = {version: weights_of(stranger.version(version) / "model") for version in ("v001", "v002")}
    assert restore(stranger, "b001").version == "v003"
    assert weights_of(stranger.current_model) == weights_of(paths.version("v001") / "model")
    assert {version: weights_of(stranger.version(version) / "model") for version in own} == own
    assert all_good(stranger)
    made, known = read_metadata(stranger, "v003"), read_metadata(paths, "v001")
    assert (made["parent"], made["run_id"]) == ("v002", None)
    inherited = ("training_steps", "total_evals", "loss", "data", "base_model", "base_model_fingerprint", "config")
    assert {key: made[key] for key in inherited} == {key: known[key] for key in inherited}
    assert made["training_steps"] != read_metadata(stranger, "v002")["training_steps"]


def test_so_does_one_whose_version_was_removed_or_cannot_be_read_here(paths: Paths, stranger: Paths) -> None:
    backup = back_up_version(stranger, "v001")
    with open_store(stranger, "test"):
        delete_version(stranger, "v001", Copies(stranger, strict=True), "deleted")
    assert restore(stranger, "b001").version == "v003"
    assert not is_kept(stranger, "v001")
    assert restore(stranger, backup["id"]).version == "v001"
    assert all_good(stranger)
    (stranger.version("v002") / "metadata.json").write_text("{")
    assert restore(stranger, "b002").version == "v004"
    assert (stranger.version("v002") / "metadata.json").read_text() == "{"


def test_a_backup_of_the_own_version_puts_only_that_versions_metadata_back(paths: Paths, stranger: Paths) -> None:
    good = read_metadata(paths, "v001")
    back_up_version(stranger, "v001")
    (paths.version("v001") / "metadata.json").write_text("{")
    said: list[str] = []
    outcome = restore_backup(paths, "b001", None, said.append)
    assert outcome.message == "put the metadata of v001 back; current_model/ is as it was"
    assert "v001: metadata.json put back from b001" in said
    assert read_metadata(paths, "v001") == good
    assert read_head(paths)["version"] == "v002"


def test_a_backup_of_a_versions_folder_does_not_stand_for_another_version(paths: Paths, stranger: Paths) -> None:
    backup = back_up(paths, paths.version("v001"), "manual", None)["id"]
    with pytest.raises(OperationError, match="v001 is there already"):
        restore(paths, backup)
    with pytest.raises(OperationError, match="v001 is there with other files") as caught:
        restore(stranger, backup)
    assert "TARGET" in caught.value.hint
    remove_tree(stranger.version("v001"))
    assert restore(stranger, backup).version == "v001"
    assert weights_of(stranger.version("v001") / "model") == weights_of(paths.version("v001") / "model")


def test_what_was_said_of_a_version_since_its_backup_stays_when_it_is_brought_back(paths: Paths) -> None:
    file = paths.version("v001") / "metadata.json"
    write_json(file, {**read_metadata(paths, "v001"), "description": "the good one"})
    with open_store(paths, "test"):
        delete_version(paths, "v001", Copies(paths, strict=True), "deleted")
    assert restore(paths, "b001").version == "v001"
    assert read_metadata(paths, "v001")["description"] == "the good one"
    assert "removed_at" not in read_metadata(paths, "v001")


# Where a backup may be put


@pytest.mark.parametrize(
    "name",
    [
        *("queue", "queue/high", "runs", "control", "status", ".locks", "inbox"),
        *(".config_lock.json", "models/trash", f"current_model/{WEIGHTS}", "models/versions/v001/model"),
    ],
)
def test_what_the_toolkit_keeps_itself_is_not_put_back_in_its_place(paths: Paths, name: str, tmp_path: Path) -> None:
    place = paths.base / name
    for file in (paths.config_lock, paths.queue_folder("high") / "1", *(paths.models / "trash/1", paths.inbox / "1")):
        file.write_text("{}")
    for folder in (paths.control, paths.status, paths.locks, paths.runs):
        (folder / "1").write_text("{}")
    if paths.models in place.parents:
        # back_up refuses some of these; a record of another toolkit, or an edited one, may name them.
        backup = back_up(paths, paths.config, "manual", None)["id"]
        file = paths.backups / backup / "metadata.json"
        write_json(file, {**(read_json(file) or {}), "source": name})
    else:
        backup = back_up(paths, place, "manual", None)["id"]
    with pytest.raises(OperationError, match="own state") as caught:
        restore(paths, backup)
    assert "TARGET" in caught.value.hint
    assert place.exists()
    assert not list_entries(paths.trash)
    restore(paths, backup, tmp_path / "elsewhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"mex_length": 1}', '{"max_length": "x"}', "\udcff"])
def test_a_config_that_cannot_be_trained_with_is_not_put_in_place(paths: Paths, text: str) -> None:
    good = paths.config.read_text()
    assert restore(paths, back_up(paths, paths.config, "manual", None)["id"]).version is None
    paths.config.write_text(text, errors="surrogateescape")
    backup = back_up(paths, paths.config, "manual", None)["id"]
    paths.config.write_text(good)
    with pytest.raises(ConfigError, match=r"config\.json"):
        restore(paths, backup)
    assert paths.config.read_text() == good


def test_a_new_folder_for_a_copy_is_none_of_the_toolkits_own(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(paths.base)
    (tmp_path / "dangling").symlink_to("/nowhere")
    for target in (
        *(paths.current_model, paths.current_model / "sub", paths.versions / "v777", paths.models / "new"),
        *(paths.backups / "b777", paths.queue / "x", paths.runs / "x", paths.inbox / "x", paths.locks / "x"),
        *(tmp_path / "link" / "models" / "x", tmp_path / "new" / ".." / "base" / "models" / "x"),
        *(tmp_path / "dangling", tmp_path, paths.config, Path("/"), tmp_path / "new" / ".."),
    ):
        with pytest.raises(OperationError):
            restore(paths, "b001", target)
        with pytest.raises(OperationError):
            copy_version_elsewhere(paths, "v001", target, say_nothing)
    assert sorted(os.listdir(tmp_path)) == ["base", "dangling", "link"]
    assert list_version_ids(paths) == ["v001", "v002"]


def test_the_current_folder_is_no_new_one(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for target in (Path(), Path("new/.."), tmp_path / "empty"):
        with pytest.raises(OperationError, match="exists"):
            copy_version_elsewhere(paths, "v001", target, say_nothing)
    assert copy_version_elsewhere(paths, "v001", Path("new"), say_nothing) == tmp_path / "empty" / "new"
    assert weights_of(Path("new")) == weights_of(paths.version("v001") / "model")


def fail(*arguments: object, **more: object) -> None:
    raise OSError(28, "No space left on device")


def test_no_stage_is_left_beside_the_target(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardrails.store.model_backups, "rename_noreplace", fail)
    with pytest.raises(OSError, match="No space"):
        restore(paths, "b001", tmp_path / "out" / "one")
    with pytest.raises(OSError, match="No space"):
        copy_version_elsewhere(paths, "v001", tmp_path / "out" / "one", say_nothing)
    (paths.base / "notes").mkdir()
    (paths.base / "notes" / "text").write_text("text")
    backup = back_up(paths, paths.base / "notes", "manual", None)["id"]
    with pytest.raises(OSError, match="No space"):
        restore(paths, backup)
    assert os.listdir(tmp_path / "out") == []
    assert not [name for name in os.listdir(paths.base) if name.startswith(STAGE_PREFIX)]


def test_nothing_is_put_over_what_cannot_be_kept(paths: Paths) -> None:
    other_disk = Path("/dev/shm") / f"guardrails-{os.getpid()}"
    if not os.access("/dev/shm", os.W_OK) or Path("/dev/shm").stat().st_dev == paths.base.stat().st_dev:
        pytest.skip("one disk only")
    other_disk.mkdir()
    try:
        (other_disk / "data").write_text("old")
        backup = back_up(paths, other_disk / "data", "manual", None)["id"]
        (other_disk / "data").write_text("new")
        with pytest.raises(OperationError, match="another disk") as caught:
            restore(paths, backup)
        assert "TARGET" in caught.value.hint
        assert os.listdir(other_disk) == ["data"]
        assert (other_disk / "data").read_text() == "new"
        (other_disk / "data").unlink()
        restore(paths, backup)
        assert (other_disk / "data").read_text() == "old"
    finally:
        shutil.rmtree(other_disk)


def test_what_is_on_another_device_is_refused_before_anything_is_written(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    (paths.base / "notes").write_text("old")
    backup = back_up(paths, paths.base / "notes", "manual", None)["id"]

    def lstat(path: Path, look: Any = os.lstat) -> os.stat_result:
        status = list(look(path))
        status[2] += 1
        return os.stat_result(status)

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(OperationError, match="another disk"):
        restore(paths, backup)
    monkeypatch.undo()
    assert (paths.base / "notes").read_text() == "old"
    assert not list_entries(paths.trash)


# What is backed up


def test_no_backup_of_a_model_that_is_written_to(paths: Paths) -> None:
    with open(paths.current_model / WEIGHTS, "r+b"), pytest.raises(BusyError):
        back_up(paths, paths.current_model, "manual", None)
    assert list_backup_ids(paths.backups) == ["b001", "b002"]
    with open(paths.current_model / WEIGHTS, "r+b"):
        done = subprocess.run(
            [sys.executable, CODE_DIR / "backup_manager.py", "--base-dir", paths.base, "backup", paths.current_model],
            capture_output=True,
            check=False,
        )
    assert done.returncode == 20
    assert back_up(paths, paths.current_model, "manual", None)["version"] == "v002"


def test_only_a_backup_of_an_own_version_is_the_daily_one(paths: Paths, stranger: Paths) -> None:
    hour_ago = time.time() - 3600
    assert was_backed_up_since(paths, hour_ago)
    assert not was_backed_up_since(stranger, hour_ago)
    assert not was_backed_up_since(paths, time.time() + 3600)
    back_up(stranger, stranger.config, "manual", None)
    assert not was_backed_up_since(stranger, hour_ago)
    backup = back_up_version(stranger, "v002")["id"]
    assert was_backed_up_since(stranger, hour_ago)
    (paths.backups / backup / "metadata.json").write_text("{")
    assert not was_backed_up_since(stranger, hour_ago)


def test_a_damaged_backup_is_still_refused(paths: Paths) -> None:
    file = paths.backups / "b001" / "model" / WEIGHTS
    file.chmod(0o644)
    file.write_bytes(b"x")
    with pytest.raises(IntegrityError):
        restore(paths, "b001")
    assert json.loads((paths.backups / "b001" / "metadata.json").read_text()) == read_backup(paths.backups, "b001")
