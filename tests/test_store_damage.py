"""Damage of every kind: found, healed, or refused with nothing changed; and writes that never reach what was saved."""

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardrails.config import set_config_value
from guardrails.errors import BusyError
from guardrails.filesystem import remove_tree
from guardrails.paths import CODE_DIR, Paths
from guardrails.state_io import read_json, write_json
from guardrails.store.change import open_store, say_nothing
from guardrails.store.live_model import restore, rollback, save_version
from guardrails.store.version_records import read_metadata
from tests.store import WEIGHTS, copy_store, hurt, make_store, publish
from tests.store_commands import (
    BACKUPS,
    VERSIONER,
    assert_holds,
    assert_sound,
    change_by_hand,
    live_tree,
    take_holdings,
    tree_of,
)
from tests.warm import Warm, load_scripts, run_forked


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return make_store(tmp_path_factory.mktemp("template") / "base", weight_bytes=500, backups=True)


@pytest.fixture
def paths(template: Paths, tmp_path: Path) -> Paths:
    return copy_store(template, tmp_path / "base")


def flip(file: Path) -> None:
    with open(file, "r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last[0] ^ 1]))


def truncate(file: Path) -> None:
    os.truncate(file, 100)


def empty(file: Path) -> None:
    os.truncate(file, 0)


DAMAGE: list[Callable[[Path], object]] = [flip, truncate, empty, Path.unlink]
damaged_in_every_way = pytest.mark.parametrize("damage", DAMAGE)


def state_of(paths: Paths) -> dict[str, tuple[Any, ...]]:
    """Every file and folder of a base dir but locks and caches: what it is, its mode, its bytes."""
    found = {}
    for path in sorted(paths.base.rglob("*")):
        if paths.locks not in path.parents and path.name not in (".lock", paths.version_index.name):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else None
            found[str(path.relative_to(paths.base))] = (status.st_mode, status.st_ino, content)
    return found


@damaged_in_every_way
def test_a_damaged_version_is_found_and_healed_from_its_backup(
    paths: Paths, warm: Warm, damage: Callable[[Path], object]
) -> None:
    before = take_holdings(paths)
    for version in ("v001", "v002"):
        hurt(paths.version(version) / "model" / WEIGHTS, damage)
    found = warm.run(paths, VERSIONER, "verify")
    assert (found.code, found.stderr.splitlines()[0]) == (31, "error: damaged: v001, v002"), found
    assert warm.run(paths, VERSIONER, "restore", "v001").code == 0
    assert live_tree(paths) == before.versions["v001"]
    assert warm.run(paths, VERSIONER, "verify", "v001").code == 0
    assert warm.run(paths, VERSIONER, "repair").code == 0
    assert_holds(paths, before, may_be_absent=False)
    assert_sound(paths)


@damaged_in_every_way
def test_a_damaged_backup_is_found_and_healed_from_its_version(
    paths: Paths, warm: Warm, damage: Callable[[Path], object]
) -> None:
    before = take_holdings(paths)
    hurt(paths.backups / "b002" / "model" / WEIGHTS, damage)
    found = warm.run(paths, BACKUPS, "verify")
    assert (found.code, found.stderr.splitlines()[0]) == (31, "error: damaged: b002"), found
    assert warm.run(paths, VERSIONER, "repair").code == 0
    assert_holds(paths, before, may_be_absent=False)
    assert_sound(paths)


@damaged_in_every_way
def test_a_damaged_live_model_or_retired_tree_costs_nothing_that_was_saved(
    paths: Paths, warm: Warm, damage: Callable[[Path], object]
) -> None:
    before = take_holdings(paths)
    hurt(paths.retired_model / WEIGHTS, damage)
    hurt(paths.current_model / WEIGHTS, damage)
    for expected in ("v003", "v002"):
        assert warm.run(paths, VERSIONER, "rollback").code == 0
        assert live_tree(paths) == before.versions[expected]
    assert_holds(paths, before, may_be_absent=False)
    assert_sound(paths)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_error_about_many_versions_stays_readable(paths: Paths, warm: Warm, options: list[str]) -> None:
    for number in range(4, 2000):
        folder = paths.version(f"v{number:03d}")
        folder.mkdir()
        (folder / "metadata.json").write_text("{}")
    listed = warm.run(paths, VERSIONER, "list", *options)
    assert listed.code == 30
    assert "v004" in listed.stderr, listed
    assert "v006" in listed.stderr, listed
    assert " and 1993 more" in listed.stderr, listed
    assert "v007" not in listed.stderr, listed


@pytest.mark.parametrize("damage", [*DAMAGE, lambda path: path.write_text("[]")])
def test_unreadable_metadata_hides_nothing_else_and_is_put_back(
    paths: Paths, warm: Warm, damage: Callable[[Path], object]
) -> None:
    before = take_holdings(paths)
    hurt(paths.version("v001") / "metadata.json", damage)
    hurt(paths.backups / "b003" / "metadata.json", damage)
    for script, rest in ((VERSIONER, "v002"), (BACKUPS, "b002")):
        listed = warm.run(paths, script, "list")
        assert listed.code == 30, listed
        assert rest in listed.stdout
    pruned = warm.run(paths, VERSIONER, "prune", "--keep-last", "1", "--execute")
    assert pruned.code == 30, pruned
    assert warm.run(paths, VERSIONER, "repair").code == 0
    assert_holds(paths, before, may_be_absent=False)
    assert_sound(paths)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ((VERSIONER, "restore", "v001"), 31),
        ((BACKUPS, "restore", "b001"), 31),
        ((VERSIONER, "restore", "v001", "--target", "elsewhere"), 31),
        ((VERSIONER, "verify"), 31),
        ((BACKUPS, "verify"), 31),
        ((VERSIONER, "delete", "v001", "--confirm"), 32),
        ((VERSIONER, "repair"), 31),
    ],
)
def test_with_both_copies_damaged_it_is_refused_and_nothing_changes(
    paths: Paths, warm: Warm, command: tuple[str, ...], code: int
) -> None:
    hurt(paths.version("v001") / "model" / WEIGHTS, flip)
    hurt(paths.backups / "b001" / "model" / WEIGHTS, flip)
    before = state_of(paths)
    done = warm.run(paths, *command)
    assert done.code == code, done
    assert state_of(paths) == before


