"""The losses of one run as its worker writes them, read on as they come."""

import json
import math
from pathlib import Path

# What is looked at again to see that the file was only added to.
TAIL_BYTES = 256
# Of a longer file only the end is read: some hundred thousand losses.
MOST_BYTES = 32 << 20


class LossCurve:
    """``losses`` are (step, loss), oldest first. Each look reads only what was added since the last one.

    A run that resumes cuts its metrics back to its checkpoint; then they are read anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.losses: list[tuple[int, float]] = []
        self._inode = 0
        self._offset = 0
        self._tail = b""

    def look(self) -> None:
        """Bring ``losses`` up to date; none where the file is missing or cannot be read."""
        try:
            with self.path.open("rb") as file:
                inode = self.path.stat().st_ino
                file.seek(self._offset - len(self._tail))
                if inode != self._inode or file.read(len(self._tail)) != self._tail:
                    self._start(inode, file.seek(0, 2))
                    file.seek(self._offset)
                added = file.read()
        except OSError:
            self._start(0, 0)
            return
        # A line that is still being written is for the next time.
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._tail = (self._tail + whole)[-TAIL_BYTES:]
        for line in whole.splitlines():
            self._take(line)

    def _start(self, inode: int, size: int) -> None:
        self.losses = []
        self._inode, self._offset, self._tail = inode, max(0, size - MOST_BYTES), b""

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(values, dict):
            return
        step, loss = values.get("step"), values.get("loss")
        if isinstance(step, int) and isinstance(loss, float) and math.isfinite(loss):
            self.losses.append((step, loss))
