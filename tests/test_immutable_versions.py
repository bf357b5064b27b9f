"""Immutable versions: not even root deletes one by mistake, every command works on them, no kill leaves one open."""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrails.config import set_config_value
from guardrails.filesystem import remove_tree
from guardrails.paths import Paths
from guardrails.store.backups import backups_folder, list_backup_ids
from guardrails.store.change import open_store, say_nothing
from guardrails.store.immutable import is_immutable, set_tree
from guardrails.store.live_model import restore
from guardrails.store.sealing import UNSEALED
from guardrails.store.version_records import list_version_ids
from tests.box import Box
from tests.disks import as_root, mounted
from tests.processes import run_unprivileged
from tests.store import WEIGHTS, copy_store, make_store, publish, weights_of
from tests.store_commands import CASES, assert_goes_on, assert_holds, make_template, take_holdings
from tests.test_store_faults import CALLS
from tests.warm import Point, Warm

# Those that take flags away in different ways: they link, move or replace what is immutable.
LIFTING = ("publish", "delete", "trash restore", "trash empty", "repair of versions", "repair of metadata", "cleanup")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which a file can be immutable. None is when the test ends, or nobody could remove the folder."""
    probe = tmp_path / "probe"
    probe.touch()
    try:
        set_tree(probe, True)
    except OSError as error:
        pytest.skip(f"no file can be made immutable here: {error.strerror}")
    yield tmp_path
    set_tree(tmp_path, False)


@pytest.fixture
def paths(folder: Path) -> Paths:
    paths = make_store(folder / "base", versions=3, backups=True)
    seal(paths)
    return paths


def seal(paths: Paths, on: bool = True) -> None:
    """Turn the setting on, and let a command that does nothing else apply it."""
    set_config_value(paths, "immutable_versions", on)
    with open_store(paths, "test"):
        pass


def trees(paths: Paths) -> list[Path]:
    folder = backups_folder(paths)
    return [*map(paths.version, list_version_ids(paths)), *(folder / name for name in list_backup_ids(folder))]


def assert_sealed(paths: Paths) -> None:
    """Every file and folder of every version and backup is immutable, and nothing says otherwise."""
    assert [path for tree in trees(paths) for path in (tree, *tree.rglob("*")) if not is_immutable(path)] == []
    assert not (paths.models / UNSEALED).exists()


MISTAKES = (
    "rm -rf models/versions/v001",
    "rm -rf models/versions/* models/backups/*",
    "mv models/versions/v001 elsewhere",
    "mv models/versions/v001/model models/versions/v001/other",
    "echo x > models/versions/v002/model/adapter_model.safetensors",
    "echo x >> models/versions/v002/metadata.json",
    "cp config.json models/versions/v002/model/adapter_config.json",
    "chmod -R u+w models/versions/v001",
    "find models/versions -type f -delete",
    "ln models/versions/v001/metadata.json metadata.json",
)


def test_root_changes_nothing_by_mistake(paths: Paths) -> None:
    before = take_holdings(paths)
    for command in MISTAKES:
        done = subprocess.run(["sh", "-c", command], cwd=paths.base, capture_output=True, text=True, check=False)
        assert "not permitted" in done.stderr, done
        assert done.returncode != 0, done
    assert take_holdings(paths) == before
    assert_sealed(paths)


def test_whoever_takes_the_flag_away_or_moves_the_folder_above_is_not_stopped(paths: Paths) -> None:
    (paths.base / "models").rename(paths.base / "moved")
    (paths.base / "moved").rename(paths.base / "models")
    assert_sealed(paths)
    assert not any(map(is_immutable, (paths.current_model, *paths.current_model.rglob("*"))))
    set_tree(paths.version("v001"), False)
    subprocess.run(["rm", "-rf", paths.version("v001")], check=True)
    assert list_version_ids(paths) == ["v002", "v003"]


def test_versions_share_their_files_all_the_same(paths: Paths) -> None:
    publish(paths, 4)
    third, fourth = (paths.version(version) / "model" for version in ("v003", "v004"))
    assert (third / "adapter_config.json").samefile(fourth / "adapter_config.json")
    assert_sealed(paths)


@pytest.mark.parametrize("name", [name for name in CASES if name not in LIFTING])
def test_every_command_works_and_leaves_all_immutable(folder: Path, warm: Warm, name: str) -> None:
    paths = make_template(name, folder / "base")
    seal(paths)
    done = warm.run(paths, *CASES[name].command)
    assert (done.code, done.stderr) == (0, "")
    assert_sealed(paths)


def survive(warm: Warm, folder: Path, name: str, sampled: int | None) -> int:
    """Kill the command of a case at some of its mutating calls, or at all, those included that set flags."""
    template, case = make_template(name, folder / "template"), CASES[name]
    before = take_holdings(template)
    counted = copy_store(template, folder / "counted")
    seal(counted)
    points = warm.list_points(counted, *case.command, calls=CALLS, log=folder / "calls")
    assert_sealed(counted)
    for point in points if sampled is None else choose(points, sampled, name):
        try:
            paths = kill_at(point, warm, template, folder / "killed", case.command)
            assert_holds(paths, before, may_be_absent=None in before.models or "fresh" in name)
            assert_goes_on(warm, paths, name, before)
            assert_sealed(paths)
        except BaseException as error:
            error.add_note(f"{name}: killed at its {point.number}. {point.call}")
            raise
        set_tree(paths.base, False)
        remove_tree(paths.base)
    return len(points)


def kill_at(point: Point, warm: Warm, template: Paths, folder: Path, command: tuple[str, ...]) -> Paths:
    """A copy of the store after a kill at one call; threads may share out the calls otherwise than when counted."""
    for _ in range(3):
        paths = copy_store(template, folder)
        seal(paths)
        if warm.run_failed(paths, *command, point=point, failure="signal=KILL").code == 137:
            return paths
        set_tree(paths.base, False)
        remove_tree(paths.base)
    raise AssertionError("not killed")


def choose(points: list[Point], count: int, name: str) -> list[Point]:
    """Where flags are set and where names change, most can go wrong."""
    source = random.Random(name)
    telling = [point for point in points if point.call.startswith(("ioctl", "rename", "unlink", "link"))]
    return source.sample(telling, min(count, len(telling)))


@pytest.mark.parametrize("name", LIFTING)
def test_a_kill_leaves_nothing_open_to_mistakes_for_long(folder: Path, warm: Warm, name: str) -> None:
    assert survive(warm, folder, name, sampled=1) > 10


@pytest.mark.faults
@pytest.mark.parametrize("name", CASES)
def test_a_kill_at_any_call_leaves_nothing_open_to_mistakes_for_long(folder: Path, warm: Warm, name: str) -> None:
    print(survive(warm, folder, name, sampled=None), "points")


def test_turned_off_nothing_stays_immutable_not_even_in_the_trash(paths: Paths, warm: Warm) -> None:
    assert warm.run(paths, "model_versioner.py", "delete", "v001", "--confirm").code == 0
    weights = paths.trash.glob(f"*/content/{WEIGHTS}")
    assert all(map(is_immutable, weights))
    seal(paths, on=False)
    assert [path for path in paths.base.rglob("*") if is_immutable(path)] == []
    assert not (paths.models / UNSEALED).exists()


@as_root
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_other_file_systems_can_do_it_too(tmp_path: Path, kind: str) -> None:
    with mounted(kind, tmp_path) as disk:
        paths = make_store(disk / "base", versions=2, backups=True)
        seal(paths)
        assert_sealed(paths)
        publish(paths, 3)
        restore(paths, "v001", say_nothing)
        assert_sealed(paths)
        assert subprocess.run(["rm", "-rf", paths.versions], capture_output=True, check=False).returncode
        assert list_version_ids(paths) == ["v001", "v002", "v003"]


def test_a_config_that_cannot_be_read_changes_no_flag(paths: Paths) -> None:
    paths.config.write_text("{")
    with open_store(paths, "test"):
        pass
    assert_sealed(paths)


def test_the_daemons_start_applies_the_setting(folder: Path, tiny_model: Path) -> None:
    box = Box(folder / "base", tiny_model, immutable_versions=True)
    publish(box.paths, 1)
    set_tree(box.paths.version("v001"), False)
    box.once(code=None)
    assert_sealed(box.paths)


def test_base_dirs_with_one_backup_folder_need_not_agree(folder: Path) -> None:
    one, other = (make_store(folder / name, versions=1) for name in ("one", "other"))
    for paths, number in ((one, 2), (other, 3)):
        set_config_value(paths, "backup_dir", str(folder / "backups"))
        (folder / "backups").mkdir(exist_ok=True)
        publish(paths, number)
    seal(one)
    with open_store(other, "test"):
        pass
    assert_sealed(one)


CANNOT = """
import sys
from pathlib import Path
from guardrails.store.change import open_store
from guardrails.config import set_config_value
from guardrails.store.live_model import rollback
from guardrails.report.document import update_document
from tests.store import make_store, publish

paths = make_store(Path(sys.argv[1]) / "base", versions=1)
set_config_value(paths, "immutable_versions", True)
said = []
for _ in range(2):
    with open_store(paths, "test", said.append):
        pass
publish(paths, 2)
rollback(paths, said.append)
assert [line for line in said if "immutable" in line] == [
    f"immutable_versions: those in {paths.versions} cannot be made immutable: Operation not permitted"
], said
details = {one["id"]: one for one in update_document(paths)["warning_details"]}
assert details["guard-not-immutable"]["severity"] == "warning"
assert not list(paths.models.glob(".stage-*"))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_where_it_cannot_be_one_line_says_so_and_nothing_fails(shared_folder: Path) -> None:
    run_unprivileged(CANNOT, shared_folder)


def test_the_report_says_when_a_version_is_not_immutable(paths: Paths, warm: Warm) -> None:
    assert "immutable" not in warm.run(paths, "state_tracker.py", "--warnings").stdout
    set_tree(paths.version("v003"), False)
    line = "[backup] immutable_versions is on, but v003 is not immutable: that needs root, and ext4, XFS or btrfs\n"
    assert line in warm.run(paths, "state_tracker.py", "--warnings").stdout
    assert weights_of(paths.current_model)
