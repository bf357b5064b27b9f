"""Changes of ``current_model/``: one step, healed or undone, nothing lost."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from guardrails.config import load_config
from guardrails.errors import DamagedStateError, IntegrityError, OperationError
from guardrails.filesystem import UnsupportedError, remove_tree
from guardrails.manifest import find_damage
from guardrails.paths import Paths
from guardrails.queue_records import processing, records
from guardrails.state_io import read_json, write_json
from guardrails.store import change, live_model
from guardrails.store.backups import backup_of_version
from guardrails.store.change import open_store, say_nothing
from guardrails.store.head import read_head
from guardrails.store.live_model import (
    finish_published_run,
    publish_run,
    restore,
    rollback,
    save_version,
)
from guardrails.store.model_backups import back_up, back_up_version, copy_version_elsewhere, restore_backup
from guardrails.store.trash import list_entries
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata
from tests.store import WEIGHTS, flip, make_run, make_store, overwrite, publish, weights_of


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return make_store(tmp_path / "base")


def assert_whole(paths: Paths, version: str | None) -> None:
    """``current_model/`` is the version, every version is undamaged, and nothing is left lying."""
    assert read_head(paths)["version"] == version
    assert not paths.intent.exists()
    for version_id in list_version_ids(paths):
        assert find_damage(paths.version(version_id) / "model", read_metadata(paths, version_id)["files"]) == []
    if version is not None:
        assert find_damage(paths.current_model, read_metadata(paths, version)["files"]) == []
    names = [name for folder in (paths.models, paths.versions, paths.backups) for name in os.listdir(folder)]
    assert [name for name in names if name.startswith(".stage-") or ".tmp-" in name] == []


def test_versions_are_read_only_plain_trees_and_share_no_inode_with_the_live_model(paths: Paths) -> None:
    for version_id in list_version_ids(paths):
        model = paths.version(version_id) / "model"
        assert model.stat().st_mode & 0o777 == 0o555
        assert all(path.stat().st_mode & 0o777 == 0o444 for path in model.iterdir())
    live = {path.stat().st_ino for path in paths.current_model.iterdir()}
    saved = {path.stat().st_ino for path in paths.versions.rglob("*")}
    assert not live & saved
    assert_whole(paths, "v003")


def test_a_write_into_the_live_model_never_reaches_a_version_or_backup(paths: Paths) -> None:
    back_up_version(paths, "v003")
    overwrite(paths.current_model / WEIGHTS, b"x" * 100)
    assert find_damage(paths.version("v003") / "model", read_metadata(paths, "v003")["files"]) == []
    rollback(paths, say_nothing)
    assert_whole(paths, "v003")


def test_rolling_back_the_last_training_moves_the_retired_folder_back_and_copies_nothing(paths: Paths) -> None:
    retired = (paths.retired_model / WEIGHTS).stat().st_ino
    current = (paths.current_model / WEIGHTS).stat().st_ino
    rollback(paths, say_nothing)
    assert (paths.current_model / WEIGHTS).stat().st_ino == retired
    assert_whole(paths, "v002")
    restore(paths, "v003", say_nothing)
    assert (paths.current_model / WEIGHTS).stat().st_ino == current
    assert_whole(paths, "v003")


def test_what_was_changed_by_hand_becomes_a_version_before_it_is_replaced(paths: Paths) -> None:
    (paths.current_model / "extra").mkdir()
    (paths.current_model / "extra" / "notes").write_text("by hand")
    outcome = rollback(paths, say_nothing)
    assert (outcome.version, outcome.undo) == ("v003", "model_versioner.py restore v004")
    assert (paths.version("v004") / "model" / "extra" / "notes").read_text() == "by hand"
    assert_whole(paths, "v003")
    restore(paths, "v004", say_nothing)
    assert (paths.current_model / "extra" / "notes").read_text() == "by hand"
    assert_whole(paths, "v004")


def test_a_model_changed_by_hand_during_a_run_is_kept_when_the_run_is_published(paths: Paths) -> None:
    overwrite(paths.current_model / WEIGHTS, b"by hand")
    by_hand = weights_of(paths.current_model)
    publish(paths, 4)
    assert weights_of(paths.version("v005") / "model") == by_hand
    assert_whole(paths, "v004")
    assert publish(paths, 6) == "v006"


def test_an_unchanged_model_makes_no_second_version(paths: Paths) -> None:
    for _ in range(2):
        with open_store(paths, "test"):
            assert save_version(paths, "again", "manual") == ("v003", False)
    # The same bytes under new stamps are still the same model.
    content = weights_of(paths.current_model)
    (paths.current_model / WEIGHTS).unlink()
    (paths.current_model / WEIGHTS).write_bytes(content)
    with open_store(paths, "test"):
        assert save_version(paths, "again", "manual") == ("v003", False)


def test_a_rewrite_within_the_stamps_granularity_is_noticed(paths: Paths) -> None:
    """git's racy rule: same size, and stamps forced back to what they were."""
    path = paths.current_model / WEIGHTS
    head = read_head(paths)
    overwrite(path, b"x")
    status = path.stat()
    head["signature"][WEIGHTS] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    write_json(paths.head, head)
    with open_store(paths, "test"):
        assert save_version(paths, "changed", "manual") == ("v004", True)


