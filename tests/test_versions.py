"""Saving: what is shared, what is copied, what is refused, and how thousands of versions are listed."""

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from guardrails.errors import BusyError, IntegrityError
from guardrails.filesystem import copy_tree
from guardrails.manifest import KnownHashes, find_damage
from guardrails.paths import Paths
from guardrails.state_io import read_json, write_json
from guardrails.store import version_records
from guardrails.store.change import open_store, say_nothing
from guardrails.store.live_model import restore, rollback, save_version
from guardrails.store.model_backups import back_up
from guardrails.store.removal import set_pinned
from guardrails.store.repair import repair_everything, verify_version
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata, read_summaries, remember_versions
from tests.store import WEIGHTS, flip, make_store, overwrite, publish, safetensors, weights_of


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return make_store(tmp_path / "base", versions=2)


def create(paths: Paths) -> str:
    with open_store(paths, "test"):
        version, is_new = save_version(paths, "test", "manual")
    assert version is not None
    assert is_new
    return version


def inodes(tree: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in tree.iterdir()}


def test_versions_share_the_files_that_did_not_change_and_no_others(paths: Paths) -> None:
    (paths.current_model / "more").write_bytes(b"x" * 9000)
    first = create(paths)
    overwrite(paths.current_model / WEIGHTS, b"changed")
    second = create(paths)
    one, other = inodes(paths.version(first) / "model"), inodes(paths.version(second) / "model")
    assert {name for name in one if one[name] == other[name]} == {"adapter_config.json", "more"}
    assert not set(other.values()) & set(inodes(paths.current_model).values())
    for version in (first, second):
        assert verify_version(paths, version, KnownHashes()) == []


def test_a_file_rewritten_with_the_same_bytes_is_shared_all_the_same(paths: Paths) -> None:
    weights = weights_of(paths.current_model)
    (paths.current_model / WEIGHTS).unlink()
    (paths.current_model / WEIGHTS).write_bytes(weights)
    (paths.current_model / "notes").write_text("new")
    version = create(paths)
    assert inodes(paths.version(version) / "model")[WEIGHTS] == inodes(paths.version("v002") / "model")[WEIGHTS]


def test_a_shared_file_that_is_gone_from_its_version_is_copied_from_the_model(paths: Paths) -> None:
    (paths.version("v002") / "model").chmod(0o755)
    (paths.version("v002") / "model" / WEIGHTS).unlink()
    (paths.current_model / "notes").write_text("new")
    version = create(paths)
    assert verify_version(paths, version, KnownHashes()) == []


def test_publishing_shares_what_training_left_alone(paths: Paths) -> None:
    publish(paths, 3)
    one, other = (inodes(paths.version(version) / "model") for version in ("v002", "v003"))
    assert one["adapter_config.json"] == other["adapter_config.json"]


def test_a_damaged_shared_file_is_healed_in_every_version_that_has_it(paths: Paths) -> None:
    for number in range(3):
        (paths.current_model / "notes").write_text(str(number))
        create(paths)
    back_up(paths, paths.version("v002"), "manual", None)
    flip(paths.version("v002") / "model" / WEIGHTS)
    with open_store(paths, "test"):
        repairs = repair_everything(paths)
    assert {one.id for one in repairs if one.found} == {"v002", "v003", "v004", "v005"}
    assert not any(one.left for one in repairs)
    assert len({inodes(paths.version(f"v00{number}") / "model")[WEIGHTS] for number in range(2, 6)}) == 1


def test_a_version_without_a_backup_is_healed_from_the_model_that_is_made_of_it(paths: Paths) -> None:
    flip(paths.version("v002") / "model" / WEIGHTS)
    with open_store(paths, "test"):
        assert [one.id for one in repair_everything(paths) if one.found and not one.left] == ["v002"]
    assert verify_version(paths, "v002", KnownHashes()) == []
    assert paths.current_model.stat().st_ino != (paths.version("v002") / "model").stat().st_ino
    assert inodes(paths.current_model)[WEIGHTS] != inodes(paths.version("v002") / "model")[WEIGHTS]


def test_torn_weights_are_refused_and_files_of_other_kinds_are_not(paths: Paths) -> None:
    whole = safetensors(b"w" * 8000)
    (paths.current_model / "more.safetensors").write_bytes(whole[:-1])
    with open_store(paths, "test"), pytest.raises(IntegrityError, match=r"more\.safetensors is torn"):
        save_version(paths, "torn", "manual")
    (paths.current_model / "more.safetensors").write_bytes(os.urandom(500))
    assert create(paths) == "v003"


