"""The live view: the report again and again, on a screen of its own that is put away whatever ends it.

It makes the same cheap pass as every report, and rests at least four times as long as a pass took, so that it is
busy a fifth of one core at most whatever was asked for.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from guardrails.errors import DamagedStateError, UsageError
from guardrails.paths import Paths
from guardrails.report.document import update_document
from guardrails.report.loss_curve import LossCurve
from guardrails.report.screen import Sight, draw_screen
from guardrails.report.text import Style, plain_style
from guardrails.report.values import Json, text
from guardrails.state_io import dump_json, read_json

LEAST_SECONDS, MOST_SECONDS = 0.2, 86400.0
REST_FACTOR = 4.0
INTERRUPTED = 130
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# What a terminal that does not tell its size has.
SIZE = (80, 24)
# Another screen, no cursor, and nothing is wrapped while the size changes; and all of that back.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J", "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, END_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


class _TerminatedError(BaseException):
    """A signal came that ends a process; raised so that everything is put back on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def watch(paths: Paths, seconds: float, style: Style = plain_style, *, as_json: bool = False) -> int:
    """Show the state every so many seconds until Ctrl-C; returns the exit code.

    On a pipe and on a dumb terminal each look is plain text, one below the other; with ``as_json`` one document a line.

    Raises:
        UsageError: ``seconds`` is too short, too long or no number.
    """
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise UsageError(
            f"--watch {seconds:g} is not between {LEAST_SECONDS} and {MOST_SECONDS:.0f} seconds",
            "python3 state_tracker.py --watch 2",
        )
    try:
        if as_json:
            _print_documents(paths, seconds)
        elif not sys.stdout.isatty() or os.environ.get("TERM", "") in ("", "dumb"):
            _print_plainly(paths, seconds)
        else:
            _show_on_screen(paths, seconds, style)
    except KeyboardInterrupt:
        return INTERRUPTED
    except _TerminatedError as error:
        # As if nobody had caught it, so that whoever asks sees what ended this.
        signal.signal(error.number, signal.SIG_DFL)
        os.kill(os.getpid(), error.number)
    return INTERRUPTED


def _print_documents(paths: Paths, seconds: float) -> None:
    while True:
        started = time.monotonic()
        sys.stdout.write(dump_json(update_document(paths), indent=None) + "\n")
        sys.stdout.flush()
        time.sleep(_rest(seconds, started))


def _print_plainly(paths: Paths, seconds: float) -> None:
    watcher = _Watcher(paths)
    while True:
        started = time.monotonic()
        sys.stdout.write("\n".join(draw_screen(watcher.look())) + "\n\n")
        sys.stdout.flush()
        time.sleep(_rest(seconds, started))


def _show_on_screen(paths: Paths, seconds: float, style: Style) -> None:
    watcher = _Watcher(paths)
    with _Screen() as screen:
        while True:
            started = time.monotonic()
            sight = watcher.look()
            until = time.monotonic() + _rest(seconds, started)
            screen.show(sight, style)
            while (left := until - time.monotonic()) > 0:
                if screen.wait(left):
                    screen.show(sight, style)


def _rest(seconds: float, started: float) -> float:
    """How long to wait after a pass that began at ``started``."""
    took = time.monotonic() - started
    return max(seconds - took, REST_FACTOR * took)


class _Watcher:
    """Looks at a base dir; the losses of a run are read on, not anew."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.curve: LossCurve | None = None
        # version -> the run that made it
        self.run_of_version: tuple[str, str | None] = ("", None)

    def look(self) -> Sight:
        now = time.time()
        document = update_document(self.paths, now)
        progress = _read_lightly(self.paths.training_status)
        version = text(_read_lightly(self.paths.head).get("version")) or None
        run_id = text(progress.get("run_id")) or self._find_run(version)
        return Sight(
            str(self.paths.base),
            document,
            now,
            version,
            text(progress.get("data_name")) or None,
            text(progress.get("phase")) or None,
            self._read_losses(run_id),
        )

    def _find_run(self, version: str | None) -> str | None:
        """Between runs the last one is that of the current version."""
        if version is None:
            return None
        if self.run_of_version[0] != version:
            metadata = _read_lightly(self.paths.version(version) / "metadata.json")
            self.run_of_version = (version, text(metadata.get("run_id")) or None)
        return self.run_of_version[1]

    def _read_losses(self, run_id: str | None) -> Sequence[tuple[int, float]]:
        if run_id is None or "/" in run_id or "\0" in run_id:
            return []
        path = self.paths.run(run_id) / "metrics.jsonl"
        if self.curve is None or self.curve.path != path:
            self.curve = LossCurve(path)
        self.curve.look()
        return self.curve.losses


def _read_lightly(path: Path) -> Json:
    """A state file whose trouble, if it has any, the document tells."""
    with suppress(DamagedStateError, ValueError):
        return read_json(path) or {}
    return {}


class _Screen:
    """The terminal's other screen, for as long as a ``with`` block lasts; also left while the process is stopped."""

    def __enter__(self) -> "_Screen":
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
        self.handlers = {number: signal.signal(number, _terminate) for number in ENDING}
        self.handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._stop)
        self.handlers[signal.SIGINT] = signal.getsignal(signal.SIGINT)
        _write(ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self.handlers:
            signal.signal(number, signal.SIG_IGN)
        # A terminal that is gone needs nothing put back.
        with suppress(OSError):
            _write(LEAVE)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def _stop(self, number: int, _: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its screen, and this one is drawn anew when it goes on."""
        _write(LEAVE)
        handler = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, handler)
        _write(ENTER)
        os.kill(os.getpid(), signal.SIGWINCH)

    def wait(self, seconds: float) -> bool:
        """Whether the size changed before the time was over."""
        return signal.sigtimedwait({signal.SIGWINCH}, seconds) is not None

    def show(self, sight: Sight, style: Style) -> None:
        try:
            size = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            size = os.terminal_size(SIZE)
        columns, rows = size.columns or SIZE[0], size.lines or SIZE[1]
        # The last column stays free: some terminals wrap as soon as it is written to.
        lines = draw_screen(sight, max(columns - 1, 1), rows, style)
        _write(HOME + "\r\n".join(f"{line}{END_OF_LINE}" for line in lines) + REST_OF_SCREEN)


def _terminate(number: int, _: FrameType | None) -> None:
    raise _TerminatedError(number)


def _write(output: str) -> None:
    """Past the buffer of stdout, in which a signal's handler may not write while something else does."""
    left = output.encode(sys.stdout.encoding, "replace")
    while left:
        left = left[os.write(sys.stdout.fileno(), left) :]
