"""The live view fits its terminal, says what the document says, and leaves the terminal as it found it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.report.loss_curve import MOST_BYTES, LossCurve
from guardrails.report.screen import Sight, draw_screen
from guardrails.report.terminal_text import count_cells, cut, draw_bar, draw_curve
from guardrails.report.watch import ENTER, LEAVE, REST_FACTOR, _rest
from guardrails.report.words import say_age, say_seconds
from tests.box import Box
from tests.state.building import SCRIPT, BaseDir, Json, run_tracker
from tests.state.situations import NAMES, ODD_NAME, situations
from tests.terminals import Terminal

SIZES = [(80, 24), (160, 50), (40, 12), (20, 5), (10, 1), (300, 100)]


STATUS: Json = {
    "current_step": 247,
    "loss": 0.7531,
    "eta_seconds": 3671.25,
    "data_name": "math.jsonl",
    "phase": "evaluating",
}


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, BaseDir]]:
    with situations(tmp_path_factory.mktemp("boxes")) as made:
        training = made["training"]
        write_losses(training, 22)
        training.status_said("training", **STATUS)
        yield made


def write_losses(box: BaseDir, steps: int) -> Path:
    path = box.paths.run("r1") / "metrics.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "".join(json.dumps({"step": step, "loss": 6.0 / step, "at": "x"}) + "\n" for step in range(1, steps + 1))
    )
    return path


def sight_of(box: BaseDir, **values: Any) -> Sight:
    losses = [(step, 6.0 / step) for step in range(1, 23)]
    known = {"version": "v003", "data_name": "math.jsonl", "phase": "evaluating", "losses": losses, **values}
    return Sight(str(box.base), box.report(), time.time(), **known)


def watch(box: BaseDir, seconds: float = 0.3, columns: int = 80, rows: int = 24, **variables: str) -> Terminal:
    return Terminal(*command(box, seconds), columns=columns, rows=rows, **variables)


def command(box: BaseDir, seconds: float, *options: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--watch", str(seconds), "--base-dir", str(box.base), *options]


@pytest.mark.parametrize(("columns", "rows"), SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_every_line_fits_whatever_the_state_and_the_size(
    boxes: dict[str, BaseDir], name: str, columns: int, rows: int
) -> None:
    sight = sight_of(boxes[name], data_name=ODD_NAME, losses=[(1, 1e308), (2, -1e308)] * 500)
    lines = draw_screen(sight, columns, rows)
    assert 0 < len(lines) <= rows
    assert [line for line in lines if count_cells(line) > columns or not line.isprintable()] == []
    assert lines[0].startswith("VERDICT") or rows > 1


@pytest.mark.parametrize("name", NAMES)
def test_the_view_has_the_values_of_the_document(boxes: dict[str, BaseDir], name: str) -> None:
    sight = sight_of(boxes[name])
    assert_shows(draw_screen(sight), sight.document)
    assert_shows(draw_screen(sight, 300, 100), sight.document)


def assert_shows(lines: list[str], document: Json) -> None:
    """The values of the document are in the lines, where there is room for all."""
    text = "\n".join(lines)
    said = {line.partition(":")[0]: line.partition(": ")[2] for line in lines if re.match(r"[A-Z]+:", line)}
    assert document["last_updated"] in text.partition("\n")[0]
    assert said["VERDICT"].split()[0] == document["verdict"]
    counts = {
        one: [d["severity"] for d in document["warning_details"]].count(one) for one in ("critical", "warning", "info")
    }
    for severity, count in counts.items():
        assert (f"{count} {severity}" in said["VERDICT"]) == (count > 0)
    model, training, disk = (document[key] for key in ("current_model", "training_status", "disk_space"))
    if model["exists"]:
        assert f", {model['training_steps']:,} steps, {model['size_gb']:.2f} GB" in said["MODEL"]
    else:
        assert said["MODEL"].startswith("none")
    assert said["VERSIONS"].startswith(f"{len(document['versions'])} saved")
    if document["versions"]:
        assert f"newest {document['versions'][-1]['id']} " in said["VERSIONS"]
    assert said["TRAINING"].startswith(training["status"])
    assert f"{training['current_step']:,} step" in said["TRAINING"]
    if training["status"] == "training" and training["run_total_steps"]:
        assert "22 of 75 steps, 29%, 1 h 1 min left" in text
        assert f"Loss: {training['loss']:.4g} from 6 at step 1" in text
    shown = {}
    for part in said["QUEUE"].replace("empty", "").split(", "):
        number, _, state = part.partition(" ")
        shown[state] = number
    shown.pop("", None)
    assert shown == {state: f"{count:,}" for state, count in document["queue"].items() if count}
    assert said["DAEMON"] == ("Running" if document["daemon_running"] else "Stopped")
    assert f"{disk['available_gb']:,} GB free of {disk['total_gb']:,} GB, {disk['used_percent']}% used" in said["DISK"]
    assert said["WARNINGS"] == str(len(document["warnings"]) or "none")
    for detail in document["warning_details"]:
        assert f"[{detail['category']}] " in text
        assert f"     Fix: {detail['hint']}" in text or not detail["hint"].isascii()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (160, 50)])
def test_on_a_terminal_it_fits_and_follows_the_training(
    boxes: dict[str, BaseDir], columns: int, rows: int, tmp_path: Path
) -> None:
    box = boxes["training"]
    with watch(box, columns=columns, rows=rows) as terminal:
        terminal.wait_for_text("VERDICT: ", "22 of 75 steps, 29%, 1 h 1 min left", "WARNINGS: ")
        document = json.loads(box.paths.system_state.read_text())
        lines = terminal.lines
        assert max(map(count_cells, lines)) < columns
        if columns > 100:
            assert_shows(lines, document)
        assert f"   • [{document['warnings'][0][0]}] {document['warnings'][0][1][:40]}" in terminal.text
        assert "Fix: python3 " in terminal.text
        assert "MODEL: v003, 225 steps" in terminal.text
        assert "TRAINING: training math.jsonl (evaluating), 247 steps" in terminal.text
        assert re.search(r"Loss: 0.7531 from 6 at step 1.*█", terminal.text, re.DOTALL)
        box.status_said("training", run_step=30, loss=0.5, eta_seconds=59.0, current_step=255, data_name="math.jsonl")
        try:
            terminal.wait_for_text("30 of 75 steps, 40%, 59 s left", "Loss: 0.5 ")
        finally:
            box.status_said("training", **STATUS)
        terminal.type(b"\x03")
        assert terminal.wait_for_end() == 130
    assert terminal.output.startswith(ENTER.encode())
    # What the keyboard echoes comes first.
    assert terminal.output.endswith(LEAVE.encode())
    assert b"\x1b[1m" in terminal.output


def test_a_new_size_shows_at_once(boxes: dict[str, BaseDir]) -> None:
    with watch(boxes["warnings"], seconds=3600) as terminal:
        terminal.wait_for_text("WARNINGS: ", "more: python3 state_tracker.py --check")
        for columns, rows in ((160, 50), (50, 9), (80, 24)):
            terminal.resize(columns, rows)
            terminal.wait_for(lambda: "VERDICT: " in terminal.text and "Fix: " in terminal.text)
            assert max(map(count_cells, terminal.lines)) < columns


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_it_leaves_the_terminal_as_it_was(boxes: dict[str, BaseDir], number: signal.Signals) -> None:
    with watch(boxes["fresh"]) as terminal:
        terminal.wait_for_text("VERDICT: ")
        terminal.send(number)
        assert terminal.wait_for_end() == -number
    assert terminal.output.endswith(LEAVE.encode())


def test_stopped_by_the_shell_it_gives_the_terminal_back_and_draws_again_when_it_goes_on(
    boxes: dict[str, BaseDir],
) -> None:
    job = f"exec '{sys.executable}' '{SCRIPT}' --watch 3600 --base-dir '{boxes['fresh'].base}'"
    with Terminal("bash", "-c", f'set -m; bash -c "{job}"; echo STOPPED; fg; echo') as shell:
        shell.wait_for_text("VERDICT: ")
        shell.type(b"\x1a")
        shell.wait_for(lambda: shell.output.count(b"VERDICT") == 2)
        before, _, after = shell.output.rpartition(b"STOPPED")
        assert before.index(b"VERDICT") < before.index(LEAVE.encode())
        assert after.index(ENTER.encode()) < after.index(b"VERDICT")
        shell.type(b"\x03")
        shell.wait_for_end()
    assert LEAVE.encode() in shell.output.rpartition(b"VERDICT")[2]


def test_an_error_is_told_on_the_users_own_screen(tmp_path: Path) -> None:
    box = BaseDir(tmp_path / "base")
    with watch(box) as terminal:
        terminal.wait_for_text("VERDICT: ")
        shutil.rmtree(box.base)
        assert terminal.wait_for_end() == 1
    assert b"error: " in terminal.output.rpartition(LEAVE.encode())[2]
    assert b"Traceback" not in terminal.output


def test_no_colour_where_none_is_wanted(boxes: dict[str, BaseDir]) -> None:
    with watch(boxes["training"], NO_COLOR="1") as terminal:
        terminal.wait_for_text("VERDICT: ", "WARNINGS: ")
    assert not re.search(rb"\x1b\[[0-9;]*m", terminal.output)


def test_without_unicode_it_is_drawn_in_ascii(boxes: dict[str, BaseDir]) -> None:
    with watch(boxes["training"], LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") as terminal:
        terminal.wait_for_text("VERDICT: ", "###---", "Loss: 0.7531 from 6 at step 1 @", "   * [")
    assert terminal.output.isascii()


@pytest.mark.parametrize("kind", ["dumb", ""])
def test_a_terminal_that_can_move_nothing_gets_plain_lines(boxes: dict[str, BaseDir], kind: str) -> None:
    with watch(boxes["fresh"], rows=200, NO_COLOR="1", TERM=kind) as terminal:
        terminal.wait_for(lambda: terminal.text.count("VERDICT: ") >= 2)
    assert b"\x1b" not in terminal.output


def test_on_a_pipe_each_look_is_plain_text(boxes: dict[str, BaseDir]) -> None:
    box = boxes["warnings"]
    with subprocess.Popen(command(box, 0.2), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        looks: list[list[str]] = [[]]
        while len(looks) < 3:
            line = process.stdout.readline().removesuffix("\n")
            looks[-1].append(line)
            if line == "" and looks[-1][-2].startswith("     Fix: "):
                looks.append([])
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == ""
    for look in looks[:2]:
        assert_shows(look[:-1], box.report() | {"last_updated": look[0][:20]})
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", look[0])
        # Nothing is cut.
        assert any("second line" in line for line in look)
    assert "\x1b" not in "".join(line for look in looks for line in look)


def test_with_json_it_is_one_document_a_line(boxes: dict[str, BaseDir]) -> None:
    with subprocess.Popen(command(boxes["training"], 0.2, "--json"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for _ in range(3):
            assert json.loads(process.stdout.readline())["schema_version"] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


@pytest.mark.parametrize("seconds", ["0", "0.1", "-1", "nan", "inf", "1e9", "often"])
def test_a_time_that_is_none_is_a_usage_error(tmp_path: Path, seconds: str) -> None:
    result = run_tracker(tmp_path, "--watch", seconds)
    assert (result.returncode, result.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["--check", "--nagios", "--deep", "--alert", "--history", "--schema"])
def test_beside_another_form_it_is_a_usage_error(tmp_path: Path, other: str) -> None:
    result = run_tracker(tmp_path, "--watch", "1", other)
    assert result.returncode == (3 if other == "--nagios" else 2)
    assert "each print a form of their own" in result.stderr + result.stdout


def test_it_rests_longer_than_it_works() -> None:
    started = time.monotonic() - 2.0
    assert _rest(1.0, started) >= REST_FACTOR * 2.0
    assert _rest(60.0, started) == pytest.approx(58.0, abs=0.5)


@pytest.mark.training
def test_it_follows_a_real_training_and_changes_nothing_of_it(box: Box) -> None:
    box.configure(**{**box.settings, "log_steps": 1})
    box.drop("sums.jsonl", rows=400)
    with Terminal(sys.executable, SCRIPT, "--watch", "0.2", "--base-dir", box.paths.base) as terminal:
        terminal.wait_for_text("TRAINING: idle", "DAEMON: Stopped", "MODEL: none")
        box.start_daemon("--once")
        terminal.wait_for_text("DAEMON: Running")
        terminal.wait_for(lambda: re.search(r"TRAINING: training sums\.jsonl.*\n.* of 95 steps, \d+%", terminal.text))
        terminal.wait_for(lambda: re.search(r"Loss: [\d.]+ from [\d.]+ at step 1 [▁-█]{3}", terminal.text))
        box.wait_for_end()
        terminal.wait_for_text("MODEL: v001, 95 steps", "TRAINING: idle", "Loss: of the last run", "QUEUE: 1 completed")
        terminal.type(b"\x03")
        assert terminal.wait_for_end() == 130
    box.assert_at_rest()


def test_losses_are_read_on_and_a_run_that_goes_back_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    curve = LossCurve(path)
    curve.look()
    assert curve.losses == []

    def add(*lines: str) -> list[tuple[int, float]]:
        with path.open("a") as file:
            file.write("".join(lines))
        curve.look()
        return curve.losses

    assert add('{"step": 1, "loss": 6.0}\n', '{"step": 1, "eval_loss": 7.0}\n', '{"step": 2, "lo') == [(1, 6.0)]
    assert add('ss": 5.5}\n', "torn\n", "[]\n", '{"step": 3, "loss": NaN}\n') == [(1, 6.0), (2, 5.5)]
    assert add('{"step": 3, "loss": 5.0}\n') == [(1, 6.0), (2, 5.5), (3, 5.0)]
    # Cut back to a checkpoint, and longer again before anybody looked.
    os.truncate(path, len('{"step": 1, "loss": 6.0}\n'))
    assert add('{"step": 2, "loss": 5.9}\n' * 20)[:2] == [(1, 6.0), (2, 5.9)]
    path.unlink()
    assert add() == []
    assert add('{"step": 9, "loss": 1.0}\n') == [(9, 1.0)]


def test_of_a_huge_file_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 5)
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"step": 9, "loss": 1.0}\n')
    curve = LossCurve(path)
    curve.look()
    assert curve.losses == [(9, 1.0)]


@given(st.text(), st.integers(0, 40))
def test_what_is_cut_fits_and_what_fits_is_whole(text: str, width: int) -> None:
    kept = cut(text, width)
    assert count_cells(kept) <= width
    assert kept == text or count_cells(text) > width
    assert cut(text, None) == text


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=200), st.integers(1, 60), st.integers(1, 6))
def test_a_curve_has_its_size_and_falls_and_rises_as_the_values_do(values: list[float], width: int, rows: int) -> None:
    lines = draw_curve(values, width, rows)
    assert len(lines) == (rows if values else 0)
    assert max((count_cells(line) for line in lines), default=0) <= width
    if values and len(values) <= width:
        heights = [sum(" ▁▂▃▄▅▆▇█".index(line[n : n + 1] or " ") for line in lines) for n in range(len(values))]
        assert min(heights) == 1
        order = sorted(range(len(values)), key=lambda n: values[n])
        assert [heights[n] for n in order] == sorted(heights)


@given(st.floats(-1, 2), st.integers(0, 50))
def test_a_bar_is_as_long_as_it_should_be(share: float, width: int) -> None:
    assert len(draw_bar(share, width)) == width


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (31.4, "31 s"),
        (59.6, "1 min"),
        (3671, "1 h 1 min"),
        (90061, "1 d 1 h"),
        (3605, "1 h"),
        (1e99, "999 y"),
    ],
)
def test_lengths_of_time_are_said_in_two_units(seconds: float, said: str) -> None:
    assert say_seconds(seconds) == said


def test_ages_are_said_in_one() -> None:
    assert say_age("1970-01-01T00:00:00Z", 7300) == "2 h ago"
    assert say_age("1970-01-02T00:00:00Z", 7300) == ""
    assert say_age("yesterday", 7300) == ""
