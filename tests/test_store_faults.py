"""A kill, a full disk or a bad one at any system call of any command of the store.

``current_model/`` is one whole model, no version and no backup is lost, and the next command goes on.
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from guardrails.filesystem import remove_tree
from tests.processes import run_tests_unprivileged
from tests.store import copy_store
from tests.store_commands import CASES, assert_goes_on, assert_holds, make_template, take_holdings
from tests.warm import Point, Warm

RENAMES = ("rename", "renameat", "renameat2")
MAKING = (*RENAMES, "link", "linkat", "mkdir", "mkdirat", "openat", "write", "writev", "fsync", "fdatasync", "syncfs")
REMOVING = ("unlink", "unlinkat", "rmdir", "truncate", "ftruncate")
OTHERS = ("pwrite64", "copy_file_range", "sendfile", "symlink", "symlinkat", "ioctl", "sync_file_range", "utimensat")
CALLS = (*MAKING, *REMOVING, *OTHERS, "chmod", "fchmod", "fchmodat")


class Fault(NamedTuple):
    """What happens at a call, in strace's words; the exit codes it must lead to; how many points are sampled, and how
    many renames at most."""

    failure: str
    calls: tuple[str, ...]
    codes: set[int]
    sampled: int
    renames_sampled: int

    def codes_at(self, point: Point) -> set[int]:
        """A saved file that cannot be flushed before it is read counts as damaged: another copy will do.

        Nothing depends on the index.
        """
        if "version_index" in point.arguments and self.codes != {137}:
            return {0}
        is_reading = point.call == "fsync" and ("/model/" in point.arguments or "/content" in point.arguments)
        return self.codes | {0, 1, 31, 32} if is_reading and self.codes != {137} else self.codes


FAULTS = {
    "kill": Fault("signal=KILL", CALLS, {137}, 5, 3),
    "full disk": Fault("error=ENOSPC", MAKING, {33}, 1, 0),
    "bad disk": Fault("error=EIO", MAKING, {1, 30, 31}, 1, 0),
}
# Where it matters who owns a folder: read-only trees are moved, linked and replaced.
MOVING = ("delete", "prune", "trash restore", "trash empty", "repair of versions", "rollback of a change by hand")


def survive(warm: Warm, folder: Path, name: str, faults: Iterable[Fault], *, sample: bool) -> int:
    """Let the command of a case meet each fault at every point, or at some; how many points that were."""
    template, case = make_template(name, folder / "template"), CASES[name]
    before = take_holdings(template)
    counted = copy_store(template, folder / "counted")
    points = warm.list_points(counted, *case.command, calls=CALLS, log=folder / "calls")
    done = 0
    for fault in faults:
        possible = [point for point in points if point.call in fault.calls]
        for point in choose(possible, fault, name) if sample else possible:
            paths = copy_store(template, folder / "failed")
            end = warm.run_failed(paths, *case.command, point=point, failure=fault.failure)
            try:
                assert end.code in fault.codes_at(point), end
                assert end.stderr.count("error: ") == (end.code not in (0, 137)), end
                assert "Traceback" not in end.stderr, end
                assert_holds(paths, before, may_be_absent=None in before.models or "fresh" in name)
                assert_goes_on(warm, paths, name, before)
            except BaseException as error:
                error.add_note(f"{name}: {fault.failure} at its {point.number}. {point.call}")
                raise
            remove_tree(paths.base)
            done += 1
    return done


def choose(points: list[Point], fault: Fault, name: str) -> list[Point]:
    """The renames are where most can go wrong; of the rest a sample."""
    source = random.Random(f"{name} {fault.failure}")
    renames = [point for point in points if point.call in RENAMES]
    others = [point for point in points if point.call not in RENAMES]
    chosen = source.sample(renames, min(fault.renames_sampled, len(renames)))
    return chosen + source.sample(others, min(fault.sampled - len(chosen), len(others)))


@pytest.mark.parametrize("name", CASES)
def test_a_fault_at_some_system_calls_loses_nothing(tmp_path: Path, warm: Warm, name: str) -> None:
    assert survive(warm, tmp_path, name, FAULTS.values(), sample=True) >= 5


def test_every_fault_is_as_harmless_to_an_unprivileged_user(shared_folder: Path) -> None:
    file = Path(__file__)
    tests = [f"{file}::test_a_fault_at_some_system_calls_loses_nothing[{name}]" for name in MOVING[:3]]
    damage = str(file.with_name("test_store_damage.py"))
    run_tests_unprivileged(shared_folder, *tests, damage, "-k", "system_calls or flip or never_writes or refused")


@pytest.mark.faults
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_system_call_loses_nothing(tmp_path: Path, warm: Warm, name: str, fault: str) -> None:
    print(survive(warm, tmp_path, name, [FAULTS[fault]], sample=False), "points")


@pytest.mark.faults
def test_every_kill_is_as_harmless_to_an_unprivileged_user(shared_folder: Path) -> None:
    test = f"{__file__}::test_a_fault_at_every_system_call_loses_nothing"
    run_tests_unprivileged(shared_folder, *(f"{test}[kill-{name}]" for name in MOVING))


@pytest.mark.faults
def test_there_are_a_thousand_points_to_be_killed_at(tmp_path: Path, warm: Warm) -> None:
    points = 0
    for name, case in CASES.items():
        template = make_template(name, tmp_path / name)
        points += len(warm.list_points(template, *case.command, calls=CALLS, log=tmp_path / "calls"))
    assert points >= 1000
