"""The edge that all scripts share."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from guardrails.paths import CODE_DIR
from tests.processes import wait_until

SHOW = (
    "import sys; from pathlib import Path; from guardrails import cli; from guardrails.manifest import hash_file;"
    "cli.BAR_AFTER_SECONDS = 0\nwith cli.shown_progress():\n    [hash_file(Path(sys.argv[1])) for _ in range(4)]"
)
SCRIPTS = sorted(path.name for path in CODE_DIR.glob("*_*.py"))


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(b"\0" * (24 << 20))
    return path


def test_long_work_shows_a_bar_on_a_terminal(large_file: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", SHOW, str(large_file)]
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=CODE_DIR, env=environment, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""

    def read() -> bool:
        nonlocal shown
        try:
            shown += os.read(leader, 4096)
        except OSError:
            return True
        return False

    wait_until(read)
    assert process.wait(20) == 0
    assert b"MB" in shown, shown


def test_long_work_shows_nothing_on_a_pipe(large_file: Path) -> None:
    command = [sys.executable, "-c", SHOW, str(large_file)]
    done = subprocess.run(command, cwd=CODE_DIR, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_base_dir_is_one_error_and_one_hint(script: str, tmp_path: Path) -> None:
    arguments = {"training_daemon.py": ["--once"], "state_tracker.py": ["--check"]}.get(script, ["list"])
    if script == "training_controller.py":
        arguments = ["status"]
    command = [sys.executable, str(CODE_DIR / script), *arguments, "--base-dir", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert done.stdout == ""
    assert not (tmp_path / "none").exists()


def test_usage_errors_exit_2_and_are_json_when_asked(tmp_path: Path) -> None:
    command = [sys.executable, str(CODE_DIR / "model_versioner.py"), "nonsense", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith('{"error": ')


@pytest.mark.parametrize("script", ["model_versioner.py", "training_controller.py", "training_queue.py"])
def test_without_a_command_it_asks_for_one(script: str) -> None:
    done = subprocess.run([sys.executable, str(CODE_DIR / script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: which command?\nhint: {script} --help\n"


def test_an_empty_base_dir_is_not_the_scripts_own() -> None:
    command = [sys.executable, str(CODE_DIR / "state_tracker.py"), "--check", "--base-dir", ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Invalid value for '--base-dir': it is empty\nhint: ")