def test_the_last_good_copy_is_never_removed(paths: Paths, warm: Warm) -> None:
    """Each version and backup is damaged in one of its two places; what is left of it stays, whoever asks."""
    hurt(paths.version("v001") / "model" / WEIGHTS, flip)
    hurt(paths.backups / "b002" / "model" / WEIGHTS, flip)
    before = state_of(paths)
    assert warm.run(paths, VERSIONER, "delete", "v002", "--confirm").code == 32
    cleaned = warm.run(paths, BACKUPS, "cleanup", "--retention-days", "0", "--execute")
    assert "kept b001: it is the last good copy" in cleaned.stdout
    pruned = warm.run(paths, VERSIONER, "prune", "--keep-last", "1", "--execute")
    assert "kept v002: it is the last good copy" in pruned.stdout
    kept = {name: state for name, state in before.items() if "v002" in name or "b001" in name}
    assert kept.items() <= state_of(paths).items()


def test_a_removed_version_whose_backup_is_damaged_can_be_had_after_a_repair(paths: Paths, warm: Warm) -> None:
    before = take_holdings(paths)
    assert warm.run(paths, VERSIONER, "delete", "v001", "--confirm").code == 0
    assert warm.run(paths, VERSIONER, "trash", "empty", "--older-than", "0").code == 0
    hurt(paths.backups / "b001" / "model" / "adapter_config.json", flip)
    refused = warm.run(paths, VERSIONER, "restore", "v001")
    assert refused.code == 31, refused
    assert "hint: model_versioner.py repair" in refused.stderr, refused
    assert warm.run(paths, VERSIONER, "repair").code == 0
    assert warm.run(paths, VERSIONER, "restore", "v001").code == 0
    assert live_tree(paths) == before.versions["v001"]
    assert_sound(paths)


class Writer:
    """A file of the live model that somebody can write to later, by what he got hold of before."""

    def __init__(self, paths: Paths, way: str) -> None:
        file = paths.current_model / WEIGHTS
        self.link = paths.base / "link"
        self.descriptor = os.open(file, os.O_RDWR)
        self.map = mmap.mmap(self.descriptor, 0) if way == "map" else None
        if way == "hard link":
            subprocess.run(["cp", "-al", paths.current_model, self.link], check=True)

    def write(self) -> None:
        if self.map is not None:
            self.map[-4:] = b"EVIL"
            self.map.flush()
        elif self.link.exists():
            with open(self.link / WEIGHTS, "r+b") as file:
                file.write(b"EVIL")
        else:
            os.pwrite(self.descriptor, b"EVIL", 400)

    def close(self) -> None:
        if self.map is not None:
            self.map.close()
        os.close(self.descriptor)


OPERATIONS: dict[str, Callable[[Paths], object]] = {
    "create": lambda paths: save_version(paths, "test", "manual"),
    "rollback": lambda paths: rollback(paths, say_nothing),
    "restore": lambda paths: restore(paths, "v001", say_nothing),
    "publish": lambda paths: publish(paths, 4),
}


