"""Real file systems for tests, mounted for as long as a test needs them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

as_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
# The least that mkfs.xfs takes; the image is sparse.
IMAGE_BYTES = 320 << 20


@contextmanager
def mounted(kind: str, folder: Path, size: str = "2m") -> Iterator[Path]:
    """An empty ``xfs`` or ``btrfs`` on a loop device, or a ``tmpfs`` of this size, below ``folder``."""
    disk, image = folder / "disk", folder / "image"
    disk.mkdir()
    command = ["mount", "-t", kind, "-o", f"size={size}", kind, str(disk)]
    if kind != "tmpfs":
        if shutil.which(f"mkfs.{kind}") is None:
            pytest.skip(f"no mkfs.{kind} here")
        with open(image, "wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
        command = ["mount", "-o", "loop", str(image), str(disk)]
    with _mount(command, disk):
        yield disk


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder as on a disk that is mounted read-only."""
    with _mount(["mount", "--bind", str(folder), str(folder)], folder):
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield


@contextmanager
def _mount(command: list[str], where: Path) -> Iterator[None]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", where], check=True)
