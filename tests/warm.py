"""The scripts in a warm process: a command costs a fork instead of Python's start, and strace can join it.

``python -m tests.warm`` reads a request a line and answers with a line; tests talk to it through ``Warm``.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import click

from guardrails.paths import CODE_DIR, Paths
from guardrails.signature import FINE_GRANULARITY_NS
from tests.processes import SITE_PACKAGES, strace

# What strace answers in place of the kernel when it has joined: a priority that no process has here.
JOINED = 33
JOIN_SECONDS = 30.0
# Until the stamps of a copy made just now are trusted, which would cost a command another look.
SETTLE_SECONDS = FINE_GRANULARITY_NS / 1e9 + 0.01
PR_SET_PTRACER, ANYBODY = 0x59616D61, -1


class Done(NamedTuple):
    """How a command ended; one that was killed has 128 and the signal's number as its code, as in a shell."""

    code: int
    stdout: str
    stderr: str


class Point(NamedTuple):
    """The ``number``-th call of this name that a command makes; descriptors in ``arguments`` have their paths."""

    call: str
    number: int
    arguments: str = ""


class Warm:
    """A process that has imported the scripts and runs them on any base dir, each in a fork of its own."""

    def __init__(self) -> None:
        # Without bytecode caches no process writes any, so that system calls count the same in each.
        environment = {**os.environ, "PYTHONPATH": f"{CODE_DIR}:{SITE_PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> "Warm":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.communicate()

    def run(self, paths: Paths, *command: str, under: Sequence[str] = ()) -> Done:
        """Run ``command`` (a script's name and its arguments) to its end, joined by the command ``under``.

        Joined, it makes the same system calls each time, whenever the base dir was made.
        """
        if under:
            time.sleep(SETTLE_SECONDS)
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        request = {"base": str(paths.base), "command": command, "under": list(under)}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return Done(*json.loads(self.server.stdout.readline()))

    def list_points(self, paths: Paths, *command: str, calls: Sequence[str], log: Path) -> list[Point]:
        """Every one of the calls that a command makes, in the order of the calls.

        Left out is what changes nothing: calls that the kernel refused, words to stdout and stderr, each ``openat``
        that makes no file and each ``ioctl`` that neither shares blocks nor sets flags.
        """
        names = ",".join(calls)
        done = self.run(paths, *command, under=strace("-y", "-o", str(log), "-e", f"trace={names},getpriority"))
        assert done.code == 0, (command, done)
        counts = dict.fromkeys(calls, 0)
        points = []
        for name, arguments in re.findall(r"^\d+ +(\w+)\((.*)", log.read_text(errors="replace"), re.MULTILINE):
            if name not in counts:
                continue
            counts[name] += 1
            marks = {"openat": ("O_CREAT",), "ioctl": ("FICLONE", "FS_IOC_SETFLAGS")}.get(name, ("",))
            is_needed = any(mark in arguments for mark in marks)
            if is_needed and " = -1 " not in arguments and not (name == "write" and arguments[:2] in ("1<", "2<")):
                points.append(Point(name, counts[name], arguments))
        return sorted(points)

    def run_failed(self, paths: Paths, *command: str, point: Point, failure: str) -> Done:
        """Run a command in which ``point`` meets ``failure``: ``signal=KILL``, ``error=ENOSPC`` …"""
        inject = f"inject={point.call}:{failure}:when={point.number}"
        trace = f"trace={point.call},getpriority"
        return self.run(paths, *command, under=strace("-o", "/dev/null", "-e", trace, "-e", inject))


def serve() -> None:
    """Answer requests until there are no more."""
    scripts = load_scripts()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run_forked(scripts, Path(request["base"]), request["command"], request["under"])), flush=True)


def load_scripts() -> dict[str, click.Command]:
    import backup_manager
    import model_versioner
    import state_tracker
    from guardrails.queue_records import processing
    from guardrails.store.change import say_nothing
    from guardrails.store.live_model import finish_published_run, publish_run

    @click.command()
    def publish() -> None:
        paths = Paths(Path(os.environ["TRAINING_BASE_DIR"]))
        record = processing(paths)
        version = publish_run(paths, record, say_nothing) if record else None
        if record and version:
            finish_published_run(paths, record, version)

    return {
        "model_versioner.py": model_versioner.main,
        "backup_manager.py": backup_manager.main,
        "state_tracker.py": state_tracker.main,
        "publish": publish,
    }


def run_forked(scripts: dict[str, click.Command], base: Path, command: Sequence[str], under: Sequence[str]) -> Done:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(run_here(scripts, base, command, wait=bool(under)))
        join = [*under, "-qq", "-e", f"inject=getpriority:retval={JOINED}", "-p", str(pid)]
        joined = subprocess.Popen(join) if under else None
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if joined is not None:
            joined.wait()
        out.seek(0)
        err.seek(0)
        return Done(code if code >= 0 else 128 - code, out.read().decode(), err.read().decode())


def run_here(scripts: dict[str, click.Command], base: Path, command: Sequence[str], *, wait: bool) -> int:
    """The command in this very process, as its script runs it; the exit code."""
    from guardrails.cli import run

    os.environ["TRAINING_BASE_DIR"] = str(base)
    os.chdir(base)
    sys.argv = list(command)
    if wait:
        wait_for_strace()
    try:
        run(scripts[command[0]])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - a bug's traceback is shown, as Python itself does at a script's end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 1


def wait_for_strace() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(ANYBODY))
    deadline = time.monotonic() + JOIN_SECONDS
    while os.getpriority(os.PRIO_PROCESS, 0) != 20 - JOINED:
        if time.monotonic() > deadline:
            raise TimeoutError("strace did not join")
        time.sleep(0.001)


if __name__ == "__main__":
    serve()