def test_a_removed_model_comes_back_with_one_rollback(paths: Paths) -> None:
    for path in paths.current_model.iterdir():
        path.unlink()
    assert rollback(paths, say_nothing).version == "v003"
    assert_whole(paths, "v003")


def test_going_back_past_a_removed_parent_names_the_ancestor_taken_instead(paths: Paths) -> None:
    (paths.version("v002") / "model").chmod(0o755)
    for path in (paths.version("v002") / "model").iterdir():
        path.unlink()
    (paths.version("v002") / "model").rmdir()
    lines: list[str] = []
    assert rollback(paths, lines.append).version == "v001"
    assert any("v002 was removed" in line and "v001" in line for line in lines)


def test_numbers_are_never_used_twice(paths: Paths) -> None:
    rollback(paths, say_nothing)
    (paths.version("v003") / "model").chmod(0o755)
    for folder in (paths.version("v003") / "model", paths.version("v003")):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert publish(paths, 9) == "v004"


def test_a_damaged_version_is_healed_from_its_backup_on_restore(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    flip(paths.version("v001") / "model" / WEIGHTS)
    restore(paths, "v001", say_nothing)
    assert find_damage(paths.current_model, read_metadata(paths, "v001")["files"]) == []


def test_a_retired_tree_damaged_under_the_same_stamps_is_healed_after_the_exchange(paths: Paths) -> None:
    flip(paths.retired_model / WEIGHTS)
    head = read_head(paths)
    status = (paths.retired_model / WEIGHTS).stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    head["retired"]["signature"][WEIGHTS] = stamp
    write_json(paths.head, head)
    lines: list[str] = []
    rollback(paths, lines.append)
    assert lines[0] == "current_model/ is v002"
    assert "healed" in lines[2]
    assert_whole(paths, "v002")


def test_a_version_damaged_beyond_healing_is_refused_and_nothing_changes(paths: Paths) -> None:
    live = weights_of(paths.current_model)
    flip(paths.version("v001") / "model" / WEIGHTS)
    with pytest.raises(IntegrityError):
        restore(paths, "v001", say_nothing)
    assert weights_of(paths.current_model) == live
    assert (read_head(paths)["version"], paths.intent.exists()) == ("v003", False)


def test_damage_found_after_the_exchange_undoes_it(paths: Paths) -> None:
    live = weights_of(paths.current_model)
    flip(paths.version("v002") / "model" / WEIGHTS)
    flip(paths.retired_model / WEIGHTS)
    head = read_head(paths)
    status = (paths.retired_model / WEIGHTS).stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    head["retired"]["signature"][WEIGHTS] = stamp
    write_json(paths.head, head)
    with pytest.raises(IntegrityError):
        rollback(paths, say_nothing)
    assert weights_of(paths.current_model) == live
    assert (read_head(paths)["version"], paths.intent.exists()) == ("v003", False)


def test_where_folders_cannot_be_exchanged_two_renames_do(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(one: Path, other: Path) -> None:
        raise UnsupportedError(22, "Invalid argument", str(one), None, str(other))

    monkeypatch.setattr(change, "exchange", unsupported)
    for operation in ("rollback", "rollback", "restore"):
        if operation == "rollback":
            rollback(paths, say_nothing)
        else:
            restore(paths, "v003", say_nothing)
    assert_whole(paths, "v003")


def test_a_link_in_place_of_the_model_is_refused(paths: Paths) -> None:
    paths.current_model.rename(paths.base / "elsewhere")
    paths.current_model.symlink_to(paths.base / "elsewhere")
    with pytest.raises(OperationError, match="symbolic link"):
        rollback(paths, say_nothing)


def test_the_base_model_of_a_version_comes_back_with_it(paths: Paths) -> None:
    other = {"blake3": "e" * 64, "files": []}
    lock = {"schema_version": 1, "locked": {"max_length": 64, "base_model": "base", "model_name": "model"}}
    write_json(paths.config_lock, {**lock, "base_model_fingerprint": {"blake3": "f" * 64, "files": []}})
    publish(paths, 4, base_model_files=other, config={"base_model": "other", "max_length": 64})
    paths.config.write_text(paths.config.read_text().replace('"base"', '"other"'))
    write_json(
        paths.config_lock,
        {
            **lock,
            "locked": {**lock["locked"], "base_model": "other"},  # type: ignore[dict-item]
            "base_model_fingerprint": other,
        },
    )
    rollback(paths, say_nothing)
    assert load_config(paths).base_model == "base"
    assert (read_json(paths.config_lock) or {})["base_model_fingerprint"]["blake3"] == "f" * 64
    restore(paths, "v004", say_nothing)
    assert load_config(paths).base_model == "other"
    assert (read_json(paths.config_lock) or {})["locked"]["base_model"] == "other"


def test_a_backup_brings_back_model_and_version_when_both_are_gone(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    weights = weights_of(paths.current_model)
    for folder in (paths.current_model, paths.version("v003") / "model", paths.version("v003")):
        folder.chmod(0o755)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    restore_backup(paths, "b003", None, say_nothing)
    assert weights_of(paths.current_model) == weights
    assert_whole(paths, "v003")


def test_a_damaged_backup_is_refused(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    flip(paths.backups / "b001" / "model" / WEIGHTS)
    with pytest.raises(IntegrityError):
        restore_backup(paths, "b001", None, say_nothing)
    assert_whole(paths, "v003")


def test_backups_have_inodes_of_their_own_and_any_folder_or_file_can_have_one(paths: Paths) -> None:
    assert back_up(paths, paths.current_model, "manual", "why")["version"] == "v003"
    assert back_up(paths, paths.version("v001"), "manual", None)["version"] == "v001"
    saved = back_up(paths, paths.config, "emergency", None)
    content = paths.config.read_text()
    paths.config.write_text("{}")
    restore_backup(paths, saved["id"], None, say_nothing)
    assert paths.config.read_text() == content
    assert [
        e.content.read_text() for e in list_entries(paths.trash) if e.record and e.record["name"] == "config.json"
    ] == ["{}"]
    inodes = [path.stat().st_ino for path in (*paths.models.rglob(WEIGHTS), *paths.current_model.rglob(WEIGHTS))]
    assert len(set(inodes)) == len(inodes)
    with pytest.raises(OperationError, match="contain each other"):
        back_up(paths, paths.models, "manual", None)


def test_finishing_a_pending_change_comes_before_any_other(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill right after the intent record was written, and one right after the exchange."""
    for step in ("_exchange", "_settle_displaced"):
        with monkeypatch.context() as patched:
            patched.setattr(change, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                rollback(paths, say_nothing)
        assert paths.intent.exists()
        with open_store(paths, "test"):
            assert save_version(paths, "next", "manual")[1] is False
    assert_whole(paths, "v001")
    assert json.loads(paths.head.read_text())["operation"] == "rollback"
    assert all(is_kept(paths, version) for version in ("v001", "v002", "v003"))
    assert live_model.rollback(paths, say_nothing).version is None


def test_a_completed_run_is_published_before_a_restore_and_not_after_it(paths: Paths) -> None:
    make_run(paths, 4)
    restore(paths, "v001", say_nothing)
    assert list_version_ids(paths) == ["v001", "v002", "v003", "v004"]
    assert processing(paths) is None
    assert_whole(paths, "v001")


def test_a_completed_run_is_published_and_then_undone_by_a_rollback(paths: Paths) -> None:
    make_run(paths, 4)
    assert rollback(paths, say_nothing).undo == "model_versioner.py restore v004"
    assert_whole(paths, "v003")


def test_a_retired_tree_that_is_gone_costs_a_copy_and_nothing_else(paths: Paths) -> None:
    remove_tree(paths.retired_model)
    rollback(paths, say_nothing)
    assert_whole(paths, "v002")
    remove_tree(paths.retired_model)
    restore(paths, "v001", say_nothing)
    assert_whole(paths, "v001")


def test_a_run_that_a_rollback_undid_meanwhile_is_not_published_again(paths: Paths) -> None:
    record = make_run(paths, 4)
    version = publish_run(paths, record, say_nothing)
    assert version is not None
    rollback(paths, say_nothing)
    assert publish_run(paths, record, say_nothing) is None
    finish_published_run(paths, record, version)
    assert_whole(paths, "v003")
    assert [record.name for record in records(paths, "skipped")] == ["4.jsonl"]


def test_a_run_is_published_once_whatever_came_between_its_two_steps(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_run(paths, 4)
    with monkeypatch.context() as patched:
        patched.setattr(live_model, "change_to", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            publish_run(paths, record, say_nothing)
    overwrite(paths.current_model / WEIGHTS, b"by hand")
    with open_store(paths, "test"):
        assert save_version(paths, "by hand", "manual") == ("v005", True)
    version = publish_run(paths, record, say_nothing)
    assert version is not None
    assert version["id"] == "v004"
    assert list_version_ids(paths) == ["v001", "v002", "v003", "v004", "v005"]
    assert_whole(paths, "v004")


def test_a_lost_head_is_found_out_anew_from_the_versions(paths: Paths) -> None:
    paths.head.unlink()
    with open_store(paths, "test"):
        assert save_version(paths, "again", "manual") == ("v003", False)
    write_json(paths.head, {"schema_version": 1})
    overwrite(paths.current_model / WEIGHTS, b"by hand")
    with open_store(paths, "test"):
        assert save_version(paths, "by hand", "manual") == ("v004", True)
    assert (read_metadata(paths, "v004")["parent"], read_metadata(paths, "v004")["training_steps"]) == ("v003", 30)


def test_everything_but_the_backups_can_be_lost(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    remove_tree(paths.versions)
    remove_tree(paths.current_model)
    for backup in ("b002", "b003"):
        restore_backup(paths, backup, None, say_nothing)
    assert_whole(paths, "v003")


def test_torn_metadata_comes_back_from_the_backup(tmp_path: Path) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    torn = paths.version("v002") / "metadata.json"
    torn.write_text('{"schema_version": 1}')
    with pytest.raises(DamagedStateError):
        restore(paths, "v002", say_nothing)
    restore_backup(paths, "b002", None, say_nothing)
    assert torn.with_name("metadata.json.damaged").exists()
    assert_whole(paths, "v003")
    restore(paths, "v002", say_nothing)
    assert_whole(paths, "v002")


@pytest.mark.parametrize("step", ["write_head", "discard"])
def test_an_undo_that_is_killed_is_finished_by_the_next_command(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    live = weights_of(paths.current_model)
    flip(paths.version("v002") / "model" / WEIGHTS)
    flip(paths.retired_model / WEIGHTS)
    head = read_head(paths)
    status = (paths.retired_model / WEIGHTS).stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    head["retired"]["signature"][WEIGHTS] = stamp
    write_json(paths.head, head)
    calls = []

    def die_at_the_second(*_: object) -> None:
        calls.append(step)
        if step == "discard" or len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(change, step, die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            rollback(paths, say_nothing)
    with open_store(paths, "next"):
        pass
    assert weights_of(paths.current_model) == live
    assert (read_head(paths)["version"], paths.intent.exists()) == ("v003", False)


def interrupt(paths: Paths, step: str, operation: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the operation and stop it where it comes to ``step`` of a change."""
    with monkeypatch.context() as patched:
        patched.setattr(change, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            operation()
    assert paths.intent.exists()


def test_a_change_interrupted_and_copied_to_other_inodes_keeps_what_was_made_by_hand(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overwrite(paths.current_model / WEIGHTS, b"by hand")
    by_hand = weights_of(paths.current_model)
    interrupt(paths, "_settle_displaced", lambda: restore(paths, "v001", say_nothing), monkeypatch)
    shutil.copytree(paths.base, tmp_path / "copy", symlinks=True)
    copy = Paths(tmp_path / "copy")
    with open_store(copy, "next"):
        pass
    assert weights_of(copy.version("v004") / "model") == by_hand
    assert_whole(copy, "v001")


def test_running_an_interrupted_rollback_again_goes_back_once(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(paths, "_settle_displaced", lambda: rollback(paths, say_nothing), monkeypatch)
    assert rollback(paths, say_nothing).version == "v002"
    assert_whole(paths, "v002")


def test_a_model_that_cannot_be_saved_whole_is_never_cleaned_away(paths: Paths) -> None:
    overwrite(paths.current_model / WEIGHTS, b"by hand")
    by_hand = weights_of(paths.current_model)
    exchange = change._exchange

    def plant_a_link(paths: Paths, intent: dict[str, object]) -> None:
        (paths.current_model / "link").symlink_to("/nowhere")
        exchange(paths, intent)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(change, "_exchange", plant_a_link)
        with pytest.raises(IntegrityError):
            restore(paths, "v001", say_nothing)
    with pytest.raises(IntegrityError), open_store(paths, "next"):
        pass
    stage = paths.models / ".stage-v001"
    assert weights_of(stage) == by_hand
    (stage / "link").unlink()
    with open_store(paths, "next"):
        pass
    assert weights_of(paths.version("v004") / "model") == by_hand
    assert_whole(paths, "v001")


def test_another_base_dirs_backup_of_the_same_number_counts_for_nothing(paths: Paths, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", versions=1, weight_bytes=99, backups=True)
    assert backup_of_version(other.backups, read_metadata(other, "v001")) == "b001"
    assert backup_of_version(other.backups, read_metadata(paths, "v001")) is None


def test_a_damaged_output_is_trained_again_and_blocks_nothing(paths: Paths) -> None:
    record = make_run(paths, 4)
    assert record.run_id is not None
    overwrite(paths.run(record.run_id) / "output" / WEIGHTS, b"damaged")
    with pytest.raises(IntegrityError):
        publish_run(paths, record, say_nothing)
    assert not (paths.run(record.run_id) / "outcome.json").exists()
    assert "dropped the run" in rollback(paths, say_nothing).message
    assert_whole(paths, "v003")


def test_a_backup_named_through_a_link_is_known_as_the_model(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(paths.base)
    assert back_up(paths, tmp_path / "link" / "current_model", "manual", None)["version"] == "v003"
    part = back_up(paths, paths.current_model / WEIGHTS, "manual", None)
    with pytest.raises(OperationError, match="part of a model"):
        restore_backup(paths, part["id"], None, say_nothing)
    restore_backup(paths, part["id"], tmp_path / "weights", say_nothing)
    assert (tmp_path / "weights").read_bytes() == weights_of(paths.current_model)


def test_a_version_can_be_copied_elsewhere_whole_and_writable(paths: Paths, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    copy_version_elsewhere(paths, "v001", target, say_nothing)
    assert find_damage(target, read_metadata(paths, "v001")["files"]) == []
    assert os.access(target / WEIGHTS, os.W_OK)
    with pytest.raises(OperationError, match="not an empty"):
        copy_version_elsewhere(paths, "v001", target, say_nothing)
