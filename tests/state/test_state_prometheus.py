"""The metrics file is what the textfile collector takes, whole at every instant, and replaces nothing but itself."""

import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guardrails import __version__
from guardrails.errors import OperationError
from guardrails.paths import CODE_DIR
from guardrails.report.prometheus import make_metrics, write_metrics
from tests.disks import as_root, mounted
from tests.state.building import SCRIPT, healthy, run_tracker
from tests.state.faces import read_metrics
from tests.state.test_state_nagios import finding, make_document

GUIDE = (CODE_DIR / "docs/STATE_TRACKER_GUIDE.md").read_text("utf-8")
RULES = re.search(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
SINCE = "2026-11-21T10:00:00Z"
PROMTOOL = shutil.which("promtool")


def test_the_file_is_written_whole_for_everybody_whatever_the_umask(tmp_path: Path) -> None:
    healthy(tmp_path / "base")
    (tmp_path / "collector").mkdir()
    target = tmp_path / "collector/training.prom"
    for _ in range(2):
        line = f"umask 077; '{sys.executable}' '{SCRIPT}' --prometheus '{target}' --base-dir '{tmp_path / 'base'}'"
        result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert (result.stdout.count("\n"), result.stderr) == (1, "")
        assert f"; wrote {target}: verdict " in result.stdout
        assert stat.S_IMODE(target.stat().st_mode) == 0o644
        assert [path.name for path in target.parent.iterdir()] == ["training.prom"]
        metrics = read_metrics(target.read_text("utf-8"), tmp_path / "base")
        assert metrics["training_versions"][0].value == 2
        assert metrics["training_tracker_info"][0].labels == {"version": __version__, "schema_version": "1"}


@pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed")
def test_promtool_has_nothing_to_say(tmp_path: Path) -> None:
    gpu = {"name": "x", "count": 8, "memory_used_gb": 1.5, "memory_total_gb": 640.0, "utilization_percent": 99}
    details = [{**finding("a"), "since": SINCE}]
    training = {**make_document()["training_status"], "loss": 1e-9, "eta_seconds": 5, "last_update": SINCE}
    document = make_document(gpu=gpu, warning_details=details, training_status=training)
    for metrics in (make_metrics(document, tmp_path), run_tracker(tmp_path, "--prometheus", "-").stdout):
        command = [str(PROMTOOL), "check", "metrics", "--extended"]
        result = subprocess.run(command, input=metrics, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")


def test_the_guides_rules_are_about_metrics_that_exist(tmp_path: Path) -> None:
    assert RULES
    details = [{**finding("a"), "since": SINCE}]
    known = read_metrics(make_metrics(make_document(warning_details=details), tmp_path), tmp_path)
    assert set(re.findall(r"\btraining_\w+", RULES[1])) <= known.keys()
    if PROMTOOL:
        (tmp_path / "rules.yml").write_text(RULES[1])
        subprocess.run([PROMTOOL, "check", "rules", tmp_path / "rules.yml"], capture_output=True, check=True)


ODD = 'a"b\\c\nd\te\r=,{} | 模型 🙂 \udcff'


def test_labels_are_escaped_so_that_they_read_back(tmp_path: Path) -> None:
    details = [{**finding("x"), "id": f"file-unreadable:{ODD}", "since": SINCE}]
    config = {**make_document()["config"], "model_name": ODD, "base_model": "\\n"}
    metrics = make_metrics(make_document(warning_details=details, config=config), tmp_path / ODD)
    odd = ODD.replace("\udcff", "\\udcff")
    samples = read_metrics(metrics, f"{tmp_path}/{ODD}".replace("\udcff", "\\xff"))
    assert samples["training_finding"][0].labels["id"] == f"file-unreadable:{odd}"
    assert samples["training_config_info"][0].labels == {"model_name": odd, "base_model": "\\n"}


def test_the_same_finding_twice_is_one_series(tmp_path: Path) -> None:
    """A collector drops the whole file for one that comes twice."""
    details = [{**finding("a"), "since": SINCE}, {**finding("b"), "since": SINCE}]
    samples = read_metrics(make_metrics(make_document(warning_details=details), tmp_path), tmp_path)
    assert len(samples["training_finding"]) == len(samples["training_finding_since_timestamp_seconds"]) == 1


def test_two_base_dirs_side_by_side_have_no_series_in_common(tmp_path: Path) -> None:
    both = "".join(make_metrics(make_document(), tmp_path / name) for name in "ab")
    series = [line.rpartition(" ")[0] for line in both.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series)) > 40
    help_lines = {line for line in both.splitlines() if line.startswith("# HELP")}
    assert len(help_lines) == both.count("# HELP") / 2, "the same words in both, or the collector complains"


def test_numbers_no_float_holds_are_infinite_and_not_the_end_of_the_file(tmp_path: Path) -> None:
    training = {**make_document()["training_status"], "current_step": 10**400, "total_evals": -(10**400), "loss": 1e300}
    samples = read_metrics(make_metrics(make_document(training_status=training), tmp_path), tmp_path)
    assert samples["training_steps"][0].value == float("inf")
    assert samples["training_evaluations"][0].value == float("-inf")
    assert samples["training_loss"][0].value == 1e300


def test_stdout_is_utf_8_in_the_c_locale_and_nothing_is_left_beside(tmp_path: Path) -> None:
    base = tmp_path / "Zürich 模型"
    healthy(base)
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, str(SCRIPT), "--prometheus", "-", "--base-dir", str(base)]
    result = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path, check=True)
    assert result.stderr == b""
    assert "training_verdict" in read_metrics(result.stdout.decode("utf-8"), base)
    assert [path.name for path in tmp_path.iterdir()] == [base.name]


