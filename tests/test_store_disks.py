"""The store on real disks: ones that share blocks, full ones, and ones that cannot be written to."""

import os
from pathlib import Path

import pytest

from guardrails.filesystem import remove_tree
from tests.disks import as_root, mounted, read_only
from tests.store import copy_store, make_store
from tests.store_commands import (
    BACKUPS,
    CASES,
    VERSIONER,
    assert_goes_on,
    assert_holds,
    make_template,
    take_holdings,
    write_notes,
)
from tests.warm import Warm

pytestmark = as_root
READING = [
    (VERSIONER, "list"),
    (VERSIONER, "show", "v001"),
    (VERSIONER, "verify"),
    (VERSIONER, "diff", "v001", "v002"),
    (VERSIONER, "lineage", "v003"),
    (VERSIONER, "trash", "list"),
    (BACKUPS, "list"),
    (BACKUPS, "verify"),
    ("state_tracker.py", "--json"),
]


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_on_disks_that_share_blocks_every_command_works_and_a_kill_while_sharing_loses_nothing(
    tmp_path: Path, warm: Warm, kind: str
) -> None:
    with mounted(kind, tmp_path) as disk:
        template = make_template("restore over a change by hand", disk / "template")
        before, case = take_holdings(template), CASES["restore over a change by hand"]
        created = warm.run(copy_store(template, disk / "created"), VERSIONER, "create")
        assert "(reflink)" in created.stdout, created
        counted = copy_store(template, disk / "counted")
        points = warm.list_points(counted, *case.command, calls=("ioctl", "renameat2"), log=tmp_path / "calls")
        assert {point.call for point in points} == {"ioctl", "renameat2"}
        for point in points:
            paths = copy_store(template, disk / "killed")
            assert warm.run_failed(paths, *case.command, point=point, failure="signal=KILL").code == 137
            assert_holds(paths, before, may_be_absent=False)
            assert_goes_on(warm, paths, "restore over a change by hand", before)
            remove_tree(paths.base)


def fill(disk: Path, free_blocks: int) -> Path:
    """A file that leaves this many blocks of the disk free."""
    filler = disk / "filler"
    status = os.statvfs(disk)
    filler.write_bytes(bytes((status.f_bavail - free_blocks) * status.f_frsize))
    return filler


@pytest.mark.parametrize("name", ["create of a changed model", "publish", "restore", "prune", "repair of versions"])
def test_a_disk_that_fills_up_anywhere_in_a_command_loses_nothing(tmp_path: Path, warm: Warm, name: str) -> None:
    """One block more each time, so that the command meets the end of the disk at each of its steps."""
    with mounted("tmpfs", tmp_path) as disk:
        template = make_template(name, tmp_path / "template")
        before, ends = take_holdings(template), []
        for free_blocks in range(40):
            paths = copy_store(template, disk / "store")
            filler = fill(disk, free_blocks)
            done = warm.run(paths, *CASES[name].command)
            ends.append(done.code)
            assert_holds(paths, before, may_be_absent=False)
            filler.unlink()
            if done.code == 0:
                break
            assert (done.code, done.stderr.count("error: ")) == (33, 1), done
            assert "Traceback" not in done.stderr
            assert_goes_on(warm, paths, name, before)
            remove_tree(paths.base)
    assert ends[-1] == 0
    assert len(ends) > 2


def test_a_read_only_disk_can_be_read_and_is_named_by_what_would_write(tmp_path: Path, warm: Warm) -> None:
    paths = make_store(tmp_path / "base", backups=True)
    write_notes(paths)
    with read_only(paths.base):
        for command in READING:
            done = warm.run(paths, *command)
            assert (done.code, done.stderr) == (0, ""), (command, done)
        for command in {case.command for case in CASES.values()} - {("publish",), (BACKUPS, "restore", "b004")}:
            done = warm.run(paths, *command)
            assert (done.code, done.stderr.count("error: ")) == (1, 1), (command, done)
            assert "Read-only file system" in done.stderr, (command, done)
