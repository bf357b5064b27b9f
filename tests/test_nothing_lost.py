"""Edits at bad moments, copies that rot, base dirs that share a backup folder: every byte stays somewhere."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from guardrails.errors import BusyError, DamagedStateError, IntegrityError, OperationError
from guardrails.filesystem import copy_tree, remove_tree
from guardrails.manifest import KnownHashes, find_damage
from guardrails.paths import Paths
from guardrails.store import backups, change, repair
from guardrails.store.backups import remove_leftovers
from guardrails.store.change import open_store, say_nothing
from guardrails.store.head import read_head
from guardrails.store.live_model import restore, rollback, save_version
from guardrails.store.model_backups import back_up, back_up_version
from guardrails.store.removal import empty_trash
from guardrails.store.repair import put_metadata_back, repair_everything, verify_version
from guardrails.store.trash import Entry, discard, list_entries
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata, remember_versions
from tests.store import WEIGHTS, flip, make_run, make_store, overwrite, publish, weights_of

HANDMADE = b"made by hand"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return make_store(tmp_path / "base")


def holds(paths: Paths, content: bytes) -> bool:
    """Whether any file below ``models/`` or ``current_model/`` holds these bytes."""
    trees = (paths.models, paths.current_model)
    return any(content in path.read_bytes() for tree in trees for path in tree.rglob("*") if path.is_file())


def repaired(paths: Paths) -> dict[str, bool]:
    """What ``repair`` found damaged, and whether it is good now."""
    with open_store(paths, "test"):
        return {one.id: not one.left for one in repair_everything(paths) if one.found}


def test_what_was_written_between_a_kill_and_its_repetition_is_kept(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(change, "_exchange", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rollback(paths, say_nothing)
    overwrite(paths.current_model / WEIGHTS, HANDMADE)
    with open_store(paths, "next"):
        pass
    assert read_head(paths)["version"] == "v002"
    for version in ("v001", "v003", "v001"):
        restore(paths, version, say_nothing)
    assert HANDMADE in weights_of(paths.version("v004") / "model")
    assert verify_version(paths, "v004", KnownHashes()) == []


@pytest.mark.parametrize("what", ["restore", "publish"])
def test_what_was_written_while_a_change_copied_is_kept(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    copy_version = repair.copy_version

    def write_meanwhile(*arguments: Any) -> None:
        copy_version(*arguments)
        (paths.current_model / "notes").write_bytes(HANDMADE)

    with monkeypatch.context() as patched:
        patched.setattr(change, "copy_version", write_meanwhile)
        if what == "restore":
            restore(paths, "v001", say_nothing)
        else:
            publish(paths, 4)
    restore(paths, "v002", say_nothing)
    assert holds(paths, HANDMADE)
    assert any((paths.version(version) / "model" / "notes").exists() for version in list_version_ids(paths))


def test_a_change_that_failed_before_its_first_step_is_not_carried_out_later(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patched:
        patched.setattr(change, "exchange", busy)
        with pytest.raises(OSError, match="busy"):
            rollback(paths, say_nothing)
    assert not paths.intent.exists()
    with open_store(paths, "test"):
        assert save_version(paths, "as it is", "manual") == ("v003", False)
    assert rollback(paths, say_nothing).version == "v002"


def test_a_model_removed_after_a_kill_blocks_nothing(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    for removed in (False, True):
        if removed:
            remove_tree(paths.retired_model)
        with monkeypatch.context() as patched:
            patched.setattr(change, "_exchange", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                restore(paths, "v001", say_nothing)
        remove_tree(paths.current_model)
        with open_store(paths, "next"):
            pass
        assert find_damage(paths.current_model, read_metadata(paths, "v001")["files"]) == []
        retired = read_head(paths)["retired"]
        if retired is not None and paths.retired_model.exists():
            files = read_metadata(paths, retired["version"])["files"]
            assert find_damage(paths.retired_model, files) == []
        restore(paths, "v003", say_nothing)


def test_the_retired_tree_is_kept_while_its_version_has_no_second_copy(paths: Paths) -> None:
    weights = weights_of(paths.current_model)
    flip(paths.version("v003") / "model" / WEIGHTS)
    rollback(paths, say_nothing)
    restore(paths, "v001", say_nothing)
    assert holds(paths, weights)
    back_up_version(paths, "v002")
    before = len(list_entries(paths.trash))
    assert read_head(paths)["retired"]["version"] == "v002"
    publish(paths, 4)
    assert len(list_entries(paths.trash)) == before


@pytest.mark.parametrize("how", ["link", "put"])
def test_no_version_is_made_of_a_damaged_file_of_its_parent(paths: Paths, how: str) -> None:
    flip(paths.version("v003") / "model" / "adapter_config.json")
    if how == "link":
        assert publish(paths, 4) == "v004"
        version = "v004"
    else:
        overwrite(paths.current_model / WEIGHTS, HANDMADE)
        with open_store(paths, "test"):
            version = str(save_version(paths, "mine", "manual")[0])
    assert verify_version(paths, version, KnownHashes()) == []


def test_a_sector_that_cannot_be_read_is_healed_like_other_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    bad = {(paths.version("v001") / "model" / WEIGHTS).stat().st_ino}
    from guardrails import filesystem, manifest

    open_regular, hash_file = filesystem._open_regular, manifest.hash_file

    def fail(path: Path) -> None:
        if path.exists() and path.stat().st_ino in bad:
            raise OSError(5, "Input/output error", str(path))

    def fail_to_open(path: Path) -> int:
        fail(path)
        return open_regular(path)

    def fail_to_hash(path: Path, *, from_disk: bool = False) -> str:
        fail(path)
        return hash_file(path, from_disk=from_disk)

    monkeypatch.setattr(filesystem, "_open_regular", fail_to_open)
    for module in (manifest, repair):
        monkeypatch.setattr(module, "hash_file", fail_to_hash)
    restore(paths, "v001", say_nothing)
    assert (paths.version("v001") / "model" / WEIGHTS).stat().st_ino not in bad
    assert verify_version(paths, "v001", KnownHashes()) == []


def test_a_link_in_one_version_hinders_no_healing(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    (paths.version("v001") / "model").chmod(0o755)
    (paths.version("v001") / "model" / "link").symlink_to("/nowhere")
    flip(paths.version("v002") / "model" / WEIGHTS)
    assert repaired(paths) == {"v001": True, "v002": True}
    assert (paths.version("v001") / "model").stat().st_mode & 0o777 == 0o555


def test_a_model_whose_version_lost_its_files_gives_them_back(paths: Paths) -> None:
    remove_tree(paths.version("v003") / "model")
    with open_store(paths, "test"):
        assert save_version(paths, "again", "manual") == ("v003", False)
    assert verify_version(paths, "v003", KnownHashes()) == []


def test_a_model_whose_version_is_gone_altogether_becomes_a_new_one(paths: Paths) -> None:
    weights = weights_of(paths.current_model)
    remove_tree(paths.version("v003"))
    with open_store(paths, "test"):
        assert save_version(paths, "again", "manual") == ("v004", True)
    assert weights_of(paths.version("v004") / "model") == weights


def test_a_rollback_takes_back_a_restore_into_an_empty_place(paths: Paths) -> None:
    remove_tree(paths.current_model)
    restore(paths, "v001", say_nothing)
    assert rollback(paths, say_nothing).version == "v003"


def test_a_rollback_of_a_restore_over_a_removed_version_names_where_it_goes(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    restore(paths, "v001", say_nothing)
    remove_tree(paths.version("v003") / "model")
    lines: list[str] = []
    assert rollback(paths, lines.append).version == "v002"
    assert any("v003 was removed" in line and "v002" in line for line in lines)


def test_an_interrupted_rollback_that_has_to_be_undone_is_an_error(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(change, "_settle_displaced", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rollback(paths, say_nothing)
    overwrite(paths.current_model / WEIGHTS, HANDMADE)
    flip(paths.version("v002") / "model" / WEIGHTS)
    with pytest.raises(IntegrityError, match="v002 is damaged"):
        rollback(paths, say_nothing)
    assert read_head(paths)["version"] == "v003"


# Base dirs that share a backup folder


@pytest.fixture
def other(paths: Paths, tmp_path: Path) -> Paths:
    """Another base dir, with other weights in its versions and the same backup folder."""
    other = make_store(tmp_path / "other", weight_bytes=7000)
    for one in (paths, other):
        text = one.config.read_text().replace('"backup_dir": null', f'"backup_dir": "{tmp_path}/backups"')
        one.config.write_text(text)
    (tmp_path / "backups").mkdir()
    return other


@pytest.mark.parametrize("index", [True, False])
def test_metadata_never_come_from_another_base_dirs_backup(paths: Paths, other: Paths, index: bool) -> None:
    back_up_version(other, "v001")
    if not index:
        paths.version_index.unlink(missing_ok=True)
    weights = weights_of(paths.version("v001") / "model")
    (paths.version("v001") / "metadata.json").write_text("{")
    assert repaired(paths) == {"v001": False}
    assert weights_of(paths.version("v001") / "model") == weights
    back_up_version(other, "v002")
    with pytest.raises(DamagedStateError):
        put_metadata_back(paths, "v001")


def test_own_metadata_come_back_with_the_pin(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    from guardrails.store.removal import set_pinned

    with open_store(paths, "test"):
        set_pinned(paths, "v001", True)
    time.sleep(0.06)
    remember_versions(paths)
    (paths.version("v001") / "metadata.json").write_text("{")
    assert repaired(paths)["v001"]
    assert read_metadata(paths, "v001")["pinned"]


def test_what_others_keep_in_the_backup_folder_is_left_alone(paths: Paths, other: Paths) -> None:
    folder = paths.base.parent / "backups"
    (folder / ".stage-website").mkdir()
    (folder / ".stage-file").write_text("x")
    (folder / ".stage-b009").mkdir()
    remove_leftovers(folder)
    assert {path.name for path in folder.iterdir()} == {".stage-website", ".stage-file", ".lock"}


def test_a_backup_under_way_is_not_cleaned_away_by_another_base_dir(
    paths: Paths, other: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = backups._copy

    def clean_meanwhile(*arguments: Any) -> Any:
        files = copy(*arguments)
        with open_store(other, "meanwhile"):
            pass
        return files

    monkeypatch.setattr(backups, "_copy", clean_meanwhile)
    assert back_up(paths, paths.current_model, "manual", None)["version"] == "v003"


def test_a_broken_backup_folder_hinders_no_rollback(paths: Paths, other: Paths) -> None:
    shutil.rmtree(paths.base.parent / "backups")
    (paths.base.parent / "backups").write_text("no folder")
    assert rollback(paths, say_nothing).version == "v002"


# The trash


def find_entry(paths: Paths) -> Entry:
    return next(entry for entry in list_entries(paths.trash) if entry.record and entry.record["name"] == "notes")


def test_the_trash_keeps_what_no_version_and_no_backup_has(paths: Paths) -> None:
    (paths.base / "notes").write_bytes(HANDMADE)
    with open_store(paths, "test"):
        discard(paths, paths.base / "notes", "test")
        entry = find_entry(paths)
        decisions = {one.id: one for one in empty_trash(paths, 0, execute=True)}
        assert "--unsaved" in decisions[entry.folder.name].reason
        assert holds(paths, HANDMADE)
        empty_trash(paths, 0, execute=True, unsaved=True)
    assert not holds(paths, HANDMADE)


def test_an_entry_without_its_record_is_never_emptied(paths: Paths) -> None:
    (paths.base / "notes").write_bytes(HANDMADE)
    with open_store(paths, "test"):
        discard(paths, paths.base / "notes", "test")
        (find_entry(paths).folder / "entry.json").write_text("{")
        empty_trash(paths, 0, execute=True, unsaved=True)
    assert holds(paths, HANDMADE)


def test_a_file_named_like_one_of_ours_is_adopted_as_it_is(paths: Paths) -> None:
    (paths.current_model / "beside").write_text("mine")
    (paths.current_model / "x.stage-shared").write_text("mine too")
    rollback(paths, say_nothing)
    assert (paths.version("v004") / "model" / "beside").read_text() == "mine"
    assert (paths.version("v004") / "model" / "x.stage-shared").read_text() == "mine too"


def test_a_store_split_over_disks_is_refused_before_anything_is_done(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == paths.base.stat().st_dev:
        pytest.skip("no second file system")
    elsewhere = Path("/dev/shm") / f"versions-{os.getpid()}"
    shutil.copytree(paths.versions, elsewhere)
    try:
        paths.versions.rename(paths.base / "aside")
        paths.versions.symlink_to(elsewhere)
        overwrite(paths.current_model / WEIGHTS, HANDMADE)
        with pytest.raises(OperationError, match="another disk"):
            rollback(paths, say_nothing)
        assert not paths.intent.exists()
    finally:
        remove_tree(elsewhere)


def test_an_interrupted_change_with_lost_metadata_is_finished_from_the_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    time.sleep(0.06)
    remember_versions(paths)
    with monkeypatch.context() as patched:
        patched.setattr(change, "_check_or_heal", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rollback(paths, say_nothing)
    (paths.version("v002") / "metadata.json").write_text("{")
    with open_store(paths, "next"):
        pass
    assert read_metadata(paths, "v002")["id"] == "v002"
    assert is_kept(paths, "v002")
    assert make_run(paths, 9).name == "9.jsonl"


def test_a_model_open_for_writing_is_not_backed_up(paths: Paths) -> None:
    descriptor = os.open(paths.current_model / WEIGHTS, os.O_WRONLY)
    with pytest.raises(BusyError):
        back_up(paths, paths.current_model, "manual", None)
    os.close(descriptor)


def test_a_base_dir_moved_while_a_late_edit_becomes_a_version_loses_nothing(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy_version = repair.copy_version

    def write_meanwhile(*arguments: Any) -> None:
        copy_version(*arguments)
        (paths.current_model / "notes").write_bytes(HANDMADE)

    with monkeypatch.context() as patched:
        patched.setattr(change, "copy_version", write_meanwhile)
        patched.setattr(change, "add_version", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            restore(paths, "v001", say_nothing)
    moved = Paths(paths.base.rename(tmp_path / "moved"))
    with open_store(moved, "next"):
        pass
    assert (moved.version("v004") / "model" / "notes").read_bytes() == HANDMADE


def test_a_backup_begun_after_a_look_at_its_lock_is_not_cleaned_away(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "read_holder", lambda _: None, raising=False)
    with backups.lock_of_backups(paths.backups).hold("another base dir's backup"):
        (paths.backups / ".stage-b009").mkdir()
        remove_leftovers(paths.backups)
        assert (paths.backups / ".stage-b009").is_dir()
    remove_leftovers(paths.backups)
    assert not (paths.backups / ".stage-b009").exists()


def test_a_folder_of_a_version_that_cannot_be_listed_is_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    model = paths.version("v001") / "model"
    failures = iter([OSError(5, "Input/output error", str(model))])

    def fail_once(*arguments: Any, **options: Any) -> Any:
        if error := next(failures, None):
            raise error
        return copy_tree(*arguments, **options)

    monkeypatch.setattr(repair, "copy_tree", fail_once)
    restore(paths, "v001", say_nothing)
    assert find_damage(paths.current_model, read_metadata(paths, "v001")["files"]) == []
