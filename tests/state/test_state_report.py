"""The report as people and their pipes see it."""

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guardrails import __version__
from guardrails.report.findings import CATEGORIES
from tests.state.building import SCRIPT, BaseDir, healthy, run_tracker

SECTIONS = ["CURRENT MODEL:", "VERSIONS:", "CONFIG:", "TRAINING STATUS:", "DAEMON:", "DISK SPACE:", "WARNINGS:"]
FIELDS = [
    "Exists: current_model/",
    "Size: 0.00 GB",
    "Training Steps: 150",
    "Last Training: 20",
    "Has Adapter: Yes",
    "v001: file 1.jsonl (20",
    "Storage: ",
    "Model: tiny",
    "Base: base_models/tiny",
    "Max Length: 2048",
    "Locked Params: max_length, base_model, model_name",
    "Status: idle",
    "Steps: 150",
    "Evaluations: 6",
    "Available: ",
    "Used: ",
]
SYSTEM_PYTHON = Path("/usr/bin/python3")


def on_terminal(*command: str | Path, **variables: str) -> str:
    """What a command prints on a terminal."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, stdin=terminal, env=environment) as process:
        os.close(terminal)
        output = b""
        while True:
            try:
                block = os.read(controller, 65536)
            except OSError:  # how Linux tells that the other side is closed
                break
            if not block:
                break
            output += block
    os.close(controller)
    assert process.returncode == 0, output
    return output.decode()


def test_the_report_has_all_sections_in_order_and_all_fields(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    with box.daemon():
        output = run_tracker(tmp_path, "--check").stdout
    places = [output.index(f"\n{name}" if name != SECTIONS[0] else name) for name in SECTIONS]
    assert places == sorted(places)
    assert "VERSIONS: 2 saved\n" in output
    assert "DAEMON: Running\n" in output
    for field in FIELDS:
        assert field in output


def test_each_warning_is_followed_by_its_command(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    box.paths.emergency_stop.touch()
    lines = run_tracker(tmp_path, "--check").stdout.splitlines()
    warnings = [index for index, line in enumerate(lines) if re.match(r"   . \[", line)]
    assert len(warnings) == len(box.report()["warnings"])
    for index in warnings:
        assert lines[index + 1].startswith("     Fix: ")
    assert f"     Fix: rm {tmp_path}/.stop" in lines
    assert "DAEMON: Stopped" in lines


def test_warnings_are_one_line_each_and_nothing_else(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    reason = "the backup failed:\nNo space\x1b[31m left\r"
    box.daemon_said("held", reason=reason)
    with box.daemon():
        lines = run_tracker(tmp_path, "--warnings").stdout.splitlines()
        expected = box.report()["warnings"]
    assert [line.split("] ")[0] for line in lines] == [f"[{category}" for category, _ in expected]
    assert lines[0] == r"[daemon] Queue held: the backup failed:\nNo space\x1b[31m left\r"


def test_no_warnings_is_one_line_that_names_no_category(tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"guardrails-{os.getpid()}-{tmp_path.name}"
    if not other.parent.is_dir() or other.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm as another file system")
    box = healthy(tmp_path)
    box.config(backup_dir=str(other))
    try:
        box.backup(1, "v002", other)
        with box.daemon():
            output = run_tracker(tmp_path, "--warnings").stdout
            report = run_tracker(tmp_path, "--check").stdout
    finally:
        shutil.rmtree(other)
    assert output == "no warnings\n"
    assert not [category for category in CATEGORIES if category in output]
    assert report.endswith("WARNINGS: none, verdict ok\n")


def test_updating_says_so_in_one_line(tmp_path: Path) -> None:
    output = run_tracker(tmp_path).stdout
    assert output == "updated .system_state.json: verdict critical, warnings: 2\n"


def test_a_pipe_gets_whole_lines_without_colour(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    long = "a very long description " * 40
    box.version(3, description=long)
    output = run_tracker(tmp_path, "--check").stdout
    assert f"v003: {long} (" in output
    assert "\x1b" not in output


def test_a_terminal_gets_colour_unless_no_color_is_set(tmp_path: Path) -> None:
    healthy(tmp_path)
    command = (sys.executable, SCRIPT, "--check", "--base-dir", tmp_path)
    assert "\x1b[" in on_terminal(*command, NO_COLOR="")
    assert "\x1b" not in on_terminal(*command, NO_COLOR="1")
    assert "\x1b" not in on_terminal(sys.executable, SCRIPT, "--json", "--base-dir", tmp_path, NO_COLOR="")


@pytest.mark.parametrize("variables", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
@pytest.mark.parametrize("form", ["--check", "--warnings", "--json", None])
def test_the_c_locale_and_an_empty_environment_are_enough(
    tmp_path: Path, variables: dict[str, str], form: str | None
) -> None:
    base = tmp_path / "Zürich 模型"
    box = healthy(base)
    box.config(base_model="模型")
    box.version(3, description="naïve 🙂")
    command = [str(SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else sys.executable), str(SCRIPT), *([form] if form else [])]
    environment = {"TRAINING_BASE_DIR": str(base), **variables}
    result = subprocess.run(command, capture_output=True, env=environment, cwd="/", check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == b""
    assert b"\n" in result.stdout
    if variables.get("PYTHONUTF8") == "0":
        assert result.stdout.isascii()


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    box = BaseDir(tmp_path)
    for number in range(1, 60):
        box.version(number, description="x" * 2000)
    line = f"'{sys.executable}' '{SCRIPT}' --check --base-dir '{tmp_path}' | grep -q MODEL"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_it_runs_through_a_symlink_from_anywhere(tmp_path: Path) -> None:
    base = tmp_path / "base dir"
    healthy(base)
    link = tmp_path / "my tracker"
    link.symlink_to(SCRIPT)
    result = subprocess.run(
        [str(link), "--warnings", "--base-dir", "base dir"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "[daemon] Training daemon not running (model exists with training progress)" in result.stdout


@pytest.mark.skipif(not SYSTEM_PYTHON.exists(), reason="no system python3")
def test_isolated_mode_of_the_systems_python_is_enough(tmp_path: Path) -> None:
    healthy(tmp_path)
    command = [str(SYSTEM_PYTHON), "-I", str(SCRIPT), "--check", "--base-dir", str(tmp_path)]
    assert "VERSIONS: 2 saved" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_version_help_and_usage_errors(tmp_path: Path) -> None:
    assert __version__ in run_tracker(None, "--version").stdout
    assert "--warnings" in run_tracker(None, "--help").stdout
    assert run_tracker(tmp_path, "--nonsense").returncode == 2


def test_hints_for_another_base_dir_name_it_safely(tmp_path: Path) -> None:
    base = tmp_path / "it's here"
    box = BaseDir(base)
    hint = box.findings()["config-missing"]["hint"]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {hint}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words == ["python3", "training_daemon.py", "--init", "--base-dir", str(base)]
