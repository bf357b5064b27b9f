"""A command on a terminal of a known size, and what it shows there."""

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import pyte

DEADLINE_SECONDS = 60.0


class Terminal:
    """A pseudo-terminal with a screen behind it; whatever still runs on it ends with the ``with`` block."""

    def __init__(self, *command: str | Path, columns: int = 80, rows: int = 24, **variables: str) -> None:
        self.output = b""
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.controller, follower = os.openpty()
        self._set_size(columns, rows)
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "TERM": "xterm-256color", **variables}
        # Without a fork, so that signals and the exit code are the command's own.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment,
        )
        os.close(follower)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.controller)

    @property
    def lines(self) -> list[str]:
        """What the screen shows, line by line, without what is blank at the end of each."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def read(self, seconds: float) -> bool:
        """Take in what comes within so many seconds; False once the other side is closed."""
        if select.select([self.controller], [], [], seconds)[0]:
            try:
                block = os.read(self.controller, 65536)
            except OSError:  # how Linux tells that the other side is closed
                return False
            self.output += block
            self.stream.feed(block)
        return True

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Read until the condition holds."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert self.read(0.05), f"it ended: {self.output!r}"
            assert time.monotonic() < deadline, self.text

    def wait_for_text(self, *texts: str) -> None:
        self.wait_for(lambda: all(text in self.text for text in texts))

    def wait_for_end(self) -> int:
        """The exit code; of a process that a signal ended, its number below zero."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.read(0.05):
            assert time.monotonic() < deadline, self.text
        return self.process.wait(DEADLINE_SECONDS)

    def type(self, keys: bytes) -> None:
        os.write(self.controller, keys)

    def resize(self, columns: int, rows: int) -> None:
        """As a window is: the kernel tells the process."""
        self.screen.reset()
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.controller, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def is_stopped(self) -> bool:
        state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def show(command: Sequence[str | Path], columns: int = 80, rows: int = 24, **variables: str) -> str:
    """All that a command prints on such a terminal, to its end."""
    with Terminal(*command, columns=columns, rows=rows, **variables) as terminal:
        assert terminal.wait_for_end() == 0, terminal.output
        return terminal.output.decode().replace("\r\n", "\n")
