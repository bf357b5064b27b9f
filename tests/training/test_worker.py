"""What the worker guarantees, with real processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from guardrails.locks import FileLock
from guardrails.manifest import hash_file
from guardrails.paths import CODE_DIR
from tests.training.runs import RunFolder, Spawner, Worker, wait_until, worker_environment

pytestmark = pytest.mark.training

MakeRun = Callable[..., RunFolder]
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]


def newest(run: RunFolder) -> int:
    return max(run.checkpoints(), default=0)


def wait_for_phase(run: RunFolder, phase: str, worker: Worker) -> None:
    wait_until(lambda: run.status()["phase"] == phase or worker.poll() is not None, f"the phase {phase}")
    assert worker.poll() is None, run.log()


def wait_for_step(run: RunFolder, step: int, worker: Worker) -> None:
    wait_until(lambda: newest(run) >= step or worker.poll() is not None, f"step {step}")


def fail(spawner: Spawner, run: RunFolder, exit_code: int = 40) -> tuple[str, str]:
    """Reason and message of a run that must fail and leave no output."""
    assert spawner.train(run) == exit_code, run.log()
    outcome = run.read("outcome.json")
    assert outcome["result"] == "failed"
    assert outcome["hint"]
    assert not (run.path / "output").exists()
    return outcome["reason"], outcome["message"]


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_killed_and_stopped_at_random_equals_an_uninterrupted_one(spawner: Spawner, make_run: MakeRun) -> None:
    """Dropout, accumulation, two epochs, evaluations: weights, losses and counts are bit-identical."""
    whole = make_run("whole", epochs=2)
    assert spawner.train(whole) == 0, whole.log()

    source = random.Random(3)
    pieces = make_run("pieces", epochs=2, save_minutes=0)
    ends = []
    while not (pieces.path / "outcome.json").exists() or pieces.read("outcome.json")["result"] != "completed":
        (pieces.path / "outcome.json").unlink(missing_ok=True)
        worker = spawner.start(pieces)
        wait_for_step(pieces, newest(pieces) + source.randint(0, 8), worker)
        worker.wait_at_most(source.uniform(0, 0.04))
        worker.send(source.choice([signal.SIGKILL, signal.SIGTERM]))
        ends.append(worker.wait())
    assert -signal.SIGKILL in ends
    assert len(ends) > 3
    assert pieces.result() == whole.result()
    assert whole.read("outcome.json")["times_trained"] == {"least": 2, "most": 2}
    assert whole.checkpoints() == []


def test_a_held_run_keeps_its_worker_and_goes_on_bit_identically(spawner: Spawner, make_run: MakeRun) -> None:
    whole = make_run("whole")
    assert spawner.train(whole) == 0

    run = make_run("held", save_minutes=0)
    worker = spawner.start(run)
    wait_for_step(run, 2, worker)
    run.request("hold")
    worker.send(signal.SIGTERM)
    wait_for_phase(run, "held", worker)
    assert run.status()["status"] == "paused"
    assert run.checkpoints()
    held_at = run.status()["run_step"]
    run.request("resume")
    wait_until(lambda: run.status()["run_step"] > held_at, "another step")
    # The resume above was carried out; a signal that comes later without a request of its own means stop.
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert run.read("outcome.json")["result"] == "interrupted"
    assert newest(run) == run.read("outcome.json")["run_steps"] > held_at
    assert spawner.train(run) == 0
    assert run.result() == whole.result()


def test_a_second_signal_ends_a_held_worker_and_keeps_its_checkpoint(spawner: Spawner, make_run: MakeRun) -> None:
    run = make_run(save_minutes=0)
    worker = spawner.start(run)
    wait_for_step(run, 1, worker)
    run.request("hold")
    worker.send(signal.SIGTERM)
    wait_for_phase(run, "held", worker)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    outcome = run.read("outcome.json")
    assert (outcome["result"], outcome["run_steps"]) == ("interrupted", newest(run))


def test_skip_leaves_without_saving(spawner: Spawner, make_run: MakeRun) -> None:
    run = make_run(epochs=20)
    worker = spawner.start(run)
    wait_until(lambda: run.status()["run_step"] >= 1, "a step")
    run.request("skip")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert run.read("outcome.json")["result"] == "interrupted"
    assert run.checkpoints() == []
    assert not (run.path / "output").exists()


@pytest.mark.parametrize("action", ["stop", "hold"])
def test_a_signal_in_an_evaluation_cuts_it_saves_and_makes_it_up_later(
    spawner: Spawner, make_run: MakeRun, tmp_path: Path, chats: Path, action: str
) -> None:
    rows = [json.loads(line) for line in chats.read_text().splitlines()]
    validation = str(write_rows(tmp_path / "validation.jsonl", *rows * 3))
    whole = make_run("whole", validation_file=validation, eval_steps=4)
    assert spawner.train(whole) == 0

    run = make_run("cut", validation_file=validation, eval_steps=4)
    worker = spawner.start(run)
    wait_until(lambda: run.status()["run_step"] == 4 and run.status()["phase"] == "evaluating", "the evaluation")
    run.request(action)
    worker.send(signal.SIGTERM)
    if action == "hold":
        wait_for_phase(run, "held", worker)
        assert run.status()["total_evals"] == 1
        run.request("resume")
        assert worker.wait() == 0
    else:
        assert worker.wait() == 0
        outcome = run.read("outcome.json")
        assert (outcome["run_steps"], outcome["evaluations"]) == (4, 1)
        # Made up, and made up again after a kill, it still counts once.
        worker = spawner.start(run)
        wait_until(lambda: run.status()["total_evals"] == 2 or worker.poll() is not None, "the evaluation")
        worker.send(signal.SIGKILL)
        worker.wait()
        assert spawner.train(run) == 0
    assert run.result() == whole.result()


def test_a_signal_in_the_evaluation_before_training_leaves_at_once(
    spawner: Spawner, make_run: MakeRun, tmp_path: Path, chats: Path
) -> None:
    rows = [json.loads(line) for line in chats.read_text().splitlines()]
    run = make_run(validation_file=str(write_rows(tmp_path / "validation.jsonl", *rows * 3)))
    worker = spawner.start(run)
    wait_for_phase(run, "evaluating", worker)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert run.read("outcome.json")["run_steps"] == 0
    assert run.checkpoints() == []
    assert spawner.train(run) == 0
    assert run.read("outcome.json")["evaluations"] > 1


def damage_weights(checkpoint: Path) -> None:
    os.truncate(checkpoint / "adapter_model.safetensors", 100)


def flip_bit(checkpoint: Path) -> None:
    path = checkpoint / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_random_state(checkpoint: Path) -> None:
    (checkpoint / "rng_state.pth").unlink()


def empty_manifest(checkpoint: Path) -> None:
    os.truncate(checkpoint / "manifest.json", 0)


def another_job(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "job_blake3": "0" * 64}))


def other_tokens(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "items_blake3": "0" * 64}))


@pytest.fixture(scope="module")
def stopped_and_whole(
    spawner: Spawner, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, RunFolder]:
    """A run stopped with two checkpoints, and an uninterrupted one."""
    folder = tmp_path_factory.mktemp("stopped")
    rows = [{"prompt": f"{n} times:", "completion": " word" * (n % 5 + 1)} for n in range(40)]
    data = write_rows(folder / "data.jsonl", *rows)
    whole = RunFolder(folder / "whole", tiny_model, data)
    assert spawner.train(whole) == 0
    run = RunFolder(folder / "stopped", tiny_model, data, save_minutes=0)
    worker = spawner.start(run)
    wait_for_step(run, 3, worker)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert len(run.checkpoints()) == 2
    return run, whole


@pytest.fixture
def stopped_run(stopped_and_whole: tuple[RunFolder, RunFolder], tmp_path: Path) -> RunFolder:
    return stopped_and_whole[0].copy(tmp_path / "stopped")


@pytest.mark.parametrize(
    "harm", [damage_weights, flip_bit, remove_random_state, empty_manifest, another_job, other_tokens]
)
def test_a_harmed_checkpoint_is_passed_over_for_the_one_before_it(
    spawner: Spawner,
    stopped_run: RunFolder,
    stopped_and_whole: tuple[RunFolder, RunFolder],
    harm: Callable[[Path], None],
) -> None:
    before, last = stopped_run.checkpoints()
    harm(stopped_run.path / "ckpt" / f"step-{last}")
    assert spawner.train(stopped_run) == 0, stopped_run.log()
    assert f"going on from step-{before}" in stopped_run.log()
    assert f"step-{last} is not used" in stopped_run.log()
    assert stopped_run.result() == stopped_and_whole[1].result()


def test_damaged_checkpoints_are_kept_until_a_good_one_is_there(spawner: Spawner, stopped_run: RunFolder) -> None:
    steps = stopped_run.checkpoints()
    for step in steps:
        empty_manifest(stopped_run.path / "ckpt" / f"step-{step}")
    worker = spawner.start(stopped_run)
    wait_until(lambda: "is not used" in stopped_run.log() or worker.poll() is not None, "the refusal")
    worker.send(signal.SIGKILL)
    worker.wait()
    assert stopped_run.checkpoints() == steps


def test_a_wrong_count_of_trained_items_fails_the_run(spawner: Spawner, stopped_run: RunFolder) -> None:
    checkpoint = stopped_run.path / "ckpt" / f"step-{newest(stopped_run)}"
    times = np.load(checkpoint / "times_trained.npy")
    times[0] += 1
    np.save(checkpoint / "times_trained.npy", times)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for entry in manifest["files"]:
        entry["blake3"] = hash_file(checkpoint / entry["path"])
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    reason, message = fail(spawner, stopped_run)
    assert reason == "rows_miscounted"
    assert message.startswith("1 of ")


def test_training_lowers_the_loss_on_rows_that_it_never_trains(
    spawner: Spawner, make_run: MakeRun, tiny_model: Path
) -> None:
    run = make_run(epochs=3)
    assert spawner.train(run) == 0
    outcome = run.read("outcome.json")
    assert outcome["rows"] == {**outcome["rows"], "total": 50, "trained": 48, "held_out": 2, "items": 48, "bad": 0}
    assert outcome["eval_loss"] < outcome["eval_loss_before"]
    assert outcome["times_trained"] == {"least": 3, "most": 3}
    assert outcome["run_steps"] == outcome["total_steps"] == 36
    assert [line["step"] for line in run.metrics() if "eval_loss" in line] == [0, 5, 10, 15, 20, 25, 30, 35, 36]
    assert run.status()["run_step"] == run.status()["run_total_steps"] == 36


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_output_is_two_files_that_peft_loads_and_a_second_run_starts_from(
    spawner: Spawner, make_run: MakeRun, tmp_path: Path, tiny_model: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    validation = str(write_rows(tmp_path / "validation.jsonl", *[{"text": f"word {n}"} for n in range(5)]))
    first = make_run("first", validation_file=validation)
    assert spawner.train(first) == 0
    output = first.path / "output"
    assert sorted(path.name for path in output.iterdir()) == ADAPTER_FILES
    assert [entry["path"] for entry in first.read("outcome.json")["files"]] == ADAPTER_FILES
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert PeftModel.from_pretrained(base, output).peft_config["default"].r == 4

    second = make_run(
        "second", validation_file=validation, parent_adapter=str(output), lora_dropout=0.3, start_steps=12
    )
    assert spawner.train(second) == 0
    assert second.read("outcome.json")["eval_loss_before"] == first.read("outcome.json")["eval_loss"]
    assert json.loads((second.path / "output/adapter_config.json").read_text())["lora_dropout"] == 0.3
    assert second.status()["current_step"] == 12 + second.read("outcome.json")["run_steps"]


def test_text_rows_are_trained_in_windows(spawner: Spawner, make_run: MakeRun, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "text.jsonl", {"text": "one two three " * 200}, {"text": "short"})
    run = make_run(data=data, max_length=32, eval_steps=0)
    assert spawner.train(run) == 0
    outcome = run.read("outcome.json")
    assert outcome["rows"]["items"] > 10
    assert outcome["rows"]["cut"] == 0
    assert outcome["times_trained"] == {"least": 1, "most": 1}
    assert outcome["eval_loss"] is None


def test_a_loss_that_is_no_number_fails_the_run(
    spawner: Spawner, make_run: MakeRun, tmp_path: Path, tiny_model: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    few = write_rows(tmp_path / "few.jsonl", *[{"text": f"row {n}"} for n in range(6)])
    reason, message = fail(spawner, make_run("training", base_model=broken, data=few))
    assert (reason, message) == ("non_finite_loss", "the training loss is nan at step 1")
    reason, message = fail(spawner, make_run("evaluation", base_model=broken))
    assert (reason, message) == ("non_finite_loss", "the loss on held-out rows is nan at step 0")


def test_bad_rows_fail_the_file_unless_they_are_allowed(spawner: Spawner, make_run: MakeRun, tmp_path: Path) -> None:
    data = tmp_path / "mixed.jsonl"
    data.write_text('{"text": "good"}\n{"text": 5}\nnot json\n' + '{"text": "good"}\n' * 3)
    strict = make_run("strict", data=data)
    reason, message = fail(spawner, strict)
    assert reason == "bad_data"
    assert "mixed.jsonl: line 2 and 1 more of 6 rows" in message
    assert [row["line"] for row in strict.read("rows.json")["bad_rows"]] == [2, 3]
    lenient = make_run("lenient", data=data, max_bad_rows=2)
    assert spawner.train(lenient) == 0
    assert lenient.read("outcome.json")["rows"]["bad"] == 2


def test_a_file_with_nothing_to_train_fails(spawner: Spawner, make_run: MakeRun, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    assert fail(spawner, make_run("empty", data=empty))[0] == "bad_data"
    changed = write_rows(tmp_path / "changed.jsonl", {"text": "now"})
    run = make_run("changed", data=changed)
    write_rows(changed, {"text": "later"})
    reason, message = fail(spawner, run)
    assert reason == "bad_data"
    assert "was changed" in message


def test_a_base_model_that_cannot_be_used_is_named(
    spawner: Spawner, make_run: MakeRun, tmp_path: Path, tiny_model: Path
) -> None:
    missing = make_run("missing", base_model=tmp_path / "nowhere")
    assert fail(spawner, missing) == (
        "bad_model",
        f"base model {tmp_path / 'nowhere'} is missing or has no config.json",
    )

    torn = tmp_path / "torn"
    shutil.copytree(tiny_model, torn)
    os.truncate(torn / "model.safetensors", 5000)
    assert fail(spawner, make_run("of_torn", base_model=torn))[0] == "bad_model"

    output = tmp_path / "adapter"
    run = make_run("first")
    assert spawner.train(run) == 0
    shutil.copytree(run.path / "output", output)
    reason, message = fail(spawner, make_run("other_rank", parent_adapter=str(output), lora_r=8))
    assert (reason, message) == ("bad_model", f"adapter {output} has lora_r 4, the config says 8")


def test_a_full_disk_ends_the_run_with_its_own_reason(
    spawner: Spawner, tmp_path: Path, tiny_model: Path, chats: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        run = RunFolder(small / "run", tiny_model, chats, save_minutes=0, lora_r=32)
        reason, _ = fail(spawner, run, exit_code=33)
        assert reason == "disk_full"
        assert run.checkpoints() == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_only_one_worker_trains_a_run(spawner: Spawner, make_run: MakeRun) -> None:
    run = make_run()
    with FileLock(run.path / ".lock").hold("test"):
        assert spawner.train(run) == 20
    assert not (run.path / "outcome.json").exists()


def test_the_daemons_death_stops_a_worker_with_a_checkpoint(make_run: MakeRun, spawner: Spawner) -> None:
    """Started as the daemon starts it; its parent is killed, and the worker saves and ends."""
    run = make_run(epochs=50)
    starter = (
        "import os, subprocess, sys; os.environ['GUARDRAILS_DAEMON_PID'] = str(os.getpid()); "
        "command = [sys.executable, '-m', 'guardrails.training.worker', sys.argv[1]]; "
        "sys.exit(subprocess.call(command, start_new_session=True))"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-c", starter, str(run.path)], cwd=CODE_DIR, env=worker_environment(), start_new_session=True
    )
    wait_until(lambda: run.status()["run_step"] >= 3 or daemon.poll() is not None, "training")
    # Ctrl-C is the daemon's to decide.
    os.kill(run.status()["pid"], signal.SIGINT)
    daemon.kill()
    daemon.wait()
    wait_until((run.path / "outcome.json").exists, "the outcome")
    outcome = run.read("outcome.json")
    assert outcome["result"] == "interrupted"
    assert newest(run) == outcome["run_steps"] >= 3


def test_a_worker_whose_daemon_is_gone_does_not_start(make_run: MakeRun, spawner: Spawner) -> None:
    run = make_run()
    assert spawner.start(run, {"GUARDRAILS_DAEMON_PID": "1"}).wait() == 0
    assert not (run.path / "worker.log").exists()


def test_before_training_a_signal_ends_the_worker_at_once(make_run: MakeRun) -> None:
    run = make_run()
    worker = subprocess.Popen(
        [sys.executable, "-m", "guardrails.training.worker", str(run.path)], cwd=CODE_DIR, env=worker_environment()
    )
    wait_until(lambda: run.status()["phase"] == "importing", "the start")
    worker.terminate()
    assert worker.wait(timeout=1) == -signal.SIGTERM
    assert not (run.path / "outcome.json").exists()
