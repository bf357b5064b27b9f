"""What guardrails.filesystem promises, with real files, as root and as nobody."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guardrails.errors import IntegrityError
from guardrails.filesystem import (
    apply_modes,
    copy_file,
    copy_tree,
    exchange,
    free_bytes,
    is_being_written,
    move_file,
    remove_tree,
    rename_noreplace,
    stage_copy,
    sync_filesystem,
    try_reflink,
    unlink_unchanged,
)
from guardrails.manifest import KnownHashes, find_damage, hash_file, make_manifest
from tests.disks import as_root, mounted
from tests.processes import run_python, run_unprivileged, strace


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "deep/er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "adapter.bin").write_bytes(os.urandom(100_000))
    (root / "deep/er/naïve name\n.txt").write_text("x")
    (root / "deep/nothing").touch()
    return root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/new").touch()
    exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b/new").exists()
    assert not (tmp_path / "a/new").exists()


def test_exchange_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        exchange(tmp_path / "a", tmp_path / "b")
    assert caught.value.filename2 == str(tmp_path / "b")


def test_exchange_says_when_the_file_system_lacks_it(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    code = """
import sys
from pathlib import Path
from guardrails.filesystem import UnsupportedError, exchange
try:
    exchange(Path(sys.argv[1]), Path(sys.argv[2]))
except UnsupportedError as error:
    print(error.errno)
"""
    under = strace("-o", "/dev/null", "-e", "inject=renameat2:error=EINVAL")
    done = run_python(code, tmp_path / "a", tmp_path / "b", under=under)
    assert done.stdout == f"{errno.EINVAL}\n", done.stderr


def test_rename_noreplace_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        rename_noreplace(tmp_path / "a", tmp_path / "b")
    rename_noreplace(tmp_path / "a", tmp_path / "c")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "b", "c": "a"}


def test_rename_noreplace_never_overwrites_where_the_kernel_lacks_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    code = """
import sys
from pathlib import Path
from guardrails.filesystem import rename_noreplace
a, b, c = map(Path, sys.argv[1:])
try:
    rename_noreplace(a, b)
except FileExistsError:
    rename_noreplace(a, c)
"""
    under = strace("-o", "/dev/null", "-e", "inject=renameat2:error=EINVAL")
    done = run_python(code, *(tmp_path / name for name in "abc"), under=under)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "b", "c": "a"}


def test_sync_filesystem_takes_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    sync_filesystem(tmp_path)
    sync_filesystem(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        sync_filesystem(tmp_path / "b")


@pytest.mark.parametrize("size", [0, 1, (8 << 20) + 1])
def test_copy_file_returns_the_hash_of_an_equal_file(tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(os.urandom(size))
    before = os.umask(0o077)
    try:
        content = copy_file(source, target, 0o444)
    finally:
        os.umask(before)
    assert content == hash_file(source) == hash_file(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o444
    assert source.stat().st_ino != target.stat().st_ino


def test_copy_file_overwrites_nothing_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "a", tmp_path / "b", 0o644)
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "a", tmp_path / "link", 0o644)
    with pytest.raises(OSError, match="link"):
        copy_file(tmp_path / "link", tmp_path / "c", 0o644)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        copy_file(tmp_path / "pipe", tmp_path / "c", 0o644)
    assert (tmp_path / "b").read_text() == "b"
    assert not (tmp_path / "c").exists()


@as_root
def test_a_full_disk_leaves_no_partial_copy(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2 << 20))
    with pytest.raises(OSError, match="No space left"):
        copy_file(tmp_path / "a", small_disk / "a", 0o644)
    with pytest.raises(OSError, match="No space left"):
        move_file(tmp_path / "a", small_disk / "a")
    assert list(small_disk.iterdir()) == []
    assert (tmp_path / "a").stat().st_size == 2 << 20


def test_try_reflink_copies_or_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    done = try_reflink(tmp_path / "a", tmp_path / "b", 0o444)
    assert (tmp_path / "b").exists() == done
    if done:
        assert (tmp_path / "b").read_text() == "a"
    (tmp_path / "c").write_text("c")
    with pytest.raises(FileExistsError):
        try_reflink(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "c"


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@as_root
def test_reflinked_copies_are_complete_and_independent_of_later_writes(tmp_path: Path, kind: str) -> None:
    with mounted(kind, tmp_path) as disk:
        (disk / "a").mkdir()
        (disk / "a/f").write_bytes(os.urandom(1 << 20))
        content = hash_file(disk / "a/f")
        manifest = copy_tree(disk / "a", disk / "b", file_mode=0o444, folder_mode=0o555, independent=False)
        assert try_reflink(disk / "a/f", disk / "c")
        (disk / "a/f").write_bytes(b"other")
        assert manifest == [{"path": "f", "size": 1 << 20, "blake3": content}]
        assert find_damage(disk / "b", manifest, hash_of=KnownHashes()) == []


@pytest.mark.parametrize("independent", [False, True])
def test_copy_tree_copies_every_byte_and_sets_the_modes(tmp_path: Path, tree: Path, independent: bool) -> None:
    copy = tmp_path / "copy"
    manifest = copy_tree(tree, copy, file_mode=0o444, folder_mode=0o555, independent=independent)
    assert manifest == make_manifest(tree) == make_manifest(copy)
    assert stat.S_IMODE(copy.stat().st_mode) == stat.S_IMODE((copy / "deep/er").stat().st_mode) == 0o555
    assert stat.S_IMODE((copy / "deep/nothing").stat().st_mode) == 0o444
    assert (copy / "empty").is_dir()
    inodes = {path.stat().st_ino for path in tree.rglob("*") if path.is_file()}
    assert inodes.isdisjoint(path.stat().st_ino for path in copy.rglob("*") if path.is_file())


def test_copy_tree_refuses_links_and_existing_targets(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(FileExistsError):
        copy_tree(tree, tmp_path, file_mode=0o444, folder_mode=0o555, independent=False)
    (tree / "link").symlink_to("/etc/passwd")
    with pytest.raises(IntegrityError):
        copy_tree(tree, tmp_path / "copy", file_mode=0o444, folder_mode=0o555, independent=False)


def test_apply_modes_leaves_what_links_point_to_alone(tmp_path: Path, tree: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch(mode=0o600)
    apply_modes(tree, 0o400, 0o500)
    assert stat.S_IMODE((tree / "deep/nothing").stat().st_mode) == 0o400
    assert stat.S_IMODE((tree / "deep").stat().st_mode) == 0o500
    apply_modes(tree, 0o644, 0o755)
    (tree / "link").symlink_to(outside)
    with pytest.raises(IntegrityError):
        apply_modes(tree, 0o444, 0o555)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600


def test_remove_tree_removes_read_only_trees_and_keeps_what_links_point_to(tmp_path: Path, tree: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tree / "deep/link").symlink_to(outside)
    (tree / "deep/er").chmod(0o555)
    remove_tree(tree)
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "kept").exists()


def test_an_unprivileged_user_can_copy_to_and_remove_read_only_trees(shared_folder: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from guardrails.filesystem import copy_tree, remove_tree
from guardrails.manifest import make_manifest
root = Path(sys.argv[1])
(root / "a/b").mkdir(parents=True)
(root / "a/b/f").write_text("f")
manifest = copy_tree(root / "a", root / "c", file_mode=0o444, folder_mode=0o555, independent=True)
assert manifest == make_manifest(root / "a")
try:
    (root / "c/b/f").unlink()
except PermissionError:
    pass
else:
    raise AssertionError("not read-only")
remove_tree(root / "c")
assert not (root / "c").exists()
"""
    run_unprivileged(code, shared_folder)


