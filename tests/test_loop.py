"""The main job end to end: real processes, a real tiny model, real training."""

import json
import time
from pathlib import Path

import pytest

from tests.box import Box

pytestmark = pytest.mark.training


def test_two_files_become_two_versions_each_backed_up_and_steps_add_up(box: Box) -> None:
    box.drop("one.jsonl", rows=40, seed=1)
    box.once()
    box.drop('it\'s a "two"\n 🦙.jsonl', rows=60, seed=2)
    box.drop("nested/folder/one.jsonl", rows=24, seed=3)
    box.drop("copy.jsonl", rows=40, seed=1)
    box.once()

    versions = box.versions()
    assert [version["id"] for version in versions] == ["v001", "v002", "v003"]
    assert [version["parent"] for version in versions] == [None, "v001", "v002"]
    steps = 0
    for version, rows in zip(versions, (40, 60, 24), strict=True):
        data = version["data"][0]
        assert data["rows"] == rows == data["trained"] + data["held_out"]
        assert version["run_steps"] == -(-data["trained"] // 4)
        steps += version["run_steps"]
        assert version["training_steps"] == steps
        assert version["eval_loss"] < version["eval_loss_before"]
        outcome = json.loads((box.paths.run(version["run_id"]) / "outcome.json").read_text())
        assert outcome["times_trained"] == {"least": 1, "most": 1}
        assert not (box.paths.run(version["run_id"]) / "ckpt").exists()
    assert [backup["version"] for backup in box.json("backup_manager.py", "list")] == ["v001", "v002", "v003"]
    assert "one-2.jsonl" in box.names("completed")
    assert box.names("skipped") == ["copy.jsonl"]
    assert "v001" in json.loads((box.paths.queue_records / "copy.jsonl.json").read_text())["reason"]
    box.assert_at_rest()

    document = box.json("state_tracker.py")
    assert document["current_model"]["training_steps"] == steps
    assert document["queue"]["completed"] == 3


def test_current_model_loads_in_peft_and_is_what_was_published(box: Box, tiny_model: Path) -> None:
    box.drop("one.jsonl")
    box.once()
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), box.paths.current_model)
    saved = load_file(box.paths.version("v001") / "model" / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): value for name, value in model.state_dict().items() if "lora_" in name}
    assert saved.keys() == loaded.keys()
    assert all(saved[name].equal(loaded[name]) for name in saved)


def test_a_dropped_file_is_taken_up_within_the_poll_interval_and_a_second(box: Box) -> None:
    box.configure(base_model=box.settings["base_model"], poll_interval=2)
    box.start_daemon()
    box.wait(lambda: box.state()["state"] == "idle", "idle")
    for seed in (1, 2):
        box.drop(f"{seed}.jsonl", seed=seed)
        dropped = time.monotonic()
        box.wait(lambda: box.names("processing"), "the file in processing")
        assert time.monotonic() - dropped < 3.0
        box.run("training_controller.py", "skip", "--wait", "30")


@pytest.mark.faults
def test_a_model_changed_by_hand_is_saved_before_it_is_trained_on(box: Box) -> None:
    box.drop("one.jsonl", seed=1)
    box.once()
    changed = b"changed by hand"
    (box.paths.current_model / "notes.txt").write_bytes(changed)
    box.drop("two.jsonl", seed=2)
    box.once()
    assert [version["kind"] for version in box.versions()] == ["training", "snapshot", "training"]
    assert (box.paths.version("v002") / "model" / "notes.txt").read_bytes() == changed
    assert [version["parent"] for version in box.versions()] == [None, "v001", "v002"]


def test_a_deleted_current_model_is_put_back_and_trained_on(box: Box) -> None:
    box.drop("one.jsonl", seed=1)
    box.once()
    for path in box.paths.current_model.iterdir():
        path.unlink()
    box.paths.current_model.rmdir()
    box.drop("two.jsonl", seed=2)
    box.once()
    assert [version["parent"] for version in box.versions()] == [None, "v001"]
    assert box.versions()[1]["training_steps"] == box.versions()[0]["run_steps"] + box.versions()[1]["run_steps"]


