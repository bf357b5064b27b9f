"""What the kernel can do with files and the standard library does not offer.

Errors are plain ``OSError`` with the path in them, as from ``os``. Nothing here decides what may be
removed or replaced; the modules that own a folder do.
"""

import contextlib
import errno
import fcntl
import functools
import itertools
import os
import re
import signal
import stat
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from guardrails import progress
from guardrails.errors import DiskSpaceError, IntegrityError
from guardrails.manifest import BLOCK_BYTES, FileEntry, hash_file, list_files
from guardrails.state_io import fsync_folder
from guardrails.store.immutable import lifted

if TYPE_CHECKING:
    import ctypes

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
# _IOW(0x94, 9, int) of linux/fs.h
FICLONE = 0x40049409
# What a write past the page cache must be a multiple of, on any disk.
DIRECT_BYTES = 4096
NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
NO_REFLINK = (*NOT_SUPPORTED, errno.ENOTTY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.ETXTBSY)
# They answer a lease request by whether the server granted one, not by who writes.
LEASE_MEANS_NOTHING = frozenset({"nfs", "nfs4", "cifs", "smb3"})
STAGED = ".staged-"
COPIED = ".copied-"


class UnsupportedError(OSError):
    """The kernel or the file system lacks the operation; the caller can fall back to another."""


@functools.cache
def _libc() -> "ctypes.CDLL":
    import ctypes  # 5 ms that a command without these calls need not pay

    return ctypes.CDLL(None, use_errno=True)


def _rename_with(flag: int, source: Path, target: Path) -> None:
    import ctypes

    try:
        renameat2 = _libc().renameat2
    except AttributeError:
        raise UnsupportedError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(source), None, str(target)) from None
    if renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flag) == 0:
        return
    number = ctypes.get_errno()
    kind = UnsupportedError if number in NOT_SUPPORTED else OSError
    raise kind(number, os.strerror(number), str(source), None, str(target))


def exchange(one: Path, other: Path) -> None:
    """Swap two paths in one atomic step; at no instant is either missing.

    Not durable until the parent folders are synced.

    Raises:
        UnsupportedError: the file system lacks it (NFS, some FUSE); nothing was changed.
    """
    _rename_with(RENAME_EXCHANGE, one, other)


def rename_noreplace(source: Path, target: Path) -> None:
    """Rename without ever overwriting.

    Where the file system lacks the atomic form, a file is linked and then unlinked: a kill between
    the two leaves both names on the same file. A folder is renamed after a look: at worst that replaces
    an empty folder.

    Raises:
        FileExistsError: ``target`` exists; nothing was changed.
    """
    try:
        _rename_with(RENAME_NOREPLACE, source, target)
    except UnsupportedError:
        if source.is_dir():
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            source.rename(target)
            return
        os.link(source, target, follow_symlinks=False)
        source.unlink()


def sync_filesystem(path: Path) -> None:
    """Make everything written so far to the file system of ``path`` survive a power cut."""
    import ctypes

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc().syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def copy_file(source: Path, target: Path, mode: int) -> str:
    """Write a new file ``target`` of its own blocks with the bytes of ``source``; their BLAKE3 in hex.

    Neither end follows a symlink. The copy is not synced yet. On an error the partial ``target`` is removed.

    Raises:
        FileExistsError: ``target`` exists; it is left as it is.
    """
    reader = _open_regular(source)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            digest = _copy_bytes(reader, source, writer, target)
            os.fchmod(writer, mode)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    return digest


def _copy_bytes(reader: int, source: Path, writer: int, target: Path) -> str:
    """Copy all bytes between two descriptors; their BLAKE3. A large file is hashed while the disk writes.

    Its blocks go past the page cache where the file system allows it: filling the cache costs more than the copy, and
    would push out what is in use.
    """
    if os.fstat(reader).st_size <= BLOCK_BYTES:
        hasher, buffer = blake3(), memoryview(bytearray(BLOCK_BYTES))
        while count := _read(reader, buffer, source):
            hasher.update(buffer[:count])
            _write_all(writer, buffer[:count], target)
        return hasher.hexdigest()

    import mmap
    from concurrent.futures import Future, ThreadPoolExecutor

    # More threads for the hash would take the processor from the copying.
    hasher = blake3(max_threads=1)
    # Anonymous maps, because they begin at the start of a page.
    blocks = [memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(3)]
    hashed: list[Future[Any] | None] = [None] * len(blocks)
    _set_direct(writer, True)
    ahead = len(blocks) * BLOCK_BYTES
    os.posix_fadvise(reader, 0, ahead, os.POSIX_FADV_WILLNEED)
    with ThreadPoolExecutor(max_workers=1) as pool:
        for index in itertools.cycle(range(len(blocks))):
            if (previous := hashed[index]) is not None:
                previous.result()
            count = _read(reader, blocks[index], source)
            if count == 0:
                break
            # The disk reads what comes next while this is written.
            os.posix_fadvise(reader, ahead, BLOCK_BYTES, os.POSIX_FADV_WILLNEED)
            ahead += BLOCK_BYTES
            hashed[index] = pool.submit(hasher.update, blocks[index][:count])
            if count % DIRECT_BYTES:
                _set_direct(writer, False)
            _write_all(writer, blocks[index][:count], target)
    return hasher.hexdigest()