@pytest.mark.parametrize("way", ["descriptor", "map", "hard link"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("by_hand", [False, True])
def test_whoever_holds_a_file_of_the_live_model_never_writes_into_what_was_saved(
    paths: Paths, operation: str, way: str, by_hand: bool
) -> None:
    if by_hand:
        change_by_hand(paths)
    writer = Writer(paths, way)
    try:
        if operation == "create" and by_hand:
            with pytest.raises(BusyError):
                save_version(paths, "test", "manual")
            os.close(writer.descriptor)
            if writer.map is None:
                assert save_version(paths, "test", "manual") == ("v004", True)
            writer.descriptor = os.open(paths.current_model / WEIGHTS, os.O_RDWR)
        else:
            OPERATIONS[operation](paths)
        before = take_holdings(paths)
        writer.write()
    finally:
        writer.close()
    assert take_holdings(paths).versions == before.versions
    assert_sound(paths)
    with open_store(paths, "next"):
        pass
    restore(paths, "v003", say_nothing)
    assert live_tree(paths) == tree_of(read_metadata(paths, "v003")["files"])


def test_a_snapshot_while_a_process_writes_is_refused_and_names_it(paths: Paths, warm: Warm) -> None:
    change_by_hand(paths)
    code = "import sys; f = open(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(paths.current_model / "notes")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        refused = warm.run(paths, VERSIONER, "create")
        assert refused.code == 20, refused
        assert f"process {writer.pid} (" in refused.stderr
        writer.communicate()
    assert warm.run(paths, VERSIONER, "create").code == 0
    assert_sound(paths)


def work_at_random(base: str, seed: int, rounds: int) -> None:
    """What one of several processes does; whatever else than done, refused or busy ends it with an error."""
    paths, source = Paths(Path(base)), random.Random(seed)
    commands = [
        (VERSIONER, "create"),
        (VERSIONER, "restore", "v001"),
        (VERSIONER, "restore", "v002"),
        (VERSIONER, "rollback"),
        (BACKUPS, "backup", "current_model"),
        (BACKUPS, "restore", "b003"),
    ]
    scripts = load_scripts()
    for _ in range(rounds):
        done = run_forked(scripts, paths.base, source.choice(commands), [])
        assert done.code in (0, 1, 20), done
        assert "Traceback" not in done.stderr, done


def test_eight_processes_at_once_leave_everything_whole(paths: Paths) -> None:
    before = take_holdings(paths)
    code = "import sys; from tests.test_store_damage import work_at_random as w; w(sys.argv[1], int(sys.argv[2]), 5)"
    commands = [[sys.executable, "-c", code, str(paths.base), str(seed)] for seed in range(8)]
    environment = {**os.environ, "PYTHONPATH": str(CODE_DIR)}
    processes = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True, env=environment) for c in commands]
    ended = [(process.communicate()[1], process.returncode) for process in processes]
    assert ended == [("", 0)] * 8
    assert_holds(paths, before, may_be_absent=True)
    assert_sound(paths)


def test_a_version_whose_folder_is_gone_is_made_again_and_stays_one_of_this_base_dir(paths: Paths, warm: Warm) -> None:
    before = take_holdings(paths)
    for version in ("v001", "v002"):
        remove_tree(paths.version(version))
    done = warm.run(paths, VERSIONER, "repair", "v002")
    assert (done.code, "v002: healed" in done.stdout) == (0, True), done
    assert not paths.version("v001").exists()
    done = warm.run(paths, VERSIONER, "repair")
    assert (done.code, "v001: healed" in done.stdout) == (0, True), done
    assert take_holdings(paths).versions == before.versions
    assert_sound(paths)
    # In a folder that other base dirs share, a backup of a version that this one never had is another's.
    shared = paths.base / "shared"
    paths.backups.rename(shared)
    set_config_value(paths, "backup_dir", "shared")
    record = read_json(shared / "b003" / "metadata.json") or {}
    other = {**record, "version": "v009", "version_metadata": {**record["version_metadata"], "id": "v009"}}
    write_json(shared / "b003" / "metadata.json", other, through=shared)
    assert warm.run(paths, VERSIONER, "repair").code == 0
    assert not paths.version("v009").exists()
    done = warm.run(paths, VERSIONER, "repair", "v009")
    assert (done.code, "no backup to make it from" in done.stderr) == (1, True), done


def test_only_a_change_by_hand_is_undone_by_hand(paths: Paths, warm: Warm) -> None:
    by_hand = ("rollback", "--by-hand")
    done = warm.run(paths, VERSIONER, *by_hand)
    assert (done.code, done.stdout) == (0, "current_model/ is v003: nothing was changed by hand\n")
    change_by_hand(paths)
    changed = live_tree(paths)
    done = warm.run(paths, VERSIONER, *by_hand)
    assert (done.code, "undo: python3 model_versioner.py restore v004" in done.stdout) == (0, True), done
    assert live_tree(paths) == tree_of(read_metadata(paths, "v003")["files"])
    assert tree_of(read_metadata(paths, "v004")["files"]) == changed
    # It is no restore: a rollback after it undoes the last training.
    assert warm.run(paths, VERSIONER, "rollback").code == 0
    assert live_tree(paths) == tree_of(read_metadata(paths, "v002")["files"])
    assert_sound(paths)


def test_a_tree_that_lost_its_modes_is_read_only_again(paths: Paths, warm: Warm) -> None:
    for model in (paths.version("v002") / "model", paths.backups / "b001" / "model"):
        subprocess.run(["chmod", "-R", "u+w", model], check=True)
    done = warm.run(paths, VERSIONER, "repair")
    assert (done.code, "v002: healed" in done.stdout, "b001: healed" in done.stdout) == (0, True, True), done
    assert_sound(paths)
