"""Who writes into a tree right now: it cannot be saved as a whole meanwhile."""

import os
from pathlib import Path

from guardrails.errors import BusyError
from guardrails.filesystem import is_being_written
from guardrails.manifest import list_files


def refuse_writers(root: Path) -> None:
    """Return if no process has a file below ``root`` open for writing, as far as the system can tell.

    Raises:
        BusyError: one has; it is named where this user may look at it.
    """
    for path in list_files(root):
        if is_being_written(root / path):
            writer = _find_writer(root / path)
            raise BusyError(
                f"{writer or 'a process'} writes to {root / path}",
                "wait until it is done, then run the command again",
            )


def _find_writer(file: Path) -> str | None:
    """Number and command line of a process that has ``file`` open for writing or mapped."""
    wanted = (file.stat().st_dev, file.stat().st_ino)
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        for kind in ("fd", "map_files"):
            try:
                links = [f"/proc/{pid}/{kind}/{name}" for name in os.listdir(f"/proc/{pid}/{kind}")]
            except OSError:
                continue
            if any(_is_open_for_writing(link, wanted) for link in links):
                return f"process {pid} ({_command_line(pid)})"
    return None


def _is_open_for_writing(link: str, wanted: tuple[int, int]) -> bool:
    try:
        status = os.stat(link)
        # The link's own mode says how the file was opened.
        return (status.st_dev, status.st_ino) == wanted and bool(os.lstat(link).st_mode & 0o200)
    except OSError:
        return False


def _command_line(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    return " ".join(word.decode("utf-8", "replace") for word in words if word)[:120]
