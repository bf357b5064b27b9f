"""JSON state on disk that is the old document or the new one in full, whatever happens.

The recipe of every write: a temporary file beside the target, fsync, rename, fsync of the folder.
"""

import errno
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guardrails.errors import DamagedStateError

SCHEMA_VERSION = 1
# A state file is small; anything larger is not ours and would only eat memory.
MAX_STATE_BYTES = 64 << 20
NOTHING: Mapping[str, Any] = {}
TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{8}$")
# A temporary file this old belongs to nobody any more.
ABANDONED_SECONDS = 3600


def utc_now() -> str:
    """Now as whole-second UTC, ``2026-11-21T10:00:00Z``."""
    return format_utc(time.time())


def format_utc(seconds: float) -> str:
    """Seconds since the epoch as whole-second UTC, which jq's ``fromdateiso8601`` reads."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def dump_json(document: object, indent: int | None = 2) -> str:
    """Strict, ASCII-safe JSON without a final newline.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(document, ensure_ascii=True, allow_nan=False, indent=indent)


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(
    path: Path, text: str, mode: int = 0o644, *, through: Path | None = None, whatever_umask: bool = False
) -> os.stat_result:
    """Replace ``path`` durably and in one step; a kill leaves the old file or the new one. Returns the new one's stat.

    The temporary file is made beside it, or in the folder ``through`` of the same file system. One that a kill
    leaves behind is removed by the folder's owner through ``remove_temporary_files`` or ``remove_abandoned_files``.
    """
    temporary = (through or path.parent) / f"{path.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if whatever_umask:
                os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.rename(temporary, path)
            # By the descriptor: the name may be another writer's by now.
            status = os.fstat(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
    return status


def write_json(path: Path, document: Mapping[str, Any], *, through: Path | None = None) -> None:
    """Replace a state file durably and in one step."""
    write_text(path, dump_json(document) + "\n", through=through)


def take_stat(status: os.stat_result) -> list[int]:
    """What a file is known by: size, mtime_ns, ctime_ns and inode."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def replace_cache(path: Path, content: bytes) -> None:
    """Replace a cache in one step, but not durably: its readers have to notice what a power cut left of it.

    Raises:
        OSError: it cannot be written, and is as it was.
    """
    temporary = path.parent / f"{path.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_lines(path: Path, text: str) -> None:
    """Add whole lines, durably, to a file that is only ever added to.

    Lines that stand at its end already are not added again, so a caller that goes on after a kill may repeat itself.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        added = text.encode()
        size = os.fstat(descriptor).st_size
        end = os.pread(descriptor, len(added), max(0, size - len(added)))
        if end == added:
            return
        # What a kill or a full disk tore off gets a line of its own.
        os.write(descriptor, added if end.endswith(b"\n") or not end else b"\n" + added)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fsync_folder(path.parent)


def read_file(path: Path, most_bytes: int = -1) -> bytes:
    """The content of a regular file, or its first ``most_bytes``.

    Raises:
        OSError: it cannot be read; also if it is a pipe, which would be waited at for ever.
    """
    with open(path, "rb", opener=open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read(most_bytes)


def open_at_once(path: str, flags: int) -> int:
    """An ``opener`` that waits for nobody at a pipe's other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_json(path: Path, required: Mapping[str, Any] = NOTHING) -> dict[str, Any] | None:
    """The state document at ``path``; None only if there is no such file.

    Raises:
        DamagedStateError: not readable, not a JSON object with the ``required`` keys and their types, or of a newer
            schema. The file is left as it is: damaged state is never taken for fresh state.
    """
    try:
        content = read_file(path, MAX_STATE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedStateError(
            f"cannot read {path}: {error.strerror}", "check the file's permissions and the disk"
        ) from error
    try:
        if len(content) > MAX_STATE_BYTES:
            raise ValueError(f"larger than {MAX_STATE_BYTES} bytes")
        document = json.loads(content)
        if not isinstance(document, dict):
            raise TypeError("not a JSON object")
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedStateError(f"{path} is damaged: {error}", _damaged_hint(path)) from error
    version = document.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise DamagedStateError(
            f"{path} has schema_version {version!r}; this toolkit reads up to {SCHEMA_VERSION}",
            "update the toolkit; the file was left untouched",
        )
    if wrong := [key for key, kind in required.items() if not isinstance(document.get(key), kind)]:
        message = f"{', '.join(wrong)} missing or of a wrong type"
        raise DamagedStateError(f"{path} is damaged: {message}", _damaged_hint(path)) from TypeError(message)
    return document


def _damaged_hint(path: Path) -> str:
    return f"it was left as it is; once you know what it held, move it away: mv '{path}' '{path}.damaged'"


def set_aside(path: Path) -> Path:
    """Move a damaged file that can be derived anew to ``NAME.damaged``, and return that path."""
    aside = path.with_name(path.name + ".damaged")
    os.replace(path, aside)
    return aside


def remove_temporary_files(folder: Path, of: Path | None = None) -> None:
    """Remove what killed writers left in ``folder``, or only what they left of the file ``of``.

    Call it under the lock that its writers hold.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        match = TEMPORARY.search(name)
        if match and (of is None or name[: match.start()] == of.name):
            (folder / name).unlink(missing_ok=True)


def remove_abandoned_files(of: Path, now: float) -> None:
    """Remove what writers of the file ``of`` left when they were killed long ago; needs no lock."""
    with os.scandir(of.parent) as entries:
        for entry in entries:
            match = TEMPORARY.search(entry.name)
            if match is None or entry.name[: match.start()] != of.name:
                continue
            try:
                if now - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_SECONDS:
                    os.unlink(entry.path)
            except FileNotFoundError:
                continue
