"""Other processes for tests: unprivileged ones, and ones that are killed or failed at a given system call."""

import contextlib
import functools
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import blake3
import pytest

from guardrails.agents import MARKERS
from guardrails.paths import CODE_DIR

UNPRIVILEGED = "nobody"
SITE_PACKAGES = Path(blake3.__file__).parent.parent
# Calls that change which file has which name, and all that change what is on the disk or make it durable.
RENAMING_CALLS = ("rename", "renameat2", "link", "linkat", "unlink", "unlinkat")
CHANGING_CALLS = (*RENAMING_CALLS, "mkdir", "fsync", "write", "ftruncate")


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Return as soon as the condition holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.01)


# Runs a command cut loose from its ancestors, and writes its exit code to the file in the first argument.
LOOSE = 'exec 3<&0; code=$1; shift; { "$@" <&3; echo $? >"$code"; } &'


def type_at_terminal(command: Sequence[str], text: str, environment: dict[str, str]) -> tuple[int, str]:
    """Run a command on a pseudo-terminal, type a line of ``text`` at each question; exit code and what it showed.

    As from a person's shell: without the marks and ancestors of an AI agent that may run these tests.
    """
    leader, follower = pty.openpty()
    environment = {name: value for name, value in environment.items() if name not in MARKERS}
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code"
        process = subprocess.Popen(
            ["sh", "-c", LOOSE, "sh", str(code), *command],
            env=environment,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
        )
        os.close(follower)
        shown, answers, lines = b"", 0, text.splitlines()
        with contextlib.suppress(OSError):  # the other end is closed
            while select.select([leader], [], [], 90)[0] and (chunk := os.read(leader, 4096)):
                shown += chunk
                while shown.count(b"Type ") > answers:
                    os.write(leader, f"{lines[answers] if answers < len(lines) else ''}\n".encode())
                    answers += 1
        os.close(leader)
        process.wait(30)
        return int(code.read_text()), shown.decode()


def run_python(code: str, *arguments: str | Path, under: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh process with the toolkit importable, started by the command ``under``."""
    command = [*under, sys.executable, "-c", code, *map(str, arguments)]
    # Without bytecode caches no process writes any, so that system calls count the same in each.
    environment = {**os.environ, "PYTHONPATH": str(CODE_DIR), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


@functools.cache
def _python_for_all() -> str | None:
    """A Python that an unprivileged user can start; the one of these tests may lie in root's home."""
    for python in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        if shutil.which(python):
            try:
                done = _start_as_nobody(python, "import blake3, guardrails.filesystem", ())
            except OSError:
                continue
            if done.returncode == 0:
                return python
    return None


def _start_as_nobody(
    python: str, code: str, arguments: Sequence[str | Path], seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.defpath, "PYTHONPATH": f"{CODE_DIR}:{SITE_PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"}
    identity = {"user": UNPRIVILEGED, "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    command = [python, "-c", code, *map(str, arguments)]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, capture_output=True, text=True, env=environment, cwd="/", timeout=seconds, check=False, **identity
    )


def run_unprivileged(code: str, *arguments: str | Path) -> None:
    """Run ``code`` as a user who is not root; what it prints to stderr fails the test."""
    python = _python_for_all()
    if python is None:
        pytest.skip("no Python here that an unprivileged user can start")
    done = _start_as_nobody(python, code, arguments)
    assert (done.returncode, done.stderr) == (0, "")


def run_tests_unprivileged(folder: Path, *arguments: str) -> None:
    """Run tests as a user who is not root, with ``folder`` for their files; all must pass."""
    python = _python_for_all()
    if python is None or os.getuid() != 0:
        pytest.skip("no second user, or no Python that he can start")
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    files = ["-c", str(CODE_DIR / "pyproject.toml"), "-p", "no:cacheprovider", "--basetemp", str(folder / "tests")]
    done = _start_as_nobody(python, code, [*files, "-q", "--tb=short", *arguments], seconds=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    if "skipped" in done.stdout:
        pytest.skip(f"not all of it, as a user who is not root: {done.stdout.splitlines()[-2]}")


def strace(*options: str) -> list[str]:
    """A command that runs another under strace."""
    program = shutil.which("strace")
    if (
        program is None
        or subprocess.run([program, "-o", "/dev/null", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("strace cannot be used here")
    return [program, "-f", *options]


def count_calls(code: str, *arguments: str | Path, calls: Sequence[str], log: Path) -> dict[str, int]:
    """How often a process that runs ``code`` makes each of the calls."""
    options = ("-o", str(log), "-e", f"trace={','.join(calls)}")
    done = run_python(code, *arguments, under=strace(*options))
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^\d+ +(\w+)\(", log.read_text(errors="replace"), re.MULTILINE)
    return {name: names.count(name) for name in calls if name in names}


def run_killed(code: str, *arguments: str | Path, call: str, number: int) -> None:
    """Run ``code`` and kill it as it enters its ``number``-th ``call``."""
    inject = ("-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={number}")
    done = run_python(code, *arguments, under=strace(*inject))
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), (call, number, done.stderr)
