"""The kernel's immutable flag (``chattr +i``): until root takes it away, nobody, not even root, changes what has it.

Such a file is not written to, renamed, linked or unlinked, and keeps its modes; in such a folder no name is made or
removed. The flag belongs to the inode: all names of a file share it. Links are never followed here.
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

# _IOR('f', 1, long) and _IOW('f', 2, long) of linux/fs.h; what is read and written is an int all the same.
GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602
IMMUTABLE = 0x10
# The file system has no such flag, or this user may not set it.
CANNOT = frozenset({errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


def is_immutable(path: Path) -> bool:
    """Whether a file or folder has the flag; False where that cannot be told."""
    descriptor = _open(path, None)
    if descriptor is None:
        return False
    try:
        return bool(_read_flags(descriptor) & IMMUTABLE)
    finally:
        os.close(descriptor)


def set_tree(root: Path, on: bool) -> None:
    """Give or take the flag of all below ``root``, and of ``root`` itself last: what it has, all have.

    Raises:
        OSError: one of ``CANNOT`` where there is no such flag, or this user may not set it.
    """
    for path in _list_below(root):
        _set(path, on)
    _set(root, on)


def lift(path: Path) -> None:
    """Take the flag of a file or folder, if it has it.

    Raises:
        OSError: this user may not.
    """
    if is_immutable(path):
        _set(path, False)


def lift_folders(root: Path) -> None:
    """Take the flag of ``root`` and all folders below it, so that names can be made and removed in them."""
    lift(root)
    for path in _list_below(root):
        if path.is_dir():
            lift(path)


@contextlib.contextmanager
def lifted(path: Path | str, folder: int | None = None) -> Iterator[None]:
    """What is at ``path`` now, in the open ``folder`` if one is given, lacks the flag meanwhile, wherever it is moved.

    Raises:
        OSError: it has the flag, and this user may not take it.
    """
    descriptor = _open(path, folder)
    if descriptor is None:
        yield
        return
    try:
        flags = _read_flags(descriptor)
        if not flags & IMMUTABLE:
            yield
            return
        _write_flags(descriptor, flags & ~IMMUTABLE, path)
        try:
            yield
        finally:
            if os.fstat(descriptor).st_nlink:
                _write_flags(descriptor, flags, path)
    finally:
        os.close(descriptor)


def _set(path: Path, on: bool) -> None:
    descriptor = _open(path, None)
    if descriptor is None and on:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if descriptor is None:
        return
    try:
        flags = _read_flags(descriptor)
        wanted = flags | IMMUTABLE if on else flags & ~IMMUTABLE
        if wanted != flags:
            _write_flags(descriptor, wanted, path)
    finally:
        os.close(descriptor)


def _open(path: Path | str, folder: int | None) -> int | None:
    """A descriptor of a file or folder; None of what is none, is missing, or may not be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return descriptor
    os.close(descriptor)
    return None


def _read_flags(descriptor: int) -> int:
    try:
        return int(struct.unpack("@l", fcntl.ioctl(descriptor, GET_FLAGS, bytes(8)))[0])
    except OSError:
        return 0


def _write_flags(descriptor: int, flags: int, path: Path | str) -> None:
    try:
        fcntl.ioctl(descriptor, SET_FLAGS, struct.pack("@l", flags))
    except OSError as error:
        is_refused = error.errno in (errno.EPERM, errno.EACCES) and not flags & IMMUTABLE
        text = "it is immutable, and only root may change that" if is_refused else error.strerror
        raise OSError(error.errno, text, str(path)) from error


def _list_below(root: Path) -> Iterator[Path]:
    """Every file and folder below ``root``, children first."""
    for folder, folders, names in os.walk(root, topdown=False):
        for name in (*names, *folders):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                yield path
