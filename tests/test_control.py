"""stop, pause, resume, skip and rollback at every phase of a run: nothing lost, nothing hit that was not meant."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.box import Box

pytestmark = pytest.mark.training

PHASES = ("importing", "tokenizing", "loading", "evaluating", "training", "saving")
# Long enough that each phase can be seen and hit; short enough for the quick suite.
ROWS = 160


def slow_settings(box: Box) -> None:
    """A run with every phase in it: an evaluation every few steps on some held-out rows, a checkpoint every step."""
    box.configure(base_model=box.settings["base_model"], eval_steps=5, save_minutes=0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> bytes:
    """The weights of the run on ``one.jsonl`` that nobody touched."""
    box = Box(tmp_path_factory.mktemp("uninterrupted") / "base", tiny_model)
    slow_settings(box)
    box.drop("one.jsonl", rows=ROWS)
    box.once()
    return box.weights()


def controller(box: Box, *arguments: str, code: int = 0) -> str:
    return box.run("training_controller.py", *arguments, code=code).stdout


def test_stop_in_every_phase_loses_nothing_and_the_next_start_carries_on(box: Box, uninterrupted: bytes) -> None:
    slow_settings(box)
    box.drop("one.jsonl", rows=ROWS)
    for phase in PHASES:
        box.start_daemon()
        box.wait_for_phase(phase)
        step = box.progress()["run_step"]
        asked = time.monotonic()
        controller(box, "stop", "--reason", f"in {phase}")
        box.wait_for_end()
        assert time.monotonic() - asked < 10
        assert box.names("processing") == ["one.jsonl"]
        assert box.versions() == []
        if phase == "training":
            progress = box.progress()
            assert progress["status"] == "stopped"
            assert progress["run_step"] >= step
        box.assert_at_rest()
    box.once()
    assert [version["id"] for version in box.versions()] == ["v001"]
    assert box.weights() == uninterrupted
    outcome = json.loads((box.paths.run(box.versions()[0]["run_id"]) / "outcome.json").read_text())
    assert outcome["times_trained"] == {"least": 1, "most": 1}


def test_pause_frees_the_process_hold_keeps_it_and_both_carry_on(box: Box, uninterrupted: bytes) -> None:
    slow_settings(box)
    box.drop("one.jsonl", rows=ROWS)
    box.start_daemon()
    box.wait_for_phase("importing")
    controller(box, "pause", "--wait", "30")
    assert box.workers() == []
    assert box.state()["state"] == "paused"
    assert box.progress()["status"] == "paused"
    controller(box, "resume", "--wait", "30")
    box.wait_for_phase("training", run_step=3)
    (worker,) = box.workers()
    controller(box, "pause", "--hold", "--wait", "30")
    assert box.workers() == [worker]
    assert (box.state()["state"], box.progress()["status"], box.progress()["phase"]) == ("paused", "paused", "held")
    held_at = box.progress()["run_step"]
    controller(box, "resume", "--wait", "30")
    box.wait_for_phase("training", run_step=held_at + 1)
    assert box.workers() == [worker]
    controller(box, "pause", "--wait", "30")
    paused_at = box.progress()["run_step"]
    assert box.workers() == []
    controller(box, "resume", "--wait", "30")
    box.wait_for_phase("training", run_step=paused_at)
    box.wait(lambda: box.head() == "v001", "v001")
    controller(box, "stop", "--wait", "30")
    box.wait_for_end()
    assert box.weights() == uninterrupted
    box.assert_at_rest()


def test_skip_leaves_the_model_and_goes_on_with_the_next_file(box: Box) -> None:
    slow_settings(box)
    box.drop("0.jsonl", rows=24, seed=9)
    box.once()
    before = box.weights()
    for number in range(1, 4):
        box.drop(f"{number}.jsonl", rows=ROWS, seed=number)
    box.start_daemon()
    for name, phase in (("1.jsonl", "importing"), ("2.jsonl", "training"), ("3.jsonl", "evaluating")):
        box.wait(lambda: box.progress().get("data_name") == name, name)  # noqa: B023 - called before the next round
        box.wait_for_phase(phase)
        run_id = box.progress()["run_id"]
        controller(box, "skip", "--reason", "wrong file", "--wait", "30")
        assert name in box.names("skipped")
        assert json.loads((box.paths.run(run_id) / "outcome.json").read_text())["result"] == "dropped"
        assert box.weights() == before
        assert not (box.paths.run(run_id) / "ckpt").exists()
    # Idle: nothing to skip, and no signal is left lying for the next file.
    box.wait(lambda: box.state()["state"] == "idle", "idle")
    controller(box, "skip", code=1)
    assert not list(box.paths.control.glob(".s*"))
    box.drop("4.jsonl", rows=24, seed=4)
    box.wait(lambda: box.head() == "v002", "v002")
    controller(box, "stop", "--wait", "30")
    box.wait_for_end()
    assert box.names("skipped") == ["1.jsonl", "2.jsonl", "3.jsonl"]
    box.assert_at_rest()


@pytest.mark.faults
def test_paused_holds_the_queue_skip_drops_and_stays_paused_stop_keeps_the_run(box: Box) -> None:
    slow_settings(box)
    box.start_daemon()
    box.wait(lambda: box.state()["state"] == "idle", "idle")
    controller(box, "pause", "--wait", "30")
    box.drop("1.jsonl", rows=ROWS, seed=1)
    box.drop("2.jsonl", rows=ROWS, seed=2)
    box.wait(lambda: len(box.names("normal")) == 2, "both files in the queue")
    assert box.state()["state"] == "paused"
    controller(box, "resume", "--wait", "30")
    box.wait_for_phase("training", run_step=2)
    controller(box, "pause", "--wait", "30")
    controller(box, "skip", "--wait", "30")
    assert (box.names("skipped"), box.names("processing"), box.state()["state"]) == (["1.jsonl"], [], "paused")
    controller(box, "resume", "--wait", "30")
    box.wait_for_phase("training", run_step=2)
    controller(box, "pause", "--wait", "30")
    controller(box, "stop", "--wait", "30")
    box.wait_for_end()
    assert box.names("processing") == ["2.jsonl"]
    box.once()
    assert [version["data"][0]["name"] for version in box.versions()] == ["2.jsonl"]


def test_without_a_daemon_every_signal_exits_1_and_leaves_nothing(box: Box) -> None:
    for action in ("stop", "pause", "resume", "skip"):
        assert "training_daemon.py" in box.run("training_controller.py", action, code=1).stderr
    assert list(box.paths.control.iterdir()) == []


def test_a_stale_signal_hits_no_later_run(box: Box) -> None:
    for action in ("stop", "pause", "skip"):
        (box.paths.control / f".{action}").touch()
    box.drop("one.jsonl", rows=24)
    box.once()
    assert box.head() == "v001"
    assert "stale" in "".join(path.read_text() for path in box.paths.logs.iterdir())


def test_bare_files_count_and_stop_beats_skip_beats_pause(box: Box) -> None:
    slow_settings(box)
    box.drop("1.jsonl", rows=ROWS, seed=1)
    box.drop("2.jsonl", rows=ROWS, seed=2)
    box.start_daemon()
    box.wait_for_phase("training", run_step=2)
    (box.paths.control / ".pause").touch()
    (box.paths.control / ".skip").touch()
    box.wait(lambda: box.names("skipped") == ["1.jsonl"], "the skipped file")
    box.wait(lambda: box.progress().get("data_name") == "2.jsonl", "the next file")
    box.wait_for_phase("training", run_step=2)
    (box.paths.control / ".skip").touch()
    (box.paths.control / ".stop").touch()
    box.wait_for_end()
    assert box.names("processing") == ["2.jsonl"]
    assert not {".stop", ".skip", ".pause"} & {path.name for path in box.paths.control.iterdir()}


def test_the_emergency_stop_ends_the_daemon_and_keeps_it_from_starting(box: Box) -> None:
    slow_settings(box)
    box.drop("one.jsonl", rows=ROWS)
    box.start_daemon()
    box.wait_for_phase("training", run_step=1)
    box.paths.emergency_stop.touch()
    box.wait_for_end()
    assert box.names("processing") == ["one.jsonl"]
    assert str(box.paths.emergency_stop) in box.run("training_daemon.py", "--once", code=1).stderr
    box.paths.emergency_stop.unlink()
    box.once()
    assert box.head() == "v001"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_terminating_the_daemon_is_a_stop(box: Box, number: int, uninterrupted: bytes) -> None:
    slow_settings(box)
    box.drop("one.jsonl", rows=ROWS)
    daemon = box.start_daemon()
    box.wait_for_phase("training", run_step=2)
    os.kill(daemon.pid, number)
    box.wait_for_end()
    assert box.workers() == []
    box.once()
    assert box.weights() == uninterrupted


def stop_and_roll_back_at(box: Box, instant: float, good: bytes) -> None:
    """Paste ``stop`` and ``rollback`` some seconds after the wrong file was dropped; it must never train again."""
    box.drop("wrong.jsonl", rows=ROWS, seed=random.randrange(10**6))
    box.start_daemon()
    box.wait(lambda: box.names("processing") or box.daemon_ended(), "the wrong file's run")
    time.sleep(instant)
    pasted = time.monotonic()
    box.run("training_controller.py", "stop", code=None)
    first_line = box.run("model_versioner.py", "rollback").stdout
    assert time.monotonic() - pasted < 15, first_line
    box.wait_for_end()
    assert box.weights() == good, (instant, first_line, box.output())
    assert box.names("processing") == box.names("normal") == box.names("completed")[1:] == []
    box.assert_at_rest()
    box.once()
    assert box.weights() == good, (instant, box.output())


def test_stop_and_rollback_pasted_as_two_lines_work_at_any_instant(box: Box) -> None:
    slow_settings(box)
    box.drop("good.jsonl", rows=24, seed=7)
    box.once()
    good = box.weights()
    for instant in (0.0, 1.0, 4.0, 5.0, 6.5):
        stop_and_roll_back_at(box, instant, good)


@pytest.mark.faults
def test_rollback_drops_a_paused_and_a_held_run(box: Box) -> None:
    slow_settings(box)
    box.drop("good.jsonl", rows=24, seed=7)
    box.once()
    good = box.weights()
    box.start_daemon()
    for seed, options in ((1, []), (2, ["--hold"])):
        name = f"wrong-{seed}.jsonl"
        box.drop(name, rows=ROWS, seed=seed)
        box.wait(lambda: box.progress().get("data_name") == name, name)  # noqa: B023 - called before the next round
        box.wait_for_phase("training", run_step=2)
        box.run("model_versioner.py", "rollback", code=20)
        controller(box, "pause", *options, "--wait", "30")
        assert "dropped the run" in box.run("model_versioner.py", "rollback").stdout
        assert name in box.names("skipped")
        assert box.head() == "v001"
        assert box.workers() == []
        controller(box, "resume", "--wait", "30")
    controller(box, "stop", "--wait", "30")
    box.wait_for_end()
    assert box.weights() == good
    box.assert_at_rest()


@pytest.mark.faults
def test_a_run_whose_model_was_exchanged_while_it_stood_still_starts_anew_from_the_model(box: Box) -> None:
    slow_settings(box)
    for seed in (1, 2):
        box.drop(f"{seed}.jsonl", rows=24, seed=seed)
    box.once()
    box.drop("3.jsonl", rows=ROWS, seed=3)
    box.start_daemon()
    box.wait(lambda: box.progress().get("data_name") == "3.jsonl", "3.jsonl")
    box.wait_for_phase("training", run_step=2)
    box.run("model_versioner.py", "restore", "v001", code=20)
    controller(box, "stop", "--wait", "30")
    box.wait_for_end()
    box.run("model_versioner.py", "restore", "v001")
    box.once()
    assert [version["parent"] for version in box.versions()] == [None, "v001", "v001"]
    assert box.versions()[2]["training_steps"] == box.versions()[0]["run_steps"] + box.versions()[2]["run_steps"]
    assert box.names("completed") == ["1.jsonl", "3.jsonl"]
    box.assert_at_rest()
