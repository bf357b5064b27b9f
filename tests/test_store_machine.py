"""Whatever sequence of commands and damage: no content that ever was a version or a backup is lost."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from guardrails.errors import IntegrityError, LastCopyError, OperationError
from guardrails.filesystem import remove_tree
from guardrails.manifest import FileEntry, find_damage
from guardrails.store.backups import list_backup_ids, read_backup
from guardrails.store.change import open_store, say_nothing
from guardrails.store.copies import Copies
from guardrails.store.live_model import restore, rollback, save_version
from guardrails.store.model_backups import back_up, restore_backup
from guardrails.store.removal import bring_back, clean_up_backups, delete_version, empty_trash, prune
from guardrails.store.repair import find_backup_damage, repair_everything
from guardrails.store.retention import Policy
from guardrails.store.version_records import is_kept, list_version_ids, read_metadata
from tests.store import WEIGHTS, hurt, make_store, publish, safetensors
from tests.store_commands import Tree, list_contents, live_tree, tree_of

CHOICE = st.integers(min_value=0, max_value=99)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="guardrails-"))
        self.paths = make_store(self.folder / "base", versions=2, weight_bytes=50, backups=True)
        self.count = 2
        self.saved: set[Tree] = set()
        self.edited: Tree | None = None
        self.remember()

    def teardown(self) -> None:
        remove_tree(self.folder)

    def owners(self) -> dict[str, tuple[Path, list[FileEntry]]]:
        """The tree and the manifest of every version and backup that is there."""
        paths = self.paths
        kept = [version for version in list_version_ids(paths) if is_kept(paths, version)]
        versions = {v: (paths.version(v) / "model", read_metadata(paths, v)["files"]) for v in kept}
        backups = {b: (paths.backups / b / "model", read_backup(paths.backups, b)["files"]) for b in self.backups()}
        return versions | backups

    def versions(self) -> list[str]:
        return list_version_ids(self.paths)

    def backups(self) -> list[str]:
        return list_backup_ids(self.paths.backups)

    def remember(self) -> None:
        self.saved |= {tree_of(files) for _, files in self.owners().values()}

    @rule()
    def edit(self) -> None:
        self.count += 1
        self.paths.current_model.mkdir(exist_ok=True)
        (self.paths.current_model / WEIGHTS).write_bytes(safetensors(b"by hand %d" % self.count))
        self.edited = live_tree(self.paths)

    @rule()
    def train(self) -> None:
        self.keep_edits()
        self.count += 1
        publish(self.paths, self.count, 50)

    @rule()
    def create(self) -> None:
        self.keep_edits()
        with open_store(self.paths, "test"):
            save_version(self.paths, "test", "manual")

    @rule()
    def roll_back(self) -> None:
        live, head = live_tree(self.paths), len(self.versions())
        try:
            rollback(self.paths, say_nothing)
        except OperationError:
            assert (live_tree(self.paths), len(self.versions())) == (live, head)
        else:
            self.keep_edits()

    @precondition(lambda self: self.versions())
    @rule(choice=CHOICE)
    def restore(self, choice: int) -> None:
        self.keep_edits()
        version = self.versions()[choice % len(self.versions())]
        self.bring_back(version)
        restore(self.paths, version, say_nothing)
        assert live_tree(self.paths) == tree_of(read_metadata(self.paths, version)["files"])

    @precondition(lambda self: self.versions())
    @rule(choice=CHOICE)
    def delete(self, choice: int) -> None:
        version = self.versions()[choice % len(self.versions())]
        with open_store(self.paths, "test"):
            try:
                delete_version(self.paths, version, Copies(self.paths, strict=True), "deleted")
            except (OperationError, LastCopyError):
                return
        assert not is_kept(self.paths, version)

    @precondition(lambda self: any(not is_kept(self.paths, version) for version in self.versions()))
    @rule(choice=CHOICE)
    def restore_from_trash(self, choice: int) -> None:
        removed = [version for version in self.versions() if not is_kept(self.paths, version)]
        self.bring_back(removed[choice % len(removed)])

    def bring_back(self, version: str) -> None:
        """Give a removed version its model back, if need be after a repair."""
        if is_kept(self.paths, version):
            return
        with open_store(self.paths, "test"):
            try:
                bring_back(self.paths, version)
            except IntegrityError:
                repair_everything(self.paths)
                bring_back(self.paths, version)
        assert is_kept(self.paths, version)

    @rule(keep=st.integers(min_value=1, max_value=3))
    def prune(self, keep: int) -> None:
        with open_store(self.paths, "test"):
            prune(self.paths, Policy(last=keep), execute=True)

    @rule()
    def empty_the_trash(self) -> None:
        with open_store(self.paths, "test"):
            empty_trash(self.paths, 0, execute=True)

    @precondition(lambda self: self.paths.current_model.exists())
    @rule()
    def back_up(self) -> None:
        back_up(self.paths, self.paths.current_model, "manual", None)

    @precondition(lambda self: self.backups())
    @rule(choice=CHOICE)
    def restore_backup(self, choice: int) -> None:
        backup = self.backups()[choice % len(self.backups())]
        if not find_backup_damage(self.paths.backups, backup):
            self.keep_edits()
            restore_backup(self.paths, backup, None, say_nothing)
            assert live_tree(self.paths) == tree_of(read_backup(self.paths.backups, backup)["files"])

    @rule()
    def clean_up(self) -> None:
        with open_store(self.paths, "test"):
            clean_up_backups(self.paths, 0, execute=True)

    @rule()
    def repair(self) -> None:
        with open_store(self.paths, "test"):
            assert [one.left for one in repair_everything(self.paths) if one.left] == []
        for root, files in self.owners().values():
            assert find_damage(root, files) == []

    @precondition(lambda self: self.owners())
    @rule(choice=CHOICE)
    def flip_a_byte(self, choice: int) -> None:
        """Never in the last good copy, for that nothing could heal."""
        owners = self.owners()
        tree, files = owners[sorted(owners)[choice % len(owners)]]
        entry = files[choice % len(files)]
        file = tree / entry["path"]
        names = [(owner, root / entry["path"]) for owner, (root, _) in owners.items()]
        same = {owner for owner, name in names if name.exists() and file.exists() and name.samefile(file)}
        if file.exists() and Copies(self.paths, strict=True).lacking([entry], same) is None:
            hurt(file, lambda path: os.truncate(path, 0) if choice % 2 else path.write_bytes(b"x"))

    def keep_edits(self) -> None:
        """What was made by hand is saved by the command that comes now."""
        if self.edited is not None:
            self.saved.add(self.edited)
            self.edited = None

    @invariant()
    def nothing_is_lost(self) -> None:
        self.remember()
        contents = {blake3 for tree in self.saved for _, blake3 in tree}
        assert contents <= list_contents(self.paths)
        live = live_tree(self.paths)
        assert live is None or live == self.edited or live in self.saved
        assert not self.paths.intent.exists()


def run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_sequence_of_commands_loses_what_was_saved() -> None:
    run_machine(8, 15)


@pytest.mark.faults
def test_no_long_sequence_of_commands_loses_what_was_saved() -> None:
    run_machine(60, 40)