def _read(descriptor: int, block: memoryview, path: Path) -> int:
    try:
        return os.readv(descriptor, [block])
    except OSError as error:
        error.filename = str(path)
        raise


def _write_all(descriptor: int, block: memoryview, path: Path) -> None:
    written = 0
    while written < len(block):
        try:
            written += os.write(descriptor, block[written:])
        except OSError as error:
            # Some file systems take the flag and refuse the write.
            if error.errno != errno.EINVAL or not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                error.filename = str(path)
                raise
            _set_direct(descriptor, False)
        else:
            if written % DIRECT_BYTES:
                _set_direct(descriptor, False)
    progress.advance(written)


def _set_direct(descriptor: int, on: bool) -> None:
    """Have writes go past the page cache, where the file system can, or no more."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)


def try_reflink(source: Path, target: Path, mode: int = 0o644) -> bool:
    """Make ``target`` a new file that shares the blocks of ``source`` until either is written to.

    False, with nothing left behind, where the file systems cannot do that.

    Raises:
        FileExistsError: ``target`` exists; it is left as it is.
    """
    reader = _open_regular(source)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.ioctl(writer, FICLONE, reader)
            os.fchmod(writer, mode)
        except BaseException as error:
            target.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in NO_REFLINK:
                return False
            raise
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    return True


def can_reflink(file: Path, folder: Path) -> bool:
    """Whether a copy of ``file`` in ``folder`` can share its blocks; tried out."""
    probe = folder / f"reflink.tmp-{os.getpid()}-{os.urandom(4).hex()}"
    if not try_reflink(file, probe):
        return False
    # Another process may have taken it for the leftover of a kill.
    probe.unlink(missing_ok=True)
    return True


def _open_regular(path: Path) -> int:
    """A descriptor for reading, never of a symlink, and never waiting for a pipe's other end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def copy_tree(
    source: Path,
    target: Path,
    *,
    file_mode: int,
    folder_mode: int,
    independent: bool = False,
    leave_out: Set[str] = frozenset(),
) -> list[FileEntry]:
    """Make ``target`` a durable copy of ``source``; its manifest, sorted by path.

    Files share blocks with the source where the file system can, unless ``independent``: then every byte is written
    anew. Files in ``leave_out`` are not copied. The hashes are of the bytes that went into the copy, whatever happens
    to the source meanwhile. When it fails, the partial ``target`` is the caller's to remove.

    Raises:
        FileExistsError: ``target`` exists.
        IntegrityError: something in ``source`` is neither a regular file nor a folder.
    """
    files = [path for path in list_files(source) if path not in leave_out]
    target.mkdir()
    for folder in _list_folders(source):
        (target / folder).mkdir()
    manifest: list[FileEntry] = []
    reflinks = not independent
    for path in files:
        copy = target / path
        reflinks = reflinks and try_reflink(source / path, copy, file_mode)
        content = hash_file(copy) if reflinks else copy_file(source / path, copy, file_mode)
        manifest.append({"path": path, "size": copy.stat().st_size, "blake3": content})
    apply_modes(target, file_mode, folder_mode)
    # One flush of the file system instead of one a file.
    sync_filesystem(target)
    return manifest


def _list_folders(root: Path) -> list[str]:
    """Relative paths of all folders below ``root``, parents first."""
    found: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(root / folder) as entries:
            below = [f"{folder}{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False)]
        found.extend(below)
        pending.extend(f"{path}/" for path in below)
    return found


def apply_modes(root: Path, file_mode: int, folder_mode: int) -> None:
    """Set the modes of every file and folder of a tree, ``root`` included; symlinks are left alone.

    What has its mode is not touched.
    """
    for path in list_files(root):
        _set_mode(root / path, file_mode)
    # Children first, or a folder that loses its search bit would lock us out.
    for folder in reversed(_list_folders(root)):
        _set_mode(root / folder, folder_mode)
    _set_mode(root, folder_mode)


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        with lifted(path):
            path.chmod(mode)


def remove_tree(path: Path) -> None:
    """Remove a folder and all below it, read-only folders included; afterwards nothing is there.

    A file that an immutable version shares loses this name only; an immutable folder is refused.
    Symlinks are removed, never followed. A missing ``path`` is fine.

    Raises:
        NotADirectoryError: ``path`` is a file or a symlink; it is left as it is.
        OSError: EBUSY, something is mounted on or below it; nothing was removed.
    """
    try:
        descriptor = _open_folder(path, None)
    except FileNotFoundError:
        return
    try:
        resolved = os.path.realpath(path)
        for mount_point, _, _ in _mounts():
            if mount_point == resolved or mount_point.startswith(f"{resolved.rstrip('/')}/"):
                raise OSError(errno.EBUSY, "something is mounted there", mount_point)
        _empty_folder(descriptor, path, os.fstat(descriptor).st_dev)
    finally:
        os.close(descriptor)
    path.rmdir()


def _open_folder(path: Path, parent: int | None) -> int:
    name = path if parent is None else path.name
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def _empty_folder(descriptor: int, path: Path, device: int) -> None:
    """Remove all that is in an open folder, by descriptors, so that no swapped-in link is followed."""
    status = os.fstat(descriptor)
    if status.st_dev != device:
        raise OSError(errno.EBUSY, "another file system is mounted there", str(path))
    if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
    with os.scandir(descriptor) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in names:
        try:
            if not is_folder:
                _unlink(name, descriptor)
                continue
            below = _open_folder(path / name, descriptor)
            try:
                _empty_folder(below, path / name, device)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=descriptor)
        except OSError as error:
            if error.filename == name:
                error.filename = str(path / name)
            raise