def test_a_form_on_stdout_goes_with_a_file(tmp_path: Path) -> None:
    target = tmp_path / "training.prom"
    base = tmp_path / "base"
    healthy(base).paths.config.unlink()
    plain = {form: run_tracker(base, form).stdout for form in ("--warnings", "--nagios")}
    for form, code in (("--warnings", 0), ("--nagios", 2)):
        result = run_tracker(base, form, "--prometheus", str(target))
        assert (result.returncode, result.stderr) == (code, "")
        assert result.stdout[:80] == plain[form][:80]
        target.unlink()
    result = run_tracker(base, "--json", "--prometheus", str(target), "--exit-code")
    assert (result.returncode, result.stdout[0], target.exists()) == (3, "{", True)


def test_what_is_no_metrics_file_is_never_replaced(tmp_path: Path) -> None:
    box = healthy(tmp_path)
    config = box.paths.config.read_bytes()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("/proc/self/status")
    for path in (box.paths.config, box.paths.current_model, tmp_path / "fifo", tmp_path / "dangling", "/dev/null", ""):
        result = run_tracker(tmp_path, "--prometheus", str(path))
        assert (result.returncode, result.stdout) == (1, ""), path
        assert "was left as it is" in result.stderr
        assert "hint: " in result.stderr
    assert box.paths.config.read_bytes() == config
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_an_empty_file_and_an_earlier_one_are_replaced(tmp_path: Path) -> None:
    target = tmp_path / "x.prom"
    target.touch()
    for number in (1, 2):
        metrics = make_metrics(make_document(versions=[{"id": "v001"}] * number), tmp_path)
        write_metrics(target, metrics)
        assert target.read_text() == metrics
    target.write_text("# HELP node_something Somebody else's.\n")
    with pytest.raises(OperationError, match="no metrics of this toolkit"):
        write_metrics(target, metrics)


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.prom"
    link.symlink_to("there/real.prom")
    for _ in range(2):
        write_metrics(link, make_metrics(make_document(), tmp_path))
    assert link.is_symlink()
    assert (tmp_path / "there/real.prom").read_text().startswith("# HELP training_")


def test_readers_see_the_old_file_or_the_new_one_in_full(tmp_path: Path) -> None:
    target = tmp_path / "x.prom"
    contents = [make_metrics(make_document(pending=["x"] * count), tmp_path) for count in (1, 2)]
    write_metrics(target, contents[0])
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            for content in contents:
                write_metrics(target, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {target.read_text() for _ in range(2000)} <= set(contents)
    finally:
        ended.set()
        writer.join()


def test_ten_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    healthy(tmp_path / "base")
    target = tmp_path / "x.prom"
    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(lambda _: run_tracker(tmp_path / "base", "--prometheus", str(target)), range(10)))
    assert [(result.returncode, result.stderr) for result in results] == [(0, "")] * 10
    assert "training_verdict" in read_metrics(target.read_text(), tmp_path / "base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "x.prom"]


def test_what_killed_writers_left_long_ago_goes_and_other_files_stay(tmp_path: Path) -> None:
    target = tmp_path / "x.prom"
    names = ("x.prom.tmp-1-0123abcd", "x.prom.tmp-2-0123abcd", "y.prom.tmp-1-0123abcd", "x.prom.tmp-old")
    for name in names:
        (tmp_path / name).touch()
        if name != names[1]:
            os.utime(tmp_path / name, (1, 1))
    write_metrics(target, make_metrics(make_document(), tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"x.prom", *names[1:]}


@as_root
def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path) -> None:
    base = healthy(tmp_path / "base").base
    with mounted("tmpfs", tmp_path) as disk:
        target = disk / "x.prom"
        assert run_tracker(base, "--prometheus", str(target)).returncode == 0
        before = target.read_text()
        with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb") as file:
            file.write(b"x" * (4 << 20))
        result = run_tracker(base, "--prometheus", str(target))
        assert (result.returncode, result.stdout) == (33, "")
        assert "No space left on device" in result.stderr
        assert target.read_text() == before
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "x.prom"]
