"""When the last tool call began: what is older was not changed by it."""

import os


def mark_of(base: str) -> str:
    """The file whose time is that of the last call's start."""
    return f"{base}/status/guard.mark"


def mark_start(base_dir: str) -> None:
    """Note that a tool call begins. Costs one system call; where nothing can be written, nothing is noted."""
    try:
        os.utime(mark_of(base_dir))
    except FileNotFoundError:
        try:
            os.close(os.open(mark_of(base_dir), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        except OSError:
            return
    except OSError:
        return