def _unlink(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except PermissionError:
        with lifted(name, folder):
            os.unlink(name, dir_fd=folder)


def _mounts() -> list[tuple[str, str, str]]:
    """Mount point, ``major:minor`` and file system type of every mount of this process; empty without /proc."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    mounts = []
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        mount_point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        mounts.append((mount_point, fields[2], right.split(" ")[0]))
    return mounts


def free_bytes(path: Path) -> int:
    """Bytes that this user can still write to the file system where ``path`` lies or will lie."""
    while not path.exists() and path != path.parent:
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def require_space(folder: Path, tree: Path, leave_out: Set[str] = frozenset()) -> None:
    """That a copy of ``tree`` fits on the disk of ``folder``, but for blocks that it can share.

    Raises:
        DiskSpaceError: it does not.
    """
    names = [path for path in list_files(tree) if path not in leave_out] if tree.is_dir() else [""]
    needed = sum((tree / name).stat().st_size for name in names)
    free = free_bytes(folder)
    if free < needed and not (names and can_reflink(tree / names[0], folder)):
        raise DiskSpaceError(
            f"{free >> 20} MiB are free on the disk of {folder}, a copy of {tree} needs {(needed >> 20) + 1} MiB",
            "free some disk space, then run the command again",
        )


def is_being_written(path: Path) -> bool | None:
    """Whether some process has the file open for writing; None where the system cannot tell.

    Asked by requesting a read lease, which the kernel refuses while anyone can write. It cannot tell
    of other users' files (unless root), of writers on other machines, or on network file systems.
    """
    descriptor = _open_regular(path)
    try:
        # Whoever opens the file for writing just now makes the kernel send a signal; the usual one, SIGIO, kills.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        return False
    except BlockingIOError:
        device = os.fstat(descriptor).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        return None if any(d == number and kind in LEASE_MEANS_NOTHING for _, d, kind in _mounts()) else True
    except OSError:
        return None
    finally:
        os.close(descriptor)


def move_file(source: Path, target: Path) -> None:
    """Move a file durably without overwriting, to another file system too.

    There it is copied and read back from the disk before the source goes; a kill between leaves both.

    Raises:
        FileExistsError: ``target`` exists.
        IntegrityError: the copy does not read back as it was written; it was removed.
    """
    if source == target:
        return
    try:
        rename_noreplace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        before = source.lstat()
        copy, _ = stage_copy(source, target.parent)
        rename_noreplace(copy, target)
        fsync_folder(target.parent)
        unlink_unchanged(source, before)
    fsync_folder(target.parent)
    fsync_folder(source.parent)


def stage_copy(source: Path, folder: Path) -> tuple[Path, str]:
    """A durable copy of ``source`` under a hidden name in ``folder``, and the BLAKE3 of its bytes.

    It shares blocks with the source where the file system can; else it was read back from the disk.
    A kill leaves it to ``remove_staged``.

    Raises:
        IntegrityError: the disk does not hold what was written; the copy was removed.
    """
    copy = folder / f"{STAGED}{os.urandom(8).hex()}"
    if try_reflink(source, copy):
        return copy, hash_file(copy, from_disk=True)
    content = copy_file(source, copy, 0o644)
    # Reading from the disk syncs the file first.
    if hash_file(copy, from_disk=True) != content:
        copy.unlink()
        raise IntegrityError(f"{folder} does not hold what was written to it", "check the disk: dmesg | tail")
    return copy, content


def unlink_unchanged(path: Path, before: os.stat_result) -> None:
    """Remove a file that was copied, unless it has been written to or replaced since ``before``."""
    # Out of reach first, or a file renamed to ``path`` between the comparison and the removal would go.
    aside = path.with_name(f"{COPIED}{os.urandom(8).hex()}")
    path.rename(aside)
    now = aside.lstat()
    kept = ("st_ino", "st_dev", "st_size", "st_mtime_ns")
    if all(getattr(now, key) == getattr(before, key) for key in kept):
        aside.unlink()
    else:
        rename_noreplace(aside, path)


def remove_staged(folder: Path) -> None:
    """Remove the staged copies that killed processes left; the caller knows that no other one stages there."""
    for name in os.listdir(folder):
        if name.startswith(STAGED):
            (folder / name).unlink()