def test_remove_tree_refuses_files_and_links(tmp_path: Path, tree: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tree)
    for path in (link, tree / "adapter.bin"):
        with pytest.raises(NotADirectoryError):
            remove_tree(path)
    assert len(make_manifest(tree)) == 3


@as_root
@pytest.mark.parametrize("place", ["tree", "tree/deep"])
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_remove_tree_refuses_mount_points_before_it_removes_anything(
    tmp_path: Path, tree: Path, place: str, kind: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").touch()
    mount = ["mount", "--bind", other] if kind == "bind" else ["mount", "-t", "tmpfs", "tmpfs"]
    subprocess.run([*mount, tmp_path / place], check=True)
    try:
        with pytest.raises(OSError, match="mounted") as caught:
            remove_tree(tree)
        assert caught.value.errno == errno.EBUSY
    finally:
        subprocess.run(["umount", tmp_path / place], check=True)
    assert (other / "kept").exists()
    assert len(make_manifest(tree)) == 3


def test_free_bytes_answers_for_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not/yet") > 0


def test_is_being_written_sees_every_kind_of_writer(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("a")
    assert is_being_written(path) is False
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        writer = os.open(path, flags)
        assert is_being_written(path) is True
        os.close(writer)
    reader = os.open(path, os.O_RDONLY)
    assert is_being_written(path) is False
    os.close(reader)


def test_is_being_written_survives_writers_that_come_just_then(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    code = "import sys\nfor _ in range(100_000): open(sys.argv[1], 'a').close()"
    with subprocess.Popen([sys.executable, "-c", code, path]) as writer:
        answers = set()
        while writer.poll() is None:
            answers.add(is_being_written(path))
            if answers == {True, False}:
                writer.kill()
    assert answers == {True, False}


def test_is_being_written_cannot_tell_of_other_users_files(shared_folder: Path) -> None:
    path = shared_folder / "a"
    path.touch(mode=0o644)
    if os.getuid() != 0:
        pytest.skip("needs a second user")
    code = "import sys; from pathlib import Path; from guardrails.filesystem import *\n"
    run_unprivileged(code + "assert is_being_written(Path(sys.argv[1])) is None", path)


def test_move_file_to_another_disk_keeps_the_bytes_and_removes_the_source(tmp_path: Path) -> None:
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        source, target = Path(other) / "a", tmp_path / "a"
        source.write_bytes(os.urandom(1 << 20))
        content = hash_file(source)
        move_file(source, target)
        assert hash_file(target) == content
        assert list(Path(other).iterdir()) == []
        assert list(tmp_path.iterdir()) == [target]
        source.write_text("another")
        with pytest.raises(FileExistsError):
            move_file(source, target)
        assert source.read_text() == "another"
        assert hash_file(target) == content


def test_a_file_written_to_since_it_was_copied_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("a")
    before = path.stat()
    path.write_text("more")
    unlink_unchanged(path, before)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "more")]
    unlink_unchanged(path, path.stat())
    assert list(tmp_path.iterdir()) == []


def test_stage_copy_refuses_a_disk_that_gives_back_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a")
    monkeypatch.setattr("guardrails.filesystem.hash_file", lambda path, from_disk: "other")
    monkeypatch.setattr("guardrails.filesystem.try_reflink", lambda source, target: False)
    with pytest.raises(IntegrityError):
        stage_copy(tmp_path / "a", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
