"""Every command that writes to the store, each with a store in which it has work to do, and what must not get lost."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from guardrails.filesystem import remove_tree
from guardrails.manifest import FileEntry, KnownHashes, hash_file, make_manifest
from guardrails.paths import Paths
from guardrails.store.backups import backups_folder, list_backup_ids, read_backup
from guardrails.store.change import open_store
from guardrails.store.copies import Copies
from guardrails.store.head import read_head
from guardrails.store.model_backups import back_up
from guardrails.store.removal import delete_version
from guardrails.store.repair import find_backup_damage, verify_version
from guardrails.store.trash import list_entries
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata
from tests.store import WEIGHTS, hurt, make_run, make_store, safetensors
from tests.warm import Warm

VERSIONER, BACKUPS = "model_versioner.py", "backup_manager.py"
STATE_FILES = {".lock", "metadata.json", "entry.json", "head.json", "intent.json", "version_index.jsonl"}
UNFINISHED = (".stage-", ".tmp-", ".staged-", ".copied-")


class Case(NamedTuple):
    """A command, and what makes a store of ``versions`` versions with their backups one that it has to work on."""

    command: tuple[str, ...]
    prepare: Callable[[Paths], object] = lambda paths: None
    versions: int = 3


def change_by_hand(paths: Paths) -> None:
    paths.current_model.mkdir(exist_ok=True)
    (paths.current_model / WEIGHTS).write_bytes(safetensors(b"by hand" * 99))
    (paths.current_model / "notes").write_text("by hand")


def publish_over_a_change(paths: Paths) -> None:
    make_run(paths, 4)
    change_by_hand(paths)


def remove_live_model(paths: Paths) -> None:
    shutil.rmtree(paths.current_model)


def delete(*versions: str) -> Callable[[Paths], None]:
    def prepare(paths: Paths) -> None:
        with open_store(paths, "test"):
            for version in versions:
                delete_version(paths, version, Copies(paths, strict=True), "deleted")

    return prepare


def lose_trash(paths: Paths) -> None:
    """A version whose only copy left is its backup."""
    delete("v001")(paths)
    for entry in list_entries(paths.trash):
        remove_tree(entry.folder)


def lose_version(paths: Paths) -> None:
    remove_tree(paths.version("v002"))


def damage(file: Path) -> None:
    hurt(file, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"))


def damage_version(paths: Paths) -> None:
    damage(paths.version("v001") / "model" / WEIGHTS)
    hurt(paths.version("v002") / "model" / WEIGHTS, lambda path: path.rename(path.with_name("stray")))


def damage_backup(paths: Paths) -> None:
    damage(paths.backups / "b002" / "model" / WEIGHTS)
    hurt(paths.backups / "b003" / "model" / "adapter_config.json", Path.unlink)


def damage_metadata(paths: Paths) -> None:
    (paths.version("v002") / "metadata.json").write_text("{")
    (paths.backups / "b003" / "metadata.json").unlink()


def write_notes(paths: Paths) -> None:
    (paths.base / "notes.txt").write_text("old")


def replace_notes(paths: Paths) -> None:
    write_notes(paths)
    back_up(paths, paths.base / "notes.txt", "manual", None)
    (paths.base / "notes.txt").write_text("new")


CASES = {
    "create the first version": Case((VERSIONER, "create"), change_by_hand, 0),
    "create of a changed model": Case((VERSIONER, "create"), change_by_hand),
    "create of an unchanged model": Case((VERSIONER, "create"), lambda p: (p.current_model / WEIGHTS).touch()),
    "publish the first version": Case(("publish",), lambda paths: make_run(paths, 1), 0),
    "publish": Case(("publish",), lambda paths: make_run(paths, 4)),
    "publish over a change by hand": Case(("publish",), publish_over_a_change),
    "rollback": Case((VERSIONER, "rollback")),
    "rollback of a change by hand": Case((VERSIONER, "rollback"), change_by_hand),
    "rollback of a removed model": Case((VERSIONER, "rollback"), remove_live_model),
    "rollback by hand of a change by hand": Case((VERSIONER, "rollback", "--by-hand"), change_by_hand),
    "rollback to a fresh start": Case((VERSIONER, "rollback"), versions=1),
    "restore": Case((VERSIONER, "restore", "v001")),
    "restore over a change by hand": Case((VERSIONER, "restore", "v001"), change_by_hand),
    "restore of a damaged version": Case((VERSIONER, "restore", "v001"), damage_version),
    "restore of a removed version": Case((VERSIONER, "restore", "v001"), delete("v001")),
    "restore of a version that only a backup has": Case((VERSIONER, "restore", "v001"), lose_trash),
    "restore to a target": Case((VERSIONER, "restore", "v001", "--target", "elsewhere/copy")),
    "delete": Case((VERSIONER, "delete", "v002", "--confirm")),
    "prune": Case((VERSIONER, "prune", "--keep-last", "1", "--execute")),
    "trash restore": Case((VERSIONER, "trash", "restore", "v001"), delete("v001")),
    "trash empty": Case((VERSIONER, "trash", "empty", "--older-than", "0"), delete("v001", "v002")),
    "pin": Case((VERSIONER, "pin", "v002")),
    "repair of versions": Case((VERSIONER, "repair"), damage_version),
    "repair of backups": Case((VERSIONER, "repair"), damage_backup),
    "repair of a lost version": Case((VERSIONER, "repair", "v002"), lose_version),
    "repair of metadata": Case((VERSIONER, "repair"), damage_metadata),
    "backup of the model": Case((BACKUPS, "backup", "current_model")),
    "backup of a file": Case((BACKUPS, "backup", "notes.txt"), write_notes),
    "backup restore of the model": Case((BACKUPS, "restore", "b001")),
    "backup restore of a lost version": Case((BACKUPS, "restore", "b002"), lose_version),
    "backup restore of a file": Case((BACKUPS, "restore", "b004"), replace_notes),
    "cleanup": Case((BACKUPS, "cleanup", "--retention-days", "0", "--execute")),
}


def make_template(name: str, base: Path) -> Paths:
    """The store of a case, from which copies are made."""
    paths = make_store(base, CASES[name].versions, weight_bytes=500, backups=True)
    CASES[name].prepare(paths)
    return paths


Tree = frozenset[tuple[str, str]]


def tree_of(files: list[FileEntry]) -> Tree:
    return frozenset((entry["path"], entry["blake3"]) for entry in files)


def read_tree(root: Path) -> Tree:
    return tree_of(make_manifest(root))


class Holdings(NamedTuple):
    """What a store holds: its good versions and backups, the bytes of all its files, and what may be the live model."""

    versions: dict[str, Tree]
    backups: dict[str, Tree]
    contents: set[str]
    models: set[Tree | None]


def list_contents(paths: Paths) -> set[str]:
    """BLAKE3 of every file in the base dir that is no state, wherever it lies."""
    folders = (paths.models, paths.current_model, paths.runs)
    files = [path for folder in folders for path in folder.rglob("*") if path.name not in STATE_FILES]
    return {hash_file(path) for path in (*files, *paths.base.glob("*.txt")) if path.is_file()}


def live_tree(paths: Paths) -> Tree | None:
    return read_tree(paths.current_model) if paths.current_model.exists() else None


def take_holdings(paths: Paths) -> Holdings:
    folder = backups_folder(paths)
    versions, backups = {}, {}
    models: set[Tree | None] = {live_tree(paths)}
    for version in list_version_ids(paths):
        if not verify_version(paths, version, KnownHashes()):
            versions[version] = tree_of(read_metadata(paths, version)["files"])
    for backup in list_backup_ids(folder):
        if not find_backup_damage(folder, backup):
            backups[backup] = tree_of(read_backup(folder, backup)["files"])
    models |= {*versions.values(), *backups.values(), *map(read_tree, paths.runs.glob("*/output"))}
    return Holdings(versions, backups, list_contents(paths), models)


def assert_holds(paths: Paths, before: Holdings, *, may_be_absent: bool) -> None:
    """At this very instant nothing is lost, and ``current_model/`` is one whole model."""
    live = live_tree(paths)
    assert live in before.models or (live is None and may_be_absent), "current_model/ is no whole model"
    lost = before.contents - list_contents(paths)
    assert not lost, "bytes are lost"
    thrown = [folder for entry in list_entries(paths.trash) for folder in (entry.content, entry.content / "model")]
    in_trash = {read_tree(folder) for folder in thrown if folder.is_dir()}
    for version, tree in before.versions.items():
        model = paths.version(version) / "model"
        assert tree in in_trash or (model.is_dir() and read_tree(model) == tree), f"{version} is lost"
    for backup, tree in before.backups.items():
        model = paths.backups / backup / "model"
        assert tree in in_trash or (model.is_dir() and read_tree(model) == tree), f"{backup} is lost"


def assert_goes_on(warm: Warm, paths: Paths, name: str, before: Holdings) -> None:
    """Whatever became of the command: the next ones succeed, and after them all is as it should be."""
    done = warm.run(paths, VERSIONER, "create")
    assert done.code == (0 if paths.current_model.exists() else 1), done
    done = warm.run(paths, VERSIONER, "repair")
    assert done.code == 0, done
    again = warm.run(paths, *CASES[name].command)
    # What was done already is refused, in words.
    assert again.code in (0, 1, 2), again
    assert "Traceback" not in again.stderr, again
    if kept := [version for version in list_version_ids(paths) if is_kept(paths, version)]:
        done = warm.run(paths, VERSIONER, "restore", kept[0])
        assert done.code == 0, done
        assert read_head(paths)["version"] == kept[0]
        assert live_tree(paths) == tree_of(read_metadata(paths, kept[0])["files"])
    assert_holds(paths, before._replace(models={live_tree(paths)}), may_be_absent=True)
    assert_sound(paths)


def assert_sound(paths: Paths) -> None:
    """Every version and backup is whole and read-only, and nothing unfinished is left anywhere."""
    assert not paths.intent.exists()
    left = [str(path) for path in paths.base.rglob("*") if any(mark in path.name for mark in UNFINISHED)]
    # The queue's own are for its owners: the daemon's start, and the next intake.
    assert [path for path in left if not path.startswith(str(paths.queue_records))] == []
    for version in list_version_ids(paths):
        if is_kept(paths, version):
            assert verify_version(paths, version, KnownHashes()) == []
            assert_read_only(paths.version(version) / "model")
    for backup in list_backup_ids(paths.backups):
        assert find_backup_damage(paths.backups, backup) == []
        assert_read_only(paths.backups / backup / "model")


def assert_read_only(model: Path) -> None:
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in (model, *model.rglob("*"))}
    assert modes <= {(True, 0o555), (False, 0o444)}, (model, modes)