WRITER = """
import mmap, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[2] == "map":
    view = mmap.mmap(file, 0)
    os.close(file)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["descriptor", "map"])
def test_a_snapshot_while_something_writes_is_refused_and_names_the_process(paths: Paths, how: str) -> None:
    (paths.current_model / "notes").write_text("new")
    command = [sys.executable, "-c", WRITER, str(paths.current_model / WEIGHTS), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with open_store(paths, "test"), pytest.raises(BusyError, match=f"process {writer.pid} .*python"):
            save_version(paths, "busy", "manual")
        writer.terminate()
    assert list_version_ids(paths) == ["v001", "v002"]
    assert create(paths) == "v003"


def test_a_model_written_to_while_it_is_copied_makes_no_version(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_meanwhile(*arguments: Any, **options: Any) -> object:
        copied = copy_tree(*arguments, **options)
        overwrite(paths.current_model / "notes", b"other")
        return copied

    (paths.current_model / "notes").write_text("notes")
    monkeypatch.setattr("guardrails.store.versions.copy_tree", write_meanwhile)
    with open_store(paths, "test"), pytest.raises(BusyError, match="written to while it was saved"):
        save_version(paths, "busy", "manual")
    assert list_version_ids(paths) == ["v001", "v002"]


@pytest.mark.parametrize("how", ["descriptor", "map", "link"])
def test_a_version_made_of_the_very_model_is_out_of_reach_of_who_has_it_open(paths: Paths, how: str) -> None:
    """Adopted by rename, not copied: a writer that still has the file must not write into the version."""
    overwrite(paths.current_model / WEIGHTS, b"by hand")
    by_hand = weights_of(paths.current_model)
    descriptor = os.open(paths.current_model / WEIGHTS, os.O_RDWR)
    view = mmap.mmap(descriptor, 0) if how == "map" else None
    if how != "descriptor":
        os.close(descriptor)
    if how == "link":
        os.link(paths.current_model / WEIGHTS, paths.base / "other name")
    assert rollback(paths, say_nothing).version == "v002"
    if view is not None:
        view[:3] = b"xyz"
        view.close()
    elif how == "link":
        overwrite(paths.base / "other name", b"xyz")
    else:
        os.pwrite(descriptor, b"xyz", 0)
        os.close(descriptor)
    assert weights_of(paths.version("v003") / "model") == by_hand
    assert verify_version(paths, "v003", KnownHashes()) == []


def test_who_stands_in_the_models_folder_writes_into_no_version(paths: Paths) -> None:
    overwrite(paths.current_model / WEIGHTS, b"by hand")
    folder = os.open(paths.current_model, os.O_RDONLY)
    rollback(paths, say_nothing)
    # The folder that was current_model/ is gone, and what is made in it is in nothing of ours.
    with pytest.raises(FileNotFoundError):
        os.open("late", os.O_WRONLY | os.O_CREAT, dir_fd=folder)
    os.close(folder)
    assert verify_version(paths, "v003", KnownHashes()) == []


# The index


def wait_until_settled() -> None:
    time.sleep(0.06)


def test_the_index_spares_reading_and_an_edit_shows_at_once(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until_settled()
    remember_versions(paths)
    read: list[str] = []

    def read_and_count(paths: Paths, version_id: str) -> dict[str, Any]:
        read.append(version_id)
        return read_metadata(paths, version_id)

    monkeypatch.setattr(version_records, "read_metadata", read_and_count)
    assert list(read_summaries(paths).rows) == ["v001", "v002"]
    assert read == []
    path = paths.version("v001") / "metadata.json"
    write_json(path, {**(read_json(path) or {}), "description": "edited"})
    assert read_summaries(paths).rows["v001"]["description"] == "edited"
    assert read == ["v001"]
    path.write_text("{")
    summaries = read_summaries(paths)
    assert list(summaries.rows) == ["v002"]
    assert "v001" in summaries.damaged[0]


def test_a_version_made_just_now_is_not_believed_by_its_stamp(paths: Paths) -> None:
    remember_versions(paths)
    path = paths.version("v002") / "metadata.json"
    path.write_text(path.read_text().replace("2.jsonl", "X.jsonl"))
    assert read_summaries(paths).rows["v002"]["description"] == "X.jsonl"


@pytest.mark.parametrize("damage", ["", "{", '{"id": 1}\n', '["v001"]\n', "\x00\n", '{"id": "v001", "stat": []}\n'])
def test_a_damaged_index_is_no_worse_than_none(paths: Paths, damage: str) -> None:
    wait_until_settled()
    remember_versions(paths)
    whole = paths.version_index.read_text()
    paths.version_index.write_text(whole[:-20] + "\n" + damage)
    summaries = read_summaries(paths)
    assert [row["training_steps"] for row in summaries.rows.values()] == [10, 20]
    remember_versions(paths)
    assert read_summaries(paths) == summaries


def test_summaries_hold_what_the_metadata_says(paths: Paths) -> None:
    wait_until_settled()
    with open_store(paths, "test"):
        set_pinned(paths, "v002", True)
    for is_remembered in (False, True):
        rows = read_summaries(paths).rows
        assert list(rows) == ["v001", "v002"]
        for version, row in rows.items():
            metadata = read_metadata(paths, version)
            assert row.pop("trained_on") == [data["blake3"] for data in metadata["data"]] != []
            assert row.items() <= metadata.items()
            assert {"id", "run_id", "parent", "loss", "size"} <= row.keys()
            assert row.get("pinned", False) is (version == "v002")
        if not is_remembered:
            wait_until_settled()
            remember_versions(paths)


def test_metadata_of_another_version_is_damage(paths: Paths) -> None:
    content = (paths.version("v001") / "metadata.json").read_bytes()
    (paths.version("v002") / "metadata.json").write_bytes(content)
    assert "is that of v001" in verify_version(paths, "v002", KnownHashes())[0]


def test_a_restore_that_needs_no_second_look_still_gives_the_right_bytes(paths: Paths) -> None:
    publish(paths, 3)
    restore(paths, "v001", say_nothing)
    assert find_damage(paths.current_model, read_metadata(paths, "v001")["files"]) == []
    assert is_kept(paths, "v003")