def test_a_second_daemon_is_refused_and_names_the_first(box: Box) -> None:
    first = box.start_daemon()
    result = box.run("training_daemon.py", "--once", code=20)
    assert str(first.pid) in result.stderr
    box.run("training_controller.py", "stop", "--wait", "20")
    box.wait_for_end()


def test_a_rollback_goes_back_one_change_at_a_time_and_each_can_be_undone(box: Box) -> None:
    for seed in (1, 2, 3):
        box.drop(f"{seed}.jsonl", seed=seed)
    box.once()
    weights = {
        version["id"]: (box.paths.version(version["id"]) / "model" / "adapter_model.safetensors").read_bytes()
        for version in box.versions()
    }
    assert box.run("model_versioner.py", "rollback").stdout.splitlines()[0] == "current_model/ is v002"
    assert box.weights() == weights["v002"]
    assert box.names("skipped") == ["3.jsonl"]
    assert "current_model/ is v001" in box.run("model_versioner.py", "rollback").stdout.splitlines()
    assert box.names("skipped") == ["2.jsonl", "3.jsonl"]
    # Nothing that was undone trains again by itself, nor when it is dropped again.
    box.drop("again.jsonl", seed=3)
    box.once()
    assert box.head() == "v001"
    assert box.names("skipped") == ["2.jsonl", "3.jsonl", "again.jsonl"]
    box.run("model_versioner.py", "restore", "v003")
    assert box.weights() == weights["v003"]
    assert box.names("completed") == ["1.jsonl", "2.jsonl", "3.jsonl"]
    # After a restore: back to what was before it; then on along the parents, to a fresh start.
    expected = ["v001", None]
    for version in expected:
        document = box.json("model_versioner.py", "rollback")
        assert document["version"] == version
    assert not box.paths.current_model.exists()
    box.run("model_versioner.py", "rollback", code=1)
    box.run("model_versioner.py", "restore", "v002")
    assert box.weights() == weights["v002"]
    # The next training goes on from there, under a number that was never used.
    box.drop("4.jsonl", seed=4)
    box.once()
    assert box.versions()[-1]["id"] == "v004"
    assert box.versions()[-1]["parent"] == "v002"
    box.assert_at_rest()


@pytest.mark.faults
def test_retry_trains_what_was_undone(box: Box) -> None:
    box.drop("one.jsonl")
    box.once()
    box.run("model_versioner.py", "rollback")
    box.run("training_queue.py", "retry", "one.jsonl")
    box.once()
    assert [version["id"] for version in box.versions()] == ["v001", "v002"]
    assert box.head() == "v002"
    assert box.versions()[0]["files"] == box.versions()[1]["files"]


def test_a_backup_that_fails_holds_the_queue_and_says_why(box: Box) -> None:
    elsewhere = box.paths.base / "elsewhere"
    elsewhere.write_text("a file where the folder should be")
    box.configure(base_model=box.settings["base_model"], backup_dir="elsewhere")
    box.drop("one.jsonl", seed=1)
    box.drop("two.jsonl", seed=2)
    assert "elsewhere" in box.once(code=1).stderr
    assert (box.head(), box.names("processing"), box.names("normal")) == ("v001", ["one.jsonl"], ["two.jsonl"])
    box.start_daemon()
    box.wait(lambda: box.state()["state"] == "held", "held")
    assert "elsewhere" in box.state()["reason"]
    assert any("held" in line for line in box.run("state_tracker.py", "--warnings").stdout.splitlines())
    elsewhere.unlink()
    elsewhere.mkdir()
    box.run("training_controller.py", "resume", "--wait", "30")
    box.wait(lambda: box.head() == "v002" and not box.names("processing"), "v002")
    box.run("training_controller.py", "stop", "--wait", "30")
    box.wait_for_end()
    assert [backup["version"] for backup in box.json("backup_manager.py", "list")] == ["v001", "v002"]
