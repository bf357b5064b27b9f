"""The Nagios line is one that every monitor reads right, and its exit code is never a verdict that nobody gave."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.paths import CODE_DIR, Paths
from guardrails.report.document import build_report
from guardrails.report.facts import Facts
from guardrails.report.findings import find
from guardrails.report.nagios import status_line
from guardrails.report.values import GIB
from tests.state.building import SCRIPT, Json, healthy, run_tracker
from tests.state.faces import is_alarm, read_nagios
from tests.state.situations import ODD_NAME
from tests.test_bootstrap import PYTHON, copy_toolkit

FORBIDDEN = set("|'\"`\\<>&$\r\n\t")


def make_document(**changes: Any) -> Json:
    """The document of a base dir on a large disk, with nothing wrong but what is changed."""
    facts = Facts(Paths(Path("/nowhere")), 1_800_000_000)
    facts.queue = dict.fromkeys("high normal low processing completed failed skipped".split(), 0)
    facts.available_bytes, facts.used_bytes, facts.total_bytes = 812 * GIB, 188 * GIB, 1000 * GIB
    return {**build_report(facts, [], {}).document, **changes}


def finding(message: str, severity: str = "critical") -> Json:
    return {"id": "x-y", "category": "daemon", "severity": severity, "message": message, "hint": "", "since": ""}


@pytest.mark.parametrize(
    ("cause", "code", "state"),
    [(None, 0, "OK"), (".stop", 1, "WARNING"), ("config.json", 2, "CRITICAL")],
)
def test_exit_codes_are_those_of_a_plugin(tmp_path: Path, cause: str | None, code: int, state: str) -> None:
    box = healthy(tmp_path)
    if cause == ".stop":
        box.paths.emergency_stop.touch()
    elif cause:
        box.paths.config.unlink()
    with box.daemon():
        if cause is None and box.report()["verdict"] != "ok":
            pytest.skip("the disk here is nearly full")
        for options in (["--nagios"], ["--nagios", "--exit-code"], ["--nagios", "--json"]):
            result = run_tracker(tmp_path, *options)
            assert (result.returncode, result.stderr) == (code, "")
            if "--json" in options:
                assert result.stdout.startswith("{\n")
            else:
                assert result.stdout.startswith(f"TRAINING {state} - ")
                assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--base-dir", "/no/such | 'dir'"], "base dir /no/such / dir does not exist"),
        (["--nonsense"], "No such option"),
        (["--explain", "disk-low"], "each print a form of their own"),
        (["--prometheus", "/no/such/folder/x.prom"], "No such file or directory"),
    ],
)
def test_what_is_no_report_is_unknown(tmp_path: Path, options: list[str], words: str) -> None:
    result = run_tracker(None if "--base-dir" in options else tmp_path, "--nagios", *options)
    assert (result.returncode, result.stderr) == (3, "")
    assert result.stdout.startswith("TRAINING UNKNOWN - ")
    assert result.stdout.count("\n") == 1
    assert words in result.stdout
    assert FORBIDDEN.isdisjoint(result.stdout[:-1])


def test_an_error_with_json_is_the_usual_object_with_the_code_for_unknown(tmp_path: Path) -> None:
    result = run_tracker(tmp_path / "none", "--nagios", "--json")
    assert (result.returncode, result.stdout) == (3, "")
    assert '"exit_code": 3' in result.stderr


def test_a_bug_is_unknown_and_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "import guardrails.report.document as module\n"
        "def update_report(paths): raise ZeroDivisionError('a | b')\n"
        "module.update_report = update_report\n"
        f"sys.argv = ['state_tracker.py', '--nagios', '--base-dir', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CODE_DIR, check=False)
    assert result.returncode == 3
    assert result.stdout == "TRAINING UNKNOWN - internal error: ZeroDivisionError: a / b\n"
    assert "Traceback" in result.stderr


def test_before_make_install_it_is_unknown(tmp_path: Path) -> None:
    elsewhere = copy_toolkit(tmp_path / "toolkit")
    command = [PYTHON, str(elsewhere / "state_tracker.py"), "--nagios"]
    result = subprocess.run(command, capture_output=True, text=True, env={}, check=False)
    assert (result.returncode, result.stdout) == (3, "")
    assert "run: make -C" in result.stderr


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "| true"])
def test_an_output_that_cannot_be_written_is_no_ok(tmp_path: Path, redirection: str) -> None:
    healthy(tmp_path).paths.config.unlink()
    line = f"'{sys.executable}' '{SCRIPT}' --nagios --base-dir '{tmp_path}' {redirection}; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("3\n" if "full" in redirection else "2\n", "")


def test_the_c_locale_changes_nothing(tmp_path: Path) -> None:
    box = healthy(tmp_path / "Zürich 模型")
    box.daemon_said("stopped", exit_code=1, reason=ODD_NAME)
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    result = run_tracker(box.base, "--nagios", env=environment)
    assert (result.returncode, result.stderr) == (1, "")
    assert "its / odd (b) (x) y /n + ?? ?.jsonl" in result.stdout


def test_text_that_a_monitor_or_a_shell_would_act_on_is_made_harmless() -> None:
    document = make_document(verdict="critical", warning_details=[finding(f"{ODD_NAME}\r\n\x1b[31m\x00| x=1")])
    status = read_nagios(status_line(document))
    assert status.text == "[daemon] its / odd (b) (x) y /n + ?? ?.jsonl ?[31m?/ x=1"


@given(message=st.text(max_size=600))
def test_any_message_gives_one_line_of_plain_ascii(message: str) -> None:
    line = status_line(make_document(verdict="warning", warning_details=[finding(message, "warning")] * 3))
    text, bar, figures = line.partition(" | ")
    assert bar
    assert FORBIDDEN.isdisjoint(text)
    assert FORBIDDEN.isdisjoint(figures)
    assert line.isascii()
    assert line.isprintable()
    assert len(text) < 260


def test_the_line_passes_through_a_kilobyte(tmp_path: Path) -> None:
    """As much as NRPE passed on before its version 3."""
    box = healthy(tmp_path, versions=3)
    box.status_said("training", loss=1.2345678, eta_seconds=123456.789, current_step=10**7, run_total_steps=10**6)
    box.daemon_said("training", run_id="r1")
    gpu = {"name": "x", "count": 8, "memory_used_gb": 600.55, "memory_total_gb": 640.55, "utilization_percent": 100}
    with box.daemon():
        document = {**box.report(), "gpu": gpu}
    sizes = dict.fromkeys(("versions_gb", "backups_gb", "trash_gb"), 123456.78)
    details = [finding("long " * 100)] * 4
    document = {**document, "storage": sizes, "warning_details": details, "verdict": "critical"}
    assert len(status_line(document)) < 1000


def test_a_number_that_makes_no_sense_is_unknown_and_no_exponent_is_printed() -> None:
    training = {**make_document()["training_status"], "loss": 0.00001234, "current_step": -(10**30), "run_step": 10**14}
    figures = read_nagios(status_line(make_document(training_status={**training, "eta_seconds": 1e300}))).figures
    assert figures["loss"].value == 0.000012
    assert figures["steps"].value is None
    assert figures["eta"].value is None
    assert figures["run_steps"].value == 10**14


@pytest.mark.parametrize("free_gib", [0.0, 8.4, 9.99, 10.0, 45.9, 49.98, 50.0, 812.0])
def test_the_limits_of_free_disk_alarm_when_the_report_does(tmp_path: Path, free_gib: float) -> None:
    facts = Facts(Paths(tmp_path), 0)
    facts.queue = {"failed": 0}
    facts.available_bytes = int(free_gib * GIB)
    found = {one.id for one in find(facts, None)}
    disk = {**make_document()["disk_space"], "available_gb": free_gib}
    figure = read_nagios(status_line(make_document(disk_space=disk))).figures["disk_free"]
    assert figure.value is not None
    assert is_alarm(figure.crit, figure.value) == ("disk-low" in found)
    assert is_alarm(figure.warn, figure.value) == bool(found & {"disk-low", "disk-getting-low"})
    assert (figure.least, figure.most) == ("0", str(1000 * GIB))


def test_the_limits_of_counts_alarm_above_none() -> None:
    document = make_document(
        verdict="critical",
        warning_details=[finding("a"), finding("b", "warning"), finding("c", "info")],
        queue={**make_document()["queue"], "failed": 2},
    )
    figures = read_nagios(status_line(document)).figures
    alarms = {
        name: "critical" if is_alarm(figure.crit, figure.value) else "warning"
        for name, figure in figures.items()
        if figure.value is not None and (is_alarm(figure.crit, figure.value) or is_alarm(figure.warn, figure.value))
    }
    assert alarms == {"findings_critical": "critical", "findings_warning": "warning", "queue_failed": "warning"}
    figures = read_nagios(status_line(make_document())).figures
    assert not any(
        is_alarm(f.crit, f.value) or is_alarm(f.warn, f.value) for f in figures.values() if f.value is not None
    )


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user")
def test_a_user_who_cannot_write_the_state_file_gets_a_warning_and_not_unknown(shared_folder: Path) -> None:
    box = healthy(shared_folder / "base")
    box.base.chmod(0o755)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, str(SCRIPT), "--nagios"]
    with box.daemon():
        result = subprocess.run([*command, "--base-dir", box.base], capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1, 2, 3):
        pytest.skip("another user cannot start this Python")
    assert result.returncode == 1
    assert "could not be written" in result.stdout
